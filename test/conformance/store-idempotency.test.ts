import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { Idempotency } from '../../src/store/idempotency.ts';
import type { Client } from '../../src/store/scripts.ts';
import { createStore } from '../../src/store/store.ts';
import { BACK_ENDS, connectTo } from '../support/store-back-ends.ts';
import { until } from '../support/until.ts';

const LONG_MS = 60_000;
const ANSWER = { print: 'p', status: 201, body: Buffer.from([0, 255, 13, 10]) };

describe.each(BACK_ENDS)('idempotency keys on %s', (kind) => {
  let redis: Client;
  let keys: Idempotency;

  beforeAll(() => {
    redis = connectTo(kind);
  });
  afterAll(() => redis.disconnect());
  beforeEach(() => {
    keys = createStore({ redis, namespace: randomUUID() }).idempotency;
  });

  async function take(key: string, leaseMs = LONG_MS): Promise<string> {
    const claimed = await keys.claim(key, 'p', leaseMs);
    if ('found' in claimed) throw new Error('another has the key');
    return claimed.holder;
  }

  test('of many that claim one at once, one gets it, and the others see its print', async () => {
    const claims = await Promise.all(
      Array.from({ length: 20 }, (_, n) => keys.claim('k', `p${n}`, LONG_MS)),
    );
    const winner = claims.findIndex((claim) => 'holder' in claim);
    const others = claims.filter((claim) => 'found' in claim);
    expect(others).toHaveLength(19);
    expect(others[0]).toEqual({
      found: { print: `p${winner}`, status: null, body: Buffer.alloc(0) },
    });
  });

  test('an answer is given again byte by byte, until its time is over', async () => {
    const holder = await take('k');
    expect(await keys.answer('k', holder, ANSWER, 200)).toBe(true);
    expect(await keys.claim('k', 'other', LONG_MS)).toEqual({ found: ANSWER });
    // An answered key is neither renewed nor given back.
    await keys.renew('k', holder, LONG_MS);
    await keys.free('k', holder);
    expect(await keys.claim('k', 'other', LONG_MS)).toEqual({ found: ANSWER });
    expect(await until(async () => 'holder' in (await keys.claim('k', 'x', LONG_MS)))).toBe(true);
  });

  test('a holder that is silent loses the key to the next, and then says nothing under it', async () => {
    const first = await take('k', 30);
    const second = await until(async () => {
      const claimed = await keys.claim('k', 'p', LONG_MS);
      return 'holder' in claimed && claimed.holder;
    });
    await keys.free('k', first);
    await keys.renew('k', first, 1);
    expect(await keys.answer('k', first, ANSWER, LONG_MS)).toBe(false);
    expect(await keys.answer('k', second, ANSWER, LONG_MS)).toBe(true);
  });

  test('a key that is given back is as new', async () => {
    await keys.free('k', await take('k'));
    expect(await keys.claim('k', 'other', LONG_MS)).toHaveProperty('holder');
  });

  test('a retry has the seed of the last create of its print; a create has its own', async () => {
    expect(await keys.seed('p', 'a', false, LONG_MS)).toBe('a');
    expect(await keys.seed('p', 'b', false, LONG_MS)).toBe('b');
    expect(await keys.seed('p', 'c', true, LONG_MS)).toBe('b');
    expect(await keys.seed('q', 'd', true, LONG_MS)).toBe('d');
    const retries = Array.from({ length: 10 }, (_, n) => keys.seed('r', `s${n}`, true, LONG_MS));
    expect(new Set(await Promise.all(retries)).size).toBe(1);
  });
});
