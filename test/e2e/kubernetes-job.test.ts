import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { whyNoNamespaces } from '../simulators/kubernetes/simulator.ts';
import { download, upload } from '../support/batch.ts';
import type { ClusterSite } from '../support/cluster-site.ts';
import { startJobSite } from '../support/job-site.ts';
import { asAdmin } from '../support/kube-admin.ts';
import {
  cancelJob,
  createJob,
  expectJobExact,
  leaseInput,
  post,
  readLeaseJob,
  untilJob,
  untilStatus,
} from '../support/leases.ts';
import type { LeaseJob, Template } from '../support/leases.ts';
import { until } from '../support/until.ts';
import { LONG } from '../support/chaos.ts';

const why = await whyNoNamespaces();
let site: ClusterSite;
let template: Template;
beforeAll(async () => {
  if (why !== undefined) return;
  const nodes = ['a', 'b'].map((name) => ({ name, gpus: 1 }));
  const knobs = { kueue: true, engine: { profile: 'zero', set: { latency_ms: 200 } } };
  site = await startJobSite({ cluster: { nodes, knobs }, env: { MAX_CONCURRENCY: '32' } });
  template = await site.template();
}, 60_000);
afterAll(async () => site?.[Symbol.asyncDispose]());

const LIMIT = 90_000;

function start(input: { text: string }, more: Record<string, unknown> = {}): Promise<string> {
  return createJob(site.url, template, input, more);
}

async function untilAnswered(id: string, count: number): Promise<LeaseJob> {
  const some = ({ request_counts: counts }: LeaseJob) => (counts?.completed ?? 0) >= count;
  return untilJob(site.url, id, some, {
    timeoutMs: 40_000,
    what: `${count} answers`,
    hopeless: /failed|expired|cancelled/,
  });
}

function kubeJob(namespace = 'default') {
  return until(() => site.cluster.control.jobs(namespace)[0], { what: 'a Job' });
}

async function untilGone(): Promise<void> {
  const { control } = site.cluster;
  const none = () =>
    ['default', 'team'].every(
      (each) => [...control.jobs(each), ...control.pods(each)].length === 0,
    );
  await until(none, { what: 'neither Jobs nor pods' });
}

function messagesOf({ events }: LeaseJob): string {
  return events.map(({ message }) => message).join('\n');
}

describe.skipIf(why !== undefined)('batches in Jobs (KUBERNETES_RUNTIME=job)', () => {
  test(
    'a job is a Job, its results are files like any other’s, and nothing is left in the cluster',
    async () => {
      const input = leaseInput(100);
      const id = await start(input);
      const { metadata, spec } = await kubeJob();
      expect(metadata.annotations).toMatchObject({
        'batch.job.aibrix.ai/endpoint': '/v1/chat/completions',
        'batch.job.aibrix.ai/session-id': id,
      });
      expect(spec).toMatchObject({ parallelism: 1, completions: 1 });
      const job = await untilStatus(site.url, id, 'completed', 60_000);
      await expectJobExact(site.url, job, input);
      expect(messagesOf(job)).toContain(`Kubernetes runs it as Job default/${metadata.name}.`);
      expect(messagesOf(job)).toContain(`Pod ${metadata.name}-`);
      await untilGone();
    },
    LIMIT,
  );

  test(
    'replicas are an Indexed Job whose pods share the lines out',
    async () => {
      const input = leaseInput(2_500);
      const id = await start(input, { resource_request: { replicas: 2 } });
      const { spec } = await kubeJob();
      expect(spec).toMatchObject({ completionMode: 'Indexed', parallelism: 2, completions: 2 });
      const job = await untilStatus(site.url, id, 'completed', 80_000);
      await expectJobExact(site.url, job, input);
      await untilGone();
    },
    LIMIT,
  );

  test(
    'a lenient batch has its good lines asked, and its bad ones in the error file',
    async () => {
      const input = leaseInput(50);
      const bad = '{"custom_id":"bad","method":"POST","url":"/v1/nothing","body":{"model":"m"}}\n';
      const id = await start({ text: `${bad}${input.text}` }, { validation: 'lenient' });
      const job = await untilStatus(site.url, id, 'completed', 60_000);
      expect(job.request_counts).toEqual({ total: 51, completed: 50, failed: 1 });
      const error = await download(site.url, job.error_dataset);
      expect(error.trim().split('\n')).toHaveLength(1);
      expect(error).toContain('"custom_id":"bad"');
      await untilGone();
    },
    LIMIT,
  );

  test.runIf(LONG)(
    'a worker that is killed goes on in the next pod, and every line is answered once',
    async () => {
      const input = leaseInput(600);
      const id = await start(input);
      await untilAnswered(id, 50);
      const [pod] = site.cluster.control.pods();
      site.cluster.control.kill(pod?.metadata.name ?? '', 'batch-worker', 'SIGKILL', 'OOMKilled');
      const job = await untilStatus(site.url, id, 'completed', 80_000);
      await expectJobExact(site.url, job, input);
      expect(messagesOf(job)).toContain('OOMKilled');
      await untilGone();
    },
    LIMIT,
  );

  test(
    'a job that is cancelled keeps what was answered',
    async () => {
      const input = leaseInput(3_000);
      const id = await start(input);
      await untilAnswered(id, 100);
      await cancelJob(site.url, id);
      const job = await untilStatus(site.url, id, 'cancelled', 60_000);
      const { output } = await expectJobExact(site.url, job, input);
      expect(output.length).toBeGreaterThanOrEqual(100);
      await untilGone();
    },
    LIMIT,
  );

  test.runIf(LONG)(
    'a Job that somebody deletes ends its batch, which keeps what was answered',
    async () => {
      const input = leaseInput(3_000);
      const id = await start(input);
      await untilAnswered(id, 100);
      const { metadata } = await kubeJob();
      await using api = asAdmin(site.cluster);
      const path = `/apis/batch/v1/namespaces/default/jobs/${metadata.name}?propagationPolicy=Background`;
      await api.ask({ method: 'DELETE', path });
      const job = await untilStatus(site.url, id, 'failed', 60_000);
      expect(job.error_message).toContain('Its Job was deleted.');
      const { output } = await expectJobExact(site.url, job, input);
      expect(output.length).toBeGreaterThanOrEqual(100);
      await untilGone();
    },
    LIMIT,
  );

  test.runIf(LONG)(
    'a paused batch has its Job suspended, and goes on when it is resumed',
    async () => {
      const input = leaseInput(3_000);
      const id = await start(input);
      await untilAnswered(id, 50);
      await post(site.url, `/api/v1/jobs/${id}/pause`, {});
      await until(async () => (await kubeJob()).spec.suspend, { what: 'a suspended Job' });
      await until(() => site.cluster.control.pods().length === 0, { what: 'no pods' });
      await post(site.url, `/api/v1/jobs/${id}/resume`, {});
      const job = await untilStatus(site.url, id, 'completed', 80_000);
      await expectJobExact(site.url, job, input);
      await untilGone();
    },
    LIMIT,
  );

  test.runIf(LONG)(
    'the window of a batch ends it, and what was answered is kept',
    async () => {
      const input = leaseInput(50_000);
      const id = await start(input, { completion_window: '1m' });
      const job = await untilStatus(site.url, id, 'expired', 110_000);
      const { output } = await expectJobExact(site.url, job, input);
      expect(output.length).toBeGreaterThan(0);
      await untilGone();
    },
    130_000,
  );

  test(
    'while the API server is away nothing is lost',
    async () => {
      const input = leaseInput(600);
      const id = await start(input);
      await untilAnswered(id, 50);
      await site.cluster.control.setApiAway(true);
      // The worker goes on without it, and says so in storage.
      await untilAnswered(id, 300);
      await site.cluster.control.setApiAway(false);
      const job = await untilStatus(site.url, id, 'completed', 80_000);
      await expectJobExact(site.url, job, input);
      await untilGone();
    },
    LIMIT,
  );

  test(
    'aibrix.runtime.target: KubernetesJob in options.namespace, Kubernetes as an engine',
    async () => {
      async function batch(target: string): Promise<string> {
        const { id } = await post<{ id: string }>(site.url, '/v1/batches', {
          input_file_id: await upload(site.url, leaseInput(20).text),
          endpoint: '/v1/chat/completions',
          completion_window: '24h',
          aibrix: {
            model_template: { name: template.name },
            runtime: { target, options: { namespace: 'team' } },
          },
        });
        return `job_${id.slice('batch_'.length)}`;
      }
      const first = await batch('KubernetesJob');
      await kubeJob('team');
      await untilStatus(site.url, first, 'completed', 60_000);
      const before = site.cluster.control.counts()['create deployments'] ?? 0;
      await untilStatus(site.url, await batch('Kubernetes'), 'completed', 60_000);
      expect(site.cluster.control.counts()['create deployments']).toBe(before + 1);
      await untilGone();
    },
    LIMIT,
  );

  test.runIf(LONG)(
    'a server that is killed goes on following its Jobs',
    async () => {
      const input = leaseInput(600);
      const id = await start(input);
      await untilAnswered(id, 50);
      await site.sluice.kill();
      const next = await site.start();
      site.url = next.url;
      const job = await untilStatus(next.url, id, 'completed', 80_000);
      await expectJobExact(next.url, job, input);
      await untilGone();
      expect((await readLeaseJob(next.url, id)).status).toBe('completed');
      await next.kill();
    },
    LIMIT,
  );

  test(
    'KUBERNETES_QUEUE: a Job waits until Kueue admits it, which is no error (and KUBERNETES_WORKER_IMAGE)',
    async () => {
      const env = { KUBERNETES_QUEUE: 'team-queue', KUBERNETES_WORKER_IMAGE: 'sluice:other' };
      await site.sluice.kill();
      const next = await site.start({ env });
      site.url = next.url;
      const input = leaseInput(50);
      const id = await start(input);
      const isTold = ({ error_message: reason }: LeaseJob) => reason.includes('Kueue admits it');
      const waiting = await untilJob(site.url, id, isTold, { what: 'Kueue as the reason' });
      expect(waiting.status).toBe('in_progress');
      expect(messagesOf(waiting)).toContain('from the queue team-queue');
      const { metadata, spec } = await kubeJob();
      expect(spec.suspend).toBe(true);
      const images = spec.template.spec?.containers.map(({ image }) => image);
      expect(images).toContain('sluice:other');
      site.cluster.control.admit(metadata.name);
      const job = await untilStatus(site.url, id, 'completed', 80_000);
      await expectJobExact(site.url, job, input);
      await untilGone();
    },
    LIMIT,
  );
});
