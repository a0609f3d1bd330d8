import { describe, expect, test } from 'vitest';
import { settle, stopJob } from '../../processors/settle.ts';
import { currentAttempt } from '../../src/domain/provision.ts';
import { LONG } from '../support/chaos.ts';
import { openLeasingWorld } from '../support/leasing-world.ts';
import type { LeasingWorld } from '../support/leasing-world.ts';

async function end({ world }: LeasingWorld, jobId: string): Promise<void> {
  await stopJob(jobId, { outcome: 'cancelled', event: 'Cancelled.' }, world.deps);
}

/** One job that is served, and one that waits, since only one machine may be leased. */
async function openTwo(leasing: LeasingWorld) {
  const one = await leasing.plan();
  const from = one.provisions[0] ?? '';
  await leasing.until(from, 'serving');
  const other = await leasing.plan();
  const to = other.provisions[0] ?? '';
  await leasing.step(to);
  return { one: one.jobId, from, other: other.jobId, to };
}

describe('a machine that its job needs no longer', () => {
  test('goes over to a job that waits for one of its kind, with its engine', async () => {
    await using leasing = await openLeasingWorld({ maxLeases: 1 });
    const { one, from, other, to } = await openTwo(leasing);
    const machines = await leasing.machines();
    await end(leasing, one);
    await leasing.step(from);
    expect(await leasing.provision(from)).toMatchObject({ state: 'released', handedTo: to });
    expect(await leasing.provision(to)).toMatchObject({ state: 'starting' });
    expect(await leasing.world.job(other)).toMatchObject({ state: 'submitting' });
    await leasing.until(to, 'serving');
    expect(await leasing.machines()).toEqual(machines);
    const { attempts } = await leasing.provision(from);
    expect(attempts).toMatchObject([{ state: 'handed', machine: machines[0] }]);
    // By the machine's name its new provision is found.
    const key = (attempts[0]?.name ?? '').split('-')[2] ?? '';
    expect(await leasing.world.store.provisions.byKey(key)).toBe(to);
    expect(await leasing.world.store.leases.seated()).toEqual([to]);
    await end(leasing, other);
    await leasing.step(to);
    expect(await leasing.machines()).toEqual([]);
  });

  test('goes to no job of another template or other limits', async () => {
    await using leasing = await openLeasingWorld({ maxLeases: 1 });
    const one = await leasing.plan();
    const from = one.provisions[0] ?? '';
    await leasing.until(from, 'serving');
    const { provisions } = await leasing.plan({ maxPricePerHour: 5 });
    await leasing.step(provisions[0] ?? '');
    await end(leasing, one.jobId);
    await leasing.step(from);
    expect((await leasing.provision(from)).handedTo).toBeNull();
    expect(await leasing.machines()).toEqual([]);
  });

  test('is kept for a while for the next job, where that is wished', async () => {
    await using leasing = await openLeasingWorld({ keepWarmMs: 60_000 });
    const one = await leasing.plan();
    const from = one.provisions[0] ?? '';
    await leasing.until(from, 'serving');
    const machines = await leasing.machines();
    await end(leasing, one.jobId);
    await leasing.step(from);
    expect(await leasing.machines()).toEqual(machines);
    const { provisions } = await leasing.plan();
    const to = provisions[0] ?? '';
    await leasing.step(to);
    expect(await leasing.machines()).toEqual(machines);
    await leasing.step(from);
    expect(await leasing.provision(to)).toMatchObject({ state: 'starting' });
    expect(await leasing.machines()).toEqual(machines);
  });

  test('is given back after that while', async () => {
    await using leasing = await openLeasingWorld({ keepWarmMs: 60_000 });
    const one = await leasing.plan();
    const from = one.provisions[0] ?? '';
    await leasing.until(from, 'serving');
    await end(leasing, one.jobId);
    await leasing.step(from);
    leasing.world.ahead += 61_000;
    await leasing.step(from);
    expect(await leasing.machines()).toEqual([]);
    expect(await leasing.world.store.leases.kept('any')).toEqual([]);
  });
});

test('a handover races with the end of who takes it, and with itself: never both, never neither', async () => {
  await using leasing = await openLeasingWorld({ maxLeases: 1 });
  const outcomes = { handed: 0, destroyed: 0 };
  for (let round = 0; round < (LONG ? 1_000 : 60); round += 1) {
    const { one, from, other, to } = await openTwo(leasing);
    const [machine = ''] = await leasing.machines();
    await end(leasing, one);
    // Two deliveries of the same provision, as after a lost lock, and whoever ends the job that waits.
    await Promise.all([
      leasing.step(from),
      leasing.step(from),
      round % 2 === 0 ? end(leasing, other) : settle(other, leasing.world.deps),
      leasing.step(to),
    ]);
    for (let turn = 0; turn < 4; turn += 1) await leasing.step(from);
    const giver = await leasing.provision(from);
    const taker = await leasing.provision(to);
    const isTaken = currentAttempt(taker)?.machine === machine;
    const isGoing = giver.isDestroying;
    expect([isTaken, isGoing].filter(Boolean), `round ${round}`).toHaveLength(1);
    outcomes[isTaken ? 'handed' : 'destroyed'] += 1;
    // Whoever has it gives it back.
    await end(leasing, other);
    for (let turn = 0; turn < 3; turn += 1) await leasing.step(to);
    expect(await leasing.machines()).toEqual([]);
    leasing.world.ahead += 200_000;
    for (const id of [from, to]) {
      for (let turn = 0; turn < 6; turn += 1) {
        await leasing.step(id);
        leasing.world.ahead += 60_000;
      }
      expect((await leasing.provision(id)).state).toBe('released');
    }
  }
  expect(outcomes.handed).toBeGreaterThan(0);
  expect(outcomes.destroyed).toBeGreaterThan(0);
});
