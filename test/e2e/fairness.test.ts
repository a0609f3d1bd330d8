import { afterAll, expect, test } from 'vitest';
import { expectExact, makeInput, submit, untilAnswered, untilFinal } from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

const FIXED = { adaptive_concurrency: false };

test('a small job beside one that fills the engine takes at most twice its time alone', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 1_000 });
  await using folder = await makeFolder();
  await using sluice = await startSluice({ dataDir: folder.path, engines: [engine.url] });
  async function msOfSmallJob(name: string): Promise<number> {
    const input = makeInput(20, { name });
    const begun = performance.now();
    const id = await submit(sluice.url, input, { maxConcurrency: 256, client: FIXED });
    const batch = await untilFinal(sluice.url, id);
    const ms = performance.now() - begun;
    await expectExact(sluice.url, batch, input);
    return ms;
  }
  const alone = await msOfSmallJob('alone');
  const large = makeInput(20_000, { name: 'large' });
  const id = await submit(sluice.url, large, { maxConcurrency: 256, client: FIXED });
  await untilAnswered(sluice.url, id, 512);
  const beside = await msOfSmallJob('beside');
  expect(beside, `ms, alone ${Math.round(alone)}`).toBeLessThan(2 * alone);
  expect((await engine.counts()).in_flight).toBeGreaterThan(200);
});

test('aibrix.priority: a job of a higher class is answered first, one of a lower class last', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'small'] });
  // It runs 16 and refuses more than 32: what the three share is the window that follows from that.
  await engine.setConfig({ max_num_seqs: 16, max_num_queued_reqs: 32, speed: 2 });
  await using folder = await makeFolder();
  await using sluice = await startSluice({ dataDir: folder.path, engines: [engine.url] });
  const ids: string[] = [];
  for (const priority of ['low', 'normal', 'high'] as const) {
    ids.push(await submit(sluice.url, makeInput(800, { name: priority }), { priority }));
  }
  const ended: string[] = [];
  await Promise.all(
    ids.map(async (id, at) => {
      const batch = await untilFinal(sluice.url, id, 60_000);
      expect(batch.status).toBe('completed');
      ended.push(['low', 'normal', 'high'][at] ?? '');
    }),
  );
  expect(ended).toEqual(['high', 'normal', 'low']);
});

test('more jobs than a process sends at a time take turns: none waits for the end of the others', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 1_000 });
  await using folder = await makeFolder();
  await using sluice = await startSluice({ dataDir: folder.path, engines: [engine.url] });
  const large = await Promise.all(
    Array.from({ length: 34 }, async (_, n) =>
      submit(sluice.url, makeInput(100, { name: `large-${n}` }), {
        maxConcurrency: 2,
        client: FIXED,
      }),
    ),
  );
  // 100 lines at 2 a time and 1 s are 50 s of work each.
  const answered = await Promise.all(large.map((id) => untilAnswered(sluice.url, id, 2, 20_000)));
  expect(answered.map(({ status }) => status)).toEqual(Array(34).fill('in_progress'));
  await engine.setConfig({ latency_ms: 0 });
  for (const id of large)
    expect((await untilFinal(sluice.url, id, 60_000)).status).toBe('completed');
});

test('client.max_concurrency holds for all worker processes together', async () => {
  await using redis = await startRedis();
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 200 });
  await using folder = await makeFolder();
  const shared = { dataDir: folder.path, redisUrl: redis.url, engines: [engine.url] };
  await using sluice = await startSluice(shared);
  await using other = await startSluice({ ...shared, roles: ['worker'] });
  await other.untilLogged('Sluice is up');
  const input = makeInput(4_000);
  const id = await submit(sluice.url, input, { maxConcurrency: 64, client: FIXED });
  await untilAnswered(sluice.url, id, 500);
  const seen: number[] = [];
  await until(
    async () => {
      const counts = await engine.counts();
      seen.push(counts.in_flight);
      return counts.requests > 2_500;
    },
    { what: '2,500 requests', timeoutMs: 30_000 },
  );
  expect(Math.max(...seen), 'lines in flight once both know of each other').toBeLessThanOrEqual(64);
  expect((await engine.counts()).max_in_flight, 'until they do').toBeLessThanOrEqual(96);
  await engine.setConfig({ latency_ms: 0 });
  await expectExact(sluice.url, await untilFinal(sluice.url, id), input);
});
