import { randomUUID } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { poolOf } from '../../processors/lease-pool.ts';
import { releaseByHand } from '../../processors/release-by-hand.ts';
import { guardSpending } from '../../processors/spending.ts';
import { stopJob } from '../../processors/settle.ts';
import { createSweeper } from '../../processors/sweep.ts';
import { SluiceError } from '../../src/domain/errors.ts';
import { jobCost } from '../../src/domain/cost.ts';
import { currentAttempt } from '../../src/domain/provision.ts';
import { rentalsOf } from '../../src/domain/rentals.ts';
import type { LeaseManager } from '../../src/resources/lease-contract.ts';
import { recordKey } from '../../src/store/keys.ts';
import { openLeasingWorld, resourcesOf } from '../support/leasing-world.ts';
import type { LeasingWorld } from '../support/leasing-world.ts';
import { until } from '../support/until.ts';

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;

async function end({ world }: LeasingWorld, jobId: string): Promise<void> {
  await stopJob(jobId, { outcome: 'cancelled', event: 'Cancelled.' }, world.deps);
}

function managerOf({ leasing }: LeasingWorld): LeaseManager {
  const manager = leasing.manager('runpod');
  if (manager === null) throw new Error('there is a manager');
  return manager;
}

async function openOne(leasing: LeasingWorld, change = {}) {
  const { jobId, provisions } = await leasing.plan(change);
  return { jobId, id: provisions[0] ?? '' };
}

async function sweep({ world }: LeasingWorld): Promise<void> {
  const { store, deps } = world;
  const sweeper = createSweeper(randomUUID(), { ...deps, store, isLive: async () => true });
  await sweeper.sweep(new AbortController().signal);
  await sweeper.close();
}

describe('an engine that has served for hours', () => {
  test('and is unhealthy for a moment has as long as a new one to be healthy again', async () => {
    await using leasing = await openLeasingWorld();
    const { jobId, id } = await openOne(leasing, { maxIdleMinutes: 10 });
    await leasing.until(id, 'serving');
    leasing.world.ahead += 2 * HOUR;
    leasing.inside.healthy = false;
    await leasing.step(id);
    // The sweeper may look before the engine is looked at again.
    await guardSpending(await leasing.world.job(jobId), leasing.world.deps);
    await leasing.step(id);
    expect((await leasing.provision(id)).state).toBe('starting');
    expect((await leasing.world.job(jobId)).outcome).toBeNull();
    leasing.inside.healthy = true;
    await leasing.until(id, 'serving');
    expect(await leasing.world.job(jobId)).toMatchObject({ state: 'in_progress' });
  });
});

test('an engine that became healthy while nobody looked is no late one', async () => {
  await using leasing = await openLeasingWorld();
  const { jobId, id } = await openOne(leasing);
  leasing.inside.healthy = false;
  await leasing.until(id, 'starting');
  await leasing.step(id);
  // All processes are down for an hour.
  leasing.world.ahead += HOUR;
  leasing.inside.healthy = true;
  await leasing.step(id);
  expect((await leasing.provision(id)).state).toBe('serving');
  expect((await leasing.world.job(jobId)).outcome).toBeNull();
});

describe('what is written of an attempt', () => {
  test('a create that is not heard of for long takes nothing back of a machine that was found by its name', async () => {
    await using leasing = await openLeasingWorld();
    const { id } = await openOne(leasing);
    const manager = managerOf(leasing);
    const { create } = manager;
    manager.create = async (wish) => {
      await create(wish);
      leasing.world.ahead += 10_000;
      // Another delivery looks for it meanwhile.
      await leasing.until(id, 'starting');
      throw new SluiceError('Transient', 'lease.unknown', 'no answer');
    };
    await leasing.step(id);
    expect(currentAttempt(await leasing.provision(id))).toMatchObject({
      state: 'there',
      error: '',
    });
  });
});

test('a machine that turns up after all costs from then on', async () => {
  await using leasing = await openLeasingWorld();
  await leasing.control.setFaults([{ kind: 'error', op: 'create', count: 1 }]);
  const { id } = await openOne(leasing);
  for (let turn = 0; turn < 5; turn += 1) await leasing.step(id);
  leasing.world.ahead += 2 * MINUTE;
  await leasing.step(id);
  expect((await leasing.provision(id)).attempts[0]).toMatchObject({ state: 'none' });
  const { provisions } = leasing.world.store;
  await provisions.attempt(id, 1, { state: 'there', machine: 'late', pricePerHour: 1 });
  const [late] = (await leasing.provision(id)).attempts;
  expect(late).toMatchObject({ state: 'there', endedAt: null });
});

test('a provision that is released while it is worked on leaves no seat taken', async () => {
  await using leasing = await openLeasingWorld({ maxLeases: 1 });
  const { jobId, id } = await openOne(leasing);
  const { leases } = leasing.world.store;
  const { sit } = leases;
  leases.sit = async (...args) => {
    leases.sit = sit;
    await end(leasing, jobId);
    await leasing.step(id);
    expect((await leasing.provision(id)).state).toBe('released');
    return sit(...args);
  };
  await leasing.step(id);
  expect(await leasing.machines()).toEqual([]);
  await sweep(leasing);
  expect(await leases.seated()).toEqual([]);
  const other = await openOne(leasing);
  await leasing.until(other.id, 'serving');
});

test('a replica that is refused for good does not end a job whose other machine boots', async () => {
  await using leasing = await openLeasingWorld();
  const { jobId, provisions } = await leasing.plan({ replicas: 2 });
  const [one = '', other = ''] = provisions;
  await leasing.step(one);
  expect((await leasing.provision(one)).state).toBe('booting');
  await leasing.control.setFaults([{ kind: 'error', op: 'create', error: 'balance', count: 1 }]);
  await leasing.step(other);
  expect((await leasing.world.job(jobId)).outcome).toBeNull();
  await leasing.until(one, 'serving');
  expect((await leasing.provision(other)).reason).toContain('credit');
  // It is tried for on.
  leasing.world.ahead += 2 * MINUTE;
  await leasing.until(other, 'serving');
  expect(await leasing.machines()).toHaveLength(2);
});

test('a machine that was of no use costs nothing more once it is gone, while the next one serves', async () => {
  await using leasing = await openLeasingWorld();
  const { id } = await openOne(leasing);
  let looks = 0;
  leasing.inside.check = async () => (looks++ === 0 ? 'it shows 0 of 1 GPUs' : null);
  leasing.world.store.leases.isShunned = async () => false;
  await leasing.until(id, 'serving');
  for (let turn = 0; turn < 5; turn += 1) {
    leasing.world.ahead += MINUTE;
    await leasing.step(id);
  }
  const { attempts } = await leasing.provision(id);
  expect(attempts).toMatchObject([
    { n: 1, state: 'gone' },
    { n: 2, state: 'there' },
  ]);
  const now = leasing.world.deps.now() + 10 * HOUR;
  const both = jobCost(rentalsOf([{ attempts }]), now).cost;
  const last = jobCost(rentalsOf([{ attempts: attempts.slice(1) }]), now).cost;
  expect(both / last).toBeLessThan(1.1);
});

test('a provision whose machine goes over is not released before its earlier ones are gone', async () => {
  await using leasing = await openLeasingWorld({ maxLeases: 1 });
  const one = await openOne(leasing);
  let looks = 0;
  leasing.inside.check = async () => (looks++ === 0 ? 'it shows 0 of 1 GPUs' : null);
  leasing.world.store.leases.isShunned = async () => false;
  await leasing.until(one.id, 'serving');
  const other = await openOne(leasing);
  await leasing.step(other.id);
  await end(leasing, one.jobId);
  await leasing.step(one.id);
  await leasing.until(other.id, 'serving');
  const giver = await leasing.provision(one.id);
  expect(giver).toMatchObject({ state: 'releasing', handedTo: other.id });
  expect(giver.attempts).toMatchObject([{ state: 'leaving' }, { state: 'handed' }]);
  for (let turn = 0; turn < 5; turn += 1) {
    leasing.world.ahead += MINUTE;
    await leasing.step(one.id);
  }
  const released = await leasing.provision(one.id);
  expect(released.state).toBe('released');
  expect(released.attempts).toMatchObject([{ state: 'gone' }, { state: 'handed' }]);
  expect((await leasing.provision(other.id)).state).toBe('serving');
  expect(await leasing.machines()).toHaveLength(1);
});

test('KEEP_WARM_SECONDS: a machine is kept for nobody past what its job may cost', async () => {
  await using leasing = await openLeasingWorld({ keepWarmMs: 100 * HOUR });
  const { jobId, id } = await openOne(leasing, { maxCostUsd: 3 });
  await leasing.until(id, 'serving');
  await end(leasing, jobId);
  await leasing.step(id);
  expect(await leasing.machines()).toHaveLength(1);
  leasing.world.ahead += 10 * HOUR;
  await leasing.step(id);
  expect(await leasing.machines()).toEqual([]);
  expect(await leasing.world.store.leases.kept(poolOf(resourcesOf({ maxCostUsd: 3 })))).toEqual([]);
});

test('a machine is given back though the record of one that waits for it is damaged', async () => {
  await using leasing = await openLeasingWorld({ maxLeases: 1 });
  const one = await openOne(leasing);
  await leasing.until(one.id, 'serving');
  const other = await openOne(leasing);
  await leasing.step(other.id);
  await end(leasing, one.jobId);
  await leasing.world.setField(recordKey(other.id), 'slot', 'nonsense');
  await leasing.step(one.id);
  expect(await leasing.machines()).toEqual([]);
  await end(leasing, other.jobId);
});

test('a machine is given back though the record of its job is damaged', async () => {
  await using leasing = await openLeasingWorld();
  const { jobId, id } = await openOne(leasing);
  await leasing.until(id, 'serving');
  await end(leasing, jobId);
  await leasing.world.setField(recordKey(jobId), 'shards', 'nonsense');
  await leasing.step(id);
  expect(await leasing.machines()).toEqual([]);
});

test('nobody waits for a machine that is kept no longer, whoever failed to say so', async () => {
  await using leasing = await openLeasingWorld();
  const { leases } = leasing.world.store;
  const pool = poolOf(resourcesOf());
  const one = await openOne(leasing);
  await leasing.until(one.id, 'serving');
  await end(leasing, one.jobId);
  await leasing.step(one.id);
  await leases.warm(pool, one.id);
  await leases.warm(pool, 'prov_gone_0_0');
  const other = await openOne(leasing);
  await leasing.step(other.id);
  expect(await leasing.machines()).toHaveLength(1);
  expect(await leases.kept(pool)).toEqual([]);
});

test('a job that is held leases nothing, also where a machine was refused before', async () => {
  await using leasing = await openLeasingWorld({}, { refuse_share: 1 });
  const { jobId, id } = await openOne(leasing);
  await leasing.step(id);
  expect((await leasing.provision(id)).state).toBe('creating');
  await leasing.world.store.jobs.pause(jobId, 'me');
  await leasing.control.setKnobs({ refuse_share: 0 });
  leasing.world.ahead += 30_000;
  for (let turn = 0; turn < 3; turn += 1) await leasing.step(id);
  expect(await leasing.machines()).toEqual([]);
  await leasing.world.store.jobs.resume(jobId);
  await leasing.until(id, 'serving');
});

test('what a job waits while it is held is no waiting for capacity', async () => {
  await using leasing = await openLeasingWorld({}, { refuse_share: 1 });
  const { jobId, id } = await openOne(leasing);
  await leasing.step(id);
  await leasing.world.store.jobs.pause(jobId, 'me');
  leasing.world.ahead += 30 * MINUTE;
  await leasing.step(id);
  await leasing.world.store.jobs.resume(jobId);
  await leasing.step(id);
  expect((await leasing.world.job(jobId)).outcome).toBeNull();
});

test('a machine goes over to no job that is held', async () => {
  await using leasing = await openLeasingWorld({ maxLeases: 1 });
  const one = await openOne(leasing);
  await leasing.until(one.id, 'serving');
  const other = await openOne(leasing);
  await leasing.step(other.id);
  await leasing.world.store.jobs.pause(other.jobId, 'me');
  await end(leasing, one.jobId);
  await leasing.step(one.id);
  expect(await leasing.machines()).toEqual([]);
  for (let turn = 0; turn < 5; turn += 1) {
    leasing.world.ahead += MINUTE;
    await leasing.step(one.id);
  }
  await leasing.world.store.jobs.resume(other.jobId);
  await leasing.until(other.id, 'serving');
});

test('a job whose machines are all of no use does not lease one after the other for ever', async () => {
  await using leasing = await openLeasingWorld();
  const { jobId, id } = await openOne(leasing);
  leasing.inside.check = async () => 'it shows 0 of 1 GPUs';
  leasing.world.store.leases.isShunned = async () => false;
  for (let turn = 0; turn < 200; turn += 1) {
    if ((await leasing.provision(id)).state === 'releasing') break;
    await leasing.step(id);
    leasing.world.ahead += MINUTE;
  }
  const job = await leasing.world.job(jobId);
  expect(job).toMatchObject({ outcome: 'resource_failed' });
  expect(job.errors).toMatchObject([{ code: 'machines_lost' }]);
  expect(job.errors[0]?.message).toContain('0 of 1 GPUs');
  expect((await leasing.provision(id)).attempts.length).toBeLessThanOrEqual(10);
});

test('a provider that is away ends no job that others have no GPU for', async () => {
  await using leasing = await openLeasingWorld();
  const runpod = managerOf(leasing);
  leasing.leasing.manager = (provider) =>
    provider === 'runpod'
      ? runpod
      : {
          ...runpod,
          provider,
          catalog: async () => {
            throw new SluiceError('Transient', 'lease.unavailable', 'Lambda Cloud is away');
          },
        };
  const { jobId, provisions } = await leasing.plan({
    providers: ['runpod', 'lambdaCloud'],
    gpuTypes: ['NVIDIA Z9000'],
  });
  expect(await leasing.world.job(jobId)).toMatchObject({ state: 'resource_preparing' });
  await leasing.step(provisions[0] ?? '');
  expect(await leasing.world.job(jobId)).toMatchObject({
    outcome: null,
    reason: expect.stringContaining('Lambda Cloud is away'),
  });
});

test('a provider that wants to be asked again at once is not asked without end', async () => {
  await using leasing = await openLeasingWorld();
  const { id } = await openOne(leasing);
  const manager = managerOf(leasing);
  let asked = 0;
  manager.create = async () => {
    asked += 1;
    if (asked > 20) throw new Error('asked without end');
    throw new SluiceError('Transient', 'lease.unavailable', 'too many', { retryAfterMs: 0 });
  };
  await leasing.step(id);
  const { length } = (await leasing.provision(id)).attempts;
  expect(asked).toBeLessThanOrEqual(length);
});

test('a machine that stopped by itself while it booted is destroyed', async () => {
  await using leasing = await openLeasingWorld();
  const { id } = await openOne(leasing);
  const manager = managerOf(leasing);
  const destroyed: string[] = [];
  const { destroy, list } = manager;
  await leasing.step(id);
  const machine = currentAttempt(await leasing.provision(id))?.machine ?? '';
  // A stopped pod keeps its disk, which costs, until somebody ends it.
  manager.list = async (stamp) =>
    (await list(stamp)).map((each) =>
      each.id === machine ? { ...each, state: 'stopping', ssh: null } : each,
    );
  manager.destroy = async (each) => {
    destroyed.push(each);
    return destroy(each);
  };
  leasing.inside.check = async () => {
    throw new SluiceError('Transient', 'ssh.refused', 'nobody listens');
  };
  for (let turn = 0; turn < 3; turn += 1) await leasing.step(id);
  expect(destroyed).toContain(machine);
});

test('a job goes on for days on machines that are taken away now and then', async () => {
  await using leasing = await openLeasingWorld();
  const { jobId } = await openOne(leasing);
  for (let lost = 0; lost < 7; lost += 1) {
    const all = await leasing.world.store.provisions.ofJob(jobId);
    const last = all.at(-1)?.id ?? '';
    const { attempts } = await leasing.until(last, 'serving');
    leasing.world.ahead += 10 * HOUR;
    await leasing.control.act(attempts.at(-1)?.machine ?? '', 'vanish');
    const { engine } = leasing.inside;
    leasing.inside.healthy = false;
    leasing.inside.engine = async () => {
      throw new SluiceError('Transient', 'ssh.refused', 'nobody listens');
    };
    await leasing.until(last, 'releasing');
    Object.assign(leasing.inside, { healthy: true, engine });
  }
  expect((await leasing.world.job(jobId)).outcome).toBeNull();
});

test('a process without settings of a provider releases what never asked for a machine', async () => {
  await using leasing = await openLeasingWorld();
  const { jobId, id } = await openOne(leasing);
  await end(leasing, jobId);
  leasing.world.deps.leasing = null;
  await leasing.step(id);
  expect((await leasing.provision(id)).state).toBe('released');
});

test('MAX_LEASES: a machine that is kept warm for nobody makes room for a job that needs another one', async () => {
  await using leasing = await openLeasingWorld({ maxLeases: 1, keepWarmMs: HOUR });
  const one = await openOne(leasing);
  await leasing.until(one.id, 'serving');
  await end(leasing, one.jobId);
  await leasing.step(one.id);
  const other = await openOne(leasing, { gpuTypes: ['NVIDIA A40'] });
  await leasing.step(other.id);
  expect(await leasing.machines()).toHaveLength(1);
  leasing.world.ahead += 5_000;
  for (let turn = 0; turn < 5; turn += 1) {
    await leasing.step(other.id);
    await leasing.step(one.id);
    leasing.world.ahead += MINUTE;
  }
  expect((await leasing.provision(one.id)).state).toBe('released');
  await leasing.until(other.id, 'serving');
});

test('a machine that is kept warm is given back at once by hand', async () => {
  await using leasing = await openLeasingWorld({ keepWarmMs: HOUR });
  const { jobId, id } = await openOne(leasing);
  await leasing.until(id, 'serving');
  await end(leasing, jobId);
  await leasing.step(id);
  expect(await leasing.machines()).toHaveLength(1);
  await releaseByHand(id, null, leasing.world.deps);
  await leasing.step(id);
  expect(await leasing.machines()).toEqual([]);
});

test('of two deliveries, one asks for a machine: no candidate is tried beside one that is on its way', async () => {
  await using leasing = await openLeasingWorld();
  const gpuTypes = ['NVIDIA L40S', 'NVIDIA H100 80GB HBM3', 'NVIDIA A100 80GB PCIe'];
  const { id } = await openOne(leasing, { gpuTypes });
  const manager = managerOf(leasing);
  const { create } = manager;
  const asked: string[] = [];
  const turn = Promise.withResolvers<undefined>();
  manager.create = async (wish) => {
    asked.push(wish.offer);
    if (asked.length === 1) throw new SluiceError('Transient', 'lease.unavailable', 'no turn');
    await turn.promise;
    return create(wish);
  };
  const { provisions } = leasing.world.store;
  const ofJob = provisions.ofJob.bind(provisions);
  const others: Promise<void>[] = [];
  // Another delivery comes when the first attempt is over, and before the first delivery begins the next one.
  provisions.ofJob = async (jobId) => {
    if (asked.length === 1 && others.length === 0) {
      others.push(leasing.step(id));
      await until(() => asked.length === 2, { what: 'the other create' });
    }
    return ofJob(jobId);
  };
  const first = leasing.step(id);
  await Promise.race([first, until(() => asked.length === 3, { what: 'a third create' })]);
  turn.resolve(undefined);
  await Promise.all([first, ...others]);
  expect(asked).toHaveLength(2);
  expect(await leasing.machines()).toHaveLength(1);
  expect(await leasing.provision(id)).toMatchObject({ state: 'booting', current: 2 });
});
