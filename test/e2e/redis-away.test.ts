import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { expectExactLines, makeInput, parseLines, submit } from '../support/batch.ts';
import { restartRedis } from '../support/redis-again.ts';
import { startRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, spawnCli, startSluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

let engine: VllmProcess;
beforeAll(async () => {
  engine = await startVllmProcess({ flags: ['--profile', 'zero', '--set', 'latency_ms=100'] });
});
afterAll(async () => {
  await engine.close();
  requireNothingLeft();
});

test('sluice run goes on when a Redis that was away for seconds is back', async () => {
  await using redis = await startRedis();
  await using folder = await makeFolder();
  const input = makeInput(1_500);
  const [from, to] = [join(folder.path, 'in.jsonl'), join(folder.path, 'out.jsonl')];
  await writeFile(from, input.text);
  const args = ['run', '-i', from, '-o', to, '-e', engine.url];
  await using cli = spawnCli(args, { DATA_DIR: folder.path, REDIS_URL: redis.url });
  await until(async () => (await engine.counts()).requests > 100, {
    what: 'the first lines',
    timeoutMs: 60_000,
  });

  await redis.kill();
  const early = await Promise.race([cli.exited, sleep(2_500)]);
  expect(early, `it ended: ${cli.stderr()}`).toBeUndefined();
  await using again = restartRedis(redis);
  const end = await Promise.race([cli.exited, sleep(60_000)]);
  expect({ ...end, stderr: cli.stderr() }).toMatchObject({ code: 0, stderr: cli.stderr() });
  expect(again).toBeDefined();
  expectExactLines({ output: parseLines(await readFile(to, 'utf8')), error: [] }, input);
  expect((await engine.counts()).repeated).toBe(0);
});

test('a server whose Redis is gone stops all the same', async () => {
  await using redis = await startRedis();
  await using folder = await makeFolder();
  await using sluice = await startSluice({
    dataDir: folder.path,
    engines: [engine.url],
    redisUrl: redis.url,
    env: { SHUTDOWN_GRACE: '1s' },
  });
  const before = (await engine.counts()).requests;
  await submit(sluice.url, makeInput(3_000, { name: 'gone' }), { maxConcurrency: 20 });
  await until(async () => (await engine.counts()).requests > before + 20, {
    what: 'the first lines',
    timeoutMs: 60_000,
  });

  await redis.kill();
  await sluice.untilLogged('Redis connection error');
  const { code } = await sluice.stop();
  // A process that something keeps is ended with another code.
  expect({ code, last: sluice.logs().at(-1)?.msg }).toEqual({ code: 0, last: 'stopped' });
});
