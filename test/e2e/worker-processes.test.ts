import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { createStore } from '../../src/store/store.ts';
import { expectExact, expectExactLines, makeInput, parseLines } from '../support/batch.ts';
import { submit, untilFinal } from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, runCli, startSluice } from '../support/server.ts';
import type { Sluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';
import { isAlive, logged, untilWorking, workerPids } from '../support/worker-processes.ts';

let engine: VllmProcess;
beforeAll(async () => {
  engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
});
beforeEach(async () => {
  await engine.setConfig({ latency_ms: 0 });
});
afterAll(async () => {
  await engine.close();
  requireNothingLeft();
});

/** Lines that the server's metrics count. */
async function countedLines({ url }: Sluice): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  return Number(/^sluice_lines_total\{kind="output"\} (\d+)$/m.exec(text)?.[1] ?? 0);
}

test('WORKER_PROCESSES=2: both send, are counted as one server, and stop together', async () => {
  await using redis = await startRedis();
  await engine.setConfig({ latency_ms: 100 });
  await using folder = await makeFolder();
  await using sluice = await startSluice({
    dataDir: folder.path,
    redisUrl: redis.url,
    engines: [engine.url],
    env: { WORKER_PROCESSES: '2', LOG_LEVEL: 'debug' },
  });
  const input = makeInput(4_000, { name: 'two' });
  const id = await submit(sluice.url, input, { maxConcurrency: 128 });
  const batch = await untilFinal(sluice.url, id, 60_000);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);

  const attempts = logged(sluice, 'attempt').filter(({ queue }) => queue === 'dispatch');
  expect(new Set(attempts.map(({ worker }) => worker)), 'who worked on shards').toEqual(
    new Set([1, 2]),
  );
  const pids = workerPids(sluice);
  expect(new Set(attempts.map(({ pid }) => pid))).toEqual(new Set(pids));
  expect(await countedLines(sluice)).toBe(4_000);
  const connection = new Redis(redis.url);
  const { nodes } = createStore({ redis: connection });
  expect(await nodes.dispatchers(), 'each counts for how many shards wait').toBe(2);
  connection.disconnect();

  // One that is asked to go does so by itself, is replaced, and what it counted stays.
  process.kill(pids[0] ?? 0, 'SIGTERM');
  await untilWorking(sluice, 3);
  expect(isAlive(pids[0] ?? 0)).toBe(false);
  expect(logged(sluice, 'worker process ended')).toMatchObject([{ worker: 1, code: 0 }]);
  expect(await countedLines(sluice)).toBe(4_000);

  const [, second = 0, third = 0] = workerPids(sluice);
  expect([second, third].map(isAlive)).toEqual([true, true]);
  const end = await sluice.stop();
  expect(end.code).toBe(0);
  expect([second, third].map(isAlive), 'none is left when the server has ended').toEqual([
    false,
    false,
  ]);
  expect((await engine.counts()).repeated).toBe(0);
});

test('WORKER_PROCESSES=0, the default, works in the process itself', async () => {
  await using redis = await startRedis();
  await using folder = await makeFolder();
  const shared = { dataDir: folder.path, redisUrl: redis.url, engines: [engine.url] };
  await using sluice = await startSluice(shared);
  const id = await submit(sluice.url, makeInput(20));
  expect((await untilFinal(sluice.url, id)).status).toBe('completed');
  expect(workerPids(sluice)).toEqual([]);
});

test('sluice run honours WORKER_PROCESSES, and leaves no process', async () => {
  await using folder = await makeFolder();
  const input = makeInput(1_000, { name: 'run' });
  const paths = { in: join(folder.path, 'in.jsonl'), out: join(folder.path, 'out.jsonl') };
  await writeFile(paths.in, input.text);
  const { code, stderr } = await runCli(
    ['run', '-i', paths.in, '-o', paths.out, '-e', engine.url],
    { DATA_DIR: folder.path, WORKER_PROCESSES: '2', LOG_LEVEL: 'debug' },
  );
  expect({ code, stderr }).toEqual({ code: 0, stderr });
  expectExactLines({ output: parseLines(await readFile(paths.out, 'utf8')), error: [] }, input);
  const pids = [...stderr.matchAll(/"childPid":(\d+)/g)].map(([, pid]) => Number(pid));
  expect(pids).toHaveLength(2);
  expect(pids.map(isAlive)).toEqual([false, false]);
});

test('a second signal ends worker processes at once, as it ends the server', async () => {
  await engine.setConfig({ latency_ms: 60_000 });
  await using folder = await makeFolder();
  await using sluice = await startSluice({
    dataDir: folder.path,
    engines: [engine.url],
    env: { WORKER_PROCESSES: '1', SHUTDOWN_GRACE: '60s' },
  });
  await submit(sluice.url, makeInput(10));
  await until(async () => (await engine.counts()).in_flight === 10, {
    what: '10 in flight',
    timeoutMs: 60_000,
  });
  const begun = performance.now();
  process.kill(sluice.pid, 'SIGTERM');
  await sluice.untilLogged('worker process stops');
  process.kill(sluice.pid, 'SIGTERM');
  expect(await sluice.exited).toMatchObject({ code: 143 });
  const [pid = 0] = workerPids(sluice);
  await until(() => !isAlive(pid), { timeoutMs: 30_000, what: 'the end of the worker process' });
  // Long before the grace is over.
  expect(performance.now() - begun).toBeLessThan(30_000);
});
