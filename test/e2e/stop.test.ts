import { Redis } from 'ioredis';
import { afterAll, expect, test } from 'vitest';
import { globalKeys, recordKey } from '../../src/store/keys.ts';
import {
  expectExact,
  makeInput,
  openaiClient,
  submit,
  untilAnswered,
  untilFinal,
} from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { requireNothingLeft, makeFolder, startSluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

const CONCURRENCY = 50;

/** From now on the engine answers nothing; resolves when all that is in flight is such a request. */
async function makeSilent(engine: VllmProcess): Promise<void> {
  await engine.setFaults([{ kind: 'hang_headers' }]);
  await until(async () => (await engine.faults())[0]?.hits === CONCURRENCY, {
    what: 'a silent engine',
  });
}

test('cancel in mid-run: what was answered is kept, the rest says batch_cancelled', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 50 });
  await using folder = await makeFolder();
  await using sluice = await startSluice({ dataDir: folder.path, engines: [engine.url] });
  const input = makeInput(5_000);
  const id = await submit(sluice.url, input, { maxConcurrency: CONCURRENCY });
  await untilAnswered(sluice.url, id, 100);
  await makeSilent(engine);

  const cancelled = await openaiClient(sluice.url).batches.cancel(id);
  const begun = performance.now();
  expect(cancelled.status).toBe('cancelling');
  expect(cancelled.cancelling_at).toBeTruthy();
  await until(async () => (await engine.counts()).in_flight === 0, { what: 'aborted requests' });
  expect(performance.now() - begun, 'ms until requests in flight are aborted').toBeLessThan(2_000);

  const batch = await untilFinal(sluice.url, id);
  expect(batch.status).toBe('cancelled');
  const { output, error } = await expectExact(sluice.url, batch, input);
  expect(output.length).toBeGreaterThanOrEqual(100);
  expect(output.length + error.length).toBe(5_000);
  expect(new Set(error.map((line) => line.error?.code))).toEqual(new Set(['batch_cancelled']));
  expect(error[0]?.response).toBeNull();
  // Whatever the engine answered was paid for and is in the output.
  expect((await engine.counts()).by_outcome['answered']).toBe(output.length);
});

test('a job whose deadline is over expires with what was answered', async () => {
  await using redis = await startRedis();
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 50 });
  await using folder = await makeFolder();
  await using sluice = await startSluice({
    dataDir: folder.path,
    engines: [engine.url],
    redisUrl: redis.url,
  });
  const input = makeInput(5_000);
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
