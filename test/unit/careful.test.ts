import { afterEach, expect, test } from 'vitest';
import { createCareful } from '../../src/dispatcher/careful.ts';
import type { Engine } from '../../src/dispatcher/engine.ts';
import { createRoom } from '../../src/dispatcher/room.ts';
import type { Pass } from '../../src/dispatcher/room.ts';
import { createSolitude } from '../../src/dispatcher/solitude.ts';
import { createSuspects } from '../../src/dispatcher/suspects.ts';
import { fakeEngine, fakeTenant, UNDISTURBED, wishOf } from '../support/fake-engine.ts';
import { createVirtualClock } from '../support/virtual-clock.ts';

const NEVER = new AbortController().signal;
const closing: (() => void)[] = [];

afterEach(() => {
  for (const close of closing.splice(0)) close();
});

/** A process with a shard of which lines are sent alone, and other jobs. */
function openWorld(engines: readonly Engine[]) {
  const clock = createVirtualClock();
  const room = createRoom();
  const inFlight = () => engines.reduce((sum, each) => sum + each.inFlight, 0);
  const solitude = createSolitude(room, clock, inFlight);
  const suspects = createSuspects({ room, clock, isolation: UNDISTURBED });
  closing.push(() => suspects.close());
  const marks: number[] = [];
  let isOurs = true;
  const careful = createCareful(
    { left: 10, takes: 1, crashed: { line: 0, deaths: 1, sinceMs: 60_000 } },
    {
      clock,
      solitude,
      crashApartMs: 0,
      async markAlone(line) {
        marks.push(line);
        return Promise.resolve(isOurs);
      },
    },
  );
  if (careful === null) throw new Error('it has to be careful');
  return { clock, room, solitude, suspects, careful, marks, lose: () => (isOurs = false) };
}

/** What came of something so far: undefined while it waits. */
function watch<T>(promise: Promise<T>): { got: T | undefined } {
  const seen: { got: T | undefined } = { got: undefined };
  void promise.then((found) => {
    seen.got = found;
  });
  return seen;
}

test('a line is alone while it is asked, and others go while it waits to be asked again', async () => {
  const only = fakeEngine('a');
  const { clock, room, suspects, careful, marks } = openWorld([only]);
  const [owner, other] = [fakeTenant(() => [only]), fakeTenant(() => [only])];
  expect(await careful.before(0, NEVER)).toBe('send');
  const suspect = suspects.of('job', 0, wishOf(owner), careful.alone);
  expect(await suspect.take(NEVER)).toBe(only);
  expect(room.tryTakeFresh(wishOf(other))).toBeNull();

  room.give(only, owner);
  suspect.rest();
  expect(room.tryTakeFresh(wishOf(other))).toBe(only);
  const again = watch(suspect.take(NEVER));
  await clock.advance(100);
  expect(again.got, 'the other is in flight').toBeUndefined();
  room.give(only, other);
  await clock.advance(100);
  expect(again.got).toBe(only);
  expect(marks, 'the mark stands').toEqual([0]);

  room.give(only, owner);
  suspect.left(true);
  expect(room.tryTakeFresh(wishOf(other)), 'until it is committed').toBeNull();
  careful.afterCommit({ close: async () => Promise.resolve() });
  await clock.settle();
  expect(room.tryTakeFresh(wishOf(other))).toBe(only);
});

test('a line that is to be alone at an engine that is down keeps nobody from others', async () => {
  const [down, well] = [fakeEngine('a'), fakeEngine('b')];
  const { clock, room, suspects, careful } = openWorld([down, well]);
  const [owner, other] = [fakeTenant(() => [down]), fakeTenant(() => [well])];
  down.isOpen = true;
  await careful.before(0, NEVER);
  const suspect = suspects.of('job', 0, wishOf(owner), careful.alone);
  const taking = watch(suspect.take(NEVER));
  await clock.advance(100);
  expect(taking.got).toBeUndefined();
  expect(room.tryTakeFresh(wishOf(other))).toBe(well);
  room.give(well, other);
  down.isOpen = false;
  room.kick();
  await clock.advance(100);
  expect(taking.got).toBe(down);
  expect(room.tryTakeFresh(wishOf(other))).toBeNull();
});

test('who waits to be alone behind another one is stopped at once, and the next is not forgotten', async () => {
  const only = fakeEngine('a');
  const { clock, solitude } = openWorld([only]);
  const first = await solitude.enter(NEVER);
  const stop = new AbortController();
  const second = watch(solitude.enter(stop.signal));
  const third = watch(solitude.enter(NEVER));
  await clock.settle();
  stop.abort();
  await clock.settle();
  expect([second.got, third.got]).toEqual([null, undefined]);
  if (first !== null) solitude.leave(first);
  await clock.settle();
  expect(third.got).not.toBeNull();
  expect(third.got).toBeDefined();
});

test('a line that is sent alone passes a quarantine whose lines wait until the room is open', async () => {
  const only = fakeEngine('a');
  const { clock, room, solitude } = openWorld([only]);
  const owner = fakeTenant(() => [only]);
  const batch: Pass = { id: 1, engine: only };
  room.keep(only, batch);
  const pass = await solitude.enter(NEVER);
  const quarantined = watch(room.take({ ...wishOf(owner), pass: batch }, NEVER));
  const alone = watch(room.take({ ...wishOf(owner), pass }, NEVER));
  await clock.settle();
  expect([alone.got, quarantined.got]).toEqual([only, undefined]);
  room.give(only, owner);
  if (pass !== null) solitude.leave(pass);
  await clock.settle();
  expect(quarantined.got).toBe(only);
});

test('a shard that is not ours any more sends no further line, and keeps nothing closed', async () => {
  const only = fakeEngine('a');
  const { clock, room, suspects, careful, lose } = openWorld([only]);
  const owner = fakeTenant(() => [only]);
  lose();
  await careful.before(0, NEVER);
  const suspect = suspects.of('job', 0, wishOf(owner), careful.alone);
  expect(await suspect.take(NEVER)).toBeNull();
  careful.afterCommit({ close: async () => Promise.resolve() });
  await clock.settle();
  expect(await careful.before(1, NEVER)).toBe('stopped');
  expect(room.tryTakeFresh(wishOf(owner))).toBe(only);
});

test('a line that kills engines while it is alone is blamed as one in quarantine is', async () => {
  const only = fakeEngine('a');
  const { room, suspects, careful } = openWorld([only]);
  const owner = fakeTenant(() => [only]);
  await careful.before(0, NEVER);
  const suspect = suspects.of('job', 0, wishOf(owner), careful.alone);
  let deaths = 0;
  for (; deaths < 10 && suspect.blame === 0; deaths += 1) {
    expect(await suspect.take(NEVER)).toBe(only);
    only.isOpen = true;
    suspects.died(only);
    await suspect.fell(only);
    room.give(only, owner);
    only.isOpen = false;
  }
  expect(deaths, 'a suspect after two, alone at two more').toBe(4);
  expect(await suspect.take(NEVER)).toBeNull();
});
