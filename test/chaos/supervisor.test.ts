import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  expectExact,
  makeInput,
  say,
  submit,
  untilAnswered,
  untilFinal,
  upload,
} from '../support/batch.ts';
import { keepLocks, LONG, submitInPieces } from '../support/chaos.ts';
import { requireNothingLeft, startSluice } from '../support/server.ts';
import type { Sluice } from '../support/server.ts';
import { openGround } from '../support/site.ts';
import type { Ground } from '../support/site.ts';
import { until } from '../support/until.ts';
import type { LogEntry } from '../simulators/vllm/request-log.ts';
import {
  isAlive,
  logged,
  untilOneStandsBy,
  untilWorking,
  workerPids,
} from '../support/worker-processes.ts';

const KILLS = LONG ? 30 : 2;
const CONCURRENCY = 64;
const LATENCY_MS = 100;
/** While a kill is prepared: so slow that many lines are in flight, and that it is not over before the last kill. */
const HELD_MS = 1_500;
const IMPATIENT = { SHUTDOWN_GRACE: '0ms' };

let ground: Ground;
beforeAll(async () => {
  ground = await openGround();
});
afterAll(async () => {
  for (const server of servers.values()) await server[Symbol.asyncDispose]();
  await ground[Symbol.asyncDispose]();
  requireNothingLeft();
});

/** Servers that tests share, in turn, since starts are most of what they take: by how many processes they have. */
const servers = new Map<number, Sluice>();

async function serverOf(processes: 1 | 2): Promise<Sluice> {
  const running = servers.get(processes);
  if (running !== undefined) return running;
  const env = { WORKER_PROCESSES: String(processes), ...(processes === 1 ? IMPATIENT : {}) };
  // Nobody sweeps behind the first: what is handed back has to be found as it is.
  const roles = processes === 1 ? ['api', 'worker', 'sweeper'] : ['api', 'worker'];
  const server = await startSluice({ ...ground.shared, roles, env });
  servers.set(processes, server);
  return server;
}

/**
 * Lines that were cut by a kill, between it and the next one: how many ms later the first and the last of them were
 * asked again. Null where none were: the other process had them all.
 */
function takeoverOf(
  killedAt: number,
  nextAt: number,
  log: readonly LogEntry[],
): { first: number; last: number } | null {
  const cut = log.filter(
    ({ outcome, finished_at: end }) =>
      outcome === 'aborted' && end !== null && end >= killedAt && end < nextAt,
  );
  const bodies = new Set(cut.map(({ sha256 }) => sha256));
  const again = new Map<string, number>();
  for (const { sha256, at } of log) {
    if (at > killedAt && bodies.has(sha256) && !again.has(sha256)) again.set(sha256, at - killedAt);
  }
  if (bodies.size === 0) return null;
  expect(again.size, 'all of them are asked again').toBe(bodies.size);
  return { first: Math.min(...again.values()), last: Math.max(...again.values()) };
}

/** Never 0, by which a signal goes to this very test and all that it started. */
async function aliveWorker(sluice: Sluice): Promise<number> {
  return until(() => workerPids(sluice).find(isAlive), { what: 'a worker process that lives' });
}

test('what a killed worker process had in hand is asked again though its locks never run out', async () => {
  const { engine, store } = ground;
  await engine.setConfig({ log: 'full' });
  const sluice = await serverOf(2);
  const lines = KILLS * 800;
  const input = makeInput(lines);
  const file = await upload(sluice.url, input.text);
  const where = { url: sluice.url, redis: store, workers: workerPids(sluice) };
  const options = { maxConcurrency: CONCURRENCY, pieceLines: 100 };
  const begun = await engine.counts();
  const id = await submitInPieces(where, file, options);
  const kills: number[] = [];
  let uncommitted = 0;
  for (let kill = 0; kill < KILLS; kill += 1) {
    const { requests } = await engine.counts();
    await engine.setConfig({ latency_ms: LATENCY_MS });
    await until(async () => (await engine.counts()).requests > requests + 2 * CONCURRENCY, {
      timeoutMs: 60_000,
      what: 'lines in flight everywhere',
    });
    await engine.setConfig({ latency_ms: HELD_MS });
    await untilOneStandsBy(sluice, kill);
    const { request_counts: counts } = await untilAnswered(sluice.url, id, 1, 60_000);
    // The one that is at work for longest.
    process.kill(await aliveWorker(sluice), 'SIGKILL');
    kills.push(Date.now());
    await keepLocks(store);
    const asked = (await engine.counts()).distinct_bodies - begun.distinct_bodies;
    uncommitted += asked - (counts?.completed ?? 0);
    await untilWorking(sluice, 3 + kill);
  }
  await engine.setConfig({ latency_ms: 1 });
  const batch = await untilFinal(sluice.url, id, 120_000);
  const log = await engine.requests();
  const takeovers = kills
    .map((at, n) => takeoverOf(at, kills[n + 1] ?? Infinity, log))
    .filter((takeover) => takeover !== null);
  expect(takeovers.length, 'kills with lines in flight').toBeGreaterThan(0);
  const shown = takeovers.map(({ first, last }) => `${first} to ${last}`).join(', ');
  say(`first and last line in flight asked again after a kill, ms: ${shown}`);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
  const { distinct_bodies: distinct, repeated } = await engine.counts();
  expect(distinct - begun.distinct_bodies).toBe(lines);
  // What was committed is not asked again.
  expect(repeated - begun.repeated).toBeLessThanOrEqual(uncommitted);
  const handedBack = logged(sluice, 'work of an ended process handed back');
  expect(handedBack.length).toBeGreaterThanOrEqual(takeovers.length);
});

test('of a killed server no worker process is left, and another server goes on', async () => {
  const { engine } = ground;
  await engine.setConfig({ latency_ms: LATENCY_MS, log: 'counts' });
  const first = await serverOf(2);
  const input = makeInput(2_000, { name: 'orphan' });
  const { repeated } = await engine.counts();
  const id = await submit(first.url, input, { maxConcurrency: CONCURRENCY });
  await untilAnswered(first.url, id, 1, 60_000);
  const pids = workerPids(first).filter(isAlive);
  const begun = performance.now();
  servers.delete(2);
  await first.kill();
  await until(() => !pids.some(isAlive), { timeoutMs: 30_000, what: 'the end of the workers' });
  say(`worker processes end ${Math.round(performance.now() - begun)} ms after their server`);
  expect(logged(first, 'worker process stops')).toMatchObject([
    { why: 'the supervisor is gone' },
    { why: 'the supervisor is gone' },
  ]);
  // They gave back what they had: nothing is asked twice.
  const second = await serverOf(1);
  const batch = await untilFinal(second.url, id, 60_000);
  expect(batch.status).toBe('completed');
  await expectExact(second.url, batch, input);
  expect((await engine.counts()).repeated).toBe(repeated);
});

test('a worker process that dies at its start is started ever later, and in the end works', async () => {
  const sluice = await serverOf(1);
  // Another folder's storage: whoever starts from now on refuses it.
  const path = join(ground.folder.path, 'storage/identity');
  const identity = await readFile(path, 'utf8');
  await writeFile(path, `${'0'.repeat(32)}\n`);
  const deaths = () => logged(sluice, 'worker process ended', 'worker process does not stay up');
  await until(
    () => {
      const last = logged(sluice, 'worker process started').at(-1);
      const pid = Number(last?.['childPid']);
      const isUp = logged(sluice, 'worker process is up').length > deaths().length;
      // It works, or had stood by, when that was the right one; any other dies by itself.
      if (isUp && isAlive(pid)) process.kill(pid, 'SIGKILL');
      return deaths().some(({ msg }) => msg === 'worker process does not stay up');
    },
    { timeoutMs: 90_000, everyMs: 50, what: 'a complaint' },
  );
  const waits = deaths().map((line) => Number(line['restartInMs']));
  expect(waits.slice(-5), 'ms until it is started again').toEqual([250, 500, 1_000, 2_000, 5_000]);
  const failure = await sluice.untilLogged('worker process failed', 60_000);
  expect(failure['reason']).toContain('point DATA_DIR to the old one');
  expect((await fetch(`${sluice.url}/ready`)).status).toBe(503);

  await writeFile(path, identity);
  const id = await submit(sluice.url, makeInput(20, { name: 'restored' }));
  expect((await untilFinal(sluice.url, id, 60_000)).status).toBe('completed');
  expect((await fetch(`${sluice.url}/ready`)).status).toBe(200);
});

test('a worker process that hangs is killed when the server stops', async () => {
  const sluice = await serverOf(1);
  const pid = await aliveWorker(sluice);
  process.kill(pid, 'SIGSTOP');
  servers.delete(1);
  const { code, ms } = await sluice.stop();
  say(`a server with a worker process that hangs stops within ${Math.round(ms)} ms`);
  expect(code).toBe(0);
  expect(workerPids(sluice).filter(isAlive)).toEqual([]);
});
