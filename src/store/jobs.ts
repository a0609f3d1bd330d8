import { Cluster } from 'ioredis';
import * as v from 'valibot';
import { isFinal, JOB } from '../domain/job.ts';
import type {
  Cut,
  Endpoint,
  JobEvent,
  JobEventKind,
  JobOptions,
  JobRecord,
  JobState,
  Outcome,
} from '../domain/job.ts';
import type { RemoteBatch, RemoteLook } from '../domain/remote.ts';
import { parseJobEvent, parseJobRecord } from './job-record.ts';
import { jobKey, recordKey } from './keys.ts';
import {
  createRecord,
  enterIndex,
  enterIndexAt,
  indexAge,
  moveRecord,
  pageRecords,
  readFields,
  wakeRecord,
  walkIndex,
} from './records.ts';
import type { Context, Moved } from './records.ts';
import { damaged, newOp } from './scripts.ts';

/** A job as it was asked for. Its deadline is Redis' time at creation and `windowMs`. */
export interface NewJob {
  id: string;
  name: string;
  endpoint: Endpoint;
  input: string;
  completionWindow: string;
  windowMs: number;
  metadata: Record<string, string>;
  maxConcurrency: number;
  engines: string[];
  options: JobOptions;
  cut: Cut;
  /** Tells a request that was sent twice from another one under the same id. */
  bodyHash: string;
}

type Settable =
  | 'models'
  | 'remote'
  | 'lines'
  | 'shards'
  | 'outputFile'
  | 'errorFile'
  | 'errors'
  | 'reason'
  | 'completed'
  | 'failed';

/** What a move changes besides the state. `event` is the entry's text in the job's history. */
export interface JobChange {
  /** Kept only by a job that has none yet; one that becomes final has its state as outcome. */
  outcome?: Outcome;
  set?: Partial<Pick<JobRecord, Settable>>;
  event?: string;
}

export interface Jobs {
  /**
   * Makes a job in `queued`. `exists`: this id and body are there already; `other`: the id is, with another body.
   * A damaged record is `store.damaged_record` (Permanent), here and wherever one job is read.
   */
  create(job: NewJob): Promise<{ outcome: 'created' | 'exists' | 'other'; job: JobRecord }>;
  get(id: string): Promise<JobRecord | null>;
  /**
   * Moves a job that still has the state and version that the caller read; `stale` otherwise. Whether the state table
   * allows the move is the caller's to know. A final job leaves the indexes of active jobs and deadlines.
   */
  move(
    job: { id: string; state: JobState; version: number },
    to: JobState,
    change?: JobChange,
  ): Promise<Moved | 'stale'>;
  /** Raises the wake if it still is `wake`, and returns the new one. */
  wake(id: string, wake: number): Promise<number | 'stale'>;
  /** Says for people why an unfinished job stands where it stands. */
  note(id: string, reason: string): Promise<void>;
  /** Writes into the history of an unfinished job what its engine said. */
  tell(id: string, message: string): Promise<void>;
  /**
   * Holds a job that has no outcome yet: from now on none of its shards is taken. False where it has one, or is gone.
   * `by` is who asks, empty where nobody says.
   */
  pause(id: string, by: string, why?: string): Promise<boolean>;
  /** Ends a pause; whoever calls it opens shards. False as with `pause`. */
  resume(id: string): Promise<boolean>;
  /** Gives a job that has no outcome yet another deadline. False as with `pause`. */
  extend(job: JobRecord, completionWindow: string, windowMs: number): Promise<boolean>;
  /**
   * Gives models of a job up that is in progress: its lines that name them are answered with an error. False where it
   * is not, or paused, or all its models were given up then.
   */
  giveUp(id: string, models: readonly string[], event: string): Promise<boolean>;
  /**
   * Writes what is known of a job's remote batch, if that still is `before`, and with `counts` how far it is. False
   * where somebody else has written it meanwhile, or the job's records stand still, or it is gone.
   */
  noteRemote(
    id: string,
    change: { before: RemoteBatch; now: RemoteBatch },
    counts?: Pick<RemoteLook, 'completed' | 'failed' | 'usage'>,
  ): Promise<boolean>;
  /** Whether the index of deadlines had an earlier one than the record, which then is put right. */
  mendDeadline(job: JobRecord): Promise<boolean>;
  /**
   * Newest first, created from `from` up to `to` (ms, both included). With `matches` a page ends after some looks at
   * least, however few it found: `cursor` is what the next one goes on after. An unknown `after` is `invalid_cursor`
   * (InvalidInput).
   */
  page(options: {
    after?: string | undefined;
    limit: number;
    from?: number | undefined;
    to?: number | undefined;
    matches?: (job: JobRecord) => boolean;
  }): Promise<{ jobs: JobRecord[]; hasMore: boolean; cursor: string }>;
  /** The job's history, oldest first. */
  events(id: string): Promise<JobEvent[]>;
  /** Ids of unfinished jobs, oldest first; some may have no record, or a final one. */
  active(): AsyncIterable<string>;
  /** Ids of jobs whose deadline is over by Redis' clock, longest over first. */
  due(limit: number): Promise<string[]>;
  /** Removes index entries that dangle: those of a final job, or of an id without a record. Others stay. */
  forget(id: string): Promise<void>;
  /** Milliseconds since an active job was accepted; 0 when it is not active. */
  age(id: string): Promise<number>;
  /** Tells all listeners that the job is to stop. May be lost: the record says the same. */
  publishStop(id: string): Promise<void>;
  subscribeStops(listener: (jobId: string) => void): Promise<{ close(): Promise<void> }>;
}

export function createJobs(context: Context): Jobs {
  const { redis, scripts, keys } = context;
  return {
    create: (job) => createJob(context, job),
    get: (id) => getJob(context, id),
    move: (job, to, change = {}) => moveJob(context, job, to, change),
    wake: (id, wake) => wakeRecord(context, id, wake),
    async tell(id, message) {
      await context.scripts.run('tell', recordKey(id), 'engine', message);
    },
    async note(id, reason) {
      await scripts.run('note', recordKey(id), reason);
    },
    pause: (id, by, why = '') =>
      amend(context, id, 'paused', pausedMessage(by, why), { paused_at: '@now', paused_by: by }),
    resume: (id) => amend(context, id, 'resumed', 'Resumed.', { paused_at: '', paused_by: '' }),
    extend: (job, window, windowMs) => extendJob(context, job, window, windowMs),
    async giveUp(id, models, event) {
      const list = JSON.stringify(models);
      return (await scripts.run('give-up', recordKey(id), list, event)) === 1;
    },
    async noteRemote(id, { before, now }, counts) {
      const texts = [JSON.stringify(before), JSON.stringify(now)];
      const args = counts === undefined ? [] : countFields(counts);
      return (await scripts.run('remote', recordKey(id), ...texts, ...args)) === 1;
    },
    mendDeadline: (job) => mendDeadline(context, job),
    async page({ matches, ...place }) {
      const { records, ...rest } = await pageRecords(context, {
        ...place,
        index: keys.jobs,
        order: 'desc',
        parse: parseJobRecord,
        ...(matches === undefined ? {} : { matches, mostLooked: MOST_LOOKED }),
      });
      return { jobs: records, ...rest };
    },
    async events(id) {
      const entries = await redis.xrange(jobKey(id, 'EVENTS'), '-', '+');
      return entries.map(([entry, fields]) => parseJobEvent(id, entry, fields));
    },
    active: () => walkIndex(context, keys.active),
    due: async (limit) =>
      v.parse(v.array(v.string()), await scripts.run('due', keys.deadlines, limit)),
    forget: (id) => forgetJob(context, id),
    age: (id) => indexAge(context, keys.active, id),
    async publishStop(id) {
      await redis.publish(keys.stop, id);
    },
    subscribeStops: (listener) => subscribe(context, listener),
  };
}

async function createJob(context: Context, job: NewJob): ReturnType<Jobs['create']> {
  const { keys } = context;
  const outcome = await createRecord(context, {
    id: job.id,
    bodyHash: job.bodyHash,
    async enter(anew) {
      const at = await enterIndex(context, keys.jobs, job.id, anew);
      await enterIndexAt(context, keys.active, job.id, at, anew);
      await enterIndexAt(context, keys.deadlines, job.id, at + job.windowMs, anew);
      return at;
    },
    fields: (at) => ({
      state: 'queued',
      version: 1,
      wake: 1,
      name: job.name,
      endpoint: job.endpoint,
      input: job.input,
      window: job.completionWindow,
      deadline: at + job.windowMs,
      metadata: JSON.stringify(job.metadata),
      max_concurrency: job.maxConcurrency,
      engines: JSON.stringify(job.engines),
      options: JSON.stringify(job.options),
      cut: JSON.stringify(job.cut),
      created_at: at,
      queued_at: at,
    }),
    event: { state: 'queued', message: 'Job accepted.' },
  });
  const record = await getJob(context, job.id);
  if (record === null) throw damaged(job.id, '(all)');
  // A repeat has entered a job that may have left already.
  if (outcome !== 'created' && isFinal(record.state)) await leave(context, job.id);
  return { outcome, job: record };
}

async function getJob(context: Context, id: string): Promise<JobRecord | null> {
  const fields = await readFields(context, id);
  return fields === null ? null : parseJobRecord(id, fields);
}

async function moveJob(
  context: Context,
  job: { id: string; state: JobState; version: number },
  to: JobState,
  change: JobChange,
): Promise<Moved | 'stale'> {
  // A job that comes back from `finalizing` has a deadline again; index first, so that none is without an entry.
  if (job.state === 'finalizing' && !isFinal(to)) await enterDeadline(context, job.id);
  const moved = await moveRecord(context, {
    id: job.id,
    from: job.state,
    to,
    version: job.version,
    queued: JOB[to].queue !== null,
    ...(change.outcome === undefined ? {} : { outcome: change.outcome }),
    event: change.event ?? '',
    // A job may end as something else than it was to: its files cannot be written.
    fields: { ...renderChange(change.set ?? {}), ...(isFinal(to) ? { outcome: to } : {}) },
  });
  if (moved === 'stale') return moved;
  if (isFinal(to)) await leave(context, job.id);
  // A job that is ending has its outcome: its deadline is nobody's business any more, and must not hide others'.
  else if (to === 'cancelling' || to === 'finalizing') {
    await context.redis.zrem(context.keys.deadlines, job.id);
  }
  return moved;
}

async function enterDeadline({ redis, keys }: Context, id: string): Promise<void> {
  const deadline = await redis.hget(recordKey(id), 'deadline');
  if (deadline !== null) await redis.zadd(keys.deadlines, deadline, id);
}

/** A filter that matches few must not keep a request and Redis busy for all jobs that there ever were. */
const MOST_LOOKED = 1_000;

function pausedMessage(by: string, why: string): string {
  const paused = by === '' ? 'Paused.' : `Paused by ${by}.`;
  return why === '' ? paused : `${paused} ${why}`;
}

async function amend(
  { scripts }: Context,
  id: string,
  kind: Exclude<JobEventKind, 'state' | 'given_up'>,
  message: string,
  fields: Record<string, string | number>,
): Promise<boolean> {
  const args = Object.entries(fields).flat();
  return (await scripts.run('amend', recordKey(id), newOp(), kind, message, ...args)) === 1;
}

async function extendJob(
  context: Context,
  job: JobRecord,
  window: string,
  windowMs: number,
): Promise<boolean> {
  const deadline = job.createdAt + windowMs;
  const message = `The completion window is ${window} now.`;
  const amended = await amend(context, job.id, 'extended', message, {
    window,
    deadline,
    extended: 1,
  });
  // Record first: an index that is behind expires nothing, since who finds the job there looks at its record.
  if (amended) await context.redis.zadd(context.keys.deadlines, 'XX', 'GT', deadline, job.id);
  return amended;
}

async function mendDeadline(
  { redis, keys }: Context,
  { id, deadline }: JobRecord,
): Promise<boolean> {
  const indexed = await redis.zscore(keys.deadlines, id);
  if (indexed === null || Number(indexed) >= deadline) return false;
  await redis.zadd(keys.deadlines, 'XX', deadline, id);
  return true;
}

const FIELD_OF = {
  models: 'models',
  remote: 'remote',
  lines: 'lines',
  shards: 'shards',
  outputFile: 'output_file',
  errorFile: 'error_file',
  errors: 'errors',
  reason: 'reason',
  completed: 'completed',
  failed: 'failed',
} as const satisfies Record<Settable, string>;

function renderChange(set: Partial<Pick<JobRecord, Settable>>): Record<string, string | number> {
  const fields: Record<string, string | number> = {};
  for (const name of Object.keys(FIELD_OF) as Settable[]) {
    const value = set[name];
    if (value === undefined) continue;
    fields[FIELD_OF[name]] =
      typeof value === 'object' && value !== null ? JSON.stringify(value) : (value ?? '');
  }
  return fields;
}

function countFields({
  completed,
  failed,
  usage,
}: Pick<RemoteLook, 'completed' | 'failed' | 'usage'>): (string | number)[] {
  const counts = ['completed', completed, 'failed', failed];
  if (usage === null) return counts;
  const { inputTokens, cachedTokens, outputTokens, reasoningTokens } = usage;
  const read = ['tokens_in', inputTokens, 'tokens_cached', cachedTokens];
  return [...counts, ...read, 'tokens_out', outputTokens, 'tokens_reasoning', reasoningTokens];
}

async function leave(context: Context, id: string): Promise<void> {
  const { redis, keys } = context;
  // Before the last index that knows of it forgets it: a crash between leaves one in which the sweeper finds it.
  const left = [keys.telling, keys.ended, keys.keeping];
  await Promise.all(left.map((index) => enterIndex(context, index, id, false)));
  await Promise.all([redis.zrem(keys.active, id), redis.zrem(keys.deadlines, id)]);
}

async function forgetJob(context: Context, id: string): Promise<void> {
  const state = await context.redis.hget(recordKey(id), 'state');
  const final = Object.entries(JOB).some(([name, { next }]) => name === state && next.length === 0);
  if (state !== null && !final) return;
  if (state !== null) return leave(context, id);
  const { jobs, active, deadlines } = context.keys;
  await Promise.all([jobs, active, deadlines].map((index) => context.redis.zrem(index, id)));
}

async function subscribe(
  { redis, keys }: Context,
  listener: (jobId: string) => void,
): Promise<{ close(): Promise<void> }> {
  // A connection that subscribes can send nothing else.
  const connection = redis instanceof Cluster ? redis.duplicate() : redis.duplicate();
  // ioredis connects and subscribes again by itself; what is missed meanwhile, the record says too.
  connection.on('error', () => undefined);
  connection.on('message', (_channel: string, jobId: string) => listener(jobId));
  try {
    await connection.subscribe(keys.stop);
  } catch (error) {
    connection.disconnect();
    throw error;
  }
  return {
    async close() {
      connection.removeAllListeners('message');
      connection.disconnect();
      await Promise.resolve();
    },
  };
}
