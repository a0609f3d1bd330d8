import { Redis } from 'ioredis';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { globalKeys, recordKey } from '../../src/store/keys.ts';
import {
  expectExact,
  makeInput,
  openaiClient,
  submit,
  untilAnswered,
  untilFinal,
} from '../support/batch.ts';
import { requireNothingLeft } from '../support/server.ts';
import { openSite } from '../support/site.ts';
import type { Site } from '../support/site.ts';
import { until } from '../support/until.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

let site: Site;
beforeAll(async () => {
  site = await openSite();
});
beforeEach(async () => {
  await site.engine.setFaults([]);
  await site.engine.setConfig({ latency_ms: 50 });
});
afterAll(async () => {
  await site[Symbol.asyncDispose]();
  requireNothingLeft();
});

const CONCURRENCY = 50;
const LINES = 4_000;

/** From now on the engine answers nothing; resolves when all that is in flight is such a request. */
async function makeSilent(engine: VllmProcess): Promise<void> {
  await engine.setFaults([{ kind: 'hang_headers' }]);
  await until(async () => (await engine.faults())[0]?.hits === CONCURRENCY, {
    what: 'a silent engine',
    timeoutMs: 60_000,
  });
}

test('cancel in mid-run: what was answered is kept, the rest says batch_cancelled', async () => {
  const { engine, sluice } = site;
  const input = makeInput(LINES);
  const id = await submit(sluice.url, input, { maxConcurrency: CONCURRENCY });
  await untilAnswered(sluice.url, id, 100);
  await makeSilent(engine);

  const cancelled = await openaiClient(sluice.url).batches.cancel(id);
  expect(cancelled.status).toBe('cancelling');
  expect(cancelled.cancelling_at).toBeTruthy();
  await until(async () => (await engine.counts()).in_flight === 0, {
    what: 'aborted requests',
    timeoutMs: 30_000,
  });

  const batch = await untilFinal(sluice.url, id);
  expect(batch.status).toBe('cancelled');
  const { output, error } = await expectExact(sluice.url, batch, input);
  expect(output.length).toBeGreaterThanOrEqual(100);
  expect(output.length + error.length).toBe(LINES);
  expect(new Set(error.map((line) => line.error?.code))).toEqual(new Set(['batch_cancelled']));
  expect(error[0]?.response).toBeNull();
  // Whatever the engine answered was paid for and is in the output.
  expect((await engine.counts()).by_outcome['answered']).toBe(output.length);
});

test('a job whose deadline is over expires with what was answered', async () => {
  const { engine, sluice, redis } = site;
  const input = makeInput(LINES, { name: 'late' });
  const id = await submit(sluice.url, input, { maxConcurrency: CONCURRENCY });
  await untilAnswered(sluice.url, id, 100);
  await makeSilent(engine);

  // The shortest completion window is a minute: the test moves the deadline instead.
  const jobId = id.replace('batch_', 'job_');
  const client = new Redis(redis.url);
  const deadline = Date.now() + 500;
  await client.hset(recordKey(jobId), 'deadline', deadline);
  await client.zadd(globalKeys('sluice').deadlines, deadline, jobId);
  client.disconnect();

  const batch = await untilFinal(sluice.url, id);
  expect(batch.status).toBe('expired');
  expect(batch.expired_at).toBeTruthy();
  const { output, error } = await expectExact(sluice.url, batch, input);
  expect(output.length).toBeGreaterThanOrEqual(100);
  expect(new Set(error.map((line) => line.error?.code))).toEqual(new Set(['batch_expired']));
  expect((await engine.counts()).in_flight).toBe(0);
});
