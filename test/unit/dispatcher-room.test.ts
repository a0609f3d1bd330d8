import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { createBudget } from '../../src/dispatcher/budget.ts';
import type { Engine } from '../../src/dispatcher/engine.ts';
import { createRoom } from '../../src/dispatcher/room.ts';
import type { Tenant } from '../../src/dispatcher/room.ts';

const NEVER = new AbortController().signal;

interface FakeEngine extends Engine {
  isOpen: boolean;
}

/** An engine as the room sees it; nothing is ever sent. */
function engine(address = 'http://engine'): FakeEngine {
  return {
    address,
    isOpen: false,
    inFlight: 0,
    send: async () => Promise.reject(new Error('nobody sends here')),
    async close() {},
  };
}

function tenant(maxConcurrency: number, engines: Engine[]): Tenant {
  return { maxConcurrency, engines: () => engines, inHand: 0 };
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
    const given = Array.from({ length: 5 }, () => room.tryTakeFresh(owner, null)?.address ?? null);
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
    const owner: Tenant = {
      maxConcurrency: 2,
      engines: (model) => serving.get(model) ?? [],
      inHand: 0,
    };
    const given = (model: string | null) => room.tryTakeFresh(owner, model)?.address ?? null;
    expect(['a', 'a', 'a', 'a', 'a'].map(given)).toEqual(['a', 'both', 'a', 'both', null]);
    expect(['b', null, 'b'].map(given)).toEqual(['b', 'b', null]);
    const [forA, forC, forB] = ['a', 'c', 'b'].map((model) =>
      watch(room.take(owner, model, NEVER)),
    );
    room.give(b);
    await turn();
    expect([forA?.got, forC?.got, forB?.got]).toEqual([undefined, undefined, b]);
    room.give(a);
    await turn();
    expect([forA?.got, forC?.got]).toEqual([a, undefined]);
    serving.set('c', [b]);
    room.give(b);
    await turn();
    expect(forC?.got).toBe(b);
  });

  test('an engine whose breaker is open gets nothing until it is closed', async () => {
    const only = engine();
    const room = createRoom();
    only.isOpen = true;
    const waiting = watch(room.take(tenant(1, [only]), null, NEVER));
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
    await room.take(small, null, NEVER);
    const behind = watch(room.take(small, null, NEVER));
    const served = watch(room.take(large, null, NEVER));
    await turn();
    expect([behind.got, served.got]).toEqual([undefined, shared]);
  });

  test('nor when both wait already', async () => {
    const shared = engine();
    const room = createRoom();
    const [small, large] = [tenant(1, [shared]), tenant(2, [shared])];
    await room.take(large, null, NEVER);
    await room.take(large, null, NEVER);
    const behind = watch(room.take(small, null, NEVER));
    const served = watch(room.take(large, null, NEVER));
    room.give(shared);
    await turn();
    expect([behind.got, served.got]).toEqual([undefined, shared]);
  });

  test('who waits first is served first', async () => {
    const only = engine();
    const room = createRoom();
    const owner = tenant(1, [only]);
    const served: number[] = [];
    await room.take(owner, null, NEVER);
    for (const n of [1, 2, 3]) {
      void room.take(owner, null, NEVER).then(() => {
        served.push(n);
        room.give(only);
      });
    }
    room.give(only);
    await turn();
    expect(served).toEqual([1, 2, 3]);
    expect(only.inFlight).toBe(0);
  });

  test('new lines wait while many are to be asked again; those go on', () => {
    const only = engine();
    const room = createRoom();
    const owner = tenant(2, [only]);
    owner.inHand = 4;
    expect(room.tryTakeFresh(owner, null)).toBeNull();
    owner.inHand = 3;
    expect(room.tryTakeFresh(owner, null)).toBe(only);
  });

  test('a closed room gives nothing until everybody who closed it opens it', async () => {
    const only = engine();
    const room = createRoom();
    const [one, two] = [{}, {}];
    room.setClosed(one, true);
    room.setClosed(two, true);
    const waiting = watch(room.take(tenant(1, [only]), null, NEVER));
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
    await room.take(owner, null, NEVER);
    const waiting = watch(room.take(owner, null, abort.signal));
    abort.abort();
    room.give(only);
    await turn();
    expect(waiting.got).toBeNull();
    expect(only.inFlight).toBe(0);
    expect(await room.take(owner, null, abort.signal)).toBeNull();
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
                ? room.takeFresh(owner, null, abort.signal)
                : room.take(owner, null, abort.signal);
              void taking.then((found) => {
                waiting.delete(abort);
                if (found !== null) held.push(found);
              });
            } else if (is === 'give') {
              const [given] = held.splice(pick % Math.max(1, held.length), 1);
              if (given !== undefined) room.give(given);
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
