import { describe, expect, test } from 'vitest';
import { loadSettings } from '../../config/load.ts';
import { endsByItself, engineDoor } from '../../src/main/batch/engine-door.ts';
import type { KubernetesJob } from '../../src/main/batch/kubernetes-job.ts';
import { createTask, deadlineOf } from '../../src/main/batch/task.ts';

const START = Date.parse('2026-11-22T12:00:00Z');
const HOUR = 3_600_000;
const PREFIX = 'batch.job.aibrix.ai/';

type Container = KubernetesJob['spec']['template']['spec']['containers'][number];

function engine(more: Partial<Container> = {}): Container {
  return {
    name: 'llm-engine',
    restartPolicy: undefined,
    ports: [{ name: 'http', containerPort: 9_000 }],
    readinessProbe: undefined,
    livenessProbe: undefined,
    startupProbe: undefined,
    ...more,
  };
}

function probe(path: string, port: number | string) {
  return { httpGet: { path, port, host: undefined, scheme: undefined } };
}

function jobOf(
  annotations: Record<string, string>,
  spec: Partial<KubernetesJob['spec']> = {},
  containers: { plain?: Container[]; init?: Container[] } = {},
): KubernetesJob {
  const prefixed = Object.entries({
    'input-file-id': 'file-1',
    endpoint: '/v1/completions',
    ...annotations,
  }).map(([key, value]) => [`${PREFIX}${key}`, value]);
  return {
    metadata: {
      name: 'a-job',
      namespace: 'batches',
      uid: 'uid-1',
      creationTimestamp: '2026-11-22T11:00:00Z',
      annotations: Object.fromEntries(prefixed),
    },
    spec: {
      activeDeadlineSeconds: undefined,
      completions: 1,
      parallelism: 1,
      completionMode: undefined,
      template: {
        metadata: { annotations: {} },
        spec: { containers: containers.plain ?? [], initContainers: containers.init ?? [] },
      },
      ...spec,
    },
    status: { startTime: '2026-11-22T12:00:00Z' },
  };
}

function taskOf(job: KubernetesJob | null, env: Record<string, string> = {}) {
  return createTask(loadSettings(env), job, { engineContainer: 'llm-engine' });
}

describe('when a batch has to be over', () => {
  test.for<
    [name: string, annotations: Record<string, string>, active: number | undefined, ms: number]
  >([
    ['a day from the start of the Job', {}, undefined, 24 * HOUR],
    ['its completion-window', { 'completion-window': '2h30m' }, undefined, 2.5 * HOUR],
    ['the deadline of the Job, with time to write', {}, 7_200, 2 * HOUR - 60_000],
    ['whichever is first', { 'completion-window': '3h' }, 7_200, 2 * HOUR - 60_000],
    ['a tenth of a short deadline is for writing', {}, 100, 90_000],
    [
      'when the machines go, in place of the window',
      {
        'completion-window': '1h',
        aibrix: `{"resource_allocation":{"provision_resource_deadline":${START / 1_000 + 7_200}}}`,
      },
      undefined,
      2 * HOUR,
    ],
  ])('%s', ([, annotations, activeDeadlineSeconds, ms]) => {
    const job = jobOf(annotations, { activeDeadlineSeconds });
    const task = taskOf(job);
    expect(task.startedAt).toBe(START);
    expect(deadlineOf(task, job, START) - START).toBe(ms);
  });
});

describe('where the engine is', () => {
  test.for<[name: string, job: KubernetesJob | null, env: string | undefined, url: string]>([
    ['nobody says', null, undefined, 'http://localhost:8000/health'],
    [
      'LLM_READY_ENDPOINT says',
      jobOf({}, {}, { plain: [engine({ readinessProbe: probe('/x', 1) })] }),
      'https://e:8443/ready',
      'https://e:8443/ready',
    ],
    [
      'LLM_READY_ENDPOINT has no path',
      null,
      'http://localhost:7000',
      'http://localhost:7000/health',
    ],
    [
      'its readiness probe',
      jobOf(
        {},
        {},
        {
          plain: [
            engine({
              readinessProbe: probe('/ready', 8_001),
              livenessProbe: probe('/live', 8_002),
            }),
          ],
        },
      ),
      undefined,
      'http://localhost:8001/ready',
    ],
    [
      'its liveness probe, by the name of a port',
      jobOf({}, {}, { init: [engine({ livenessProbe: probe('/live', 'http') })] }),
      undefined,
      'http://localhost:9000/live',
    ],
    [
      'the startup probe of a sidecar',
      jobOf({}, {}, { init: [engine({ startupProbe: probe('/health', 30_000) })] }),
      undefined,
      'http://localhost:30000/health',
    ],
    [
      'probes of other containers do not count',
      jobOf({}, {}, { plain: [{ ...engine({ readinessProbe: probe('/x', 1) }), name: 'other' }] }),
      undefined,
      'http://localhost:8000/health',
    ],
  ])('%s', ([, job, env, url]) => {
    const door = engineDoor(env, job, 'llm-engine');
    expect(`${door.url}${door.readyPath}`).toBe(url);
  });

  test('a native sidecar ends by itself, a second container does not', () => {
    const sidecar = jobOf({}, {}, { init: [engine({ restartPolicy: 'Always' })] });
    expect(endsByItself(sidecar, 'llm-engine')).toBe(true);
    expect(endsByItself(jobOf({}, {}, { plain: [engine()] }), 'llm-engine')).toBe(false);
    expect(endsByItself(null, 'llm-engine')).toBe(false);
  });
});

test('a worker knows its Job, pod and index', () => {
  const indexed = jobOf({}, { completionMode: 'Indexed', completions: 4, parallelism: 2 });
  const env = { POD_NAME: 'a-job-2-x', POD_UID: 'pod-uid', JOB_COMPLETION_INDEX: '2' };
  expect(taskOf(indexed, env)).toMatchObject({
    job: { uid: 'uid-1', name: 'a-job', namespace: 'batches' },
    pod: { uid: 'pod-uid', name: 'a-job-2-x' },
    isIndexed: true,
    index: 2,
    indexes: 4,
    isShared: false,
    batch: { jobId: 'job_uid1', endpoint: '/v1/completions' },
  });
  const parallel = jobOf({}, { completions: 3, parallelism: 3 });
  expect(taskOf(parallel, env)).toMatchObject({ isIndexed: false, indexes: 1, isShared: true });
  expect(taskOf(indexed, { ...env, JOB_UID: 'other' }).job.uid, 'JOB_UID names the record').toBe(
    'other',
  );
});

test('the aibrix extension says how lines are sent; what it says of machines has happened', () => {
  const aibrix = {
    job_id: 'job_console1',
    model: 'llama',
    validation: 'lenient',
    client: { max_concurrency: 7, requests_per_second: 5, on_error_rate: 'continue' },
    runtime: { target: 'KubernetesJob', options: {} },
    model_template: { name: 't' },
    profile: { name: 'p' },
    resource_allocation: { provision_id: 'x', provision_resource_deadline: 0 },
  };
  const task = taskOf(jobOf({ aibrix: JSON.stringify(aibrix) }));
  expect(task.batch).toMatchObject({ jobId: 'job_console1', pinnedModel: 'llama' });
  expect(task.wish).toMatchObject({
    isLenient: true,
    maxConcurrency: 7,
    deadline: null,
    options: { onErrorRate: 'continue', limits: { requestsPerSecond: 5 } },
  });
  expect(() => taskOf(jobOf({ aibrix: '{"modle":"x"}' }))).toThrow("Unknown parameter: 'modle'");
});
