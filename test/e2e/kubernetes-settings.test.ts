import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { whyNoNamespaces } from '../simulators/kubernetes/simulator.ts';
import { upload } from '../support/batch.ts';
import { startClusterSite } from '../support/cluster-site.ts';
import type { ClusterSite } from '../support/cluster-site.ts';
import { createObjects, namespaceObject } from '../support/kube-admin.ts';
import { cancelJob, createJob, leaseInput, untilJob, untilStatus } from '../support/leases.ts';
import { until } from '../support/until.ts';
import type { Environment, Sluice } from '../support/server.ts';

const why = await whyNoNamespaces();
let site: ClusterSite;
beforeAll(async () => {
  if (why !== undefined) return;
  const zone = { 'topology.kubernetes.io/zone': 'eu-1b', 'acme.com/gpu-kind': 'H100' };
  const nodes = [
    { name: 'one', gpus: 1 },
    { name: 'two', gpus: 1, labels: zone },
  ];
  site = await startClusterSite({
    cluster: { nodes },
    env: { KUBERNETES_NAMESPACE: 'default,team' },
  });
  await createObjects(site.cluster, [namespaceObject('team')]);
}, 60_000);
afterAll(async () => site?.[Symbol.asyncDispose]());

async function batch(url: string, template: string, aibrix: object): Promise<Response> {
  const body = {
    input_file_id: await upload(url, leaseInput(10).text),
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    aibrix: { model_template: { name: template }, ...aibrix },
  };
  return fetch(`${url}/v1/batches`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
}

function isReady({ status }: Awaited<ReturnType<typeof podIn>>): boolean {
  return (
    status.conditions?.some(({ type, status: is }) => type === 'Ready' && is === 'True') ?? false
  );
}

function isRunning({ status }: Awaited<ReturnType<typeof podIn>>): boolean {
  return status.containerStatuses?.some(({ state }) => state?.running) ?? false;
}

function podIn(namespace: string) {
  return until(() => site.cluster.control.pods(namespace)[0], { what: `a pod in ${namespace}` });
}

async function untilGone(): Promise<void> {
  const { control } = site.cluster;
  const none = () => [...control.pods(), ...control.pods('team')].length === 0;
  await until(none, { what: 'no pods' }).catch((error: unknown) => {
    const left = JSON.stringify([...control.pods(), ...control.pods('team')]);
    throw new Error(`there are ${left}`, { cause: error });
  });
}

/** Whether a GPU of the cluster is to be had, by the catalog. */
async function stockOf(url: string): Promise<string | undefined> {
  const answer = await fetch(`${url}/api/v1/catalog`);
  const { offers } = (await answer.json()) as { offers: { id: string; stock: string }[] };
  return offers.find(({ id }) => id.endsWith(':1') && !id.startsWith('cpu'))?.stock;
}

/** A server with other settings beside the first, which does nothing meanwhile; for one job that is cancelled again. */
async function withSettings(
  env: Environment,
  look: (sluice: Sluice, id: string) => Promise<void>,
): Promise<void> {
  const other = await startClusterSite({
    cluster: { nodes: [{ name: 'node-1', gpus: 2, labels: { 'acme.com/gpu-kind': 'H100' } }] },
    env,
  });
  await using _ = other;
  const outer = site;
  site = other;
  try {
    const id = await createJob(other.url, await other.template(), leaseInput(10));
    await look(other.sluice, id);
    // A program that has only just begun hears no signal yet.
    const isCalm = () =>
      other.cluster.control.pods().every((pod) => isReady(pod) || !isRunning(pod));
    await until(isCalm, { what: 'ready pods' });
    await cancelJob(other.url, id);
    await untilGone();
  } finally {
    site = outer;
  }
}

describe.skipIf(why !== undefined)('each setting and field has its effect', () => {
  test('aibrix.runtime.target Kubernetes with options.namespace: the engine is in that namespace', async () => {
    const { name } = await site.template();
    const runtime = { target: 'Kubernetes', options: { namespace: 'team' } };
    const answer = await batch(site.url, name, { runtime });
    expect(answer.status).toBe(200);
    await podIn('team');
    const { id } = (await answer.json()) as { id: string };
    const job = `job_${id.slice('batch_'.length)}`;
    await untilStatus(site.url, job, 'completed', 60_000);
    await untilGone();
  }, 90_000);

  test('a namespace that KUBERNETES_NAMESPACE does not name is refused with the mend', async () => {
    const { name } = await site.template();
    const runtime = { target: 'Kubernetes', options: { namespace: 'other' } };
    const answer = await batch(site.url, name, { runtime });
    expect(answer.status).toBe(400);
    const { error } = (await answer.json()) as { error: { message: string; param: string } };
    expect(error.param).toBe('aibrix.runtime.options.namespace');
    expect(error.message).toContain('KUBERNETES_NAMESPACE=default,team,other');
  });

  test('KUBERNETES_NAMESPACE: a job that names none is in the first one', async () => {
    const id = await createJob(site.url, await site.template(), leaseInput(10));
    const pod = await podIn('default');
    expect(pod.metadata.namespace).toBe('default');
    await untilStatus(site.url, id, 'completed', 60_000);
    await untilGone();
  }, 90_000);

  test('resource_request.regions: the engine is where the zone is', async () => {
    const more = { resource_request: { regions: ['eu-1b'] } };
    const id = await createJob(site.url, await site.template(), leaseInput(10), more);
    const job = await untilStatus(site.url, id, 'completed', 60_000);
    expect(job.provision?.region).toBe('two');
    await untilGone();
  }, 90_000);

  test('GET /api/v1/catalog: GPUs by node labels, allocatable minus requested', async () => {
    const answer = await fetch(`${site.url}/api/v1/catalog`);
    const { offers } = (await answer.json()) as { offers: { id: string; provider: string }[] };
    expect(offers).toContainEqual(
      expect.objectContaining({ provider: 'kubernetes', id: 'NVIDIA-H100-80GB-HBM3:1' }),
    );
  });

  test('KUBERNETES_MODEL_CACHE: the claim is mounted, and the engine keeps weights there', async () => {
    await withSettings({ KUBERNETES_MODEL_CACHE: 'weights' }, async () => {
      const pod = await podIn('default');
      expect(pod.spec.volumes).toContainEqual({
        name: 'models',
        persistentVolumeClaim: { claimName: 'weights' },
      });
      expect(JSON.stringify(pod.spec.containers[0])).toContain('/var/cache/sluice');
    });
  }, 90_000);

  test('KUBERNETES_GPU_LABEL and KUBERNETES_GPU_RESOURCE: nodes are chosen and counted by them', async () => {
    const env = {
      KUBERNETES_GPU_LABEL: 'acme.com/gpu-kind',
      KUBERNETES_GPU_RESOURCE: 'nvidia.com/gpu',
    };
    await withSettings(env, async () => {
      const pod = await podIn('default');
      expect(pod.spec.nodeSelector).toEqual({ 'acme.com/gpu-kind': 'H100' });
    });
  }, 90_000);

  test('KUBERNETES_GPU_RESOURCE that no node has: there is no such GPU', async () => {
    const env = { KUBERNETES_GPU_RESOURCE: 'amd.com/gpu' };
    await withSettings(env, async (sluice, id) => {
      const job = await untilStatus(sluice.url, id, 'resource_failed');
      expect(job.error_code).toBe('NoGpuType');
    });
  }, 90_000);

  test('KUBERNETES_ENGINE_ACCESS=service: engines are asked by the name of their Service', async () => {
    await withSettings({ KUBERNETES_ENGINE_ACCESS: 'service' }, async (sluice, id) => {
      // Names of Services lead nowhere from here, and nothing else is tried.
      const isStarting = ({ status }: { status: string }) => status === 'submitting';
      await untilJob(sluice.url, id, isStarting, { what: 'an engine' });
      await until(async () => isReady(await podIn('default')), { what: 'a ready pod' });
      expect(site.cluster.control.counts()['get services/proxy'] ?? 0).toBe(0);
    });
  }, 90_000);

  test('CAPACITY_WAIT: without KUBERNETES_AUTOSCALED what is full is not asked for, and given up in time', async () => {
    await using other = await startClusterSite({ env: { CAPACITY_WAIT: '2s' } });
    const { control } = other.cluster;
    const held = await other.template({ engine: { health_endpoint: '/never' } });
    const first = await createJob(other.url, held, leaseInput(10));
    await until(() => control.pods()[0]?.spec.nodeName, { what: 'a GPU that is taken' });
    await until(async () => (await stockOf(other.url)) === 'unavailable', { what: 'no GPU left' });
    const second = await createJob(other.url, await other.template(), leaseInput(10));
    const job = await untilStatus(other.url, second, 'resource_failed');
    expect(job.error_code).toBe('NoCapacity');
    expect(job.error_message).toContain('no node has 1 of them free, but 0 at most');
    expect(control.counts()['create deployments']).toBe(1);
    await cancelJob(other.url, first);
  }, 90_000);

  test('a job that names Kubernetes where the server has no cluster is refused with the mend', async () => {
    const env = { PROVISIONER: '', ENGINE_URLS: 'http://127.0.0.1:9' };
    const other = await site.start({ env, dataDir: `${site.folder.path}/data` });
    const answer = await batch(other.url, 'any', { runtime: { target: 'Kubernetes' } });
    expect(answer.status).toBe(400);
    expect(await answer.text()).toContain('PROVISIONER=kubernetes');
    await other.kill();
  }, 60_000);
});
