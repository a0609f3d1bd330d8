import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { createBadMarks } from '../../src/dispatcher/bad-marks.ts';
import { countBits, isSet } from '../../src/domain/segment.ts';

test('each shard that has bad lines gets them, once, in order and in pages', () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 1, max: 30 }), { minLength: 1, maxLength: 600 }),
      fc.array(fc.nat(20_000), { maxLength: 60 }),
      (sizes, picks) => {
        const lines = sizes.reduce((sum, size) => sum + size, 0);
        const bad = new Set(picks.map((pick) => pick % lines));
        const marks = createBadMarks();
        for (const index of bad) marks.add(index);
        let first = 0;
        const shards = sizes.map((count, n) => {
          const shard = { n, first, lines: count, offset: 0, bytes: 0 };
          first += count;
          return shard;
        });
        marks.cut(shards);
        const found = [...marks.pages(lines)].flat();
        const expected = shards.filter((shard) =>
          [...bad].some((at) => at >= shard.first && at < shard.first + shard.lines),
        );
        expect(found.map(({ n }) => n)).toEqual(expected.map(({ n }) => n));
        for (const { n, bad: bits } of found) {
          const shard = shards[n];
          expect(bits).toHaveLength(Math.ceil((shard?.lines ?? 0) / 8));
          const own = [...bad].map((at) => at - (shard?.first ?? 0));
          const inside = own.filter((at) => at >= 0 && at < (shard?.lines ?? 0));
          expect(inside.every((at) => isSet(bits, at))).toBe(true);
          expect(countBits(bits)).toBe(inside.length);
        }
      },
    ),
    { numRuns: 200 },
  );
});

test('a million lines in three pages and more, of at most 200 shards', () => {
  const marks = createBadMarks();
  const shards = Array.from({ length: 1_000 }, (_, n) => {
    return { n, first: n * 1_000, lines: 1_000, offset: 0, bytes: 0 };
  });
  for (let at = 0; at < 1_000_000; at += 1_000) marks.add(at);
  marks.cut(shards);
  const pages = [...marks.pages(1_000_000)].map((page) => page.length);
  expect(pages).toEqual([200, 200, 200, 200, 200]);
});
