/**
 * The only place where a key of Redis is spelt. A record and all that belongs to it share a hash tag, `{job_…}`, and
 * so one slot of a Redis Cluster: a script may touch them together. Indexes lie anywhere, so they are entered before
 * the record is written and left after it is gone; an entry without a record does no harm.
 *
 *     {job_x}             hash    state version op wake wake_op amend_op outcome name endpoint input window deadline
 *                                 metadata max_concurrency engines options remote cut models lines shards next done_shards completed failed
 *                                 tokens_in tokens_cached tokens_out tokens_reasoning output_file error_file errors
 *                                 reason paused_at paused_by extended created_at told_at body_hash, and <state>_at
 *     {job_x}:s:<n>       hash    first lines offset bytes bad · wake op token takes alone done left parts
 *     {job_x}:todo        list    shards given back; those never opened are `next` to `shards` - 1
 *     {job_x}:queued      zset    shard → since when it waits for a worker
 *     {job_x}:held        zset    shard → when it was taken
 *     {job_x}:segments    hash    segment id → "bytes sha256"
 *     {job_x}:events      stream  state, message, kind unless it is a new state
 *     {job_x}:provisions  set     ids of all that it ever had
 *     {job_x}:writer      string  the process that writes its files while it runs; a lease
 *     {prov_x}            hash    job slot state version op wake wake_op provider owner address models reason reason_at created_at,
 *                                 <state>_at · current attempt:<n> (JSON) login waiting_since engine_at crashes log_offset
 *                                 unreachable_since handed_to destroying bump_op, of one that leases a machine;
 *                                 host_key claimed_at, of one that is on a machine of the caller's
 *     {file_x}            hash    op bytes sha256 filename purpose created_at expires_at mime_type location
 *     {file_x}:removed    string  op that removed it, for a minute
 *     {job_x}:erased      string  what of an erased job, or {prov_x}, is still to go, as JSON; for a month
 *     {upload_x}          hash    op body_hash status filename purpose mime_type bytes expires_after created_at expires_at
 *                                 attempt busy_until end_op ended_at file sha256 md5 list file_made
 *     {upload_x}:parts    hash    part → "bytes created_at"
 *     {upload_x}:attempts set     files that attempts at completing it began to write
 *     {<ns>:model:x}      hash    op info created_at, of a model; its templates share its tag:
 *     …:t:<id>            hash    op handle name version status spec revision created_at updated_at used_at
 *     …:templates         zset    template → when it was made
 *     …:versions          hash    "[name,version]" → template
 *
 * `op`, `wake_op` and `amend_op` are the ids of the last changes, by which a command that ioredis sent again knows itself.
 * Of a shard, `done` and `bad` are bitmaps (line i is bit `1 << (i & 7)` of byte `i >> 3`), `takes` counts takes since the last
 * commit, `alone` is "line deaths at token" of one that was alone in hand of a holder, and `parts` is ";segment offset length crc ok failed tokens" in order of commit, the tokens four sums in the
 * order of the job's; what is not written yet means all lines left, no bit, 0. Times are Redis time in ms.
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
  WRITER: ':writer',
  REMOVED: ':removed',
  TEMPLATE: ':t:',
  TEMPLATES: ':templates',
  VERSIONS: ':versions',
  UPLOAD_PARTS: ':parts',
  UPLOAD_FILES: ':attempts',
  ERASED: ':erased',
} as const;

/**
 * What follows the base of the webhooks' keys, which share one hash tag, so that an attempt, its place in the queue
 * and its host's are written together:
 *
 *     …:endpoints   zset  id → when it was registered        …:e:<id>      hash  url events secret disabled created_at
 *     …:hosts       zset  host → when it is its turn         …:h:<host>    zset  delivery id → when it is due
 *     …:fresh       zset  those of the hosts whose next delivery was not tried yet
 *     …:d:<id>      hash  event type target url body attempts op created_at; a while longer than it is needed
 *     …:a:<target>  list  "at attempt next_at JSON", newest first      …:lease  string  who sends
 */
export const WEBHOOK_PARTS = {
  ENDPOINTS: ':endpoints',
  ENDPOINT: ':e:',
  HOSTS: ':hosts',
  FRESH: ':fresh',
  HOST: ':h:',
  DELIVERY: ':d:',
  ATTEMPTS: ':a:',
  LEASE: ':lease',
} as const;

/** What follows the key of a token bucket, `{<ns>:limit:<name>}` (hash level at hungry): replies to draws, by op. */
export const LIMIT_PARTS = { LIMIT_REPLY: ':o:' } as const;

/** What follows the key of an engine, `<ns>:engine:<digest>`: who sends lines there of which it may die; a lease. */
export const ENGINE_PARTS = { ISOLATION: ':isolation' } as const;

/** What begins the fields of a provision's attempts at leasing a machine; their number ends them. */
export const ATTEMPT_FIELD = 'attempt:';

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
  part: Exclude<
    keyof typeof SUFFIXES,
    | 'SHARD'
    | 'REMOVED'
    | 'ERASED'
    | 'TEMPLATE'
    | 'TEMPLATES'
    | 'VERSIONS'
    | 'UPLOAD_PARTS'
    | 'UPLOAD_FILES'
  >,
): string {
  return `${recordKey(jobId)}${SUFFIXES[part]}`;
}

/** Key of one of the collections that belong to an upload. */
export function uploadKey(uploadId: string, part: 'UPLOAD_PARTS' | 'UPLOAD_FILES'): string {
  return `${recordKey(uploadId)}${SUFFIXES[part]}`;
}

/** Keys that belong to no record. */
export interface GlobalKeys {
  /** All jobs, unfinished jobs, their deadlines, unreleased provisions, all files: sorted sets, id → time. */
  jobs: string;
  active: string;
  deadlines: string;
  provisions: string;
  files: string;
  /** Files that expire or are being deleted, and uploads: sorted sets, id → when the sweeper is to look at it. */
  fileExpiry: string;
  uploads: string;
  /** All models, and all provisions that ever were: sorted sets, id → time. */
  models: string;
  everyProvision: string;
  /** Begins the ids of models' records: their own ids come from names, and are known in one namespace only. */
  model: string;
  /** Heartbeats: process id → "time JSON". */
  nodes: string;
  /** Begins the keys of what processes tell each other of an engine; they vanish with a minute of silence. */
  engine: string;
  /** Who sweeps. */
  sweep: string;
  /** Identity of the storage that these records belong to. */
  storage: string;
  /** Final jobs whose end is not recorded for webhooks yet: id → time. */
  telling: string;
  /** Final jobs, and those of them whose shards and segments may be there: id → when it ended. */
  ended: string;
  keeping: string;
  /** Jobs that somebody began to erase: id → when the sweeper is to look at it. */
  erasing: string;
  /** Who collects what is over, when that was done last (sorted set), and how often (hash id round doubt). */
  collecting: string;
  collected: string;
  census: string;
  /** Who compares providers' inventories with the records. */
  machineSweep: string;
  /** Machines, as "provider id": those that no record names by when that was found, and those that are destroyed by when that was asked for first; sorted sets. */
  orphans: string;
  destroyed: string;
  /** Base of the webhooks' keys. */
  webhooks: string;
  /** Begin the keys of requests by their idempotency keys, and of the seeds of creates without one. */
  idempotency: string;
  seeds: string;
  /** Begins the keys of sets: the idempotency keys under which an answer is kept that tells of this job or file. */
  answers: string;
  /** Key of the token bucket of this name. */
  limit(name: string): string;
  /** Begins the keys of machines' names: the provision that has the machine. */
  machine: string;
  /** Provisions that lease a machine: a sorted set, id → since when. */
  seats: string;
  /** Begin the keys of sorted sets, id → since when: provisions that wait for a machine of a kind, or keep one. */
  wanting: string;
  warm: string;
  /** Begins the keys of hashes: GPU type → what jobs of a template did there, as JSON. */
  speeds: string;
  /** Hosts that machines of no use came up on: a sorted set, name → until when they are avoided. */
  badHosts: string;
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
    fileExpiry: `${namespace}:file-expiry`,
    uploads: `${namespace}:uploads`,
    models: `${namespace}:models`,
    everyProvision: `${namespace}:every-provision`,
    model: `${namespace}:model:`,
    nodes: `${namespace}:nodes`,
    engine: `${namespace}:engine:`,
    sweep: `${namespace}:sweep`,
    storage: `${namespace}:storage`,
    telling: `${namespace}:telling`,
    ended: `${namespace}:ended`,
    keeping: `${namespace}:keeping`,
    erasing: `${namespace}:erasing`,
    collecting: `${namespace}:collecting`,
    collected: `${namespace}:collected`,
    census: `${namespace}:census`,
    machineSweep: `${namespace}:machine-sweep`,
    orphans: `${namespace}:orphans`,
    destroyed: `${namespace}:destroyed`,
    webhooks: recordKey(`${namespace}:webhooks`),
    idempotency: `${namespace}:idem:`,
    seeds: `${namespace}:seed:`,
    answers: `${namespace}:answers:`,
    limit: (name) => recordKey(`${namespace}:limit:${name}`),
    machine: `${namespace}:machine:`,
    seats: `${namespace}:seats`,
    wanting: `${namespace}:wanting:`,
    warm: `${namespace}:warm:`,
    speeds: `${namespace}:speeds:`,
    badHosts: `${namespace}:bad-hosts`,
    stop: `${namespace}:stop`,
  };
}

/** Id under which a model's record lies: no id of a job, provision or file looks like it. */
export function modelRecordId(keys: GlobalKeys, modelId: string): string {
  return `${keys.model}${modelId}`;
}

export function templateKey(keys: GlobalKeys, modelId: string, templateId: string): string {
  return `${recordKey(modelRecordId(keys, modelId))}${SUFFIXES.TEMPLATE}${templateId}`;
}

export function templatesKey(keys: GlobalKeys, modelId: string): string {
  return `${recordKey(modelRecordId(keys, modelId))}${SUFFIXES.TEMPLATES}`;
}
