import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { recordKey, shardKey } from '../../src/store/keys.ts';
import type { Client } from '../../src/store/scripts.ts';
import { createStore } from '../../src/store/store.ts';
import type { AcceptedShard } from '../../src/domain/segment.ts';
import type { Taken } from '../../src/store/shards.ts';
import type { Store } from '../../src/store/store.ts';
import {
  BACK_ENDS,
  jobInProgress,
  connectTo,
  partOf,
  SEGMENT,
  newJob,
} from '../support/store-back-ends.ts';

describe.each(BACK_ENDS)('shards on %s', (kind) => {
  let redis: Client;
  let store: Store;

  beforeAll(() => {
    redis = connectTo(kind);
  });
  afterAll(() => redis.disconnect());
  beforeEach(() => {
    store = createStore({ redis, namespace: randomUUID() });
  });

  async function taken(id: string, n: number, wake: number, token: string, ahead = 1) {
    const reply: Taken = await store.shards.take(id, { n, wake }, token, ahead);
    if (reply.outcome !== 'taken') throw new Error(`shard ${n} is ${reply.outcome}`);
    return reply;
  }

  async function accepted(id: string, from: number, to: number): Promise<AcceptedShard[]> {
    const shards: AcceptedShard[] = [];
    for await (const shard of store.shards.accepted(id, from, to)) shards.push(shard);
    return shards;
  }

  test('open lets as many wait as asked, those given back first', async () => {
    const { id } = await jobInProgress(store, { shards: 4 });
    expect(await store.shards.open(id, 2)).toEqual([
      { n: 0, wake: 1 },
      { n: 1, wake: 1 },
    ]);
    expect(await store.shards.open(id, 1)).toHaveLength(2);
    await taken(id, 0, 1, 't0', 2);
    await taken(id, 1, 1, 't1', 2);
    await store.shards.give(id, 0, 't0', 2);
    await taken(id, 2, 1, 't2', 2);
    const waiting = await store.shards.open(id, 3);
    expect(waiting.toSorted((a, b) => a.n - b.n)).toEqual([
      { n: 0, wake: 2 },
      { n: 3, wake: 1 },
    ]);
  });

  test('nothing opens before the job is in progress, nor for one that is not there', async () => {
    const { id, version } = await jobInProgress(store);
    await store.jobs.move({ id, state: 'in_progress', version }, 'submitting');
    expect(await store.shards.open(id, 3)).toEqual([]);
    expect(await store.shards.open('job_none', 3)).toEqual([]);
  });

  test('while a job is paused nothing opens or is taken, and holders commit and give back', async () => {
    const { id } = await jobInProgress(store, { shards: 4, lines: 10 });
    await store.shards.open(id, 2);
    await taken(id, 0, 1, 't0', 2);
    expect(await store.jobs.pause(id, 'ann')).toBe(true);
    expect(await store.jobs.get(id)).toMatchObject({ pausedBy: 'ann', state: 'in_progress' });

    const refused = await store.shards.take(id, { n: 1, wake: 1 }, 't1', 2);
    expect(refused).toEqual({ outcome: 'not now' });
    const reply = await store.shards.commit(id, SEGMENT, [partOf(0, 't0', 10, [0, 1])]);
    expect(reply.parts).toEqual([{ outcome: 'committed', left: 8 }]);
    const waiting = await store.shards.give(id, 0, 't0', 2);
    expect(waiting.map(({ n }) => n)).not.toContain(0);
    expect(await store.shards.held(id)).toBe(0);
    const late = await store.shards.take(id, { n: 2, wake: 1 }, 't2', 2);
    expect(late.outcome).toBe('not now');
    expect(await store.shards.open(id, 4)).toEqual([]);

    expect(await store.jobs.resume(id)).toBe(true);
    expect(await store.jobs.get(id)).toMatchObject({ pausedAt: null, pausedBy: '' });
    const open = await store.shards.open(id, 4);
    expect(new Set(open.map(({ n }) => n))).toEqual(new Set([0, 1, 2, 3]));
    const again = await taken(id, 0, open.find(({ n }) => n === 0)?.wake ?? 0, 't3', 4);
    expect(again.left, 'what was answered stays answered').toBe(8);
  });

  /** Moves the deadline of a job past the store; its record is as it was created otherwise. */
  async function setDeadline(id: string, deadline: number): Promise<void> {
    await redis.hset(recordKey(id), 'deadline', deadline);
  }

  test('past its deadline nothing of a job is taken, and holders commit and give back', async () => {
    const { id } = await jobInProgress(store, { shards: 4, lines: 10 });
    await store.shards.open(id, 2);
    await taken(id, 0, 1, 't0', 2);
    await setDeadline(id, Date.now() - 1);

    const refused = await store.shards.take(id, { n: 1, wake: 1 }, 't1', 2);
    expect(refused).toEqual({ outcome: 'not now' });
    const pending = await store.shards.pending(id);
    expect(new Set(pending.map(({ n }) => n))).toEqual(new Set([0, 2]));
    const reply = await store.shards.commit(id, SEGMENT, [partOf(0, 't0', 10, [0, 1])]);
    expect(reply.parts, 'what was answered in time counts').toEqual([
      { outcome: 'committed', left: 8 },
    ]);
    await store.shards.give(id, 0, 't0', 2);
    const waiting = await store.shards.open(id, 9);
    for (const { n, wake } of waiting) {
      const late = await store.shards.take(id, { n, wake }, `late${n}`, 9);
      expect(late.outcome).toBe('not now');
    }
    expect(await store.shards.pending(id), 'none opens another one').toEqual([]);

    const job = await store.jobs.get(id);
    if (job === null) throw new Error('it is there');
    expect(await store.jobs.extend(job, '48h', 172_800_000)).toBe(true);
    const open = await store.shards.open(id, 9);
    expect(new Set(open.map(({ n }) => n))).toEqual(new Set([0, 1, 2, 3]));
    const again = await taken(id, 0, open.find(({ n }) => n === 0)?.wake ?? 0, 't3', 9);
    expect(again.left, 'what was answered stays answered').toBe(8);
  });

  test('take answers a repeat as at first, wherever the deadline passes in between', async () => {
    const { id } = await jobInProgress(store, { shards: 2, lines: 10 });
    await store.shards.open(id, 2);
    const first = await taken(id, 0, 1, 't', 2);
    await setDeadline(id, Date.now() - 1);
    expect(await taken(id, 0, 1, 't', 2), 'its reply may have been lost').toEqual(first);
    expect(await store.shards.held(id)).toBe(1);
    for (const _time of ['first', 'again']) {
      const refused = await store.shards.take(id, { n: 1, wake: 1 }, 'u', 2);
      expect(refused).toEqual({ outcome: 'not now' });
    }
    // Another one asks for what is held, as after a lost lock: nobody has it from then on.
    const other = await store.shards.take(id, { n: 0, wake: 1 }, 'v', 2);
    expect(other).toEqual({ outcome: 'not now' });
    expect(await store.shards.held(id)).toBe(0);
    const { parts } = await store.shards.commit(id, SEGMENT, [partOf(0, 't', 10, [0])]);
    expect(parts).toEqual([{ outcome: 'stale' }]);

    await setDeadline(id, Date.now() + 60_000);
    const late = await store.shards.take(id, { n: 1, wake: 1 }, 'u', 2);
    expect(late, 'what was refused is not taken later').toMatchObject({ outcome: 'stale' });
  });

  test('a job that has its outcome is neither paused nor resumed nor extended', async () => {
    const { id, version } = await jobInProgress(store);
    const job = await store.jobs.get(id);
    if (job === null) throw new Error('it is there');
    await store.jobs.move({ id, state: 'in_progress', version }, 'cancelling', {
      outcome: 'cancelled',
    });
    const before = await store.jobs.get(id);
    expect(await store.jobs.pause(id, '')).toBe(false);
    expect(await store.jobs.resume(id)).toBe(false);
    expect(await store.jobs.extend(job, '365d', 365 * 86_400_000)).toBe(false);
    expect(await store.jobs.pause('job_none', '')).toBe(false);
    expect(await store.jobs.get(id)).toEqual(before);
    expect(await store.jobs.get('job_none')).toBeNull();
  });

  test('a job that was extended does not expire by an older look, and the longer of two deadlines stays', async () => {
    const { job } = await store.jobs.create(newJob({ windowMs: -1_000 }));
    expect(await store.jobs.extend(job, '48h', 172_800_000)).toBe(true);
    expect(await store.jobs.move(job, 'expired', { outcome: 'expired' })).toBe('stale');
    expect(await store.jobs.extend(job, '25h', 90_000_000)).toBe(false);
    const now = await store.jobs.get(job.id);
    expect(now).toMatchObject({ state: 'queued', completionWindow: '48h' });
    expect(now?.deadline).toBe(job.createdAt + 172_800_000);
  });

  test('an extended deadline ends the job once it is over', async () => {
    const { job } = await store.jobs.create(newJob({ windowMs: -60_000 }));
    expect(await store.jobs.extend(job, '0h', -1_000)).toBe(true);
    expect(await store.jobs.move(job, 'expired', { outcome: 'expired' })).not.toBe('stale');
  });

  test('of two pauses the first counts, by its name as it is, and none outlives the outcome', async () => {
    const { job } = await store.jobs.create(newJob());
    expect(await store.jobs.pause(job.id, '@now')).toBe(true);
    expect(await store.jobs.pause(job.id, 'bob')).toBe(true);
    expect((await store.jobs.get(job.id))?.pausedBy).toBe('@now');
    const events = await store.jobs.events(job.id);
    expect(events.filter(({ kind }) => kind === 'paused')).toHaveLength(1);
    await store.jobs.move(job, 'cancelled', { outcome: 'cancelled' });
    expect(await store.jobs.get(job.id)).toMatchObject({ pausedAt: null, pausedBy: '' });
  });

  test('which lines are bad is told to whoever takes or assembles the shard', async () => {
    const { id } = await jobInProgress(store, { shards: 2, lines: 10 });
    const bad = Buffer.from([0b1000_0001, 0b10]);
    for (const _time of ['first', 'again']) await store.shards.markBad(id, [{ n: 1, bad }]);
    await store.shards.open(id, 2);
    expect((await taken(id, 0, 1, 't')).bad).toBeNull();
    expect((await taken(id, 1, 1, 'u')).bad).toEqual(bad);
    expect((await taken(id, 1, 1, 'v')).bad).toEqual(bad);
    expect((await accepted(id, 0, 2)).map((shard) => shard.bad)).toEqual([null, bad]);
  });

  test('take answers plan, bitmap and what waits; the last token holds the shard', async () => {
    const { id } = await jobInProgress(store, { shards: 2, lines: 10 });
    await store.shards.open(id, 1);
    expect(await store.shards.take(id, { n: 0, wake: 1 }, 't', 1)).toEqual({
      outcome: 'taken',
      plan: { n: 0, first: 0, lines: 10, offset: 0, bytes: 100 },
      done: Buffer.from([0, 0]),
      bad: null,
      left: 10,
      takes: 1,
      crashed: null,
      waiting: [{ n: 1, wake: 1 }],
    });
    const all = [...Array(10).keys()];
    await store.shards.commit(id, SEGMENT, [partOf(0, 't', 10, all.slice(0, 9))]);
    const again = await taken(id, 0, 1, 'u');
    expect(again.done).toEqual(Buffer.from([0xff, 0x01]));
    expect(again.left).toBe(1);
    const late = { ...SEGMENT, id: 'seg-2' };
    const parts = [partOf(0, 't', 10, [9]), partOf(0, 'u', 10, [9], { offset: 10 })];
    expect(await store.shards.commit(id, late, parts)).toEqual({
      last: false,
      parts: [{ outcome: 'stale' }, { outcome: 'committed', left: 0 }],
    });
  });

  test('take is stale with another wake, for a done shard and for one given back', async () => {
    const { id } = await jobInProgress(store, { shards: 2, lines: 3 });
    await store.shards.open(id, 1);
    const stale = { outcome: 'stale', waiting: [{ n: 0, wake: 1 }] };
    expect(await store.shards.take(id, { n: 0, wake: 2 }, 't', 1)).toEqual(stale);
    expect(await store.shards.take(id, { n: 1, wake: 0 }, 't', 1)).toEqual(stale);
    await taken(id, 0, 1, 't', 0);
    await store.shards.commit(id, SEGMENT, [partOf(0, 't', 3, [0, 1, 2])]);
    const done = await store.shards.take(id, { n: 0, wake: 1 }, 'u', 0);
    expect(done).toEqual({ outcome: 'stale', waiting: [] });
    await store.shards.open(id, 1);
    await taken(id, 1, 1, 't', 0);
    await store.shards.give(id, 1, 't', 0);
    expect((await store.shards.take(id, { n: 1, wake: 1 }, 'u', 0)).outcome).toBe('stale');
  });

  test('take of a job that fell back puts the shard back, and its holder is out', async () => {
    const { id, version } = await jobInProgress(store);
    await store.shards.open(id, 2);
    await taken(id, 0, 1, 't', 1);
    await store.jobs.move({ id, state: 'in_progress', version }, 'submitting');
    for (const n of [0, 1, 1]) {
      const reply = await store.shards.take(id, { n, wake: 1 }, 'u', 2);
      expect(reply).toEqual({ outcome: 'not now' });
    }
    expect(await store.shards.pending(id)).toEqual([]);
    const reply = await store.shards.commit(id, SEGMENT, [partOf(0, 't', 10, [0])]);
    expect(reply.parts).toEqual([{ outcome: 'stale' }]);
    await store.jobs.move({ id, state: 'submitting', version: version + 1 }, 'in_progress');
    expect((await store.shards.open(id, 9)).toSorted((a, b) => a.n - b.n)).toEqual([
      { n: 0, wake: 2 },
      { n: 1, wake: 2 },
      { n: 2, wake: 1 },
    ]);
  });

  test('commit counts lines, tokens and shards, and says when it was the last', async () => {
    const { id } = await jobInProgress(store, { shards: 2, lines: 9 });
    await store.shards.open(id, 2);
    for (const n of [0, 1]) await taken(id, n, 1, `t${n}`);
    const usage = { inputTokens: 5, cachedTokens: 4, outputTokens: 3, reasoningTokens: 2 };
    const all = [...Array(9).keys()];
    const counts = { ok: 6, failed: 3, usage };
    const both = [
      partOf(0, 't0', 9, all, counts),
      partOf(1, 't1', 9, [0, 8], { usage, offset: 10, length: 20, crc: 4_294_967_295 }),
    ];
    expect(await store.shards.commit(id, SEGMENT, both)).toEqual({
      last: false,
      parts: [
        { outcome: 'committed', left: 0 },
        { outcome: 'committed', left: 7 },
      ],
    });
    const next = { id: 'seg-2', bytes: 33, sha256: 'cd' };
    const rest = partOf(1, 't1', 9, all.slice(1, 8), { offset: 5 });
    expect(await store.shards.commit(id, next, [rest])).toEqual({
      last: true,
      parts: [{ outcome: 'committed', left: 0 }],
    });
    const job = await store.jobs.get(id);
    expect(job).toMatchObject({ completed: 15, failed: 3, doneShards: 2 });
    expect(job?.usage).toEqual({
      inputTokens: 10,
      cachedTokens: 8,
      outputTokens: 6,
      reasoningTokens: 4,
    });
    expect(await store.shards.segments(id)).toEqual(
      new Map([
        ['seg-1', { bytes: 10, sha256: 'ab' }],
        ['seg-2', { bytes: 33, sha256: 'cd' }],
      ]),
    );
    expect((await accepted(id, 1, 2))[0]).toEqual({
      plan: { n: 1, first: 9, lines: 9, offset: 100, bytes: 100 },
      done: Buffer.from([0xff, 0x01]),
      bad: null,
      parts: [
        { segment: 'seg-1', offset: 10, length: 20, crc: 4_294_967_295 },
        { segment: 'seg-2', offset: 5, length: 10, crc: 7 },
      ],
    });
    expect(await store.shards.pending(id)).toEqual([]);
    expect(await redis.hkeys(shardKey(id, 0))).not.toContain('token');
  });

  test('commit knows a part again, whatever happened to shard and job meanwhile', async () => {
    const { id, version } = await jobInProgress(store, { shards: 2 });
    await store.shards.open(id, 1);
    await taken(id, 0, 1, 't');
    const part = partOf(0, 't', 10, [3]);
    const committed = { last: false, parts: [{ outcome: 'committed', left: 9 }] };
    expect(await store.shards.commit(id, SEGMENT, [part])).toEqual(committed);
    await taken(id, 0, 1, 'u');
    expect(await store.shards.commit(id, SEGMENT, [part])).toEqual(committed);
    await store.jobs.move({ id, state: 'in_progress', version }, 'finalizing');
    expect(await store.shards.commit(id, SEGMENT, [part])).toEqual(committed);
    expect((await store.jobs.get(id))?.completed).toBe(1);
  });

  test('commit tells offsets apart whose beginnings are alike', async () => {
    const { id } = await jobInProgress(store, { shards: 1 });
    await store.shards.open(id, 1);
    await taken(id, 0, 1, 't');
    await store.shards.commit(id, SEGMENT, [partOf(0, 't', 10, [0], { offset: 100 })]);
    const next = [partOf(0, 't', 10, [1], { offset: 10 }), partOf(0, 't', 10, [2], { offset: 1 })];
    const { parts } = await store.shards.commit(id, SEGMENT, next);
    expect(parts.map((part) => 'left' in part && part.left)).toEqual([8, 7]);
  });

  test('a sealed job takes nothing, and unsealed it does again', async () => {
    const { id, version } = await jobInProgress(store);
    await store.shards.open(id, 1);
    await taken(id, 0, 1, 't');
    await store.jobs.move({ id, state: 'in_progress', version }, 'finalizing');
    const part = partOf(0, 't', 10, [3]);
    const sealed = { last: false, parts: [{ outcome: 'sealed' }] };
    expect(await store.shards.commit(id, SEGMENT, [part])).toEqual(sealed);
    expect(await store.shards.segments(id)).toEqual(new Map());
    const back = { id, state: 'finalizing', version: version + 1 } as const;
    await store.jobs.move(back, 'resource_preparing');
    const { parts } = await store.shards.commit(id, SEGMENT, [part]);
    expect(parts).toEqual([{ outcome: 'committed', left: 9 }]);
  });

  test('a part that answers a done line is refused whole, and told which lines are done', async () => {
    const { id } = await jobInProgress(store);
    await store.shards.open(id, 1);
    await taken(id, 0, 1, 't');
    await store.shards.commit(id, SEGMENT, [partOf(0, 't', 10, [0, 9])]);
    const next = { ...SEGMENT, id: 'seg-2' };
    const parts = [partOf(0, 't', 10, [8, 9])];
    expect((await store.shards.commit(id, next, parts)).parts).toEqual([
      { outcome: 'overlap', done: Buffer.from([0x01, 0x02]) },
    ]);
    expect((await store.jobs.get(id))?.completed).toBe(2);
    expect([...(await store.shards.segments(id)).keys()]).toEqual(['seg-1']);
  });

  test('a mask of another length, or of another count than its answers, is our bug', async () => {
    const { id } = await jobInProgress(store);
    await store.shards.open(id, 1);
    await taken(id, 0, 1, 't');
    const bug = { kind: 'Permanent', code: 'store.bad_mask' };
    const long = store.shards.commit(id, SEGMENT, [partOf(0, 't', 17, [0])]);
    await expect(long).rejects.toMatchObject(bug);
    const miscounted = store.shards.commit(id, SEGMENT, [partOf(0, 't', 10, [0], { ok: 2 })]);
    await expect(miscounted).rejects.toMatchObject(bug);
    expect((await store.jobs.get(id))?.completed).toBe(0);
  });

  test('give is the holder’s, and a shard taken by another stays with it', async () => {
    const { id } = await jobInProgress(store, { shards: 1 });
    await store.shards.open(id, 1);
    await taken(id, 0, 1, 't');
    await taken(id, 0, 1, 'u');
    expect(await store.shards.give(id, 0, 't', 1)).toEqual([]);
    expect(await store.shards.held(id)).toBe(1);
    expect(await store.shards.give(id, 0, 'u', 1)).toEqual([{ n: 0, wake: 2 }]);
    expect(await store.shards.held(id)).toBe(0);
  });

  test('takes without a commit are counted, also over a repeat', async () => {
    const { id } = await jobInProgress(store, { shards: 1 });
    const takes = () => redis.hget(shardKey(id, 0), 'takes');
    await store.shards.open(id, 1);
    for (const token of ['a', 'b', 'b', 'c']) await taken(id, 0, 1, token);
    expect(await takes()).toBe('3');
    await store.shards.commit(id, SEGMENT, [partOf(0, 'c', 10, [0])]);
    expect(await takes()).toBeNull();
    await taken(id, 0, 1, 'd');
    expect(await takes()).toBe('1');
    await store.shards.give(id, 0, 'd', 1);
    expect(await takes()).toBeNull();
  });

  test('a rewoken shard waits under a new wake, and its holder may commit until it is taken', async () => {
    const { id } = await jobInProgress(store, { shards: 1 });
    await store.shards.open(id, 1);
    await taken(id, 0, 1, 't');
    const [before] = await store.shards.pending(id);
    expect(before).toMatchObject({ n: 0, wake: 1, held: true });
    const replies = await Promise.all([1, 2].map(() => store.shards.rewake(id, { n: 0, wake: 1 })));
    expect(replies.filter((wake) => wake !== 'stale')).toEqual([2]);
    const [after] = await store.shards.pending(id);
    expect(after).toMatchObject({ n: 0, wake: 2, held: false });
    expect(after?.at).toBeGreaterThanOrEqual(before?.at ?? Infinity);
    const { parts } = await store.shards.commit(id, SEGMENT, [partOf(0, 't', 10, [0])]);
    expect(parts).toEqual([{ outcome: 'committed', left: 9 }]);
    expect(await store.shards.give(id, 0, 't', 1)).toEqual([{ n: 0, wake: 2 }]);
    await taken(id, 0, 2, 'u');
    await store.shards.give(id, 0, 'u', 0);
    expect(await store.shards.rewake(id, { n: 0, wake: 2 })).toBe('stale');
  });

  test('planning may write its shards again while they are worked on', async () => {
    const { id } = await jobInProgress(store);
    await store.shards.open(id, 1);
    await taken(id, 0, 1, 't');
    await store.shards.commit(id, SEGMENT, [partOf(0, 't', 10, [0])]);
    const before = await accepted(id, 0, 3);
    await store.shards.write(
      id,
      before.map(({ plan }) => plan),
    );
    expect(await accepted(id, 0, 3)).toEqual(before);
    expect((await taken(id, 0, 1, 'u')).left).toBe(9);
  });

  test('many shards are written and read in order, page by page', async () => {
    const { id } = await jobInProgress(store, { shards: 450, lines: 1_000 });
    const shards = await accepted(id, 10, 440);
    expect(shards.map(({ plan }) => plan.n)).toEqual([...Array(430).keys()].map((i) => i + 10));
    expect(shards[0]?.done).toEqual(Buffer.alloc(125));
  });

  test('a shard that was never planned cannot be taken', async () => {
    const { id } = await jobInProgress(store, { shards: 1 });
    await store.shards.open(id, 1);
    await redis.hdel(shardKey(id, 0), 'lines');
    const take = store.shards.take(id, { n: 0, wake: 1 }, 't', 1);
    await expect(take).rejects.toMatchObject({ kind: 'Permanent', code: 'store.damaged_record' });
    expect(await store.shards.held(id)).toBe(0);
  });
});
