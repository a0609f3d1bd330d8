import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startKubernetes, whyNoNamespaces } from '../simulators/kubernetes/simulator.ts';
import type { KubernetesSimulator } from '../simulators/kubernetes/simulator.ts';
import { readText } from '../support/deploy/manifests.ts';
import { kubectl } from '../support/kubernetes.ts';
import { ANY_KEYS, startS3Server } from '../support/s3-server.ts';
import type { S3Server } from '../support/s3-server.ts';
import { until } from '../support/until.ts';

const why = await whyNoNamespaces();

const LINES = ['a', 'b', 'c'].map((id) => {
  const body = { model: 'gpt-3.5-turbo', messages: [{ role: 'user', content: id }] };
  return JSON.stringify({ custom_id: id, method: 'POST', url: '/v1/chat/completions', body });
});

// A cluster of today runs it, too; one of 1.28 would do no more with it.
describe.skipIf(why !== undefined)(`the template without a native sidecar ${why ?? ''}`, () => {
  let cluster: KubernetesSimulator;
  let s3: S3Server;

  async function apply(text: string): Promise<void> {
    const { code, stderr } = await kubectl(cluster, ['apply', '-f', '-'], text);
    if (code !== 0) throw new Error(`kubectl apply: ${stderr}`);
  }

  /** Applies the template under a name, with its batch, and what else is to be changed. */
  async function applyJob(name: string, change = (text: string) => text): Promise<void> {
    const template = readText('config/kubernetes/job-template-legacy.yaml');
    const named = template.replace('name: batch-job-template', `name: ${name}`);
    await apply(`${change(named)}  annotations:
    batch.job.aibrix.ai/input-file-id: file-abc
    batch.job.aibrix.ai/endpoint: /v1/chat/completions
`);
  }

  function podsOf(name: string) {
    return cluster.control.pods().filter(({ metadata }) => metadata.name.startsWith(`${name}-`));
  }

  beforeAll(async () => {
    s3 = await startS3Server();
    const bucket = await s3.createBucket();
    await fetch(`${s3.url}/${bucket}/files/file-abc`, { method: 'PUT', body: LINES.join('\n') });
    cluster = await startKubernetes({ nodes: [{ name: 'node-1', gpus: 4 }] });
    const { host, port } = await cluster.control.publish(Number(new URL(s3.url).port));
    const secret = {
      apiVersion: 'v1',
      kind: 'Secret',
      metadata: { name: 'aibrix-s3-credentials', namespace: 'default' },
      stringData: {
        'access-key-id': ANY_KEYS.accessKeyId,
        'secret-access-key': ANY_KEYS.secretAccessKey,
        region: 'us-east-1',
        'bucket-name': bucket,
        'endpoint-url': `http://${host}:${port}`,
      },
    };
    await apply(JSON.stringify(secret));
    await apply(readText('config/kubernetes/job-rbac.yaml'));
  });
  afterAll(async () => {
    await kubectl(cluster, ['delete', 'jobs', '--all', '--wait=false']);
    await until(() => cluster.control.pods().length === 0, { what: 'the end of all pods' });
    await cluster[Symbol.asyncDispose]();
    await s3[Symbol.asyncDispose]();
  });

  test('completes: the worker ends the engine when the answers are written', async () => {
    await applyJob('whole');
    const statusOf = () =>
      cluster.control.jobs().find(({ metadata }) => metadata.name === 'whole')?.status;
    await until(() => (statusOf()?.succeeded ?? 0) + (statusOf()?.failed ?? 0) > 0, {
      timeoutMs: 120_000,
      what: 'the end of the Job',
    }).catch((error: unknown) => {
      const { containerStatuses: states, conditions } = podsOf('whole')[0]?.status ?? {};
      throw new Error(`${String(error)}: ${JSON.stringify({ states, conditions })}`, {
        cause: error,
      });
    });
    expect(statusOf()).toMatchObject({ succeeded: 1 });
    const [pod] = podsOf('whole');
    const ends = pod?.status.containerStatuses?.map(({ name, state }) => [
      name,
      state?.terminated?.exitCode,
    ]);
    expect(ends).toEqual([
      ['batch-worker', 0],
      ['llm-engine', 0],
    ]);
    const said = cluster.control.logs(pod?.metadata.name ?? '', 'batch-worker').join('\n');
    expect(said).toContain('"counts":{"total":3,"completed":3,"failed":0}');
  });

  test('a worker that is killed takes the engine with it, and another pod goes on', async () => {
    // Not where the worker looks for it, so that this goes on for as long as one likes.
    await applyJob('orphan', (text) =>
      text.replace("- '8000'", "- '8001'").replace('periodSeconds: 10', 'periodSeconds: 1'),
    );
    const first = await until(
      () => {
        const [pod] = podsOf('orphan');
        const running = pod?.status.containerStatuses?.filter(({ state }) => state?.running);
        return running?.length === 2 ? pod : undefined;
      },
      { timeoutMs: 60_000, what: 'a pod that runs' },
    );
    const { name } = first.metadata;
    await until(() => cluster.control.logs(name, 'batch-worker').length > 0, { what: 'its word' });
    cluster.control.kill(name, 'batch-worker', 'SIGKILL');
    await until(() => podsOf('orphan').length > 1, { timeoutMs: 60_000, what: 'another pod' });
    const old = podsOf('orphan').find(({ metadata }) => metadata.name === name);
    expect(old?.status.phase).toBe('Failed');
    expect(cluster.control.events(`pod/${name}`).map(({ message }) => message)).toContainEqual(
      expect.stringContaining('Liveness probe failed'),
    );
  });
});
