import { crc32 } from 'node:zlib';
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { createBudget } from '../../src/dispatcher/budget.ts';
import type { Engine } from '../../src/dispatcher/engine.ts';
import { createRoom } from '../../src/dispatcher/room.ts';
import type { Tenant, Wish } from '../../src/dispatcher/room.ts';

const NEVER = new AbortController().signal;

interface FakeEngine extends Engine {
  isOpen: boolean;
  window: Engine['window'] & { limit: number };
  /** How often a line found its window full. */
  full: number;
}

/** An engine as the room sees it; nothing is ever sent. */
function engine(address = 'http://engine', limit = 1_000_000): FakeEngine {
  const fake: FakeEngine = {
    address,
    isOpen: false,
    inFlight: 0,
    full: 0,
    get load() {
      return fake.inFlight / fake.window.limit;
    },
    seed: crc32(address),
    key: null,
    window: {
      limit,
      processes: 1,
      part: (count) => count,
      answered() {},
      rejected() {},
      timedOut() {},
      wasFull() {
        fake.full += 1;
      },
      close() {},
    },
    send: async () => Promise.reject(new Error('nobody sends here')),
    async doubt() {},
    async close() {},
  };
  return fake;
}

/** A job that only its own cap holds back. */
function tenant(cap: number, engines: Engine[]): Tenant {
  return {
    rank: 1,
    cap: () => cap,
    mayAsk: () => true,
    isAdaptive: false,
    engines: () => engines,
    inHand: 0,
    allInFlight: 0,
    inFlight: new Map(),
  };
}

function adaptive(...engines: Engine[]): Tenant {
  return { ...tenant(1_000, engines), isAdaptive: true };
}

function wish(owner: Tenant, model: string | null = null, affinity: number | null = null): Wish {
  return { tenant: owner, model, affinity };
}

/** What a waiting line got so far: undefined while it waits. */
function watch(taking: Promise<Engine | null>): { got: Engine | null | undefined } {
  const seen: { got: Engine | null | undefined } = { got: undefined };
  void taking.then((found) => {
    seen.got = found;
  });
  return seen;
}

/** Lets all promises that are settled run their continuations. */
async function turn(): Promise<void> {
  await new Promise((resolve) => {
    setImmediate(resolve);
  });
}

describe('room', () => {
  test('gives the least busy engine and no more places than there are', () => {
    const [a, b] = [engine('a'), engine('b')];
    const room = createRoom();
    const owner = tenant(2, [a, b]);
    const given = Array.from(
      { length: 5 },
      () => room.tryTakeFresh(wish(owner, null))?.address ?? null,
    );
    expect(given).toEqual(['a', 'b', 'a', 'b', null]);
  });

  test('a line gets the least busy engine of those that serve its model, and waits for no other', async () => {
    const [a, b, both] = [engine('a'), engine('b'), engine('both')];
    const room = createRoom();
    const serving = new Map<string | null, Engine[]>([
      [null, [a, b, both]],
      ['a', [a, both]],
      ['b', [b, both]],
    ]);
    const owner: Tenant = { ...tenant(2, []), engines: (model) => serving.get(model) ?? [] };
    const given = (model: string | null) => room.tryTakeFresh(wish(owner, model))?.address ?? null;
    expect(['a', 'a', 'a', 'a', 'a'].map(given)).toEqual(['a', 'both', 'a', 'both', null]);
    expect(['b', null, 'b'].map(given)).toEqual(['b', 'b', null]);
    const [forA, forC, forB] = ['a', 'c', 'b'].map((model) =>
      watch(room.take(wish(owner, model), NEVER)),
    );
    room.give(b, owner);
    await turn();
    expect([forA?.got, forC?.got, forB?.got]).toEqual([undefined, undefined, b]);
    room.give(a, owner);
    await turn();
    expect([forA?.got, forC?.got]).toEqual([a, undefined]);
    serving.set('c', [b]);
    room.give(b, owner);
    await turn();
    expect(forC?.got).toBe(b);
  });

  test('an engine whose breaker is open gets nothing until it is closed', async () => {
    const only = engine();
    const room = createRoom();
    only.isOpen = true;
    const waiting = watch(room.take(wish(tenant(1, [only]), null), NEVER));
    room.kick();
    await turn();
    expect(waiting.got).toBeUndefined();
    only.isOpen = false;
    room.kick();
    await turn();
    expect(waiting.got).toBe(only);
  });

  test('nobody waits behind a job that may not have more', async () => {
    const shared = engine();
    const room = createRoom();
    const [small, large] = [tenant(1, [shared]), tenant(3, [shared])];
    await room.take(wish(small, null), NEVER);
    const behind = watch(room.take(wish(small, null), NEVER));
    const served = watch(room.take(wish(large, null), NEVER));
    await turn();
    expect([behind.got, served.got]).toEqual([undefined, shared]);
  });

  test('nor when both wait already', async () => {
    const shared = engine();
    const room = createRoom();
    const [small, large] = [tenant(1, [shared]), tenant(2, [shared])];
    await room.take(wish(small, null), NEVER);
    await room.take(wish(large, null), NEVER);
    await room.take(wish(large, null), NEVER);
    const behind = watch(room.take(wish(small, null), NEVER));
    const served = watch(room.take(wish(large, null), NEVER));
    room.give(shared, large);
    await turn();
    expect([behind.got, served.got]).toEqual([undefined, shared]);
  });

  test('who waits first is served first', async () => {
    const only = engine();
    const room = createRoom();
    const owner = tenant(1, [only]);
    const served: number[] = [];
    await room.take(wish(owner, null), NEVER);
    for (const n of [1, 2, 3]) {
      void room.take(wish(owner, null), NEVER).then(() => {
        served.push(n);
        room.give(only, owner);
      });
    }
    room.give(only, owner);
    await turn();
    expect(served).toEqual([1, 2, 3]);
    expect(only.inFlight).toBe(0);
  });

  test('new lines wait while many are to be asked again; those go on', () => {
    const only = engine();
    const room = createRoom();
    const owner = tenant(2, [only]);
    owner.inHand = 4;
    expect(room.tryTakeFresh(wish(owner, null))).toBeNull();
    owner.inHand = 3;
    expect(room.tryTakeFresh(wish(owner, null))).toBe(only);
  });

  test('a closed room gives nothing until everybody who closed it opens it', async () => {
    const only = engine();
    const room = createRoom();
    const [one, two] = [{}, {}];
    room.setClosed(one, true);
    room.setClosed(two, true);
    const waiting = watch(room.take(wish(tenant(1, [only]), null), NEVER));
    room.setClosed(one, false);
    await turn();
    expect(waiting.got).toBeUndefined();
    room.setClosed(two, false);
    await turn();
    expect(waiting.got).toBe(only);
  });

  test('who gives up gets null and leaves no place taken', async () => {
    const only = engine();
    const room = createRoom();
    const owner = tenant(1, [only]);
    const abort = new AbortController();
    await room.take(wish(owner, null), NEVER);
    const waiting = watch(room.take(wish(owner, null), abort.signal));
    abort.abort();
    room.give(only, owner);
    await turn();
    expect(waiting.got).toBeNull();
    expect(only.inFlight).toBe(0);
    expect(await room.take(wish(owner, null), abort.signal)).toBeNull();
  });

  test('jobs take turns: the one with the least in flight is served next', async () => {
    const only = engine('only', 8);
    const room = createRoom();
    const [large, small] = [adaptive(only), adaptive(only)];
    for (let n = 0; n < 8; n += 1) room.tryTakeFresh(wish(large));
    const served: string[] = [];
    for (let n = 0; n < 6; n += 1) {
      void room.take(wish(large), NEVER).then(() => served.push('large'));
    }
    for (let n = 0; n < 6; n += 1) {
      void room.take(wish(small), NEVER).then(() => served.push('small'));
    }
    await turn();
    for (let n = 0; n < 6; n += 1) room.give(only, large);
    await turn();
    // 8 in flight, 6 come back: the newcomer has none until it has as many as the other.
    expect(served).toEqual(['small', 'small', 'small', 'small', 'large', 'large']);
  });

  test('lines that are asked again are not passed by new ones for ever', async () => {
    const only = engine('only', 1);
    const room = createRoom();
    const owner = adaptive(only);
    room.tryTakeFresh(wish(owner));
    const served: string[] = [];
    // Two readers: there is always a new line that waits.
    function read(): void {
      void room.takeFresh(wish(owner), NEVER).then(() => {
        served.push('new');
        read();
      });
    }
    read();
    read();
    void room.take(wish(owner), NEVER).then(() => served.push('again'));
    for (let n = 0; n < 6; n += 1) {
      await turn();
      room.give(only, owner);
    }
    await turn();
    expect(served.indexOf('again')).toBeGreaterThan(-1);
    expect(served.indexOf('again')).toBeLessThan(3);
  });

  test('a higher class goes before those below it, whatever they have', async () => {
    const only = engine('only', 2);
    const room = createRoom();
    const [low, high] = [
      { ...adaptive(only), rank: 2 },
      { ...adaptive(only), rank: 0 },
    ];
    for (let n = 0; n < 2; n += 1) room.tryTakeFresh(wish(high));
    const served: string[] = [];
    void room.take(wish(low), NEVER).then(() => served.push('low'));
    void room.take(wish(high), NEVER).then(() => served.push('high'));
    room.give(only, high);
    await turn();
    expect(served[0]).toBe('high');
  });

  test('an adaptive job keeps to the window of the engine, a fixed one to its own cap', () => {
    const only = engine('only', 2);
    const room = createRoom();
    const [fixed, follows] = [tenant(5, [only]), adaptive(only)];
    const given = (owner: Tenant) => room.tryTakeFresh(wish(owner)) !== null;
    expect(Array.from({ length: 3 }, () => given(follows))).toEqual([true, true, false]);
    expect(only.full).toBe(1);
    expect(Array.from({ length: 6 }, () => given(fixed))).toEqual([...Array(5).fill(true), false]);
    expect(only.full).toBe(1);
  });

  test('a job that takes more than the window does not shut out the others', () => {
    const only = engine('only', 4);
    const room = createRoom();
    const greedy = tenant(10, [only]);
    for (let n = 0; n < 10; n += 1) room.tryTakeFresh(wish(greedy));
    const other = adaptive(only);
    expect(room.tryTakeFresh(wish(other))).toBe(only);
    expect(room.tryTakeFresh(wish(other))).toBeNull();
  });

  test('a window that grows lets those go that wait', async () => {
    const only = engine('only', 1);
    const room = createRoom();
    const owner = adaptive(only);
    room.tryTakeFresh(wish(owner));
    const waiting = watch(room.take(wish(owner), NEVER));
    room.kick();
    await turn();
    expect(waiting.got).toBeUndefined();
    only.window.limit = 2;
    room.kick();
    await turn();
    expect(waiting.got).toBe(only);
  });

  test('lines of one affinity keep to one engine until it is much busier than the others', () => {
    const engines = Array.from({ length: 4 }, (_, n) => engine(`http://engine-${n}`, 100));
    const room = createRoom();
    const owner: Tenant = { ...tenant(100, engines), isAdaptive: true };
    const homes = Array.from({ length: 200 }, (_, n) => {
      const home = room.tryTakeFresh(wish(owner, null, n));
      if (home !== null) room.give(home, owner);
      return home;
    });
    // Each is home to about a quarter, and the same lines come home again.
    for (const each of engines) {
      const share = homes.filter((home) => home === each).length;
      expect(share).toBeGreaterThan(25);
      expect(share).toBeLessThan(85);
    }
    const crowd = Array.from({ length: 40 }, () => room.tryTakeFresh(wish(owner, null, 7)));
    expect(new Set(crowd).size).toBeGreaterThan(1);
    const [busiest, next] = engines.map((each) => each.inFlight).toSorted((a, b) => b - a);
    expect(busiest).toBeGreaterThan(next ?? 0);
    expect((busiest ?? 0) / Math.max(1, next ?? 0)).toBeLessThanOrEqual(2);
  });

  interface Step {
    is: 'take' | 'give' | 'abort' | 'flip' | 'close';
    pick: number;
    fresh: boolean;
  }
  const step: fc.Arbitrary<Step> = fc.record({
    is: fc.constantFrom('take', 'take', 'take', 'give', 'give', 'abort', 'flip', 'close'),
    pick: fc.nat(100),
    fresh: fc.boolean(),
  });

  test('never over the limit, and nobody who could be served is forgotten', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, { maxLength: 60 }),
        fc.integer({ min: 1, max: 3 }),
        async (steps, limit) => {
          const engines = [engine('a'), engine('b')];
          const room = createRoom();
          const owner = tenant(limit, engines);
          const waiting = new Set<AbortController>();
          const held: Engine[] = [];
          let isClosed = false;
          for (const { is, pick, fresh } of steps) {
            const each = engines[pick % 2];
            if (is === 'take') {
              const abort = new AbortController();
              waiting.add(abort);
              const taking = fresh
                ? room.takeFresh(wish(owner, null), abort.signal)
                : room.take(wish(owner, null), abort.signal);
              void taking.then((found) => {
                waiting.delete(abort);
                if (found !== null) held.push(found);
              });
            } else if (is === 'give') {
              const [given] = held.splice(pick % Math.max(1, held.length), 1);
              if (given !== undefined) room.give(given, owner);
            } else if (is === 'abort') {
              [...waiting][pick % Math.max(1, waiting.size)]?.abort();
            } else if (is === 'flip' && each !== undefined) {
              each.isOpen = !each.isOpen;
              room.kick();
            } else if (is === 'close') {
              isClosed = !isClosed;
              room.setClosed(room, isClosed);
            }
            await turn();
            const inFlight = engines.map((one) => one.inFlight);
            expect(Math.max(...inFlight)).toBeLessThanOrEqual(limit);
            expect((inFlight[0] ?? 0) + (inFlight[1] ?? 0)).toBe(held.length);
            const isFree = engines.some((one) => !one.isOpen && one.inFlight < limit);
            expect(waiting.size > 0 && isFree && !isClosed).toBe(false);
          }
        },
      ),
      { numRuns: 150 },
    );
  });
});

describe('budget', () => {
  test('says once that it went over, each time that it does', () => {
    let over = 0;
    const budget = createBudget(100, () => {
      over += 1;
    });
    budget.add(99);
    expect([over, budget.isOver()]).toEqual([0, false]);
    budget.add(1);
    budget.add(50);
    expect([over, budget.isOver(), budget.used]).toEqual([1, true, 150]);
    budget.remove(51);
    budget.add(1);
    expect(over).toBe(2);
  });

  test('who waits for room goes on when there is some, or when it is told to stop', async () => {
    const budget = createBudget(10, () => undefined);
    budget.add(20);
    const abort = new AbortController();
    const order: string[] = [];
    void budget.room(NEVER).then(() => order.push('room'));
    void budget.room(abort.signal).then(() => order.push('stopped'));
    budget.remove(10);
    await turn();
    expect(order).toEqual([]);
    abort.abort();
    await turn();
    expect(order).toEqual(['stopped']);
    budget.remove(1);
    await turn();
    expect(order).toEqual(['stopped', 'room']);
  });

  test('turns come one at a time and in order', async () => {
    const budget = createBudget(1, () => undefined);
    const ends: (() => void)[] = [];
    const order: number[] = [];
    for (const n of [1, 2, 3]) {
      void budget.turn().then((end) => {
        order.push(n);
        ends.push(end);
      });
    }
    for (const so of [[1], [1, 2], [1, 2, 3]]) {
      await turn();
      expect(order).toEqual(so);
      ends.at(-1)?.();
    }
  });

  test('nobody waits for room that is there, however bytes come and go', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: -3, max: 8 }), { maxLength: 50 }),
        async (steps) => {
          const budget = createBudget(10, () => undefined);
          const held: number[] = [];
          let waiting = 0;
          for (const bytes of steps) {
            if (bytes > 0) {
              held.push(bytes);
              budget.add(bytes);
            } else if (bytes === 0) {
              waiting += 1;
              void budget.room(NEVER).then(() => {
                waiting -= 1;
              });
            } else budget.remove(held.pop() ?? 0);
            await turn();
            let sum = 0;
            for (const each of held) sum += each;
            expect(budget.used).toBe(sum);
            expect(waiting > 0).toBe(waiting > 0 && sum >= 10);
          }
        },
      ),
      { numRuns: 200 },
    );
  });
});
