/**
 * The only place where a key of Redis is spelt. A record and all that belongs to it share a hash tag, `{job_…}`, and
 * so one slot of a Redis Cluster: a script may touch them together. Indexes lie anywhere, so they are entered before
 * the record is written and left after it is gone; an entry without a record does no harm.
 *
 *     {job_x}             hash    state version op wake wake_op outcome name endpoint input window deadline metadata
 *                                 max_concurrency engines options cut models lines shards next done_shards completed failed
 *                                 tokens_in tokens_cached tokens_out tokens_reasoning output_file error_file errors
 *                                 reason created_at body_hash, and <state>_at
 *     {job_x}:s:<n>       hash    first lines offset bytes · wake op token takes done left parts
 *     {job_x}:todo        list    shards given back; those never opened are `next` to `shards` - 1
 *     {job_x}:queued      zset    shard → since when it waits for a worker
 *     {job_x}:held        zset    shard → when it was taken
 *     {job_x}:segments    hash    segment id → "bytes sha256"
 *     {job_x}:events      stream  state, message
 *     {job_x}:provisions  set     ids of all that it ever had
 *     {prov_x}            hash    job slot state version op wake wake_op provider owner address reason reason_at created_at, <state>_at
 *     {file_x}            hash    op bytes sha256 filename purpose created_at
 *     {file_x}:removed    string  op that removed it, for a minute
 *
 * `op` and `wake_op` are the ids of the last compare-and-set, by which a command that ioredis sent again knows itself.
 * Of a shard, `done` is a bitmap (line i is bit `1 << (i & 7)` of byte `i >> 3`), `takes` counts takes since the last
 * commit, and `parts` is ";segment offset length crc" in order of commit; what is not written yet means all lines
 * left, no bit, 0. Times are Redis time in ms.
 */

/** What follows a record's key; scripts get these as constants. */
export const SUFFIXES = {
  SHARD: ':s:',
  TODO: ':todo',
  QUEUED: ':queued',
  HELD: ':held',
  SEGMENTS: ':segments',
  EVENTS: ':events',
  PROVISIONS: ':provisions',
  REMOVED: ':removed',
} as const;

/** Key of the record of a job, a provision or a file. */
export function recordKey(id: string): string {
  return `{${id}}`;
}

export function shardKey(jobId: string, n: number): string {
  return `${recordKey(jobId)}${SUFFIXES.SHARD}${n}`;
}

/** Key of one of the collections that belong to a job. */
export function jobKey(
  jobId: string,
  part: Exclude<keyof typeof SUFFIXES, 'SHARD' | 'REMOVED'>,
): string {
  return `${recordKey(jobId)}${SUFFIXES[part]}`;
}

/** Keys that belong to no record. */
export interface GlobalKeys {
  /** All jobs, unfinished jobs, their deadlines, unreleased provisions, all files: sorted sets, id → time. */
  jobs: string;
  active: string;
  deadlines: string;
  provisions: string;
  files: string;
  /** Heartbeats: process id → "time JSON". */
  nodes: string;
  /** Who sweeps. */
  sweep: string;
  /** Identity of the storage that these records belong to. */
  storage: string;
  /** The channel on which a job's id says that the job is to stop. */
  stop: string;
}

export function globalKeys(namespace: string): GlobalKeys {
  return {
    jobs: `${namespace}:jobs`,
    active: `${namespace}:active`,
    deadlines: `${namespace}:deadlines`,
    provisions: `${namespace}:provisions`,
    files: `${namespace}:files`,
    nodes: `${namespace}:nodes`,
    sweep: `${namespace}:sweep`,
    storage: `${namespace}:storage`,
    stop: `${namespace}:stop`,
  };
}
