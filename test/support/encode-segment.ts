import { createChunkPool } from '../../src/dispatcher/chunk-pool.ts';
import type { Answer } from '../../src/dispatcher/contract.ts';
import { OpenSegment } from '../../src/dispatcher/open-segment.ts';
import { NO_USAGE } from '../../src/dispatcher/usage.ts';
import type { PartBytes } from '../../src/domain/segment.ts';

export interface SegmentGroup {
  shard: number;
  answers: readonly Answer[];
}

export interface EncodedSegment {
  bytes: Buffer[];
  parts: (PartBytes & { shard: number })[];
}

/** A segment as a dispatcher would store it, a part for each group that has answers. */
export function encodeSegment(groups: readonly SegmentGroup[]): EncodedSegment {
  const open = new OpenSegment<SegmentGroup>(createChunkPool());
  for (const group of groups) {
    for (const { line, kind, bytes } of group.answers) {
      open.add(group, { line, kind, pieces: [bytes] }, NO_USAGE);
    }
  }
  const { chunks, parts } = open.encode();
  open.release();
  return {
    bytes: chunks,
    parts: parts.map(({ holder, range }) => ({ shard: holder.shard, ...range })),
  };
}
