import { crc32 } from 'node:zlib';
import { permanent, SluiceError } from '../domain/errors.ts';
import type { PartBytes, PartRange } from '../domain/segment.ts';
import type { Answer } from './contract.ts';

/**
 * A segment is parts one after the other, a part the entries of one shard and token sorted by line, an entry this
 * header and the finished line: line u32, kind u8, length u32, little endian. Nothing else is in it: where parts are
 * is known to whoever committed them.
 */
export const HEADER_BYTES = 9;
const KINDS = ['output', 'error'] as const satisfies readonly Answer['kind'][];

const KIND_AT = 4;
const LENGTH_AT = 5;
/** Chunks that storage is given: few enough for one vectored write, small enough for any allocator. */
const CHUNK_BYTES = 256 * 1024;

interface Header {
  line: number;
  kind: Answer['kind'];
  length: number;
}

/** Writes an entry's header; its finished line follows. */
export function writeHeader(target: Buffer, at: number, { line, kind, length }: Header): void {
  target.writeUInt32LE(line, at);
  target.writeUInt8(KINDS.indexOf(kind), at + KIND_AT);
  target.writeUInt32LE(length, at + LENGTH_AT);
}

/** Lays out one segment: whole entries in the order in which they are stored, part after part. */
export class SegmentEncoder {
  readonly chunks: Buffer[] = [];
  /** What is left to come of the segment. */
  #unwritten: number;
  #used = 0;
  /** The running part: where it begins in the segment and in the last chunk, and the checksum of what lies before. */
  #offset = 0;
  #length = 0;
  #partStart = 0;
  #crc = 0;

  /** `bytes` is the length of the whole segment. */
  constructor(bytes: number) {
    this.#unwritten = bytes;
  }

  append(source: Buffer, start: number, length: number): void {
    const end = start + length;
    for (let from = start; from < end;) {
      const chunk = this.#chunkWithRoom();
      const copied = source.copy(chunk, this.#used, from, end);
      this.#used += copied;
      from += copied;
    }
    this.#length += length;
  }

  /** Ends the running part; the next entry begins another. */
  endPart(): PartBytes {
    this.#checkUpToHere();
    const part = { offset: this.#offset, length: this.#length, crc: this.#crc };
    this.#offset += this.#length;
    this.#length = 0;
    this.#crc = 0;
    return part;
  }

  #chunkWithRoom(): Buffer {
    const last = this.chunks.at(-1);
    if (last !== undefined && this.#used < last.length) return last;
    this.#checkUpToHere();
    const next = Buffer.allocUnsafeSlow(Math.min(CHUNK_BYTES, this.#unwritten));
    this.#unwritten -= next.length;
    this.chunks.push(next);
    this.#used = 0;
    this.#partStart = 0;
    return next;
  }

  #checkUpToHere(): void {
    const last = this.chunks.at(-1);
    if (last !== undefined)
      this.#crc = crc32(last.subarray(this.#partStart, this.#used), this.#crc);
    this.#partStart = this.#used;
  }
}

const DAMAGED = 'segment.damaged';

/** The error for a part that is not what its commit said: no retry mends it. */
export function damagedPart(part: PartRange, what: string): SluiceError {
  const range = `bytes ${part.offset} to ${part.offset + part.length}`;
  return permanent(DAMAGED, `segment ${part.segment}, ${range}: ${what}`);
}

/** A store's "not found" would make a queue stop quietly; here it is lost data. */
export async function orLost<T>(opening: Promise<T>, lost: () => SluiceError): Promise<T> {
  try {
    return await opening;
  } catch (error) {
    throw error instanceof SluiceError && error.kind === 'NotFound' ? lost() : error;
  }
}

/** Whether an error says that what is stored is not what was recorded, rather than that it cannot be read now. */
export function isDamage(error: unknown): error is SluiceError {
  return error instanceof SluiceError && error.code === DAMAGED;
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
  const kind = KINDS[bytes.readUInt8(KIND_AT)];
  const length = bytes.readUInt32LE(LENGTH_AT);
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
