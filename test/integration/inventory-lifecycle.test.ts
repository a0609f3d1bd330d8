import { expect, test } from 'vitest';
import { createInventorySweep } from '../../processors/inventory.ts';
import { stopJob } from '../../processors/settle.ts';
import type { ProvisionState } from '../../src/domain/provision.ts';
import { createMetrics } from '../../src/observability/metrics.ts';
import { openLeasingWorld } from '../support/leasing-world.ts';
import type { LeasingWorld } from '../support/leasing-world.ts';

const { signal } = new AbortController();

/** What compares machines with the records of this world, and says where it would destroy one or wonders about one. */
function sweepOf({ world, leasing }: LeasingWorld) {
  const said: string[] = [];
  const quiet = () => undefined;
  async function unneeded(): Promise<never> {
    throw new Error('there is no orphan of which the storage would have to be asked');
  }
  const sweep = createInventorySweep('a', {
    store: world.store,
    storage: { get: unneeded, put: unneeded, identity: unneeded },
    leasing,
    metrics: createMetrics(),
    newId: () => 'x',
    now: world.deps.now,
    log: {
      debug: quiet,
      info: quiet,
      warn: (fields, message) => said.push(`${message} ${JSON.stringify(fields)}`),
      error: (fields, message) => said.push(`${message} ${JSON.stringify(fields)}`),
    },
  });
  return { round: () => sweep.round(signal), said };
}

test('sweeping at every step of leases destroys nothing that is needed, also while one goes over to another job', async () => {
  await using leasing = await openLeasingWorld({ maxLeases: 1 });
  const { round, said } = sweepOf(leasing);
  async function bring(id: string, state: ProvisionState): Promise<void> {
    for (let turn = 0; turn < 200; turn += 1) {
      await round();
      if ((await leasing.provision(id)).state === state) return;
      await leasing.step(id);
    }
    throw new Error(`${id} does not become ${state}`);
  }
  async function end(jobId: string): Promise<void> {
    await stopJob(jobId, { outcome: 'cancelled', event: 'Cancelled.' }, leasing.world.deps);
  }

  const one = await leasing.plan();
  const [from = ''] = one.provisions;
  await bring(from, 'serving');
  const machines = await leasing.machines();
  expect(machines).toHaveLength(1);
  const other = await leasing.plan();
  const [to = ''] = other.provisions;
  await leasing.step(to);
  await end(one.jobId);
  expect((await leasing.provision(from)).state).toBe('releasing');
  await bring(from, 'released');
  await bring(to, 'serving');
  expect(await leasing.machines()).toEqual(machines);
  await end(other.jobId);
  // Who releases it has not decided yet whether another job takes it.
  await round();
  expect(await leasing.machines()).toEqual(machines);
  expect(said).toEqual([]);
  await leasing.step(to);
  await round();
  expect(await leasing.machines()).toEqual([]);
});

test('a machine whose release was decided by somebody who died goes all the same', async () => {
  await using leasing = await openLeasingWorld();
  const { round, said } = sweepOf(leasing);
  const { jobId, provisions } = await leasing.plan();
  const [id = ''] = provisions;
  await leasing.until(id, 'serving');
  await stopJob(jobId, { outcome: 'cancelled', event: 'Cancelled.' }, leasing.world.deps);
  await leasing.world.store.provisions.decideDestroy(id);
  await round();
  expect(await leasing.machines()).toEqual([]);
  expect(said).toEqual([expect.stringContaining('its provision is being released')]);
});
