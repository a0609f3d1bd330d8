import { join } from 'node:path';
import type { Redis } from 'ioredis';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { recordKey } from '../../src/store/keys.ts';
import { makeInput, untilFinal, upload } from '../support/batch.ts';
import type { Input } from '../support/batch.ts';
import {
  callsScript,
  cleanOutput,
  expectUnharmed,
  LONG,
  onNewFile,
  submitInPieces,
} from '../support/chaos.ts';
import { requireNothingLeft, startSluice } from '../support/server.ts';
import type { Sluice } from '../support/server.ts';
import { openGround } from '../support/site.ts';
import { startTapProxy } from '../support/tap-proxy.ts';
import type { TapProxy } from '../support/tap-proxy.ts';
import { until } from '../support/until.ts';
import type { VllmProcess } from '../support/vllm-process.ts';
import { isAlive, workerPids } from '../support/worker-processes.ts';

/** At each point: 3,000 lines last for four commits. */
const KILLS = 4;
const LINES = LONG ? 3_000 : 2_000;
const CONCURRENCY = 48;
/** So slow that there are several commits, which are two seconds apart. */
const LATENCY_MS = 130;

/** A server whose one worker process is killed and replaced, with ears on Redis, on the engine and on storage. */
interface World {
  sluice: Sluice;
  engine: VllmProcess;
  redis: Redis;
  toRedis: TapProxy;
  toEngine: TapProxy;
  dataDir: string;
  input: Input;
  file: string;
  clean: string;
}

let world: World;
const stack = new AsyncDisposableStack();

beforeAll(async () => {
  const { redis: server, store: redis, engine, shared } = stack.use(await openGround());
  const toRedis = stack.use(await startTapProxy(server));
  const toEngine = stack.use(await startTapProxy({ host: '127.0.0.1', port: engine.port }));
  const { dataDir } = shared;
  const sluice = stack.use(
    await startSluice({
      dataDir,
      redisUrl: `redis://${toRedis.host}:${toRedis.port}`,
      engines: [`http://${toEngine.host}:${toEngine.port}`],
      env: { WORKER_PROCESSES: '1' },
    }),
  );
  const input = makeInput(LINES);
  const clean = await cleanOutput(sluice.url, engine, input);
  const file = await upload(sluice.url, input.text);
  world = { sluice, engine, redis, toRedis, toEngine, dataDir, input, file, clean };
});

afterAll(async () => {
  const pids = workerPids(world.sluice);
  const { code } = await world.sluice.stop();
  await stack.disposeAsync();
  requireNothingLeft();
  const left = pids.filter(isAlive);
  if (code !== 0 || left.length > 0)
    throw new Error(`it ends with ${code}, and leaves ${left.join(', ')}`);
});

/** Resolves once it acted, at the very moment that its name says. */
type Failpoint = (act: () => void, jobId: string) => Promise<void>;

const says = (text: string) => (chunk: Buffer) => chunk.includes(text);
const isAsked = says('POST /v1/chat/completions');
const isCommit = callsScript('commit');

/** BullMQ's script that ends a delivery: the only one that names both of these keys. */
function endsShard(chunk: Buffer): boolean {
  return [':dispatch:completed', ':dispatch:stalled'].every((key) => chunk.includes(key));
}

function readsShards(chunk: Buffer): boolean {
  return chunk.includes('hmget') && chunk.includes('\r\nparts\r\n');
}

const AT_WORK: Record<string, Failpoint> = {
  'after send': (act) => world.toEngine.arm({ request: isAsked, arrives: true, act }),
  'after answer': (act) =>
    world.toEngine.arm({ request: isAsked, reply: says('HTTP/1.1 200'), arrives: true, act }),
  'before segment': (act) => onNewFile(join(world.dataDir, 'storage/.tmp'), /./, act),
  'after segment, before commit': (act) =>
    world.toRedis.arm({ request: isCommit, arrives: false, act }),
  'after commit': (act) =>
    world.toRedis.arm({ request: isCommit, reply: says('committed'), arrives: false, act }),
  'after commit, before the delivery ends': (act) =>
    world.toRedis.arm({ request: endsShard, arrives: false, act }),
};

const AT_THE_END: Record<string, Failpoint> = {
  'as assembly begins': (act) => world.toRedis.arm({ request: readsShards, arrives: false, act }),
  'as assembly writes': (act) => onNewFile(join(world.dataDir, 'storage/.tmp'), /./, act),
  'after assembly wrote its file': (act, jobId) => {
    const output = `${jobId.slice('job_'.length)}-output`;
    const request = (chunk: Buffer) => chunk.includes('batch_output') && chunk.includes(output);
    return world.toRedis.arm({ request, arrives: false, act });
  },
};

/** Submits the input, cut into many shards. */
function start(): Promise<string> {
  const { sluice, redis, file } = world;
  const where = { url: sluice.url, redis, workers: [workerPid()] };
  return submitInPieces(where, file, { maxConcurrency: CONCURRENCY, pieceLines: LINES / 8 });
}

/** Process id of the worker that is at work. */
function workerPid(): number {
  const pid = workerPids(world.sluice).at(-1);
  if (pid === undefined) throw new Error('no worker process');
  return pid;
}

function killWorker(): void {
  process.kill(workerPid(), 'SIGKILL');
}

/** Kills the worker at the point; resolves to how many ms later the next one sends a line. */
async function killAt(point: Failpoint, jobId: string): Promise<number> {
  let pid = 0;
  let killedAt = 0;
  await point(() => {
    pid = workerPid();
    killedAt = performance.now();
    process.kill(pid, 'SIGKILL');
  }, jobId);
  await until(() => !isAlive(pid), {
    timeoutMs: 60_000,
    everyMs: 1,
    what: 'the end of the process',
  });
  const { requests } = await world.engine.counts();
  const tookOver = async () => (await world.engine.counts()).requests > requests;
  // After the last commit there is nothing left to be asked.
  const isOver = async () => (await world.redis.hget(recordKey(jobId), 'state')) === 'finalizing';
  const over = async () => (await tookOver()) || (await isOver());
  await until(over, { timeoutMs: 60_000, everyMs: 5, what: 'the takeover' });
  return performance.now() - killedAt;
}

/** Kills the worker at these points of one job, one after the other. */
async function expectToSurvive(name: string, points: readonly Failpoint[]): Promise<void> {
  const { sluice, engine } = world;
  await engine.setConfig({ latency_ms: LATENCY_MS });
  const before = await engine.counts();
  const id = await start();
  const jobId = id.replace('batch_', 'job_');
  await until(async () => (await engine.counts()).requests >= before.requests + 100, {
    timeoutMs: 60_000,
    what: 'a hundred requests',
  });
  const takeovers: number[] = [];
  for (const point of points) takeovers.push(await killAt(point, jobId));
  await engine.setConfig({ latency_ms: 1 });
  const batch = await untilFinal(sluice.url, id, 120_000);
  expect(takeovers).toHaveLength(points.length);
  const askedTwice = (await engine.counts()).requests - before.requests - LINES;
  const what = { name, kills: points.length, askedTwice, takeovers };
  await expectUnharmed({ ...world, url: sluice.url, batch }, what);
}

test.skipIf(LONG)('the worker process is killed at each point, one after the other', async () => {
  const points = Object.values(AT_WORK);
  await expectToSurvive('at each point', points);
  expect(points).toHaveLength(6);
});

for (const [name, point] of Object.entries(AT_WORK)) {
  test.runIf(LONG)(`${name}: the worker process is killed ${KILLS} times`, async () => {
    const points = Array.from({ length: KILLS }, () => point);
    await expectToSurvive(name, points);
    expect(points).toHaveLength(KILLS);
  });
}

test('in assembly: the worker process is killed at its begin, in its middle and at its end', async () => {
  const { sluice, engine } = world;
  const before = await engine.counts();
  const id = await start();
  const jobId = id.replace('batch_', 'job_');
  const killedAt: string[] = [];
  for (const [name, point] of Object.entries(AT_THE_END)) {
    await point(killWorker, jobId);
    killedAt.push(`${name}: ${await world.redis.hget(recordKey(jobId), 'state')}`);
  }
  const batch = await untilFinal(sluice.url, id, 120_000);
  expect(killedAt).toEqual(Object.keys(AT_THE_END).map((name) => `${name}: finalizing`));
  const askedTwice = (await engine.counts()).requests - before.requests - LINES;
  await expectUnharmed(
    { ...world, url: sluice.url, batch },
    { name: 'in assembly', kills: killedAt.length, askedTwice },
  );
  expect(askedTwice).toBe(0);
});
