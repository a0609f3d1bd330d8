import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { whyNoNamespaces } from '../simulators/kubernetes/simulator.ts';
import { startClusterSite } from '../support/cluster-site.ts';
import type { ClusterSite } from '../support/cluster-site.ts';
import { createObjects, namespaceObject } from '../support/kube-admin.ts';
import {
  cancelJob,
  createJob,
  isFinal,
  leaseInput,
  untilJob,
  untilStatus,
} from '../support/leases.ts';
import type { LeaseJob, SpecChanges } from '../support/leases.ts';
import { until } from '../support/until.ts';
import { LONG } from '../support/chaos.ts';

const why = await whyNoNamespaces();
let site: ClusterSite;
beforeAll(async () => {
  if (why !== undefined) return;
  const nodes = [
    { name: 'h100', gpus: 1 },
    { name: 'l4', gpus: 2, gpuProduct: 'NVIDIA-L4', gpuMemoryMib: 24_000 },
  ];
  const env = { KUBERNETES_AUTOSCALED: 'true', KUBERNETES_NAMESPACE: 'default,team' };
  const knobs = { missingImages: [/none/] };
  site = await startClusterSite({ cluster: { nodes, knobs }, env });
  await createObjects(site.cluster, [namespaceObject('team')]);
}, 60_000);
afterAll(async () => site?.[Symbol.asyncDispose]());

async function start(changes: SpecChanges, more: Record<string, unknown> = {}): Promise<string> {
  return createJob(site.url, await site.template(changes), leaseInput(20), more);
}

/** Polls until this is told as an event of the job, and as its reason. */
async function untilTold(id: string, said: string | RegExp): Promise<LeaseJob> {
  const has = (text: string) => (typeof said === 'string' ? text.includes(said) : said.test(text));
  const isTold = ({ events, error_message: reason }: LeaseJob) =>
    events.some(({ message }) => has(message)) && has(reason);
  return untilJob(site.url, id, isTold, {
    timeoutMs: 30_000,
    what: `'${String(said)}'`,
    hopeless: /completed|cancelled/,
  });
}

async function untilGone(): Promise<void> {
  await until(() => site.cluster.control.pods().length === 0, { what: 'no pods' });
}

async function untilFinal(id: string): Promise<LeaseJob> {
  return untilJob(site.url, id, ({ status }) => isFinal(status), { timeoutMs: 60_000 });
}

describe.skipIf(why !== undefined)('what keeps an engine from running is told, and mended', () => {
  test('no node has room: Unschedulable, and another node mends it', async () => {
    const { control } = site.cluster;
    const accelerator = { type: 'NVIDIA-H200', count: 1, vram_gb: 0 };
    await control.addNode({ name: 'h200', gpus: 1, gpuProduct: 'NVIDIA-H200' });
    const first = await start({ accelerator, engine: { health_endpoint: '/never' } });
    await until(() => control.pods().length === 1, { what: 'the first engine' });
    const id = await start({ accelerator });
    const told = await untilTold(id, /Unschedulable: 0\/3 nodes are available/);
    expect(told.status).toBe('resource_preparing');
    await cancelJob(site.url, first);
    await untilStatus(site.url, id, 'completed', 60_000);
    await untilGone();
  }, 90_000);

  test('its image is not there: ImagePullBackOff, and the end after ready_timeout_seconds', async () => {
    const engine = { image: 'registry.invalid/none/vllm:v1', ready_timeout_seconds: 10 };
    const id = await start({ engine });
    await untilTold(id, /ImagePullBackOff|ErrImagePull/);
    const job = await untilFinal(id);
    expect(job).toMatchObject({ status: 'submit_failed', error_code: 'engine_not_ready' });
    expect(job.error_message).toContain('10 s after its start (engine.ready_timeout_seconds)');
    await untilGone();
  }, 90_000);

  test('a Secret is missing: CreateContainerConfigError names it, and making it mends that', async () => {
    const id = await start({ model_source: { auth_secret_ref: 'hf-late' } });
    const told = await untilTold(id, 'secret "hf-late" not found');
    expect(told.status).toBe('submitting');
    const metadata = { name: 'hf-late', namespace: 'default' };
    const data = { token: Buffer.from('hf_secret').toString('base64') };
    const body = { apiVersion: 'v1', kind: 'Secret', metadata, data };
    await createObjects(site.cluster, [{ path: '/api/v1/namespaces/default/secrets', body }]);
    await untilStatus(site.url, id, 'completed', 60_000);
    await untilGone();
  }, 90_000);

  test('the engine ends while it loads: its last words, and the job does not try again', async () => {
    site.cluster.set({ engine: { profile: 'zero', crash: 'oom' } });
    try {
      const id = await start({});
      const job = await untilFinal(id);
      expect(job).toMatchObject({ status: 'submit_failed', error_code: 'engine_crashed' });
      expect(job.error_message).toContain('exit code 1');
      expect(job.error_message).toContain('torch.OutOfMemoryError: CUDA out of memory');
      expect(job.events.map(({ message }) => message).join('\n')).toContain('Its last words:');
    } finally {
      site.cluster.set({ engine: { profile: 'zero' } });
    }
    await untilGone();
  }, 90_000);

  test.runIf(LONG)(
    'an engine that never is healthy ends its job after ready_timeout_seconds',
    async () => {
      site.cluster.set({ engine: { profile: 'zero', neverHealthy: true } });
      try {
        const job = await untilFinal(await start({ engine: { ready_timeout_seconds: 10 } }));
        expect(job).toMatchObject({ status: 'submit_failed', error_code: 'engine_not_ready' });
      } finally {
        site.cluster.set({ engine: { profile: 'zero' } });
      }
      await untilGone();
    },
    90_000,
  );

  test('a GPU that the cluster does not have', async () => {
    const job = await untilFinal(await start({ accelerator: { type: 'NVIDIA-B200' } }));
    expect(job).toMatchObject({ status: 'resource_failed', error_code: 'NoGpuType' });
    expect(job.error_message).toContain("kubernetes has no GPU called 'NVIDIA-B200'");
    expect(job.error_message).toContain('NVIDIA-H100-80GB-HBM3');
  }, 60_000);

  test.runIf(LONG)(
    'a quota that leaves no room is waited for',
    async () => {
      const stop = site.cluster.control.fault(({ verb, resource }) =>
        verb === 'create' && resource === 'deployments'
          ? {
              apiVersion: 'v1',
              kind: 'Status',
              metadata: {},
              status: 'Failure',
              code: 403,
              reason: 'Forbidden',
              message: 'deployments.apps "x" is forbidden: exceeded quota: gpus',
            }
          : undefined,
      );
      const id = await start({});
      try {
        const isWaiting = ({ error_message: reason }: LeaseJob) =>
          reason.includes('exceeded quota');
        const waiting = await untilJob(site.url, id, isWaiting, {
          what: 'the quota as the reason',
        });
        expect(waiting.status).toBe('resource_preparing');
      } finally {
        stop();
      }
      await untilStatus(site.url, id, 'completed', 60_000);
      await untilGone();
    },
    90_000,
  );
});
