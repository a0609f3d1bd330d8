import { randomUUID } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { claimCensus } from '../../processors/collect-census.ts';
import { createCollector } from '../../processors/collect.ts';
import type { CollectDeps, GcReport } from '../../processors/collect.ts';
import { eraseJob } from '../../processors/erase-job.ts';
import { createExpiry } from '../../processors/expiry.ts';
import { fileKey, manifestKey, outputFileId, segmentKey } from '../../src/domain/file.ts';
import { DEFAULT_OPTIONS } from '../../src/domain/job.ts';
import type { JobRecord, JobState, Outcome } from '../../src/domain/job.ts';
import type { Storage } from '../../src/storage/contract.ts';
import { createLocalStorage } from '../../src/storage/local.ts';
import type { Client } from '../../src/store/scripts.ts';
import { createStore } from '../../src/store/store.ts';
import type { Store } from '../../src/store/store.ts';
import { connectTo, newJob, partOf } from './store-back-ends.ts';

export const HOUR = 3_600_000;
export const DAY = 24 * HOUR;
const SHARDS = 3;
const LINES = 4;
const PATIENT = { step: async () => undefined, dryRun: false };
const QUIET = () => undefined;
const LOG = { debug: QUIET, info: QUIET, warn: QUIET, error: QUIET };

export interface JobChoice {
  input?: string;
  validation?: 'strict' | 'lenient';
  retryOf?: string;
}

/** Records and a folder of their own, jobs made by hand in them, and the collector over both by a clock that may be ahead. */
export interface CollectWorld extends AsyncDisposable {
  redis: Client;
  namespace: string;
  store: Store;
  storage: Storage;
  /** Milliseconds by which the collector is later than it is. */
  ahead: number;
  deps: CollectDeps;
  /** A file with these bytes, as an upload leaves it, or a job under an id of its own. */
  file(text: string, id?: string): Promise<string>;
  /** A job in progress: planned, with one committed segment, and its input. */
  run(choice?: JobChoice): Promise<string>;
  /** Ends a job with its files, or without (`storage.unavailable`). */
  finish(jobId: string, outcome?: Outcome, options?: { withoutFiles?: boolean }): Promise<void>;
  job(id: string): Promise<JobRecord>;
  collect(
    wish?: { dryRun?: boolean; confirm?: boolean },
    change?: Partial<CollectDeps>,
  ): Promise<GcReport>;
  /** The sweeper's round for expired files and erasures, at a time when all that is expired is due. */
  expire(change?: Partial<CollectDeps>): Promise<void>;
  erase(jobId: string, change?: Partial<CollectDeps>): ReturnType<typeof eraseJob>;
  /** Keys of all objects, sorted, without what collectors keep. */
  objects(): Promise<string[]>;
  /** Keys of Redis that have this in them, sorted. */
  keys(part: string): Promise<string[]>;
}

/** `given`: a storage of the caller's, instead of a folder. `isNew`: it was never collected, nor claimed. */
export async function openCollectWorld({
  redis = connectTo('redis'),
  given,
  isNew = false,
}: { redis?: Client; given?: Storage; isNew?: boolean } = {}): Promise<CollectWorld> {
  const folder = await mkdtemp(join(tmpdir(), 'sluice-collect-'));
  const namespace = `test-${randomUUID()}`;
  const store = createStore({ redis, namespace });
  const storage = given ?? createLocalStorage({ directory: folder });
  await store.claimStorage(await storage.identity());
  const world: CollectWorld = {
    redis,
    namespace,
    store,
    storage,
    ahead: 0,
    deps: {
      store,
      storage,
      segmentKeepMs: DAY,
      jobRetentionMs: null,
      fileRetentionMs: null,
      orphanAgeMs: DAY,
      everyMs: HOUR,
      newId: randomUUID,
      now: () => Date.now() + world.ahead,
      log: LOG,
    },
    file: (text, id = `file-${randomUUID().replaceAll('-', '')}`) => putFile(world, id, text),
    run: (choice = {}) => runJob(world, choice),
    finish: (jobId, outcome = 'completed', options = {}) =>
      finishJob(world, jobId, outcome, options),
    async job(id) {
      const job = await store.jobs.get(id);
      if (job === null) throw new Error(`there is no ${id}`);
      return job;
    },
    async collect({ dryRun = false, confirm = false } = {}, change = {}) {
      const collector = createCollector('test', { ...world.deps, ...change });
      const report = await collector.run({ dryRun, confirm }, new AbortController().signal);
      if (report === null) throw new Error('another collector has the lease');
      return report;
    },
    async expire(change = {}) {
      const index = `${namespace}:file-expiry`;
      for (const id of await redis.zrange(index, '0', '-1')) await redis.zadd(index, 1, id);
      await createExpiry('test', { ...world.deps, ...change, graceMs: 0 }).round();
    },
    erase: (jobId, change = {}) =>
      eraseJob(jobId, { withFiles: true }, { ...world.deps, ...change }, PATIENT),
    async objects() {
      const keys: string[] = [];
      for await (const key of storage.list('')) if (!/^(?:gc|identity)\b/.test(key)) keys.push(key);
      return keys.toSorted();
    },
    keys: (part) => scan(redis, part),
    async [Symbol.asyncDispose]() {
      redis.disconnect();
      await rm(folder, { recursive: true, force: true });
    },
  };
  if (isNew) return world;
  await claimCensus(world.deps);
  await world.collect();
  return world;
}

async function scan(redis: Client, part: string): Promise<string[]> {
  const nodes = 'nodes' in redis ? redis.nodes('master') : [redis];
  const found = await Promise.all(nodes.map((node) => node.keys(`*${part}*`)));
  return found.flat().toSorted();
}

async function putFile({ store, storage }: CollectWorld, id: string, text: string) {
  const stored = await storage.put(fileKey(id), [Buffer.from(text)]);
  const isOutput = id.endsWith('-output') || id.endsWith('-error');
  const purpose = isOutput ? 'batch_output' : 'batch';
  await store.files.create({ id, ...stored, filename: 'f.jsonl', purpose });
  return id;
}

async function runJob(
  world: CollectWorld,
  { input, validation = 'strict', retryOf }: JobChoice,
): Promise<string> {
  const { store } = world;
  const file = input ?? (await world.file('a prompt\n'));
  const options = { ...DEFAULT_OPTIONS, validation, retryOf: retryOf ?? null };
  const { job } = await store.jobs.create(newJob({ input: file, options }));
  const plans = Array.from({ length: SHARDS }, (_, n) => {
    return { n, first: n * LINES, lines: LINES, offset: n * 10, bytes: 10 };
  });
  await store.shards.write(job.id, plans);
  if (validation === 'lenient') {
    await store.shards.markBad(job.id, [{ n: 1, bad: Buffer.from([1]) }]);
  }
  await provision(world, job.id);
  let at: { id: string; state: JobState; version: number } = job;
  for (const state of ['resource_preparing', 'submitting', 'in_progress'] as const) {
    const set = { lines: SHARDS * LINES, shards: SHARDS, models: ['m'] };
    const moved = await store.jobs.move(at, state, { set, event: `It is ${state}.` });
    if (moved === 'stale') throw new Error('nobody else moves this job');
    at = { id: job.id, state, version: moved.version };
  }
  await commit(world, job.id, 0);
  return job.id;
}

async function provision({ store }: CollectWorld, jobId: string): Promise<void> {
  const id = `prov_${jobId}_0_0`;
  const place = { slot: 0, provider: 'static', owner: 'sluice', address: 'http://e' } as const;
  await store.provisions.create({ id, job: jobId, ...place });
}

/** Takes a shard, stores its answers and commits them; returns the segment's key. */
async function commit({ store, storage }: CollectWorld, jobId: string, n: number): Promise<string> {
  const [waiting] = await store.shards.open(jobId, 1);
  const id = randomUUID();
  const shard = { n: waiting?.n ?? n, wake: waiting?.wake ?? 1 };
  const token = randomUUID();
  await store.shards.take(jobId, shard, token, 1);
  const text = Buffer.from('an answer\n');
  const stored = await storage.put(segmentKey(jobId, id), [text]);
  const part = partOf(shard.n, token, LINES, [0, 1, 2, 3], { length: text.length });
  await store.shards.commit(jobId, { id, ...stored }, [part]);
  return segmentKey(jobId, id);
}

async function finishJob(
  world: CollectWorld,
  jobId: string,
  outcome: Outcome,
  { withoutFiles = false },
): Promise<void> {
  const { store, storage } = world;
  const moved = await store.jobs.move(await world.job(jobId), 'finalizing', { outcome });
  if (moved === 'stale') throw new Error('nobody else moves this job');
  const set = { outputFile: null, errorFile: null } as Record<string, string | null>;
  if (!withoutFiles) {
    set['outputFile'] = await putFile(world, outputFileId(jobId, 'output'), 'an answer\n');
    set['errorFile'] = await putFile(world, outputFileId(jobId, 'error'), 'no answer\n');
    await storage.put(manifestKey(jobId), [Buffer.from('{}')]);
  }
  await store.jobs.move(await world.job(jobId), outcome, { set });
  await store.webhooks.told(jobId);
  for (const each of await store.provisions.ofJob(jobId)) {
    const releasing = await store.provisions.move(each, 'releasing');
    if (releasing === 'stale') continue;
    await store.provisions.move({ ...each, state: 'releasing', ...releasing }, 'released');
  }
}
