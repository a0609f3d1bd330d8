import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { AcceptedShard, LostParts } from '../../src/domain/segment.ts';
import { shardKey } from '../../src/store/keys.ts';
import type { Client } from '../../src/store/scripts.ts';
import { createStore } from '../../src/store/store.ts';
import type { Store } from '../../src/store/store.ts';
import { maskOf } from '../support/fuzz/world.ts';
import {
  BACK_ENDS,
  connectTo,
  jobInProgress,
  newJob,
  partOf,
  SEGMENT,
} from '../support/store-back-ends.ts';

const LINES = 10;
const ALL = [...Array(LINES).keys()];
const USAGE = { inputTokens: 5, cachedTokens: 4, outputTokens: 3, reasoningTokens: 2 };
const OTHER = { id: 'seg-2', bytes: 33, sha256: 'cd' };

function lostOf(segment: string, offset: number, rest: readonly number[], n = 0): LostParts {
  const lost = [{ segment, offset, length: 10, crc: 7 }];
  return { n, lost, rest: maskOf(LINES, rest), reason: '' };
}

describe.each(BACK_ENDS)('answers that storage has lost, on %s', (kind) => {
  let redis: Client;
  let store: Store;

  beforeAll(() => {
    redis = connectTo(kind);
  });
  afterAll(() => redis.disconnect());
  beforeEach(() => {
    store = createStore({ redis, namespace: randomUUID() });
  });

  async function shardOf(id: string, n: number): Promise<AcceptedShard> {
    for await (const shard of store.shards.accepted(id, n, n + 1)) return shard;
    throw new Error(`shard ${n} is not there`);
  }

  /** Two shards, all answered and sealed: shard 0 has a part in each of two segments, shard 1 one in the second. */
  async function finalizing() {
    const { id, version } = await jobInProgress(store, { shards: 2, lines: LINES });
    await store.shards.open(id, 2);
    for (const n of [0, 1]) await store.shards.take(id, { n, wake: 1 }, `t${n}`, 0);
    const counts = { ok: 4, failed: 2, usage: USAGE };
    await store.shards.commit(id, SEGMENT, [partOf(0, 't0', LINES, ALL.slice(0, 6), counts)]);
    await store.shards.commit(id, OTHER, [
      partOf(0, 't0', LINES, ALL.slice(6), { usage: USAGE }),
      partOf(1, 't1', LINES, ALL, { offset: 10, usage: USAGE }),
    ]);
    const job = { id, state: 'in_progress', version } as const;
    const moved = await store.jobs.move(job, 'finalizing', { outcome: 'completed' });
    if (moved === 'stale') throw new Error('nobody else moves this job');
    return { id, state: 'finalizing' as const, version: moved.version };
  }

  test('of a shard only what is lost is taken back, from the counts of the job, too', async () => {
    const at = await finalizing();
    const rest = ALL.slice(6);
    const version = await store.shards.strike(at, lostOf('seg-1', 0, rest), 'Lost.');
    expect(version).toBe(at.version + 1);
    const shard = await shardOf(at.id, 0);
    expect(shard.done).toEqual(maskOf(LINES, rest));
    expect(shard.parts).toEqual([{ segment: 'seg-2', offset: 0, length: 10, crc: 7 }]);
    expect(await store.jobs.get(at.id)).toMatchObject({
      state: 'finalizing',
      completed: 14,
      failed: 0,
      doneShards: 1,
      usage: { inputTokens: 10, cachedTokens: 8, outputTokens: 6, reasoningTokens: 4 },
    });
    expect((await store.jobs.events(at.id)).at(-1)).toMatchObject({ message: 'Lost.' });
    expect((await shardOf(at.id, 1)).parts).toHaveLength(1);
  });

  test('who ends the job by what was there before is late', async () => {
    const at = await finalizing();
    await store.shards.strike(at, lostOf('seg-1', 0, ALL.slice(6)), '');
    expect(await store.jobs.move(at, 'completed')).toBe('stale');
  });

  test('the shard is asked again for the lost lines only, and its old holder is out', async () => {
    const at = await finalizing();
    const version = await store.shards.strike(at, lostOf('seg-1', 0, ALL.slice(6)), '');
    if (version === 'stale') throw new Error('nobody else moves this job');
    let seen = { ...at, version };
    for (const to of ['resource_preparing', 'submitting', 'in_progress'] as const) {
      const moved = await store.jobs.move(seen, to);
      if (moved === 'stale') throw new Error('nobody else moves this job');
      seen = { id: at.id, state: to as 'finalizing', version: moved.version };
    }
    expect(await store.jobs.get(at.id)).toMatchObject({ outcome: null, state: 'in_progress' });
    const late = partOf(0, 't0', LINES, ALL.slice(0, 6));
    const old = await store.shards.commit(at.id, SEGMENT, [late]);
    expect(old.parts).toEqual([{ outcome: 'stale' }]);
    expect(await store.shards.open(at.id, 3)).toEqual([{ n: 0, wake: 2 }]);
    const taken = await store.shards.take(at.id, { n: 0, wake: 2 }, 'u', 0);
    expect(taken).toMatchObject({ done: maskOf(LINES, ALL.slice(6)), left: 6 });
    const again = partOf(0, 'u', LINES, ALL.slice(0, 6));
    const reply = await store.shards.commit(at.id, { ...OTHER, id: 'seg-3' }, [again]);
    expect(reply).toEqual({ last: true, parts: [{ outcome: 'committed', left: 0 }] });
    expect(await store.jobs.get(at.id)).toMatchObject({ completed: 20, failed: 0, doneShards: 2 });
  });

  test('where parts have lines in common, so that nobody knows what stays, the whole shard goes', async () => {
    const at = await finalizing();
    // The other part of the shard has line 0 as well, though it was not accepted with it.
    const lost = lostOf('seg-1', 0, [0, ...ALL.slice(6)]);
    expect(await store.shards.strike(at, lost, '')).toBe(at.version + 1);
    expect(await shardOf(at.id, 0)).toMatchObject({ done: maskOf(LINES, []), parts: [] });
    expect(await store.jobs.get(at.id)).toMatchObject({
      completed: 10,
      failed: 0,
      doneShards: 1,
      usage: USAGE,
    });
  });

  test('of a stopped job what a shard still in hand has lost is gone, and its holder is out', async () => {
    const { id, version } = await jobInProgress(store, { shards: 2, lines: LINES });
    await store.shards.open(id, 2);
    await store.shards.take(id, { n: 0, wake: 1 }, 't0', 0);
    await store.shards.commit(id, SEGMENT, [partOf(0, 't0', LINES, [0, 1, 2])]);
    const job = { id, state: 'in_progress', version } as const;
    const moved = await store.jobs.move(job, 'finalizing', { outcome: 'expired' });
    if (moved === 'stale') throw new Error('nobody else moves this job');
    const at = { id, version: moved.version };
    expect(await store.shards.strike(at, lostOf('seg-1', 0, []), '')).toBe(at.version + 1);
    const after = await store.jobs.get(id);
    expect(after).toMatchObject({ completed: 0, doneShards: 0, outcome: 'expired' });
    expect(await redis.hget(shardKey(id, 0), 'token')).toBeNull();
    expect(await redis.exists(`{${id}}:todo`), 'nobody is to ask again').toBe(0);
  });

  test('a shard that lost one part after the other waits once', async () => {
    const at = await finalizing();
    const first = await store.shards.strike(at, lostOf('seg-1', 0, ALL.slice(6)), '');
    if (first === 'stale') throw new Error('nobody else moves this job');
    const seen = { id: at.id, version: first };
    expect(await store.shards.strike(seen, lostOf('seg-2', 0, []), '')).toBe(first + 1);
    expect(await redis.lrange(`{${at.id}}:todo`, 0, -1)).toEqual(['0']);
    expect(await store.jobs.get(at.id)).toMatchObject({ completed: 10, failed: 0, doneShards: 1 });
  });

  test('nothing is taken back twice, by an older look, of another part, or while the job runs', async () => {
    const at = await finalizing();
    const lost = lostOf('seg-1', 0, ALL.slice(6));
    const version = await store.shards.strike(at, lost, 'Lost.');
    if (version === 'stale') throw new Error('nobody else moves this job');
    const now = { id: at.id, version };
    const before = [await store.jobs.get(at.id), await store.jobs.events(at.id)];
    expect(await store.shards.strike(at, lostOf('seg-2', 0, []), ''), 'older look').toBe('stale');
    expect(await store.shards.strike(now, lost, 'Lost.'), 'again').toBe('stale');
    expect(await store.shards.strike(now, lostOf('seg-2', 5, []), ''), 'other').toBe('stale');
    expect([await store.jobs.get(at.id), await store.jobs.events(at.id)]).toEqual(before);
    const running = await jobInProgress(store);
    expect(await store.shards.strike(running, lostOf('seg-1', 0, []), '')).toBe('stale');
  });

  test('of a part without its counts nobody knows what to take back', async () => {
    const at = await finalizing();
    await redis.hset(shardKey(at.id, 0), 'parts', ';seg-1 0 10 7;seg-2 0 10 7');
    const strike = store.shards.strike(at, lostOf('seg-1', 0, ALL.slice(6)), '');
    await expect(strike).rejects.toMatchObject({ code: 'store.damaged_record' });
    expect(await store.jobs.get(at.id)).toMatchObject({ completed: 18, failed: 2 });
  });

  test('a segment is forgotten by name', async () => {
    const at = await finalizing();
    await store.shards.forgetSegments(at.id, ['seg-1', 'seg-9']);
    expect([...(await store.shards.segments(at.id)).keys()]).toEqual(['seg-2']);
  });

  test('a job that comes back from finalizing has its deadline again, and was never there', async () => {
    const { job } = await store.jobs.create(newJob({ windowMs: -1_000 }));
    const sealed = await store.jobs.move(job, 'finalizing', { outcome: 'completed' });
    if (sealed === 'stale') throw new Error('nobody else moves this job');
    expect(await store.jobs.due(5)).toEqual([]);
    const at = { id: job.id, state: 'finalizing', version: sealed.version } as const;
    await store.jobs.move(at, 'resource_preparing');
    expect(await store.jobs.due(5)).toEqual([job.id]);
    const back = await store.jobs.get(job.id);
    expect(back).toMatchObject({ outcome: null, deadline: job.deadline });
    expect(back?.enteredAt).not.toHaveProperty('finalizing');
  });
});
