import { afterAll, expect, test } from 'vitest';
import {
  download,
  makeInput,
  expectExact,
  say,
  submit,
  untilAnswered,
  untilFinal,
} from '../support/batch.ts';
import { LONG } from '../support/chaos.ts';
import { openEvents } from '../support/event-stream.ts';
import type { EventStream } from '../support/event-stream.ts';
import { restartRedis } from '../support/redis-again.ts';
import { startRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

/** `CHAOS_LONG=1` asks for more of them. */
const WATCHERS = LONG ? 200 : 80;

function idsOf(stream: EventStream): (string | null)[] {
  return stream.of('state').map(({ id }) => id);
}

/** The history as it is read in one go. */
async function readHistory(url: string, id: string): Promise<string[]> {
  const answer = await fetch(`${url}/v1/batches/${id}/events`, {
    headers: { accept: 'application/json' },
  });
  const { data } = (await answer.json()) as { data: { id: string }[] };
  return data.map((event) => event.id);
}

async function readOutput(url: string, id: string, query = '') {
  const answer = await fetch(`${url}/v1/batches/${id}/output${query}`);
  expect(answer.status).toBe(200);
  const text = await answer.text();
  const incomplete = answer.headers.get('x-incomplete');
  return { incomplete, text, lines: text.split('\n').slice(0, -1) };
}

function expectInOrder(part: readonly string[], whole: readonly string[]): void {
  const place = new Map(whole.map((line, index) => [line, index]));
  const places = part.map((line) => place.get(line) ?? -1);
  expect(places, 'every line is one of the final output').not.toContain(-1);
  expect(places, 'in input order').toEqual(places.toSorted((a, b) => a - b));
}

test('a batch is followed by many over two API processes, cut connections and a Redis restart', async () => {
  await using redis = await startRedis();
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 250 });
  await using folder = await makeFolder();
  const shared = { dataDir: folder.path, redisUrl: redis.url, engines: [engine.url] };
  await using one = await startSluice({ ...shared, roles: ['api'] });
  await using other = await startSluice({ ...shared, roles: ['api'] });
  await using worker = await startSluice({ ...shared, roles: ['worker', 'sweeper'] });
  expect(worker.url).toBe('');
  using open = new DisposableStack();
  async function follow(url: string, headers?: Record<string, string>): Promise<EventStream> {
    return open.use(await openEvents(`${url}/v1/batches/${id}/events`, headers));
  }

  const input = makeInput(3_000);
  const id = await submit(one.url, input, { maxConcurrency: 20 });
  const cut = await follow(one.url);
  const many = await Promise.all(
    Array.from({ length: WATCHERS }, (_, n) => follow([one.url, other.url][n % 2] ?? '')),
  );
  await untilAnswered(one.url, id, 20);
  await cut.until(({ messages }) => messages.some(({ data }) => data['status'] === 'in_progress'));

  // Another process goes on where this one was cut.
  cut[Symbol.dispose]();
  const resumed = await follow(other.url, { 'last-event-id': idsOf(cut).at(-1) ?? '' });
  const half = await readOutput(other.url, id);
  const committed = await readOutput(one.url, id, '?order=committed');
  expect([half.incomplete, committed.incomplete]).toEqual(['true', 'true']);
  expect(half.lines.length).toBeGreaterThan(0);
  expect(half.lines.length).toBeLessThan(3_000);

  await redis.kill();
  await one.untilLogged('event streams cannot be fed, trying again');
  await using again = restartRedis(redis);
  expect(again).toBeDefined();
  const begun = await until(async () => (await readOutput(one.url, id)).lines.length, {
    timeoutMs: 60_000,
    what: 'Redis again',
  }).catch(String);
  expect(begun).toBeGreaterThan(0);
  expect([resumed, ...many].filter(({ over }) => over !== null)).toEqual([]);
  await engine.setConfig({ latency_ms: 0 });

  const batch = await untilFinal(one.url, id, 60_000);
  const over = performance.now();
  await Promise.all([resumed, ...many].map((stream) => stream.untilOver()));
  say(`${WATCHERS} streams ended ${Math.round(performance.now() - over)} ms after the batch`);
  await expectExact(one.url, batch, input);
  const history = await readHistory(other.url, id);
  expect([...idsOf(cut), ...idsOf(resumed)]).toEqual(history);
  for (const stream of [resumed, ...many]) {
    expect(stream.over).toBe('end');
    expect(stream.messages[0]?.event).toBe('snapshot');
    expect(stream.messages.at(-1)).toMatchObject({ event: 'done', data: { status: 'completed' } });
  }
  for (const stream of many) expect(idsOf(stream)).toEqual(history);

  const whole = await readOutput(other.url, id);
  expect(whole.incomplete).toBe('false');
  expect(whole.text).toBe(await download(one.url, batch.output_file_id));
  expectInOrder(half.lines, whole.lines);
  const final = new Set(whole.lines);
  expect(committed.lines.filter((line) => !final.has(line))).toEqual([]);
  expect(new Set(committed.lines).size).toBe(committed.lines.length);
  for (const api of [one, other]) expect(await api.stop()).toMatchObject({ code: 0 });
});

test('LIVE_STREAMS bounds open streams, and SIGTERM is not put off by them', async () => {
  await using redis = await startRedis();
  await using folder = await makeFolder();
  await using api = await startSluice({
    dataDir: folder.path,
    redisUrl: redis.url,
    roles: ['api'],
    engines: ['http://127.0.0.1:9'],
    env: { SHUTDOWN_GRACE: '20s', LIVE_STREAMS: '50' },
  });
  const id = await submit(api.url, makeInput(1));
  using open = new DisposableStack();
  const streams = await Promise.all(
    Array.from({ length: 50 }, async () =>
      open.use(await openEvents(`${api.url}/v1/batches/${id}/events`)),
    ),
  );
  using refused = await openEvents(`${api.url}/v1/batches/${id}/events`);
  expect(refused.status, 'LIVE_STREAMS').toBe(503);
  await Promise.all(streams.map((stream) => stream.until(({ messages }) => messages.length > 1)));
  const end = await api.stop();
  say(`stopped ${Math.round(end.ms)} ms after SIGTERM, with 50 open streams`);
  expect(end.code).toBe(0);
  expect(end.ms).toBeLessThan(15_000);
  for (const { over, comments } of streams) {
    expect([over, comments]).toEqual(['end', ['this server is stopping']]);
  }
});
