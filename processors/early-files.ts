import { createHash } from 'node:crypto';
import type { Hash } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import type { Undone } from '../src/dispatcher/assemble.ts';
import { transient } from '../src/domain/errors.ts';
import { isPaused } from '../src/domain/job.ts';
import type { JobRecord } from '../src/domain/job.ts';
import { isWhole } from '../src/domain/segment.ts';
import type { AcceptedShard } from '../src/domain/segment.ts';
import type { Lease } from '../src/store/lease.ts';
import type { Deps } from './deps.ts';
import { finalize } from './finalize.ts';
import { writeFiles } from './write-files.ts';
import type { Written } from './write-files.ts';

/** Of fewer answers the files are written in no time when the job is over. */
const LEAST_BYTES = 32 * 1024 * 1024;
/** Jobs whose bytes are counted; those of the one that was quiet for longest are forgotten. */
const MOST_COUNTED = 64;
/** A write should not be open for days, when stores and their owners clear such away. */
const SOON_MS = 3_600_000;
const LOOK_MS = 100;
/** Shards whose records are read at once. */
const AT_ONCE = 8;
const LEASE_MS = 5_000;
const RENEW_MS = 1_500;
const NOT_WRITTEN = 'files of a running job could not be written';

/**
 * The files of large jobs, which are written while these still run: in the last hour of a job, one process assembles
 * those of its shards that are answered, in order, and goes on with each that follows. So when the last line is
 * answered, little is left to do. All of it is in that process's memory: if it dies, the files are written from the
 * start, as those of other jobs are. A lease tells the others to leave the job's end to it.
 */
export interface EarlyFiles {
  /** This process has committed so many bytes of a job's answers: it may be time to begin. */
  committed(jobId: string, bytes: number): void;
  /** Finishes what this process has begun of a job that is `finalizing`; null where that is nothing, or not good. */
  finish(job: JobRecord, undone: Undone | null): Promise<Written | null>;
  close(): Promise<void>;
}

interface Options {
  /** Of this process, among all that there are. */
  name: string;
  deps(): Deps;
  leastBytes?: number;
}

/** How far the shards of a job were taken. */
interface Progress {
  /** The first ones, and what was recorded of them. */
  taken: number;
  digest: Hash;
  /** Set when the job's records stand still: the rest may be taken as it is. */
  sealed: { job: JobRecord; undone: Undone | null } | null;
}

/** Files that are being written. */
interface Run {
  jobId: string;
  progress: Progress;
  written: Promise<Written>;
  /** Why they cannot be written. */
  failure: Error | null;
}

export function createEarlyFiles({ name, deps, leastBytes = LEAST_BYTES }: Options): EarlyFiles {
  const counted = new Map<string, number>();
  const closing = new AbortController();
  let current: Run | null = null;
  /** One job at a time: each needs memory for what is on its way to the store. */
  let busy: Promise<void> | null = null;

  async function write(jobId: string): Promise<void> {
    const { store, log } = deps();
    const job = await store.jobs.get(jobId);
    if (job === null || !endsSoon(job, deps().now())) return;
    await underLease(store.writer(jobId), name, closing.signal, async (signal) => {
      log.info({ jobId }, 'files of a job are written while it runs');
      const over = new AbortController();
      current = begin(job, AbortSignal.any([signal, over.signal]), deps());
      try {
        await follow(current, signal, deps());
      } finally {
        over.abort(new Error('nobody wants these files any more'));
        // Only its end matters here: a failure that anybody waits for is told by `follow` or by `finish`.
        await Promise.allSettled([current.written]);
        current = null;
      }
    });
  }

  return {
    committed(jobId, bytes) {
      const sum = (counted.get(jobId) ?? 0) + bytes;
      counted.delete(jobId);
      if (busy !== null || sum < leastBytes || closing.signal.aborted) {
        counted.set(jobId, sum);
        const [oldest] = counted.keys();
        if (counted.size > MOST_COUNTED && oldest !== undefined) counted.delete(oldest);
        return;
      }
      busy = write(jobId)
        .catch((err: unknown) => {
          if (closing.signal.aborted) return;
          // All that is lost is time: they are written when the job is over.
          deps().log.warn({ jobId, err }, NOT_WRITTEN);
        })
        .finally(() => (busy = null));
    },
    async finish(job, undone) {
      if (current?.jobId !== job.id || current.progress.sealed !== null) return null;
      const { progress, written } = current;
      progress.sealed = { job, undone };
      try {
        return await written;
      } catch (err) {
        deps().log.warn({ jobId: job.id, err }, NOT_WRITTEN);
        return null;
      }
    },
    async close() {
      closing.abort(new Error('the process stops'));
      await busy;
    },
  };
}

/** Does something under a lease if nobody else has it; its signal is aborted when the lease is lost, or by `stop`. */
async function underLease(
  lease: Lease,
  holder: string,
  stop: AbortSignal,
  action: (signal: AbortSignal) => Promise<void>,
): Promise<void> {
  if (!(await lease.lease(holder, LEASE_MS))) return;
  const lost = new AbortController();
  const renewing = setInterval(() => {
    lease.lease(holder, LEASE_MS).then(
      (isOurs) => isOurs || lost.abort(new Error('another process has the lease')),
      // The next one is due in a moment.
      () => undefined,
    );
  }, RENEW_MS);
  try {
    await action(AbortSignal.any([stop, lost.signal]));
  } finally {
    clearInterval(renewing);
    await lease.yield(holder);
  }
}

/** By how fast it went until now. */
function endsSoon({ state, enteredAt, shards, doneShards }: JobRecord, now: number): boolean {
  if (state !== 'in_progress' || enteredAt.in_progress === undefined) return false;
  return (now - enteredAt.in_progress) * (shards / doneShards - 1) <= SOON_MS;
}

function begin(job: JobRecord, signal: AbortSignal, deps: Deps): Run {
  const progress: Progress = { taken: 0, digest: createHash('sha1'), sealed: null };
  const shards = shardsAsTheyCome(job, progress, signal, deps);
  // What is fetched ahead is memory that lines in flight may need.
  const options = { undone: () => progress.sealed?.undone ?? null, signal, aheadBytes: 0 };
  const written = writeFiles(job, shards, options, deps);
  const run: Run = { jobId: job.id, progress, written, failure: null };
  written.catch((error: Error) => (run.failure = error));
  return run;
}

/** Ends the job when it is over; resolves when nobody is to write its files early any more. */
async function follow(run: Run, signal: AbortSignal, deps: Deps): Promise<void> {
  for (;;) {
    await delay(LOOK_MS, undefined, { signal }).catch(() => signal.throwIfAborted());
    if (run.failure !== null) throw run.failure;
    const job = await deps.store.jobs.get(run.jobId);
    if (job?.state === 'finalizing') {
      await finalize(job, signal, deps);
      return;
    }
    const goesOn = job?.state === 'in_progress' || job?.state === 'cancelling';
    if (!goesOn || isPaused(job)) return;
  }
}

/** The job's shards in order: while it runs each when all of its lines are answered, and then the rest as they are. */
async function* shardsAsTheyCome(
  { id, shards }: JobRecord,
  progress: Progress,
  signal: AbortSignal,
  { store }: Pick<Deps, 'store'>,
): AsyncGenerator<AcceptedShard> {
  while (progress.sealed === null) {
    const next = Math.min(progress.taken + AT_ONCE, shards);
    for await (const shard of store.shards.accepted(id, progress.taken, next)) {
      if (!isWhole(shard)) break;
      progress.digest.update(recordOf(shard));
      progress.taken += 1;
      yield shard;
    }
    if (progress.taken < next || next === shards) await delay(LOOK_MS);
    signal.throwIfAborted();
  }
  // Answers that were struck out and asked again are others now; nothing else changes a shard that has all of its own.
  const now = createHash('sha1');
  for await (const shard of store.shards.accepted(id, 0, progress.taken)) {
    now.update(recordOf(shard));
  }
  if (now.digest('hex') !== progress.digest.digest('hex')) throw changed(id);
  yield* store.shards.accepted(id, progress.taken, shards);
  const last = await store.jobs.get(id);
  if (last?.version !== progress.sealed.job.version) throw changed(id);
}

function recordOf({ plan, parts }: AcceptedShard): string {
  return JSON.stringify([plan.n, parts]);
}

function changed(jobId: string): Error {
  return transient('job.changed', `records of ${jobId} changed while its files were written`);
}
