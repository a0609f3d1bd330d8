import type { Readable, Writable } from 'node:stream';
import type { AcceptedShard, PartRange } from '../domain/segment.ts';

/** One answered line as it is stored: `bytes` is the finished line of the output or error file, newline included. */
export interface Answer {
  /** Index of the line within its shard, from 0. */
  line: number;
  kind: 'output' | 'error';
  bytes: Buffer;
}

/** A finished line, newline included, in pieces that are joined where it is gathered; strings are UTF-8. */
export type Pieces = readonly (Buffer | string)[];

/** One answered line on its way to a segment. */
export interface FreshAnswer {
  line: number;
  kind: Answer['kind'];
  pieces: Pieces;
  /** Address of the engine that answered; absent: none did. */
  engine?: string;
}

/** Where the assembler reads from and writes to; all streams, nothing is held whole. */
export interface AssemblySource {
  shards: AsyncIterable<AcceptedShard>;
  openPart(part: PartRange): Promise<Readable>;
  /** Bytes `start` to `end`, end excluded, of the input file. */
  openInput(range: { start: number; end: number }): Promise<Readable>;
}

export interface AssemblySinks {
  output: Writable;
  error: Writable;
}
