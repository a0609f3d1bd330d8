import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, expect, test } from 'vitest';
import {
  expectExact,
  makeInput,
  say,
  submit,
  untilAnswered,
  untilFinal,
} from '../support/batch.ts';
import { chaosRandom, cleanOutput, expectUnharmed, LONG, openRedis } from '../support/chaos.ts';
import { startRedis } from '../support/redis.ts';
import { requireNothingLeft, makeFolder, startSluice } from '../support/server.ts';
import type { Sluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

/** So long that the lines which a worker has in hand last for longer than a lock. */
const LATENCY_MS = 1_500;

test('one of two workers is killed while the other has enough to do', async () => {
  await using redis = await startRedis();
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: LATENCY_MS });
  await using folder = await makeFolder();
  const shared = { dataDir: folder.path, redisUrl: redis.url, engines: [engine.url] };
  await using first = await startSluice(shared);
  await using second = await startSluice({ ...shared, roles: ['worker'] });
  const input = makeInput(20_000);
  const concurrency = 128;
  const id = await submit(first.url, input, { maxConcurrency: concurrency });
  await untilAnswered(first.url, id, 500);

  const before = await engine.counts();
  await second.kill();
  const killedAt = performance.now();
  // What was in flight of the killed process is cut at once; from then on only takeovers repeat a body.
  const repeated = async () => (await engine.counts()).repeated;
  await until(async () => (await repeated()) > before.repeated, {
    timeoutMs: 30_000,
    what: 'the takeover',
  });
  const takeover = performance.now() - killedAt;
  await engine.setConfig({ latency_ms: 20 });
  const batch = await untilFinal(first.url, id, 60_000);
  const total = performance.now() - killedAt;

  say(`takeover ${Math.round(takeover)} ms, end ${Math.round(total)} ms after the kill`);
  expect(batch.status).toBe('completed');
  await expectExact(first.url, batch, input);
  expect(takeover).toBeLessThan(12_000);
  expect(total).toBeLessThan(30_000);
  const after = await engine.counts();
  expect(after.distinct_bodies).toBe(20_000);
  // Uncommitted were what it had in flight and the answers of an open segment, which is two seconds at most.
  expect(after.repeated).toBeLessThanOrEqual(concurrency + (2_500 / LATENCY_MS) * concurrency);
  expect(Math.max(...Object.values(after.repeated_bodies))).toBe(2);
});

test('workers are killed at random moments of a whole run', { timeout: 600_000 }, async () => {
  const random = chaosRandom();
  await using redis = await startRedis();
  await using store = openRedis(redis.url);
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 100 });
  await using folder = await makeFolder();
  const shared = { dataDir: folder.path, redisUrl: redis.url, engines: [engine.url] };
  await using api = await startSluice({ ...shared, roles: ['api', 'sweeper'] });
  const startWorker = () => startSluice({ ...shared, roles: ['worker'] });
  const workers: Sluice[] = await Promise.all([startWorker(), startWorker()]);
  try {
    const input = makeInput(LONG ? 60_000 : 2_000);
    const id = await submit(api.url, input, { maxConcurrency: 32 });
    const over = untilFinal(api.url, id, 900_000);
    let isOver = false;
    void over.then(() => (isOver = true));
    const inFlight: number[] = [];
    while (!isOver) {
      await sleep(500 + 2_000 * random());
      const index = Math.floor(random() * workers.length);
      inFlight.push((await engine.counts()).in_flight);
      await workers[index]?.kill();
      workers[index] = await startWorker();
    }
    const batch = await over;
    const askedTwice = (await engine.counts()).requests - input.customIds.length;
    const clean = await cleanOutput(api.url, engine, input);
    await expectUnharmed(
      { url: api.url, batch, input, dataDir: folder.path, redis: store.client, clean },
      { name: 'random kills', kills: inFlight.length, askedTwice },
    );
    const hits = inFlight.filter((lines) => lines > 0).length;
    say(`in flight at the kills: ${inFlight.join(', ')}`);
    expect(hits, 'kills while lines were in flight').toBeGreaterThanOrEqual(LONG ? 30 : 3);
  } finally {
    await Promise.all(workers.map((worker) => worker[Symbol.asyncDispose]()));
  }
});

test('two workers are restarted in turn, again and again, and no line is asked twice', async () => {
  await using redis = await startRedis();
  await using store = openRedis(redis.url);
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 100 });
  await using folder = await makeFolder();
  const shared = { dataDir: folder.path, redisUrl: redis.url, engines: [engine.url] };
  await using api = await startSluice({ ...shared, roles: ['api', 'sweeper'] });
  const startWorker = () => startSluice({ ...shared, roles: ['worker'] });
  const workers: Sluice[] = await Promise.all([startWorker(), startWorker()]);
  try {
    const restarts = LONG ? 30 : 3;
    const input = makeInput(restarts * 600);
    const id = await submit(api.url, input, { maxConcurrency: 32 });
    for (let n = 0; n < restarts; n += 1) {
      const { requests } = await engine.counts();
      await until(async () => (await engine.counts()).requests > requests + 100);
      expect((await engine.counts()).in_flight, 'in the middle of the run').toBeGreaterThan(0);
      expect((await workers[n % 2]?.stop())?.code).toBe(0);
      workers[n % 2] = await startWorker();
    }
    const batch = await untilFinal(api.url, id, 120_000);
    const askedTwice = (await engine.counts()).requests - input.customIds.length;
    const clean = await cleanOutput(api.url, engine, input);
    await expectUnharmed(
      { url: api.url, batch, input, dataDir: folder.path, redis: store.client, clean },
      { name: 'rolling restarts', kills: restarts, askedTwice, mayLeave: 0 },
    );
    expect(askedTwice).toBe(0);
  } finally {
    await Promise.all(workers.map((worker) => worker[Symbol.asyncDispose]()));
  }
});
