import { Readable } from 'node:stream';
import { crc32 } from 'node:zlib';
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Answer } from '../../src/dispatcher/contract.ts';
import type { PartRange } from '../../src/domain/segment.ts';
import { readEntries } from '../../src/dispatcher/segments.ts';
import { encodeSegment } from '../support/encode-segment.ts';
import type { EncodedSegment, SegmentGroup } from '../support/encode-segment.ts';

function answer(line: number, text: string, kind: Answer['kind'] = 'output'): Answer {
  return { line, kind, bytes: Buffer.from(text) };
}

function group(answers: Answer[], shard = 0): SegmentGroup {
  return { shard, answers };
}

function rangeOf(segment: EncodedSegment, n: number): PartRange {
  const { offset = 0, length = 0, crc = 0 } = segment.parts[n] ?? {};
  return { segment: 'seg_1', offset, length, crc };
}

/** Bytes of a segment's range in chunks of the given sizes, which repeat. */
function stream(whole: Buffer, part: PartRange, sizes: readonly number[] = [65_536]): Readable {
  const bytes = whole.subarray(part.offset, part.offset + part.length);
  const chunks: Buffer[] = [];
  for (let at = 0, n = 0; at < bytes.length; n += 1) {
    const size = sizes[n % sizes.length] ?? 1;
    chunks.push(bytes.subarray(at, at + size));
    at += size;
  }
  return Readable.from(chunks);
}

async function collect(entries: AsyncIterable<Answer>): Promise<Answer[]> {
  const all: Answer[] = [];
  for await (const entry of entries) all.push(entry);
  return all;
}

const ONE = encodeSegment([group([answer(3, 'ccc'), answer(1, 'a', 'error'), answer(2, '')])]);
const BYTES = Buffer.concat(ONE.bytes);
const PART = rangeOf(ONE, 0);

function readOne(bytes: Buffer, part: PartRange = PART): Promise<Answer[]> {
  const crc = crc32(bytes);
  return collect(readEntries(Readable.from([bytes]), { ...part, crc }));
}

describe('encodeSegment', () => {
  test('sorts each part by line and says where it is', () => {
    expect(ONE.parts).toEqual([{ shard: 0, offset: 0, length: BYTES.length, crc: crc32(BYTES) }]);
    expect(BYTES.toString('latin1')).toBe(
      '\x01\0\0\0\x01\x01\0\0\0a\x02\0\0\0\0\0\0\0\0\x03\0\0\0\0\x03\0\0\0ccc',
    );
  });

  test('leaves out a group without answers', () => {
    expect(encodeSegment([group([]), group([answer(0, 'a')], 7)]).parts).toMatchObject([
      { shard: 7, offset: 0 },
    ]);
  });

  test('refuses a line that is there twice', () => {
    expect(() => encodeSegment([group([answer(1, 'a'), answer(1, 'b')])])).toThrow('line 1');
  });
});

describe('readEntries', () => {
  test('reads back what was encoded, however the stream is cut', async () => {
    const answers = fc
      .uniqueArray(
        fc.record({
          line: fc.oneof(fc.nat(1_000), fc.nat(0xffff_ffff)),
          kind: fc.constantFrom('output', 'error'),
          bytes: fc.uint8Array({ maxLength: 30 }).map((bytes) => Buffer.from(bytes)),
        }),
        { selector: ({ line }) => line, maxLength: 12 },
      )
      .map((list): Answer[] => list);
    await fc.assert(
      fc.asyncProperty(
        fc.array(answers, { maxLength: 4 }),
        fc.array(fc.integer({ min: 1, max: 25 }), { minLength: 1, maxLength: 5 }),
        async (lists, sizes) => {
          const groups = lists.map(group);
          const segment = encodeSegment(groups);
          const whole = Buffer.concat(segment.bytes);
          const filled = lists.filter((list) => list.length > 0);
          expect(segment.parts.length).toBe(filled.length);
          for (const [n, list] of filled.entries()) {
            const part = rangeOf(segment, n);
            const read = await collect(readEntries(stream(whole, part, sizes), part));
            expect(read).toEqual(list.toSorted((a, b) => a.line - b.line));
          }
        },
      ),
      { numRuns: 300 },
    );
  });

  test('reads no further than the entry that it gives', async () => {
    const [size, chunk] = [4 * 1024 * 1024, 64 * 1024] as const;
    const segment = encodeSegment([
      group([0, 1, 2, 3].map((line) => ({ line, kind: 'output', bytes: Buffer.alloc(size, 'x') }))),
    ]);
    const whole = Buffer.concat(segment.bytes);
    let pulled = 0;
    async function* source() {
      for (; pulled < whole.length; pulled += chunk) {
        yield whole.subarray(pulled, pulled + chunk);
      }
    }
    let given = 0;
    for await (const entry of readEntries(source(), rangeOf(segment, 0))) {
      given += entry.bytes.length;
      // Whole chunks, and the headers so far.
      expect(pulled - given).toBeLessThan(chunk + 4 * 9);
    }
    expect(given).toBe(4 * size);
  });

  test('refuses a checksum that is not the one that was committed', async () => {
    const flipped = Buffer.from(BYTES);
    flipped.writeUInt8(flipped.readUInt8(BYTES.length - 1) ^ 1, BYTES.length - 1);
    const part = { ...PART, offset: 40 };
    await expect(collect(readEntries(Readable.from([flipped]), part))).rejects.toMatchObject({
      kind: 'Permanent',
      code: 'segment.damaged',
      message: expect.stringContaining(`segment seg_1, bytes 40 to ${40 + BYTES.length}: checksum`),
    });
  });

  test('refuses too few bytes and too many', async () => {
    await expect(readOne(BYTES.subarray(0, -1))).rejects.toThrow('only 30 of 31 bytes');
    await expect(readOne(Buffer.alloc(0))).rejects.toThrow('only 0 of 31 bytes');
    await expect(readOne(Buffer.concat([BYTES, Buffer.of(0)]))).rejects.toThrow('longer than 31');
  });

  test('refuses a part that ends within a header', async () => {
    const short = BYTES.subarray(0, 12);
    await expect(readOne(short, { ...PART, length: 12 })).rejects.toThrow('ends within an entry');
  });

  test.for([
    ['an unknown kind', 4, 7, 'unknown kind'],
    ['a line that does not ascend', 10, 1, 'line 1 after line 1'],
    ['an entry that is longer than the rest', 24, 200, 'longer than what is left'],
  ] as const)('refuses at once %s', async ([, at, value, message]) => {
    const damaged = Buffer.from(BYTES);
    damaged.writeUInt8(value, at);
    async function* endless() {
      yield damaged;
      await new Promise(() => undefined);
    }
    await expect(collect(readEntries(endless(), PART))).rejects.toMatchObject({
      code: 'segment.damaged',
      message: expect.stringContaining(message),
    });
  });
});
