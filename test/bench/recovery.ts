import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { parseShardEntity } from '../../queues/catalog.ts';
import { createQueues } from '../../queues/queues.ts';
import type { Queues } from '../../queues/queues.ts';
import { globalKeys, shardKey } from '../../src/store/keys.ts';
import { seededRandom } from '../simulators/vllm/digest.ts';
import type { LogEntry } from '../simulators/vllm/request-log.ts';
import { download, makeInput, submit, untilFinal } from '../support/batch.ts';
import type { Input } from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { makeFolder, startSluice } from '../support/server.ts';
import type { Sluice, SluiceOptions } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';
import { isAlive, logged } from '../support/worker-processes.ts';

const LINES = 10_000;
const CONCURRENCY = 32;
/** Between two kills, ms: a segment is open for two seconds, so some kills come sooner than a commit. */
const PAUSE = { least: 500, most: 3_500 };
const LATENCY = { first: 300, least: 20, most: 4_000 };
/** Share of the lines in flight before at which slots count as filled again: some are always between two lines. */
const FULL = 0.9;
/** What a process has sent before it died arrives this late at most; no other one is so quick. */
const ON_THE_WAY_MS = 20;
/** The level before a kill is the highest of this time: answers come in bursts. */
const LEVEL_MS = 1_000;
const NAMESPACE = 'sluice';

/** Two worker processes of which one is killed again and again. */
interface Crew {
  url: string;
  dataDir: string;
  /** Of those that work now, by process id: the names under which they take deliveries. */
  working(): Promise<Map<number, string>>;
  /** Kills one, and sees to another in its place. */
  kill(pid: number): Promise<void>;
  stop(): Promise<void>;
}

/** A kill, and what that process had in hand. */
interface Kill {
  at: number;
  /** Undone lines of its shards. */
  undone: number[];
}

interface Measured {
  setup: string;
  kills: number;
  /** Kills of a process that had lines in hand. */
  killsWithLines: number;
  seconds: number;
  lost: number;
  repeated: number;
  askedTwice: number;
  /** The most that may be asked twice: over all kills, lines in flight and lines answered since the last commit. */
  inFlight: number;
  answeredUncommitted: number;
  /** From a kill until a line that was in hand is asked again, or others have filled the slots, ms. */
  takeover: Quantiles;
  /** From a kill until a line that was in hand is asked again; who has enough to do finishes that before, ms. */
  askedAgain: Quantiles;
}

interface Quantiles {
  p50: number;
  p95: number;
  max: number;
}

/**
 * One job of 10,000 lines while one of two worker processes is killed again and again: what is lost, repeated and asked
 * twice, and how soon others go on; with processes under a supervisor, and with ones that each stand alone. The engine's
 * log is the witness.
 */
export async function benchRecovery({
  json,
  kills,
}: {
  json: boolean;
  kills: number;
}): Promise<void> {
  const seed = Number(process.env['CHAOS_SEED'] ?? Math.floor(Math.random() * 2 ** 31));
  const setups = { supervised: startSupervised, separate: startSeparate };
  const measured: Measured[] = [];
  for (const [setup, start] of Object.entries(setups)) {
    measured.push(await measure(setup, start, { kills, random: seededRandom(seed) }));
    if (!json) show(measured.at(-1));
  }
  if (json) console.log(JSON.stringify({ seed, lines: LINES, runs: measured }));
  else console.log(`CHAOS_SEED=${seed}`);
}

function show(run: Measured | undefined): void {
  if (run === undefined) return;
  const times = ({ p50, p95, max }: Quantiles) => `p50 ${p50} ms, p95 ${p95} ms, max ${max} ms`;
  const bound = `${run.inFlight} in flight + ${run.answeredUncommitted} answered since the last commit`;
  console.log(
    `${run.setup}: ${run.kills} kills in ${run.seconds} s (${run.killsWithLines} with lines in hand): ` +
      `${run.lost} lines lost, ${run.repeated} repeated, ${run.askedTwice} asked twice (${bound}); ` +
      `takeover ${times(run.takeover)}; asked again ${times(run.askedAgain)}`,
  );
}

async function measure(
  setup: string,
  start: (options: SluiceOptions, redis: Redis) => Promise<Crew>,
  { kills, random }: { kills: number; random: () => number },
): Promise<Measured> {
  await using server = await startRedis();
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ log: 'full', latency_ms: LATENCY.first });
  await using folder = await makeFolder();
  const redis = new Redis(server.url);
  const queues = createQueues(redis, { namespace: NAMESPACE, onError: () => undefined });
  const options = { dataDir: folder.path, redisUrl: server.url, engines: [engine.url] };
  const crew = await start(options, redis);
  try {
    const input = makeInput(LINES);
    const begun = performance.now();
    const id = await submit(crew.url, input, { maxConcurrency: CONCURRENCY });
    const over = untilFinal(crew.url, id, 3_600_000);
    const done = await killAgainAndAgain(crew, over, { redis, queues, engine, kills, random });
    const batch = await over;
    const seconds = Math.round((performance.now() - begun) / 1_000);
    if (batch.status !== 'completed') throw new Error(`the batch ended as ${batch.status}`);
    const texts = [batch.output_file_id, batch.error_file_id].map((f) => download(crew.url, f));
    const result = countLines(await Promise.all(texts), input);
    const witness = judge(done, await engine.requests(), input);
    return { setup, kills: done.length, seconds, ...result, ...witness };
  } finally {
    await crew.stop();
    await queues.close();
    redis.disconnect();
  }
}

async function killAgainAndAgain(
  crew: Crew,
  over: Promise<unknown>,
  run: {
    redis: Redis;
    queues: Queues;
    engine: VllmProcess;
    kills: number;
    random: () => number;
  },
): Promise<Kill[]> {
  const { redis, queues, engine, kills, random } = run;
  let isOver = false;
  void over.then(() => (isOver = true));
  const done: Kill[] = [];
  let latency = LATENCY.first;
  // The first while it still comes to speed, the last before its end.
  while (done.length < kills) {
    await sleep(PAUSE.least + (PAUSE.most - PAUSE.least) * random());
    if (isOver) break;
    const working = [...(await crew.working())];
    const [pid, name] = working[Math.floor(random() * working.length)] ?? [];
    if (pid === undefined || name === undefined) continue;
    const before = await shardsOf(name, queues);
    const at = Date.now();
    const replaced = crew.kill(pid);
    const shards = new Set([...before, ...(await shardsOf(name, queues))]);
    done.push({ at, undone: await undoneOf(shards, redis) });
    await replaced;
    // So quick that the job ends with the last kill.
    const { distinct_bodies: asked } = await engine.counts();
    const isAhead = asked / LINES > done.length / kills;
    latency = Math.min(Math.max(latency * (isAhead ? 1.2 : 1 / 1.2), LATENCY.least), LATENCY.most);
    await engine.setConfig({ latency_ms: latency });
  }
  await engine.setConfig({ latency_ms: LATENCY.least });
  return done;
}

/** Shards that a process has in hand, or had when it died, as keys of Redis. */
async function shardsOf(name: string, queues: Queues): Promise<string[]> {
  const deliveries = await queues.inHandOf(name);
  return deliveries.flatMap(({ entity }) => {
    const shard = parseShardEntity(entity);
    return shard === null ? [] : [shardKey(shard.jobId, shard.n)];
  });
}

async function undoneOf(shards: Iterable<string>, redis: Redis): Promise<number[]> {
  const undone: number[] = [];
  for (const key of shards) {
    const [first, lines, done] = await redis.hmgetBuffer(key, 'first', 'lines', 'done');
    for (let line = 0; line < Number(lines); line += 1) {
      const isDone = ((done?.[line >> 3] ?? 0) >> (line & 7)) & 1;
      if (!isDone) undone.push(Number(first) + line);
    }
  }
  return undone;
}

function countLines(texts: readonly string[], input: Input) {
  const lines = texts.flatMap((text) => text.split('\n').filter(Boolean));
  // Sluice wrote them.
  const ids = lines.map((line) => (JSON.parse(line) as { custom_id: string }).custom_id);
  const seen = new Set(ids);
  return {
    lost: input.customIds.filter((id) => !seen.has(id)).length,
    repeated: ids.length - seen.size,
  };
}

/** What the engine's log says of the kills: a line in hand was asked, since its last holder died, and not committed. */
function judge(kills: readonly Kill[], log: readonly LogEntry[], input: Input) {
  const asks = asksByLine(log, input);
  const askedTwice = asks.reduce((sum, entries) => sum + Math.max(entries.length - 1, 0), 0);
  const blamedAt = new Map<number, number>();
  const takeovers: number[] = [];
  const askedAgain: number[] = [];
  let [inFlight, answered] = [0, 0];
  for (const { at, undone } of kills) {
    let againAt = Infinity;
    let hadLines = false;
    for (const line of undone) {
      const entries = asks[line] ?? [];
      const last = entries.findLast((entry) => entry.at <= at + ON_THE_WAY_MS);
      if (last === undefined || last.at <= (blamedAt.get(line) ?? 0)) continue;
      blamedAt.set(line, last.at);
      hadLines = true;
      if ((last.finished_at ?? Infinity) >= at) inFlight += 1;
      else answered += 1;
      againAt = Math.min(
        againAt,
        entries.find((entry) => entry.at > at + ON_THE_WAY_MS)?.at ?? Infinity,
      );
    }
    if (!hadLines) continue;
    if (againAt < Infinity) askedAgain.push(againAt - at);
    takeovers.push(Math.min(againAt, refilledAt(log, at)) - at);
  }
  return {
    killsWithLines: takeovers.length,
    askedTwice,
    inFlight,
    answeredUncommitted: answered,
    takeover: quantiles(takeovers),
    askedAgain: quantiles(askedAgain),
  };
}

function quantiles(values: readonly number[]): Quantiles {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (share: number) => sorted[Math.ceil(share * sorted.length) - 1] ?? 0;
  return { p50: at(0.5), p95: at(0.95), max: at(1) };
}

/** When the engine had as many lines in flight again as before a kill; those that died with it do not count. */
function refilledAt(log: readonly LogEntry[], killedAt: number): number {
  let level = 0;
  for (const { time, count } of levels(log)) {
    if (time <= killedAt && time > killedAt - LEVEL_MS) level = Math.max(level, count);
  }
  const diedThen = (e: LogEntry) =>
    e.at <= killedAt + ON_THE_WAY_MS && e.aborted && (e.finished_at ?? Infinity) >= killedAt;
  const others = log.filter((entry) => !diedThen(entry));
  const full = levels(others).find(({ time, count }) => time > killedAt && count >= FULL * level);
  return full?.time ?? Infinity;
}

/** How many lines were in flight, from each change on. */
function levels(log: readonly LogEntry[]): { time: number; count: number }[] {
  const changes = log.flatMap(({ at, finished_at: end }) => [
    { time: at, by: 1 },
    { time: end ?? Infinity, by: -1 },
  ]);
  let count = 0;
  return changes
    .toSorted((a, b) => a.time - b.time || a.by - b.by)
    .map(({ time, by }) => ({ time, count: (count += by) }));
}

/** Of each line, in input order, when it was asked. */
function asksByLine(log: readonly LogEntry[], input: Input): LogEntry[][] {
  const place = new Map(input.customIds.map((id, n) => [input.marks.get(id)?.slice(4), n]));
  const asks: LogEntry[][] = input.customIds.map(() => []);
  for (const entry of log.toSorted((a, b) => a.at - b.at)) {
    const line = place.get(entry.sha256.slice(0, 16));
    if (line !== undefined) asks[line]?.push(entry);
  }
  return asks;
}

/** One server, whose supervisor starts another process for each that dies. */
async function startSupervised(options: SluiceOptions): Promise<Crew> {
  const sluice = await startSluice({ ...options, env: { WORKER_PROCESSES: '2' } });
  return {
    url: sluice.url,
    dataDir: options.dataDir,
    async working() {
      const up = new Set(logged(sluice, 'worker process is up').map(({ name }) => name));
      const started = logged(sluice, 'worker process started').filter(({ name }) => up.has(name));
      const named = started.map((line): [number, string] => [
        Number(line['childPid']),
        String(line['name']),
      ]);
      return new Map(named.filter(([pid]) => isAlive(pid)));
    },
    async kill(pid) {
      process.kill(pid, 'SIGKILL');
    },
    async stop() {
      await sluice.stop();
    },
  };
}

/** A server without workers, and two workers that somebody starts again when they die. */
async function startSeparate(options: SluiceOptions, redis: Redis): Promise<Crew> {
  const api = await startSluice({ ...options, roles: ['api', 'sweeper'] });
  const startWorker = () => startSluice({ ...options, roles: ['worker'] });
  const workers: Sluice[] = await Promise.all([startWorker(), startWorker()]);
  async function working(): Promise<Map<number, string>> {
    const names = await redis.hkeys(globalKeys(NAMESPACE).nodes);
    return new Map(
      workers.flatMap(({ pid }) => {
        const name = names.find((one) => one.includes(`-${pid}-`));
        return name === undefined ? [] : [[pid, name] as const];
      }),
    );
  }
  await until(async () => (await working()).size === 2, { what: 'two workers' });
  return {
    url: api.url,
    dataDir: options.dataDir,
    working,
    async kill(pid) {
      const index = workers.findIndex((worker) => worker.pid === pid);
      await workers[index]?.kill();
      workers[index] = await startWorker();
    },
    async stop() {
      await Promise.all([...workers, api].map(async (one) => one.stop()));
    },
  };
}
