import type { Usage } from './job.ts';
import type { ShardPlan } from './plan.ts';

/** A segment as storage has it. */
export interface SegmentInfo {
  id: string;
  bytes: number;
  /** Hex. */
  sha256: string;
}

/** Where one shard's answers, sorted by line, lie in a segment. */
export interface PartBytes {
  offset: number;
  length: number;
  /** CRC-32 (ISO 3309, as zlib's) of the range. */
  crc: number;
}

/** How many answers of a part came from one engine. */
export interface EngineTally {
  /** Its address. */
  engine: string;
  ok: number;
  failed: number;
}

/** A part that was accepted. */
export interface PartRange extends PartBytes {
  segment: string;
  /** Of its answers that came from engines; absent: it is not on record which. */
  engines?: readonly EngineTally[];
}

/**
 * The answers of one shard, given by one holder, in one segment. Bit `1 << (i & 7)` of byte `i >> 3` of `mask` is set
 * for line `i` of the shard, and `mask` is as long as the shard's bitmap, `ceil(lines / 8)` bytes.
 */
export interface Part extends PartBytes {
  n: number;
  token: string;
  mask: Buffer;
  ok: number;
  failed: number;
  usage: Usage;
  /** Which engines answered it; lines that none answered are in none of them. */
  engines?: readonly EngineTally[];
}

/**
 * `sealed`: the job is finalizing or final. `stale`: somebody else took the shard. `overlap`: lines are done already
 * that the part answers again; the bitmap says which.
 */
export type PartResult =
  | { outcome: 'committed'; left: number }
  | { outcome: 'sealed' | 'stale' }
  | { outcome: 'overlap'; done: Buffer };

/** What is recorded of one shard: its plan, which lines are done, and the parts that have their answers. */
export interface AcceptedShard {
  plan: ShardPlan;
  done: Buffer;
  /** Lines that no engine is asked, as bits like `done`; null: none. */
  bad: Buffer | null;
  /** In order of commit: where two answer one line, the first counts. */
  parts: readonly PartRange[];
}

/** Whether every line of a shard has an answer. */
export function isWhole({ plan, done }: Pick<AcceptedShard, 'plan' | 'done'>): boolean {
  for (let line = 0; line < plan.lines; line += 1) if (!isSet(done, line)) return false;
  return true;
}

/** A shard of which storage has lost answers that were accepted. */
export interface LostParts {
  n: number;
  lost: readonly PartRange[];
  /** The lines that its other parts have, as bits. */
  rest: Buffer;
  /** What is wrong with the first of them, for people. */
  reason: string;
}

/** Whether a bitmap has the bit of a line. */
export function isSet(bitmap: Buffer, line: number): boolean {
  return (((bitmap[line >> 3] ?? 0) >> (line & 7)) & 1) === 1;
}

export function setBit(bitmap: Buffer, line: number): void {
  bitmap[line >> 3] = (bitmap[line >> 3] ?? 0) | (1 << (line & 7));
}

/** How many bits a bitmap has. */
export function countBits(bitmap: Buffer): number {
  let bits = 0;
  for (const byte of bitmap) for (let rest = byte; rest > 0; rest &= rest - 1) bits += 1;
  return bits;
}
