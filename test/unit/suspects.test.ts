import { setTimeout as delay } from 'node:timers/promises';
import { expect, test } from 'vitest';
import type { Isolation } from '../../src/dispatcher/quarantine.ts';
import { createRoom } from '../../src/dispatcher/room.ts';
import type { Tenant, Wish } from '../../src/dispatcher/room.ts';
import { createSuspects } from '../../src/dispatcher/suspects.ts';
import { clock } from '../../src/main/clock.ts';
import { fakeEngine, fakeTenant, UNDISTURBED, wishOf } from '../support/fake-engine.ts';
import type { FakeEngine } from '../support/fake-engine.ts';

const NEVER = new AbortController().signal;
/** The quarantine's pauses, a tenth of what they are. */
const quick = {
  ...clock,
  random: () => 0.1,
  sleep: async (ms: number): Promise<void> => delay(ms / 10),
};
const ANSWER_MS = 10;

/** What stands between processes: one of them at a time has the turn. */
function shareTurn(): (process: number) => Isolation {
  let holder: number | null = null;
  return (process) => ({
    async take() {
      holder ??= process;
      return holder === process;
    },
    giveBack() {
      if (holder === process) holder = null;
    },
  });
}

interface WorldOptions {
  poison: number | null;
  processes?: number;
  isolationOf?: (process: number) => Isolation;
}

/**
 * An engine that processes send their lines to, one after the other in turn; it dies of poison, with all that is in
 * flight, and is back a moment later.
 */
function createWorld({ poison, processes = 1, isolationOf = () => UNDISTURBED }: WorldOptions) {
  const members = Array.from({ length: processes }, (_, process) => {
    const room = createRoom();
    const suspects = createSuspects({ room, clock: quick, isolation: isolationOf(process) });
    const engine = fakeEngine('http://engine', { processes });
    return { room, suspects, engine, tenant: fakeTenant(() => [engine]) };
  });
  const [first] = members;
  if (first === undefined) throw new Error('a world has a process');
  /** How many lines were in flight at each death. */
  const deaths: number[] = [];
  const flying = new Map<number, () => void>();

  const world = first;
  function die(): void {
    deaths.push(flying.size);
    for (const { engine, suspects } of members) {
      engine.isOpen = true;
      suspects.died(engine);
    }
    const cut = [...flying.values()];
    flying.clear();
    for (const fall of cut) fall();
    setTimeout(() => {
      for (const { engine, room } of members) {
        engine.isOpen = false;
        room.kick();
      }
    }, ANSWER_MS);
  }

  /** True when it is answered, false when the engine dies. */
  async function send(line: number): Promise<boolean> {
    const fall = Promise.withResolvers<boolean>();
    flying.set(line, () => fall.resolve(false));
    // Of two timers that are late, the later one may be the first.
    if (line === poison) setTimeout(die, ANSWER_MS / 2);
    else void delay(ANSWER_MS).then(() => fall.resolve(true));
    const isAnswered = await fall.promise;
    if (isAnswered) flying.delete(line);
    return isAnswered;
  }

  async function run(line: number): Promise<'answered' | 'blamed'> {
    const { suspects, room, tenant } = members[line % processes] ?? world;
    const suspect = suspects.of('job', line, wishOf(tenant), null);
    let isAnswered = false;
    for (;;) {
      const place = await suspect.take(NEVER);
      if (place === null) break;
      isAnswered = await send(line);
      if (!isAnswered) await suspect.fell(place);
      room.give(place, tenant);
      if (isAnswered) break;
    }
    suspect.left(isAnswered);
    return isAnswered ? 'answered' : 'blamed';
  }
  return { ...first, deaths, run, die, flying };
}

test('the line that kills is found by halving, and nobody else is blamed', async () => {
  const world = createWorld({ poison: 11 });
  const results = await Promise.all([...Array(32).keys()].map((line) => world.run(line)));
  const blamed = results.flatMap((result, line) => (result === 'blamed' ? [line] : []));
  expect(blamed).toEqual([11]);
  // Twice all that were in flight, then at most half of them each time, and alone until it is blamed.
  expect(world.deaths).toEqual([32, 32, 16, 8, 4, 2, 1, 1]);
  expect(world.suspects.isCharged('job', 11), 'should its answer be lost').toBe(true);
  expect(world.suspects.isCharged('job', 12)).toBe(false);
});

test('beside other processes a line has to be alone at three deaths', async () => {
  const world = createWorld({ poison: 0, processes: 2, isolationOf: shareTurn() });
  expect(await Promise.all([0, 2].map((line) => world.run(line)))).toEqual(['blamed', 'answered']);
  expect(world.deaths).toEqual([2, 2, 1, 1, 1]);
});

test('a line that is alone for its process is not blamed for one that is alone for another', async () => {
  const world = createWorld({ poison: 0, processes: 2, isolationOf: shareTurn() });
  expect(await Promise.all([0, 1].map((line) => world.run(line)))).toEqual(['blamed', 'answered']);
  expect(world.deaths, 'never both at once').toEqual([2, 2, 1, 1, 1]);
});

test('an engine that dies by itself, even twice, costs no line its answer', async () => {
  const world = createWorld({ poison: null });
  const results = Promise.all([...Array(8).keys()].map((line) => world.run(line)));
  await delay(ANSWER_MS / 2);
  world.die();
  await expect.poll(() => world.flying.size, { interval: 1 }).toBe(8);
  world.die();
  expect(new Set(await results)).toEqual(new Set(['answered']));
  expect(world.suspects.isCharged('job', 0), 'what is answered is cleared').toBe(false);
});

test('nothing else is in flight beside those in quarantine', async () => {
  const world = createWorld({ poison: null });
  const suspected = [0, 1, 2, 3].map((line) => world.run(line));
  for (const death of [1, 2]) {
    await expect.poll(() => world.flying.size, { interval: 1, message: `${death}` }).toBe(4);
    world.die();
  }
  await expect.poll(() => world.flying.size > 0, { interval: 1 }).toBe(true);
  expect(world.flying.size, 'half of them').toBe(2);
  const other: Wish = { tenant: world.tenant, model: null, affinity: null };
  expect(world.room.tryTakeFresh(other)).toBeNull();
  await Promise.all(suspected);
  await expect.poll(() => world.room.tryTakeFresh(other)).toBe(world.engine);
});

test('a suspect that is stopped leaves its place in the line, and is one still', async () => {
  const world = createWorld({ poison: null });
  const wish: Wish = { tenant: world.tenant, model: null, affinity: null };
  const suspect = world.suspects.of('job', 5, wish, null);
  for (const _death of [1, 2]) {
    world.engine.isOpen = true;
    world.suspects.died(world.engine);
    await suspect.fell(world.engine);
  }
  const stop = new AbortController();
  const taking = suspect.take(stop.signal);
  stop.abort();
  expect(await taking).toBeNull();
  suspect.left(false);
  expect(world.suspects.isCharged('job', 5)).toBe(true);
  expect(suspect.blame).toBe(0);
});

/** Engines that nothing is sent to, and lines that may have killed the first of them. */
async function suspectedWorld(lines: number, addresses: string[]) {
  const room = createRoom();
  const suspects = createSuspects({ room, clock: quick, isolation: UNDISTURBED });
  const engines = addresses.map((address) => fakeEngine(address));
  let serving: FakeEngine[] = engines;
  const tenant: Tenant = {
    rank: 1,
    cap: () => 1_000,
    mayAsk: () => true,
    isAdaptive: true,
    engines: () => serving,
    inHand: 0,
    allInFlight: 0,
    inFlight: new Map(),
  };
  const [first] = engines;
  const suspected = Array.from({ length: lines }, (_, line) =>
    suspects.of('job', line, { tenant, model: null, affinity: null }, null),
  );
  if (first === undefined) throw new Error('the test needs an engine');
  for (const _death of [1, 2]) {
    await Promise.all(suspected.map((each) => each.fell(first)));
    suspects.died(first);
  }
  return {
    room,
    suspects,
    tenant,
    suspected,
    engines,
    serve(...now: FakeEngine[]): void {
      serving = now;
      room.kick();
    },
  };
}

test('lines in quarantine at an engine that is replaced go on at another, and so does the next batch', async () => {
  const world = await suspectedWorld(8, ['a', 'b']);
  const [a, b] = world.engines as [FakeEngine, FakeEngine]; // two addresses, two engines
  world.serve(a);
  a.window = { ...a.window, limit: 1 };
  const got: [number, string][] = [];
  const taking = world.suspected.map(async (each, line) => {
    const engine = await each.take(NEVER);
    got.push([line, engine?.address ?? '']);
    return engine;
  });
  await expect.poll(() => got).toEqual([[0, 'a']]);
  // The rest of the batch waits for a place at the engine that is gone now.
  a.isOpen = true;
  world.suspects.died(a);
  world.serve(b);
  await world.suspected[0]?.fell(a);
  world.room.give(a, world.tenant);
  world.suspected[0]?.left(false);
  await expect.poll(() => got.length, { message: 'a batch at the other' }).toBeGreaterThan(1);
  for (let line = 1; line < 8; line += 1) {
    await expect.poll(() => got.length, { message: 'those behind it' }).toBeGreaterThan(line);
    const [at = 0, address] = got[line] ?? [];
    expect(address).toBe('b');
    world.room.give(b, world.tenant);
    world.suspected[at]?.left(true);
  }
  await Promise.all(taking);
});

test('nobody is let in where others have all places', async () => {
  const world = await suspectedWorld(1, ['a', 'b']);
  const [a, b] = world.engines as [FakeEngine, FakeEngine]; // two addresses, two engines
  a.window = { ...a.window, limit: 0 };
  expect(await world.suspected[0]?.take(NEVER)).toBe(b);
});

test('the last of several that were let in together was not alone', async () => {
  const world = await suspectedWorld(4, ['a']);
  const [a] = world.engines as [FakeEngine]; // one address, one engine
  const [one, two] = world.suspected;
  expect(await Promise.all([one?.take(NEVER), two?.take(NEVER)])).toEqual([a, a]);
  one?.left(true);
  for (const _death of [1, 2, 3]) {
    a.isOpen = true;
    world.suspects.died(a);
    await two?.fell(a);
  }
  expect(two?.blame).toBe(0);
});

test('a line that waits before it is asked again keeps no engine for itself', async () => {
  const world = await suspectedWorld(1, ['a']);
  const [a] = world.engines as [FakeEngine]; // one address, one engine
  const [suspect] = world.suspected;
  expect(await suspect?.take(NEVER)).toBe(a);
  const other: Wish = { tenant: world.tenant, model: null, affinity: null };
  expect(world.room.tryTakeFresh(other)).toBeNull();
  world.room.give(a, world.tenant);
  suspect?.rest();
  await expect.poll(() => world.room.tryTakeFresh(other)).toBe(a);
  const again = suspect?.take(NEVER);
  world.room.give(a, world.tenant);
  expect(await again).toBe(a);
  expect(world.room.tryTakeFresh(other)).toBeNull();
});
