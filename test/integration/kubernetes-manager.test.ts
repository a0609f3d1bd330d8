import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { LeaseAccount, MachineWish } from '../../src/resources/lease-contract.ts';
import { openAccess } from '../../src/resources/kubernetes/access.ts';
import { createCluster } from '../../src/resources/kubernetes/cluster.ts';
import { createKubernetes } from '../../src/resources/kubernetes/index.ts';
import type { KubernetesOptions } from '../../src/resources/kubernetes/index.ts';
import { startKubernetes } from '../simulators/kubernetes/simulator.ts';
import type { KubernetesSimulator } from '../simulators/kubernetes/simulator.ts';
import { asAdmin, createObjects, namespaceObject } from '../support/kube-admin.ts';
import { makeSpec } from '../support/template-spec.ts';
import { until } from '../support/until.ts';

let simulator: KubernetesSimulator;
let manager: LeaseAccount;
beforeAll(async () => {
  const nodes = [{ name: 'one', gpus: 4 }];
  simulator = await startKubernetes({ pods: 'none', nodes });
  await createObjects(simulator, [namespaceObject('team')]);
  manager = open();
});
afterAll(async () => {
  await manager.close?.();
  await simulator[Symbol.asyncDispose]();
});

function open(change: Partial<KubernetesOptions> = {}): LeaseAccount {
  const { kubeconfig } = simulator;
  return createKubernetes({
    cluster: createCluster({
      open: async () => openAccess({ kubeconfig, inCluster: null }),
      namespaces: ['default', 'team'],
    }),
    access: 'auto',
    resource: 'nvidia.com/gpu',
    productLabel: 'nvidia.com/gpu.product',
    isAutoscaled: false,
    scheduleMs: 60_000,
    runsJobs: false,
    objectStore: () => null,
    now: Date.now,
    ...change,
  });
}

let names = 0;

function wish(change: Partial<MachineWish> = {}): MachineWish {
  names += 1;
  return {
    name: `sl-00000000-aaaaaaaaaaaaaaaa-${names}-abc`,
    offer: 'NVIDIA-H100-80GB-HBM3:1',
    gpuCount: 1,
    regions: [],
    interruptible: false,
    maxPricePerHour: null,
    image: '',
    diskGb: 0,
    authorizedKey: '',
    hostKey: '',
    modelCache: null,
    sendBefore: Date.now() + 5_000,
    engine: { spec: makeSpec(), servingName: 'm' },
    ...change,
  };
}

async function remove(path: string): Promise<void> {
  await using api = asAdmin(simulator);
  await api.ask({ method: 'DELETE', path: `${path}?propagationPolicy=Orphan` });
}

/** Nobody runs pods here, so that nobody ends them either. */
async function endPods(name: string): Promise<void> {
  await using api = asAdmin(simulator);
  for (const { metadata } of simulator.control.pods()) {
    if (!metadata.name.startsWith(name)) continue;
    const path = `/api/v1/namespaces/default/pods/${metadata.name}?gracePeriodSeconds=0`;
    await api.ask({ method: 'DELETE', path }).catch(() => null);
  }
}

describe('a machine of Kubernetes', () => {
  test('is made once, whoever asks for its name again', async () => {
    const one = wish();
    const [first, second] = [await manager.create(one), await manager.create(one)];
    expect(second.id).toBe(first.id);
    const same = (await manager.list('sl-00000000')).filter(({ name }) => name === one.name);
    expect(same).toHaveLength(1);
  });

  test('is in the namespace of the wish, and listed with those of all namespaces', async () => {
    const made = await manager.create(wish({ namespace: 'team' }));
    expect(made.id).toMatch(/^team\//);
    expect((await manager.list('sl-00000000')).map(({ id }) => id)).toContain(made.id);
    expect(await manager.list('sl-11111111')).toEqual([]);
  });

  test('whose name somebody else has used is refused', async () => {
    const one = wish();
    const labels = { app: 'other' };
    const spec = {
      selector: { matchLabels: labels },
      template: {
        metadata: { labels },
        spec: { containers: [{ name: 'c', image: 'busybox' }] },
      },
    };
    const body = { apiVersion: 'apps/v1', kind: 'Deployment', metadata: { name: one.name }, spec };
    await createObjects(simulator, [
      { path: '/apis/apps/v1/namespaces/default/deployments', body },
    ]);
    await expect(manager.create(one)).rejects.toMatchObject({ code: 'lease.name_taken' });
  });

  test('is not asked for when it is too late', async () => {
    const late = wish({ sendBefore: Date.now() - 1 });
    await expect(manager.create(late)).rejects.toMatchObject({ code: 'lease.unavailable' });
    expect((await manager.list(late.name)).length).toBe(0);
  });

  test('in a namespace that is not there is for nobody to have', async () => {
    const lost = wish({ namespace: 'nowhere' });
    await expect(manager.create(lost)).rejects.toMatchObject({
      kind: 'Permanent',
      code: 'lease.namespace_missing',
      message: expect.stringContaining('nowhere'),
    });
  });

  test('is gone when nothing of it is left, its Service and its pods included', async () => {
    const { id, name } = await manager.create(wish());
    await until(async () => (await manager.describe(id))?.state === 'running');
    await remove(`/apis/apps/v1/namespaces/default/deployments/${name}`);
    expect(await manager.describe(id)).toMatchObject({ state: 'stopping' });
    expect((await manager.list(name)).map(({ state }) => state)).toEqual(['stopping']);
    expect(await manager.destroy(id)).toBe('going');
    await endPods(name);
    expect(await manager.destroy(id)).toBe('gone');
  });

  test('whose Service is missing gets it at the first look', async () => {
    const { id, name } = await manager.create(wish());
    await remove(`/api/v1/namespaces/default/services/${name}`);
    const other = open();
    try {
      expect(await other.engines?.look(id)).not.toBeNull();
      const service = `/api/v1/namespaces/default/services/${name}`;
      await using api = asAdmin(simulator);
      expect(await api.ask({ method: 'GET', path: service })).toMatchObject({ kind: 'Service' });
      await manager.destroy(id);
      await until(async () => {
        await endPods(name);
        return (await other.engines?.look(id)) === null;
      });
    } finally {
      await other.close?.();
    }
  });

  test.for<['auto' | 'service' | 'proxy', RegExp]>([
    ['auto', /\/api\/v1\/namespaces\/default\/services\/x:8000\/proxy$/],
    ['proxy', /\/api\/v1\/namespaces\/default\/services\/x:8000\/proxy$/],
    ['service', /^http:\/\/x\.default\.svc:8000$/],
  ])('is reached as KUBERNETES_ENGINE_ACCESS=%s says', async ([access, url]) => {
    const other = open({ access });
    try {
      const way = await other.engines?.way('default/x');
      expect(way?.url).toMatch(url);
      expect(way?.tls === null).toBe(access === 'service');
    } finally {
      await other.close?.();
    }
  });

  test('a create that nobody knows the outcome of is unknown, one that was never sent is not', async () => {
    const stop = simulator.control.fault(({ verb, resource }) =>
      verb === 'create' && resource === 'deployments' ? 'reset' : undefined,
    );
    await expect(manager.create(wish())).rejects.toMatchObject({ code: 'lease.unknown' });
    stop();
    await simulator.control.setApiAway(true);
    await expect(manager.create(wish())).rejects.toMatchObject({ code: 'lease.unavailable' });
    await simulator.control.setApiAway(false);
  });
});
