import { permanent } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';
import { isSet, isWhole } from '../domain/segment.ts';
import type { AcceptedShard, PartRange } from '../domain/segment.ts';
import { errorOnlyLine, requestId } from './answer-lines.ts';
import { customIdOf, refusalOf } from './check-line.ts';
import type { PlannedRules, Refusal } from './check-line.ts';
import type { Answer, AssemblySinks, AssemblySource } from './contract.ts';
import { scanRequest } from './json-scan.ts';
import { createLineWriter } from './line-writer.ts';
import type { LineWriter } from './line-writer.ts';
import { readLines } from './lines.ts';
import type { InputLine } from './lines.ts';
import { createRangeReader } from './range-reader.ts';
import type { RangeReader } from './range-reader.ts';
import { damagedPart, orLost, readEntries } from './segments.ts';

/** A shard's parts share this much memory, in windows of at least `LEAST_WINDOW`. */
const SHARD_BYTES = 8 * 1024 * 1024;
const LEAST_WINDOW = 16 * 1024;
/** How far fetching is ahead of merging, so that a store's latency is paid once and not once a shard. */
const AHEAD_BYTES = 8 * 1024 * 1024;
const AHEAD_SHARDS = 16;

/** What the error file says of a line that was never answered, such as `batch_cancelled`. */
export interface Undone {
  code: string;
  message: string;
  /** Where they are given, it says of unanswered bad lines what is wrong with them. */
  rules?: PlannedRules;
}

export interface AssemblyOptions {
  jobId: string;
  maxLineBytes: number;
  /** Asked of each shard that has lines without an answer, as it is begun; null: such lines are left out. */
  undone(): Undone | null;
  /** How many bytes are fetched ahead of the shard that is merged; 8 MiB unless given. */
  aheadBytes?: number;
  /** Hears of each line that is written, newline included, in the order of its file. */
  onLine?: (kind: Answer['kind'], line: Buffer) => void;
}

/** Lines by where they went: the error file has `error + undone`, unless those are left out. */
export interface AssemblyCounts {
  output: number;
  error: number;
  undone: number;
}

/** One part of a shard, read in line order. */
interface PartCursor {
  part: PartRange;
  /** Place in the order of acceptance. */
  order: number;
  entries: AsyncGenerator<Answer>;
}

interface Head {
  cursor: PartCursor;
  answer: Answer;
}

interface OpenShard {
  shard: AcceptedShard;
  cursors: PartCursor[];
  /** The shard's input, and what is to be said of its lines; null when none of these is needed. */
  rest: { input: AsyncGenerator<InputLine>; undone: Undone } | null;
  /** Bytes that were fetched ahead. */
  bytes: number;
}

interface Assembly {
  source: AssemblySource;
  reader: RangeReader;
  options: AssemblyOptions;
  output: LineWriter;
  error: LineWriter;
  counts: AssemblyCounts;
}

function inputChanged(shard: AcceptedShard, what: string): SluiceError {
  const { offset, bytes } = shard.plan;
  const range = `bytes ${offset} to ${offset + bytes}`;
  return permanent('input.changed', `the input file, ${range}: ${what} since it was planned`);
}

async function* inputLines(
  shard: AcceptedShard,
  bytes: AsyncGenerator<Buffer>,
  maxLineBytes: number,
): AsyncGenerator<InputLine> {
  const startOffset = shard.plan.offset;
  for await (const lines of readLines(bytes, { maxLineBytes, startOffset })) yield* lines;
}

function openInput({ source, reader, options }: Assembly, shard: AcceptedShard) {
  const { offset, bytes } = shard.plan;
  const range = reader.start({
    length: bytes,
    window: SHARD_BYTES,
    open: (from, length) =>
      orLost(source.openInput({ start: offset + from, end: offset + from + length }), () =>
        inputChanged(shard, 'was deleted'),
      ),
  });
  return inputLines(shard, range, options.maxLineBytes);
}

/** Begins to fetch a shard. */
function openShard(assembly: Assembly, shard: AcceptedShard): OpenShard {
  const { source, reader, options } = assembly;
  const window = Math.max(LEAST_WINDOW, Math.floor(SHARD_BYTES / (shard.parts.length || 1)));
  let bytes = 0;
  const cursors = shard.parts.map((part, order) => {
    bytes += Math.min(window, part.length);
    const range = reader.start({
      length: part.length,
      window,
      open: (offset, length) =>
        orLost(source.openPart({ ...part, offset: part.offset + offset, length }), () =>
          damagedPart(part, 'is missing'),
        ),
    });
    return { part, order, entries: readEntries(range, part) };
  });
  const undone = isWhole(shard) ? null : options.undone();
  if (undone === null) return { shard, cursors, rest: null, bytes };
  bytes += Math.min(SHARD_BYTES, shard.plan.bytes);
  return { shard, cursors, rest: { input: openInput(assembly, shard), undone }, bytes };
}

/** The shards in order, each fetched while the ones before it are merged. */
async function* openShards(assembly: Assembly): AsyncGenerator<OpenShard> {
  const { aheadBytes = AHEAD_BYTES } = assembly.options;
  const open: OpenShard[] = [];
  let bytes = 0;
  for await (const shard of assembly.source.shards) {
    const opened = openShard(assembly, shard);
    open.push(opened);
    bytes += opened.bytes;
    if (bytes < aheadBytes && open.length < AHEAD_SHARDS) continue;
    for (const first of open.splice(0, 1)) {
      bytes -= first.bytes;
      yield first;
    }
  }
  yield* open;
}

/**
 * Puts the cursor's next answer into its line's place. Where two parts have a line the one that was accepted first
 * stays, and the other cursor moves on.
 */
async function advance(heads: (Head | undefined)[], moving: PartCursor): Promise<void> {
  const lines = heads.length;
  let cursor = moving;
  for (;;) {
    const next = await cursor.entries.next();
    if (next.done === true) return;
    const answer: Answer = next.value;
    if (answer.line >= lines) throw damagedPart(cursor.part, `has line ${answer.line} of ${lines}`);
    const other = heads[answer.line];
    if (other === undefined || cursor.order < other.cursor.order) {
      heads[answer.line] = { cursor, answer };
      if (other === undefined) return;
      cursor = other.cursor;
    }
  }
}

/** The finished line for one that was never answered, read from the input. */
async function undoneLine(
  { options }: Assembly,
  { shard, rest }: OpenShard,
  line: number,
): Promise<Buffer | null> {
  if (rest === null) return null;
  for (;;) {
    const next = await rest.input.next();
    if (next.done === true) throw inputChanged(shard, 'has lost lines');
    if (next.value.index !== line) continue;
    const id = requestId(options.jobId, shard.plan.first + line);
    const { code, message } = rest.undone;
    const isBad = shard.bad !== null && isSet(shard.bad, line);
    const said = isBad
      ? badLine(next.value, rest.undone, options.maxLineBytes)
      : { customId: goodCustomId(next.value, shard), code, message };
    return errorOnlyLine({ id, ...said });
  }
}

function goodCustomId({ bytes }: InputLine, shard: AcceptedShard): Buffer {
  const request = bytes === null ? null : scanRequest(bytes);
  if (request === null) throw inputChanged(shard, 'has changed');
  return request.customId;
}

/** What is to be said of a bad line that was never answered. */
export function badLine(line: InputLine, undone: Undone, maxLineBytes: number): Refusal {
  const { code, message, rules } = undone;
  if (rules !== undefined) return refusalOf(line, rules, maxLineBytes);
  return { customId: customIdOf(line), code, message };
}

function notWhatIsDone(shard: AcceptedShard, line: number, head: Head | undefined): SluiceError {
  const where = `line ${line} of shard ${shard.plan.n}`;
  return head === undefined
    ? permanent('segment.damaged', `${where} is recorded as answered, but no segment has it`)
    : damagedPart(head.cursor.part, `has ${where}, which is not recorded as answered`);
}

/** A line that is left out is no line. */
function writeIfAny(
  { output, error, options }: Assembly,
  kind: Answer['kind'],
  bytes: Buffer | null,
): Promise<void> | void {
  if (bytes === null) return undefined;
  options.onLine?.(kind, bytes);
  return (kind === 'output' ? output : error).write(bytes);
}

/** Merges one shard into the two files. */
async function writeShard(assembly: Assembly, open: OpenShard): Promise<void> {
  const { counts } = assembly;
  const { shard, cursors } = open;
  const { lines } = shard.plan;
  // A shard has few lines, so the next answer of each part waits in its line's place: no heap is needed.
  const heads = Array.from<Head | undefined>({ length: lines });
  for (const cursor of cursors) await advance(heads, cursor);
  for (let line = 0; line < lines; line += 1) {
    const head = heads[line];
    if (isSet(shard.done, line) !== (head !== undefined)) throw notWhatIsDone(shard, line, head);
    const bytes = head?.answer.bytes ?? (await undoneLine(assembly, open, line));
    counts[head?.answer.kind ?? 'undone'] += 1;
    const pause = writeIfAny(assembly, head?.answer.kind ?? 'error', bytes);
    if (pause !== undefined) await pause;
    if (head !== undefined) {
      heads[line] = undefined;
      await advance(heads, head.cursor);
    }
  }
}

/**
 * Writes a job's output and error file: every line once, in input order, answered ones from the accepted parts, the
 * rest from the input into the error file, or, where `options.undone()` is null, nowhere, so that a job can be read while
 * it runs. A pure function of its source: two assemblers write equal bytes.
 * Both sinks must be read at the same time. They are ended on success and destroyed on failure; the promise settles
 * when both have taken everything. A sink that its reader destroys (a full disk) rejects with that reader's error, or
 * with `assembly.sink_closed` (Transient) where it gives none.
 * `source.openPart` is also asked for ranges within a part, a bounded number at a time and each read to its end.
 * Rejects with `segment.damaged` or `input.changed` (Permanent) when what is stored is not what was recorded.
 */
export async function assemble(
  source: AssemblySource,
  sinks: AssemblySinks,
  options: AssemblyOptions,
): Promise<AssemblyCounts> {
  const reader = createRangeReader();
  const output = createLineWriter(sinks.output);
  const error = createLineWriter(sinks.error);
  const counts = { output: 0, error: 0, undone: 0 };
  const assembly = { source, reader, options, output, error, counts };
  try {
    for await (const open of openShards(assembly)) await writeShard(assembly, open);
    await Promise.all([output.end(), error.end()]);
    return counts;
  } catch (failure) {
    output.destroy(failure);
    error.destroy(failure);
    throw failure;
  } finally {
    await reader.close();
  }
}
