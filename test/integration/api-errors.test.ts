import { describe, expect, inject, test } from 'vitest';
import type { ApiDeps } from '../../src/api/app.ts';
import { transient } from '../../src/domain/errors.ts';
import { errorOf } from '../support/api-answers.ts';
import { postJson, rawRequest, startApi, uploadInput } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';
import { startRedis } from '../support/redis.ts';
import { until } from '../support/until.ts';

function start(overrides?: (deps: ApiDeps) => Partial<ApiDeps>): Promise<TestApi> {
  return startApi(inject('redisUrl'), overrides);
}

/** The API with a store that answers every read of a job with this error. */
function failing(failure: unknown): Promise<TestApi> {
  return start((deps) => ({
    store: {
      ...deps.store,
      jobs: { ...deps.store.jobs, get: (): Promise<never> => Promise.reject(failure) },
    },
  }));
}

const JOB = '/api/v1/jobs/job_x';

describe('routes', () => {
  test('an unknown path is a 404 that says what exists', async () => {
    await using api = await start();
    for (const path of ['/', '/v1', '/v1/models', '/v1/files/a/b', '/admin/queuesx', '/%ff']) {
      const answer = await rawRequest(api.url + path);
      expect([path, answer.status]).toStrictEqual([path, 404]);
      expect(errorOf(answer.text)).toMatchObject({ type: 'not_found_error', code: 'unknown_url' });
      expect(errorOf(answer.text).message).toContain('/openapi.json');
      expect(answer.headers['x-request-id']).toMatch(/^req_/);
    }
  });

  const methods = [
    ['PUT', '/v1/files', 'GET, HEAD, POST'],
    ['PATCH', '/v1/files/file-x', 'GET, HEAD, DELETE'],
    ['DELETE', '/v1/batches/batch_x', 'GET, HEAD'],
    ['GET', '/v1/batches/batch_x/cancel', 'POST'],
    ['HEAD', '/api/v1/files/upload', 'POST'],
    ['OPTIONS', '/api/v1/jobs/', 'GET, HEAD, POST'],
    ['POST', '/health', 'GET, HEAD'],
  ] as const;
  test.for(methods)('%s %s is a 405 with Allow', async ([method, path, allow]) => {
    await using api = await start();
    const answer = await rawRequest(api.url + path, { method });
    expect([answer.status, answer.headers['allow']]).toStrictEqual([405, allow]);
    if (method === 'HEAD') return;
    expect(errorOf(answer.text)).toMatchObject({
      type: 'invalid_request_error',
      code: 'method_not_allowed',
    });
    expect(errorOf(answer.text).message).toContain(allow);
  });
});

function body(input: string, more: object = {}) {
  return {
    input_file_id: input,
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    ...more,
  };
}

describe('fields', () => {
  test('an unknown field is refused, with the known one that is near', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    const said: [object, RegExp][] = [
      [{ completion_windows: '1h' }, /'completion_windows'\. Did you mean 'completion_window'\?$/],
      [{ completionWindow: '1h' }, /'completionWindow'\. Did you mean 'completion_window'\?$/],
      [{ meta: {} }, /'meta'\. Send none .*input_file_id, endpoint, completion_window, metadata/],
      [{ extra_body: {}, x: 1 }, /parameters: 'extra_body', 'x'\. Send none/],
      [{ ['x'.repeat(300)]: 1 }, /'x{100}…'\. Send none/],
      [{ aibrix: { job_ids: 'x' } }, /'aibrix.job_ids'\. Did you mean 'job_id'\?$/],
    ];
    for (const [more, message] of said) {
      const answer = await postJson(api, '/v1/batches', body(input, more));
      const error = errorOf(JSON.stringify(answer.body));
      expect([answer.status, error.code]).toStrictEqual([400, 'unknown_parameter']);
      expect(error.message).toMatch(message);
    }
    const windowless = { ...body(input), completion_window: undefined, completion_windows: '1h' };
    const answer = await postJson(api, '/v1/batches', windowless);
    expect(errorOf(JSON.stringify(answer.body)).param).toBe('completion_windows');
    expect((await api.openai.batches.list()).data).toStrictEqual([]);
  });

  test('a value is shown as it was sent: a text in single quotes, a number without', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    for (const [seconds, shown] of [
      ['5', "got '5'."],
      [5, 'got 5.'],
      ['it\u2019s', "got 'it\u2019s'."],
      [{ a: 1 }, 'got {"a":1}.'],
    ] as const) {
      const more = { output_expires_after: { anchor: 'created_at', seconds } };
      const answer = await postJson(api, '/v1/batches', body(input, more));
      expect(errorOf(JSON.stringify(answer.body)).message).toContain(shown);
    }
  });
});

describe('bodies', () => {
  test('that are no JSON object are refused', async () => {
    await using api = await start();
    for (const body of ['', '{', '[]', 'null', '"x"', '{"a":1}x', Buffer.from([0x7b, 0xff])]) {
      const answer = await rawRequest(`${api.url}/v1/batches`, { method: 'POST', body: [body] });
      expect([body, answer.status]).toStrictEqual([body, 400]);
      expect(errorOf(answer.text).code).toBe('invalid_json');
    }
  });

  test('of JSON over 1 MiB are refused, and the refusal is read by who sends first', async () => {
    await using api = await start();
    const edge = `{"x":"${'y'.repeat(1024 * 1024 - 8)}"}`;
    const [fits, over, far] = [edge, `${edge} `, edge.repeat(24)];
    for (const path of ['/v1/batches', '/api/v1/jobs']) {
      for (const [text, status] of [
        [fits, 400],
        [over, 413],
        [far, 413],
      ] as const) {
        const answer = await rawRequest(api.url + path, { method: 'POST', body: [text] });
        expect(answer.status).toBe(status);
        const code = status === 413 ? 'content_size_limit_exceeded' : 'unknown_parameter';
        expect(errorOf(answer.text).code).toBe(code);
      }
    }
  });

  test('to where nothing is are read on, too', async () => {
    await using api = await start();
    const answer = await rawRequest(`${api.url}/nowhere`, {
      method: 'POST',
      body: [Buffer.alloc(24 * 1024 * 1024)],
    });
    expect([answer.status, errorOf(answer.text).code]).toStrictEqual([404, 'unknown_url']);
  });
});

describe('failures', () => {
  test('that nobody foresaw tell nothing but an id, under which the log tells all', async () => {
    await using api = await failing(new Error('secret detail'));
    const answer = await rawRequest(api.url + JOB);
    expect(answer.status).toBe(500);
    expect(answer.text).not.toContain('secret');
    const requestId = answer.headers['x-request-id'];
    expect(errorOf(answer.text)).toMatchObject({ type: 'server_error', code: 'internal_error' });
    expect(errorOf(answer.text).message).toContain(requestId);
    const logged = api.logs.find((line) => line['requestId'] === requestId && line['level'] === 50);
    expect(JSON.stringify(logged)).toContain('secret detail');
  });

  test('that pass say when to come back', async () => {
    for (const [retryAfterMs, header] of [
      [undefined, '1'],
      [4_200, '5'],
    ] as const) {
      const details = retryAfterMs === undefined ? {} : { retryAfterMs };
      await using api = await failing(transient('storage.busy', 'Busy.', details));
      const answer = await rawRequest(api.url + JOB);
      expect([answer.status, answer.headers['retry-after']]).toStrictEqual([503, header]);
      expect(errorOf(answer.text)).toMatchObject({ message: 'Busy.', type: 'server_error' });
    }
  });

  test('of a Redis that starts or has no room are a 503', async () => {
    for (const message of [
      'LOADING Redis is loading',
      'OOM command not allowed when used memory',
    ]) {
      await using api = await failing(new Error(message));
      const answer = await rawRequest(api.url + JOB);
      expect([answer.status, errorOf(answer.text).code]).toStrictEqual([503, 'store.not_ready']);
    }
  });

  test('of a Redis that is gone are a 503 within seconds', async () => {
    await using redis = await startRedis();
    await using api = await startApi(redis.url);
    expect((await rawRequest(api.url + JOB)).status).toBe(404);
    await redis.kill();
    const asked = [JOB, '/v1/batches', '/v1/batches/batch_x', '/v1/files', '/api/v1/jobs'];
    const started = performance.now();
    for (const path of asked) {
      const answer = await rawRequest(api.url + path);
      expect([path, answer.status]).toStrictEqual([path, 503]);
      expect(answer.headers['retry-after']).toBe('1');
      expect(errorOf(answer.text)).toMatchObject({
        code: 'store.unreachable',
        type: 'server_error',
        message: expect.stringContaining('not reachable'),
      });
    }
    expect(performance.now() - started).toBeLessThan(5_000);
    expect((await rawRequest(`${api.url}/health`)).status).toBe(200);
  });
});

describe('operations', () => {
  test('health, readiness and metrics', async () => {
    let redis = 'ok';
    await using api = await start(() => ({
      ready: () => Promise.resolve({ redis, storage: 'ok' }),
    }));
    expect(await (await fetch(`${api.url}/health`)).json()).toStrictEqual({ status: 'ok' });
    const ready = await fetch(`${api.url}/ready`);
    expect([ready.status, await ready.json()]).toStrictEqual([
      200,
      { status: 'ok', checks: { redis: 'ok', storage: 'ok' } },
    ]);
    redis = 'connection refused';
    const not = await fetch(`${api.url}/ready`);
    expect([not.status, await not.json()]).toStrictEqual([
      503,
      { status: 'unavailable', checks: { redis: 'connection refused', storage: 'ok' } },
    ]);
    const metrics = await fetch(`${api.url}/metrics`);
    expect(metrics.headers.get('content-type')).toBe('text/plain; version=0.0.4');
    expect(await metrics.text()).toBe('up 1\n');
    expect((await fetch(`${api.url}/health`, { method: 'HEAD' })).status).toBe(200);
  });

  test('each request leaves one line and one observation with labels of few values', async () => {
    await using api = await start();
    const requests = [
      ['GET', '/v1/batches/batch_a', '/v1/batches/:id', 404, 30],
      ['GET', '/nowhere/1', 'unknown', 404, 30],
      ['POST', '/v1/batches', '/v1/batches', 400, 30],
      ['PROPFIND', '/v1/files', '/v1/files', 405, 30],
      ['GET', '/health', '/health', 200, 20],
      ['GET', '/admin/queues/api/queues', '/admin/queues', 200, 20],
    ] as const;
    for (const [method, path, route, status, level] of requests) {
      const answer = await rawRequest(api.url + path, { method });
      const requestId = answer.headers['x-request-id'];
      const lines = await until(() => {
        const own = api.logs.filter((line) => line['requestId'] === requestId);
        return own.length > 0 && own;
      });
      const line = { msg: 'request', method: method === 'PROPFIND' ? 'OTHER' : method };
      expect(lines).toHaveLength(1);
      expect(lines[0]).toMatchObject({ ...line, route, path, status, level });
      const { method: label } = line;
      expect(api.observed.at(-1)).toMatchObject({ route, method: label, status });
    }
  });

  test('Bull Board loads with all its assets and shows the queues', async () => {
    await using api = await start();
    for (const entry of ['/admin/queues', '/admin/queues/', '/admin/queues/queue/planning']) {
      const page = await fetch(api.url + entry);
      expect(page.headers.get('content-type')).toContain('text/html');
      const html = await page.text();
      const base = new URL(/<base href="([^"]+)"/.exec(html)?.[1] ?? '', api.url);
      const found = [...html.matchAll(/(?:src|href)="([^"#]+)"/g)].map((match) => match[1] ?? '');
      const assets = found.filter((asset) => asset.includes('static'));
      expect(assets.length).toBeGreaterThan(2);
      for (const asset of assets) {
        const answer = await fetch(new URL(asset, base));
        expect([asset, answer.status]).toStrictEqual([asset, 200]);
        expect((await answer.arrayBuffer()).byteLength).toBeGreaterThan(0);
      }
    }
    const queues = await (await fetch(`${api.url}/admin/queues/api/queues`)).json();
    expect(queues).toMatchObject({ queues: [{ name: 'planning' }] });
  });
});
