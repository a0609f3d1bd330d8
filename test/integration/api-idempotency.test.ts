import { randomUUID } from 'node:crypto';
import { connect } from 'node:net';
import * as fc from 'fast-check';
import OpenAI from 'openai';
import { beforeEach, describe, expect, inject, test } from 'vitest';
import type { ApiDeps } from '../../src/api/app.ts';
import type { IdempotencyTimes } from '../../src/api/idempotency.ts';
import { transient } from '../../src/domain/errors.ts';
import { FORM_TYPE, formBody, rawRequest, startApi, uploadInput } from '../support/api.ts';
import type { FormPart, RawAnswer, TestApi } from '../support/api.ts';
import { FATES, startCuttingProxy } from '../support/cutting-proxy.ts';
import type { Fate } from '../support/cutting-proxy.ts';
import { until } from '../support/until.ts';

type Times = Partial<IdempotencyTimes>;

function start(
  times: Times = {},
  overrides: (deps: ApiDeps) => Partial<ApiDeps> = () => ({}),
): Promise<TestApi> {
  return startApi(inject('redisUrl'), (deps) => ({ idempotency: times, ...overrides(deps) }));
}

function body(input: string, extra: object = {}) {
  return {
    input_file_id: input,
    endpoint: '/v1/chat/completions' as const,
    completion_window: '24h' as const,
    ...extra,
  };
}

interface Sent {
  path?: string;
  key?: string;
  headers?: Record<string, string>;
}

/** Posts JSON; the answer with its error or body parsed. */
async function post(api: { url: string }, value: unknown, sent: Sent = {}) {
  const { path = '/v1/batches', key, headers } = sent;
  const answer = await rawRequest(api.url + path, {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      ...(key === undefined ? {} : { 'idempotency-key': key }),
      ...headers,
    },
    body: value === undefined ? [] : [JSON.stringify(value)],
  });
  return told(answer);
}

function told({ status, headers, text }: RawAnswer) {
  const parsed = JSON.parse(text);
  const { error } = parsed;
  return {
    status,
    headers,
    text,
    id: String(parsed.id ?? ''),
    code: error?.code ?? null,
    message: String(error?.message ?? ''),
    replayed: headers['idempotent-replayed'] ?? null,
  };
}

async function batchIds(api: TestApi): Promise<string[]> {
  const ids: string[] = [];
  for await (const { id } of api.openai.batches.list()) ids.push(id);
  return ids;
}

/** Jobs of all tests are in one Redis, and their ids come from keys: each test has its own. */
let key = '';
beforeEach(() => {
  key = randomUUID();
});

const RETRY = { 'x-stainless-retry-count': '1' };

/** A promise that a test resolves. */
function gate() {
  const { promise, resolve } = Promise.withResolvers<void>();
  const reached = Promise.withResolvers<void>();
  return {
    open: resolve,
    reached: reached.promise,
    async pass() {
      reached.resolve();
      await promise;
    },
  };
}

/** Creating a job stands still at the gate, once the job is recorded. */
function heldBy(held: { pass(): Promise<void> }) {
  return (deps: ApiDeps): Partial<ApiDeps> => ({
    async createJob(job) {
      const made = await deps.createJob(job);
      await held.pass();
      return made;
    },
  });
}

describe('a repeat under the same key', () => {
  test('gets the first answer again, whatever happened since', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    const first = await post(api, body(input), { key });
    expect([first.status, first.replayed]).toEqual([200, null]);
    await api.openai.batches.cancel(first.id);
    const again = await post(api, Object.fromEntries(Object.entries(body(input)).toReversed()), {
      key,
      path: '/v1/batches/',
    });
    expect([again.status, again.replayed, again.text]).toEqual([200, 'true', first.text]);
    expect(again.headers['content-type']).toBe('application/json');
    expect(await batchIds(api)).toEqual([first.id]);
  });

  test('is refused with another body, path or query, and says what to do', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    const { id } = await post(api, body(input), { key });
    const others = [
      await post(api, body(input, { metadata: { a: 'b' } }), { key }),
      await post(api, body(input), { key, path: '/v1/batches?x=1' }),
      await post(api, undefined, { key, path: `/v1/batches/${id}/cancel` }),
    ];
    for (const other of others) {
      expect([other.status, other.code]).toEqual([400, 'idempotency_key_reused']);
      expect(other.message).toContain('Send a new key');
    }
    expect(others.map(({ message }) => /request body|path/.exec(message)?.[0])).toEqual([
      'request body',
      'path',
      'path',
    ]);
    expect(await api.openai.batches.retrieve(id)).toMatchObject({ status: 'validating' });
  });

  test('is that of a caller: another Authorization has keys of its own', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    const [a, b] = [{ authorization: 'Bearer a' }, { authorization: 'Bearer b' }];
    const first = await post(api, body(input), { key, headers: a });
    const second = await post(api, body(input), { key, headers: b });
    expect([second.status, second.replayed]).toEqual([200, null]);
    expect(second.id).not.toBe(first.id);
    expect((await post(api, body(input), { key, headers: a })).id).toBe(first.id);
  });

  test('of a POST without a body', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    const { id } = await post(api, body(input));
    const path = `/v1/batches/${id}/cancel`;
    const first = await post(api, undefined, { path, key });
    expect(first.status).toBe(200);
    // Without the key it is refused by now.
    expect((await post(api, undefined, { path })).code).toBe('batch_not_cancellable');
    const again = await post(api, undefined, { path, key });
    expect([again.status, again.replayed, again.text]).toEqual([200, 'true', first.text]);
  });

  test('is told so when the answer was too long to be kept', async () => {
    const message = Array.from({ length: 200_000 }, () => Math.random().toString(36)).join('');
    await using api = await start({}, (deps) => ({
      async stopJob(id, outcome) {
        const job = await deps.stopJob(id, outcome);
        return { ...job, errors: [{ code: 'x', message, line: null, param: null }] };
      },
    }));
    const { id } = await post(api, body(await uploadInput(api)));
    const path = `/v1/batches/${id}/cancel`;
    expect((await post(api, undefined, { path, key })).text).toContain(message);
    const again = await post(api, undefined, { path, key });
    expect([again.status, again.code]).toEqual([400, 'idempotency_answer_not_kept']);
    expect(again.message).toContain('GET');
  });

  test('after the time for which answers are kept is a new request', async () => {
    await using api = await start({ keep: 50 });
    const { id } = await post(api, body(await uploadInput(api)));
    const path = `/v1/batches/${id}/cancel`;
    expect((await post(api, undefined, { path, key })).status).toBe(200);
    const again = async () => (await post(api, undefined, { path, key })).code;
    expect(await until(async () => (await again()) ?? false)).toBe('batch_not_cancellable');
  });
});

test('a key has 1 to 255 printable characters', async () => {
  await using api = await start();
  const input = await uploadInput(api);
  for (const wrong of ['', 'k'.repeat(256), 'schlüssel', 'a\tb']) {
    const answer = await post(api, body(input), { key: wrong });
    expect([wrong, answer.status, answer.code]).toEqual([wrong, 400, 'invalid_value']);
    expect(answer.message).toContain('1 to 255');
  }
  expect((await post(api, body(input), { key: '~'.repeat(255) })).status).toBe(200);
});

describe('while the first still runs', () => {
  test('a repeat waits for its answer', async () => {
    const held = gate();
    await using api = await start({}, heldBy(held));
    const input = await uploadInput(api);
    const first = post(api, body(input), { key });
    await held.reached;
    const second = post(api, body(input), { key });
    setTimeout(held.open, 100);
    const [one, two] = await Promise.all([first, second]);
    expect([one.replayed, two.replayed, two.text]).toEqual([null, 'true', one.text]);
  });

  test('but not for long, and another request not at all', async () => {
    const held = gate();
    await using api = await start({ wait: 100 }, heldBy(held));
    const input = await uploadInput(api);
    const first = post(api, body(input), { key });
    await held.reached;
    const second = await post(api, body(input), { key });
    expect([second.status, second.code]).toEqual([409, 'idempotency_in_progress']);
    expect(second.headers['retry-after']).toBe('1');
    const other = await post(api, body(input, { metadata: {} }), { key });
    expect([other.status, other.code]).toEqual([400, 'idempotency_key_reused']);
    held.open();
    expect((await first).status).toBe(200);
  });

  test('its key stays taken, however long it runs', async () => {
    const held = gate();
    await using api = await start({ wait: 2_000, lease: 1_000 }, heldBy(held));
    const input = await uploadInput(api);
    const first = post(api, body(input), { key });
    await held.reached;
    expect((await post(api, body(input), { key })).code).toBe('idempotency_in_progress');
    held.open();
    expect((await first).status).toBe(200);
  });
});

describe('a first that did not succeed', () => {
  test('was refused: the mended body may come under the same key', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    const refused = await post(api, body(input, { endpoint: '/v1/none' }), { key });
    expect([refused.status, refused.code]).toEqual([400, 'invalid_value']);
    expect((await post(api, body('file-none'), { key })).code).toBe('invalid_input_file');
    expect((await post(api, body(input), { key })).status).toBe(200);
  });

  test('failed: the next try runs', async () => {
    let tries = 0;
    await using api = await start({}, (deps) => ({
      async createJob(job) {
        tries += 1;
        if (tries === 1) throw transient('store.busy', 'Busy.');
        return deps.createJob(job);
      },
    }));
    const input = await uploadInput(api);
    expect((await post(api, body(input), { key })).status).toBe(503);
    expect((await post(api, body(input), { key })).status).toBe(200);
  });

  test('died after it made the job: the key is free after its lease, and the job is still one', async () => {
    let dead = true;
    await using api = await start({ lease: 300, wait: 2_000 }, (deps) => {
      const { idempotency } = deps.store;
      const gone = () => Promise.reject(new Error('the process is gone'));
      return {
        store: {
          ...deps.store,
          idempotency: {
            ...idempotency,
            renew: (...args) => (dead ? gone() : idempotency.renew(...args)),
            answer: (...args) => (dead ? gone() : idempotency.answer(...args)),
            free: (...args) => (dead ? gone() : idempotency.free(...args)),
          },
        },
      };
    });
    const input = await uploadInput(api);
    const first = await post(api, body(input), { key });
    dead = false;
    const second = await post(api, body(input), { key });
    expect([second.status, second.replayed, second.id]).toEqual([200, null, first.id]);
    expect(await batchIds(api)).toEqual([first.id]);
    // The job remembers its body even then.
    const other = await post(api, body(input, { metadata: { a: 'b' } }), { key });
    expect(other.code).toBe('idempotency_key_reused');
  });
});

describe('an upload', () => {
  const form = (content: string, change: Partial<FormPart> = {}): FormPart[] => [
    { name: 'purpose', value: 'batch' },
    { name: 'file', filename: 'in.jsonl', value: content, ...change },
  ];

  async function upload(api: TestApi, parts: readonly FormPart[], { path = '/v1/files' } = {}) {
    // Each try of a client has a boundary of its own.
    const boundary = `b${Math.random().toString(36).slice(2)}`;
    const [, old = ''] = /boundary=(.+)$/.exec(FORM_TYPE) ?? [];
    return told(
      await rawRequest(api.url + path, {
        method: 'POST',
        headers: {
          'content-type': `multipart/form-data; boundary=${boundary}`,
          'idempotency-key': key,
        },
        body: [formBody(parts).replaceAll(old, boundary)],
      }),
    );
  }

  test('that is sent again gives the first file, and its bytes are not stored twice', async () => {
    await using api = await start();
    const content = '{"a":1}\n'.repeat(100_000);
    const first = await upload(api, form(content));
    expect([first.status, first.replayed]).toEqual([200, null]);
    const again = await upload(api, form(content));
    expect([again.status, again.replayed, again.text]).toEqual([200, 'true', first.text]);
    const turned = await upload(api, form(content).toReversed());
    expect([turned.status, turned.id]).toEqual([200, first.id]);
    expect(await api.stored()).toEqual([`files/${first.id}`]);
  });

  test('of other content, name, purpose or path is refused, and leaves nothing', async () => {
    await using api = await start();
    const first = await upload(api, form('{}\n'));
    const others = [
      await upload(api, form('{ }\n')),
      await upload(api, form('{}\n', { filename: 'other.jsonl' })),
      await upload(api, [...form('{}\n').slice(1), { name: 'purpose', value: 'user_data' }]),
      await upload(api, form('{}\n').slice(1)),
      await upload(api, form('{}\n'), { path: '/api/v1/files/upload' }),
    ];
    expect(others.map(({ status, code }) => [status, code])).toEqual(
      others.map(() => [400, 'idempotency_key_reused']),
    );
    expect(await api.stored()).toEqual([`files/${first.id}`]);
  });

  test('of a part that is sent again makes one part', async () => {
    await using api = await start();
    const asked = { filename: 'f', purpose: 'batch', bytes: 3, mime_type: 'text/plain' };
    const { id } = await post(api, asked, { path: '/v1/uploads' });
    const part = [{ name: 'data', filename: 'blob', value: '{}\n' }];
    const first = await upload(api, part, { path: `/v1/uploads/${id}/parts` });
    const again = await upload(api, part, { path: `/v1/uploads/${id}/parts` });
    expect([first.status, again.status, again.replayed]).toEqual([200, 200, 'true']);
    expect(again.id).toBe(first.id);
    expect([...(await api.store.uploads.parts(id)).keys()]).toEqual([first.id]);
  });

  test('that breaks off, or is refused, gives its key back', async () => {
    await using api = await start({ wait: 50 });
    const whole = formBody(form('{}\n'));
    const socket = connect(Number(new URL(api.url).port), '127.0.0.1');
    socket.on('error', () => undefined); // it is cut by ourselves
    socket.write(
      `POST /v1/files HTTP/1.1\r\nHost: x\r\nIdempotency-Key: ${key}\r\nContent-Type: ${FORM_TYPE}\r\n` +
        `Content-Length: ${whole.length}\r\n\r\n${whole.slice(0, -20)}`,
    );
    // One without purpose leaves nothing, should it be the first to come.
    const probe = () => upload(api, form('{}\n').slice(1));
    await until(async () => (await probe()).code === 'idempotency_in_progress');
    socket.destroy();
    await until(() => api.observed.some(({ status }) => status === 499));
    expect((await probe()).code).toBe('missing_required_parameter');
    expect((await upload(api, form('{}\n'))).status).toBe(200);
    expect(await api.stored()).toHaveLength(1);
  });
});

describe('without a key', () => {
  test('two equal creates make two, and a marked retry gives the last of them', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    const first = await post(api, body(input));
    const second = await post(api, body(input), { headers: { 'x-stainless-retry-count': '0' } });
    expect(second.id).not.toBe(first.id);
    const retried = await post(api, body(input), { headers: RETRY });
    expect([retried.status, retried.id]).toEqual([200, second.id]);
    expect(await batchIds(api)).toHaveLength(2);
  });

  test('a marked retry of another body, caller or path is a create of its own', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    const { id } = await post(api, body(input));
    const others = [
      await post(api, body(input, { metadata: { a: 'b' } }), { headers: RETRY }),
      await post(api, body(input), { headers: { ...RETRY, authorization: 'Bearer b' } }),
      await post(
        api,
        { input_dataset: input, endpoint: '/v1/chat/completions', completion_window: '24h' },
        { headers: RETRY, path: '/api/v1/jobs' },
      ),
    ];
    expect(others.map(({ status }) => status)).toEqual([200, 200, 200]);
    expect(new Set([id, ...(await batchIds(api))]).size).toBe(4);
  });

  test('retries that come at once, before, after or without their first, make one', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    for (const count of [1, 2, 5]) {
      const metadata = { count: String(count) };
      const asked = Array.from({ length: count }, () =>
        post(api, body(input, { metadata }), { headers: RETRY }),
      );
      const ids = (await Promise.all(asked)).map(({ id }) => id);
      expect(new Set(ids).size).toBe(1);
    }
    expect(await batchIds(api)).toHaveLength(3);
  });

  test('a retry that meets its first still running makes the same', async () => {
    const held = gate();
    await using api = await start({}, heldBy(held));
    const input = await uploadInput(api);
    const first = post(api, body(input));
    await held.reached;
    const second = post(api, body(input), { headers: RETRY });
    held.open();
    expect((await second).id).toBe((await first).id);
    expect(await batchIds(api)).toHaveLength(1);
  });

  test('a retry is known for a time only', async () => {
    await using api = await start({ retries: 50 });
    const input = await uploadInput(api);
    const { id } = await post(api, body(input));
    const retry = async () => (await post(api, body(input), { headers: RETRY })).id;
    expect(await until(async () => (await retry()) !== id)).toBe(true);
  });

  test('an upload in parts is begun once, too', async () => {
    await using api = await start();
    const asked = { filename: 'f', purpose: 'batch', bytes: 3, mime_type: 'text/plain' };
    const sent = { path: '/v1/uploads' };
    const first = await post(api, asked, sent);
    expect((await post(api, asked, { ...sent, headers: RETRY })).id).toBe(first.id);
    expect((await post(api, asked, sent)).id).not.toBe(first.id);
  });

  test('a job of the Console API is made once, too', async () => {
    await using api = await start();
    const job = { input_dataset: await uploadInput(api), endpoint: '/v1/chat/completions' };
    const sent = { path: '/api/v1/jobs' };
    const first = await post(api, job, sent);
    expect((await post(api, job, { ...sent, headers: RETRY })).id).toBe(first.id);
    expect((await post(api, job, sent)).id).not.toBe(first.id);
  });
});

describe("OpenAI's SDK over a line that breaks", () => {
  /** Each try of a create has a fate, written in its own metadata; others pass. */
  function fateOf(request: string): Fate {
    const [, fates] = /"fates":"([a-z,]*)"/.exec(request) ?? [];
    const [, count = '0'] = /^x-stainless-retry-count: (\d+)/im.exec(request) ?? [];
    const fate = fates?.split(',')[Number(count)];
    return FATES.find((each) => each === fate) ?? 'pass';
  }

  async function createAll(api: TestApi, plans: readonly (readonly Fate[])[], key = false) {
    await using proxy = await startCuttingProxy(api.url, fateOf);
    const openai = new OpenAI({ apiKey: 'k', baseURL: `${proxy.url}/v1`, maxRetries: 2 });
    const input = await uploadInput(api);
    const made = plans.map((fates, n) => {
      const metadata = { n: String(n), fates: fates.join(',') };
      const options = key ? { headers: { 'Idempotency-Key': randomUUID() } } : {};
      return openai.batches.create(body(input, { metadata }), options);
    });
    return (await Promise.all(made)).map(({ id }) => id);
  }

  test.for(['lose', 'mute', 'leave'] as const)(
    'makes one batch when the first try is one to %s',
    async (fate) => {
      await using api = await start();
      const ids = await createAll(api, [[fate, 'pass']]);
      expect(await batchIds(api)).toEqual(ids);
    },
  );

  test('makes as many batches as were asked for, in every interleaving', async () => {
    const fates = fc.constantFrom(...FATES.filter((fate) => fate !== 'pass'));
    const plans = fc.array(fc.array(fates, { maxLength: 2 }), { minLength: 30, maxLength: 30 });
    await fc.assert(
      fc.asyncProperty(plans, fc.boolean(), async (each, key) => {
        await using api = await start();
        const ids = await createAll(api, each, key);
        expect((await batchIds(api)).toSorted()).toEqual(ids.toSorted());
        expect(new Set(ids).size).toBe(each.length);
      }),
      { numRuns: 4, endOnFailure: true },
    );
  });
});
