import * as v from 'valibot';
import { describe, expect, inject, test } from 'vitest';
import { provisionId } from '../../src/domain/provision.ts';
import { errorSchema, moveJob, recordOf } from '../support/api-answers.ts';
import { postJson, rawRequest, startApi, uploadInput } from '../support/api.ts';
import { jobInProgress, partOf, SEGMENT } from '../support/store-back-ends.ts';
import type { TestApi } from '../support/api.ts';

const seconds = v.pipe(v.number(), v.integer(), v.minValue(0));
const nothing = v.null();
const provisionSchema = v.strictObject({
  provision_id: v.string(),
  provider: v.string(),
  idempotency_key: v.string(),
  status: v.string(),
  region: v.string(),
  error_message: v.string(),
  created_at: seconds,
  updated_at: seconds,
  raw_json: v.string(),
});
const eventSchema = v.strictObject({
  id: v.string(),
  label: v.string(),
  status: v.string(),
  source: v.picklist(['planner', 'mds']),
  at: seconds,
  message: v.string(),
  duration_seconds: seconds,
});
/** The Console's Job message: no field is ever left out. */
const jobSchema = v.strictObject({
  id: v.pipe(v.string(), v.regex(/^job_[A-Za-z0-9]{24}$/)),
  object: v.literal('batch'),
  endpoint: v.string(),
  model: v.string(),
  input_dataset: v.string(),
  completion_window: v.string(),
  status: v.string(),
  output_dataset: v.string(),
  error_dataset: v.string(),
  manifest: v.string(),
  created_at: seconds,
  in_progress_at: seconds,
  expires_at: seconds,
  finalizing_at: seconds,
  completed_at: seconds,
  failed_at: seconds,
  expired_at: seconds,
  cancelling_at: seconds,
  cancelled_at: seconds,
  queued_at: seconds,
  resource_preparing_at: seconds,
  submitting_at: seconds,
  resource_failed_at: seconds,
  submit_failed_at: seconds,
  cancel_requested_at: seconds,
  request_counts: v.nullable(
    v.strictObject({ total: seconds, completed: seconds, failed: seconds }),
  ),
  usage: v.nullable(
    v.strictObject({ input_tokens: seconds, output_tokens: seconds, total_tokens: seconds }),
  ),
  prefix_cache_hit_rate: v.nullable(v.number()),
  priority: v.picklist(['high', 'normal', 'low']),
  input_location: v.string(),
  output_prefix: v.string(),
  metadata: v.record(v.string(), v.string()),
  extra_body: v.record(v.string(), v.string()),
  errors: v.array(
    v.strictObject({ code: v.string(), message: v.string(), param: v.string(), line: seconds }),
  ),
  runtime: v.nullable(
    v.strictObject({
      target: v.string(),
      options: v.record(v.string(), v.string()),
      raw_json: v.string(),
    }),
  ),
  resource_allocation: nothing,
  cost: nothing,
  model_template_ref: v.nullable(
    v.strictObject({ name: v.string(), version: v.string(), raw_json: v.string() }),
  ),
  profile: nothing,
  name: v.string(),
  created_by: v.string(),
  model_template_name: v.string(),
  model_template_version: v.string(),
  retry_of: v.string(),
  client: v.looseObject({ max_concurrency: v.number(), adaptive_concurrency: v.boolean() }),
  paused_at: seconds,
  paused_by: v.string(),
  error_code: v.string(),
  batch_id: v.pipe(v.string(), v.regex(/^batch_[A-Za-z0-9]{24}$/)),
  provision_id: v.string(),
  error_message: v.string(),
  provision: v.nullable(provisionSchema),
  events: v.array(eventSchema),
});
type Job = v.InferOutput<typeof jobSchema>;
const listSchema = v.strictObject({
  jobs: v.array(jobSchema),
  first_id: v.string(),
  last_id: v.string(),
  has_more: v.boolean(),
});

const PATH = '/api/v1/jobs';

function start(): Promise<TestApi> {
  return startApi(inject('redisUrl'));
}

function body(input: string, more: object = {}) {
  return { input_dataset: input, endpoint: '/v1/chat/completions', ...more };
}

async function create(api: TestApi, more: object = {}): Promise<Job> {
  const answer = await postJson(api, PATH, body(await uploadInput(api), more));
  expect(answer.status).toBe(200);
  return v.parse(jobSchema, answer.body);
}

async function get(api: TestApi, id: string): Promise<Job> {
  return v.parse(jobSchema, await (await fetch(`${api.url}${PATH}/${id}`)).json());
}

describe('creation', () => {
  test('a new job has every field of the message', async () => {
    await using api = await start();
    const job = await create(api, { name: 'nightly', metadata: { teamName: 'a' } });
    expect(job).toMatchObject({
      status: 'queued',
      completion_window: '24h',
      expires_at: job.created_at + 86_400,
      queued_at: job.created_at,
      name: 'nightly',
      metadata: { teamName: 'a' },
      batch_id: job.id.replace('job_', 'batch_'),
      request_counts: null,
      usage: null,
      runtime: null,
      provision: null,
      provision_id: '',
      model: '',
      cancelled_at: 0,
      error_message: '',
    });
    expect(job.events).toStrictEqual([
      {
        id: 'queued',
        label: 'Queued',
        status: 'queued',
        source: 'planner',
        at: job.created_at,
        message: 'Job accepted.',
        duration_seconds: 0,
      },
    ]);
    expect(await get(api, job.id)).toStrictEqual(job);
  });

  test('both cases are taken, and a field that is empty is one that was not given', async () => {
    await using api = await start();
    const answer = await postJson(api, PATH, {
      inputDataset: await uploadInput(api),
      endpoint: '/v1/embeddings',
      completionWindow: '',
      name: null,
      client: { maxConcurrency: 7 },
      modelTemplateName: '',
    });
    const job = v.parse(jobSchema, answer.body);
    expect(job.completion_window).toBe('24h');
    expect((await recordOf(api, job.id)).maxConcurrency).toBe(7);
  });

  test('a job is also a batch', async () => {
    await using api = await start();
    const job = await create(api);
    const batch = await api.openai.batches.retrieve(job.batch_id);
    expect(batch).toMatchObject({ status: 'validating', input_file_id: job.input_dataset });
  });

  test('a key makes a job once', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    const headers = { 'idempotency-key': input };
    const first = await postJson(api, PATH, body(input), headers);
    const again = await postJson(api, PATH, body(input), headers);
    expect(again.body).toStrictEqual(first.body);
    const other = await postJson(api, PATH, body(input, { name: 'x' }), headers);
    expect(v.parse(errorSchema, other.body).error.code).toBe('idempotency_key_reused');
  });

  test('a model alone pins what it is served as; one that nobody registered is refused', async () => {
    await using api = await start();
    const modelId = `model-${Date.now()}`;
    const model = { id: modelId, name: 'M', serving_name: 'Own/Name', categories: ['LLM'] };
    expect(await postJson(api, '/api/v1/models', model)).toMatchObject({ status: 200 });
    const job = await create(api, { model_id: modelId });
    expect(job).toMatchObject({ model_template_ref: null, model_template_name: '' });
    expect((await recordOf(api, job.id)).options).toMatchObject({
      pinnedModel: 'Own/Name',
      template: null,
    });
    const unknown = body(await uploadInput(api), { modelId: 'model-none' });
    const { error } = v.parse(errorSchema, (await postJson(api, PATH, unknown)).body);
    expect(error).toMatchObject({ code: 'model_not_found', param: 'model_id' });
  });

  const wrong: [object, string][] = [
    [{ input_dataset: undefined }, 'input_dataset'],
    [{ input_dataset: '' }, 'input_dataset'],
    [{ input_dataset: 'file-none' }, 'input_dataset'],
    [{ endpoint: '' }, 'endpoint'],
    [{ endpoint: '/v1/videos' }, 'endpoint'],
    [{ completion_window: 'soon' }, 'completion_window'],
    [{ name: 'n'.repeat(513) }, 'name'],
    [{ client: { max_concurrency: 0 } }, 'client.max_concurrency'],
    [{ client: { adaptiveConcurrency: 'yes' } }, 'client.adaptive_concurrency'],
    [{ metadata: { k: 'v'.repeat(513) } }, 'metadata'],
  ];
  test('what is wrong is refused with the name of the field', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    for (const [more, param] of wrong) {
      const answer = await postJson(api, PATH, body(input, more));
      const { error } = v.parse(errorSchema, answer.body);
      expect([answer.status, error.param]).toStrictEqual([400, param]);
    }
  });
});

describe('the Job message', () => {
  test('shows the states of the job, its events and its provision', async () => {
    await using api = await start();
    const { id } = await create(api);
    await moveJob(api, id, 'resource_preparing', { set: { lines: 2, models: ['m'] } });
    const provision = provisionId(id, 0, 1);
    await api.store.provisions.create({
      id: provision,
      job: id,
      slot: 0,
      provider: 'static',
      owner: 'sluice',
      address: 'http://127.0.0.1:8000',
    });
    for (const state of ['submitting', 'in_progress', 'resource_preparing'] as const) {
      await moveJob(api, id, state);
    }
    const job = await get(api, id);
    expect(job).toMatchObject({
      status: 'resource_preparing',
      model: 'm',
      request_counts: { total: 2, completed: 0, failed: 0 },
      provision_id: provision,
      provision: { provision_id: provision, provider: 'static', status: 'intended', region: '' },
    });
    expect(JSON.parse(job.provision?.raw_json ?? '')).toMatchObject({
      provisionId: provision,
      address: 'http://127.0.0.1:8000',
    });
    expect(job.events.map((event) => event.status)).toStrictEqual([
      'queued',
      'resource_preparing',
      'submitting',
      'scheduling',
      'in_progress',
      'resource_preparing',
    ]);
    expect(new Set(job.events.map((event) => event.id)).size).toBe(6);
  });

  test('shows the provision in use, or else the last one', async () => {
    await using api = await start();
    const { id } = await create(api);
    const ids = [1, 2].map((attempt) => provisionId(id, 0, attempt));
    for (const each of ids) {
      const fields = { job: id, slot: 0, provider: 'static', owner: 'sluice' } as const;
      await api.store.provisions.create({ id: each, ...fields, address: 'http://a' });
    }
    for (const released of ids) {
      const record = await api.store.provisions.get(released);
      if (record !== null) await api.store.provisions.move(record, 'releasing');
      expect((await get(api, id)).provision_id).toBe(ids[1]);
    }
  });

  test('shows the engines of the caller, and why a job failed', async () => {
    await using api = await start();
    const runtime = { target: 'External', options: { base_url: 'http://a' } };
    const batch = await postJson(api, '/v1/batches', {
      input_file_id: await uploadInput(api),
      endpoint: '/v1/completions',
      completion_window: '24h',
      aibrix: { runtime },
    });
    const { id } = v.parse(v.object({ id: v.string() }), batch.body);
    const job = id.replace('batch_', 'job_');
    await moveJob(api, job, 'submit_failed', {
      outcome: 'submit_failed',
      set: { reason: 'The engine serves no such model.' },
    });
    const failed = await get(api, job);
    expect(failed).toMatchObject({
      status: 'submit_failed',
      error_message: 'The engine serves no such model.',
      errors: [{ code: 'submit_failed', message: 'The engine serves no such model.' }],
      runtime: { target: 'External', options: { base_urls: '["http://a"]' } },
    });
    expect(failed.submit_failed_at).toBeGreaterThan(0);
    expect(failed.failed_at).toBe(failed.submit_failed_at);
  });
});

test('shows how much of the input prefix caches had, as soon as an engine says it', async () => {
  await using api = await start();
  const { shards } = api.store;
  const told = { inputTokens: 40, cachedTokens: 0, outputTokens: 5, reasoningTokens: 0 };
  const { id } = await jobInProgress(api.store, { shards: 1, lines: 10 });
  async function hitRate(): Promise<unknown> {
    const answer: unknown = await (await fetch(`${api.url}${PATH}/${id}`)).json();
    return v.parse(v.looseObject({ prefix_cache_hit_rate: v.unknown() }), answer)
      .prefix_cache_hit_rate;
  }
  const [waiting] = await shards.open(id, 1);
  await shards.take(id, { n: 0, wake: waiting?.wake ?? 0 }, 't', 1);
  await shards.commit(id, SEGMENT, [partOf(0, 't', 10, [0], { usage: told })]);
  expect(await hitRate(), 'none says anything').toBeNull();
  const usage = { ...told, inputTokens: 60, cachedTokens: 25 };
  await shards.commit(id, { ...SEGMENT, id: 'seg-2' }, [partOf(0, 't', 10, [1], { usage })]);
  expect(await hitRate()).toBe(0.25);
  const batch = await api.openai.batches.retrieve(id.replace('job_', 'batch_'));
  expect(batch.usage).toMatchObject({ input_tokens_details: { cached_tokens: 25 } });
});

describe('lists', () => {
  test('are walked by cursor, newest first', async () => {
    await using api = await start();
    const ids: string[] = [];
    for (let n = 0; n < 5; n += 1) ids.push((await create(api)).id);
    const walked: string[] = [];
    for (let after = ''; ;) {
      const answer = await fetch(`${api.url}${PATH}?limit=2&after=${after}`);
      const page = v.parse(listSchema, await answer.json());
      const own = page.jobs.map((job) => job.id);
      expect([page.first_id, page.last_id]).toStrictEqual([own[0], own.at(-1)]);
      walked.push(...own);
      if (!page.has_more) break;
      after = page.last_id;
    }
    expect(walked.toSorted()).toStrictEqual(ids.toSorted());
  });

  test('take any limit as the Console does, but no cursor that names nothing', async () => {
    await using api = await start();
    for (let n = 0; n < 21; n += 1) await create(api);
    for (const [limit, expected] of [
      ['0', 20],
      ['-1', 20],
      ['1000', 21],
    ] as const) {
      const answer = await fetch(`${api.url}${PATH}?limit=${limit}`);
      expect(v.parse(listSchema, await answer.json()).jobs).toHaveLength(expected);
    }
    for (const query of ['limit=x', 'after=job_none', 'after=x']) {
      expect((await rawRequest(`${api.url}${PATH}?${query}`)).status).toBe(400);
    }
  });

  test('of nothing are empty', async () => {
    await using api = await start();
    const answer = await fetch(`${api.url}${PATH}/`);
    const empty = { jobs: [], first_id: '', last_id: '', has_more: false };
    expect(await answer.json()).toStrictEqual(empty);
  });
});

describe('cancel', () => {
  test('answers the job as it then is, and one that is over unchanged', async () => {
    await using api = await start();
    const [queued, running] = [await create(api), await create(api)];
    await moveJob(api, running.id, 'resource_preparing');
    for (const [job, status] of [
      [queued, 'cancelled'],
      [running, 'cancelling'],
    ] as const) {
      const first = await postJson(api, `${PATH}/${job.id}/cancel`, {});
      expect(first.status).toBe(200);
      const cancelled = v.parse(jobSchema, first.body);
      expect(cancelled.status).toBe(status);
      expect(cancelled.cancel_requested_at).toBeGreaterThan(0);
      const { version } = await recordOf(api, job.id);
      const again = await postJson(api, `${PATH}/${job.id}/cancel`, {});
      expect([again.status, again.body]).toStrictEqual([200, first.body]);
      expect((await recordOf(api, job.id)).version).toBe(version);
    }
  });

  test('of a job that is not there is a 404', async () => {
    await using api = await start();
    for (const id of ['job_none', 'batch_none', 'job_}{']) {
      const answer = await postJson(api, `${PATH}/${encodeURIComponent(id)}/cancel`, {});
      expect(answer.status).toBe(404);
      expect(v.parse(errorSchema, answer.body).error.type).toBe('not_found_error');
    }
  });
});
