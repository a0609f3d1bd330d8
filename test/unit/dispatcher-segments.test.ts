import { describe, expect, test } from 'vitest';
import { createBudget } from '../../src/dispatcher/budget.ts';
import { createChunkPool } from '../../src/dispatcher/chunk-pool.ts';
import { createRoom } from '../../src/dispatcher/room.ts';
import { SegmentWriter } from '../../src/dispatcher/segment-writer.ts';
import type { Holder, SegmentDeps } from '../../src/dispatcher/segment-writer.ts';
import { NO_USAGE } from '../../src/dispatcher/usage.ts';

const MIB = 1024 * 1024;

interface Timer {
  at: number;
  task: () => void;
}

/** A clock that stands until it is told to go on. */
function fakeClock() {
  const timers = new Set<Timer>();
  let now = 0;
  function after(ms: number, task: () => void): () => void {
    const timer = { at: now + ms, task };
    timers.add(timer);
    return () => timers.delete(timer);
  }
  return {
    now: () => now,
    random: () => 0,
    async sleep(ms: number, signal: AbortSignal) {
      await new Promise<void>((resolve) => {
        after(ms, resolve);
        signal.addEventListener('abort', () => resolve());
      });
    },
    after,
    timers,
    async advance(ms: number): Promise<void> {
      now += ms;
      for (const timer of timers) {
        if (timer.at > now) continue;
        timers.delete(timer);
        timer.task();
      }
      await new Promise((resolve) => {
        setImmediate(resolve);
      });
    },
  };
}

function setUp({ memoryBudget = 128 * MIB } = {}) {
  const clock = fakeClock();
  /** When a segment was stored, and of how many bytes. */
  const puts: { at: number; bytes: number }[] = [];
  const closed: boolean[] = [];
  const room = createRoom();
  const giveUp = new AbortController();
  const budget = createBudget(memoryBudget, () => undefined);
  const errors: string[] = [];
  let ids = 0;
  const deps: SegmentDeps = {
    clock,
    budget,
    room: { ...room, setClosed: (_by, isClosed) => void closed.push(isClosed) },
    pool: createChunkPool(),
    newSegmentId: () => `segment-${(ids += 1)}`,
    async putSegment(_job, _id, chunks) {
      let bytes = 0;
      for (const chunk of chunks) bytes += chunk.length;
      puts.push({ at: clock.now(), bytes });
      return { bytes, sha256: '' };
    },
    commit: async (_job, _segment, parts) =>
      parts.map((part) => ({ outcome: 'committed', left: 1_000 - part.ok })),
    log: { warn() {}, error: (_fields, message) => void errors.push(message) },
  };
  const holder: Holder = {
    shard: 0,
    token: 'token',
    lines: 1_000,
    state: 'holding',
    left: 1_000,
    pending: 0,
    kept: [],
  };
  const writer = new SegmentWriter('job_1', deps, giveUp.signal);
  let line = 0;
  function add(bytes: number): void {
    const answer = { line, kind: 'output' as const, pieces: [Buffer.alloc(bytes)] };
    line += 1;
    writer.add(holder, { answer, usage: NO_USAGE });
  }
  return { clock, puts, closed, deps, holder, writer, add, budget, giveUp, errors };
}

describe('when a segment is closed', () => {
  test('2 s after its oldest answer, not its newest', async () => {
    const { clock, puts, add } = setUp();
    add(100_000);
    await clock.advance(1_900);
    add(100_000);
    expect(puts).toEqual([]);
    await clock.advance(100);
    expect(puts).toEqual([{ at: 2_000, bytes: 200_018 }]);
  });

  test('later and later, up to 10 s, while answers are few and small; soon again when they are not', async () => {
    const { clock, puts, add } = setUp();
    for (const wait of [2_000, 4_000, 8_000, 10_000, 10_000]) {
      add(100);
      await clock.advance(wait - 1);
      const before = puts.length;
      await clock.advance(1);
      expect(puts).toHaveLength(before + 1);
    }
    add(100_000);
    await clock.advance(10_000);
    add(100);
    await clock.advance(2_000);
    expect(puts).toHaveLength(7);
  });

  test('at 8 MiB, at once', async () => {
    const { clock, puts, add } = setUp();
    for (let n = 0; n < 7; n += 1) add(MIB);
    await clock.advance(0);
    expect(puts).toEqual([]);
    add(MIB);
    await clock.advance(0);
    expect(puts).toEqual([{ at: 0, bytes: 8 * MIB + 8 * 9 }]);
    expect(clock.timers.size).toBe(0);
  });

  test('when the memory budget is used up, at once', async () => {
    const { clock, puts, add, budget } = setUp({ memoryBudget: 1_000 });
    add(600);
    add(500);
    expect(budget.used).toBe(1_100);
    await clock.advance(0);
    expect(puts).toHaveLength(1);
    expect(budget.used).toBe(0);
  });

  test('when it is told to, and then no timer fires for nothing', async () => {
    const { clock, puts, add, writer } = setUp();
    add(10);
    await writer.close();
    expect(puts).toHaveLength(1);
    expect(clock.timers.size).toBe(0);
    await writer.close();
    expect(puts).toHaveLength(1);
  });
});

describe('what becomes of a segment', () => {
  test('segments of a job are written one after the other, and committed after they are stored', async () => {
    const { deps, add, writer, holder } = setUp();
    const log: string[] = [];
    const first = Promise.withResolvers<undefined>();
    deps.putSegment = async (_job, id) => {
      log.push(`put ${id}`);
      if (id === 'segment-1') await first.promise;
      return { bytes: 1, sha256: '' };
    };
    deps.commit = async (_job, { id }) => {
      log.push(`commit ${id}`);
      return [{ outcome: 'committed', left: 5 }];
    };
    add(1);
    const one = writer.close();
    add(1);
    const two = writer.close();
    first.resolve(undefined);
    await Promise.all([one, two]);
    expect(log).toEqual(['put segment-1', 'commit segment-1', 'put segment-2', 'commit segment-2']);
    expect(holder).toMatchObject({ left: 5, pending: 0, state: 'holding' });
  });

  test('what storage refuses is tried again under the same name, with the room closed meanwhile', async () => {
    const { clock, deps, add, writer, holder, closed, budget } = setUp();
    const tries: { id: string; at: number }[] = [];
    deps.putSegment = async (_job, id) => {
      tries.push({ id, at: clock.now() });
      if (tries.length < 4) throw new Error('no space left');
      return { bytes: 1, sha256: '' };
    };
    add(10);
    const closing = writer.close();
    await clock.advance(0);
    for (const wait of [250, 500, 1_000]) {
      expect(budget.used).toBe(10);
      await clock.advance(wait);
    }
    await closing;
    expect(tries).toEqual([0, 250, 750, 1_750].map((at) => ({ id: 'segment-1', at })));
    expect(closed.slice(0, 4)).toEqual([true, true, true, false]);
    expect(holder.pending).toBe(0);
    expect(budget.used).toBe(0);
  });

  test('a process that stops gives its answers up, and whoever waits for them goes on', async () => {
    const { clock, deps, add, writer, holder, closed, giveUp, errors } = setUp();
    deps.putSegment = async () => Promise.reject(new Error('no space left'));
    add(10);
    const closing = writer.close();
    await clock.advance(0);
    const waiting = writer.committed(holder);
    giveUp.abort(new Error('the process stops'));
    await Promise.all([closing, waiting]);
    expect(holder.state).toBe('lost');
    expect(closed.at(-1)).toBe(false);
    expect(errors).toEqual(['answers given up']);
  });

  test('a part carries a bit, a count and the usage of each line', async () => {
    const { deps, add, writer } = setUp();
    const parts: object[] = [];
    deps.commit = async (_job, _segment, all) => {
      parts.push(...all);
      return all.map(() => ({ outcome: 'committed', left: 0 }));
    };
    for (let n = 0; n < 10; n += 1) add(1);
    await writer.close();
    const mask = Buffer.alloc(125);
    mask[0] = 255;
    mask[1] = 3;
    expect(parts).toMatchObject([{ n: 0, token: 'token', mask, ok: 10, failed: 0, offset: 0 }]);
  });
});
