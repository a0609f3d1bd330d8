import type { JobRecord } from '../../../src/domain/job.ts';
import { jobKey, recordKey, shardKey } from '../../../src/store/keys.ts';
import type { Client } from '../../../src/store/scripts.ts';
import type { BadLines } from '../../../src/domain/plan.ts';
import type { ShardWake } from '../../../src/store/shards.ts';
import type { Store } from '../../../src/store/store.ts';
import type { FakeQueue } from './fake-queue.ts';
import { createFakeQueue } from './fake-queue.ts';
import type { Random } from './random.ts';
import { DEFAULT_OPTIONS } from '../../../src/domain/job.ts';

/** A process that works on a shard, or thinks that it does. */
export interface Holder {
  shard: ShardWake;
  token: string;
  process: number;
  /** Lines that were done when it took the shard. */
  known: Set<number>;
  asked: Set<number>;
  /** Parts that it committed, to be committed again when Redis has lost them. */
  committed: { segment: string; part: StoredPart }[];
  left: number;
  /** It will send no more lines. */
  ended: boolean;
}

export interface Answer {
  holder: Holder;
  line: number;
  ok: boolean;
}

/** A byte range of a segment, as storage has it whatever Redis says. */
export interface StoredPart {
  n: number;
  token: string;
  offset: number;
  answers: Map<number, boolean>;
}

/** Contents of a job's keys at some moment. */
export type Snapshot = { key: string; dump: Buffer | null }[];

export interface Stats {
  runs: number;
  repeated: number;
  asked: number;
  lines: number;
  stale: number;
  sealed: number;
  overlap: number;
  tailsLost: number;
  recommitted: number;
  flushes: number;
  stalls: number;
  kills: number;
  lostSegments: number;
  enginesLost: number;
  cancelled: number;
  pauses: number;
  struck: number;
  overdue: number;
}

/** One job and all that happens to it. */
export interface World {
  redis: Client;
  store: Store;
  random: Random;
  stats: Stats;
  jobId: string;
  shards: number;
  /** Lines in each shard. */
  lines: number;
  ahead: number;
  queue: FakeQueue;
  storage: Map<string, StoredPart[]>;
  holders: Holder[];
  /** Answers in each process' open segment. */
  open: Answer[][];
  /** Redis of this job may lose what it acknowledged. */
  losesTails: boolean;
  snapshot: Snapshot | null;
  /** The step at which somebody cancels the job; null: never. */
  cancelAt: number | null;
  cancelled: boolean;
  /** The job is finalizing. */
  sealed: boolean;
  /** How often storage has lost some of what it had. */
  losses: number;
}

const PROCESSES = 3;

export function createWorld(
  base: Pick<World, 'redis' | 'store' | 'random' | 'stats'>,
  jobId: string,
): World {
  const { random } = base;
  return {
    ...base,
    jobId,
    shards: 1 + random.below(7),
    lines: 3 + random.below(22),
    ahead: 1 + random.below(4),
    queue: createFakeQueue(),
    storage: new Map(),
    holders: [],
    open: Array.from({ length: PROCESSES }, () => []),
    losesTails: random.chance(0.4),
    snapshot: null,
    cancelAt: random.chance(0.3) ? random.below(400) : null,
    cancelled: false,
    sealed: false,
    losses: 0,
  };
}

/** Everything that the job has in Redis, indexes aside. */
export function keysOf({ jobId, shards }: World): string[] {
  const parts = ['TODO', 'QUEUED', 'HELD', 'SEGMENTS', 'EVENTS', 'PROVISIONS'] as const;
  return [
    recordKey(jobId),
    ...parts.map((part) => jobKey(jobId, part)),
    ...Array.from({ length: shards }, (_, n) => shardKey(jobId, n)),
  ];
}

export async function readJob({ store, jobId }: World): Promise<JobRecord> {
  const job = await store.jobs.get(jobId);
  if (job === null) throw new Error(`${jobId} is gone`);
  return job;
}

/** Adds to the queue what a script says is waiting; now and then the process dies before. */
export function addAll({ queue, random }: World, waiting: readonly ShardWake[]): void {
  // In an order that does not hang on the millisecond at which each began to wait: a seed is to repeat its run.
  for (const shard of waiting.toSorted((a, b) => a.n - b.n)) {
    if (!random.chance(0.08)) queue.add(shard);
  }
}

export function maskOf(lines: number, set: Iterable<number>): Buffer {
  const mask = Buffer.alloc(Math.ceil(lines / 8));
  for (const line of set) mask[line >> 3] = (mask[line >> 3] ?? 0) | (1 << (line & 7));
  return mask;
}

export function linesIn(mask: Buffer): Set<number> {
  const lines = new Set<number>();
  for (const [i, byte] of mask.entries()) {
    for (let bit = 0; bit < 8; bit += 1) if (byte & (1 << bit)) lines.add(8 * i + bit);
  }
  return lines;
}

/** Of every second shard the first line: what planning found is to stay, whatever is lost or repeated. */
export function badLines({ shards, lines }: Pick<World, 'shards' | 'lines'>): BadLines[] {
  const odd = Array.from({ length: shards }, (_, n) => n).filter((n) => n % 2 === 1);
  return odd.map((n) => ({ n, bad: maskOf(lines, [0]) }));
}

/** Writes the job as planning leaves it, and brings it to `in_progress`. */
export async function startJob(world: World): Promise<void> {
  const { store, jobId, shards, lines } = world;
  const { job } = await store.jobs.create({
    id: jobId,
    name: 'fuzz',
    endpoint: '/v1/chat/completions',
    input: 'file_fuzz',
    completionWindow: '24h',
    windowMs: 86_400_000,
    metadata: {},
    maxConcurrency: 8,
    engines: [],
    options: DEFAULT_OPTIONS,
    cut: { lines, bytes: 1_000 },
    bodyHash: 'fuzz',
  });
  const plans = Array.from({ length: shards }, (_, n) => {
    return { n, first: n * lines, lines, offset: n * lines, bytes: lines };
  });
  await store.shards.write(jobId, plans);
  await store.shards.markBad(jobId, badLines(world));
  let at: Pick<JobRecord, 'id' | 'state' | 'version'> = job;
  for (const state of ['resource_preparing', 'submitting', 'in_progress'] as const) {
    const set = { lines: lines * shards, shards };
    const moved = await store.jobs.move(at, state, { set });
    if (moved === 'stale') throw new Error('nobody else moves this job');
    at = { id: jobId, state, version: moved.version };
  }
  addAll(world, await store.shards.open(jobId, world.ahead));
}
