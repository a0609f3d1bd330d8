import { get } from 'node:https';
import { text } from 'node:stream/consumers';
import { PatchStrategy, setHeaderOptions } from '@kubernetes/client-node';
import type { V1Job, V1Pod } from '@kubernetes/client-node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startKubernetes, whyNoNamespaces } from '../simulators/kubernetes/simulator.ts';
import type { KubernetesSimulator } from '../simulators/kubernetes/simulator.ts';
import { jobOf, kubernetesClients, refusalOf } from '../support/kubernetes.ts';
import type { KubernetesClients } from '../support/kubernetes.ts';
import { until } from '../support/until.ts';

/* What becomes of Jobs and their pods, with containers that run. */

const why = await whyNoNamespaces();
/** Why a group is skipped stands behind its name. */
const skipped = why === undefined ? '' : ` (${why})`;

const namespace = 'default';
let cluster: KubernetesSimulator;
let clients: KubernetesClients;

const run = (script: string) => ({ command: ['sh', '-c', script] });
/** Waits for its SIGTERM and then ends with 75. */
const PATIENT = run("trap 'exit 75' TERM; echo begun; while :; do sleep 0.05; done");

beforeAll(async () => {
  if (why !== undefined) return;
  cluster = await startKubernetes({
    nodes: [
      { name: 'node-1', gpus: 1 },
      { name: 'node-2', gpus: 2, labels: { zone: 'b' } },
    ],
  });
  clients = kubernetesClients(cluster);
});

afterAll(async () => {
  await cluster?.[Symbol.asyncDispose]();
});

async function make(
  name: string,
  more: Record<string, unknown>,
  container: Record<string, unknown>,
): Promise<void> {
  await clients.batch.createNamespacedJob({ namespace, body: jobOf(name, more, container) });
}

async function podsOf(name: string): Promise<V1Pod[]> {
  return (await clients.core.listNamespacedPod({ namespace, labelSelector: `job-name=${name}` }))
    .items;
}

async function jobNamed(name: string): Promise<V1Job> {
  return clients.batch.readNamespacedJob({ namespace, name });
}

async function condition(name: string, type: string) {
  return until(
    async () =>
      (await jobNamed(name)).status?.conditions?.find(
        (one) => one.type === type && one.status === 'True',
      ),
    { what: `${type} of ${name}` },
  );
}

/** The only pod of a Job, once it runs. */
async function runningPod(name: string, but: readonly string[] = []): Promise<string> {
  return until(
    async () => {
      const pods = await podsOf(name);
      const found = pods.find(
        ({ status, metadata }) =>
          status?.phase === 'Running' && !but.includes(metadata?.name ?? ''),
      );
      const ready = found?.status?.containerStatuses?.every(({ ready }) => ready);
      // What it has printed shows that its trap is set.
      const pod = found?.metadata?.name ?? '';
      return ready === true && cluster.control.logs(pod, 'main').length > 0 ? pod : undefined;
    },
    { what: `a running pod of ${name}` },
  );
}

async function getText(url: string, ca: string, token: string): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  get(url, { ca, headers: { authorization: `Bearer ${token}` }, agent: false }, (answer) => {
    text(answer).then(resolve, reject);
  }).once('error', reject);
  return promise;
}

async function reasons(about: string): Promise<string[]> {
  return cluster.control.events(about).map(({ reason }) => reason);
}

describe.skipIf(why !== undefined)(`Jobs${skipped}`, () => {
  test('complete, and say so', async () => {
    await make('plain', {}, run('echo hello; echo there >&2'));
    const complete = await condition('plain', 'Complete');
    expect(complete).toMatchObject({
      reason: 'CompletionsReached',
      message: 'Reached expected number of succeeded pods',
    });
    const { status } = await jobNamed('plain');
    expect(status).toMatchObject({ succeeded: 1, ready: 0, terminating: 0 });
    expect(status?.conditions?.map(({ type }) => type)).toEqual(['SuccessCriteriaMet', 'Complete']);
    const [pod] = await podsOf('plain');
    expect(pod?.status).toMatchObject({
      phase: 'Succeeded',
      containerStatuses: [{ state: { terminated: { exitCode: 0, reason: 'Completed' } } }],
    });
    expect(pod?.metadata?.finalizers).toBeUndefined();
    const name = pod?.metadata?.name ?? '';
    expect(
      (await clients.core.readNamespacedPodLog({ namespace, name })).split('\n').toSorted(),
    ).toEqual(['', 'hello', 'there']);
    expect(await reasons('job/plain')).toEqual(['SuccessfulCreate', 'Completed']);
    expect(await reasons(`pod/${name}`)).toEqual([
      'Scheduled',
      'Pulling',
      'Pulled',
      'Created',
      'Started',
    ]);
  });

  test('try again up to their limit and then fail', async () => {
    await make('failing', { backoffLimit: 1 }, run('exit 3'));
    expect(await condition('failing', 'Failed')).toMatchObject({
      reason: 'BackoffLimitExceeded',
      message: 'Job has reached the specified backoff limit',
    });
    expect((await jobNamed('failing')).status?.failed).toBe(2);
    const pods = await podsOf('failing');
    expect(
      pods.map(({ status }) => status?.containerStatuses?.[0]?.state?.terminated),
    ).toMatchObject([
      { exitCode: 3, reason: 'Error' },
      { exitCode: 3, reason: 'Error' },
    ]);
  });

  test('of an index each run once, told which by its variable, annotation and name', async () => {
    await make(
      'indexed',
      { completionMode: 'Indexed', completions: 3, parallelism: 2 },
      run('echo $JOB_COMPLETION_INDEX $(hostname)'),
    );
    await condition('indexed', 'Complete');
    expect((await jobNamed('indexed')).status).toMatchObject({
      completedIndexes: '0-2',
      succeeded: 3,
    });
    const pods = await podsOf('indexed');
    for (const [index, { metadata }] of pods.entries()) {
      const name = metadata?.name ?? '';
      expect(name).toMatch(new RegExp(`^indexed-${index}-[a-z0-9]{5}$`));
      expect(metadata?.annotations?.['batch.kubernetes.io/job-completion-index']).toBe(
        String(index),
      );
      expect(cluster.control.logs(name, 'main')).toEqual([`${index} indexed-${index}`]);
    }
  });

  test('end at their deadline', async () => {
    await make('late', { activeDeadlineSeconds: 1 }, PATIENT);
    expect(await condition('late', 'Failed')).toMatchObject({
      reason: 'DeadlineExceeded',
      message: 'Job was active longer than specified deadline',
    });
    expect(await podsOf('late')).toEqual([]);
  });

  test('do as their failure policy says: some exits count not, others end all', async () => {
    const podFailurePolicy = {
      rules: [
        { action: 'Ignore', onPodConditions: [{ type: 'DisruptionTarget' }] },
        { action: 'FailJob', onExitCodes: { containerName: 'main', operator: 'In', values: [42] } },
      ],
    };
    await make('policy', { backoffLimit: 0, podFailurePolicy }, PATIENT);
    const first = await runningPod('policy');
    await cluster.control.evict(first);
    const second = await runningPod('policy', [first]);
    const evicted = (await podsOf('policy')).find(({ metadata }) => metadata?.name === first);
    expect(evicted?.status).toMatchObject({ phase: 'Failed', reason: 'Evicted' });
    expect((await jobNamed('policy')).status?.failed ?? 0).toBe(0);
    expect(second).not.toBe(first);

    await make('deadly', { backoffLimit: 5, podFailurePolicy }, run('exit 42'));
    const failed = await condition('deadly', 'Failed');
    expect(failed.reason).toBe('PodFailurePolicy');
    expect(failed.message).toMatch(
      /^Container main for pod default\/deadly-\w{5} failed with exit code 42 matching FailJob rule at index 1$/,
    );
    expect(await podsOf('deadly')).toHaveLength(1);
    await clients.batch.deleteNamespacedJob({
      namespace,
      name: 'policy',
      propagationPolicy: 'Background',
    });
  });

  test('are suspended and resumed, and begin their time anew', async () => {
    await make('paused', {}, PATIENT);
    const pod = await runningPod('paused');
    const suspend = async (wanted: boolean) =>
      clients.batch.patchNamespacedJob(
        { namespace, name: 'paused', body: { spec: { suspend: wanted } } },
        setHeaderOptions('Content-Type', PatchStrategy.MergePatch),
      );
    await suspend(true);
    expect(await condition('paused', 'Suspended')).toMatchObject({
      reason: 'JobSuspended',
      message: 'Job suspended',
    });
    await until(async () => (await podsOf('paused')).length === 0);
    expect((await jobNamed('paused')).status?.startTime).toBeUndefined();
    await suspend(false);
    await runningPod('paused', [pod]);
    const [suspended] = (await jobNamed('paused')).status?.conditions ?? [];
    expect(suspended).toMatchObject({ type: 'Suspended', status: 'False', reason: 'JobResumed' });
    expect(await reasons('job/paused')).toEqual(
      expect.arrayContaining(['Suspended', 'SuccessfulDelete', 'Resumed']),
    );
    await clients.batch.deleteNamespacedJob({
      namespace,
      name: 'paused',
      propagationPolicy: 'Background',
    });
  });

  test('of a queue wait until they are admitted', async () => {
    cluster.set({ kueue: true });
    const body = {
      ...jobOf('queued'),
      metadata: { name: 'queued', labels: { 'kueue.x-k8s.io/queue-name': 'team' } },
    };
    await clients.batch.createNamespacedJob({ namespace, body });
    cluster.set({ kueue: false });
    await condition('queued', 'Suspended');
    expect(await podsOf('queued')).toEqual([]);
    cluster.control.admit('queued');
    await condition('queued', 'Complete');
  });

  test('wait for the old pod to be gone where their policy says so', async () => {
    const slow = run("trap 'sleep 1; exit 75' TERM; echo begun; while :; do sleep 0.05; done");
    await make('careful', { podReplacementPolicy: 'Failed' }, slow);
    const first = await runningPod('careful');
    await clients.core.deleteNamespacedPod({ namespace, name: first });
    await until(async () => (await jobNamed('careful')).status?.terminating === 1);
    expect(await podsOf('careful')).toHaveLength(1);
    await runningPod('careful', [first]);
    expect((await podsOf('careful')).map(({ metadata }) => metadata?.name)).not.toContain(first);
    await clients.batch.deleteNamespacedJob({
      namespace,
      name: 'careful',
      propagationPolicy: 'Background',
    });
  });

  test('go with all that is theirs some time after their end', async () => {
    await make('brief', { ttlSecondsAfterFinished: 0 }, run('exit 0'));
    await until(async () => (await podsOf('brief')).length === 1);
    await until(
      async () => (await refusalOf(jobNamed('brief')).catch(() => undefined))?.code === 404,
    );
    await until(async () => (await podsOf('brief')).length === 0);
    expect(await reasons('job/brief')).toEqual(['SuccessfulCreate', 'Completed']);
  });
});

describe.skipIf(why !== undefined)(`nodes${skipped}`, () => {
  test('take what fits, and say what does not', async () => {
    await make('big', {}, { ...run('exit 0'), resources: { limits: { 'nvidia.com/gpu': '4' } } });
    const [pod] = await until(async () => {
      const pods = await podsOf('big');
      return pods[0]?.status?.conditions === undefined ? undefined : pods;
    });
    const message =
      '0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.';
    expect(pod?.status).toMatchObject({
      phase: 'Pending',
      conditions: [{ type: 'PodScheduled', status: 'False', reason: 'Unschedulable', message }],
    });
    expect(cluster.control.events(`pod/${pod?.metadata?.name}`)).toMatchObject([
      { type: 'Warning', reason: 'FailedScheduling', message },
    ]);
    await cluster.control.addNode({
      name: 'node-3',
      gpus: 4,
      taints: [{ key: 'nvidia.com/gpu', effect: 'NoSchedule' }],
    });
    await until(async () =>
      (await podsOf('big'))[0]?.status?.conditions?.[0]?.message?.includes(
        'untolerated taint {nvidia.com/gpu: }',
      ),
    );
    await clients.batch.deleteNamespacedJob({
      namespace,
      name: 'big',
      propagationPolicy: 'Background',
    });

    const where = jobOf('there', {}, run('exit 0'));
    Object.assign(where.spec.template.spec, { nodeSelector: { zone: 'b' } });
    await clients.batch.createNamespacedJob({ namespace, body: where });
    await condition('there', 'Complete');
    expect((await podsOf('there'))[0]?.spec?.nodeName).toBe('node-2');
  });

  test('that are lost keep their pods running, and get them replaced elsewhere', async () => {
    await cluster.control.addNode({ name: 'frail', labels: { kind: 'frail' } });
    await cluster.control.addNode({ name: 'spare', labels: { kind: 'frail' } });
    const body = jobOf('wandering', {}, PATIENT);
    Object.assign(body.spec.template.spec, { nodeSelector: { kind: 'frail' } });
    await clients.batch.createNamespacedJob({ namespace, body });
    const first = await runningPod('wandering');
    const node = (await podsOf('wandering'))[0]?.spec?.nodeName ?? '';
    cluster.control.loseNode(node);
    await until(async () => {
      const { status } = await clients.core.readNode({ name: node });
      return status?.conditions?.find(({ type }) => type === 'Ready')?.status === 'Unknown';
    });
    const second = await runningPod('wandering', [first]);
    expect(
      (await podsOf('wandering')).find(({ metadata }) => metadata?.name === second)?.spec?.nodeName,
    ).not.toBe(node);
    // Two live pods: the API says of one that it ends, and nobody ends it.
    const old = await clients.core.readNamespacedPod({ namespace, name: first });
    expect(old.metadata?.deletionTimestamp).toBeDefined();
    expect(old.status?.conditions?.find(({ type }) => type === 'DisruptionTarget')?.reason).toBe(
      'DeletionByTaintManager',
    );
    expect(await cluster.control.exec(first, 'main', ['echo', 'alive'])).toEqual({
      code: 0,
      output: 'alive',
    });

    cluster.control.bringNodeBack(node);
    await until(
      async () =>
        (
          await refusalOf(clients.core.readNamespacedPod({ namespace, name: first })).catch(
            () => undefined,
          )
        )?.code === 404,
    );
    expect((await podsOf('wandering')).map(({ metadata }) => metadata?.name)).toEqual([second]);
    await clients.batch.deleteNamespacedJob({
      namespace,
      name: 'wandering',
      propagationPolicy: 'Background',
    });
    await cluster.control.deleteNode(node);
  });
});

describe.skipIf(why !== undefined)(`Deployments and Services${skipped}`, () => {
  test('serve from pods that are ready, through one address, and roll on', async () => {
    const { apps, core } = clients;
    const labels = { app: 'engine' };
    const containers = [
      {
        name: 'llm-engine',
        image: 'vllm/vllm-openai:v1',
        args: ['--model', 'm', '--port', '8000'],
        ports: [{ name: 'http', containerPort: 8000 }],
        readinessProbe: { httpGet: { path: '/health', port: 'http' }, periodSeconds: 1 },
      },
    ];
    await core.createNamespacedService({
      namespace,
      body: {
        metadata: { name: 'engine' },
        spec: { selector: labels, ports: [{ port: 80, targetPort: 'http' }] },
      },
    });
    await apps.createNamespacedDeployment({
      namespace,
      body: {
        metadata: { name: 'engine' },
        spec: {
          replicas: 2,
          selector: { matchLabels: labels },
          template: {
            metadata: { labels },
            spec: { terminationGracePeriodSeconds: 2, containers },
          },
        },
      },
    });
    await until(
      async () =>
        (await apps.readNamespacedDeployment({ namespace, name: 'engine' })).status
          ?.availableReplicas === 2,
      { what: 'two replicas' },
    );
    const { spec } = await core.readNamespacedService({ namespace, name: 'engine' });
    const answer = await fetch(`http://${spec?.clusterIP}:80/v1/models`);
    expect(await answer.json()).toMatchObject({ data: [{ id: 'm' }] });
    const { url, ca, token } = cluster;
    const path = '/api/v1/namespaces/default/services/engine:80/proxy/v1/models';
    expect(await getText(`${url}${path}`, ca, token)).toContain('"id":"m"');
    const endpoints = await core.readNamespacedEndpoints({ namespace, name: 'engine' });
    expect(endpoints.subsets?.[0]).toMatchObject({ addresses: [{}, {}], ports: [{ port: 8000 }] });

    await apps.patchNamespacedDeploymentScale(
      { namespace, name: 'engine', body: { spec: { replicas: 1 } } },
      setHeaderOptions('Content-Type', PatchStrategy.MergePatch),
    );
    await until(
      async () =>
        (await core.listNamespacedPod({ namespace, labelSelector: 'app=engine' })).items.length ===
        1,
      { what: 'one pod' },
    );
    await apps.deleteNamespacedDeployment({
      namespace,
      name: 'engine',
      propagationPolicy: 'Background',
    });
    await core.deleteNamespacedService({ namespace, name: 'engine' });
    await until(
      async () =>
        (await core.listNamespacedPod({ namespace, labelSelector: 'app=engine' })).items.length ===
        0,
      { what: 'no pods' },
    );
  });
});
