import { crc32 } from 'node:zlib';
import { permanent, type SluiceError } from '../domain/errors.ts';
import type { Answer, PartRange } from './contract.ts';

/**
 * A segment is parts one after the other, a part the entries of one shard and token sorted by line, an entry this
 * header and the finished line: line u32, kind u8, length u32, little endian. Nothing else is in it: where parts are
 * is known to whoever committed them.
 */
const HEADER_BYTES = 9;
const KINDS = ['output', 'error'] as const satisfies readonly Answer['kind'][];

/** What one holder of a shard has to store: its answers in any order, each line once. */
export interface SegmentGroup {
  shard: number;
  answers: readonly Answer[];
}

/** Where a group lies in the encoded segment. */
export interface SegmentPart {
  shard: number;
  offset: number;
  length: number;
  crc: number;
}

export interface EncodedSegment {
  /** The segment as chunks: headers and the answers' own buffers, nothing copied. */
  bytes: Buffer[];
  parts: SegmentPart[];
}

function writeHeader(headers: Buffer, at: number, answer: Answer): Buffer {
  headers.writeUInt32LE(answer.line, at);
  headers.writeUInt8(KINDS.indexOf(answer.kind), at + 4);
  headers.writeUInt32LE(answer.bytes.length, at + 5);
  return headers.subarray(at, at + HEADER_BYTES);
}

/** Appends a group's entries, sorted by line, to the chunks, and returns their length. */
function encodePart(group: SegmentGroup, bytes: Buffer[]): number {
  const answers = group.answers.toSorted((a, b) => a.line - b.line);
  const headers = Buffer.allocUnsafe(answers.length * HEADER_BYTES);
  let last = -1;
  let length = 0;
  for (const [n, answer] of answers.entries()) {
    if (answer.line === last) {
      throw new Error(`line ${answer.line} of shard ${group.shard} is twice in one segment`);
    }
    bytes.push(writeHeader(headers, n * HEADER_BYTES, answer), answer.bytes);
    length += HEADER_BYTES + answer.bytes.length;
    last = answer.line;
  }
  return length;
}

function checksum(chunks: readonly Buffer[]): number {
  let crc = 0;
  for (const chunk of chunks) crc = crc32(chunk, crc);
  return crc;
}

/** Lays out one segment: a part a group, in the groups' order; a group without answers has none. */
export function encodeSegment(groups: readonly SegmentGroup[]): EncodedSegment {
  const bytes: Buffer[] = [];
  const parts: SegmentPart[] = [];
  const ends: number[] = [];
  let offset = 0;
  for (const group of groups) {
    if (group.answers.length === 0) continue;
    const length = encodePart(group, bytes);
    parts.push({ shard: group.shard, offset, length, crc: 0 });
    ends.push(bytes.length);
    offset += length;
  }
  // In a pass of its own, and looked at once more: computed while the parts were laid out, V8 13.6 was seen to give one
  // part the checksum of the next, and a part that is committed under a wrong one can never be read again.
  for (let pass = 0; pass < 2; pass += 1) {
    for (const [n, part] of parts.entries()) {
      part.crc = checksum(bytes.slice(ends[n - 1] ?? 0, ends[n]));
    }
  }
  return { bytes, parts };
}

/** The error for a part that is not what its commit said: no retry mends it. */
export function damagedPart(part: PartRange, what: string): SluiceError {
  const range = `bytes ${part.offset} to ${part.offset + part.length}`;
  return permanent('segment.damaged', `segment ${part.segment}, ${range}: ${what}`);
}

/** How far a part has been read. */
interface Reading {
  part: PartRange;
  /** Bytes that no entry has taken yet; of the first chunk `taken` are gone. */
  chunks: Buffer[];
  taken: number;
  unread: number;
  position: number;
  crc: number;
  /** The last entry's line. */
  after: number;
  /** The header of the entry whose bytes are not all there yet. */
  header: Header | null;
}

interface Header {
  line: number;
  kind: Answer['kind'];
  length: number;
}

function push(reading: Reading, chunk: Uint8Array): void {
  const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
  reading.crc = crc32(bytes, reading.crc);
  reading.chunks.push(bytes);
  reading.unread += bytes.length;
  if (reading.position + reading.unread > reading.part.length) {
    throw damagedPart(reading.part, `is longer than ${reading.part.length} bytes`);
  }
}

/** Takes `length` bytes that are there: a view where they lie in one chunk, joined once otherwise. */
function take(reading: Reading, length: number): Buffer {
  const { chunks } = reading;
  const pieces: Buffer[] = [];
  let missing = length;
  for (let chunk = chunks[0]; missing > 0 && chunk !== undefined; chunk = chunks[0]) {
    const piece = chunk.subarray(reading.taken, reading.taken + missing);
    pieces.push(piece);
    missing -= piece.length;
    reading.taken += piece.length;
    if (reading.taken === chunk.length) {
      chunks.shift();
      reading.taken = 0;
    }
  }
  reading.unread -= length;
  reading.position += length;
  const [only] = pieces;
  return only?.length === length ? only : Buffer.concat(pieces, length);
}

/** Takes a header, and refuses one that cannot follow the last entry or is longer than the rest of the part. */
function takeHeader(reading: Reading): Header {
  const { part, after } = reading;
  const bytes = take(reading, HEADER_BYTES);
  const line = bytes.readUInt32LE(0);
  const kind = KINDS[bytes.readUInt8(4)];
  const length = bytes.readUInt32LE(5);
  if (kind === undefined) throw damagedPart(part, `an entry of unknown kind after line ${after}`);
  if (line <= after) throw damagedPart(part, `line ${line} after line ${after}`);
  if (length > part.length - reading.position) {
    throw damagedPart(part, `line ${line} is longer than what is left`);
  }
  return { line, kind, length };
}

/** The next answer whose bytes are all there. */
function takeAnswer(reading: Reading): Answer | null {
  if (reading.header === null && reading.unread >= HEADER_BYTES) {
    reading.header = takeHeader(reading);
  }
  const { header } = reading;
  if (header === null || reading.unread < header.length) return null;
  reading.header = null;
  reading.after = header.line;
  return { line: header.line, kind: header.kind, bytes: take(reading, header.length) };
}

function checkEnd({ part, position, unread, header, crc }: Reading): void {
  const read = position + unread;
  if (read !== part.length) throw damagedPart(part, `only ${read} of ${part.length} bytes`);
  if (header !== null || unread > 0) throw damagedPart(part, 'ends within an entry');
  if (crc !== part.crc) throw damagedPart(part, `checksum is ${crc}, not ${part.crc}`);
}

/**
 * The answers of one part, in line order, holding one at a time beside what the stream has read ahead.
 * A header that makes no sense is refused at once; length and checksum are known only at the end, so what came before
 * counts only when the generator returns. Rejects with `segment.damaged` (Permanent) or the stream's own error.
 */
export async function* readEntries(
  stream: AsyncIterable<Uint8Array>,
  part: PartRange,
): AsyncGenerator<Answer> {
  const reading: Reading = {
    part,
    chunks: [],
    taken: 0,
    unread: 0,
    position: 0,
    crc: 0,
    after: -1,
    header: null,
  };
  for await (const chunk of stream) {
    push(reading, chunk);
    for (let next = takeAnswer(reading); next !== null; next = takeAnswer(reading)) yield next;
  }
  checkEnd(reading);
}
