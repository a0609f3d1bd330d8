import { permanent } from '../domain/errors.ts';
import { isSet } from '../domain/segment.ts';
import type { AcceptedShard } from '../domain/segment.ts';
import { readLines } from './lines.ts';
import type { InputLine } from './lines.ts';

const NEWLINE = 0x0a;
const LINE_END = Buffer.from([NEWLINE]);
/** An error line begins with its id; the rest of it, which may hold a whole answer, is passed over. */
const HEAD_BYTES = 256;
const LINE_INDEX = /^\{"id":"batch_req_[A-Za-z0-9]+_(\d+)"/;

/**
 * The lines of a job's input that its error file names, in input order and byte by byte, each with a newline; but not
 * those that planning marked as bad, which are so again: a duplicate that stands alone would even be asked. All are read
 * once, side by side: they are in input order, so that memory does not grow with any.
 * Rejects with `retry.bad_error_file` (Permanent) where the error file is none of this input.
 */
export async function* selectLines(
  input: AsyncIterable<Uint8Array>,
  errorFile: AsyncIterable<Uint8Array>,
  {
    maxLineBytes,
    shards,
  }: {
    maxLineBytes: number;
    /** The job's shards in order; none where no line is marked. */
    shards: AsyncIterable<Pick<AcceptedShard, 'plan' | 'bad'>>;
  },
): AsyncGenerator<Buffer> {
  const marks = badLines(shards);
  const wanted = lineIndexes(errorFile);
  let next = await wanted.next();
  /** Those of the lines that are wanted; ends at the last one that is. */
  async function choose(lines: readonly InputLine[]): Promise<Buffer[]> {
    const pieces: Buffer[] = [];
    for (const { index, bytes } of lines) {
      if (index !== next.value) continue;
      // A line that was too long once is so again.
      if (bytes !== null && !(await marks.has(index))) pieces.push(bytes, LINE_END);
      next = await wanted.next();
    }
    return pieces;
  }
  try {
    for await (const lines of readLines(input, { maxLineBytes })) {
      const pieces = await choose(lines);
      if (pieces.length > 0) yield Buffer.concat(pieces);
      if (next.done === true) return;
    }
    if (next.done !== true) throw badErrorFile();
  } finally {
    await wanted.return(undefined);
    await marks.close();
  }
}

/** Tells of lines, asked in order, whether they are marked as bad. */
export function badLines(shards: AsyncIterable<Pick<AcceptedShard, 'plan' | 'bad'>>) {
  const iterator = shards[Symbol.asyncIterator]();
  let shard: Pick<AcceptedShard, 'plan' | 'bad'> | null = null;
  let isOver = false;
  return {
    async has(index: number): Promise<boolean> {
      while (!isOver && (shard === null || index >= shard.plan.first + shard.plan.lines)) {
        const next = await iterator.next();
        isOver = next.done === true;
        shard = next.done === true ? null : next.value;
      }
      return shard !== null && shard.bad !== null && isSet(shard.bad, index - shard.plan.first);
    },
    async close(): Promise<void> {
      await iterator.return?.();
    },
  };
}

/** Which line of the input each line of an error file speaks of. */
async function* lineIndexes(source: AsyncIterable<Uint8Array>): AsyncGenerator<number> {
  let last = -1;
  for await (const head of lineHeads(source)) {
    const index = Number(LINE_INDEX.exec(head.toString('latin1'))?.[1] ?? Number.NaN);
    if (!(index > last)) throw badErrorFile();
    last = index;
    yield index;
  }
}

/** How each line begins, whatever its length. */
async function* lineHeads(source: AsyncIterable<Uint8Array>): AsyncGenerator<Buffer> {
  let head = Buffer.alloc(0);
  for await (const chunk of source) {
    const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    let from = 0;
    while (from < bytes.length) {
      const end = bytes.indexOf(NEWLINE, from);
      const to = end === -1 ? bytes.length : end;
      const room = Math.max(0, HEAD_BYTES - head.length);
      head = Buffer.concat([head, bytes.subarray(from, Math.min(to, from + room))]);
      from = to + 1;
      if (end === -1) break;
      yield head;
      head = Buffer.alloc(0);
    }
  }
  if (head.length > 0) yield head;
}

function badErrorFile(): Error {
  return permanent('retry.bad_error_file', 'The error file is not the one of this input.');
}
