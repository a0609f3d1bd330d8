import * as v from 'valibot';
import { expect, inject, test } from 'vitest';
import { outputFileId } from '../../src/domain/file.ts';
import { provisionId } from '../../src/domain/provision.ts';
import { moveJob, recordOf } from '../support/api-answers.ts';
import { postJson, startApi, uploadInput } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';
import { tick } from '../support/tick.ts';

const PATH = '/api/v1/jobs';
const jobSchema = v.looseObject({
  id: v.string(),
  status: v.string(),
  name: v.string(),
  retry_of: v.string(),
  input_dataset: v.string(),
  completion_window: v.string(),
  expires_at: v.number(),
  created_at: v.number(),
  paused_at: v.number(),
  paused_by: v.string(),
  metadata: v.record(v.string(), v.string()),
  events: v.array(
    v.looseObject({ label: v.string(), message: v.string(), duration_seconds: v.number() }),
  ),
});
const errorSchema = v.object({
  error: v.object({ code: v.string(), message: v.string(), param: v.nullable(v.string()) }),
});

function start(): Promise<TestApi> {
  return startApi(inject('redisUrl'));
}

async function create(api: TestApi, more: object = {}) {
  const input = await uploadInput(api);
  const body = { input_dataset: input, endpoint: '/v1/embeddings', ...more };
  const answer = await postJson(api, PATH, body);
  expect(answer).toMatchObject({ status: 200 });
  return v.parse(jobSchema, answer.body);
}

async function act(api: TestApi, id: string, action: string, body: unknown = {}, headers = {}) {
  const answer = await postJson(api, `${PATH}/${id}/${action}`, body, headers);
  expect([action, answer.status, answer.body]).toEqual([action, 200, expect.anything()]);
  return v.parse(jobSchema, answer.body);
}

async function refusal(api: TestApi, id: string, action: string, body: unknown = {}) {
  const answer = await postJson(api, `${PATH}/${id}/${action}`, body);
  expect(answer).toMatchObject({ status: 400 });
  return v.parse(errorSchema, answer.body).error;
}

async function explain(api: TestApi, id: string) {
  const answer = await fetch(`${api.url}${PATH}/${id}/explain`);
  return v.parse(v.object({ code: v.string(), explanation: v.string() }), await answer.json());
}

test('a pause says who and since when, is shown once, and ends with resume', async () => {
  await using api = await start();
  const { id } = await create(api);
  const by = { 'x-user-id': 'ann' };
  const paused = await act(api, id, 'pause', '', by);
  expect(paused).toMatchObject({ status: 'queued', paused_by: 'ann' });
  expect(paused.paused_at).toBeGreaterThan(0);
  const again = await act(api, id, 'pause', '', { 'x-user-id': 'bob' });
  expect(again, 'the first one holds it').toMatchObject({ paused_by: 'ann' });
  const resumed = await act(api, id, 'resume');
  expect(resumed).toMatchObject({ paused_at: 0, paused_by: '' });
  await act(api, id, 'resume');
  expect((await act(api, id, 'resume')).events.map(({ message }) => message)).toEqual([
    'Job accepted.',
    'Paused by ann.',
    'Resumed.',
  ]);
  for (const [action, code] of [
    ['pause', 'job_is_over'],
    ['resume', 'job_is_over'],
    ['extend', 'job_is_over'],
  ] as const) {
    const { id: over } = await create(api);
    await act(api, over, 'cancel');
    expect(await refusal(api, over, action, { completion_window: '48h' })).toMatchObject({ code });
  }
});

test('a paused job is in_progress under both interfaces, and says that it is paused', async () => {
  await using api = await start();
  const { id } = await create(api);
  await moveJob(api, id, 'resource_preparing');
  await moveJob(api, id, 'submitting');
  await moveJob(api, id, 'in_progress');
  await act(api, id, 'pause', {}, { 'x-user-id': 'ann' });
  const { status } = await api.openai.batches.retrieve(id.replace('job_', 'batch_'));
  expect(status).toBe('in_progress');
  const job = v.parse(jobSchema, await (await fetch(`${api.url}${PATH}/${id}`)).json());
  expect(job).toMatchObject({ status: 'in_progress', paused_by: 'ann' });
  expect(job.paused_at * 1_000).toBeGreaterThan(Date.now() - 60_000);
  expect(await explain(api, id)).toMatchObject({ code: 'paused' });

  const document = await (await fetch(`${api.url}/openapi.json`)).json();
  const says = { description: expect.stringContaining('paused_at') };
  expect(document).toMatchObject({
    paths: { [`${PATH}/{id}/pause`]: { post: says }, '/v1/batches/{id}': { get: says } },
    components: {
      schemas: {
        Job: { properties: { paused_at: { description: expect.stringContaining('paused') } } },
      },
    },
  });
});

test('a resume that is sent again is answered as at first, and ends no later pause', async () => {
  await using api = await start();
  const { id } = await create(api);
  const key = { 'idempotency-key': `resume-${id}` };
  await act(api, id, 'pause');
  const resumed = await act(api, id, 'resume', {}, key);
  expect(resumed).toMatchObject({ paused_at: 0 });
  await act(api, id, 'pause');
  expect(await act(api, id, 'resume', {}, key)).toEqual(resumed);
  expect((await recordOf(api, id)).pausedAt, 'it was resumed once').not.toBeNull();
});

test('of two who resume at once both are answered, and one is in the history', async () => {
  await using api = await start();
  const { id } = await create(api);
  await act(api, id, 'pause');
  const both = await Promise.all([act(api, id, 'resume'), act(api, id, 'resume')]);
  for (const each of both) expect(each).toMatchObject({ paused_at: 0, paused_by: '' });
  const events = await api.store.jobs.events(id);
  expect(events.filter(({ kind }) => kind === 'resumed')).toHaveLength(1);
});

test('of two who extend at once the longer one stays, whoever comes first', async () => {
  await using api = await start();
  for (let round = 0; round < 5; round += 1) {
    const { id, created_at: created } = await create(api);
    const windows = round % 2 === 0 ? ['48h', '72h'] : ['72h', '48h'];
    const answers = await Promise.all(
      windows.map((window) => postJson(api, `${PATH}/${id}/extend`, { completion_window: window })),
    );
    const longer = answers[windows.indexOf('72h')];
    expect(longer).toMatchObject({ status: 200, body: { completion_window: '72h' } });
    // It was there first, or is refused for being the shorter one.
    expect([200, 400]).toContain(answers[windows.indexOf('48h')]?.status);
    const job = v.parse(jobSchema, await (await fetch(`${api.url}${PATH}/${id}`)).json());
    expect(job).toMatchObject({ completion_window: '72h', expires_at: created + 3 * 86_400 });
  }
});

test('extend moves the deadline, and only to a later one', async () => {
  await using api = await start();
  const { id, created_at: created } = await create(api);
  const extended = await act(api, id, 'extend', { completionWindow: '48h' });
  expect(extended).toMatchObject({ completion_window: '48h', expires_at: created + 2 * 86_400 });
  const record = await recordOf(api, id);
  expect(await api.store.jobs.mendDeadline(record), 'the index has it, too').toBe(false);
  for (const window of ['48h', '1h', 'soon']) {
    const { code } = await refusal(api, id, 'extend', { completion_window: window });
    expect(code).toBe('invalid_completion_window');
  }
  expect((await refusal(api, id, 'extend', {})).code).toBe('missing_required_parameter');
  for (const completionWindow of ['', null]) {
    expect(await refusal(api, id, 'extend', { completionWindow })).toMatchObject({
      param: 'completion_window',
      message: expect.stringContaining('such as 48h'),
    });
  }
});

test('a clone asks the same again, but for what the request says', async () => {
  await using api = await start();
  const job = await create(api, {
    name: 'first',
    metadata: { a: '1' },
    client: { max_concurrency: 7, retry_policy: { max_retries: 2 } },
  });
  const same = await act(api, job.id, 'clone');
  expect(same.id).not.toBe(job.id);
  expect(same).toMatchObject({
    name: 'first',
    metadata: { a: '1' },
    input_dataset: job.input_dataset,
    completion_window: '24h',
    status: 'queued',
    retry_of: '',
  });
  const kept = await recordOf(api, same.id);
  expect(kept).toMatchObject({ maxConcurrency: 7, options: { retry: { maxRetries: 2 } } });

  const other = await act(api, job.id, 'clone', {
    name: 'second',
    completionWindow: '2h',
    metadata: { b: '2' },
    client: { max_concurrency: 9 },
  });
  expect(other).toMatchObject({ name: 'second', completion_window: '2h', metadata: { b: '2' } });
  expect((await recordOf(api, other.id)).maxConcurrency).toBe(9);
  for (const completionWindow of ['', null]) {
    const again = await act(api, other.id, 'clone', { completionWindow });
    expect(again.completion_window, 'an empty window is one that was not given').toBe('2h');
  }

  await api.store.files.delete(job.input_dataset);
  expect((await refusal(api, job.id, 'clone')).code).toBe('invalid_input_file');
});

test('a copy takes what it does not name of the client settings from the job, field by field', async () => {
  await using api = await start();
  const client = {
    max_concurrency: 7,
    requests_per_second: 3,
    tokens_per_minute: 900,
    retry_policy: { max_retries: 2, base_delay_seconds: 0.5, max_delay_seconds: 9 },
    adaptive_max_factor: 4,
    adaptive_healthy_window: 16,
    adaptive_additive_increase: 2,
    request_timeout_seconds: 60,
    upstream_stream: 'never',
    on_error_rate: 'continue',
    hedging: true,
  };
  const { id } = await failedJob(api, 2, { client });
  const parts = [
    { requests_per_second: 5 },
    { tokens_per_minute: 800 },
    { retry_policy: { max_retries: 0 } },
    { retry_policy: { base_delay_seconds: 1 } },
    { retry_policy: { max_delay_seconds: 1 } },
    { adaptive_concurrency: true },
    { adaptive_max_factor: 2 },
    { adaptive_healthy_window: 1 },
    { adaptive_additive_increase: 9 },
    { max_concurrency: 8, request_timeout_seconds: 30 },
    { hedging: false, on_error_rate: 'fail', upstream_stream: 'always' },
    {},
  ];
  for (const part of parts) {
    const retryPolicy = { ...client.retry_policy, ...part.retry_policy };
    const want = { adaptive_concurrency: true, ...client, ...part, retry_policy: retryPolicy };
    for (const action of ['clone', 'retry']) {
      const copy = await act(api, id, action, { client: part });
      expect(copy['client'], `${action} with ${JSON.stringify(part)}`).toEqual(want);
    }
  }
  const fixed = await act(api, id, 'clone', { client: { adaptive_concurrency: false } });
  expect(fixed['client']).toMatchObject({ adaptive_concurrency: false, adaptive_max_factor: null });
  const again = await act(api, fixed.id, 'clone', { client: { adaptive_healthy_window: 3 } });
  expect(again['client'], 'nothing of what was switched off is left').toMatchObject({
    adaptive_concurrency: true,
    adaptive_max_factor: null,
    adaptive_healthy_window: 3,
    adaptive_additive_increase: 1,
  });
});

test('retry is refused while a job runs, where nothing failed, and where its files are gone', async () => {
  await using api = await start();
  const { id, input_dataset: input } = await create(api);
  expect(await refusal(api, id, 'retry')).toMatchObject({ code: 'job_not_over' });
  await moveJob(api, id, 'resource_preparing', { set: { lines: 2 } });
  await moveJob(api, id, 'cancelling', { outcome: 'cancelled' });
  await moveJob(api, id, 'finalizing');
  const errorFile = outputFileId(id, 'error');
  await moveJob(api, id, 'cancelled', { set: { failed: 2, errorFile } });
  expect(await refusal(api, id, 'retry')).toMatchObject({
    code: 'retry_source_gone',
    message: expect.stringContaining(errorFile),
  });
  const file = { bytes: 1, sha256: '', filename: 'e', purpose: 'batch_output' } as const;
  await api.store.files.create({ id: errorFile, ...file });
  const retried = await act(api, id, 'retry', { name: 'again' });
  expect(retried).toMatchObject({ retry_of: id, name: 'again', status: 'queued' });
  expect(retried.input_dataset).not.toBe(input);
  await api.store.files.delete(input);
  expect((await refusal(api, id, 'retry')).code).toBe('retry_source_gone');

  const { id: fine } = await create(api);
  await act(api, fine, 'cancel');
  const nothing = await refusal(api, fine, 'retry');
  expect(nothing).toMatchObject({ code: 'nothing_to_retry' });
  expect(nothing.message).toMatch(/clone/);
});

test('retry says why nothing can be asked again, and what to do instead', async () => {
  await using api = await start();
  const unserved = await create(api);
  await moveJob(api, unserved.id, 'resource_failed', {});
  const early = await refusal(api, unserved.id, 'retry');
  expect(early.code).toBe('nothing_to_retry');
  expect(early.message).toMatch(/before its input was read.*clone asks all/);

  const wrong = await create(api);
  const errors = [{ code: 'url_mismatch', message: 'm', line: 1, param: 'url' }];
  await moveJob(api, wrong.id, 'failed', { set: { errors } });
  expect((await refusal(api, wrong.id, 'retry')).message).toMatch(/refused \(url_mismatch\).*mend/);

  const fine = await create(api);
  await moveJob(api, fine.id, 'resource_preparing', { set: { lines: 2 } });
  await moveJob(api, fine.id, 'finalizing', { outcome: 'completed' });
  await moveJob(api, fine.id, 'completed');
  expect((await refusal(api, fine.id, 'retry')).message).toMatch(/No line .* failed.*clone/);
});

/** A job that is over, with so many failed lines and an error file. */
async function failedJob(api: TestApi, lines: number, more: object = {}) {
  const job = await create(api, more);
  await moveJob(api, job.id, 'resource_preparing', { set: { lines, shards: 1 } });
  await moveJob(api, job.id, 'finalizing', { outcome: 'completed' });
  const errorFile = outputFileId(job.id, 'error');
  const file = { bytes: 1, sha256: '', filename: 'e', purpose: 'batch_output' } as const;
  await api.store.files.create({ id: errorFile, ...file });
  await moveJob(api, job.id, 'completed', { set: { failed: lines, errorFile } });
  return { ...job, errorFile };
}

test('a retry that ended before its input was written points at the retry of the first job', async () => {
  await using api = await start();
  const first = await failedJob(api, 2);
  const again = await act(api, first.id, 'retry');
  await act(api, again.id, 'cancel');
  const mend = `POST /api/v1/jobs/${first.id}/retry`;
  expect(await refusal(api, again.id, 'retry')).toMatchObject({
    code: 'nothing_to_retry',
    message: expect.stringContaining(mend),
  });
  expect(await refusal(api, again.id, 'clone')).toMatchObject({
    code: 'invalid_input_file',
    message: expect.stringContaining(mend),
  });
});

test('retry is refused where planning refused every failed line', async () => {
  await using api = await start();
  const plan = { n: 0, first: 0, lines: 3, offset: 0, bytes: 9 };
  async function lenientJob(bad: number) {
    const job = await failedJob(api, 3, { validation: 'lenient' });
    await api.store.shards.write(job.id, [plan]);
    await api.store.shards.markBad(job.id, [{ n: 0, bad: Buffer.from([bad]) }]);
    return job;
  }
  const all = await lenientJob(0b111);
  expect(await refusal(api, all.id, 'retry')).toMatchObject({
    code: 'nothing_to_retry',
    message: expect.stringContaining(all.errorFile),
  });
  const some = await lenientJob(0b101);
  expect((await act(api, some.id, 'retry')).retry_of).toBe(some.id);
});

test('a repeated retry is the first one, after its answer and the files are gone, too', async () => {
  // The shortest keep: the answer to a key is forgotten at once, the job that it made is not.
  await using api = await startApi(inject('redisUrl'), () => ({ idempotency: { keep: 1 } }));
  const first = await failedJob(api, 2);
  const key = { 'idempotency-key': 'one' };
  const made = await act(api, first.id, 'retry', { name: 'a' }, key);
  await tick();
  await api.store.files.delete(first.errorFile);
  expect((await act(api, first.id, 'retry', { name: 'a' }, key)).id).toBe(made.id);
  await tick();
  const path = `${PATH}/${first.id}/retry`;
  expect(await postJson(api, path, { name: 'b' }, key)).toMatchObject({
    status: 400,
    body: { error: { code: 'idempotency_key_reused', param: 'Idempotency-Key' } },
  });
});

test('paths end with a slash or without, and a GET may ask for the deployment', async () => {
  await using api = await start();
  const { id } = await create(api);
  expect((await fetch(`${api.url}${PATH}/${id}/?include_deployment=true`)).status).toBe(200);
  const batch = `/v1/batches/${id.replace('job_', 'batch_')}/`;
  expect((await fetch(`${api.url}${batch}?include_deployment=true`)).status).toBe(200);
  expect((await fetch(`${api.url}/v1/batches/`)).status).toBe(200);
  expect((await postJson(api, `${PATH}/${id}/pause/`, {})).status).toBe(200);
  expect((await postJson(api, `${batch}cancel/`, {})).status).toBe(200);
});

test('request_count_total is the total until planning has counted', async () => {
  await using api = await start();
  const { id } = await create(api, { request_count_total: 5 });
  async function counts(): Promise<unknown> {
    const job = await (await fetch(`${api.url}${PATH}/${id}`)).json();
    return v.parse(jobSchema, job)['request_counts'];
  }
  expect(await counts()).toEqual({ total: 5, completed: 0, failed: 0 });
  await moveJob(api, id, 'resource_preparing', { set: { lines: 4 } });
  expect(await counts()).toEqual({ total: 4, completed: 0, failed: 0 });

  const early = await create(api, { request_count_total: 5 });
  const over = await act(api, early.id, 'cancel');
  expect(over, 'nobody will ever count them').toMatchObject({
    status: 'cancelled',
    request_counts: null,
  });
});

test('explain says in one sentence why a job does not run', async () => {
  await using api = await start();
  const { id } = await create(api);
  expect(await explain(api, id)).toMatchObject({
    code: 'no_worker',
    explanation: expect.stringContaining('ROLES=worker'),
  });
  const queues = ['planning', 'provisioning', 'submission', 'dispatch', 'release'];
  await api.store.nodes.beat({ id: 'n', roles: ['worker'], queues, pid: 1, host: 'h' });
  expect((await explain(api, id)).code).toBe('queued');
  const second = await create(api);
  expect((await explain(api, second.id)).explanation).toMatch(/behind one other job/);

  await act(api, id, 'pause', {}, { 'x-user-id': 'ann' });
  expect((await explain(api, id)).explanation).toMatch(/paused by ann at .*\/resume/);
  // As the error guard notes it.
  await api.store.jobs.note(id, 'The first 50 answers are one error: 401. Resume it or cancel it.');
  expect((await explain(api, id)).explanation).toMatch(
    /lets it go on\. Reason noted: The first 50 answers are one error: 401\. Resume it or cancel it\.$/,
  );
  await api.store.jobs.note(id, '');
  expect((await explain(api, id)).explanation).toMatch(/lets it go on\.$/);
  await act(api, id, 'resume');

  await moveJob(api, id, 'resource_preparing');
  expect((await explain(api, id)).code).toBe('engine_starting');
  const provision = provisionId(id, 0, 0);
  const fields = { job: id, slot: 0, provider: 'static', owner: 'sluice' } as const;
  await api.store.provisions.create({ id: provision, ...fields, address: 'http://engine:8000' });
  await api.store.provisions.note(provision, 'connect ECONNREFUSED');
  expect((await explain(api, id)).explanation).toMatch(
    /waits for the engine http:\/\/engine:8000, which does not serve it since \d{4}-.*: connect ECONNREFUSED\.$/,
  );

  await api.store.shards.write(id, [{ n: 0, first: 0, lines: 4, offset: 0, bytes: 9 }]);
  await moveJob(api, id, 'submitting', { set: { lines: 4, shards: 1 } });
  await moveJob(api, id, 'in_progress');
  expect((await explain(api, id)).code).toBe('starting');
  const [shard = { n: 0, wake: 0 }] = await api.store.shards.open(id, 1);
  await api.store.shards.take(id, shard, 'holder', 1);
  expect(await explain(api, id)).toMatchObject({
    code: 'running',
    explanation: 'It is running: 0 of 4 requests have their answer.',
  });
  await act(api, id, 'pause');
  expect((await explain(api, id)).explanation).toMatch(/in flight is still being answered;/);
  await act(api, id, 'resume');
  await api.store.shards.give(id, 0, 'holder', 1);
  expect((await explain(api, id)).code).toBe('starting');
  await api.store.jobs.note(id, 'The input file is not in storage.');
  expect((await explain(api, id)).explanation).toBe(
    'It is held up: The input file is not in storage.',
  );
  await act(api, id, 'cancel');
  expect((await explain(api, id)).code).toBe('stopping');
  await act(api, second.id, 'cancel');
  expect((await explain(api, second.id)).explanation).toMatch(/^It is over: cancelled since/);
  expect((await fetch(`${api.url}${PATH}/job_none/explain`)).status).toBe(404);
});

test('the history says how long each state lasted, and why it was left', async () => {
  await using api = await start();
  const { id } = await create(api);
  await moveJob(api, id, 'resource_preparing', { event: 'The input is valid.' });
  const at = Date.now();
  await api.store.jobs.pause(id, '');
  const { events } = await act(api, id, 'resume');
  expect(events.map(({ label }) => label)).toEqual(['Queued', 'Provisioning', 'Paused', 'Resumed']);
  for (const { duration_seconds: seconds } of events) {
    expect(seconds).toBeLessThanOrEqual((Date.now() - at) / 1_000 + 2);
  }
});
