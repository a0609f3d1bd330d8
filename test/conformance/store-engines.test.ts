import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { Client } from '../../src/store/scripts.ts';
import { createStore } from '../../src/store/store.ts';
import type { Store } from '../../src/store/store.ts';
import { BACK_ENDS, connectTo } from '../support/store-back-ends.ts';
import { until } from '../support/until.ts';

const ENGINE = 'http://engine:8000';

describe.each(BACK_ENDS)('what processes tell each other of an engine on %s', (kind) => {
  let redis: Client;
  let store: Store;
  const numbers = new Map<string, number>();

  beforeAll(() => {
    redis = connectTo(kind);
  });
  afterAll(() => redis.disconnect());
  beforeEach(() => {
    store = createStore({ redis, namespace: randomUUID() });
    numbers.clear();
  });

  function beat(id: string, limit: number | null = null, address = ENGINE) {
    const number = (numbers.get(id) ?? 0) + 1;
    numbers.set(id, number);
    return store.engines.beat(address, { id, number, tally: { of: id, number }, limit });
  }

  test('who comes first leads, and only its word on the window counts', async () => {
    expect(await beat('a', 100)).toEqual({ processes: 1, rank: 0, limit: 100, others: [] });
    await until(async () => (await beat('b', 7)).rank === 1, { what: 'a later millisecond' });
    expect(await beat('b', 7)).toMatchObject({ processes: 2, rank: 1, limit: 100 });
    expect(await beat('a', 120)).toMatchObject({ rank: 0, limit: 120 });
    expect(await beat('b')).toMatchObject({ limit: 120 });
  });

  test('each hears what the others said last, with its number', async () => {
    await beat('a');
    await beat('a');
    const { others } = await beat('b');
    expect(others).toEqual([{ id: 'a', beat: 2, tally: { of: 'a', number: 2 } }]);
  });

  test('engines know nothing of each other', async () => {
    await beat('a', 5);
    expect(await beat('a', null, 'http://other')).toEqual({
      processes: 1,
      rank: 0,
      limit: null,
      others: [],
    });
  });

  test('one that is silent for three seconds is gone, and the next leads with what was decided', async () => {
    await beat('a', 77);
    const alone = await until(
      async () => {
        const standing = await beat('b');
        return standing.processes === 1 ? standing : undefined;
      },
      { timeoutMs: 6_000, what: 'the end of the first' },
    );
    expect(alone).toMatchObject({ rank: 0, limit: 77 });
    expect(await beat('a')).toMatchObject({ processes: 2, rank: 1, limit: 77 });
  });

  test('one process at a time isolates at an engine, until it gives the turn back or is silent', async () => {
    const isolation = store.engines.isolation(ENGINE);
    expect(await isolation.lease('a', 60_000)).toBe(true);
    expect(await isolation.lease('b', 60_000)).toBe(false);
    expect(await store.engines.isolation('http://other').lease('b', 60_000)).toBe(true);
    await isolation.yield('a');
    expect(await isolation.lease('b', 40)).toBe(true);
    await until(() => isolation.lease('a', 60_000), { what: 'the end of the turn' });
  });
});
