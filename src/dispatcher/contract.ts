import type { Readable, Writable } from 'node:stream';
import type { ShardPlan } from '../domain/plan.ts';

/** One answered line, ready to be stored: `bytes` is the finished line of the output or error file, newline included. */
export interface Answer {
  /** Index of the line within its shard, from 0. */
  line: number;
  kind: 'output' | 'error';
  bytes: Buffer;
}

/** A byte range of a segment that holds one shard's answers, sorted by line. */
export interface PartRange {
  segment: string;
  offset: number;
  length: number;
  /** CRC-32 (ISO 3309, as zlib's) of the range. */
  crc: number;
}

/** What the assembler reads of one shard: its plan, which lines are done, and the parts that were accepted. */
export interface AcceptedShard {
  plan: ShardPlan;
  done: Buffer;
  parts: readonly PartRange[];
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
