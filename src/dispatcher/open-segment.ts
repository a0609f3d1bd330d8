import type { Usage } from '../domain/job.ts';
import type { PartBytes } from '../domain/segment.ts';
import type { ChunkPool } from './chunk-pool.ts';
import type { FreshAnswer, Pieces } from './contract.ts';
import { LineTable } from './line-table.ts';
import { HEADER_BYTES, SegmentEncoder, writeHeader } from './segments.ts';

/** One holder's part of an encoded segment. */
export interface GatheredPart<Holder> {
  holder: Holder;
  range: PartBytes;
  lines: LineTable;
}

/**
 * The answers of one job that wait to be stored. They are joined into pooled chunks as they come, in any order, and
 * copied once more, sorted, when the segment is encoded: what storage is given is never written to again, since a try
 * that seemed to fail may still be reading it.
 */
export class OpenSegment<Holder> {
  readonly #pool: ChunkPool;
  readonly #chunks: Buffer[] = [];
  readonly #lines = new Map<Holder, LineTable>();
  #used = 0;
  #rows = 0;
  #bytes = 0;

  constructor(pool: ChunkPool) {
    this.#pool = pool;
  }

  /** How many answers it has. */
  get rows(): number {
    return this.#rows;
  }

  /** Bytes of the finished lines. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Who gave answers, and how many. */
  *holders(): Iterable<[holder: Holder, rows: number]> {
    for (const [holder, lines] of this.#lines) yield [holder, lines.rows];
  }

  /** Gathers one answer and returns the length of its finished line. */
  add(holder: Holder, answer: FreshAnswer, usage: Usage): number {
    const bytes = lengthOf(answer.pieces);
    const length = HEADER_BYTES + bytes;
    const chunk = this.#chunkFor(length);
    const start = this.#used;
    writeHeader(chunk, start, { line: answer.line, kind: answer.kind, length: bytes });
    writePieces(chunk, start + HEADER_BYTES, answer.pieces);
    this.#used += length;
    const place = { chunk: this.#chunks.length - 1, start, length };
    const { line, kind, engine = null } = answer;
    this.#linesOf(holder).add({ line, ok: kind === 'output', usage, engine }, place);
    this.#rows += 1;
    this.#bytes += bytes;
    return bytes;
  }

  /** The segment as it is stored, a part for each holder. Throws where a holder answered one line twice. */
  encode(): { chunks: Buffer[]; parts: GatheredPart<Holder>[] } {
    const encoder = new SegmentEncoder(this.#bytes + this.#rows * HEADER_BYTES);
    const parts: GatheredPart<Holder>[] = [];
    for (const [holder, lines] of this.#lines) {
      for (const { chunk, start, length } of lines.sortedPlaces()) {
        const gathered = this.#chunks[chunk];
        if (gathered !== undefined) encoder.append(gathered, start, length);
      }
      parts.push({ holder, lines, range: encoder.endPart() });
    }
    return { chunks: encoder.chunks, parts };
  }

  /** Gives the chunks back; nothing may be added or encoded after it. */
  release(): void {
    for (const chunk of this.#chunks.splice(0)) this.#pool.give(chunk);
  }

  /** The last chunk where `bytes` fit in, else a new one. */
  #chunkFor(bytes: number): Buffer {
    const last = this.#chunks.at(-1);
    if (last !== undefined && this.#used + bytes <= last.length) return last;
    const next = this.#pool.take(bytes);
    this.#chunks.push(next);
    this.#used = 0;
    return next;
  }

  #linesOf(holder: Holder): LineTable {
    const known = this.#lines.get(holder);
    if (known !== undefined) return known;
    const lines = new LineTable();
    this.#lines.set(holder, lines);
    return lines;
  }
}

function lengthOf(pieces: Pieces): number {
  let length = 0;
  for (const piece of pieces) {
    length += typeof piece === 'string' ? Buffer.byteLength(piece) : piece.length;
  }
  return length;
}

function writePieces(chunk: Buffer, start: number, pieces: Pieces): void {
  let at = start;
  for (const piece of pieces) {
    at += typeof piece === 'string' ? chunk.write(piece, at) : piece.copy(chunk, at);
  }
}
