import { Redis } from 'ioredis';
import { afterAll, expect, test } from 'vitest';
import { QUEUE_NAMES } from '../../src/domain/job.ts';
import { queuePrefix } from '../../queues/queues.ts';
import { globalKeys, jobKey, recordKey, shardKey } from '../../src/store/keys.ts';
import { expectExact, makeInput, submit, untilAnswered, untilFinal } from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

const NAMESPACE = 'sluice';

async function keysOf(url: string): Promise<string[]> {
  const redis = new Redis(url);
  try {
    return (await redis.keys('*')).toSorted();
  } finally {
    redis.disconnect();
  }
}

/** Whether BullMQ made the key: all of its keys begin with the prefix of a queue. */
function isQueueKey(key: string): boolean {
  return QUEUE_NAMES.some((queue) => key.startsWith(`${queuePrefix(NAMESPACE, queue)}:`));
}

test('STORE_URI: records are in one Redis, queues in the other, and a killed server goes on', async () => {
  await using queues = await startRedis();
  await using records = await startRedis();
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: 50 });
  await using folder = await makeFolder();
  const options = {
    dataDir: folder.path,
    engines: [engine.url],
    redisUrl: queues.url,
    env: { STORE_URI: records.url },
  };
  const input = makeInput(3_000);
  await using first = await startSluice(options);
  const id = await submit(first.url, input, { maxConcurrency: 40 });
  const { request_counts: counts } = await untilAnswered(first.url, id, 200);
  await first.kill();
  await engine.setConfig({ latency_ms: 0 });
  const { requests } = await engine.counts();

  const jobId = id.replace('batch_', 'job_');
  const { jobs, active, provisions, files, nodes, storage } = globalKeys(NAMESPACE);
  const ours = [jobs, active, provisions, files, nodes, storage];
  const job = [recordKey(jobId), shardKey(jobId, 0), jobKey(jobId, 'SEGMENTS')];
  // In mid-run every kind of key is there; both servers are left as they are for the next process.
  const [inQueues, inRecords] = [await keysOf(queues.url), await keysOf(records.url)];
  expect(inRecords).toEqual(expect.arrayContaining([...ours, ...job]));
  expect(inRecords.filter(isQueueKey), 'keys of queues among the records').toEqual([]);
  expect(inQueues.filter((key) => key.includes(jobId)).length, 'deliveries').toBeGreaterThan(0);
  expect(
    inQueues.filter((key) => !isQueueKey(key)),
    'records among the queues',
  ).toEqual([]);

  await using second = await startSluice(options);
  const batch = await untilFinal(second.url, id, 60_000);
  expect(batch.status).toBe('completed');
  await expectExact(second.url, batch, input);
  expect((await keysOf(records.url)).filter(isQueueKey)).toEqual([]);
  expect((await keysOf(queues.url)).filter((key) => !isQueueKey(key))).toEqual([]);
  const uncommitted = requests - (counts?.completed ?? 0);
  expect((await engine.counts()).repeated, 'asked again').toBeLessThanOrEqual(uncommitted);
});
