const [NEWLINE, RETURN, SPACE, TAB] = [0x0a, 0x0d, 0x20, 0x09] as const;
/** UTF-8's byte order mark and a carriage return: what a line may be longer than its own bytes. */
const MOST_TRIMMED = 4;

/** One line of a JSONL input that is not blank. */
export interface InputLine {
  /** Index of the request, from 0: blank lines are not counted. */
  index: number;
  /** Physical line, from 1: blank lines are counted. */
  number: number;
  /** Offset of the physical line's first byte (a byte order mark included) in the whole source. */
  offset: number;
  /** Offset after its newline, or the end of the source. */
  end: number;
  /** The line without newline, carriage return before it and byte order mark; null: longer than `maxLineBytes`. */
  bytes: Buffer | null;
}

export interface LineOptions {
  /** Longer lines are reported with `bytes: null` and never held. */
  maxLineBytes: number;
  /** Offset of the source's first byte, 0 by default: a byte order mark exists only there. */
  startOffset?: number;
  /** Index and physical number of the first line, 0 and 1 by default. */
  startIndex?: number;
  startNumber?: number;
}

interface Cursor {
  index: number;
  number: number;
  offset: number;
  /** Pieces of the line that the last chunk left open; dropped once the line is too long. */
  pieces: Buffer[];
  held: number;
}

/** Whether a line has nothing but spaces, tabs and carriage returns; the first byte decides for nearly all. */
function isBlank(bytes: Buffer): boolean {
  for (let at = 0; at < bytes.length; at += 1) {
    const byte = bytes[at];
    if (byte !== SPACE && byte !== TAB && byte !== RETURN) return false;
  }
  return true;
}

/** The line's own bytes, given all of them up to its newline. */
function trim(raw: Buffer, offset: number): Buffer {
  const marked = offset === 0 && raw[0] === 0xef && raw[1] === 0xbb && raw[2] === 0xbf;
  const end = raw[raw.length - 1] === RETURN ? raw.length - 1 : raw.length;
  const start = marked ? 3 : 0;
  return start === 0 && end === raw.length ? raw : raw.subarray(start, end);
}

/** Ends the current line: `raw` is null when it was dropped, `end` is the offset after its newline. */
function close(cursor: Cursor, raw: Buffer | null, end: number, max: number): InputLine | null {
  const { index, number, offset } = cursor;
  cursor.number += 1;
  cursor.offset = end;
  const line = raw === null ? null : trim(raw, offset);
  const bytes = line !== null && line.length <= max ? line : null;
  if (bytes !== null && isBlank(bytes)) return null;
  cursor.index += 1;
  return { index, number, offset, end, bytes };
}

/** Keeps the open end of a chunk, or only its length once the line is certainly too long. */
function hold(cursor: Cursor, rest: Buffer, max: number): void {
  cursor.held += rest.length;
  if (cursor.held > max + MOST_TRIMMED) cursor.pieces = [];
  else cursor.pieces.push(rest);
}

/** The held pieces and `last` as one buffer, joined once; null when they were dropped. */
function join(cursor: Cursor, last: Buffer, max: number): Buffer | null {
  const { pieces, held } = cursor;
  cursor.pieces = [];
  cursor.held = 0;
  if (held === 0) return last;
  if (held + last.length > max + MOST_TRIMMED) return null;
  return Buffer.concat([...pieces, last], held + last.length);
}

function linesOfChunk(cursor: Cursor, chunk: Buffer, max: number): InputLine[] {
  const lines: InputLine[] = [];
  let from = 0;
  for (let to = chunk.indexOf(NEWLINE); to !== -1; to = chunk.indexOf(NEWLINE, from)) {
    const end = cursor.offset + cursor.held + (to - from) + 1;
    const raw = join(cursor, chunk.subarray(from, to), max);
    const line = close(cursor, raw, end, max);
    if (line !== null) lines.push(line);
    from = to + 1;
  }
  if (from < chunk.length) hold(cursor, chunk.subarray(from), max);
  return lines;
}

/**
 * Reads JSONL byte-exactly: LF or CRLF, a byte order mark at the very start, blank lines (spaces, tabs and carriage
 * returns only) skipped, a last line without newline. Yields the lines that each chunk completes, never an empty list;
 * how the source is cut into chunks makes no difference to the lines.
 * A line inside one chunk is a view of it: the source must not write to a chunk that it has given out, and whoever
 * keeps a few lines for long copies them. A line over several chunks is joined once.
 * Rejects with the source's own error.
 */
export async function* readLines(
  source: AsyncIterable<Uint8Array>,
  options: LineOptions,
): AsyncGenerator<InputLine[]> {
  const { maxLineBytes, startOffset = 0, startIndex = 0, startNumber = 1 } = options;
  const cursor: Cursor = {
    index: startIndex,
    number: startNumber,
    offset: startOffset,
    pieces: [],
    held: 0,
  };
  for await (const chunk of source) {
    const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    const lines = linesOfChunk(cursor, bytes, maxLineBytes);
    if (lines.length > 0) yield lines;
  }
  if (cursor.held === 0) return;
  const end = cursor.offset + cursor.held;
  const line = close(cursor, join(cursor, Buffer.alloc(0), maxLineBytes), end, maxLineBytes);
  if (line !== null) yield [line];
}
