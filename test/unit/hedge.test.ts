import { expect, test } from 'vitest';
import type { Admission } from '../../src/dispatcher/admit.ts';
import { createHedging, createLooks, withHedge } from '../../src/dispatcher/hedge.ts';
import type { Engine } from '../../src/dispatcher/engine.ts';
import { createRoom } from '../../src/dispatcher/room.ts';
import type { Wish } from '../../src/dispatcher/room.ts';
import { fakeEngine, fakeTenant } from '../support/fake-engine.ts';
import { createVirtualClock } from '../support/virtual-clock.ts';

const NEVER = new AbortController().signal;
const USUAL_MS = 500;

/** Two engines, answers of the test's choice, and a job whose lines are all sent. */
function createWorld({ places = 10_000, hasLeave = (): boolean => true } = {}) {
  const clock = createVirtualClock();
  const room = createRoom();
  const [slow, spare] = [fakeEngine('http://slow'), fakeEngine('http://spare')];
  const hedging = createHedging(() => true, createLooks(clock));
  hedging.answered(USUAL_MS);
  const tenant = fakeTenant(() => [slow, spare], places);
  const wish: Wish = { tenant, model: null, affinity: null };
  const asked: { engine: Engine; abort: AbortSignal; answer: (text: string) => void }[] = [];
  const ask = (abort: AbortSignal = NEVER) =>
    withHedge<string>(
      { first: { engine: slow, permit: null }, wish, abort },
      { room, clock, hedging },
      {
        async send({ engine }: Admission, signal) {
          const { promise, resolve } = Promise.withResolvers<string>();
          asked.push({ engine, abort: signal, answer: resolve });
          signal.addEventListener('abort', () => resolve('cut'));
          return promise;
        },
        admitAtOnce: (engine) => (hasLeave() ? { engine, permit: null } : null),
        stands: (text) => text.startsWith('good'),
      },
    );
  return { clock, room, slow, spare, wish, tenant, asked, ask };
}

test('a straggler that finds no place is asked again as soon as there is one, and once', async () => {
  const { clock, room, slow, spare, tenant, asked, ask } = createWorld({ places: 1 });
  tenant.inFlight.set(spare, 1);
  const asking = ask();
  await clock.advance(10_000);
  expect(asked.map(({ engine }) => engine)).toEqual([slow]);
  room.give(spare, tenant);
  await clock.advance(260);
  expect(asked.map(({ engine }) => engine)).toEqual([slow, spare]);
  expect(tenant.inFlight.get(spare)).toBe(1);
  await clock.advance(10_000);
  expect(asked).toHaveLength(2);
  asked[1]?.answer('good');
  expect(await asking).toBe('good');
  expect(asked[0]?.abort.aborted).toBe(true);
  expect(tenant.inFlight.get(spare)).toBe(0);
  await clock.advance(1_000);
  expect(clock.pending).toBe(0);
});

test('without leave at the other engine its place is given back, and asked for again', async () => {
  let isAllowed = false;
  const { clock, spare, tenant, asked, ask } = createWorld({ hasLeave: () => isAllowed });
  const asking = ask();
  await clock.advance(5_000);
  expect(asked).toHaveLength(1);
  expect(tenant.inFlight.get(spare)).toBe(0);
  isAllowed = true;
  await clock.advance(260);
  expect(asked).toHaveLength(2);
  asked[0]?.answer('good first');
  expect(await asking).toBe('good first');
  expect(asked[1]?.abort.aborted).toBe(true);
});

test('where neither answer stands it is the first one that counts', async () => {
  const { clock, asked, ask } = createWorld();
  const asking = ask();
  await clock.advance(2_000);
  asked[1]?.answer('bad second');
  await clock.settle();
  expect(asked[0]?.abort.aborted).toBe(false);
  asked[0]?.answer('bad first');
  expect(await asking).toBe('bad first');
});

test('a line that is cut cuts both requests', async () => {
  const abort = new AbortController();
  const { clock, asked, ask } = createWorld();
  const asking = ask(abort.signal);
  await clock.advance(2_000);
  abort.abort();
  expect(await asking).toBe('cut');
  expect(asked.map(({ abort: signal }) => signal.aborted)).toEqual([true, true]);
});

test('5,000 lines in flight share one timer', async () => {
  const { clock, asked, ask } = createWorld();
  const asking = Array.from({ length: 5_000 }, () => ask());
  expect(clock.pending).toBe(1);
  await clock.advance(900);
  expect(clock.pending).toBe(1);
  expect(asked).toHaveLength(5_000);
  for (const { answer } of asked) answer('good');
  await Promise.all(asking);
  await clock.advance(1_000);
  expect(clock.pending).toBe(0);
});
