import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Redis } from 'ioredis';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { queuePrefix } from '../../queues/queues.ts';
import { QUEUE_NAMES } from '../../src/domain/job.ts';
import {
  expectExact,
  makeInput,
  say,
  submit,
  untilAnswered,
  untilBatch,
  untilFinal,
} from '../support/batch.ts';
import { LONG } from '../support/chaos.ts';
import { restartRedis } from '../support/redis-again.ts';
import { startRedis } from '../support/redis.ts';
import { requireNothingLeft, makeFolder, startSluice } from '../support/server.ts';
import { openSite } from '../support/site.ts';
import type { Site } from '../support/site.ts';
import { startSwallowingProxy } from '../support/swallowing-proxy.ts';

const LINES = LONG ? 4_000 : 1_600;
const CONCURRENCY = 64;
/** So slow that there are several commits, which are two seconds apart. */
const LATENCY_MS = 200;

let site: Site;
beforeAll(async () => {
  site = await openSite();
});
afterAll(async () => {
  await site[Symbol.asyncDispose]();
  requireNothingLeft();
});

async function flushQueues(client: Redis): Promise<number> {
  let flushed = 0;
  for (const queue of QUEUE_NAMES) {
    const keys = await client.keys(`${queuePrefix('sluice', queue)}:*`);
    if (keys.length > 0) flushed += await client.del(...keys);
  }
  return flushed;
}

test("all jobs complete though BullMQ's keys are flushed in mid-run", async () => {
  const { store, engine, sluice } = site;
  await engine.setConfig({ latency_ms: LATENCY_MS });
  const inputs = [600, 1_200, 300].map((count, n) => makeInput(count, { name: `flushed${n}` }));
  const jobs: { id: string; input: (typeof inputs)[number] }[] = [];
  for (const input of inputs) {
    jobs.push({ id: await submit(sluice.url, input, { maxConcurrency: 96 }), input });
  }
  const [first] = jobs;
  await untilAnswered(sluice.url, first?.id ?? '', 1, 60_000);
  expect(await flushQueues(store)).toBeGreaterThan(0);
  // One more while nothing but the flush has happened, and a second flush under it.
  const late = makeInput(50, { name: 'late' });
  jobs.push({ id: await submit(sluice.url, late), input: late });
  await flushQueues(store);
  await engine.setConfig({ latency_ms: 1 });
  const flushedAt = performance.now();

  for (const { id, input } of jobs) {
    const batch = await untilFinal(sluice.url, id, 120_000);
    expect(batch.status).toBe('completed');
    await expectExact(sluice.url, batch, input);
  }
  say(`all complete ${Math.round(performance.now() - flushedAt)} ms after the flush`);
});

test('the embedded Redis is killed twice in mid-run', async () => {
  const { engine } = site;
  await engine.setConfig({ latency_ms: LATENCY_MS });
  await using folder = await makeFolder();
  await using sluice = await startSluice({ dataDir: folder.path, engines: [engine.url] });
  const input = makeInput(LINES, { name: 'embedded' });
  const { repeated } = await engine.counts();
  const id = await submit(sluice.url, input, { maxConcurrency: CONCURRENCY });
  let answered = 0;
  for (let kill = 0; kill < 2; kill += 1) {
    const { request_counts: counts } = await untilAnswered(sluice.url, id, answered + 1, 60_000);
    answered = counts?.completed ?? 0;
    const pid = Number(await readFile(join(folder.path, 'redis', 'redis.pid'), 'utf8'));
    process.kill(pid, 'SIGKILL');
  }
  await engine.setConfig({ latency_ms: 1 });
  const batch = await untilFinal(sluice.url, id, 120_000);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
  expect((await engine.counts()).repeated).toBe(repeated);
  expect(await sluice.stop()).toMatchObject({ code: 0 });
});

/** Follows a batch to its end, and tells for how long at most nothing of it changed. */
async function watch(url: string, id: string) {
  const begun = performance.now();
  let changedAt = begun;
  let longestMs = 0;
  let last = '';
  const batch = await untilBatch(
    url,
    id,
    (now) => {
      const at = performance.now();
      const seen = JSON.stringify(now);
      if (seen !== last) changedAt = at;
      last = seen;
      longestMs = Math.max(longestMs, at - changedAt);
      return now.status === 'completed';
    },
    { timeoutMs: 120_000, what: 'completed' },
  );
  return { batch, longestMs, totalMs: performance.now() - begun };
}

test('the reply of every command is lost once', async () => {
  await using redis = await startRedis();
  await using folder = await makeFolder();
  const { engine } = site;
  await engine.setConfig({ latency_ms: 0 });
  const proxy = await startSwallowingProxy(redis);
  try {
    await using sluice = await startSluice({
      dataDir: folder.path,
      redisUrl: `redis://${proxy.host}:${proxy.port}`,
      engines: [engine.url],
    });
    const input = makeInput(LINES, { name: 'swallowed' });
    const { repeated } = await engine.counts();
    proxy.swallowEach();
    const id = await submit(sluice.url, input);
    const { batch, longestMs, totalMs } = await watch(sluice.url, id);
    const times = `complete after ${Math.round(totalMs)} ms, stood still ${Math.round(longestMs)} ms`;
    say(`${proxy.swallowed.size} replies lost, ${times} at most`);
    expect(batch.status).toBe('completed');
    await expectExact(sluice.url, batch, input);
    expect(proxy.swallowed.size).toBeGreaterThan(15);
    expect((await engine.counts()).repeated).toBe(repeated);
    // A delivery whose reply is lost is taken by nobody until its lock of 6 s is found stalled, within 2 s. What is
    // tried again ever later would stand still for 30 s.
    expect(longestMs).toBeLessThan(25_000);
  } finally {
    await proxy.close();
  }
});

test("the user's own Redis is killed and started again", async () => {
  const { redis, engine, sluice } = site;
  await engine.setConfig({ latency_ms: LATENCY_MS });
  const input = makeInput(LINES, { name: 'own' });
  const { repeated } = await engine.counts();
  const id = await submit(sluice.url, input, { maxConcurrency: CONCURRENCY });
  await untilAnswered(sluice.url, id, 1, 60_000);
  await redis.kill();
  // While Redis is away the API says so instead of hanging.
  const answer = await fetch(`${sluice.url}/v1/batches/${id}`);
  expect(answer.status).toBe(503);
  await using again = restartRedis(redis);
  await engine.setConfig({ latency_ms: 1 });
  const batch = await untilFinal(sluice.url, id, 120_000);
  expect(again).toBeDefined();
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
  expect((await engine.counts()).repeated).toBe(repeated);
});
