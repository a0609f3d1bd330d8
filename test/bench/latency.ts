import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { createRunClient } from '../../src/main/run-client.ts';
import { startRedis } from '../support/redis.ts';
import { startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import { chatInput } from './chat-input.ts';
import { percentile, round, runTimedJob } from './timed-job.ts';

const RUNS = 40;
const ENGINES = [0, 1_000] as const;

/** A job of 20 lines, again and again: how long from POST to completed, beside what the engine itself needs. */
export async function benchLatency({ json }: { json: boolean }): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'sluice-bench-'));
  try {
    await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
    await using redis = await startRedis({ appendfsync: 'always' });
    await using server = await startSluice({
      dataDir: join(folder, 'data'),
      engines: [engine.url],
      redisUrl: redis.url,
    });
    const client = new Redis(redis.url);
    const input = join(folder, 'input.jsonl');
    await writeFile(input, chatInput(20));
    const results = [];
    for (const latency of ENGINES) {
      await engine.setConfig({ latency_ms: latency });
      const totals: number[] = [];
      for (let n = 0; n < (latency === 0 ? RUNS : RUNS / 4); n += 1) {
        const fileId = await createRunClient(server.url).upload(input);
        const times = await runTimedJob({ url: server.url, fileId, redis: client });
        totals.push(times.total * 1_000);
      }
      results.push({
        engine_ms: latency,
        p50_ms: round(percentile(totals, 0.5), 1),
        p95_ms: round(percentile(totals, 0.95), 1),
        worst_ms: round(Math.max(...totals), 1),
      });
    }
    client.disconnect();
    const result = { bench: 'latency', lines: 20, runs: results };
    console.log(json ? JSON.stringify(result) : result);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
