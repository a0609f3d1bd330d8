import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { expectExactLines, makeInput, parseLines, requestLine } from '../support/batch.ts';
import { ANY_KEYS, startS3Server } from '../support/s3-server.ts';
import type { S3Server } from '../support/s3-server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';
import { expectExit, logged, startSite } from '../support/worker-pod.ts';
import type { TestJob, WorkerSite } from '../support/worker-pod.ts';

const ANNOTATIONS = { 'input-file-id': 'file-in', endpoint: '/v1/chat/completions' };
/** Nobody listens there. */
const NO_ENGINE = 'http://127.0.0.1:9';

let engine: VllmProcess;
let s3: S3Server;

beforeAll(async () => {
  [engine, s3] = await Promise.all([
    startVllmProcess({ flags: ['--profile', 'zero', '--any-model'] }),
    startS3Server(),
  ]);
});

afterAll(async () => {
  await engine[Symbol.asyncDispose]();
  await s3[Symbol.asyncDispose]();
});

/** A site with an input of so many lines. */
async function siteWith(
  lines: number,
  job: TestJob = {},
  options: { s3?: S3Server; engine?: string } = {},
) {
  const site = await startSite({ engine: engine.url, ...options });
  const input = makeInput(lines);
  await site.upload('file-in', input.text);
  site.job = { annotations: ANNOTATIONS, ...job };
  return { site, input, [Symbol.asyncDispose]: async () => site[Symbol.asyncDispose]() };
}

async function readFiles(site: WorkerSite, keys: { output: string; error: string }) {
  const read = async (key: string) =>
    (await site.storage.head(key)) === null ? [] : parseLines(await site.read(key));
  return { output: await read(keys.output), error: await read(keys.error) };
}

test('annotations of the Job become files under the ids that they give, and a manifest', async () => {
  const annotations = {
    ...ANNOTATIONS,
    'output-file-id': 'out-1',
    'error-file-id': 'err-1',
    'session-id': 'session-1',
    'metadata.team': 'growth',
  };
  await using world = await siteWith(1_200, { annotations }, { s3 });
  const { site, input } = world;
  const pod = site.start();
  await expectExit(pod, 0);
  expectExactLines(await readFiles(site, { output: 'files/out-1', error: 'files/err-1' }), input);
  expect(await site.final()).toMatchObject({
    state: 'completed',
    session_id: 'session-1',
    metadata: { team: 'growth' },
    output: { file_id: 'out-1', key: 'files/out-1', lines: 1_200 },
    error: null,
    manifest_key: 'files/out-1.manifest.json',
  });
  expect(JSON.parse(await site.read('files/out-1.manifest.json'))).toMatchObject({
    object: 'batch.manifest',
    status: 'completed',
    request_counts: { total: 1_200, completed: 1_200, failed: 0 },
    engines: [{ engine: 'engine-1', provider: 'kubernetes', completed: 1_200, failed: 0 }],
    output: { file_id: 'out-1', lines: 1_200 },
  });
  const again = site.start({ LLM_READY_ENDPOINT: `${NO_ENGINE}/health` });
  expect(await again.exited, 'a pod that comes late needs no engine').toBe(0);
});

test('annotations of the pod template count where the Job has none, and what disagrees is logged', async () => {
  await using world = await siteWith(10, {
    annotations: { 'output-file-id': 'by-job' },
    podAnnotations: { ...ANNOTATIONS, 'output-file-id': 'by-template' },
  });
  const pod = world.site.start();
  await expectExit(pod, 0);
  expect(await world.site.final()).toMatchObject({ output: { file_id: 'by-job' } });
  const { conflict } = await logged(pod, 'annotations disagree');
  expect(conflict).toContain("'by-job' on the Job and 'by-template' on its pod template");
});

test('BATCH_* variables do where there is no API server, as of AIBrix later workers', async () => {
  await using world = await siteWith(10);
  const { site } = world;
  const env = {
    KUBERNETES_SERVICE_HOST: '',
    JOB_UID: site.uid,
    BATCH_INPUT_FILE_ID: 'file-in',
    BATCH_ENDPOINT: '/v1/chat/completions',
    BATCH_OUTPUT_FILE_ID: 'env-out',
    BATCH_ERROR_FILE_ID: 'env-err',
    BATCH_AIBRIX: '{"job_id":"job_env1"}',
    BATCH_OPTS: '{}',
  };
  const pod = site.start(env);
  await expectExit(pod, 0);
  expect(site.asked).toBe(0);
  expect(await site.final()).toMatchObject({ output: { file_id: 'env-out' }, job_id: 'job_env1' });
  const [line] = parseLines(await site.read('files/env-out'));
  expect(line?.id).toBe('batch_req_env1_0');
  const told = site.start(env, ['--load-job-from-api']);
  expect(await told.exited, '--load-job-from-api wants the Job').toBe(64);
});

test('an Indexed Job answers the shards of each index, and whoever follows it assembles them', async () => {
  await using world = await siteWith(3_500, {
    spec: { completionMode: 'Indexed', completions: 3, parallelism: 3 },
  });
  const { site, input } = world;
  const pods = [0, 1, 2].map((index) => site.start({ JOB_COMPLETION_INDEX: String(index) }));
  expect(await Promise.all(pods.map(({ exited }) => exited))).toEqual([0, 0, 0]);
  const totals = [];
  for (const index of [0, 1, 2]) {
    const final = await site.final(index);
    expect(final).toMatchObject({ state: 'completed', index, indexes: 3, output: null });
    totals.push(final?.request_counts?.total);
  }
  expect(totals, 'shards of 1,000 lines in turns').toEqual([1_500, 1_000, 1_000]);
  const { finishRun, sealRun } = await import('../../src/main/batch/finish.ts');
  const { createRecord } = await import('../../src/main/batch/record.ts');
  const record = createRecord(site.uid, { data: site.storage, meta: site.storage });
  const log = { error() {} };
  const sleep = async () => {};
  const wish = { indexes: 3, outcome: 'failed' as const, errors: [], name: 'follow.1', now: 0 };
  const seals = await sealRun({ record, log, sleep }, wish);
  const batch = {
    jobId: 'job_x1',
    endpoint: '/v1/chat/completions' as const,
    pinnedModel: null,
    outputFileId: null,
    errorFileId: null,
    outputPrefix: null,
  };
  const { signal } = new AbortController();
  const { storage } = site;
  const parts = { record, batch, storage, startedAt: 0, log, maxLineBytes: 1e6, signal, sleep };
  expect(await finishRun(parts, seals ?? [])).toMatchObject({
    outcome: 'completed',
    counts: { total: 3_500, completed: 3_500, failed: 0 },
  });
  const keys = { output: 'files/file-x1-output', error: 'files/file-x1-error' };
  expectExactLines(await readFiles(site, keys), input);
});

test('pods that share a Job that is not Indexed divide its work without speaking to each other', async () => {
  await using world = await siteWith(4_000, { spec: { completions: 2, parallelism: 2 } });
  const { site, input } = world;
  const pods = [site.start(), site.start()];
  expect(await Promise.all(pods.map(({ exited }) => exited))).toEqual([0, 0]);
  const name = `files/file-${site.uid.replace('-', '')}`;
  const keys = { output: `${name}-output`, error: `${name}-error` };
  expectExactLines(await readFiles(site, keys), input);
});

test('completion-window is a deadline from the start of the Job: what is not answered is batch_expired', async () => {
  await using slow = await startVllmProcess({ flags: ['--profile', 'small'] });
  const annotations = {
    ...ANNOTATIONS,
    'completion-window': '1m',
    aibrix: '{"client":{"max_concurrency":4}}',
    'output-file-id': 'out',
    'error-file-id': 'err',
  };
  const startTime = new Date(Date.now() - 55_000).toISOString();
  await using world = await siteWith(2_000, { annotations, startTime }, { engine: slow.url });
  const { site, input } = world;
  const pod = site.start();
  await expectExit(pod, 0);
  const files = await readFiles(site, { output: 'files/out', error: 'files/err' });
  expectExactLines(files, input);
  expect(files.output.length).toBeGreaterThan(0);
  expect(new Set(files.error.map(({ error }) => error?.code))).toEqual(new Set(['batch_expired']));
  expect(await site.final()).toMatchObject({
    state: 'expired',
    request_counts: { total: 2_000, completed: files.output.length, failed: files.error.length },
  });
});

test('an index whose time is over counts what it never asked as failed', async () => {
  await using slow = await startVllmProcess({ flags: ['--profile', 'small'] });
  const annotations = {
    ...ANNOTATIONS,
    'completion-window': '1m',
    aibrix: '{"client":{"max_concurrency":4}}',
  };
  const startTime = new Date(Date.now() - 55_000).toISOString();
  const spec = { completionMode: 'Indexed', completions: 2, parallelism: 2 };
  await using world = await siteWith(2_000, { annotations, startTime, spec }, { engine: slow.url });
  await expectExit(world.site.start({ JOB_COMPLETION_INDEX: '1' }), 0);
  const final = await world.site.final(1);
  expect(final?.state).toBe('expired');
  const { total = 0, completed = 0, failed = 0 } = final?.request_counts ?? {};
  expect(completed).toBeGreaterThan(0);
  expect({ total, failed }).toEqual({ total: 1_000, failed: 1_000 - completed });
});

test('opts.fail_after_n_requests ends the worker with 70, and the next one goes on', async () => {
  await using world = await siteWith(300, {
    annotations: { ...ANNOTATIONS, 'opts.fail_after_n_requests': '200' },
  });
  const { site } = world;
  const pod = site.start();
  await expectExit(pod, 70);
  site.job = { annotations: ANNOTATIONS };
  expect(await site.start().exited).toBe(0);
  expect(await site.final()).toMatchObject({ request_counts: { completed: 300 } });
});

test('METASTORE_TYPE says where the record lies, and REDIS is refused with the mend', async () => {
  await using world = await siteWith(10, {}, { s3 });
  const { site } = world;
  const pod = site.start({ METASTORE_TYPE: 'LOCAL' });
  await expectExit(pod, 0);
  expect(await site.keys('kubernetes/'), 'no record in the bucket').toEqual([]);
  expect(await site.keys('files/')).toHaveLength(3);
  const redis = site.start({ METASTORE_TYPE: 'redis' });
  expect(await redis.exited).toBe(64);
  expect(redis.text()).toContain('a batch worker needs no Redis. Leave METASTORE_TYPE out');
});

test('input-file-id names an uploaded file, an object by its key, or one of an allowed bucket', async () => {
  await using world = await siteWith(10, {}, { s3 });
  const { site } = world;
  const { text } = makeInput(5);
  await site.storage.put('inputs/mine.jsonl', [Buffer.from(text)]);
  site.job = { annotations: { ...ANNOTATIONS, 'input-file-id': 'inputs/mine.jsonl' } };
  const byKey = site.start({ JOB_UID: 'by-key' });
  await expectExit(byKey, 0);
  const bucket = await s3.createBucket();
  await fetch(`${s3.url}/${bucket}/a/b.jsonl`, { method: 'PUT', body: text });
  site.job = { annotations: { ...ANNOTATIONS, 'input-file-id': `s3://${bucket}/a/b.jsonl` } };
  const refused = site.start({ JOB_UID: 'refused' });
  expect(await refused.exited).toBe(64);
  expect(refused.text()).toContain(`set ALLOWED_BUCKETS=s3://${bucket}/`);
  const byUrl = site.start({ JOB_UID: 'by-url', ALLOWED_BUCKETS: `s3://${bucket}/a/` });
  await expectExit(byUrl, 0);
  expect(JSON.parse(await site.read('kubernetes/by-url/final/0.json'))).toMatchObject({
    state: 'completed',
    request_counts: { total: 5, completed: 5 },
  });
});

test('in clusters without sidecars the worker ends the engine, and waits for it', async () => {
  await using world = await siteWith(10);
  const victim = spawn(
    process.execPath,
    [
      '-e',
      "process.on('SIGTERM', () => setTimeout(() => process.exit(7), 300)); setInterval(() => {}, 1000); console.log('up')",
    ],
    { env: { WORKER_VICTIM: '1' }, stdio: ['ignore', 'pipe', 'ignore'] },
  );
  const ended = once(victim, 'exit');
  await once(victim.stdout, 'data');
  const pod = world.site.start();
  await expectExit(pod, 0);
  expect(await ended).toEqual([7, null]);
  await logged(pod, 'engine is told to end');
});

describe('what a worker ends with says what failed', () => {
  test('wrong annotations are all named at once, with what is allowed: 64', async () => {
    await using world = await siteWith(1, {
      annotations: { 'completion-window': '1y', 'output-fileid': 'x' },
      podAnnotations: { endpoint: '/v1/images', aibrix: '{"client":{"max_concurrency":0}}' },
    });
    const pod = world.site.start();
    expect(await pod.exited).toBe(64);
    const { reason } = await logged(pod, 'batch worker failed');
    expect(reason).toContain('5 things are wrong with the batch');
    for (const part of [
      "Required annotation 'batch.job.aibrix.ai/input-file-id' not found",
      'batch.job.aibrix.ai/output-fileid is no annotation of a batch',
      'batch.job.aibrix.ai/endpoint must be one of /v1/chat/completions',
      'batch.job.aibrix.ai/completion-window must be days, hours and minutes',
      'max_concurrency',
    ]) {
      expect(reason).toContain(part);
    }
  });

  test('wrong settings: 64', async () => {
    await using world = await siteWith(1);
    const pod = world.site.start({ LLM_READY_ENDPOINT: 'localhost:8000', STORAGE_TYPE: 'REDIS' });
    expect(await pod.exited).toBe(64);
    expect(pod.text()).toContain('LLM_READY_ENDPOINT must be the URL');
    expect(pod.text()).toContain('STORAGE_TYPE must be one of AUTO, LOCAL, S3, TOS');
  });

  test('an input that is not valid fails the batch for good: 65', async () => {
    await using world = await siteWith(1);
    const { site } = world;
    await site.upload('file-in', `${requestLine('a', '{"model":"m"}')}\n`);
    const pod = site.start();
    expect(await pod.exited).toBe(65);
    expect(await site.final()).toMatchObject({
      state: 'failed',
      errors: [{ code: 'missing_required_parameter', line: 1, param: 'body.messages' }],
    });
    expect(await site.start().exited, 'nothing is tried again').toBe(65);
  });

  test('lines that fail alike fail the batch, and what is known is written: 65', async () => {
    await using other = await startVllmProcess({
      flags: ['--profile', 'zero', '--model', 'sim-model'],
    });
    await other.setFaults([{ kind: 'status', status: 401, rate: 1 }]);
    await using world = await siteWith(200, {}, { engine: other.url });
    const pod = world.site.start();
    await expectExit(pod, 65);
    expect(await world.site.final()).toMatchObject({
      state: 'failed',
      request_counts: { total: 200, completed: 0, failed: 200 },
      errors: [{ code: 'same_error' }],
    });
  });

  test('an input that is not there: 66', async () => {
    await using world = await siteWith(1, {
      annotations: { ...ANNOTATIONS, 'input-file-id': 'file-no' },
    });
    const pod = world.site.start();
    expect(await pod.exited).toBe(66);
    expect(await world.site.progress()).toMatchObject({
      state: 'interrupted',
      exit_code: 66,
      reason: expect.stringContaining("The input file 'file-no' is not in storage"),
    });
  });

  test('an engine that never comes: 69, after saying what it waits for', async () => {
    await using world = await siteWith(1);
    const pod = world.site.start({
      LLM_READY_TIMEOUT: '3s',
      LLM_READY_ENDPOINT: `${NO_ENGINE}/health`,
    });
    expect((await logged(pod, 'waiting for the engine'))['endpoint']).toBe(`${NO_ENGINE}/health`);
    await until(async () => (await world.site.progress())?.state === 'waiting');
    expect(await pod.exited).toBe(69);
    const { reason } = await logged(pod, 'batch worker failed');
    expect(reason).toContain('The engine was not ready for');
    expect(reason).toContain('kubectl logs POD -c llm-engine');
  });

  test('an engine that serves other models: 64, with both', async () => {
    await using other = await startVllmProcess({
      flags: ['--profile', 'zero', '--model', 'llama'],
    });
    await using world = await siteWith(1, {}, { engine: other.url });
    const pod = world.site.start();
    expect(await pod.exited).toBe(64);
    const { reason } = await logged(pod, 'batch worker failed');
    expect(reason).toContain("serves 'llama', but the input asks for 'sim-model'");
    expect(reason).toContain('--served-model-name');
  });

  test('a storage that refuses: 74, and the log says storage', async () => {
    await using world = await siteWith(1);
    const pod = world.site.start({
      STORAGE_TYPE: 'S3',
      S3_BUCKET: 'no-such-bucket',
      S3_ENDPOINT: s3.url,
      AWS_ACCESS_KEY_ID: ANY_KEYS.accessKeyId,
      AWS_SECRET_ACCESS_KEY: ANY_KEYS.secretAccessKey,
    });
    expect(await pod.exited).toBe(74);
    const { reason } = await logged(pod, 'batch worker failed');
    expect(reason).toContain('The storage cannot be used');
    expect(reason).toContain('no-such-bucket');
  });

  test.each([
    [401, 'does not accept the pod'],
    [403, 'resources ["jobs"], verbs ["get"]'],
    [404, 'JOB_NAME and JOB_NAMESPACE have to name the Job'],
  ] as const)('an API server that says %i: 77, with the mend', async (status, mend) => {
    await using world = await siteWith(1);
    world.site.mood = status;
    const pod = world.site.start();
    expect(await pod.exited).toBe(77);
    expect((await logged(pod, 'batch worker failed'))['reason']).toContain(mend);
    expect(world.site.asked, 'what no retry mends is not tried again').toBe(1);
  });
});

test('an API server that is away is waited for, and SIGTERM ends the wait', async () => {
  await using world = await siteWith(20);
  const { site } = world;
  site.mood = 'away';
  const pods = [site.start(), site.start()];
  const [first, second] = pods;
  for (const pod of pods) await logged(pod, 'waiting for the API server');
  expect(await second?.kill('SIGTERM')).toBe(75);
  site.mood = 500;
  await until(() => site.asked > 4);
  site.mood = 'well';
  await expectExit(first, 0);
  expect(await site.final()).toMatchObject({ request_counts: { completed: 20 } });
});

test('an engine that dies and comes back is waited for in mid-run', async () => {
  await using first = await startVllmProcess({ flags: ['--profile', 'small'] });
  const annotations = { ...ANNOTATIONS, aibrix: '{"client":{"max_concurrency":16}}' };
  await using world = await siteWith(600, { annotations }, { engine: first.url });
  const { site } = world;
  const pod = site.start();
  await until(async () => (await first.requests()).length > 100);
  await first.kill('SIGKILL');
  await logged(pod, 'engine does not answer, sending stopped');
  await using _again = await startVllmProcess({ flags: ['--profile', 'small'], port: first.port });
  await expectExit(pod, 0);
  expect(await site.final()).toMatchObject({
    state: 'completed',
    request_counts: { total: 600, completed: 600, failed: 0 },
  });
});
