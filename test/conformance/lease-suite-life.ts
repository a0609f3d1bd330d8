import { expect, test } from 'vitest';
import type { Machine } from '../../src/resources/lease-contract.ts';
import type { FaultInput } from '../simulators/cloud/faults.ts';
import { until } from '../support/until.ts';
import {
  failure,
  namesOf,
  QUICK_MS,
  silentFaults,
  STAMP,
  UNAVAILABLE,
  wishOf,
} from './lease-world.ts';
import type { LeaseFlags, LeaseWorld, StartWorld } from './lease-world.ts';

/** `describe`. */
export function describeTests(start: StartWorld): void {
  test('goes from booting to running, and then says where sshd is', async () => {
    await using world = await start({ boot_ms: [300, 300] });
    const { id } = await world.manager.create(wishOf(world));
    const early = await world.manager.describe(id);
    expect(early).toMatchObject({ id, name: `${STAMP}a`, state: 'booting', ssh: null });
    const running = await until(async () => {
      const machine = await world.manager.describe(id);
      return machine?.state === 'running' && machine.ssh !== null ? machine : undefined;
    });
    expect(running.ssh).toEqual({
      host: expect.stringMatching(/^[\d.]+$/),
      port: expect.any(Number),
      user: expect.stringMatching(/^[a-z]+$/),
    });
    const [entry] = await world.control.inventory();
    expect(running.region).toBe(entry?.region);
    expect([null, entry?.usd_per_hour]).toContain(running.pricePerHour);
    const sameOf = ({ name, state, ssh }: Machine) => ({ name, state, ssh });
    const [listed] = await world.manager.list(STAMP);
    expect(listed === undefined ? null : sameOf(listed)).toEqual(sameOf(running));
  });

  test('an address that comes late is null until then', async () => {
    await using world = await start({ address_late_ms: 400 });
    const { id } = await world.manager.create(wishOf(world));
    await until(async () => (await world.control.inventory())[0]?.phase === 'up');
    expect((await world.manager.describe(id))?.ssh).toBeNull();
    await until(async () => (await world.manager.describe(id))?.ssh);
  });

  test('knows none of an id that never was, or that the provider has forgotten', async () => {
    await using world = await start();
    expect(await world.manager.describe('0123456789abcdef0123456789abcdef')).toBeNull();
    const { id } = await world.manager.create(wishOf(world));
    await world.control.act(id, 'vanish');
    expect(await world.manager.describe(id)).toBeNull();
  });

  test('a machine that is gone and still shown is gone', async () => {
    await using world = await start({ gone_lag_ms: 3_600_000 });
    const { id } = await world.manager.create(wishOf(world));
    await world.control.act(id, 'vanish');
    expect((await world.manager.describe(id))?.state).toBe('gone');
    for (const { state } of await world.manager.list(STAMP)) expect(state).toBe('gone');
  });

  test('one that was taken away and still costs is neither running nor gone', async () => {
    await using world = await start();
    const { id } = await world.manager.create(wishOf(world));
    await until(async () => (await world.manager.describe(id))?.state === 'running');
    await world.control.act(id, 'preempt');
    const machine = await world.manager.describe(id);
    expect(machine).toMatchObject({ state: 'stopping' });
    expect(machine?.reason).not.toBe('');
  });

  test('a status that nobody has heard of is not gone', async () => {
    await using world = await start();
    const { id } = await world.manager.create(wishOf(world));
    await until(async () => (await world.manager.describe(id))?.state === 'running');
    await world.control.act(id, 'status', { status: 'MIGRATING' });
    const machine = await world.manager.describe(id);
    expect(machine).not.toBeNull();
    expect(machine?.state).not.toBe('gone');
  });

  test('an answer that cannot be had or read is lease.unavailable, never null', async () => {
    await using world = await start();
    const { id } = await world.manager.create(wishOf(world));
    const manager = world.connect({ timeoutMs: QUICK_MS });
    for (const [what, fault] of silentFaults('get')) {
      await world.control.setFaults([fault]);
      expect([what, await failure(manager.describe(id))]).toMatchObject([what, UNAVAILABLE]);
    }
    expect((await manager.describe(id))?.id).toBe(id);
  });
}

/** `destroy`. */
export function destroyTests(start: StartWorld): void {
  const gone = async ({ manager }: LeaseWorld, id: string) =>
    until(async () => (await manager.destroy(id)) === 'gone', { everyMs: 50, timeoutMs: 20_000 });

  test('gives back that machine and no other, and says gone once more as often as it is asked', async () => {
    await using world = await start();
    const { id } = await world.manager.create(wishOf(world));
    await world.manager.create(wishOf(world, { name: `${STAMP}b` }));
    await gone(world, id);
    expect(await namesOf(world)).toEqual([`${STAMP}b`]);
    expect(await world.manager.destroy(id)).toBe('gone');
    expect(await world.manager.destroy('0123456789abcdef0123456789abcdef')).toBe('gone');
    expect(await namesOf(world)).toEqual([`${STAMP}b`]);
  });

  test('one that is still ending is not gone', async () => {
    await using world = await start({ terminate_ms: 1500 });
    const { id } = await world.manager.create(wishOf(world));
    expect(await world.manager.destroy(id)).toBe('going');
    const early = await world.manager.destroy(id);
    const isThere = (await world.control.inventory()).length > 0;
    expect([early, isThere]).not.toEqual(['gone', true]);
    await gone(world, id);
    expect(await world.control.inventory()).toEqual([]);
  });

  test('a terminate that is confirmed and lost is not gone, and is done when it is asked for again', async () => {
    await using world = await start();
    const { id } = await world.manager.create(wishOf(world));
    await world.control.setFaults([{ kind: 'lost', op: 'terminate', count: 2 }]);
    expect(await world.manager.destroy(id)).toBe('going');
    expect(await world.manager.destroy(id)).toBe('going');
    expect(await namesOf(world)).toEqual([`${STAMP}a`]);
    await gone(world, id);
    expect(await world.control.inventory()).toEqual([]);
  });

  test('one that boots, and one that was taken away, is given back as well', async () => {
    await using world = await start({ boot_ms: [0, 0] });
    const { id } = await world.manager.create(wishOf(world));
    await until(async () => (await world.manager.describe(id))?.state === 'running');
    await world.control.act(id, 'preempt');
    await gone(world, id);
    await world.control.setKnobs({ boot_ms: [3_600_000, 3_600_000] });
    const boots = await world.manager.create(wishOf(world, { name: `${STAMP}b` }));
    await gone(world, boots.id);
    expect(await world.control.inventory()).toEqual([]);
  });

  test('an answer that cannot be had or read is lease.unavailable, never gone', async () => {
    await using world = await start();
    const manager = world.connect({ timeoutMs: QUICK_MS });
    const faults = silentFaults('terminate').filter(([, { kind }]) => kind !== 'truncate');
    const after: FaultInput = { kind: 'reset_after', op: 'terminate', count: 1 };
    for (const [what, fault] of [...faults, ['a cut after it was done', after] as const]) {
      const { id } = await world.manager.create(wishOf(world));
      await world.control.setFaults([fault]);
      expect([what, await failure(manager.destroy(id))]).toMatchObject([what, UNAVAILABLE]);
      await gone(world, id);
      expect(await world.control.inventory()).toEqual([]);
    }
  });

  test('half an answer is never gone', async () => {
    await using world = await start();
    const { id } = await world.manager.create(wishOf(world));
    await world.control.setFaults([{ kind: 'truncate', op: 'terminate', count: 1 }]);
    const said = await failure(world.manager.destroy(id));
    // An answer without a body has no half: it is the whole one.
    expect([{ resolvedWith: 'going' }, UNAVAILABLE]).toContainEqual(
      said['code'] === undefined ? said : { kind: said['kind'], code: said['code'] },
    );
    await gone(world, id);
    expect(await world.control.inventory()).toEqual([]);
  });
}

/** `list`. */
export function listTests(start: StartWorld, { pages }: LeaseFlags): void {
  test('all of the stamp and nobody else’s', async () => {
    await using world = await start();
    expect(await world.manager.list(STAMP)).toEqual([]);
    const [near, far] = world.regions;
    const names = [`${STAMP}a`, `${STAMP}b`, `${STAMP}c`];
    for (const [at, name] of names.entries()) {
      const regions = [at % 2 === 0 ? near : far];
      await world.manager.create(wishOf(world, { name, regions }));
    }
    await world.manager.create(wishOf(world, { name: 'sl-test10-a' }));
    await world.manager.create(wishOf(world, { name: `other-${STAMP}a` }));
    const listed = await world.manager.list(STAMP);
    expect(listed.map(({ name }) => name).toSorted()).toEqual(names);
    expect(new Set(listed.map(({ region }) => region))).toEqual(new Set([near, far]));
    expect(new Set(listed.map(({ id }) => id)).size).toBe(3);
  });

  test('what lags behind is missing for no longer than the capabilities say', async () => {
    await using world = await start({ list_lag_ms: 3_600_000 });
    await world.manager.create(wishOf(world));
    expect(await world.manager.list(STAMP)).toEqual([]);
    await world.control.setKnobs({ list_lag_ms: 0 });
    expect((await world.manager.list(STAMP)).map(({ name }) => name)).toEqual([`${STAMP}a`]);
    // Lists were seen to lag by some seconds; a create is repeated only after this time.
    expect(world.manager.capabilities.listLagMs).toBeGreaterThanOrEqual(10_000);
  });

  test('an answer that cannot be had or read is lease.unavailable, never a shorter list', async () => {
    await using world = await start();
    await world.manager.create(wishOf(world));
    const manager = world.connect({ timeoutMs: QUICK_MS });
    for (const [what, fault] of silentFaults('list')) {
      await world.control.setFaults([fault]);
      expect([what, await failure(manager.list(STAMP))]).toMatchObject([what, UNAVAILABLE]);
    }
    expect(await manager.list(STAMP)).toHaveLength(1);
  });

  test.runIf(pages)('all pages, and none of them where one is missing', async () => {
    await using world = await start({ page_limit: 2 });
    const names = Array.from({ length: 5 }, (_, at) => `${STAMP}${at}`);
    for (const name of names) await world.manager.create(wishOf(world, { name }));
    const listed = await world.manager.list(STAMP);
    expect(listed.map(({ name }) => name).toSorted()).toEqual(names);
    // The name of the first is on the last page.
    const oldest = await world.manager.create(wishOf(world, { name: names[0] ?? '' }));
    expect(await namesOf(world)).toEqual(names);
    expect(oldest.name).toBe(names[0]);
    const manager = world.connect({ timeoutMs: QUICK_MS });
    for (const [what, fault] of silentFaults('list')) {
      await world.control.setFaults([{ ...fault, after: 2 }]);
      expect([what, await failure(manager.list(STAMP))]).toMatchObject([what, UNAVAILABLE]);
    }
  });
}
