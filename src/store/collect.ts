import * as v from 'valibot';
import type { ObjectOwner } from '../domain/object-owner.ts';
import { isFinalName } from '../domain/job.ts';
import { jobKey, recordKey, shardKey, SUFFIXES, uploadKey } from './keys.ts';
import { jsonText, parseRecord } from './parse.ts';
import type { Fields } from './parse.ts';
import { enterIndex, walkIndex } from './records.ts';
import type { Context } from './records.ts';

/** What of an erased job is still to go. */
export interface ErasureNote {
  /** When it began, ms. */
  at: number;
  /** Whether its files go as well, and its input where no other job has it. */
  withFiles: boolean;
  /** Id of its input. */
  input: string;
  /** Ids of all provisions that it had. */
  provisions: string[];
}

/** How often the storage of these records was collected, and by which records; both grow with the records only. */
export interface Census {
  id: string;
  round: number;
  /** Why nothing may be removed that no record names, until a person says that it may; null: nothing is wrong. */
  doubt: string | null;
}

/** What is over and is to go: jobs by when they ended, and what of them is left. Times are ms since 1970. */
export interface Collect {
  /** The lease under which one process at a time collects: as the sweeper's. */
  lease(holder: string, ms: number): Promise<boolean>;
  yield(holder: string): Promise<void>;

  /** Ids of final jobs that ended until then, oldest first; some may have no record. */
  ended(until: number): AsyncIterable<string>;
  /** Those of them whose shards and segments may still be there. */
  keeping(until: number): AsyncIterable<string>;
  /** Puts a job whose segments were found among those of `keeping`, if it is over and not there. */
  keep(jobId: string): Promise<void>;
  /** Takes a job of which nothing is left out of `keeping`. */
  forgetKept(jobId: string): Promise<void>;

  /** How many shards of a job have a record; each from 0 on has one. */
  countShards(jobId: string): Promise<number>;
  /**
   * Removes shards `first` to `first + count - 1` of a job that is over or gone, and what lists them; with `keepPlans` all
   * of each but its plan and which lines are bad. False where the job is not over. From the last run to the first: then
   * `countShards` tells what is left after a crash.
   */
  dropShards(jobId: string, first: number, count: number, keepPlans: boolean): Promise<boolean>;

  /**
   * Removes the record and history of a final job, which nobody sees from then on, and notes what is still to go.
   * `erased` also where it was before; with `withFiles` its files go then, too. No other job gets its id for a month.
   * `erasing` names it after a minute, unless `postponeErasure` says otherwise.
   */
  erase(
    jobId: string,
    wish: Omit<ErasureNote, 'provisions'>,
  ): Promise<'erased' | 'running' | 'gone'>;
  /** Null for a job that was not erased within a month. */
  erasure(jobId: string): Promise<ErasureNote | null>;
  /** Ids of jobs whose erasure is to be looked at until then; some were not begun, or have their record again. */
  erasing(until: number): AsyncIterable<string>;
  postponeErasure(jobId: string, until: number): Promise<void>;
  /** Ends an erasure, unless somebody began one that is due after `until`; the note stays for its time. */
  forgetErasure(jobId: string, until: number): Promise<void>;
  /** Removes provisions of an erased job that are released, and returns those that are not. */
  eraseProvisions(jobId: string, ids: readonly string[]): Promise<string[]>;
  /** Takes an erased job out of all indexes but that of erasures. */
  leaveIndexes(jobId: string): Promise<void>;
  /** Those of the files that any job but this one has as its input. Looks at every job. */
  inputsOfOthers(fileIds: readonly string[], jobId: string): Promise<Set<string>>;
  /** The input of a job, also where the rest of its record cannot be read. */
  inputOf(jobId: string): Promise<string | null>;

  /** Ids of all files that were made until then, oldest first; some may have no record. */
  filesUntil(until: number): AsyncIterable<string>;
  /**
   * Whether a record names an object, or still may: never false for what an unfinished job or upload needs. With
   * `byIndex` also where only an index has the id, whose record is lost.
   */
  isNamed(owner: ObjectOwner, byIndex: boolean): Promise<boolean>;

  /** Null where these records were never given an id. */
  census(): Promise<Census | null>;
  /** Gives these records this id in round 0, unless they have one; returns what holds. */
  beginCensus(id: string): Promise<Census>;
  setCensus(census: Census): Promise<void>;
  setDoubt(doubt: string): Promise<void>;
  /** When it was collected last by Redis' clock; null: never. */
  collectedAt(): Promise<number | null>;
  markCollected(): Promise<void>;
  /** The identity of the storage that these records belong to; null when they know of none. */
  boundStorage(): Promise<string | null>;
}

/** Longer than any process may go on with a job that it does not know to be gone. */
const NOTE_SECONDS = 30 * 86_400;
/** Longer than it takes whoever begins an erasure to have it take effect. */
const UNDISTURBED_MS = 60_000;
/** Records that are read with one breath. */
const AT_ONCE = 200;
/** Redis' own bound of what Lua unpacks is far above. */
const COUNTED_AT_ONCE = 500;

export function createCollect(context: Context): Collect {
  return {
    ...createIndexes(context),
    ...createShardParts(context),
    ...createErasures(context),
    ...createCensus(context),
    isNamed: (owner, byIndex) => isNamed(context, owner, byIndex),
  };
}

type Indexes = 'lease' | 'yield' | 'ended' | 'keeping' | 'keep' | 'forgetKept' | 'filesUntil';

function createIndexes(context: Context): Pick<Collect, Indexes> {
  const { redis, scripts, keys } = context;
  return {
    lease: async (holder, ms) => (await scripts.run('lease', keys.collecting, holder, ms)) === 1,
    async yield(holder) {
      await scripts.run('yield', keys.collecting, holder);
    },
    ended: (until) => walkIndex(context, keys.ended, until),
    keeping: (until) => walkIndex(context, keys.keeping, until),
    async keep(jobId) {
      const state = await redis.hget(recordKey(jobId), 'state');
      if (state !== null && isFinalName(state))
        await enterIndex(context, keys.keeping, jobId, false);
    },
    async forgetKept(jobId) {
      await redis.zrem(keys.keeping, jobId);
    },
    filesUntil: (until) => walkIndex(context, keys.files, until),
  };
}

function createShardParts({
  redis,
  scripts,
}: Context): Pick<Collect, 'countShards' | 'dropShards'> {
  return {
    async countShards(jobId) {
      let count = 0;
      for (;;) {
        const run = Array.from({ length: COUNTED_AT_ONCE }, (_, i) => shardKey(jobId, count + i));
        const found = await redis.exists(...run);
        count += found;
        if (found < COUNTED_AT_ONCE) return count;
      }
    },
    async dropShards(jobId, first, count, keepPlans) {
      const args = [first, count, keepPlans ? 1 : 0];
      return (await scripts.run('collect', recordKey(jobId), ...args)) === 1;
    },
  };
}

type Erasures =
  | 'erase'
  | 'erasure'
  | 'erasing'
  | 'postponeErasure'
  | 'forgetErasure'
  | 'eraseProvisions'
  | 'leaveIndexes'
  | 'inputsOfOthers'
  | 'inputOf';

function createErasures(context: Context): Pick<Collect, Erasures> {
  const { redis, scripts, keys } = context;
  return {
    async erase(jobId, wish) {
      // First of all, so that what is left is found, because who erases it dies.
      // Not due at once: whoever finds it before it had an effect would forget it.
      const later = wish.at + UNDISTURBED_MS;
      await redis.zadd(keys.erasing, later, jobId);
      const provisions = await redis.smembers(jobKey(jobId, 'PROVISIONS'));
      const args = [JSON.stringify({ ...wish, provisions }), NOTE_SECONDS];
      const reply = await scripts.run('erase', recordKey(jobId), ...args);
      const outcome = v.parse(v.picklist(['erased', 'running', 'gone']), reply);
      // Without an effect the entry is forgotten when it is due: taken out now, another one's could be lost.
      if (outcome === 'erased') await redis.zadd(keys.erasing, later, jobId);
      return outcome;
    },
    async erasure(jobId) {
      const text = await redis.get(`${recordKey(jobId)}${SUFFIXES.ERASED}`);
      return text === null ? null : parseRecord(`${jobId} erased`, note, text);
    },
    erasing: (until) => walkIndex(context, keys.erasing, until),
    async postponeErasure(jobId, until) {
      await redis.zadd(keys.erasing, until, jobId);
    },
    async forgetErasure(jobId, until) {
      await scripts.run('leave', keys.erasing, jobId, until);
    },
    eraseProvisions: (jobId, ids) => eraseProvisions(context, jobId, ids),
    async leaveIndexes(jobId) {
      const { jobs, active, deadlines, telling, ended, keeping } = keys;
      const all = [active, deadlines, telling, ended, keeping, jobs];
      await Promise.all(all.map((index) => redis.zrem(index, jobId)));
    },
    inputsOfOthers: (fileIds, jobId) => inputsOfOthers(context, fileIds, jobId),
    inputOf: (jobId) => redis.hget(recordKey(jobId), 'input'),
  };
}

const note = v.pipe(
  jsonText,
  v.object({
    at: v.number(),
    withFiles: v.boolean(),
    input: v.string(),
    provisions: v.array(v.string()),
  }),
);

async function eraseProvisions(
  { redis, scripts, keys }: Context,
  jobId: string,
  ids: readonly string[],
): Promise<string[]> {
  const set = jobKey(jobId, 'PROVISIONS');
  // A planner that did not know may have made some since.
  const all = new Set([...ids, ...(await redis.smembers(set))]);
  const left: string[] = [];
  for (const id of all) {
    const args = [JSON.stringify({ job: jobId }), NOTE_SECONDS];
    if ((await scripts.run('erase', recordKey(id), ...args)) === 'running') left.push(id);
    else {
      await redis.zrem(keys.provisions, id);
      await redis.zrem(keys.everyProvision, id);
    }
  }
  if (left.length === 0) await redis.unlink(set);
  return left;
}

async function inputsOfOthers(
  context: Context,
  fileIds: readonly string[],
  jobId: string,
): Promise<Set<string>> {
  const { redis, keys } = context;
  const used = new Set<string>();
  let run: string[] = [];
  async function look(): Promise<void> {
    const found = await Promise.all(run.map((id) => redis.hget(recordKey(id), 'input')));
    run = [];
    for (const input of found) if (input !== null && fileIds.includes(input)) used.add(input);
  }
  for await (const id of walkIndex(context, keys.jobs)) {
    if (id !== jobId) run.push(id);
    if (run.length === AT_ONCE) await look();
    if (used.size === fileIds.length) return used;
  }
  await look();
  return used;
}

async function isNamed(context: Context, owner: ObjectOwner, byIndex: boolean): Promise<boolean> {
  const { redis, keys } = context;
  async function isIn(index: string, id: string): Promise<boolean> {
    return byIndex && (await redis.zscore(index, id)) !== null;
  }
  switch (owner.kind) {
    case 'segment':
    case 'manifest':
      return (await redis.exists(recordKey(owner.job))) === 1 || isIn(keys.jobs, owner.job);
    case 'part':
      return isOpenUpload(context, owner.upload);
    case 'file': {
      if ((await redis.exists(recordKey(owner.file))) === 1) return true;
      if (await isIn(keys.files, owner.file)) return true;
      if (owner.job !== null && (await mayWrite(context, owner.job, isIn))) return true;
      return isOfUpload(context, owner.file);
    }
  }
}

/** False for a job that is over, or gone. */
async function mayWrite(
  { redis, keys }: Context,
  jobId: string,
  isIn: (index: string, id: string) => Promise<boolean>,
): Promise<boolean> {
  const state = await redis.hget(recordKey(jobId), 'state');
  return state === null ? isIn(keys.jobs, jobId) : !isFinalName(state);
}

/** Parts of an ended one are the sweeper's to remove for hours, until its entry is gone. */
async function isOpenUpload({ redis, keys }: Context, uploadId: string): Promise<boolean> {
  return (await redis.zscore(keys.uploads, uploadId)) !== null;
}

/** A file has no record before its upload is complete, and for a moment after. */
async function isOfUpload(context: Context, fileId: string): Promise<boolean> {
  for await (const id of walkIndex(context, context.keys.uploads)) {
    if ((await context.redis.sismember(uploadKey(id, 'UPLOAD_FILES'), fileId)) === 1) return true;
  }
  return false;
}

type Censuses =
  | 'census'
  | 'beginCensus'
  | 'setCensus'
  | 'setDoubt'
  | 'collectedAt'
  | 'markCollected'
  | 'boundStorage';

function createCensus({ redis, scripts, keys }: Context): Pick<Collect, Censuses> {
  async function census(): Promise<Census | null> {
    const fields: Fields = await redis.hgetall(keys.census);
    const { id, round, doubt } = parseRecord(keys.census, censusFields, fields);
    return id === undefined ? null : { id, round, doubt: doubt ?? null };
  }
  return {
    census,
    async beginCensus(id) {
      await redis.hsetnx(keys.census, 'id', id);
      return (await census()) ?? { id, round: 0, doubt: null };
    },
    async setCensus({ id, round, doubt }) {
      await redis.hset(keys.census, { id, round });
      if (doubt === null) await redis.hdel(keys.census, 'doubt');
      else await redis.hset(keys.census, { doubt });
    },
    async setDoubt(doubt) {
      await redis.hset(keys.census, { doubt });
    },
    async collectedAt() {
      const at = await redis.zscore(keys.collected, COLLECTED);
      return at === null ? null : Number(at);
    },
    async markCollected() {
      await scripts.run('enter', keys.collected, COLLECTED, 1);
    },
    boundStorage: () => redis.get(keys.storage),
  };
}

const COLLECTED = 'all';
const censusFields = v.object({
  id: v.optional(v.string()),
  round: v.pipe(v.optional(v.string(), '0'), v.transform(Number), v.safeInteger()),
  doubt: v.optional(v.string()),
});
