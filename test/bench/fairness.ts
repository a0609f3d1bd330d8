import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { createRunClient } from '../../src/main/run-client.ts';
import { recordKey } from '../../src/store/keys.ts';
import { startRedis } from '../support/redis.ts';
import { startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import { chatInput } from './chat-input.ts';
import { median, round, runTimedJob, startJob } from './timed-job.ts';

const SLOTS = 256;
const RUNS = 7;
const WINDOW = { max_concurrency: SLOTS, adaptive_concurrency: false };

/**
 * A job of 20 lines beside one of a million that fills an engine of 256 slots and one second an answer, against its time
 * alone. Both have the same concurrency.
 */
export async function benchFairness({ json }: { json: boolean }): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'sluice-bench-'));
  try {
    await using engine = await startVllmProcess({
      flags: ['--profile', 'zero', '--set', 'log=off'],
    });
    await engine.setConfig({ latency_ms: 1_000 });
    await using redis = await startRedis({ appendfsync: 'always' });
    await using server = await startSluice({
      dataDir: join(folder, 'data'),
      engines: [engine.url],
      redisUrl: redis.url,
      env: { MAX_BATCH_LINES: '1000000', MAX_FILE_BYTES: '2GiB', MAX_BATCH_FILE_BYTES: '2GiB' },
    });
    const client = new Redis(redis.url);
    const [small, large] = [join(folder, 'small.jsonl'), join(folder, 'large.jsonl')];
    await writeFile(small, chatInput(20));
    await writeFile(large, chatInput(1_000_000, 40));
    async function runSmall(): Promise<number> {
      const fileId = await createRunClient(server.url).upload(small);
      const job = { url: server.url, fileId, redis: client, client: WINDOW };
      return (await runTimedJob(job)).total * 1_000;
    }
    const alone: number[] = [];
    for (let n = 0; n < RUNS; n += 1) alone.push(await runSmall());
    const fileId = await createRunClient(server.url).upload(large);
    const id = await startJob({ url: server.url, fileId, redis: client, client: WINDOW });
    while (Number(await client.hget(recordKey(id), 'completed')) < 2 * SLOTS) await sleep(100);
    const beside: number[] = [];
    for (let n = 0; n < RUNS; n += 1) beside.push(await runSmall());
    client.disconnect();
    const result = {
      bench: 'fairness',
      alone_ms: round(median(alone), 0),
      beside_ms: round(median(beside), 0),
      beside_worst_ms: round(Math.max(...beside), 0),
      ratio: round(median(beside) / median(alone), 2),
    };
    console.log(json ? JSON.stringify(result) : result);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
