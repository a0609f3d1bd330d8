import { dirname } from 'node:path';
import { expect, test } from 'vitest';
import * as v from 'valibot';
import { disagreements, looseEnds, podsOf, settingNames } from '../support/deploy/agreements.ts';
import { missingFiles, readKustomizations } from '../support/deploy/kustomize.ts';
import { containersOf, readManifests, readText, yamlFiles } from '../support/deploy/manifests.ts';
import type { Manifest } from '../support/deploy/manifests.ts';

const FOLDER = 'docker/kubernetes';
const OBJECTS = readManifests(FOLDER);
const KUSTOMIZATIONS = readKustomizations(FOLDER);

test('manifests agree with each other', () => {
  expect(disagreements(OBJECTS)).toEqual([]);
});

test('each file is taken in by a kustomization, and what these take in is there', () => {
  expect(KUSTOMIZATIONS.flatMap(missingFiles)).toEqual([]);
  const taken = new Set(KUSTOMIZATIONS.flatMap((each) => each.taken));
  const left = yamlFiles(FOLDER)
    .map((path) => (path.endsWith('/kustomization.yaml') ? dirname(path) : path))
    .filter((path) => !taken.has(path) && path !== `${FOLDER}/overlays/example`);
  expect(left).toEqual([]);
});

test('every container is confined', () => {
  const loose = podsOf(OBJECTS).flatMap(({ work }) =>
    containersOf(work).flatMap((each) => looseEnds(work, each)),
  );
  expect(loose).toEqual([]);
});

test('settings are settings, and what is secret is in none of them', () => {
  const known = settingNames();
  const literals = KUSTOMIZATIONS.flatMap(({ configMapGenerator }) =>
    configMapGenerator.flatMap(({ literals }) => literals),
  );
  const pods = podsOf(OBJECTS).filter(({ object }) => object.kind === 'Deployment');
  const set = pods.flatMap(({ work }) => containersOf(work).flatMap(({ env }) => env));
  const names = [
    ...literals.map((literal) => literal.slice(0, literal.indexOf('='))),
    ...set.map(({ name }) => name),
  ];
  expect(names.length).toBeGreaterThan(10);
  expect(names.filter((name) => !known.has(name))).toEqual([]);
  expect(names.filter((name) => /KEY|SECRET|TOKEN|PASSWORD/.test(name))).toEqual([]);
});

const policy = v.looseObject({
  podSelector: v.looseObject({ matchLabels: v.record(v.string(), v.string()) }),
  ingress: v.optional(
    v.array(v.looseObject({ ports: v.optional(v.array(v.object({ port: v.string() })), []) })),
    [],
  ),
});

function policies(objects: readonly Manifest[]) {
  return objects
    .filter(({ kind }) => kind === 'NetworkPolicy')
    .map((object) => v.parse(policy, object['spec']));
}

test('a network policy closes every pod, and names ports that there are', () => {
  const pods = podsOf(OBJECTS);
  for (const { object, work } of pods) {
    const { labels } = work.template.metadata;
    const own = policies(OBJECTS).filter(({ podSelector }) =>
      Object.entries(podSelector.matchLabels).every(([key, value]) => labels[key] === value),
    );
    expect(own.length, `policies of ${object.metadata?.name ?? ''}`).toBeGreaterThan(0);
    const open = new Set(containersOf(work).flatMap(({ ports }) => ports.map(({ name }) => name)));
    const asked = own.flatMap(({ ingress }) =>
      ingress.flatMap(({ ports }) => ports.map(({ port }) => port)),
    );
    expect(asked.filter((port) => !open.has(port))).toEqual([]);
  }
});

test('Redis has the settings of docker/redis.conf', () => {
  expect(readText(`${FOLDER}/components/redis/redis.conf`)).toBe(readText('docker/redis.conf'));
});

test("batches' workers have the rights of config/kubernetes", () => {
  const plain = (objects: readonly Manifest[]): unknown[] =>
    objects.map(
      (object) =>
        JSON.parse(
          JSON.stringify({ ...object, source: '' }).replaceAll(',"namespace":"default"', ''),
        ) as unknown,
    );
  const own = OBJECTS.filter(({ source }) => source.endsWith('/job-reader.yaml'));
  const theirs = readManifests('config/kubernetes').filter(({ kind }) => kind !== 'Job');
  expect(plain(own)).toEqual(plain(theirs));
});

test('Sluice may neither read secrets nor run commands in pods, and outside only look', () => {
  const rules = OBJECTS.filter(({ kind }) => kind.endsWith('Role')).flatMap((object) =>
    v
      .parse(
        v.array(
          v.object({
            resources: v.array(v.string()),
            verbs: v.array(v.string()),
            apiGroups: v.array(v.string()),
          }),
        ),
        object['rules'],
      )
      .map((rule) => ({ ...rule, kind: object.kind })),
  );
  const all = rules.flatMap(({ resources, verbs, apiGroups }) => [
    ...resources,
    ...verbs,
    ...apiGroups,
  ]);
  expect(all).toContain('jobs');
  expect(
    all.filter((word) => /^\*$|secrets|exec|attach|portforward|impersonate|escalate/.test(word)),
  ).toEqual([]);
  const wide = rules.filter(({ kind }) => kind === 'ClusterRole').flatMap(({ verbs }) => verbs);
  expect(wide).toEqual(['list']);
});
