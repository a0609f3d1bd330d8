import { randomUUID } from 'node:crypto';
import { afterEach, expect, test } from 'vitest';
import type { CallPurpose, Pace } from '../../src/resources/lease-contract.ts';
import { createPace } from '../../src/resources/pace.ts';
import type { PaceLimits } from '../../src/resources/pace.ts';
import type { Client } from '../../src/store/scripts.ts';
import { createStore } from '../../src/store/store.ts';
import { connectTo } from '../support/store-back-ends.ts';
import { until } from '../support/until.ts';

const clients: Client[] = [];
afterEach(() => {
  for (const client of clients.splice(0)) client.disconnect();
});

interface Went {
  who: string;
  purpose: CallPurpose;
  at: number;
}

/** Pacers that know of each other through one Redis only, as those of several processes do. */
function createWorld(limits: PaceLimits) {
  const namespace = randomUUID();
  const went: Went[] = [];

  function process(who: string) {
    const redis = connectTo('redis');
    clients.push(redis);
    const { limits: buckets } = createStore({ redis, namespace });
    const pace: Pace = createPace({
      name: 'provider:p:1',
      limits: () => limits,
      draw: buckets.draw,
    });
    return async (purpose: CallPurpose): Promise<void> => {
      await pace(purpose);
      went.push({ who, purpose, at: performance.now() });
    };
  }

  return { process, went };
}

/** The most calls that began within any span of so many ms. */
function most(went: readonly Went[], spanMs: number): number {
  const counts = went.map(({ at }) => went.filter((o) => o.at >= at && o.at < at + spanMs).length);
  return Math.max(...counts);
}

test('two processes together keep the limit, and share it', async () => {
  const { process, went } = createWorld({ callsPerSecond: 8, createsPerSecond: null });
  const [one, other] = [process('one'), process('other')];
  const calls = Array.from({ length: 10 }, () => [one('look'), other('look')]).flat();
  await until(() => went.length >= 10, { timeoutMs: 20_000, what: 'ten calls' });
  for (const who of ['one', 'other']) {
    expect(went.filter((each) => each.who === who).length).toBeGreaterThanOrEqual(3);
  }
  await Promise.all(calls);
  expect(went).toHaveLength(20);
  // 20 units flow in within 2,375 ms of the first; a call that is told late is nearer to the next.
  expect((went.at(-1)?.at ?? 0) - (went[0]?.at ?? 0)).toBeGreaterThan(2_300);
  expect(most(went, 900)).toBeLessThanOrEqual(9);
});

test('a release goes before the looks of another process, whose queue is long', async () => {
  const { process, went } = createWorld({ callsPerSecond: 4, createsPerSecond: null });
  const [looking, releasing] = [process('looking'), process('releasing')];
  const looks = Array.from({ length: 8 }, async () => looking('look'));
  await until(() => went.length >= 2, { what: 'two looks' });
  const asked = performance.now();
  await Promise.all([releasing('release'), releasing('release')]);
  const releases = went.filter(({ purpose }) => purpose === 'release');
  const before = went.filter(({ purpose, at }) => {
    return purpose === 'look' && at > asked && at < (releases.at(-1)?.at ?? 0);
  });
  // One look may have drawn its unit already.
  expect(before.length).toBeLessThanOrEqual(1);
  await Promise.all(looks);
});

test('creates of two processes keep their own distance', async () => {
  const { process, went } = createWorld({ callsPerSecond: 10, createsPerSecond: 2 });
  const [one, other] = [process('one'), process('other')];
  const creates = [one('create'), other('create'), one('create'), other('create')];
  const looks = Array.from({ length: 5 }, async () => one('look'));
  await Promise.all([...creates, ...looks]);
  const created = went.filter(({ purpose }) => purpose === 'create');
  expect((created.at(-1)?.at ?? 0) - (created[0]?.at ?? 0)).toBeGreaterThan(1_450);
  expect(most(created, 400)).toBe(1);
  const lastLook = went.findLast(({ purpose }) => purpose === 'look')?.at ?? Infinity;
  expect(lastLook).toBeLessThan(created.at(-1)?.at ?? 0);
});
