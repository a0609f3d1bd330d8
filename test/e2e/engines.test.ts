import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  expectExact,
  makeInput,
  readJob,
  submit,
  untilAnswered,
  untilFinal,
} from '../support/batch.ts';
import { requireNothingLeft, makeFolder, startSluice } from '../support/server.ts';
import { openSite, submitTo } from '../support/site.ts';
import type { Site } from '../support/site.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

/** Of two engines. */
let site: Site;
beforeAll(async () => {
  site = await openSite({ count: 2 });
});
afterAll(async () => {
  await site[Symbol.asyncDispose]();
  requireNothingLeft();
});

test('a job waits for an engine that is down, says so, and completes when it comes up', async () => {
  const gone = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await gone.close();
  const { sluice } = site;
  const input = makeInput(50);
  const id = await submitTo(site, gone, input);

  const waiting = await until(
    async () => {
      const job = await readJob(sluice.url, id);
      return job.error_message === '' ? undefined : job;
    },
    { what: 'a reason', timeoutMs: 30_000 },
  );
  expect(waiting.status).toBe('submitting');
  expect(waiting.error_message).toMatch(/127\.0\.0\.1:\d+ does not answer: .*ECONNREFUSED/);

  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'], port: gone.port });
  const batch = await untilFinal(sluice.url, id);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
  expect((await engine.counts()).repeated).toBe(0);
  expect((await readJob(sluice.url, id)).error_message).toBe('');
});

test('with other ENGINE_URLS at the next start an unfinished job moves on to the new engine', async () => {
  await using first = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await first.setConfig({ latency_ms: 200 });
  await using folder = await makeFolder();
  const input = makeInput(1_000);
  const options = { dataDir: folder.path };
  let id = '';
  {
    await using sluice = await startSluice({ ...options, engines: [first.url] });
    id = await submit(sluice.url, input, { maxConcurrency: 50 });
    await until(async () => (await first.counts()).requests > 200, {
      what: '200 requests',
      timeoutMs: 60_000,
    });
    expect(await sluice.stop()).toMatchObject({ code: 0 });
  }
  const asked = await first.counts();
  await first.close();

  await using second = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await using sluice = await startSluice({ ...options, engines: [second.url] });
  const batch = await untilFinal(sluice.url, id);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
  const rest = await second.counts();
  expect(rest.requests + (asked.by_outcome['answered'] ?? 0)).toBe(1_000);
});

test('two engines share a job, and one that dies leaves its lines to the other', async () => {
  const [first, second] = site.engines;
  if (first === undefined || second === undefined) throw new Error('two engines');
  await Promise.all([first, second].map((engine) => engine.setConfig({ latency_ms: 50 })));
  const { url } = site;
  const input = makeInput(2_000, { name: 'shared' });
  const id = await submit(url, input, { maxConcurrency: 25 });
  await untilAnswered(url, id, 1);
  expect((await second.counts()).requests).toBeGreaterThan(0);
  await first.kill('SIGKILL');
  await second.setConfig({ latency_ms: 0 });
  const batch = await untilFinal(url, id, 60_000);
  expect(batch.status).toBe('completed');
  const { error } = await expectExact(url, batch, input);
  expect(error).toEqual([]);
});

test('an engine of every kind of trouble still answers each line once', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setFaults([
    { kind: 'status', status: 500, rate: 0.05 },
    { kind: 'status', status: 429, retry_after: 0.1, rate: 0.05 },
    { kind: 'reset', rate: 0.03 },
    { kind: 'reset', at: 'body', rate: 0.03 },
    { kind: 'truncate', rate: 0.03 },
    { kind: 'content_type', rate: 0.03 },
  ]);
  const input = makeInput(500, { name: 'trouble' });
  const client = { retry_policy: { base_delay_seconds: 0.02, max_delay_seconds: 0.2 } };
  const id = await submitTo(site, engine, input, client);
  const batch = await untilFinal(site.url, id, 60_000);
  expect(batch.status).toBe('completed');
  const { error } = await expectExact(site.url, batch, input);
  // Eleven attempts at a fifth of faults leave none unanswered.
  expect(error).toEqual([]);
  expect((await engine.counts()).answered_again).toBe(0);
});
