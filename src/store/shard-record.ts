import * as v from 'valibot';
import { shardKey } from './keys.ts';
import { integer, parseRecord, replyNumber } from './parse.ts';
import type { AcceptedShard, EngineTally, PartRange } from '../domain/segment.ts';
import type { Taken } from './shards.ts';

const text = v.union([v.string(), v.pipe(v.instance(Buffer), v.transform(String))]);

/** A flat list of shard and wake. */
export const waitingReply = v.pipe(
  v.array(replyNumber),
  v.transform((flat) => inGroups(flat, 2).map(([n = 0, wake = 0]) => ({ n, wake }))),
);

/** A flat list of shard, wake, time and 1 where held. */
export const pendingReply = v.pipe(
  v.array(replyNumber),
  v.transform((flat) =>
    inGroups(flat, 4).map(([n = 0, wake = 0, at = 0, held]) => ({ n, wake, at, held: held === 1 })),
  ),
);

function inGroups(flat: readonly number[], size: number): number[][] {
  const groups: number[][] = [];
  for (let i = 0; i < flat.length; i += size) groups.push(flat.slice(i, i + size));
  return groups;
}

const fixedFields = {
  first: replyNumber,
  lines: replyNumber,
  offset: replyNumber,
  bytes: replyNumber,
};

const bitmap = v.instance(Buffer);
const crashFields = v.tuple([integer, integer, integer]);
const takenTail = v.object({
  ...fixedFields,
  left: replyNumber,
  done: bitmap,
  bad: bitmap,
  takes: replyNumber,
  crashed: text,
});

/** The reply of take.lua. */
export function takeReply(jobId: string, n: number, reply: unknown): Taken {
  const [word, waiting, first, lines, offset, bytes, left, done, bad, takes, crashed] = v.parse(
    v.array(v.unknown()),
    reply,
  );
  const outcome = v.parse(v.pipe(text, v.picklist(['taken', 'stale', 'not now'])), word);
  if (outcome === 'not now') return { outcome };
  const shards = v.parse(waitingReply, waiting);
  if (outcome === 'stale') return { outcome, waiting: shards };
  const tail = { first, lines, offset, bytes, left, done, bad, takes, crashed };
  const taken = parseRecord(shardKey(jobId, n), takenTail, tail);
  return {
    outcome,
    plan: { n, first: taken.first, lines: taken.lines, offset: taken.offset, bytes: taken.bytes },
    done: bitmapOf(taken.lines, taken.done),
    bad: taken.bad.length === 0 ? null : taken.bad,
    left: taken.left,
    takes: taken.takes,
    crashed: taken.crashed === '' ? null : parseCrash(shardKey(jobId, n), taken.crashed),
    waiting: shards,
  };
}

function parseCrash(key: string, value: string) {
  const [line, deaths, at] = parseRecord(`${key} alone`, crashFields, value.split(' '));
  return { line, deaths, at };
}

function word<const Word extends string>(expected: Word) {
  return v.pipe(text, v.literal(expected));
}

const partResult = v.union([
  v.pipe(
    v.tuple([word('committed'), replyNumber]),
    v.transform(([outcome, left]) => ({ outcome, left })),
  ),
  v.pipe(
    v.tuple([v.union([word('sealed'), word('stale')])]),
    v.transform(([outcome]) => ({ outcome })),
  ),
  v.pipe(
    v.tuple([word('overlap'), v.instance(Buffer)]),
    v.transform(([outcome, done]) => ({ outcome, done })),
  ),
]);

/** The reply of commit.lua: whether all is done, then a result a part. */
export const commitReply = v.tupleWithRest([v.number()], partResult);

/** What assembly reads of a shard's hash. */
export const SHARD_FIELDS = ['first', 'lines', 'offset', 'bytes', 'done', 'bad', 'parts'];

const acceptedFields = v.object({
  ...fixedFields,
  done: v.nullable(bitmap),
  bad: v.nullable(bitmap),
  parts: v.nullable(v.pipe(v.instance(Buffer), v.transform(String))),
});

/** A shard of the values of SHARD_FIELDS; throws `store.damaged_record` (Permanent) with the field at fault. */
export function parseAccepted(
  jobId: string,
  n: number,
  values: readonly (Buffer | null)[],
): AcceptedShard {
  const key = shardKey(jobId, n);
  const fields = Object.fromEntries(SHARD_FIELDS.map((name, i) => [name, values[i] ?? null]));
  const accepted = parseRecord(key, acceptedFields, fields);
  const { first, lines, offset, bytes, done, bad, parts } = accepted;
  return {
    plan: { n, first, lines, offset, bytes },
    done: bitmapOf(lines, done ?? Buffer.alloc(0)),
    bad,
    parts: (parts ?? '')
      .split(';')
      .slice(1)
      .map((part) => parsePart(key, part)),
  };
}

const partFields = v.tuple([v.string(), integer, integer, integer]);
/** Where a part names its engines: behind what it counts. */
const ENGINES_AT = 10;

function parsePart(key: string, part: string): PartRange {
  const words = part.split(' ');
  const [segment, offset, length, crc] = parseRecord(`${key} parts`, partFields, words);
  const engines = words[ENGINES_AT];
  const range = { segment, offset, length, crc };
  return engines === undefined ? range : { ...range, engines: parseEngines(key, engines) };
}

/** One word: addresses percent-encoded, which leaves nothing that separates words, parts or engines. */
export function formatEngines(engines: readonly EngineTally[]): string {
  return engines
    .map(({ engine, ok, failed }) => `${encodeURIComponent(engine)}=${ok}/${failed}`)
    .join(',');
}

const engineFields = v.tuple([v.string(), integer, integer]);

function parseEngines(key: string, word: string): EngineTally[] {
  return word.split(',').map((each) => {
    const [engine, ok, failed] = parseRecord(`${key} parts`, engineFields, each.split(/[=/]/));
    return { engine: decodeURIComponent(engine), ok, failed };
  });
}

const segmentFields = v.tuple([integer, v.string()]);

export function parseSegment(jobId: string, id: string, value: string) {
  const [bytes, sha256] = parseRecord(`${jobId} segment ${id}`, segmentFields, value.split(' '));
  return { bytes, sha256 };
}

/** No bit is written before the first is set. */
function bitmapOf(lines: number, done: Buffer): Buffer {
  return done.length === 0 ? Buffer.alloc(Math.ceil(lines / 8)) : done;
}
