import { expect, test } from 'vitest';
import * as v from 'valibot';
import { parse } from 'yaml';
import { loadSettings } from '../../config/load.ts';
import { composeFaults, interpolate, readCompose } from '../support/deploy/compose.ts';
import { settingNames } from '../support/deploy/agreements.ts';
import { readText } from '../support/deploy/manifests.ts';

const { services } = readCompose();
const ours = Object.entries(services).filter(([, { image }]) => image.startsWith('sluice:'));
const VALUES = { S3_SECRET_KEY: 'abc' };

test('services, volumes and files that are named are there, and images have versions', () => {
  expect(Object.keys(services).length).toBeGreaterThan(6);
  expect(composeFaults(readCompose())).toEqual([]);
});

test('the containers of Sluice are confined', () => {
  const loose = ours.filter(
    ([, { read_only: isReadOnly, cap_drop: dropped, cap_add: added, security_opt: options }]) =>
      !isReadOnly ||
      dropped.join() !== 'ALL' ||
      added.length > 0 ||
      !options.includes('no-new-privileges:true'),
  );
  expect(loose).toEqual([]);
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
  expect(interpolate(text, VALUES)).not.toMatch(/\$\{/);
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
