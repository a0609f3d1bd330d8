import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { expectExact, makeInput, say, submit } from '../support/batch.ts';
import { untilAnswered, untilFinal } from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { LogEntry } from '../simulators/vllm/request-log.ts';
import {
  isAlive,
  logged,
  untilOneStandsBy,
  untilWorking,
  workerPids,
} from '../support/worker-processes.ts';

afterAll(requireNothingLeft);

const KILLS = process.env['CHAOS_LONG'] === '1' ? 30 : 3;
const CONCURRENCY = 64;
const LATENCY_MS = 200;
/** The kernel closes a killed process's connections; the engine sees it when it comes to it. */
const CUT_WITHIN_MS = 1_500;

/** Lines that were cut by a kill at this time: how many ms later the first and the last of them were asked again. */
function takeoverOf(killedAt: number, log: readonly LogEntry[]): { first: number; last: number } {
  const cut = log.filter(
    ({ outcome, finished_at: end }) =>
      outcome === 'aborted' && end !== null && end >= killedAt && end < killedAt + CUT_WITHIN_MS,
  );
  const bodies = new Set(cut.map(({ sha256 }) => sha256));
  const again = new Map<string, number>();
  for (const { sha256, at } of log) {
    if (at > killedAt && bodies.has(sha256) && !again.has(sha256)) again.set(sha256, at - killedAt);
  }
  expect(again.size, 'lines in flight at the kill').toBeGreaterThan(0);
  expect(again.size, 'all of them are asked again').toBe(bodies.size);
  return { first: Math.min(...again.values()), last: Math.max(...again.values()) };
}

test('what a killed worker process had in hand is asked again long before its lock runs out', async () => {
  await using redis = await startRedis();
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: LATENCY_MS, log: 'full' });
  await using folder = await makeFolder();
  await using sluice = await startSluice({
    dataDir: folder.path,
    redisUrl: redis.url,
    engines: [engine.url],
    env: { WORKER_PROCESSES: '2' },
  });
  const input = makeInput(KILLS * 2_000);
  const id = await submit(sluice.url, input, { maxConcurrency: CONCURRENCY });
  await untilAnswered(sluice.url, id, 500);
  const kills: number[] = [];
  for (let kill = 0; kill < KILLS; kill += 1) {
    await untilOneStandsBy(sluice, kill);
    const pids = workerPids(sluice).filter(isAlive);
    process.kill(pids[kill % pids.length] ?? 0, 'SIGKILL');
    kills.push(Date.now());
    await untilWorking(sluice, 3 + kill);
    // Until it has lines in flight again.
    await untilAnswered(sluice.url, id, (kill + 1) * 1_000, 60_000);
  }
  const batch = await untilFinal(sluice.url, id, 120_000);
  const log = await engine.requests();
  const takeovers = kills.map((at) => takeoverOf(at, log)).toSorted((a, b) => a.first - b.first);
  const shown = takeovers.map(({ first, last }) => `${first} to ${last}`).join(', ');
  say(`first and last line in flight asked again after a kill, ms: ${shown}`);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
  const { distinct_bodies: distinct, repeated } = await engine.counts();
  expect(distinct).toBe(input.customIds.length);
  // Uncommitted were what it had in flight and the answers of an open segment, which is two seconds at most.
  expect(repeated).toBeLessThanOrEqual(KILLS * (CONCURRENCY + (2_500 / LATENCY_MS) * CONCURRENCY));
  expect(logged(sluice, 'work of an ended process handed back')).toHaveLength(KILLS);
  // A lock takes six seconds to run out. How fast it is on a quiet machine the bench `recovery` tells.
  expect(takeovers[Math.floor(KILLS / 2)]?.first).toBeLessThan(3_000);
  expect(takeovers.at(-1)?.first).toBeLessThan(6_000);
});

test('of a killed server no worker process is left, and another server goes on', async () => {
  await using redis = await startRedis();
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ latency_ms: LATENCY_MS });
  await using folder = await makeFolder();
  const options = {
    dataDir: folder.path,
    redisUrl: redis.url,
    engines: [engine.url],
    env: { WORKER_PROCESSES: '2', SHUTDOWN_GRACE: '1s' },
  };
  await using first = await startSluice(options);
  const input = makeInput(2_000);
  const id = await submit(first.url, input, { maxConcurrency: CONCURRENCY });
  await untilAnswered(first.url, id, 500);
  const pids = workerPids(first);
  const begun = performance.now();
  await first.kill();
  await until(() => !pids.some(isAlive), { timeoutMs: 6_000, what: 'the end of the workers' });
  say(`worker processes end ${Math.round(performance.now() - begun)} ms after their server`);
  expect(logged(first, 'worker process stops')).toMatchObject([
    { why: 'the supervisor is gone' },
    { why: 'the supervisor is gone' },
  ]);
  // They gave back what they had: nothing is asked twice.
  await using second = await startSluice(options);
  const batch = await untilFinal(second.url, id, 60_000);
  expect(batch.status).toBe('completed');
  await expectExact(second.url, batch, input);
  expect((await engine.counts()).repeated).toBe(0);
});

test('a worker process that dies at its start is started ever later, and in the end works', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await using redis = await startRedis();
  await using folder = await makeFolder();
  await using sluice = await startSluice({
    dataDir: folder.path,
    redisUrl: redis.url,
    engines: [engine.url],
    env: { WORKER_PROCESSES: '1' },
  });
  // Another folder's storage: whoever starts from now on refuses it.
  const path = join(folder.path, 'storage/identity');
  const identity = await readFile(path, 'utf8');
  await writeFile(path, `${'0'.repeat(32)}\n`);
  const deaths = () => logged(sluice, 'worker process ended', 'worker process does not stay up');
  await until(
    () => {
      const last = workerPids(sluice).at(-1) ?? 0;
      // The one that stood by had seen the right one.
      if (logged(sluice, 'worker process is up').length > deaths().length) {
        if (isAlive(last)) process.kill(last, 'SIGKILL');
      }
      return deaths().some(({ msg }) => msg === 'worker process does not stay up');
    },
    { timeoutMs: 40_000, everyMs: 100, what: 'a complaint' },
  );
  const [failure] = logged(sluice, 'worker process failed');
  expect(failure?.['reason']).toContain('point DATA_DIR to the old one');
  const waits = deaths().map((line) => Number(line['restartInMs']));
  expect(waits.slice(-5), 'ms until it is started again').toEqual([250, 500, 1_000, 2_000, 5_000]);
  expect((await fetch(`${sluice.url}/ready`)).status).toBe(503);

  await writeFile(path, identity);
  const id = await submit(sluice.url, makeInput(20));
  expect((await untilFinal(sluice.url, id)).status).toBe('completed');
  expect((await fetch(`${sluice.url}/ready`)).status).toBe(200);
  expect((await sluice.stop()).code).toBe(0);
});

test('a worker process that hangs is killed when the server stops', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await using folder = await makeFolder();
  await using sluice = await startSluice({
    dataDir: folder.path,
    engines: [engine.url],
    env: { WORKER_PROCESSES: '2', SHUTDOWN_GRACE: '0ms' },
  });
  const pids = workerPids(sluice);
  process.kill(pids[0] ?? 0, 'SIGSTOP');
  const end = await sluice.stop();
  expect(end.code).toBe(0);
  expect(pids.filter(isAlive)).toEqual([]);
  expect(end.ms).toBeLessThan(9_500);
});
