import { Readable } from 'node:stream';
import { describe, expect, test } from 'vitest';
import { findLost } from '../../src/dispatcher/lost-parts.ts';
import type { AssemblySource } from '../../src/dispatcher/contract.ts';
import { notFound, transient } from '../../src/domain/errors.ts';
import type { LostParts, PartRange } from '../../src/domain/segment.ts';
import { makeJob } from '../support/assembly.ts';
import { maskOf } from '../support/fuzz/world.ts';

const SHARD_LINES = 10;

/** Two shards whose lines take turns at two segments, but for two that nobody answered. */
function twoSegments() {
  const lines = Array.from({ length: 2 * SHARD_LINES }, (_, n) => {
    const kind = n % SHARD_LINES === 9 ? ('undone' as const) : ('output' as const);
    return { customId: `c${n}`, kind, segment: n % 2, size: 20 };
  });
  return makeJob(lines, SHARD_LINES);
}

/** `read` gives the bytes of a part, and may throw or change them. */
async function search(read: (part: PartRange, bytes: Buffer) => Buffer): Promise<LostParts[]> {
  const job = twoSegments();
  const source: Pick<AssemblySource, 'shards' | 'openPart'> = {
    shards: Readable.from(job.shards),
    async openPart(part) {
      const { segment, offset, length } = part;
      const bytes = job.segments.get(segment)?.subarray(offset, offset + length);
      return Readable.from([read(part, Buffer.from(bytes ?? []))]);
    },
  };
  const found: LostParts[] = [];
  for await (const lost of findLost(source)) found.push(lost);
  return found;
}

const EVEN = [0, 2, 4, 6, 8];

describe('searching for lost answers', () => {
  test('where everything is as it was recorded, nothing is lost', async () => {
    expect(await search((_part, bytes) => bytes)).toEqual([]);
  });

  test('a segment that is not there is lost in every shard, and the other parts’ lines stay', async () => {
    const found = await search((part, bytes) => {
      if (part.segment === 'seg_1') throw notFound('storage.not_found', 'gone');
      return bytes;
    });
    expect(found.map(({ n, rest }) => ({ n, rest }))).toEqual([
      { n: 0, rest: maskOf(SHARD_LINES, EVEN) },
      { n: 1, rest: maskOf(SHARD_LINES, EVEN) },
    ]);
    expect(found[0]?.lost.map(({ segment }) => segment)).toEqual(['seg_1']);
    expect(found[0]?.reason).toMatch(/^segment seg_1, bytes 0 to \d+: is missing$/);
  });

  test.each([
    ['short', (bytes: Buffer) => bytes.subarray(0, -1), /only \d+ of \d+ bytes/],
    ['long', (bytes: Buffer) => Buffer.concat([bytes, bytes]), /longer than/],
    [
      'changed',
      (bytes: Buffer) => {
        bytes.writeUInt8(bytes.readUInt8(30) ^ 1, 30);
        return bytes;
      },
      /checksum/,
    ],
  ])('one part that is %s is lost, and no other of its segment', async (_name, change, reason) => {
    const found = await search((part, bytes) =>
      part.segment === 'seg_0' && part.offset > 0 ? change(bytes) : bytes,
    );
    expect(found).toHaveLength(1);
    expect(found[0]).toMatchObject({ n: 1, lost: [{ segment: 'seg_0' }] });
    expect(found[0]?.rest).toEqual(maskOf(SHARD_LINES, [1, 3, 5, 7]));
    expect(found[0]?.reason).toMatch(reason);
  });

  test('what is as it was recorded at the second reading is not lost', async () => {
    const read = new Map<string, number>();
    const found = await search(({ segment, offset }, bytes) => {
      const times = (read.get(`${segment} ${offset}`) ?? 0) + 1;
      read.set(`${segment} ${offset}`, times);
      return times === 1 ? bytes.subarray(0, 5) : bytes;
    });
    expect(found).toEqual([]);
    expect([...read.values()]).toEqual([2, 2, 2, 2]);
  });

  test('a store that cannot be read now loses nothing, and its error is passed on', async () => {
    const down = transient('storage.down', 'not now');
    let reads = 0;
    const searching = search(() => {
      reads += 1;
      throw down;
    });
    await expect(searching).rejects.toBe(down);
    expect(reads, 'nothing is read twice').toBe(2);
  });
});
