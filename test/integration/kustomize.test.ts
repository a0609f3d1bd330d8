import { describe, expect, test } from 'vitest';
import * as v from 'valibot';
import { loadSettings } from '../../config/load.ts';
import { disagreements, looseEnds, podsOf } from '../support/deploy/agreements.ts';
import { render, whyNoKustomize } from '../support/deploy/kustomize.ts';
import { containersOf, readText } from '../support/deploy/manifests.ts';
import type { Container, Manifest } from '../support/deploy/manifests.ts';
import { faultsOf } from '../support/deploy/schemas.ts';

const why = whyNoKustomize();

const data = v.record(v.string(), v.string());

/** The environment of a container, with words of no meaning for its secrets. */
function environmentOf(container: Container, objects: readonly Manifest[]): Record<string, string> {
  const maps = container.envFrom.flatMap(({ configMapRef: ref }) => {
    if (ref === undefined) return [];
    const map = objects.find(
      (each) => each.kind === 'ConfigMap' && each.metadata?.name === ref.name,
    );
    return [v.parse(data, map?.['data'])];
  });
  const own = container.env.map(({ name, value }) => [name, value ?? 'secret']);
  return { ...Object.assign({}, ...maps), ...Object.fromEntries(own) } as Record<string, string>; // of texts only
}

describe.skipIf(why !== undefined)(`kubectl apply -k ${why ?? ''}`, () => {
  test.for(['docker/kubernetes/base', 'docker/kubernetes/overlays/example'])(
    '%s applies what Kubernetes takes and what agrees with itself',
    async (folder) => {
      const objects = render(folder);
      expect((await Promise.all(objects.map(faultsOf))).flat()).toEqual([]);
      expect(disagreements(objects)).toEqual([]);
      const pods = podsOf(objects);
      expect(pods.length).toBeGreaterThanOrEqual(3);
      const loose = pods.flatMap(({ work }) =>
        containersOf(work).flatMap((each) => looseEnds(work, each)),
      );
      expect(loose).toEqual([]);
    },
  );

  const objects = why === undefined ? render('docker/kubernetes/overlays/example') : [];
  const servers = podsOf(objects).filter(({ object }) => object.kind === 'Deployment');

  test('the example is in one namespace', () => {
    const wide = new Set(['Namespace', 'ClusterRole', 'ClusterRoleBinding']);
    const narrow = objects.filter(({ kind }) => !wide.has(kind));
    expect(new Set(narrow.map(({ metadata }) => metadata?.namespace))).toEqual(new Set(['sluice']));
    const binding = objects.find(({ kind }) => kind === 'ClusterRoleBinding');
    expect(binding?.['subjects']).toMatchObject([{ name: 'sluice', namespace: 'sluice' }]);
  });

  test('its processes start with these settings, and end within their grace', () => {
    expect(servers.map(({ object }) => object.metadata?.name)).toEqual([
      'sluice-api',
      'sluice-sweeper',
      'sluice-worker',
    ]);
    const roles = servers.flatMap(({ work }) => {
      const [container] = work.template.spec.containers;
      if (container === undefined) throw new Error('no container');
      const environment = environmentOf(container, objects);
      expect(environment['REDIS_URL']).toBe('redis://:$(REDIS_PASSWORD)@sluice-redis:6379');
      const url = 'redis://:secret@sluice-redis:6379';
      const settings = loadSettings({ ...environment, REDIS_URL: url });
      expect(settings.httpAddr).toMatchObject({ host: '0.0.0.0', port: 8080 });
      expect(work.template.spec.terminationGracePeriodSeconds * 1_000).toBeGreaterThanOrEqual(
        settings.shutdownGrace + 20_000,
      );
      return settings.roles;
    });
    expect(roles).toEqual(['api', 'sweeper', 'api', 'worker', 'api']);
  });

  test('the autoscaler alone says how many workers there are', () => {
    const replicas = servers.map(
      ({ object }) =>
        v.parse(v.looseObject({ replicas: v.optional(v.number()) }), object['spec']).replicas,
    );
    expect(replicas).toEqual([2, 2, undefined]);
  });

  test('its secrets are those that docker/README.md tells to make', () => {
    const readme = readText('docker/README.md');
    const secrets = podsOf(objects).flatMap(({ work }) =>
      containersOf(work).flatMap(({ env, envFrom }) => [
        ...envFrom.flatMap(({ secretRef }) => secretRef?.name ?? []),
        ...env.flatMap(({ valueFrom }) => valueFrom?.secretKeyRef?.name ?? []),
      ]),
    );
    expect(new Set(secrets)).toEqual(new Set(['sluice-secrets', 'sluice-redis']));
    for (const name of secrets) expect(readme).toContain(`create secret generic ${name}`);
  });
});
