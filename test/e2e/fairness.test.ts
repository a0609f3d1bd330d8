import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import {
  expectExact,
  makeInput,
  openaiClient,
  submit,
  untilAnswered,
  untilFinal,
} from '../support/batch.ts';
import { requireNothingLeft, startSluice } from '../support/server.ts';
import { openSite, submitTo } from '../support/site.ts';
import type { Site } from '../support/site.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

const FIXED = { adaptive_concurrency: false };

let site: Site;
beforeAll(async () => {
  site = await openSite();
});
beforeEach(async () => {
  await site.engine.setConfig({ latency_ms: 0 });
});
afterAll(async () => {
  await site[Symbol.asyncDispose]();
  requireNothingLeft();
});

test('a small job beside one that fills the engine does not wait for it', async () => {
  const { url, engine } = site;
  await engine.setConfig({ latency_ms: 1_000 });
  const client = { ...FIXED };
  const large = makeInput(10_000, { name: 'large' });
  const id = await submit(url, large, { maxConcurrency: 256, client });
  const { request_counts: before } = await untilAnswered(url, id, 512);
  const small = makeInput(20, { name: 'small' });
  const begun = performance.now();
  const beside = await submit(url, small, { maxConcurrency: 256, client });
  const batch = await untilFinal(url, beside, 60_000);
  const ms = performance.now() - begun;
  expect((await engine.counts()).in_flight).toBeGreaterThan(200);
  await expectExact(url, batch, small);
  // Forty rounds of a second are the whole of it; the bench `fairness` says how much longer than alone it takes.
  const now = await untilAnswered(url, id, 512);
  const answered = (now.request_counts?.completed ?? 0) - (before?.completed ?? 0);
  expect(answered, `lines answered within ${Math.round(ms)} ms`).toBeLessThan(5_000);
  expect(now.status).toBe('in_progress');
  await openaiClient(url).batches.cancel(id);
  await untilFinal(url, id);
});

test('aibrix.priority: a job of a higher class is answered first, one of a lower class last', async () => {
  const { url } = site;
  // It runs 16 and refuses more than 32: what the three share is the window that follows from that.
  await using engine = await startVllmProcess({ flags: ['--profile', 'small'] });
  await engine.setConfig({ max_num_seqs: 16, max_num_queued_reqs: 32, speed: 2 });
  const ids: string[] = [];
  for (const priority of ['low', 'normal', 'high'] as const) {
    ids.push(await submitTo(site, engine, makeInput(450, { name: priority }), {}, { priority }));
  }
  const ended: string[] = [];
  await Promise.all(
    ids.map(async (id, at) => {
      const batch = await untilFinal(url, id, 60_000);
      expect(batch.status).toBe('completed');
      ended.push(['low', 'normal', 'high'][at] ?? '');
    }),
  );
  expect(ended).toEqual(['high', 'normal', 'low']);
});

test('more jobs than a process sends at a time take turns: none waits for the end of the others', async () => {
  const { url, engine } = site;
  await engine.setConfig({ latency_ms: 1_000 });
  const large = await Promise.all(
    Array.from({ length: 34 }, async (_, n) =>
      submit(url, makeInput(60, { name: `turns-${n}` }), { maxConcurrency: 2, client: FIXED }),
    ),
  );
  // 60 lines at 2 a time and 1 s are half a minute of work each.
  const answered = await Promise.all(large.map((id) => untilAnswered(url, id, 2, 28_000)));
  expect(answered.map(({ status }) => status)).toEqual(Array(34).fill('in_progress'));
  await engine.setConfig({ latency_ms: 0 });
  for (const id of large) expect((await untilFinal(url, id, 60_000)).status).toBe('completed');
});

test('client.max_concurrency holds for all worker processes together', async () => {
  const { url, folder, redis } = site;
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 200 });
  const shared = { dataDir: folder.path, redisUrl: redis.url, engines: [site.engine.url] };
  await using other = await startSluice({ ...shared, roles: ['worker'], timeoutMs: 60_000 });
  const input = makeInput(2_500, { name: 'bound' });
  const id = await submitTo(site, engine, input, { ...FIXED, max_concurrency: 64 });
  await untilAnswered(url, id, 300);
  const seen: number[] = [];
  await until(
    async () => {
      const counts = await engine.counts();
      seen.push(counts.in_flight);
      return counts.requests > 1_500;
    },
    { what: '1,500 requests', timeoutMs: 60_000 },
  );
  expect(Math.max(...seen), 'lines in flight once both know of each other').toBeLessThanOrEqual(64);
  expect((await engine.counts()).max_in_flight, 'until they do').toBeLessThanOrEqual(96);
  await engine.setConfig({ latency_ms: 0 });
  await expectExact(url, await untilFinal(url, id, 60_000), input);
  await other.stop();
});
