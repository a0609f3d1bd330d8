import { isSet, setBit } from '../domain/segment.ts';
import type { AcceptedShard, LostParts, PartRange } from '../domain/segment.ts';
import type { AssemblySource } from './contract.ts';
import { damagedPart, isDamage, orLost, readEntries } from './segments.ts';

/** Shards read at a time, so that a store's latency is not paid once a part. */
const AT_ONCE = 8;

type Source = Pick<AssemblySource, 'shards' | 'openPart'>;

/**
 * Reads every accepted part, and again those that are not as they were recorded: missing, of another length, or with
 * another checksum. Yields the shards of which a part is so both times. A part that cannot be read now, because
 * storage is down or slow, ends it with that error: nobody knows whether it is lost.
 */
export async function* findLost(source: Source): AsyncGenerator<LostParts> {
  let batch: AcceptedShard[] = [];
  for await (const shard of source.shards) {
    if (shard.parts.length > 0) batch.push(shard);
    if (batch.length < AT_ONCE) continue;
    yield* await checkAll(source, batch);
    batch = [];
  }
  yield* await checkAll(source, batch);
}

async function checkAll(source: Source, shards: readonly AcceptedShard[]): Promise<LostParts[]> {
  const checked = await Promise.all(shards.map((shard) => checkShard(source, shard)));
  return checked.filter(({ lost }) => lost.length > 0);
}

/** What is lost of one shard, which may be nothing, and the lines that are there. Rejects as `findLost` ends. */
export async function checkShard(
  source: Pick<Source, 'openPart'>,
  shard: AcceptedShard,
): Promise<LostParts> {
  const lost: PartRange[] = [];
  const rest = Buffer.alloc(shard.done.length);
  let reason = '';
  for (const part of shard.parts) {
    let found = await readPart(source, shard, part);
    // The first reading may have met a store that was only just recovering.
    if ('wrong' in found) found = await readPart(source, shard, part);
    if ('wrong' in found) {
      reason ||= found.wrong;
      lost.push(part);
      continue;
    }
    // Of lines that were answered twice some parts have more than was accepted of them.
    for (const line of found.lines) if (isSet(shard.done, line)) setBit(rest, line);
  }
  return { n: shard.plan.n, lost, rest, reason };
}

/** The lines that a part has, or what is wrong with it. */
async function readPart(
  source: Pick<Source, 'openPart'>,
  { plan }: AcceptedShard,
  part: PartRange,
): Promise<{ lines: number[] } | { wrong: string }> {
  const lines: number[] = [];
  try {
    const stream = await orLost(source.openPart(part), () => damagedPart(part, 'is missing'));
    for await (const { line } of readEntries(stream, part)) {
      if (line >= plan.lines) throw damagedPart(part, `has line ${line} of ${plan.lines}`);
      lines.push(line);
    }
    return { lines };
  } catch (error) {
    if (!isDamage(error)) throw error;
    return { wrong: error.message };
  }
}
