import * as v from 'valibot';
import { invalidInput, SluiceError, transient } from '../domain/errors.ts';
import { recordKey } from './keys.ts';
import type { GlobalKeys } from './keys.ts';
import { replyNumber } from './parse.ts';
import type { Fields, OnDamaged } from './parse.ts';
import { newOp } from './scripts.ts';
import type { Client, Scripts } from './scripts.ts';

/** What every part of the store works with. */
export interface Context {
  redis: Client;
  scripts: Scripts;
  keys: GlobalKeys;
  onDamaged: OnDamaged;
}

/** A record's new place after a compare-and-set. `wake` names its queue job, if its state has a queue. */
export interface Moved {
  version: number;
  wake: number;
}

/** Records that are read with one breath; bounds memory, and what waits in the client. */
const READ_AT_ONCE = 100;

/**
 * A record may follow its index entry by at most this: a sweeper takes an entry without a record for a dangling one
 * after twice this time, and a record must never be without its entries.
 */
const ENTRY_MAX_AGE_MS = 30_000;

interface NewRecord {
  id: string;
  /** Tells the same request sent twice from two requests under one id; empty where the id alone decides. */
  bodyHash?: string;
  /** Makes the index entries and returns their time; `anew` gives those that are there the present time. */
  enter(anew: boolean): Promise<number>;
  fields(enteredAt: number): Record<string, string | number>;
  event?: { state: string; message: string };
}

const created = v.picklist(['created', 'exists', 'other', 'erased', 'late']);

/**
 * Makes a record: index entries first, so that a crash between leaves an entry without a record and never the opposite.
 * Throws `id_deleted` (InvalidInput) for the id of a job that was erased, which no other may get.
 */
export async function createRecord(
  { scripts }: Context,
  record: NewRecord,
): Promise<'created' | 'exists' | 'other'> {
  const op = newOp();
  for (const anew of [false, true]) {
    const enteredAt = await record.enter(anew);
    const reply = await scripts.run(
      'create',
      recordKey(record.id),
      op,
      record.bodyHash ?? '',
      enteredAt,
      ENTRY_MAX_AGE_MS,
      record.event?.message ?? '',
      record.event?.state ?? '',
      ...Object.entries(record.fields(enteredAt)).flat(),
    );
    const outcome = v.parse(created, reply);
    if (outcome === 'erased') throw erased(record.id);
    if (outcome !== 'late') return outcome;
  }
  throw transient(
    'store.late_entry',
    `no record could be written within ${ENTRY_MAX_AGE_MS} ms of its index entry: Redis is too slow, or the clocks of its nodes differ`,
  );
}

function erased(id: string): SluiceError {
  const message = `'${id}' was deleted, and no other gets its id: send a new Idempotency-Key, or name another id.`;
  return invalidInput('id_deleted', message);
}

interface Move {
  id: string;
  from: string;
  to: string;
  version: number;
  /** Whether a queue serves `to`: then the wake is raised. */
  queued: boolean;
  outcome?: string;
  /** Absent where the record has no history. */
  event?: string;
  fields: Record<string, string | number>;
}

const moved = v.union([v.tuple([replyNumber, replyNumber]), v.tuple([])]);

export async function moveRecord({ scripts }: Context, move: Move): Promise<Moved | 'stale'> {
  const reply = await scripts.run(
    'move',
    recordKey(move.id),
    newOp(),
    move.from,
    move.to,
    move.version,
    move.queued ? 1 : 0,
    move.outcome ?? '',
    move.event === undefined ? 0 : 1,
    move.event ?? '',
    ...Object.entries(move.fields).flat(),
  );
  const [version, wake] = v.parse(moved, reply);
  return version === undefined || wake === undefined ? 'stale' : { version, wake };
}

/** Raises a record's wake if it still is `wake`. */
export async function wakeRecord(
  { scripts }: Context,
  id: string,
  wake: number,
): Promise<number | 'stale'> {
  return wakeReply(await scripts.run('wake', recordKey(id), wake, newOp()));
}

export function wakeReply(reply: unknown): number | 'stale' {
  const wake = v.parse(replyNumber, reply);
  return wake < 0 ? 'stale' : wake;
}

/** Puts `id` into an index at Redis' time, and returns the time of the entry that is there now. */
export async function enterIndex(
  { scripts }: Context,
  index: string,
  id: string,
  anew: boolean,
): Promise<number> {
  return v.parse(replyNumber, await scripts.run('enter', index, id, anew ? 1 : 0));
}

/** Puts `id` into a further index at a given time. */
export async function enterIndexAt(
  { redis }: Context,
  index: string,
  id: string,
  at: number,
  anew: boolean,
): Promise<void> {
  await (anew ? redis.zadd(index, at, id) : redis.zadd(index, 'NX', at, id));
}

/** Milliseconds since `id` came into the index; 0 when it is not there. */
export async function indexAge({ scripts }: Context, index: string, id: string): Promise<number> {
  return Math.max(0, v.parse(replyNumber, await scripts.run('age', index, id)));
}

/**
 * All ids of an index up to a time (ms; to the last unless given), oldest first. Ids that come or go meanwhile may or
 * may not be seen; all others are, once.
 */
export async function* walkIndex(
  { redis }: Context,
  index: string,
  until: number | '+inf' = '+inf',
): AsyncIterable<string> {
  let from = '-inf';
  let seen = new Set<string>();
  for (;;) {
    // The last time is read again, because more ids than one read holds may have come in that millisecond.
    const limit = READ_AT_ONCE + seen.size;
    const reply = await redis.zrange(
      index,
      from,
      String(until),
      'BYSCORE',
      'LIMIT',
      0,
      limit,
      'WITHSCORES',
    );
    for (let i = 0; i < reply.length; i += 2) {
      const [id = '', time = ''] = reply.slice(i, i + 2);
      if (time === from && seen.has(id)) continue;
      if (time !== from) seen = new Set();
      from = time;
      seen.add(id);
      yield id;
    }
    if (reply.length < 2 * limit) return;
  }
}

/** All fields of a record's hash, or null when there is none. */
export async function readFields({ redis }: Context, id: string): Promise<Fields | null> {
  const fields = await redis.hgetall(recordKey(id));
  return Object.keys(fields).length === 0 ? null : fields;
}

/** Reads many records, in order; null where there is none, and where one is damaged, which is reported. */
export async function readRecords<T>(
  context: Context,
  ids: readonly string[],
  parse: (id: string, fields: Fields) => T,
): Promise<(T | null)[]> {
  const records: (T | null)[] = [];
  for (let start = 0; start < ids.length; start += READ_AT_ONCE) {
    const some = ids.slice(start, start + READ_AT_ONCE);
    // Single commands, since a pipeline of a cluster takes keys of one slot only; ioredis sends them in one go anyway.
    const found = await Promise.all(some.map((id) => readFields(context, id)));
    for (const [i, id] of some.entries()) {
      const fields = found[i];
      records.push(fields ? orReport(context, () => parse(id, fields)) : null);
    }
  }
  return records;
}

/** What `parse` returns; null where it finds a damaged record, which is reported and spoils no list. */
export function orReport<T>({ onDamaged }: Context, parse: () => T): T | null {
  try {
    return parse();
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error;
    onDamaged(error);
    return null;
  }
}

interface PageRequest<T> {
  index: string;
  after?: string | undefined;
  limit: number;
  order: 'asc' | 'desc';
  /** Least and most time of an entry, ms; any unless given. */
  from?: number | undefined;
  to?: number | undefined;
  parse: (id: string, fields: Fields) => T;
  matches?: (record: T) => boolean;
  /** How many records are looked at before the page ends as it is; no bound unless given. */
  mostLooked?: number;
}

const ids = v.nullable(v.array(v.string()));

/**
 * `limit` records of an index behind `after`. Entries without a record, damaged records and those that do not match
 * are passed over and the page is filled up, so `hasMore` is right and no page that has more is empty.
 * With `mostLooked` a page may have fewer records, or none, and more behind it: `cursor`, the last id that it covers,
 * is what the next one begins behind.
 * Throws `invalid_cursor` (InvalidInput) when the index does not hold `after`.
 */
export async function pageRecords<T>(
  context: Context,
  request: PageRequest<T>,
): Promise<{ records: T[]; hasMore: boolean; cursor: string }> {
  const { after = '', limit, mostLooked = Infinity } = request;
  let found: Found<T>[] = [];
  let cursor = after;
  let looked = 0;
  for (;;) {
    const size = looked === 0 ? limit + 1 : READ_AT_ONCE;
    const run = await readRun(context, request, cursor, size);
    if (run === null) {
      if (cursor === after) throw unknownCursor(after);
      // The id to go on behind has left the index meanwhile, and its place with it.
      cursor = after;
      found = [];
      continue;
    }
    found.push(...(await readMatches(context, request, run)));
    cursor = run.at(-1) ?? cursor;
    looked += run.length;
    const isEnd = run.length < size;
    if (isEnd || found.length > limit || looked >= mostLooked) {
      return cutPage(found, { limit, isEnd, cursor });
    }
  }
}

function cutPage<T>(
  found: readonly Found<T>[],
  { limit, isEnd, cursor }: { limit: number; isEnd: boolean; cursor: string },
): { records: T[]; hasMore: boolean; cursor: string } {
  const page = found.slice(0, limit);
  return {
    records: page.map(({ record }) => record),
    hasMore: found.length > limit || !isEnd,
    cursor: page.length < limit ? cursor : (page.at(-1)?.id ?? cursor),
  };
}

interface Found<T> {
  id: string;
  record: T;
}

/** The next ids of an index; null when it does not hold the one to go on behind. */
async function readRun<T>(
  { scripts }: Context,
  { index, order, from, to }: PageRequest<T>,
  cursor: string,
  size: number,
): Promise<string[] | null> {
  return v.parse(
    ids,
    await scripts.run('page', index, cursor, size, order, from ?? '-inf', to ?? '+inf'),
  );
}

async function readMatches<T>(
  context: Context,
  { parse, matches = () => true }: PageRequest<T>,
  run: readonly string[],
): Promise<Found<T>[]> {
  const records = await readRecords(context, run, parse);
  return run.flatMap((id, i) => {
    const record = records[i] ?? null;
    return record !== null && matches(record) ? [{ id, record }] : [];
  });
}

function unknownCursor(after: string): SluiceError {
  return invalidInput('invalid_cursor', `no object with id '${after}' to list after`, {
    param: 'after',
  });
}
