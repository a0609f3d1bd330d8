import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import type { Pace } from '../../src/resources/lease-contract.ts';
import type { FaultInput } from '../simulators/cloud/faults.ts';
import { until } from '../support/until.ts';
import {
  calls,
  failure,
  HOST_KEY,
  namesOf,
  NO_CAPACITY,
  QUICK_MS,
  silentFaults,
  STAMP,
  UNAVAILABLE,
  UNKNOWN,
  wishOf,
} from './lease-world.ts';
import type { LeaseFlags, StartWorld } from './lease-world.ts';

/** `create` that ends well. */
export function createTests(start: StartWorld): void {
  test('gives the machine of the wish, and never waits until it has booted', async () => {
    await using world = await start({ boot_ms: [3_600_000, 3_600_000] });
    const before = Date.now();
    const machine = await world.manager.create(wishOf(world));
    const [entry] = await world.control.inventory();
    expect(entry).toMatchObject({ id: machine.id, name: `${STAMP}a`, gpus: world.offer.gpuCount });
    expect(machine).toMatchObject({
      name: `${STAMP}a`,
      state: 'booting',
      ssh: null,
      gpuCount: world.offer.gpuCount,
    });
    expect(machine.id).not.toBe('');
    expect(machine.gpuType).not.toBe('');
    expect([null, entry?.usd_per_hour]).toContain(machine.pricePerHour);
    // Null is an answer; another time than now is none.
    expect(machine.createdAt ?? before).toBeGreaterThan(before - 60_000);
  });

  test('adopts the machine that has the name, also for a process that remembers nothing', async () => {
    await using world = await start();
    const first = await world.manager.create(wishOf(world));
    expect((await world.manager.create(wishOf(world))).id).toBe(first.id);
    expect((await world.connect().create(wishOf(world))).id).toBe(first.id);
    expect(await namesOf(world)).toEqual([`${STAMP}a`]);
    expect(await calls(world, 'create')).toBe(1);
  });

  test('adopts only a machine whose whole name it is', async () => {
    await using world = await start();
    const longer = await world.manager.create(wishOf(world, { name: `${STAMP}a0` }));
    const wished = await world.manager.create(wishOf(world));
    expect(wished.id).not.toBe(longer.id);
    expect(await namesOf(world)).toEqual([`${STAMP}a`, `${STAMP}a0`]);
  });

  test('of several machines with the name it adopts the oldest that is not gone; all are listed', async () => {
    // Nothing is found while lists lag, so that each call makes one more.
    await using world = await start({ list_lag_ms: 3_600_000, gone_lag_ms: 3_600_000 });
    const first = await world.manager.create(wishOf(world));
    const second = await world.manager.create(wishOf(world));
    expect(second.id).not.toBe(first.id);
    await world.control.setKnobs({ list_lag_ms: 0 });
    expect((await world.manager.create(wishOf(world))).id).toBe(first.id);
    const listed = await world.manager.list(STAMP);
    expect(listed.map(({ id }) => id).toSorted()).toEqual([first.id, second.id].toSorted());
    await until(async () => {
      await world.manager.destroy(first.id);
      return (await world.control.inventory()).every(({ id }) => id !== first.id);
    });
    // It is still in lists, as gone.
    expect((await world.manager.create(wishOf(world))).id).toBe(second.id);
    await world.control.act(second.id, 'vanish');
    const third = await world.manager.create(wishOf(world));
    expect([first.id, second.id]).not.toContain(third.id);
    expect(await namesOf(world)).toEqual([`${STAMP}a`]);
  });

  test('adopts none that was taken away: nobody could work on it', async () => {
    await using world = await start();
    const lost = await world.manager.create(wishOf(world));
    await until(async () => (await world.manager.describe(lost.id))?.state === 'running');
    await world.control.act(lost.id, 'preempt');
    const fresh = await world.manager.create(wishOf(world));
    expect(fresh.id).not.toBe(lost.id);
    expect(['booting', 'running']).toContain(fresh.state);
    expect((await world.manager.list(STAMP)).map(({ id }) => id)).toContain(lost.id);
  });

  test('sends nothing that would come too late, and says that there is no machine', async () => {
    await using world = await start();
    const until50 = () => wishOf(world, { sendBefore: Date.now() + 50 });
    const ends: [what: string, pace: Pace][] = [
      [
        'a turn that does not come in time',
        async (purpose, signal) => {
          if (purpose !== 'create') return;
          await until(() => signal?.aborted, { what: 'the end of patience' });
          signal?.throwIfAborted();
        },
      ],
      [
        'a turn that comes too late',
        async (purpose) => {
          if (purpose === 'create') await sleep(100);
        },
      ],
    ];
    for (const [what, pace] of ends) {
      const refused = await failure(world.connect({ pace }).create(until50()));
      expect([what, refused]).toMatchObject([what, UNAVAILABLE]);
      expect(refused['message']).toContain('certainly no machine');
    }
    const late = wishOf(world, { sendBefore: Date.now() - 1 });
    expect(await failure(world.manager.create(late))).toMatchObject(UNAVAILABLE);
    expect(await calls(world, 'create')).toBe(0);
    // To take up what is there is not to send a create.
    const { id } = await world.manager.create(wishOf(world));
    expect((await world.manager.create(late)).id).toBe(id);
  });

  test('does not look for a name that nobody has asked for before', async () => {
    await using world = await start();
    await world.manager.create(wishOf(world, { isFresh: true }));
    expect([await calls(world, 'create'), await calls(world, 'list')]).toEqual([1, 0]);
  });

  test('takes the first of the wished regions that has stock, and no other', async () => {
    await using world = await start();
    const [near, far] = world.regions;
    const regionOf = async (id: string) =>
      (await world.control.inventory()).find((entry) => entry.id === id)?.region;
    for (const [at, regions] of [
      [near, far],
      [far, near],
    ].entries()) {
      const machine = await world.manager.create(wishOf(world, { name: `${STAMP}${at}`, regions }));
      expect(await regionOf(machine.id)).toBe(regions[0]);
    }
    const [made] = await world.control.inventory();
    await world.control.setKnobs({ capacity: { [made?.type ?? '']: { [far]: 50 } } });
    const both = await world
      .connect()
      .create(wishOf(world, { name: `${STAMP}both`, regions: [near, far] }));
    expect(await regionOf(both.id)).toBe(far);
    const wish = wishOf(world, { name: `${STAMP}one`, regions: [near] });
    expect(await failure(world.connect().create(wish))).toMatchObject(NO_CAPACITY);
    const anywhere = await world.connect().create(wishOf(world, { name: `${STAMP}any` }));
    expect(await regionOf(anywhere.id)).toBe(far);
  });

  test('keeps to the highest price', async () => {
    await using world = await start();
    const { id } = await world.manager.create(wishOf(world));
    const price = (await world.control.inventory()).find((entry) => entry.id === id)?.usd_per_hour;
    const dear = wishOf(world, { name: `${STAMP}b`, maxPricePerHour: (price ?? 0) - 0.01 });
    const refused = await failure(world.manager.create(dear));
    expect(['NoCapacity', 'InvalidInput']).toContain(refused['kind']);
    await until(async () => (await world.control.inventory()).length === 1);
    await world.manager.create(
      wishOf(world, { name: `${STAMP}c`, maxPricePerHour: price ?? null }),
    );
    expect(await namesOf(world)).toEqual([`${STAMP}a`, `${STAMP}c`]);
  });

  test('takes a machine that may be taken away only where it is wished and sold', async () => {
    await using world = await start();
    const { interruptible } = world.manager.capabilities;
    const may = await world.manager.create(wishOf(world, { interruptible: true }));
    const mustNot = await world.manager.create(wishOf(world, { name: `${STAMP}b` }));
    const inventory = await world.control.inventory();
    const kinds = [may, mustNot].map(
      ({ id }) => inventory.find((entry) => entry.id === id)?.interruptible,
    );
    expect(kinds).toEqual([interruptible, false]);
  });

  test('shows no secret in what it keeps of the answer', async () => {
    await using world = await start();
    const machine = await world.manager.create(wishOf(world));
    const looked = await world.manager.describe(machine.id);
    const listed = await world.manager.list(STAMP);
    const kept = JSON.stringify([machine, looked, listed]);
    expect(kept).toContain(machine.id);
    // Its second line differs from key to key only at the end.
    const lines = HOST_KEY.trim().split('\n').slice(2, -1);
    for (const line of lines) expect(kept).not.toContain(line);
    expect(kept).not.toContain(Buffer.from(HOST_KEY).toString('base64').slice(0, 60));
  });
}

/** `create` that does not. */
export function refusalTests(start: StartWorld, flags: LeaseFlags): void {
  test.for<[what: string, fault: FaultInput]>([
    ['a 500', { kind: 'error_after', op: 'create', error: 'internal', count: 1 }],
    ['a 503', { kind: 'error_after', op: 'create', error: 'unavailable', count: 1 }],
    ['no answer', { kind: 'hang_after', op: 'create', count: 1 }],
    ['a cut connection', { kind: 'reset_after', op: 'create', count: 1 }],
    ['half an answer', { kind: 'truncate', op: 'create', count: 1 }],
    ["a gateway's page", { kind: 'html', op: 'create', count: 1 }],
  ])(
    '%s after the machine was created is lease.unknown, and the next call adopts it',
    async ([, fault]) => {
      await using world = await start();
      const manager = world.connect({ timeoutMs: QUICK_MS });
      await world.control.setFaults([fault]);
      expect(await failure(manager.create(wishOf(world)))).toMatchObject(UNKNOWN);
      const [made] = await world.control.inventory();
      expect((await manager.create(wishOf(world))).id).toBe(made?.id);
      const { totals } = await world.control.ledger();
      expect(totals).toMatchObject({ created: 1, created_twice: 0 });
    },
  );

  test.for<[what: string, fault: FaultInput]>([
    ['a 500', { kind: 'error', op: 'create', error: 'internal', count: 1 }],
    ['a 503', { kind: 'error', op: 'create', error: 'unavailable', count: 1 }],
    ['no answer', { kind: 'hang', op: 'create', count: 1 }],
    ['a cut connection', { kind: 'reset', op: 'create', count: 1 }],
  ])('%s instead of creating is lease.unknown just the same', async ([, fault]) => {
    await using world = await start();
    const manager = world.connect({ timeoutMs: QUICK_MS });
    await world.control.setFaults([fault]);
    expect(await failure(manager.create(wishOf(world)))).toMatchObject(UNKNOWN);
    expect(await world.control.inventory()).toEqual([]);
    await manager.create(wishOf(world));
    expect(await namesOf(world)).toEqual([`${STAMP}a`]);
  });

  test('while the name cannot be looked for, nothing is created', async () => {
    await using world = await start();
    const manager = world.connect({ timeoutMs: QUICK_MS });
    for (const [what, fault] of silentFaults('list')) {
      await world.control.setFaults([fault]);
      expect([what, await failure(manager.create(wishOf(world)))]).toMatchObject([
        what,
        UNAVAILABLE,
      ]);
    }
    expect(await calls(world, 'create')).toBe(0);
    await world.control.setFaults([]);
    await manager.create(wishOf(world));
    expect(await namesOf(world)).toEqual([`${STAMP}a`]);
  });

  test('capacity that is gone is lease.no_capacity, told before a create or by it', async () => {
    await using world = await start();
    await world.control.setFaults([{ kind: 'error', op: 'create', error: 'no_capacity' }]);
    expect(await failure(world.manager.create(wishOf(world)))).toMatchObject(NO_CAPACITY);
    await world.control.setFaults([]);
    await world.manager.create(wishOf(world));
    const [made] = await world.control.inventory();
    await world.control.setKnobs({ capacity: { [made?.type ?? '']: 0 } });
    const wish = wishOf(world, { name: `${STAMP}b` });
    expect(await failure(world.connect().create(wish))).toMatchObject(NO_CAPACITY);
    await world.control.setKnobs({ capacity: {}, refuse_share: 1 });
    expect(await failure(world.connect().create(wish))).toMatchObject(NO_CAPACITY);
    expect(await namesOf(world)).toEqual([`${STAMP}a`]);
    await world.control.setKnobs({ refuse_share: 0 });
    await world.manager.create(wish);
    expect(await namesOf(world)).toEqual([`${STAMP}a`, `${STAMP}b`]);
  });

  test('too many requests are lease.unavailable with the time that the provider gives', async () => {
    await using world = await start();
    const fault = { kind: 'error', error: 'rate_limited', count: 1 } as const;
    await world.control.setFaults([{ ...fault, op: 'create', retry_after: 2 }]);
    const refused = await failure(world.manager.create(wishOf(world)));
    expect(refused).toMatchObject({ ...UNAVAILABLE, retryAfterMs: 2000 });
    expect(await world.control.inventory()).toEqual([]);
    const patient = { timeoutMs: 20_000, everyMs: 200, what: 'a create after the pause' };
    await until(async () => world.manager.create(wishOf(world)).catch(() => undefined), patient);
    expect(await namesOf(world)).toEqual([`${STAMP}a`]);
  });

  test.for(flags.refusals)('%s means %s', async ([error, kind, code]) => {
    await using world = await start();
    await world.control.setFaults([{ kind: 'error', op: 'create', error }]);
    const refused = await failure(world.manager.create(wishOf(world)));
    expect(refused).toMatchObject({ kind, code });
    expect(String(refused['message']).length).toBeGreaterThan(20);
    expect(await world.control.inventory()).toEqual([]);
  });

  test('what can never be had is InvalidInput that names it', async () => {
    await using world = await start();
    const wish = wishOf(world, { offer: 'a machine that nobody rents' });
    const refused = await failure(world.manager.create(wish));
    expect(refused).toMatchObject({ kind: 'InvalidInput' });
    expect(refused['code']).toMatch(/^lease\./);
    expect(refused['message']).toContain('a machine that nobody rents');
    expect(await calls(world, 'create')).toBe(0);
  });
}
