import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  BLOCK_MS,
  blockOf,
  bucketLifeMs,
  CATCH_UP_MS,
  draw,
  freshBucket,
  holdMs,
  learn,
  parseReset,
  refill,
  reservation,
} from '../../src/domain/rate-limit.ts';
import type { LimitHeaders } from '../../src/domain/rate-limit.ts';

const rates = fc.double({ min: 0.05, max: 20_000, noNaN: true });
const touches = fc.array(
  fc.record({
    afterMs: fc.integer({ min: 0, max: 3_000 }),
    want: fc.integer({ min: 0, max: 3_000 }),
    need: fc.constantFrom('awaited' as const, 'ahead' as const),
  }),
  { minLength: 1, maxLength: 60 },
);

describe('a token bucket', () => {
  test('holds 100 ms worth of units, and one at least', () => {
    expect([0.5, 9, 10, 11, 1_000].map(blockOf)).toEqual([1, 1, 1, 2, 100]);
    expect(freshBucket(1_000, 5)).toEqual({ level: 100, at: 5, hungryAt: 0 });
  });

  test('in any span of time gives no more than the limit lets through, and a block and half a second beside', () => {
    fc.assert(
      fc.property(rates, touches, (perSecond, all) => {
        let now = 1_000;
        let bucket = freshBucket(perSecond, now);
        const grants: { at: number; units: number }[] = [];
        for (const { afterMs, want, need } of all) {
          now += afterMs;
          const drawn = draw(bucket, perSecond, { want, back: 0, need }, now);
          expect(drawn.granted).toBeLessThanOrEqual(Math.min(want, blockOf(perSecond)));
          ({ bucket } = drawn);
          grants.push({ at: now, units: drawn.granted });
        }
        const reserve = blockOf(perSecond) + (perSecond * CATCH_UP_MS) / 1_000;
        for (const [from, first] of grants.entries()) {
          let sum = 0;
          for (const { at, units } of grants.slice(from)) {
            sum += units;
            const most = ((at - first.at) * perSecond) / 1_000 + reserve;
            expect(sum).toBeLessThanOrEqual(most + 1e-6);
          }
        }
      }),
    );
  });

  test('gives a block and no more after a rest: half a second, or at once where whoever drew said so', () => {
    fc.assert(
      fc.property(rates, touches, fc.integer({ min: 1, max: 1e9 }), (perSecond, all, rest) => {
        let now = 1_000;
        let bucket = freshBucket(perSecond, now);
        for (const { afterMs, ...each } of all) {
          now += afterMs;
          ({ bucket } = draw(bucket, perSecond, { ...each, back: 0 }, now));
        }
        const later = refill(bucket, perSecond, now + CATCH_UP_MS + rest);
        expect(later.level).toBeLessThanOrEqual(blockOf(perSecond));
        const rested = draw(bucket, perSecond, { want: 0, back: 0, need: 'none' }, now);
        const soon = refill(rested.bucket, perSecond, now + (rest % CATCH_UP_MS));
        expect(soon.level).toBeLessThanOrEqual(blockOf(perSecond));
      }),
    );
  });

  test('loses nothing to one who waits and comes late', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 5_000 }),
        fc.array(fc.integer({ min: 1, max: CATCH_UP_MS - 100 }), { minLength: 20, maxLength: 60 }),
        (perSecond, pauses) => {
          let now = 1_000;
          let bucket = freshBucket(perSecond, now);
          let granted = 0;
          const begun = now;
          for (const pause of pauses) {
            now += pause;
            for (;;) {
              const drawn = draw(bucket, perSecond, { want: 1e9, back: 0, need: 'awaited' }, now);
              ({ bucket } = drawn);
              granted += drawn.granted;
              if (drawn.granted === 0) break;
            }
          }
          const elapsed = now - begun - (pauses[0] ?? 0);
          expect(granted).toBeGreaterThan((elapsed * perSecond) / 1_000 - 1 - 1e-6);
        },
      ),
    );
  });

  test('what comes back can be drawn again, and what was used beyond the reserve cannot', () => {
    let bucket = freshBucket(10, 1_000);
    ({ bucket } = draw(bucket, 10, { want: 1, back: 0, need: 'awaited' }, 1_000));
    const credited = draw(bucket, 10, { want: 2, back: 700, need: 'awaited' }, 1_000);
    expect(credited).toMatchObject({ granted: 1, bucket: { level: 699 } });
    expect(refill(credited.bucket, 10, 1_000 + CATCH_UP_MS).level).toBe(699);
    expect(refill(credited.bucket, 10, 1_001 + CATCH_UP_MS).level).toBe(1);
    const indebted = draw(bucket, 10, { want: 1, back: -20, need: 'awaited' }, 1_000);
    expect(indebted).toMatchObject({ granted: 0, waitMs: 2_100 });
    expect(bucketLifeMs(indebted.bucket, 10)).toBe(12_100);
  });

  test('says when it is worth coming again: for half a block, or what is missing', () => {
    const empty = { level: 0, at: 0, hungryAt: 0 };
    const wait = (want: number) => draw(empty, 1_000, { want, back: 0, need: 'awaited' }, 0).waitMs;
    expect([1, 20, 1_000].map(wait)).toEqual([1, 20, BLOCK_MS / 2]);
    expect(draw(empty, 0.1, { want: 1, back: 0, need: 'awaited' }, 0).waitMs).toBe(10_000);
    expect(wait(0)).toBe(0);
  });
});

describe('reservations of tokens', () => {
  test('are the estimate at first, and what answers of the job really take later', () => {
    let record = { estimated: 0, used: 0 };
    expect(reservation(record, 4_000)).toBe(4_000);
    for (let n = 0; n < 20; n += 1) record = learn(record, 4_000, 200);
    expect(reservation(record, 4_000)).toBeLessThan(2_200);
    for (let n = 0; n < 5_000; n += 1) record = learn(record, 4_000, 200);
    expect(reservation(record, 4_000)).toBeLessThan(300);
    for (let n = 0; n < 20_000; n += 1) record = learn(record, 100, 400);
    expect(reservation(record, 100)).toBeGreaterThan(380);
    expect(reservation(record, 0)).toBe(1);
  });

  test('lie between the estimate and what was learnt', () => {
    const counts = fc.integer({ min: 1, max: 1e6 });
    fc.assert(
      fc.property(counts, fc.array(fc.tuple(counts, counts)), (estimate, answers) => {
        let record = { estimated: 0, used: 0 };
        for (const [estimated, used] of answers) record = learn(record, estimated, used);
        const ratio = record.estimated === 0 ? 1 : record.used / record.estimated;
        const reserved = reservation(record, estimate);
        expect(reserved).toBeGreaterThanOrEqual(Math.floor(estimate * Math.min(1, ratio)));
        expect(reserved).toBeLessThanOrEqual(Math.ceil(estimate * Math.max(1, ratio)) + 1);
      }),
    );
  });
});

describe('what engines say about their limits', () => {
  test.each([
    ['1s', 1_000],
    ['6m0s', 360_000],
    ['20ms', 20],
    ['1h2m3.5s', 3_723_500],
    ['2d', 172_800_000],
    ['7.66s', 7_660],
    [' 12 ', 12_000],
    ['0.5', 500],
    ['0s', 0],
    ['', null],
    ['soon', null],
    ['-1s', null],
    ['1s2m', null],
    ['2026-01-01T00:00:00Z', null],
    [undefined, null],
  ])('a reset of %s is %s ms', (text, ms) => {
    expect(parseReset(text)).toBe(ms);
  });

  const none: LimitHeaders = {
    remainingRequests: undefined,
    remainingTokens: undefined,
    resetRequests: undefined,
    resetTokens: undefined,
  };
  const ok = { status: 200, retryAfterMs: null };

  test('nothing left means waiting for the reset, of requests and tokens the later one', () => {
    expect(holdMs(ok, null)).toBe(0);
    expect(holdMs(ok, { ...none, remainingRequests: '1', resetRequests: '9s' })).toBe(0);
    expect(holdMs(ok, { ...none, remainingRequests: '0', resetRequests: '9s' })).toBe(9_000);
    expect(holdMs(ok, { ...none, remainingRequests: '0' })).toBe(0);
    expect(holdMs(ok, { ...none, remainingRequests: 'none', resetRequests: '9s' })).toBe(0);
    const both = { remainingTokens: '-3', resetTokens: '6m0s' };
    expect(holdMs(ok, { ...none, ...both, remainingRequests: '0', resetRequests: '1s' })).toBe(
      360_000,
    );
  });

  test('a refusal with Retry-After counts, one without or another answer does not', () => {
    expect(holdMs({ status: 429, retryAfterMs: 2_000 }, null)).toBe(2_000);
    expect(holdMs({ status: 429, retryAfterMs: null }, null)).toBe(0);
    expect(holdMs({ status: 503, retryAfterMs: 2_000 }, null)).toBe(0);
    expect(holdMs({ status: 429, retryAfterMs: 1e9 }, null)).toBe(600_000);
  });
});
