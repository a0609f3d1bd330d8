import { Redis } from 'ioredis';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createStore } from '../../src/store/store.ts';
import { expectExact, makeInput, submit, untilFinal } from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { requireNothingLeft, makeFolder, startSluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

let engine: VllmProcess;
beforeAll(async () => {
  engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
});
afterAll(async () => {
  await engine.close();
  requireNothingLeft();
});

test('roles in processes of their own; SIGTERM loses and repeats no line', async () => {
  await using redis = await startRedis();
  await engine.setConfig({ latency_ms: 500 });
  await using folder = await makeFolder();
  const shared = { dataDir: folder.path, redisUrl: redis.url, engines: [engine.url] };
  const queues = ['planning', 'provisioning', 'submission', 'release'];
  const env = { SHUTDOWN_GRACE: '30s' };
  const dispatcher = { ...shared, roles: ['worker'], queues: ['dispatch'], env };
  await using api = await startSluice({ ...shared, roles: ['api'] });
  await using planner = await startSluice({ ...shared, roles: ['worker'], queues });
  await using sweeper = await startSluice({ ...shared, roles: ['sweeper'] });
  await using first = await startSluice(dispatcher);

  const input = makeInput(2_000);
  const id = await submit(api.url, input, { maxConcurrency: 100 });
  await until(async () => (await engine.counts()).requests > 300, {
    what: '300 requests',
    timeoutMs: 60_000,
  });
  const end = await first.stop();
  expect(end).toMatchObject({ code: 0 });
  // What is in flight takes half a second, not the whole grace.
  expect(end.ms, 'ms from SIGTERM to the end').toBeLessThan(20_000);
  const counts = await engine.counts();
  expect(counts.by_outcome).toMatchObject({ aborted: 0, in_flight: 0 });
  expect(counts.requests, 'nothing is sent after SIGTERM').toBeLessThan(2_000);

  await engine.setConfig({ latency_ms: 0 });
  await using second = await startSluice(dispatcher);
  const batch = await untilFinal(api.url, id);
  expect(batch.status).toBe('completed');
  await expectExact(api.url, batch, input);
  const { repeated, distinct_bodies: distinct } = await engine.counts();
  expect({ repeated, distinct }).toEqual({ repeated: 0, distinct: 2_000 });
  for (const each of [second, sweeper, planner, api]) {
    expect(await each.stop()).toMatchObject({ code: 0 });
  }
});

test('lines in flight are cut when the grace is over, and asked again at the next start', async () => {
  await engine.setConfig({ latency_ms: 60_000 });
  const before = (await engine.counts()).by_outcome['aborted'] ?? 0;
  await using redis = await startRedis();
  await using folder = await makeFolder();
  const options = {
    dataDir: folder.path,
    redisUrl: redis.url,
    engines: [engine.url],
    env: { SHUTDOWN_GRACE: '1s' },
  };
  const input = makeInput(200, { name: 'cut' });
  let id = '';
  {
    await using sluice = await startSluice(options);
    // Without an answer nobody knows yet whether more than a few lines are worth sending.
    const client = { adaptive_concurrency: false, on_error_rate: 'continue' };
    id = await submit(sluice.url, input, { maxConcurrency: 200, client });
    await until(async () => (await engine.counts()).in_flight === 200, {
      what: '200 in flight',
      timeoutMs: 60_000,
    });
    const end = await sluice.stop();
    expect(end).toMatchObject({ code: 0 });
    expect(end.ms).toBeGreaterThan(900);
    expect(end.ms).toBeLessThan(15_000);
  }
  const { by_outcome: outcomes } = await engine.counts();
  expect(outcomes).toMatchObject({ aborted: before + 200, in_flight: 0 });
  // Shards were given back, so that nobody has to wait for a lock to run out.
  const client = new Redis(redis.url);
  const { shards } = createStore({ redis: client });
  expect(await shards.held(id.replace('batch_', 'job_'))).toBe(0);
  client.disconnect();

  await engine.setConfig({ latency_ms: 0 });
  await using sluice = await startSluice(options);
  const batch = await untilFinal(sluice.url, id);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
});
