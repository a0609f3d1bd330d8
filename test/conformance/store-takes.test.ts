import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { MANY_TAKES } from '../../src/domain/plan.ts';
import type { Client } from '../../src/store/scripts.ts';
import { createStore } from '../../src/store/store.ts';
import type { Store } from '../../src/store/store.ts';
import {
  BACK_ENDS,
  connectTo,
  jobInProgress,
  partOf,
  SEGMENT,
} from '../support/store-back-ends.ts';

describe.each(BACK_ENDS)('takes of a shard on %s', (kind) => {
  let redis: Client;
  let store: Store;
  let id: string;

  beforeAll(() => {
    redis = connectTo(kind);
  });
  afterAll(() => redis.disconnect());
  beforeEach(async () => {
    store = createStore({ redis, namespace: randomUUID() });
    ({ id } = await jobInProgress(store, { shards: 1, lines: 10 }));
    await store.shards.open(id, 1);
  });

  /** The shard is held: its queue job comes again under the same wake when the holder has died. */
  async function take(token: string, apartMs = 0, wake = 1) {
    const reply = await store.shards.take(id, { n: 0, wake }, token, 1, apartMs);
    if (reply.outcome !== 'taken') throw new Error(`it is ${reply.outcome}`);
    const { takes, crashed } = reply;
    return { takes, crashed: crashed && { line: crashed.line, deaths: crashed.deaths } };
  }

  test('each taker counts once, a commit or giving back begins anew', async () => {
    expect(await take('a')).toEqual({ takes: 1, crashed: null });
    expect(await take('a'), 'a repeat').toEqual({ takes: 1, crashed: null });
    expect(await take('b')).toEqual({ takes: 2, crashed: null });
    await store.shards.commit(id, SEGMENT, [partOf(0, 'b', 10, [0])]);
    expect((await take('c')).takes).toBe(1);
    expect((await take('d')).takes).toBe(2);
    const [waiting] = await store.shards.give(id, 0, 'd', 1);
    expect((await take('e', 0, waiting?.wake)).takes).toBe(1);
  });

  test('a commit does not earn back the whole trust in a shard that many died with', async () => {
    for (let n = 0; n <= MANY_TAKES; n += 1) await take(`t${n}`);
    await store.shards.commit(id, SEGMENT, [partOf(0, `t${MANY_TAKES}`, 10, [0])]);
    expect((await take('next')).takes).toBe(MANY_TAKES + 1);
  });

  test('deaths with one line alone in hand are counted, those close together once', async () => {
    await take('a');
    expect(await store.shards.markAlone(id, 0, 'other', 3)).toBe(false);
    expect(await store.shards.markAlone(id, 0, 'a', 3)).toBe(true);
    expect(await take('a'), 'it is alive').toMatchObject({ crashed: { line: 3, deaths: 0 } });
    expect((await take('b')).crashed).toEqual({ line: 3, deaths: 1 });
    expect((await take('b')).crashed, 'a repeat').toEqual({ line: 3, deaths: 1 });
    expect((await take('c')).crashed, 'b had not sent it').toEqual({ line: 3, deaths: 1 });
    await store.shards.markAlone(id, 0, 'c', 3);
    expect((await take('d', 60_000)).crashed, 'too soon').toEqual({ line: 3, deaths: 1 });
    await store.shards.markAlone(id, 0, 'd', 3);
    expect((await take('e')).crashed).toEqual({ line: 3, deaths: 2 });
    await store.shards.markAlone(id, 0, 'e', 4);
    expect((await take('f')).crashed, 'another line').toEqual({ line: 4, deaths: 1 });
  });

  test('whoever gives back is not dead, and what is answered is not to blame', async () => {
    await take('a');
    await store.shards.markAlone(id, 0, 'a', 3);
    await take('b');
    await store.shards.markAlone(id, 0, 'b', 3);
    const [waiting] = await store.shards.give(id, 0, 'b', 1);
    const again = await take('c', 0, waiting?.wake);
    expect(again).toEqual({ takes: 1, crashed: { line: 3, deaths: 1 } });
    await store.shards.commit(id, SEGMENT, [partOf(0, 'c', 10, [3])]);
    expect((await take('d', 0, waiting?.wake)).crashed).toBeNull();
  });
});
