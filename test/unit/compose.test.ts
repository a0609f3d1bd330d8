import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import * as v from 'valibot';
import { parse } from 'yaml';
import { loadSettings } from '../../config/load.ts';
import { interpolate, needsOf, readCompose } from '../support/deploy/compose.ts';
import { settingNames } from '../support/deploy/agreements.ts';
import { readText, ROOT } from '../support/deploy/manifests.ts';

const { services, volumes } = readCompose();
const ours = Object.entries(services).filter(([, { image }]) => image.startsWith('sluice:'));
const VALUES = { S3_SECRET_KEY: 'abc' };

test('services, volumes and files that are named are there', () => {
  for (const [name, service] of Object.entries(services)) {
    for (const [needed, condition] of needsOf(service)) {
      const other = services[needed];
      expect(other, `${name} needs ${needed}`).toBeDefined();
      if (condition === 'service_healthy') expect(other?.healthcheck, needed).toBeDefined();
      // What is not started cannot be waited for.
      expect(other?.profiles.every((profile) => service.profiles.includes(profile))).toBe(true);
    }
    for (const volume of service.volumes) {
      const [source = ''] = volume.split(':');
      const isThere = source.startsWith('./')
        ? existsSync(join(ROOT, 'docker', source))
        : Object.hasOwn(volumes, source);
      expect(isThere, `${name} mounts ${source}`).toBe(true);
    }
    const { build } = service;
    if (build !== undefined) {
      expect(existsSync(join(ROOT, 'docker', build.context, build.dockerfile))).toBe(true);
    }
  }
});

test('images have versions, and are not to be had by root', () => {
  for (const [name, { image, build, security_opt: options, restart }] of Object.entries(services)) {
    if (build === undefined) expect(image, name).toMatch(/:v?\d+\.\d+/);
    if (restart !== undefined) expect(options, name).toContain('no-new-privileges:true');
  }
  for (const [name, service] of ours) {
    expect(service.read_only, name).toBe(true);
    expect(service.cap_drop, name).toEqual(['ALL']);
    expect(service.cap_add, name).toEqual([]);
  }
});

test('the processes of Sluice start with these settings', () => {
  const known = settingNames();
  const roles = ours.map(([name, { environment, stop_grace_period: grace = '10s' }]) => {
    expect(Object.keys(environment).filter((each) => !known.has(each))).toEqual([]);
    const filled = Object.entries(environment).map(([key, value]) => [
      key,
      interpolate(value, VALUES),
    ]);
    const settings = loadSettings(Object.fromEntries(filled) as Record<string, string>); // texts
    expect(settings.redisUrl).toMatch(/^redis:\/\/redis:6379/);
    expect(settings.s3Endpoint).toBe('http://s3:7070');
    expect(Number.parseInt(grace, 10) * 1_000).toBeGreaterThanOrEqual(
      settings.shutdownGrace + 20_000,
    );
    return [name, settings.roles];
  });
  expect(Object.fromEntries(roles)).toEqual({
    api: ['api'],
    worker: ['worker', 'api'],
    sweeper: ['sweeper', 'api'],
    leasing: ['api', 'worker', 'sweeper'],
  });
});

test('a second Sluice shares neither records nor files with the first', () => {
  const [api, leasing] = [services['api'], services['leasing']];
  expect(leasing?.environment['REDIS_URL']).not.toBe(api?.environment['REDIS_URL']);
  expect(leasing?.environment['S3_PREFIX']).not.toBe(api?.environment['S3_PREFIX']);
});

test('only this machine reaches a port, and no two services want the same', () => {
  const ports = Object.values(services).flatMap(({ ports }) =>
    ports.map((port) => interpolate(port, {})),
  );
  expect(ports.every((port) => port.startsWith('127.0.0.1:'))).toBe(true);
  expect(new Set(ports.map((port) => port.split(':')[1])).size).toBe(ports.length);
});

test('a secret has no default, and is asked for by name', () => {
  const text = readText('docker/compose.yml');
  expect(() => interpolate(text, {})).toThrow('S3_SECRET_KEY: put S3_SECRET_KEY into docker/.env');
  expect(interpolate(text, VALUES)).not.toContain('$' + '{');
});

test('Redis reads our redis.conf, and takes others than this machine', () => {
  const { redis } = services;
  expect(redis?.volumes).toContain('./redis.conf:/etc/redis.conf:ro');
  expect(redis?.command.slice(0, 4)).toEqual(['redis-server', '/etc/redis.conf', '--bind', '*']);
  expect(readText('docker/redis.conf')).toMatch(/^appendonly yes$/m);
});

const scraping = v.looseObject({
  rule_files: v.array(v.string()),
  scrape_configs: v.array(
    v.looseObject({
      dns_sd_configs: v.array(v.looseObject({ names: v.array(v.string()), port: v.number() })),
    }),
  ),
});

test('Prometheus asks every process of the main deployment', () => {
  const { rule_files: rules, scrape_configs: jobs } = v.parse(
    scraping,
    parse(readText('docker/prometheus.yml')),
  );
  const asked = jobs.flatMap((job) => job.dns_sd_configs);
  const main = ours.filter(([, { profiles }]) => profiles.length === 0).map(([name]) => name);
  expect(asked.flatMap(({ names }) => names)).toEqual(main);
  expect(asked.map(({ port }) => port)).toEqual([8080]);
  for (const rule of rules) {
    expect(services['prometheus']?.volumes).toContain(`./${rule}:/etc/prometheus/${rule}:ro`);
  }
});
