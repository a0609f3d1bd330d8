import { NotFoundError } from 'openai';
import type { OpenAI } from 'openai';
import * as v from 'valibot';
import { describe, expect, inject, test } from 'vitest';
import { errorSchema, moveJob, recordOf } from '../support/api-answers.ts';
import { postForm, postJson, rawRequest, startApi, uploadInput } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';

const time = v.nullable(v.pipe(v.number(), v.integer()));
const count = v.pipe(v.number(), v.integer(), v.minValue(0));
const usageSchema = v.strictObject({
  input_tokens: count,
  input_tokens_details: v.strictObject({ cached_tokens: count }),
  output_tokens: count,
  output_tokens_details: v.strictObject({ reasoning_tokens: count }),
  total_tokens: count,
});
const batchEntries = {
  id: v.pipe(v.string(), v.regex(/^batch_[A-Za-z0-9]{24}$/)),
  object: v.literal('batch'),
  endpoint: v.string(),
  model: v.nullable(v.string()),
  errors: v.nullable(
    v.strictObject({
      object: v.literal('list'),
      data: v.array(
        v.strictObject({
          code: v.string(),
          message: v.string(),
          param: v.nullable(v.string()),
          line: v.nullable(count),
        }),
      ),
    }),
  ),
  input_file_id: v.string(),
  completion_window: v.string(),
  status: v.picklist([
    'validating',
    'failed',
    'in_progress',
    'finalizing',
    'completed',
    'expired',
    'cancelling',
    'cancelled',
  ]),
  output_file_id: v.nullable(v.string()),
  error_file_id: v.nullable(v.string()),
  created_at: v.pipe(v.number(), v.integer()),
  in_progress_at: time,
  expires_at: time,
  finalizing_at: time,
  completed_at: time,
  failed_at: time,
  expired_at: time,
  cancelling_at: time,
  cancelled_at: time,
  request_counts: v.strictObject({ total: count, completed: count, failed: count }),
  usage: v.nullable(usageSchema),
  metadata: v.nullable(v.record(v.string(), v.string())),
};
const batchSchema = v.strictObject(batchEntries);
const listSchema = v.strictObject({
  object: v.literal('list'),
  data: v.array(batchSchema),
  first_id: v.string(),
  last_id: v.string(),
  has_more: v.boolean(),
});

function start(): Promise<TestApi> {
  return startApi(inject('redisUrl'));
}

function body(input: string, more: object = {}) {
  return {
    input_file_id: input,
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    ...more,
  };
}

async function create(api: TestApi, more: object = {}): Promise<v.InferOutput<typeof batchSchema>> {
  const answer = await postJson(api, '/v1/batches', body(await uploadInput(api), more));
  expect(answer.status).toBe(200);
  return v.parse(batchSchema, answer.body);
}

async function get(api: TestApi, batchId: string): Promise<v.InferOutput<typeof batchSchema>> {
  return v.parse(batchSchema, await (await fetch(`${api.url}/v1/batches/${batchId}`)).json());
}

describe('creation', () => {
  test('a new batch has every field, what is unknown as null', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    const { body: created } = await postJson(api, '/v1/batches', body(input));
    const batch = v.parse(v.strictObject(batchEntries), created);
    const now = Math.floor(Date.now() / 1_000);
    expect(Math.abs(batch.created_at - now)).toBeLessThan(60);
    expect(batch).toStrictEqual({
      id: batch.id,
      object: 'batch',
      endpoint: '/v1/chat/completions',
      model: null,
      errors: null,
      input_file_id: input,
      completion_window: '24h',
      status: 'validating',
      output_file_id: null,
      error_file_id: null,
      created_at: batch.created_at,
      in_progress_at: null,
      expires_at: batch.created_at + 86_400,
      finalizing_at: null,
      completed_at: null,
      failed_at: null,
      expired_at: null,
      cancelling_at: null,
      cancelled_at: null,
      request_counts: { total: 0, completed: 0, failed: 0 },
      usage: null,
      metadata: null,
    });
    expect(await recordOf(api, batch.id)).toMatchObject({
      state: 'queued',
      maxConcurrency: 256,
      engines: [],
      cut: { lines: 1_000, bytes: 8 * 1024 * 1024 },
    });
  });

  test('the SDK creates and reads one back, with metadata and another window', async () => {
    await using api = await start();
    const created = await api.openai.batches.create({
      input_file_id: await uploadInput(api),
      endpoint: '/v1/embeddings',
      // @ts-expect-error OpenAI has this one window only
      completion_window: '1d12h',
      metadata: { team: 'search' },
    });
    expect(created).toMatchObject({ completion_window: '1d12h', metadata: { team: 'search' } });
    expect(created.expires_at).toBe(created.created_at + 36 * 3_600);
    expect(await api.openai.batches.retrieve(created.id)).toStrictEqual(created);
    await expect(api.openai.batches.retrieve('batch_x')).rejects.toThrow(NotFoundError);
    await expect(api.openai.batches.retrieve('job_x')).rejects.toThrow(NotFoundError);
  });

  test('metadata keeps every key, those of objects of JavaScript too', async () => {
    await using api = await start();
    const metadata = '{"constructor":"c","prototype":"p","__proto__":"q","a":"1"}';
    const text = JSON.stringify(body(await uploadInput(api))).replace(
      /}$/,
      `,"metadata":${metadata}}`,
    );
    const answer = await fetch(`${api.url}/v1/batches`, { method: 'POST', body: text });
    expect(await answer.text()).toContain(`"metadata":${metadata}`);
  });

  test('every field that OpenAI has is known, also where it is null', async () => {
    await using api = await start();
    const more = { output_expires_after: { anchor: 'created_at', seconds: 3_600 }, metadata: {} };
    expect((await create(api, more)).status).toBe('validating');
    const none = { output_expires_after: null, metadata: null, aibrix: null };
    expect((await create(api, none)).status).toBe('validating');
  });

  test('aibrix names the engines and how many lines are sent to them at once', async () => {
    await using api = await start();
    const batch = await create(api, {
      aibrix: {
        client: { max_concurrency: 1_024 },
        runtime: {
          target: 'External',
          options: {
            base_url: 'http://127.0.0.1:8000/v1/',
            base_urls: ['https://engine.test/a/v1', 'http://127.0.0.1:8000', 'http://[::1]:1//'],
          },
        },
      },
    });
    expect(await recordOf(api, batch.id)).toMatchObject({
      maxConcurrency: 1_024,
      engines: ['http://127.0.0.1:8000', 'https://engine.test/a', 'http://[::1]:1'],
    });
  });

  const external = (options: object) => ({
    aibrix: { runtime: { target: 'External', options } },
  });
  const wrong: [string, object, string, RegExp][] = [
    ['no input', { input_file_id: undefined }, 'input_file_id', /Missing required parameter/],
    ['an empty input', { input_file_id: '' }, 'input_file_id', /id of an uploaded file/],
    [
      'an unknown input',
      { input_file_id: 'file-none' },
      'input_file_id',
      /no file 'file-none': GET \/v1\/files lists all/,
    ],
    ['a strange input', { input_file_id: '}{x' }, 'input_file_id', /no file/],
    ['no endpoint', { endpoint: undefined }, 'endpoint', /Missing required parameter/],
    ['an endpoint of another kind', { endpoint: '/v1/videos' }, 'endpoint', /\/v1\/responses/],
    ['no window', { completion_window: undefined }, 'completion_window', /Missing/],
    ['a window in words', { completion_window: 'soon' }, 'completion_window', /24h/],
    ['a window of nothing', { completion_window: '0h' }, 'completion_window', /24h/],
    ['metadata in a list', { metadata: ['x'] }, 'metadata', /an object of at most 16 pairs/],
    ['a number under a strange key', { metadata: { constructor: 1 } }, 'metadata', /strings/],
    ['metadata that is text', { metadata: 'x' }, 'metadata', /at most 16 pairs/],
    ['a number in metadata', { metadata: { a: 1 } }, 'metadata.a', /a string; got 1/],
    ['a long key', { metadata: { ['k'.repeat(65)]: '' } }, 'metadata', /64/],
    ['a long value', { metadata: { k: 'v'.repeat(513) } }, 'metadata', /512/],
    [
      'too many pairs',
      { metadata: Object.fromEntries(Array.from({ length: 17 }, (_, n) => [`k${n}`, ''])) },
      'metadata',
      /16/,
    ],
    [
      'no lines at once',
      { aibrix: { client: { max_concurrency: 0 } } },
      'aibrix.client.max_concurrency',
      /1 to 16384/,
    ],
    [
      'too many lines at once',
      { aibrix: { client: { max_concurrency: 16_385 } } },
      'aibrix.client.max_concurrency',
      /1 to 16384/,
    ],
    [
      'half a line at once',
      { aibrix: { client: { max_concurrency: 1.5 } } },
      'aibrix.client.max_concurrency',
      /1 to 16384/,
    ],
    [
      'no requests a second',
      { aibrix: { client: { requests_per_second: 0 } } },
      'aibrix.client.requests_per_second',
      /0\.001 to 1000000000/,
    ],
    [
      'tokens a minute in words',
      { aibrix: { client: { tokens_per_minute: '10k' } } },
      'aibrix.client.tokens_per_minute',
      /tokens a minute/,
    ],
    [
      'unknown wishes',
      { aibrix: { profile: {}, planner: 'x' } },
      'aibrix.profile',
      /'aibrix.planner'/,
    ],
    [
      'an unknown wish deep inside',
      { aibrix: { client: { retry_policy: { tries: 1 } } } },
      'aibrix.client.retry_policy.tries',
      /Unknown parameter/,
    ],
    [
      'another target',
      { aibrix: { runtime: { target: 'SageMaker', options: {} } } },
      'aibrix.runtime.target',
      /External/,
    ],
    [
      'a cluster where there is none',
      { aibrix: { runtime: { target: 'KubernetesJob' } } },
      'aibrix.runtime.target',
      /PROVISIONER=kubernetes/,
    ],
    ['no engine', external({}), 'aibrix.runtime.options.base_url', /base_urls/],
    [
      'no options',
      { aibrix: { runtime: { target: 'External' } } },
      'aibrix.runtime.options.base_url',
      /base_urls/,
    ],
    [
      'an empty list of engines',
      external({ base_urls: [] }),
      'aibrix.runtime.options.base_urls',
      /1 to 1024/,
    ],
    ...[
      'engine:8000',
      '/v1',
      'ftp://a',
      'http://u:p@a',
      'http://a/?k=1',
      'http://a/?',
      'http://a/#x',
      '',
    ].map((url): [string, object, string, RegExp] => [
      `the engine '${url}'`,
      external({ base_url: url }),
      'aibrix.runtime.options.base_url',
      /absolute http or https URL/,
    ]),
  ];
  test('what is wrong is refused with the name of the field', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    for (const [name, more, param, message] of wrong) {
      const answer = await postJson(api, '/v1/batches', body(input, more));
      const { error } = v.parse(errorSchema, answer.body);
      expect([name, answer.status, error.param]).toStrictEqual([name, 400, param]);
      expect(`${name}: ${error.message}`).toMatch(message);
      expect(error.type).toBe('invalid_request_error');
    }
    expect((await api.openai.batches.list()).data).toStrictEqual([]);
  });

  test('a file of another purpose, or over the limit of a batch, is no input', async () => {
    await using api = await startApi(inject('redisUrl'), (deps) => ({
      limits: { ...deps.limits, maxBatchFileBytes: 10 },
    }));
    const answer = await postForm(api, [
      { name: 'purpose', value: 'user_data' },
      { name: 'file', filename: 'a', value: 'x' },
    ]);
    const large = await api.store.files.create({
      id: 'file-large',
      bytes: 11,
      sha256: '',
      filename: 'a',
      purpose: 'batch',
    });
    for (const id of [JSON.parse(answer.text).id, large.id]) {
      const refused = await postJson(api, '/v1/batches', body(id));
      expect(v.parse(errorSchema, refused.body).error).toMatchObject({
        code: 'invalid_input_file',
        param: 'input_file_id',
      });
    }
  });

  test('where the server has no engine, a batch has to name one', async () => {
    await using api = await startApi(inject('redisUrl'), ({ defaults }) => ({
      defaults: { ...defaults, engineUrls: [] },
    }));
    const input = await uploadInput(api);
    const refused = await postJson(api, '/v1/batches', body(input));
    expect(refused.status).toBe(400);
    expect(v.parse(errorSchema, refused.body).error).toMatchObject({
      code: 'no_engine',
      param: 'aibrix.runtime',
    });
    const named = body(input, external({ base_url: 'http://engine:8000' }));
    expect((await postJson(api, '/v1/batches', named)).status).toBe(200);
    expect((await api.openai.batches.list()).data).toHaveLength(1);
  });
});

describe('Idempotency-Key', () => {
  test('makes a batch once, also when many ask at the same time', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    const headers = { 'idempotency-key': `key ${input}` };
    const asked = Array.from({ length: 10 }, (_, n) =>
      // The order of keys is no difference.
      postJson(api, '/v1/batches', n % 2 === 0 ? body(input) : flipped(body(input)), headers),
    );
    const ids = new Set(
      (await Promise.all(asked)).map((each) => v.parse(batchSchema, each.body).id),
    );
    expect(ids.size).toBe(1);
    expect((await api.openai.batches.list()).data).toHaveLength(1);

    // The answer to a repeat does not depend on what happened since.
    const [id = ''] = ids;
    await api.openai.batches.cancel(id);
    await api.openai.files.delete(input);
    const again = await postJson(api, '/v1/batches', body(input), headers);
    expect([again.status, v.parse(batchSchema, again.body).id]).toStrictEqual([200, id]);
  });

  test('is refused with another body, and when it is too long', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    const headers = { 'idempotency-key': `key ${input}` };
    await postJson(api, '/v1/batches', body(input), headers);
    const changed = body(input, { metadata: { a: 'b' } });
    const other = await postJson(api, '/v1/batches', changed, headers);
    expect(other.status).toBe(400);
    expect(v.parse(errorSchema, other.body).error).toMatchObject({
      code: 'idempotency_key_reused',
      param: 'Idempotency-Key',
    });
    const long = { 'idempotency-key': 'k'.repeat(256) };
    expect((await postJson(api, '/v1/batches', body(input), long)).status).toBe(400);
  });
});

function flipped(value: object): object {
  return Object.fromEntries(Object.entries(value).toReversed());
}

describe('the Batch object', () => {
  test('follows the job from state to state', async () => {
    await using api = await start();
    const { id } = await create(api);
    await moveJob(api, id, 'resource_preparing', { set: { lines: 3, models: ['m'] } });
    expect(await get(api, id)).toMatchObject({
      status: 'validating',
      model: 'm',
      request_counts: { total: 3, completed: 0, failed: 0 },
    });
    await moveJob(api, id, 'submitting');
    await moveJob(api, id, 'in_progress');
    const running = await get(api, id);
    expect(running.status).toBe('in_progress');
    expect(running.in_progress_at).toBeGreaterThanOrEqual(running.created_at);

    await moveJob(api, id, 'resource_preparing');
    expect((await get(api, id)).status).toBe('in_progress');
    await moveJob(api, id, 'submitting');
    await moveJob(api, id, 'in_progress');

    // Files that assembly has named stay hidden until the job is over, and ones without lines after it, too.
    const files = { outputFile: 'file-out', errorFile: 'file-err' };
    await moveJob(api, id, 'finalizing', { outcome: 'completed', set: files });
    const ending = await get(api, id);
    expect(ending).toMatchObject({
      status: 'finalizing',
      output_file_id: null,
      error_file_id: null,
    });
    expect(ending.finalizing_at).not.toBeNull();
    await moveJob(api, id, 'completed', { set: { failed: 3 } });
    expect(await get(api, id)).toMatchObject({
      status: 'completed',
      output_file_id: null,
      error_file_id: 'file-err',
      request_counts: { total: 3, completed: 0, failed: 3 },
      usage: null,
      errors: null,
    });
  });

  test('names no model when the lines ask several', async () => {
    await using api = await start();
    const { id } = await create(api);
    await moveJob(api, id, 'resource_preparing', { set: { models: ['a', 'b'] } });
    expect((await get(api, id)).model).toBeNull();
  });

  test('says why it failed', async () => {
    await using api = await start();
    const [bad, alone] = [await create(api), await create(api)];
    const error = { code: 'invalid_json_line', message: 'Not JSON.', line: 2, param: null };
    await moveJob(api, bad.id, 'failed', { outcome: 'failed', set: { errors: [error] } });
    const failed = await get(api, bad.id);
    expect(failed).toMatchObject({ status: 'failed', errors: { object: 'list', data: [error] } });
    expect(failed.failed_at).not.toBeNull();

    const reason = 'No engine answers.';
    await moveJob(api, alone.id, 'resource_failed', {
      outcome: 'resource_failed',
      set: { reason },
    });
    const data = [{ code: 'resource_failed', message: reason, line: null, param: null }];
    expect(await get(api, alone.id)).toMatchObject({ status: 'failed', errors: { data } });
  });

  test('an expiring job is finalizing until it has expired, and was never cancelling', async () => {
    await using api = await start();
    const { id } = await create(api);
    await moveJob(api, id, 'resource_preparing');
    await moveJob(api, id, 'cancelling', { outcome: 'expired' });
    const ending = await get(api, id);
    expect(ending).toMatchObject({ status: 'finalizing', cancelling_at: null });
    expect(ending.finalizing_at).not.toBeNull();
    await moveJob(api, id, 'finalizing');
    await moveJob(api, id, 'expired');
    const over = await get(api, id);
    expect(over).toMatchObject({ status: 'expired', cancelling_at: null, cancelled_at: null });
    expect(over.expired_at).not.toBeNull();
  });
});

describe('lists', () => {
  test('the SDK walks 250 batches, newest first, each once', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    const ids: string[] = [];
    for (let n = 0; n < 250; n += 1) {
      const { body: created } = await postJson(api, '/v1/batches', body(input));
      ids.push(v.parse(batchSchema, created).id);
    }
    const walked: OpenAI.Batch[] = [];
    for await (const batch of api.openai.batches.list({ limit: 100 })) walked.push(batch);
    expect(walked.map(({ id }) => id).toSorted()).toStrictEqual(ids.toSorted());
    const times = walked.map((batch) => batch.created_at);
    expect(times).toStrictEqual(times.toSorted((a, b) => b - a));

    const page = v.parse(listSchema, await (await fetch(`${api.url}/v1/batches`)).json());
    expect(page.data.map(({ id }) => id)).toStrictEqual(walked.slice(0, 20).map(({ id }) => id));
    const { first_id, last_id, has_more } = page;
    expect([first_id, last_id, has_more]).toStrictEqual([walked[0]?.id, walked[19]?.id, true]);
    const last = await (await fetch(`${api.url}/v1/batches?after=${walked[249]?.id}`)).json();
    expect(last).toStrictEqual({
      object: 'list',
      data: [],
      first_id: '',
      last_id: '',
      has_more: false,
    });
  });

  const wrong = [
    ['limit=0', 'limit'],
    ['limit=101', 'limit'],
    ['limit=', 'limit'],
    ['after=batch_unknown', 'after'],
    ['after=job_x', 'after'],
  ] as const;
  test.for(wrong)('?%s is refused and named', async ([query, param]) => {
    await using api = await start();
    const answer = await rawRequest(`${api.url}/v1/batches?${query}`);
    const { error } = v.parse(errorSchema, JSON.parse(answer.text));
    expect([answer.status, error.param]).toStrictEqual([400, param]);
  });
});

describe('cancel', () => {
  test('a batch that has not begun is cancelled at once', async () => {
    await using api = await start();
    const { id } = await create(api);
    const cancelled = await api.openai.batches.cancel(id);
    expect(cancelled.status).toBe('cancelled');
    expect(cancelled.cancelling_at).toBe(cancelled.cancelled_at);
    expect(cancelled.cancelled_at).not.toBeNull();
  });

  test('a running batch is cancelling, and stays so when asked again', async () => {
    await using api = await start();
    const { id } = await create(api);
    await moveJob(api, id, 'resource_preparing');
    const first = await api.openai.batches.cancel(id);
    expect(first.status).toBe('cancelling');
    const { version } = await recordOf(api, id);
    expect(await api.openai.batches.cancel(id)).toStrictEqual(first);
    await moveJob(api, id, 'finalizing');
    expect((await api.openai.batches.cancel(id)).status).toBe('cancelling');
    expect((await recordOf(api, id)).version).toBe(version + 1);
  });

  test('a batch that finalizes by itself is not changed', async () => {
    await using api = await start();
    const { id } = await create(api);
    for (const state of ['resource_preparing', 'submitting', 'in_progress'] as const) {
      await moveJob(api, id, state);
    }
    await moveJob(api, id, 'finalizing', { outcome: 'completed' });
    expect((await api.openai.batches.cancel(id)).status).toBe('finalizing');
    expect((await recordOf(api, id)).outcome).toBe('completed');
  });

  test('one that is over is refused with its status, so that no client tries again', async () => {
    await using api = await start();
    const { id } = await create(api);
    await moveJob(api, id, 'resource_failed', { outcome: 'resource_failed' });
    const refused = await postJson(api, `/v1/batches/${id}/cancel`, '');
    expect(refused.status).toBe(400);
    const { error } = v.parse(errorSchema, refused.body);
    expect(error).toMatchObject({ code: 'batch_not_cancellable', param: 'id' });
    expect(error.message).toContain('already failed');
    await expect(api.openai.batches.cancel('batch_none')).rejects.toThrow(NotFoundError);
  });
});
