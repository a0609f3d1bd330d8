import { afterAll, expect, test } from 'vitest';
import {
  expectExact,
  makeInput,
  say,
  submit,
  untilAnswered,
  untilFinal,
} from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { requireNothingLeft, makeFolder, startSluice } from '../support/server.ts';
import type { Sluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

const LONG = process.env['CHAOS_LONG'] === '1';

test('of two workers on one batch of 20,000 lines one is killed', async () => {
  await using redis = await startRedis();
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 100 });
  await using folder = await makeFolder();
  const shared = { dataDir: folder.path, redisUrl: redis.url, engines: [engine.url] };
  await using first = await startSluice(shared);
  await using second = await startSluice({ ...shared, roles: ['worker'] });
  const input = makeInput(20_000);
  const concurrency = 128;
  const id = await submit(first.url, input, { maxConcurrency: concurrency });
  await untilAnswered(first.url, id, 2_000);

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
  expect(after.repeated).toBeLessThanOrEqual(concurrency + (2_500 / 100) * concurrency);
  expect(Math.max(...Object.values(after.repeated_bodies))).toBe(2);
});

test('workers are killed and started again all the time', { timeout: 600_000 }, async () => {
  await using redis = await startRedis();
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 100 });
  await using folder = await makeFolder();
  const shared = { dataDir: folder.path, redisUrl: redis.url, engines: [engine.url] };
  await using api = await startSluice({ ...shared, roles: ['api', 'sweeper'] });
  const startWorker = () => startSluice({ ...shared, roles: ['worker'] });
  const workers: Sluice[] = await Promise.all([startWorker(), startWorker(), startWorker()]);
  try {
    const deadline = performance.now() + (LONG ? 300_000 : 12_000);
    const jobs: { id: string; input: ReturnType<typeof makeInput> }[] = [];
    let kills = 0;
    while (performance.now() < deadline) {
      const input = makeInput(800 + 300 * (kills % 3), { name: `round${kills}` });
      jobs.push({ id: await submit(api.url, input, { maxConcurrency: 32 }), input });
      await new Promise((resolve) => setTimeout(resolve, 1_500 + 1_000 * Math.random()));
      const index = Math.floor(Math.random() * workers.length);
      await workers[index]?.kill();
      kills += 1;
      workers[index] = await startWorker();
    }
    for (const { id, input } of jobs) {
      const batch = await untilFinal(api.url, id, 60_000);
      expect(batch.status).toBe('completed');
      await expectExact(api.url, batch, input);
    }
    say(`${jobs.length} jobs outlived ${kills} kills`);
    expect(kills).toBeGreaterThan(3);
  } finally {
    await Promise.all(workers.map((worker) => worker[Symbol.asyncDispose]()));
  }
});
