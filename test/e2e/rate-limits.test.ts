import { createServer } from 'node:http';
import type { ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, describe, expect, test } from 'vitest';
import { expectExact, makeInput, requestLine, say, submit, untilFinal } from '../support/batch.ts';
import type { Input } from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { restartRedis } from '../support/redis-again.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

const ENGINE = { flags: ['--profile', 'zero', '--set', 'log=full'] };
const sleep = (ms: number) => new Promise((resolve) => void setTimeout(resolve, ms));

/** When the engines were asked, ms, in order. */
async function askedAt(...engines: VllmProcess[]): Promise<number[]> {
  const logs = await Promise.all(engines.map((engine) => engine.requests()));
  return logs
    .flat()
    .map(({ at }) => at)
    .toSorted((a, b) => a - b);
}

/** Waits for the first request, and then until the window is over that begins `afterMs` later; requests per second in it. */
async function rateOf(engines: VllmProcess[], { afterMs = 1_000, ms = 4_000 } = {}) {
  await until(async () => (await askedAt(...engines)).length > 0, { what: 'the first request' });
  await sleep(afterMs + ms + 200);
  const times = await askedAt(...engines);
  const from = (times[0] ?? 0) + afterMs;
  const count = times.filter((at) => at >= from && at < from + ms).length;
  return (count * 1_000) / ms;
}

function expectWithin(rate: number, limit: number, share: number): void {
  say(`${rate.toFixed(1)} a second under a limit of ${limit.toFixed(1)}`);
  expect(rate).toBeLessThan(limit * (1 + share));
  expect(rate).toBeGreaterThan(limit * (1 - share));
}

/** Lines that allow far more output than they get. */
function talkative(count: number, maxTokens: number): Input {
  const { customIds, marks } = makeInput(count);
  const lines = customIds.map((id, n) => {
    const messages = [{ role: 'user', content: `Question ${n}.` }];
    return requestLine(id, JSON.stringify({ model: 'sim-model', messages, max_tokens: maxTokens }));
  });
  return { text: `${lines.join('\n')}\n`, customIds, marks };
}

/** An engine whose answers cost ten tokens and carry headers of the test's choice. */
async function startStandIn(headersOf: (nth: number) => Record<string, string>) {
  const times: number[] = [];
  const usage = '"usage":{"prompt_tokens":4,"completion_tokens":6,"total_tokens":10}';
  function answer(path: string, response: ServerResponse): void {
    if (path === '/health') {
      response.end();
    } else if (path.endsWith('/models')) {
      response.end('{"object":"list","data":[{"id":"sim-model","object":"model"}]}');
    } else if (path.endsWith('/completions')) {
      const headers = { 'content-type': 'application/json', ...headersOf(times.length) };
      times.push(Date.now());
      response.writeHead(200, headers);
      response.end(`{"id":"x","object":"chat.completion","choices":[],${usage}}`);
    } else {
      response.writeHead(404).end();
    }
  }
  const server = createServer((request, response) => {
    request.resume().on('end', () => answer(request.url ?? '', response));
  });
  await new Promise<void>((resolve) => void server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo; // it listens on TCP
  return {
    url: `http://127.0.0.1:${port}`,
    times,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
    },
  };
}

describe('requests per second', () => {
  test('client.requests_per_second: two worker processes together keep to it', async () => {
    await using redis = await startRedis();
    await using engine = await startVllmProcess(ENGINE);
    await using folder = await makeFolder();
    const shared = { dataDir: folder.path, redisUrl: redis.url, engines: [engine.url] };
    await using first = await startSluice(shared);
    await using second = await startSluice({ ...shared, roles: ['worker'], queues: ['dispatch'] });
    const input = makeInput(20_000);
    await submit(first.url, input, { maxConcurrency: 64, client: { requests_per_second: 300 } });
    // A busy machine adds to that; the bench `limits` holds it to 2 % over a minute.
    expectWithin(await rateOf([engine], { ms: 6_000 }), 300, 0.05);
    expect((await engine.counts()).repeated).toBe(0);
    await second.stop();
  });

  test('ENGINE_REQUESTS_PER_SECOND holds for each engine, KEY_REQUESTS_PER_SECOND for all of a key', async () => {
    await using one = await startVllmProcess(ENGINE);
    await using two = await startVllmProcess(ENGINE);
    await using folder = await makeFolder();
    const start = (env: Record<string, string>) =>
      startSluice({ dataDir: folder.path, engines: [one.url, two.url], env });
    const input = makeInput(2_000);
    {
      await using sluice = await startSluice({
        dataDir: folder.path,
        engines: [one.url, two.url],
        env: { ENGINE_REQUESTS_PER_SECOND: '50' },
      });
      expect(await submit(sluice.url, input)).toMatch(/^batch_/);
      await rateOf([one, two], { ms: 2_000 });
      for (const engine of [one, two])
        expectWithin(await rateOf([engine], { ms: 2_000 }), 50, 0.06);
      await sluice.stop();
    }
    const before = (await askedAt(one, two)).length;
    await using sluice = await start({ ENGINE_API_KEY: 'hush', KEY_REQUESTS_PER_SECOND: '40' });
    await until(async () => (await askedAt(one, two)).length > before, { what: 'more requests' });
    const begun = Date.now();
    await sleep(4_000);
    const times = (await askedAt(one, two)).filter((at) => at > begun + 1_000);
    expectWithin(times.filter((at) => at <= begun + 4_000).length / 3, 40, 0.06);
    await sluice.stop();
  });
});

describe.concurrent('tokens per minute', () => {
  const RATE = 600;
  const limits = [
    { name: 'client.tokens_per_minute', client: { tokens_per_minute: RATE * 60 }, env: {} },
    {
      name: 'ENGINE_TOKENS_PER_MINUTE',
      client: {},
      env: { ENGINE_TOKENS_PER_MINUTE: `${RATE * 60}` },
    },
    {
      name: 'KEY_TOKENS_PER_MINUTE',
      client: {},
      env: { ENGINE_API_KEY: 'hush', KEY_TOKENS_PER_MINUTE: `${RATE * 60}` },
    },
  ];

  test.each(limits)('$name: what usage says counts', async (limit) => {
    await using engine = await startVllmProcess(ENGINE);
    await using folder = await makeFolder();
    const { env, client } = limit;
    await using sluice = await startSluice({ dataDir: folder.path, engines: [engine.url], env });
    const id = await submit(sluice.url, talkative(200, 16), { client });
    const batch = await untilFinal(sluice.url, id);
    expect(batch.status).toBe('completed');
    const usage = batch.usage?.total_tokens ?? 0;
    const times = await askedAt(engine);
    const each = usage / times.length;
    const seconds = ((times.at(-1) ?? 0) - (times[0] ?? 0)) / 1_000;
    say(`${each.toFixed(1)} tokens a line, ${times.length} lines in ${seconds.toFixed(1)} s`);
    expectWithin(usage / seconds, RATE, 0.1);
  });

  test('an estimate that was too high gives tokens back', async () => {
    await using engine = await startStandIn(() => ({}));
    await using folder = await makeFolder();
    await using sluice = await startSluice({ dataDir: folder.path, engines: [engine.url] });
    // By their estimates these would take two minutes: 600 tokens each, of which they use ten.
    const client = { tokens_per_minute: 60_000 };
    const id = await submit(sluice.url, talkative(200, 600), { client, maxConcurrency: 16 });
    expect((await untilFinal(sluice.url, id)).status).toBe('completed');
    const seconds = ((engine.times.at(-1) ?? 0) - (engine.times[0] ?? 0)) / 1_000;
    say(`200 lines of 10 tokens in ${seconds.toFixed(1)} s at 1,000 tokens a second`);
    expect(seconds).toBeLessThan(20);
    expect(seconds).toBeGreaterThan(1);
    await sluice.stop();
  });
});

test('while Redis is away nothing goes out unlimited; then the job goes on', async () => {
  await using redis = await startRedis();
  await using engine = await startVllmProcess(ENGINE);
  await using folder = await makeFolder();
  const shared = { dataDir: folder.path, redisUrl: redis.url, engines: [engine.url] };
  await using sluice = await startSluice(shared);
  const input = makeInput(600);
  const id = await submit(sluice.url, input, { client: { requests_per_second: 100 } });
  await until(async () => (await askedAt(engine)).length > 100, { what: 'a hundred requests' });
  await redis.kill();
  const killed = Date.now();
  await sleep(2_500);
  const late = (await askedAt(engine)).filter((at) => at > killed);
  // What was in hand: a block, and what was on its way.
  expect(late.length).toBeLessThanOrEqual(30);
  await using _again = restartRedis(redis);
  const batch = await untilFinal(sluice.url, id);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
});

test('Retry-After of a 429 keeps every line from that engine, not from another', async () => {
  await using busy = await startVllmProcess(ENGINE);
  await using other = await startVllmProcess(ENGINE);
  for (const engine of [busy, other]) await engine.setConfig({ latency_ms: 20 });
  await busy.setFaults([{ kind: 'status', status: 429, retry_after: 2, count: 1, after: 30 }]);
  await using folder = await makeFolder();
  const engines = [busy.url, other.url];
  await using sluice = await startSluice({ dataDir: folder.path, engines });
  const input = makeInput(3_000);
  const id = await submit(sluice.url, input, { maxConcurrency: 10 });
  const batch = await untilFinal(sluice.url, id);
  await expectExact(sluice.url, batch, input);
  const log = await busy.requests();
  const refused = log.find(({ status }) => status === 429)?.finished_at ?? 0;
  expect(refused).toBeGreaterThan(0);
  // A busy machine hears the refusal late.
  const held = ({ at }: { at: number }) => at > refused + 400 && at < refused + 1_950;
  expect(log.filter(held).map(({ at }) => at - refused)).toEqual([]);
  expect((await other.requests()).filter(held).length).toBeGreaterThan(200);
  expect(log.filter(({ at }) => at >= refused + 1_950).length, 'it is asked again').toBeGreaterThan(
    0,
  );
});

test('x-ratelimit-remaining-requests at 0 keeps lines back until the reset', async () => {
  await using engine = await startStandIn((nth) => ({
    'x-ratelimit-remaining-requests': String(4 - (nth % 5)),
    'x-ratelimit-reset-requests': nth % 5 === 4 ? '700ms' : '6m0s',
  }));
  await using folder = await makeFolder();
  await using sluice = await startSluice({ dataDir: folder.path, engines: [engine.url] });
  const id = await submit(sluice.url, makeInput(15), { maxConcurrency: 1 });
  expect((await untilFinal(sluice.url, id)).status).toBe('completed');
  await sluice.stop();
  const gaps = engine.times.slice(1).map((at, n) => at - (engine.times[n] ?? 0));
  const long = gaps.flatMap((gap, n) => (gap >= 690 ? [n] : []));
  expect(long).toEqual([4, 9]);
});
