import { createServer } from 'node:http';
import type { ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { expectExact, makeInput, requestLine, say, submit, untilFinal } from '../support/batch.ts';
import type { Input } from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { restartRedis } from '../support/redis-again.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { openSite, submitTo } from '../support/site.ts';
import type { Site } from '../support/site.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

const FLAGS = ['--profile', 'zero', '--set', 'log=full'];
const PATIENT = { timeoutMs: 60_000 };

let site: Site;
beforeAll(async () => {
  site = await openSite({ count: 2, flags: FLAGS });
});
afterAll(async () => {
  await site[Symbol.asyncDispose]();
  requireNothingLeft();
});

/** When the engines were asked, ms, in order. */
async function askedAt(...engines: readonly VllmProcess[]): Promise<number[]> {
  const logs = await Promise.all(engines.map((engine) => engine.requests()));
  return logs
    .flat()
    .map(({ at }) => at)
    .toSorted((a, b) => a - b);
}

/** How many a second there are from a second after the first to the last. */
function rateOf(times: readonly number[]): number {
  const later = times.filter((at) => at >= (times[0] ?? 0) + 1_000);
  const ms = (later.at(-1) ?? 0) - (later[0] ?? 0);
  return ((later.length - 1) * 1_000) / ms;
}

/** Tells a limit from half and from twice of it; the bench `limits` holds rates to 2 % over a minute. */
function expectWithin(rate: number, limit: number): void {
  say(`${rate.toFixed(1)} a second under a limit of ${limit.toFixed(1)}`);
  expect(rate).toBeLessThan(limit * 1.35);
  expect(rate).toBeGreaterThan(limit * 0.6);
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

/** Tests that wait far more than they work wait together. */
describe.concurrent('limits', () => {
  test('client.requests_per_second: two worker processes together keep to it', async () => {
    await using redis = await startRedis();
    await using engine = await startVllmProcess({ flags: FLAGS });
    await using folder = await makeFolder();
    const shared = { dataDir: folder.path, redisUrl: redis.url, engines: [engine.url], ...PATIENT };
    await using first = await startSluice({ ...shared, env: { LOG_LEVEL: 'debug' } });
    const roles = { roles: ['worker'], queues: ['dispatch'], env: { LOG_LEVEL: 'debug' } };
    await using second = await startSluice({ ...shared, ...roles });
    const client = { requests_per_second: 300 };
    const id = await submit(first.url, makeInput(2_000), { maxConcurrency: 64, client });
    expect((await untilFinal(first.url, id, 60_000)).status).toBe('completed');
    expectWithin(rateOf(await askedAt(engine)), 300);
    expect((await engine.counts()).repeated).toBe(0);
    for (const each of [first, second]) {
      const worked = each
        .logs()
        .some(({ msg, queue }) => msg === 'attempt' && queue === 'dispatch');
      expect(worked, 'both send').toBe(true);
    }
  });

  test.each([
    ['ENGINE', 'each engine', 2],
    ['KEY', 'all engines of a key together', 1],
  ] as const)(
    '%s_REQUESTS_PER_SECOND and _TOKENS_PER_MINUTE hold for %s',
    async (whose, _what, shares) => {
      const [requests, tokens] = [40, 3_000];
      const env = {
        ENGINE_API_KEY: 'hush',
        [`${whose}_REQUESTS_PER_SECOND`]: `${requests}`,
        [`${whose}_TOKENS_PER_MINUTE`]: `${tokens * 60}`,
      };
      await using own = await openSite({ count: 2, flags: FLAGS, env });
      const groups = shares === 1 ? [own.engines] : own.engines.map((engine) => [engine]);
      const before = await Promise.all(groups.map((group) => askedAt(...group)));
      expect(before.flat()).toEqual([]);

      // Short lines come to the requests first, long ones to the tokens: what usage says counts.
      const short = await submit(own.url, makeInput(160 * shares, { name: 'short' }));
      expect((await untilFinal(own.url, short, 60_000)).status).toBe('completed');
      const first = await Promise.all(groups.map((group) => askedAt(...group)));
      for (const times of first) expectWithin(rateOf(times), requests);
      const long = makeInput(45 * shares, { name: 'long', padding: 1_200 });
      const batch = await untilFinal(own.url, await submit(own.url, long), 60_000);
      expect(batch.status).toBe('completed');
      const each = (batch.usage?.total_tokens ?? 0) / long.customIds.length;
      const all = await Promise.all(groups.map((group) => askedAt(...group)));
      for (const [n, times] of all.entries()) {
        expectWithin(rateOf(times.slice(first[n]?.length)) * each, tokens);
      }
    },
  );

  test('client.tokens_per_minute: what usage says counts', async () => {
    await using engine = await startVllmProcess({ flags: FLAGS });
    const id = await submitTo(site, engine, talkative(110, 16), { tokens_per_minute: 600 * 60 });
    const batch = await untilFinal(site.url, id, 60_000);
    expect(batch.status).toBe('completed');
    const each = (batch.usage?.total_tokens ?? 0) / 110;
    expectWithin(rateOf(await askedAt(engine)) * each, 600);
  });

  test('an estimate that was too high gives tokens back', async () => {
    await using engine = await startStandIn(() => ({}));
    // By their estimates these would take a minute: 600 tokens each, of which they use ten.
    const client = { tokens_per_minute: 60_000, max_concurrency: 16 };
    const id = await submitTo(site, engine, talkative(100, 600), client);
    expect((await untilFinal(site.url, id, 60_000)).status).toBe('completed');
    const seconds = ((engine.times.at(-1) ?? 0) - (engine.times[0] ?? 0)) / 1_000;
    say(`100 lines of 10 tokens in ${seconds.toFixed(1)} s at 1,000 tokens a second`);
    expect(seconds).toBeLessThan(30);
    expect(seconds).toBeGreaterThan(0.5);
  });

  test('while Redis is away nothing goes out unlimited; then the job goes on', async () => {
    await using own = await openSite({ flags: FLAGS });
    const input = makeInput(350);
    const id = await submit(own.url, input, { client: { requests_per_second: 100 } });
    const asked = async () => (await askedAt(own.engine)).length > 50;
    await until(asked, { what: 'fifty requests', timeoutMs: 30_000 });
    await own.redis.kill();
    const killed = Date.now();
    await sleep(1_500);
    const late = (await askedAt(own.engine)).filter((at) => at > killed);
    // What was in hand: a block, and what was on its way. The limit alone would let 150 go.
    expect(late.length).toBeLessThan(60);
    await using _again = restartRedis(own.redis);
    const batch = await untilFinal(own.url, id, 60_000);
    expect(batch.status).toBe('completed');
    await expectExact(own.url, batch, input);
  });

  test('Retry-After of a 429 keeps every line from that engine, not from another', async () => {
    const [busy, other] = site.engines;
    if (busy === undefined || other === undefined) throw new Error('two engines');
    for (const engine of [busy, other]) await engine.setConfig({ latency_ms: 20 });
    await busy.setFaults([{ kind: 'status', status: 429, retry_after: 2, count: 1, after: 30 }]);
    const input = makeInput(1_500);
    const id = await submit(site.url, input, { maxConcurrency: 10 });
    const batch = await untilFinal(site.url, id, 60_000);
    await expectExact(site.url, batch, input);
    const log = await busy.requests();
    const refused = log.find(({ status }) => status === 429)?.finished_at ?? 0;
    expect(refused).toBeGreaterThan(0);
    // A busy machine hears the refusal late.
    const held = ({ at }: { at: number }) => at > refused + 700 && at < refused + 1_950;
    expect(log.filter(held).map(({ at }) => at - refused)).toEqual([]);
    expect((await other.requests()).filter(held).length).toBeGreaterThan(20);
    const again = log.filter(({ at }) => at >= refused + 1_950);
    expect(again.length, 'it is asked again').toBeGreaterThan(0);
  });

  test('x-ratelimit-remaining-requests at 0 keeps lines back until the reset', async () => {
    await using engine = await startStandIn((nth) => ({
      'x-ratelimit-remaining-requests': String(4 - (nth % 5)),
      'x-ratelimit-reset-requests': nth % 5 === 4 ? '700ms' : '6m0s',
    }));
    const id = await submitTo(site, engine, makeInput(15), { max_concurrency: 1 });
    expect((await untilFinal(site.url, id, 60_000)).status).toBe('completed');
    const gaps = engine.times.slice(1).map((at, n) => at - (engine.times[n] ?? 0));
    for (const n of [4, 9]) expect(gaps[n]).toBeGreaterThanOrEqual(690);
    // Most others are milliseconds; a busy machine may stand still for a moment.
    const others = gaps.filter((_gap, n) => n !== 4 && n !== 9);
    expect(others.toSorted((a, b) => a - b)[6]).toBeLessThan(690);
  });
});
