import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  expectExact,
  makeInput,
  say,
  untilAnswered,
  untilFinal,
  upload,
} from '../support/batch.ts';
import type { Input } from '../support/batch.ts';
import {
  chaosRandom,
  cleanOutput,
  endLocks,
  expectUnharmed,
  LONG,
  submitInPieces,
} from '../support/chaos.ts';
import { requireNothingLeft, startSluice } from '../support/server.ts';
import type { Sluice } from '../support/server.ts';
import { openGround } from '../support/site.ts';
import type { Ground } from '../support/site.ts';
import { until } from '../support/until.ts';

/** So long that the lines which a worker has in hand last for longer than a lock. */
const LATENCY_MS = 1_500;
const CONCURRENCY = 128;
const LINES = LONG ? 60_000 : 2_000;
/** So slow that a run is not over before the last kill or restart. */
const PACE_MS = LONG ? 100 : 500;
/** So that a few lines are shards for both workers. */
const PIECE = LONG ? 1_000 : 100;
/** And restarts, in the middle of a run, at least. */
const KILLS = LONG ? 30 : 3;

interface World extends Pick<Ground, 'store' | 'engine'> {
  api: Sluice;
  dataDir: string;
  /** Two that all tests share: whoever takes one away starts another in its place. */
  workers: [Sluice, Sluice];
  startWorker(): Promise<Sluice>;
  /** What most tests run, and what an undisturbed run over it writes. */
  input: Input;
  file: string;
  clean: string;
}

let world: World;
const stack = new AsyncDisposableStack();

beforeAll(async () => {
  const { store, engine, shared } = stack.use(await openGround());
  const api = stack.use(await startSluice({ ...shared, roles: ['api', 'sweeper'] }));
  const startWorker = () => startSluice({ ...shared, roles: ['worker'] });
  const input = makeInput(LINES);
  const workers: [Sluice, Sluice] = await Promise.all([startWorker(), startWorker()]);
  stack.defer(async () => {
    for (const worker of workers) await worker[Symbol.asyncDispose]();
  });
  const clean = await cleanOutput(api.url, engine, input);
  const file = await upload(api.url, input.text);
  const { dataDir } = shared;
  world = { store, engine, api, dataDir, workers, startWorker, input, file, clean };
});

afterAll(async () => {
  await stack.disposeAsync();
  requireNothingLeft();
});

/** Starts a batch over a file, cut into pieces. */
async function start(file: string, concurrency: number): Promise<string> {
  const { api, store, workers } = world;
  const where = { url: api.url, redis: store, workers: workers.map(({ pid }) => pid) };
  return submitInPieces(where, file, { pieceLines: PIECE, maxConcurrency: concurrency });
}

test.runIf(LONG)('one of two workers is killed while the other has enough to do', async () => {
  const { engine, api, workers, startWorker } = world;
  await engine.setConfig({ latency_ms: LATENCY_MS });
  const lines = LONG ? 20_000 : 3_000;
  const input = makeInput(lines, { name: 'killed' });
  const begun = await engine.counts();
  const id = await start(await upload(api.url, input.text), CONCURRENCY);
  const { request_counts: counts } = await untilAnswered(api.url, id, 200, 60_000);

  await workers[1].kill();
  const killedAt = performance.now();
  // What was in flight of the killed process is cut at once; from then on only takeovers repeat a body.
  const killed = await engine.counts();
  await until(async () => (await engine.counts()).repeated > killed.repeated, {
    timeoutMs: 60_000,
    what: 'the takeover',
  });
  const takeover = performance.now() - killedAt;
  await engine.setConfig({ latency_ms: 20 });
  const batch = await untilFinal(api.url, id, 120_000);
  const total = performance.now() - killedAt;
  workers[1] = await startWorker();

  say(`takeover ${Math.round(takeover)} ms, end ${Math.round(total)} ms after the kill`);
  expect(batch.status).toBe('completed');
  await expectExact(api.url, batch, input);
  const after = await engine.counts();
  expect(after.distinct_bodies - begun.distinct_bodies).toBe(lines);
  // What was committed is not asked again.
  const uncommitted = killed.requests - begun.requests - (counts?.completed ?? 0);
  expect(after.repeated - begun.repeated).toBeLessThanOrEqual(uncommitted);
  expect(Math.max(...Object.values(after.repeated_bodies))).toBe(2);
});

test('workers are killed at random moments of a whole run', { timeout: 600_000 }, async () => {
  const random = chaosRandom();
  const { engine, api, store, workers, startWorker, input, file, clean, dataDir } = world;
  await engine.setConfig({ latency_ms: PACE_MS });
  const before = await engine.counts();
  const id = await start(file, 32);
  const over = untilFinal(api.url, id, 590_000);
  let isOver = false;
  void over.then(() => (isOver = true));
  const inFlight: number[] = [];
  const hits = () => inFlight.filter((lines) => lines > 0).length;
  while (!isOver && (LONG || hits() < KILLS)) {
    const isAtWork = async () => isOver || (await engine.counts()).in_flight > 0;
    if (!LONG) await until(isAtWork, { timeoutMs: 60_000, what: 'work' });
    await sleep(LONG ? 500 + 2_000 * random() : 1_000 * random());
    const index = random() < 0.5 ? 0 : 1;
    inFlight.push((await engine.counts()).in_flight);
    await workers[index].kill();
    if (!LONG) await endLocks(store, workers[index].pid);
    workers[index] = await startWorker();
  }
  if (!LONG) await engine.setConfig({ latency_ms: 0 });
  const batch = await over;
  const askedTwice = (await engine.counts()).requests - before.requests - LINES;
  await expectUnharmed(
    { url: api.url, batch, input, dataDir, redis: store, clean },
    { name: 'random kills', kills: inFlight.length, askedTwice },
  );
  say(`in flight at the kills: ${inFlight.join(', ')}`);
  expect(hits(), 'kills while lines were in flight').toBeGreaterThanOrEqual(KILLS);
});

test('two workers are restarted in turn, again and again, and no line is asked twice', async () => {
  const { engine, api, store, workers, startWorker, input, file, clean, dataDir } = world;
  await engine.setConfig({ latency_ms: PACE_MS });
  const before = await engine.counts();
  const id = await start(file, 32);
  for (let n = 0; n < KILLS; n += 1) {
    const { requests } = await engine.counts();
    await until(async () => (await engine.counts()).requests > requests + 64, {
      timeoutMs: 60_000,
      what: 'more requests',
    });
    expect((await engine.counts()).in_flight, 'in the middle of the run').toBeGreaterThan(0);
    const index = n % 2 === 0 ? 0 : 1;
    expect((await workers[index].stop()).code).toBe(0);
    workers[index] = await startWorker();
  }
  await engine.setConfig({ latency_ms: 0 });
  const batch = await untilFinal(api.url, id, 120_000);
  const askedTwice = (await engine.counts()).requests - before.requests - LINES;
  await expectUnharmed(
    { url: api.url, batch, input, dataDir, redis: store, clean },
    { name: 'rolling restarts', kills: KILLS, askedTwice, mayLeave: 0 },
  );
  expect(askedTwice).toBe(0);
});
