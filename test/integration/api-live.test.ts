import { createHash, randomUUID } from 'node:crypto';
import { request } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { pino } from 'pino';
import { afterEach, describe, expect, inject, test, vi } from 'vitest';
import { batchIdOf } from '../../src/domain/job.ts';
import type { JobEvent, JobState } from '../../src/domain/job.ts';
import { fileKey, outputFileId, segmentKey } from '../../src/domain/file.ts';
import { createLiveHub } from '../../src/api/live-hub.ts';
import { jobKey } from '../../src/store/keys.ts';
import { createStore } from '../../src/store/store.ts';
import { rawRequest, startApi } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';
import { encodeSegment } from '../support/encode-segment.ts';
import { openEvents } from '../support/event-stream.ts';
import type { EventStream } from '../support/event-stream.ts';
import { BACK_ENDS, connectTo, jobInProgress, newJob, partOf } from '../support/store-back-ends.ts';
import { until } from '../support/until.ts';

const streams: EventStream[] = [];
afterEach(() => {
  for (const stream of streams.splice(0)) stream[Symbol.dispose]();
  vi.restoreAllMocks();
});

function start(overrides?: Parameters<typeof startApi>[1]): Promise<TestApi> {
  return startApi(inject('redisUrl'), overrides);
}

async function watch(api: TestApi, path: string, headers?: Record<string, string>) {
  const stream = await openEvents(`${api.url}${path}`, headers);
  streams.push(stream);
  return stream;
}

async function move(api: TestApi, id: string, to: JobState, event = `To ${to}.`): Promise<void> {
  const job = await api.store.jobs.get(id);
  if (job === null) throw new Error(`there is no ${id}`);
  const change = to === 'completed' ? { outcome: to, event } : { event };
  expect(await api.store.jobs.move(job, to, change)).not.toBe('stale');
}

function noMatter(): object {
  return {};
}

async function queuedJob(api: TestApi): Promise<string> {
  const { job } = await api.store.jobs.create(newJob());
  return job.id;
}

/** The statuses that a stream was told, in order. */
function told(stream: EventStream): unknown[] {
  return stream.of('state').map(({ data }) => data['status']);
}

describe.each([
  ['batch', (id: string) => `/v1/batches/${batchIdOf(id)}/events`],
  ['job', (id: string) => `/api/v1/jobs/${id}/events`],
] as const)('events of a %s', (kind, pathOf) => {
  test('begin with what it is, tell each state once, and end with its end', async () => {
    await using api = await start();
    const id = await queuedJob(api);
    const stream = await watch(api, `${pathOf(id)}/`);
    expect(stream.status).toBe(200);
    expect(stream.headers).toMatchObject({
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache, no-transform',
      connection: 'close',
    });
    await stream.until(({ messages }) => messages.length >= 2);
    expect(stream.retry).toBe(2_000);
    expect(stream.messages[0]).toMatchObject({ event: 'snapshot', id: null });
    const whole = await rawRequest(`${api.url}${pathOf(id).replace('/events', '')}`);
    const { id: own, status, ...rest } = JSON.parse(whole.text);
    expect(stream.messages[0]?.data).toMatchObject({ id: own, status });
    expect(Object.keys(stream.messages[0]?.data ?? {}).length).toBe(Object.keys(rest).length + 2);
    for (const to of ['resource_preparing', 'submitting', 'in_progress'] as const) {
      await move(api, id, to);
    }
    await stream.until(() => told(stream).length === 4);
    const later = await watch(api, pathOf(id));
    await later.until(() => told(later).length === 4);
    for (const to of ['finalizing', 'completed'] as const) await move(api, id, to);
    await Promise.all([stream.untilOver(), later.untilOver()]);
    expect(stream.over).toBe('end');
    expect(told(stream)).toStrictEqual(
      kind === 'job'
        ? ['queued', 'resource_preparing', 'submitting', 'in_progress', 'finalizing', 'completed']
        : ['validating', 'validating', 'validating', 'in_progress', 'finalizing', 'completed'],
    );
    const history = await api.store.jobs.events(id);
    expect(stream.of('state').map((message) => message.id)).toStrictEqual(
      history.map((event) => event.id),
    );
    expect(later.of('state')).toStrictEqual(stream.of('state'));
    expect(stream.of('state')[3]?.data).toMatchObject({
      kind: 'state',
      message: 'To in_progress.',
    });
    expect(stream.of('progress'), 'no count has changed').toStrictEqual([]);
    const end = stream.messages.at(-1);
    expect(end).toMatchObject({ event: 'done', id: `${history.at(-1)?.id}-done` });
    expect(end?.data).toMatchObject({ status: 'completed' });
    expect((await rawRequest(`${api.url}${pathOf(id)}`)).text).toContain('event: done');
  });

  test('go on behind Last-Event-ID, and after the end there are none', async () => {
    await using api = await start();
    const id = await queuedJob(api);
    await move(api, id, 'resource_preparing');
    const history = await api.store.jobs.events(id);
    const resumed = await watch(api, pathOf(id), { 'last-event-id': history[0]?.id ?? '' });
    await resumed.until(() => told(resumed).length === 1);
    await move(api, id, 'submitting');
    await resumed.until(() => told(resumed).length === 2);
    expect(resumed.of('state').map((message) => message.id)).toStrictEqual(
      (await api.store.jobs.events(id)).slice(1).map((event) => event.id),
    );
    for (const to of ['in_progress', 'finalizing', 'completed'] as const) await move(api, id, to);
    await resumed.untilOver();
    // Cut between the last state and the end: the end is still to be told.
    const last = (await api.store.jobs.events(id)).at(-1)?.id ?? '';
    const late = await watch(api, pathOf(id), { 'last-event-id': last });
    await late.untilOver();
    expect(late.messages.map(({ event }) => event)).toStrictEqual(['snapshot', 'done']);
    const header = { 'last-event-id': late.messages[1]?.id ?? '' };
    const nothing = await rawRequest(`${api.url}${pathOf(id)}`, { headers: header });
    expect([nothing.status, nothing.text]).toStrictEqual([204, '']);
  });

  test('are a plain list for who asks for JSON, and headers for HEAD', async () => {
    await using api = await start();
    const id = await queuedJob(api);
    await move(api, id, 'resource_preparing');
    const history = await api.store.jobs.events(id);
    const url = `${api.url}${pathOf(id)}`;
    const json = await rawRequest(url, { headers: { accept: 'application/json' } });
    expect(json.headers['content-type']).toContain('application/json');
    // A cache between must neither hand a stream to who wants the list nor keep what will grow.
    expect(json.headers).toMatchObject({ vary: 'Accept', 'cache-control': 'no-store' });
    expect(JSON.parse(json.text)).toMatchObject({
      object: 'list',
      data: history.map((event) => ({ id: event.id, event: 'state', message: event.message })),
    });
    const head = await rawRequest(url, { method: 'HEAD' });
    expect([head.status, head.headers['content-type'], head.headers.vary]).toStrictEqual([
      200,
      'text/event-stream; charset=utf-8',
      'Accept',
    ]);
    expect((await rawRequest(url, { method: 'POST' })).status).toBe(405);
  });

  test('refuse what names nothing', async () => {
    await using api = await start();
    const unknown = await rawRequest(`${api.url}${pathOf('job_none')}`);
    expect(unknown.status).toBe(404);
    expect(JSON.parse(unknown.text)).toMatchObject({
      error: { type: 'not_found_error', param: 'id', code: `${kind}_not_found` },
    });
    const id = await queuedJob(api);
    for (const wrong of ['x', '1', '-', '1-2-3', '99999999999999999999-0']) {
      const headers = { 'last-event-id': wrong };
      const answer = await rawRequest(`${api.url}${pathOf(id)}`, { headers });
      expect([wrong, answer.status]).toStrictEqual([wrong, 400]);
      expect(answer.text).toContain('1735689600000-0');
    }
  });
});

test.each(BACK_ENDS)('on %s the events behind one are those that came later', async (kind) => {
  const redis = connectTo(kind);
  try {
    const store = createStore({ redis, namespace: randomUUID() });
    const { id } = await jobInProgress(store);
    const all = await store.jobs.events(id);
    expect(await store.events.after(id, '0-0')).toStrictEqual(all);
    expect(await store.events.after(id, all[1]?.id ?? '')).toStrictEqual(all.slice(2));
    expect(await store.events.after(id, all.at(-1)?.id ?? '')).toStrictEqual([]);
    expect(await store.events.after('job_none', '0-0')).toStrictEqual([]);
  } finally {
    redis.disconnect();
  }
});

describe('progress', () => {
  test('is told at most once a second, and only when it changed', async () => {
    await using api = await start();
    const { id } = await jobInProgress(api.store, { shards: 3, lines: 10 });
    const stream = await watch(api, `/api/v1/jobs/${id}/events`);
    await stream.until(() => told(stream).length === 4);
    const begun = performance.now();
    await api.store.shards.open(id, 3);
    for (let n = 0; n < 3; n += 1) {
      await api.store.shards.take(id, { n, wake: 1 }, `t${n}`, 3);
      for (let line = 0; line < 9; line += 1) {
        const part = partOf(n, `t${n}`, 10, [line], { offset: line * 10 });
        await api.store.shards.commit(id, { id: `seg-${n}`, bytes: 90, sha256: 'ab' }, [part]);
        await sleep(60);
      }
    }
    const counts = { total: 30, completed: 27, failed: 0 };
    await stream.until(() => {
      const last = stream.of('progress').at(-1)?.data['request_counts'];
      return JSON.stringify(last) === JSON.stringify(counts);
    });
    const seconds = (performance.now() - begun) / 1_000;
    const { length } = stream.of('progress');
    expect(length).toBeGreaterThan(1);
    expect(length).toBeLessThanOrEqual(Math.ceil(seconds) + 1);
    await sleep(1_600);
    expect(stream.of('progress')).toHaveLength(length);
  });
});

describe('bounds', () => {
  test('LIVE_STREAMS: one more than may be open is asked to come back, until one has left', async () => {
    const stopping = new AbortController().signal;
    await using api = await start(() => ({ live: { liveStreams: 2, stopping } }));
    const path = `/api/v1/jobs/${await queuedJob(api)}/events`;
    const first = await watch(api, path);
    await watch(api, path);
    const refused = await rawRequest(`${api.url}${path}`);
    expect([refused.status, refused.headers['retry-after']]).toStrictEqual([503, '5']);
    expect(JSON.parse(refused.text)).toMatchObject({ error: { code: 'too_many_streams' } });
    first[Symbol.dispose]();
    const next = await until(async () => {
      const stream = await watch(api, path);
      return stream.status === 200 && stream;
    });
    await next.until(() => told(next).length === 1);
  });

  test('what a slow reader has not taken is not kept for it, and comes when it reads again', async () => {
    await using api = await start();
    const redis = new Redis(inject('redisUrl'));
    const { job } = await api.store.jobs.create(newJob());
    const { id } = job;
    const message = 'x'.repeat(1_000);
    async function happen(count: number): Promise<void> {
      for (let n = 0; n < count; n += 1) {
        await redis.xadd(jobKey(id, 'EVENTS'), '*', 'state', 'queued', 'message', message);
      }
    }
    await happen(500);
    const stopping = new AbortController().signal;
    // Not over HTTP: there the kernel takes tens of MB before a server notices that nobody reads.
    const hub = createLiveHub({
      store: api.store,
      log: pino({ level: 'silent' }),
      liveStreams: 1,
      stopping,
    });
    const wording = {
      state: ({ id: at, message: text }: JobEvent) => ({ at, text }),
      progress: noMatter,
      done: noMatter,
    };
    const stream = hub.open({ job, after: '0-0', opening: '\n', wording, cut: noMatter });
    await sleep(1_200);
    const history = (await api.store.jobs.events(id)).map((event) => event.id);
    // Whatever is not kept in a buffer by now can only come from Redis: a part of it is taken away there.
    await redis.xdel(jobKey(id, 'EVENTS'), ...history.slice(400));
    await happen(3);
    const expected = (await api.store.jobs.events(id)).map((event) => event.id);
    let text = '';
    for await (const chunk of stream) {
      text += Buffer.from(chunk).toString();
      if (text.includes(`id: ${expected.at(-1)}\n`)) break;
    }
    const seen = [...text.matchAll(/^id: (.*)$/gm)].map(([, each]) => each);
    expect(seen).toStrictEqual(expected);
    redis.disconnect();
  });

  test('a server that stops ends all streams at once', async () => {
    const stop = new AbortController();
    const live = { liveStreams: 10, stopping: stop.signal };
    await using api = await start(() => ({ live }));
    const path = `/v1/batches/${batchIdOf(await queuedJob(api))}/events`;
    const stream = await watch(api, path);
    await stream.until(() => told(stream).length === 1);
    stop.abort();
    await stream.untilOver(500);
    expect(stream.over).toBe('end');
    expect(stream.comments).toStrictEqual(['this server is stopping']);
    expect((await rawRequest(`${api.url}${path}`)).status).toBe(503);
  });

  test('a damaged record breaks a stream off, and others go on', async () => {
    await using api = await start();
    const redis = new Redis(inject('redisUrl'));
    const [bad, good] = [await queuedJob(api), await queuedJob(api)];
    const [broken, other] = [
      await watch(api, `/api/v1/jobs/${bad}/events`),
      await watch(api, `/api/v1/jobs/${good}/events`),
    ];
    await redis.xadd(jobKey(bad, 'EVENTS'), '*', 'nonsense', '1');
    redis.disconnect();
    await broken.untilOver();
    expect(broken.over).toBe('cut');
    await move(api, good, 'resource_preparing');
    await other.until(() => told(other).length === 2);
  });
});

/** A job in progress with three shards of four lines, whose answers come in several segments and out of order. */
async function halfDone(api: TestApi) {
  const { id } = await jobInProgress(api.store, { shards: 3, lines: 4 });
  await api.store.shards.open(id, 3);
  for (let n = 0; n < 3; n += 1) await api.store.shards.take(id, { n, wake: 1 }, `t${n}`, 3);
  async function answer(segment: string, lines: readonly (readonly [number, number])[]) {
    const shards = new Set(lines.map(([n]) => n));
    const groups = [...shards].map((shard) => ({
      shard,
      answers: lines
        .filter(([n]) => n === shard)
        .map(([n, line]) => ({ line, kind: kindOf(line), bytes: lineOf(n, line) })),
    }));
    const { bytes, parts } = encodeSegment(groups);
    const stored = await api.storage.put(segmentKey(id, segment), bytes);
    await api.store.shards.commit(
      id,
      { id: segment, ...stored },
      parts.map(({ shard, ...range }) => {
        const own = lines.filter(([n]) => n === shard).map(([, line]) => line);
        const failed = own.filter((line) => kindOf(line) === 'error').length;
        const counts = { ok: own.length - failed, failed };
        return partOf(shard, `t${shard}`, 4, own, { ...range, ...counts });
      }),
    );
  }
  return { id, answer };
}

function kindOf(line: number): 'output' | 'error' {
  return line === 3 ? 'error' : 'output';
}

function lineOf(n: number, line: number): Buffer {
  return Buffer.from(`{"custom_id":"${n}-${line}"}\n`);
}

function idsOf(text: string): string[] {
  const lines = text.split('\n').filter(Boolean);
  return lines.map((line) => (JSON.parse(line) as { custom_id: string }).custom_id);
}

describe.each([
  ['batch', (id: string) => `/v1/batches/${batchIdOf(id)}`],
  ['job', (id: string) => `/api/v1/jobs/${id}`],
] as const)('results of a %s that runs', (_kind, pathOf) => {
  test('are what is committed, in input order, or as it was committed', async () => {
    await using api = await start();
    const { id, answer } = await halfDone(api);
    const url = `${api.url}${pathOf(id)}`;
    const none = await rawRequest(`${url}/output`);
    expect([none.status, none.headers['x-incomplete'], none.text]).toStrictEqual([200, 'true', '']);
    await answer('seg-a', [
      [2, 1],
      [0, 2],
      [0, 3],
    ]);
    await answer('seg-b', [
      [0, 0],
      [2, 0],
      [2, 3],
    ]);
    const output = await rawRequest(`${url}/output/`);
    expect(output.headers).toMatchObject({
      'x-incomplete': 'true',
      'content-type': 'application/jsonl',
      'cache-control': 'no-store',
    });
    expect(output.headers['content-disposition']).toContain(`${batchIdOf(id)}_output.jsonl`);
    expect(idsOf(output.text)).toStrictEqual(['0-0', '0-2', '2-0', '2-1']);
    const committed = await rawRequest(`${url}/output?order=committed`);
    expect(idsOf(committed.text)).toStrictEqual(['0-2', '0-0', '2-1', '2-0']);
    expect(idsOf((await rawRequest(`${url}/errors?order=input`)).text)).toStrictEqual([
      '0-3',
      '2-3',
    ]);
    expect(idsOf((await rawRequest(`${url}/errors?order=committed`)).text)).toHaveLength(2);
    const head = await rawRequest(`${url}/output`, { method: 'HEAD' });
    expect([head.status, head.headers['x-incomplete']]).toStrictEqual([200, 'true']);
  });

  test('break off, whatever their order, when a segment is gone', async () => {
    await using api = await start();
    const { id, answer } = await halfDone(api);
    await answer('seg-a', [[0, 0]]);
    await answer('seg-b', [[1, 0]]);
    await api.storage.delete(segmentKey(id, 'seg-b'));
    const printed = vi.spyOn(console, 'error');
    for (const order of ['input', 'committed']) {
      const reading = rawRequest(`${api.url}${pathOf(id)}/output?order=${order}`);
      await expect(reading).rejects.toThrow(/aborted|hang up|reset/);
    }
    const said = api.logs.filter(({ msg }) => msg === 'reading the results of a job failed');
    expect(said).toHaveLength(2);
    expect(printed).not.toHaveBeenCalled();
  });

  test('are its files once it is over', async () => {
    await using api = await start();
    const { id } = await halfDone(api);
    const url = `${api.url}${pathOf(id)}`;
    const text = '{"custom_id":"the file"}\n';
    const file = outputFileId(id, 'output');
    const stored = await api.storage.put(fileKey(file), [Buffer.from(text)]);
    await api.store.files.create({
      id: file,
      ...stored,
      filename: 'f.jsonl',
      purpose: 'batch_output',
    });
    const redis = new Redis(inject('redisUrl'));
    await redis.hset(`{${id}}`, { completed: 12 });
    redis.disconnect();
    await move(api, id, 'finalizing');
    expect((await rawRequest(`${url}/output`)).headers['x-incomplete']).toBe('true');
    const job = await api.store.jobs.get(id);
    if (job === null) throw new Error('no job');
    const set = { outputFile: file };
    await api.store.jobs.move(job, 'completed', { outcome: 'completed', set });
    const output = await rawRequest(`${url}/output`);
    expect(output.headers).toMatchObject({
      'x-incomplete': 'false',
      'content-length': String(text.length),
    });
    expect(createHash('sha256').update(output.text).digest('hex')).toBe(stored.sha256);
    const part = await rawRequest(`${url}/output`, { headers: { range: 'bytes=1-9' } });
    expect([part.status, part.text]).toStrictEqual([206, text.slice(1, 10)]);
    const errors = await rawRequest(`${url}/errors`);
    expect([errors.status, errors.text, errors.headers['x-incomplete']]).toStrictEqual([
      200,
      '',
      'false',
    ]);
    await api.store.files.delete(file);
    const gone = await rawRequest(`${url}/output`);
    expect([gone.status, gone.text.includes('was deleted')]).toStrictEqual([404, true]);
  });

  test('refuse unknown ids and orders', async () => {
    await using api = await start();
    for (const part of ['output', 'errors']) {
      const unknown = await rawRequest(`${api.url}${pathOf('job_none')}/${part}`);
      expect(unknown.status).toBe(404);
      const id = await queuedJob(api);
      const wrong = await rawRequest(`${api.url}${pathOf(id)}/${part}?order=random`);
      expect(wrong.status).toBe(400);
      expect(JSON.parse(wrong.text)).toMatchObject({
        error: { param: 'order', type: 'invalid_request_error' },
      });
      expect(wrong.text).toContain('input or committed');
    }
  });
});

test('only so many half-done results are merged at once, and who hangs up makes room', async () => {
  await using api = await start();
  const { id, answer } = await halfDone(api);
  await answer('seg-a', [[0, 0]]);
  const url = `${api.url}/api/v1/jobs/${id}/output`;
  const hung = Promise.withResolvers<never>();
  const get: TestApi['storage']['get'] = async () => hung.promise;
  const free = api.storage.get;
  api.storage.get = get;
  const waiting = Array.from({ length: 4 }, () => request(url, { agent: false }).end());
  for (const each of waiting) each.on('error', () => undefined);
  await until(async () => (await rawRequest(url)).status === 503);
  expect((await rawRequest(url)).headers['retry-after']).toBe('2');
  api.storage.get = free;
  for (const each of waiting) each.destroy();
  await until(async () => (await rawRequest(url)).status === 200);
});

test('who hangs up before the job is found leaves no merge behind', async () => {
  const found = Promise.withResolvers<void>();
  const seen = { asked: 0, closed: 0 };
  await using api = await start(({ store }) => ({
    store: {
      ...store,
      jobs: {
        ...store.jobs,
        async get(id: string) {
          seen.asked += 1;
          await found.promise;
          return store.jobs.get(id);
        },
      },
    },
    observe: () => void (seen.closed += 1),
  }));
  const { id, answer } = await halfDone(api);
  await answer('seg-a', [[0, 0]]);
  const url = `${api.url}/api/v1/jobs/${id}/output`;
  const waiting = Array.from({ length: 4 }, () => request(url, { agent: false }).end());
  for (const each of waiting) each.on('error', () => undefined);
  await until(() => seen.asked === 4);
  for (const each of waiting) each.destroy();
  await until(() => seen.closed === 4);
  found.resolve();
  const next = await until(async () => {
    const tried = await rawRequest(url);
    return tried.status === 200 && tried;
  });
  expect(idsOf(next.text)).toStrictEqual(['0-0']);
});
