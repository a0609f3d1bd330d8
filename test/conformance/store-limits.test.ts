import { randomUUID } from 'node:crypto';
import * as fc from 'fast-check';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { blockOf, bucketLifeMs, draw, freshBucket } from '../../src/domain/rate-limit.ts';
import type { Bucket } from '../../src/domain/rate-limit.ts';
import { globalKeys } from '../../src/store/keys.ts';
import type { Client } from '../../src/store/scripts.ts';
import { createStore } from '../../src/store/store.ts';
import type { Store } from '../../src/store/store.ts';
import { BACK_ENDS, connectTo } from '../support/store-back-ends.ts';
import { until } from '../support/until.ts';

describe.each(BACK_ENDS)('token buckets on %s', (kind) => {
  let redis: Client;
  let store: Store;
  let key: (name: string) => string;
  let ops = 0;

  beforeAll(() => {
    redis = connectTo(kind);
  });
  afterAll(() => redis.disconnect());
  beforeEach(() => {
    const namespace = randomUUID();
    store = createStore({ redis, namespace });
    key = globalKeys(namespace).limit;
  });

  function drawOf(name: string, perSecond: number, want: number, back = 0) {
    ops += 1;
    return store.limits.draw(name, `op-${ops}`, perSecond, { want, back, need: 'awaited' });
  }

  test('a new bucket holds a block and no more', async () => {
    expect(await drawOf('b', 0.001, 5)).toMatchObject({ granted: 1, waitMs: 1_000_000 });
    const many = await drawOf('c', 1_000, 5_000);
    expect(many.granted).toBe(blockOf(1_000));
    expect(many.granted).toBe(100);
    expect(many.waitMs).toBe(50);
  });

  test('buckets of two names, of which one may be a URL, know nothing of each other', async () => {
    const name = 'engine http://[::1]:8000/a:tokens';
    expect(await drawOf(name, 0.001, 1)).toMatchObject({ granted: 1 });
    expect(await drawOf(name, 0.001, 1)).toMatchObject({ granted: 0 });
    expect(await drawOf('other', 0.001, 1)).toMatchObject({ granted: 1 });
  });

  test('a repeat is answered as it was at first, and draws nothing', async () => {
    const draws = async (op: string) =>
      store.limits.draw('b', op, 0.001, { want: 1, back: 2, need: 'awaited' });
    const first = await draws('a');
    expect(first).toMatchObject({ granted: 1, bucket: { level: 2 } });
    const second = await draws('b');
    expect(await draws('a')).toEqual(first);
    expect(await draws('b')).toEqual(second);
    expect((await drawOf('b', 0.001, 0)).bucket.level).toBeLessThan(1.01);
  });

  test('of many at once each gets units of its own', async () => {
    const replies = await Promise.all(Array.from({ length: 50 }, () => drawOf('b', 100, 1)));
    const granted = replies.reduce((sum, reply) => sum + reply.granted, 0);
    expect(granted).toBeGreaterThanOrEqual(blockOf(100));
    expect(granted).toBeLessThan(blockOf(100) + 10);
  });

  test('what was used beyond the reserve is paid back before anything is drawn', async () => {
    await drawOf('b', 100, 10, -100);
    const reply = await drawOf('b', 100, 1);
    expect(reply.granted).toBe(0);
    expect(reply.waitMs).toBeGreaterThan(500);
    expect(reply.waitMs).toBeLessThanOrEqual(1_010);
  });

  test('a bucket that nobody uses vanishes when it is full, and its replies do after a minute', async () => {
    await store.limits.draw('b', 'op', 10, { want: 1, back: -99, need: 'awaited' });
    const life = await redis.pttl(key('b'));
    expect(life).toBeGreaterThan(19_000);
    expect(life).toBeLessThanOrEqual(20_000);
    const reply = await redis.pttl(`${key('b')}:o:op`);
    expect(reply).toBeGreaterThan(50_000);
    expect(reply).toBeLessThanOrEqual(60_000);
    await redis.pexpire(key('b'), 1);
    await until(async () => (await redis.exists(key('b'))) === 0);
    expect(await drawOf('b', 10, 5)).toMatchObject({ granted: 1 });
  });

  test('the script does what the domain does', async () => {
    const touch = fc.record({
      want: fc.integer({ min: 0, max: 60 }),
      back: fc.integer({ min: -40, max: 40 }),
      need: fc.constantFrom('awaited' as const, 'ahead' as const, 'none' as const),
    });
    const touches = fc.array(touch, { minLength: 1, maxLength: 15 });
    const rate = fc.double({ min: 0.1, max: 2_000, noNaN: true });
    const most = fc.option(fc.integer({ min: 1, max: 50 }));
    await fc.assert(
      fc.asyncProperty(rate, most, touches, async (perSecond, own, all) => {
        const name = randomUUID();
        let model: Bucket | null = null;
        const block = own ?? blockOf(perSecond);
        for (const each of all) {
          ops += 1;
          const units = { ...each, ...(own === null ? {} : { most: own }) };
          const reply = await store.limits.draw(name, `op-${ops}`, perSecond, units);
          const now = reply.bucket.at;
          const told = draw(model ?? freshBucket(perSecond, now, block), perSecond, units, now);
          expect(reply).toEqual({
            granted: told.granted,
            waitMs: told.waitMs,
            bucket: told.bucket,
          });
          const life = await redis.pttl(key(name));
          expect(Math.abs(life - bucketLifeMs(told.bucket, perSecond, block))).toBeLessThan(1_000);
          model = told.bucket;
        }
      }),
      { numRuns: 40 },
    );
  });
});
