import { describe, expect, test } from 'vitest';
import { settle, stopJob } from '../../processors/settle.ts';
import { SluiceError } from '../../src/domain/errors.ts';
import { currentAttempt } from '../../src/domain/provision.ts';
import { openLeasingWorld } from '../support/leasing-world.ts';
import type { LeasingWorld } from '../support/leasing-world.ts';

const MINUTE = 60_000;

function first({ provisions: [id = ''] }: { provisions: string[] }): string {
  return id;
}

/** Delivers a releasing provision until it is released, with a minute between the looks. */
async function untilReleased({ world, step, provision }: LeasingWorld, id: string): Promise<void> {
  for (let turn = 0; turn < 20; turn += 1) {
    if ((await provision(id)).state === 'released') return;
    await step(id);
    world.ahead += MINUTE;
  }
  throw new Error(`${id} is not released: ${JSON.stringify(await provision(id))}`);
}

async function cancel({ world }: LeasingWorld, jobId: string): Promise<void> {
  await stopJob(jobId, { outcome: 'cancelled', event: 'Cancelled.' }, world.deps);
}

test('a machine is asked for, reached, given an engine, and given back', async () => {
  await using leasing = await openLeasingWorld();
  const { world, machines, until } = leasing;
  const { jobId, provisions } = await leasing.plan();
  expect(provisions).toHaveLength(1);
  const id = provisions[0] ?? '';
  await until(id, 'starting');
  expect(await world.job(jobId)).toMatchObject({ state: 'submitting' });
  const serving = await until(id, 'serving');
  expect(leasing.inside.started).toBe(1);
  expect(await world.job(jobId)).toMatchObject({ state: 'in_progress' });
  const [machine = ''] = await machines();
  expect(currentAttempt(serving)).toMatchObject({ n: 1, state: 'there', machine, gpuCount: 1 });
  await cancel(leasing, jobId);
  expect((await leasing.provision(id)).state).toBe('releasing');
  await leasing.step(id);
  expect(await machines()).toEqual([]);
  // An id that is not known any more is no proof: three lists over a minute and a half are.
  expect((await leasing.provision(id)).state).toBe('releasing');
  await untilReleased(leasing, id);
  expect((await leasing.provision(id)).attempts).toMatchObject([{ state: 'gone', machine }]);
});

describe('of a create of which nobody knows what became', () => {
  test('the machine is found by its name, and no other is asked for', async () => {
    await using leasing = await openLeasingWorld();
    await leasing.control.setFaults([{ kind: 'error_after', op: 'create', count: 1 }]);
    const id = first(await leasing.plan());
    await leasing.step(id);
    expect(currentAttempt(await leasing.provision(id))).toMatchObject({ state: 'unknown' });
    await leasing.until(id, 'starting');
    expect(await leasing.machines()).toHaveLength(1);
    expect((await leasing.provision(id)).attempts).toHaveLength(1);
  });

  test('that made none, the next attempt comes after a minute of looking', async () => {
    await using leasing = await openLeasingWorld();
    await leasing.control.setFaults([{ kind: 'error', op: 'create', count: 1 }]);
    const id = first(await leasing.plan());
    for (let turn = 0; turn < 5; turn += 1) await leasing.step(id);
    expect(await leasing.machines()).toEqual([]);
    leasing.world.ahead += 2 * MINUTE;
    await leasing.until(id, 'starting');
    const { attempts } = await leasing.provision(id);
    expect(attempts.map(({ state }) => state)).toEqual(['none', 'there']);
    expect(await leasing.machines()).toHaveLength(1);
  });

  test('whose asker died, the machine is found by its name', async () => {
    await using leasing = await openLeasingWorld();
    const id = first(await leasing.plan());
    const { provisions } = leasing.world.store;
    const written = provisions.attempt;
    provisions.attempt = async () => {
      throw new Error('killed before it could write the id down');
    };
    await expect(leasing.step(id)).rejects.toThrow('killed');
    provisions.attempt = written;
    expect(currentAttempt(await leasing.provision(id))).toMatchObject({
      state: 'asked',
      machine: null,
    });
    leasing.world.ahead += 10_000;
    await leasing.until(id, 'starting');
    expect(await leasing.machines()).toHaveLength(1);
  });

  test('that comes when the job is over already, the machine is given back', async () => {
    await using leasing = await openLeasingWorld();
    const { jobId, provisions } = await leasing.plan();
    const id = provisions[0] ?? '';
    const manager = leasing.leasing.manager('runpod');
    if (manager === null) throw new Error('there is a manager');
    const { create } = manager;
    manager.create = async (wish) => {
      const machine = await create(wish);
      await cancel(leasing, jobId);
      return machine;
    };
    await leasing.step(id);
    expect(await leasing.machines()).toEqual([]);
    expect((await leasing.provision(id)).attempts).toMatchObject([{ state: 'leaving' }]);
    await untilReleased(leasing, id);
  });

  test('that may still come, a provision is not released', async () => {
    await using leasing = await openLeasingWorld({}, { list_lag_ms: 1_500 });
    await leasing.control.setFaults([{ kind: 'hang_after', op: 'create', delay_ms: 50, count: 1 }]);
    const { jobId, provisions } = await leasing.plan();
    const id = provisions[0] ?? '';
    await leasing.step(id);
    await cancel(leasing, jobId);
    for (let turn = 0; turn < 5; turn += 1) await leasing.step(id);
    expect((await leasing.provision(id)).state).toBe('releasing');
    expect(await leasing.machines()).toHaveLength(1);
    await expect
      .poll(
        async () => {
          await leasing.step(id);
          return leasing.machines();
        },
        { timeout: 20_000 },
      )
      .toEqual([]);
    await untilReleased(leasing, id);
  });
});

describe('without capacity', () => {
  const EMPTY = { 'NVIDIA L40S': 0, 'NVIDIA A40': 0 };

  test('every candidate is tried, then the job waits, and ends when it has waited for long', async () => {
    await using leasing = await openLeasingWorld({}, { refuse_share: 1 });
    const resources = { gpuTypes: ['NVIDIA L40S', 'NVIDIA A40'] };
    const { jobId, provisions } = await leasing.plan(resources);
    const id = provisions[0] ?? '';
    await leasing.step(id);
    const { attempts } = await leasing.provision(id);
    expect(attempts.map(({ gpuType }) => gpuType).toSorted()).toEqual([
      'NVIDIA A40',
      'NVIDIA L40S',
    ]);
    expect(attempts.every(({ state }) => state === 'none')).toBe(true);
    expect((await leasing.world.job(jobId)).reason).toMatch(/instances available|capacity/i);
    leasing.world.ahead += 30_000;
    await leasing.step(id);
    // What certainly came to nothing is tried again under its number.
    expect((await leasing.provision(id)).attempts).toHaveLength(2);
    expect(await leasing.world.job(jobId)).toMatchObject({ state: 'resource_preparing' });
    leasing.world.ahead += 31_000;
    await leasing.step(id);
    const job = await leasing.world.job(jobId);
    expect(job).toMatchObject({ state: 'cancelling', outcome: 'resource_failed' });
    expect(job.errors).toMatchObject([{ code: 'NoCapacity' }]);
    expect(job.errors[0]?.message).toContain('CAPACITY_WAIT');
  });

  test('a job goes on as soon as there is some', async () => {
    await using leasing = await openLeasingWorld({}, { capacity: EMPTY });
    const { jobId, provisions } = await leasing.plan();
    const id = provisions[0] ?? '';
    await leasing.step(id);
    expect(await leasing.world.job(jobId)).toMatchObject({ state: 'resource_preparing' });
    await leasing.control.setKnobs({ capacity: {} });
    leasing.world.ahead += 31_000;
    await leasing.until(id, 'serving');
    expect((await leasing.provision(id)).waitingSince).toBeNull();
  });
});

test('a GPU that no provider has ends the job before anything is leased', async () => {
  await using leasing = await openLeasingWorld();
  const { jobId, provisions } = await leasing.plan({ gpuTypes: ['NVIDIA Z9000'] });
  expect(provisions).toEqual([]);
  const job = await leasing.world.job(jobId);
  expect(job).toMatchObject({ state: 'resource_failed' });
  expect(job.errors).toMatchObject([{ code: 'NoGpuType' }]);
  expect(job.errors[0]?.message).toContain('accelerator.type');
});

describe('a machine', () => {
  test('that is of no use is given back, and the next one asked for', async () => {
    await using leasing = await openLeasingWorld();
    const id = first(await leasing.plan());
    let looks = 0;
    leasing.inside.check = async () => (looks++ === 0 ? 'it shows 0 of 1 GPUs' : null);
    // All machines of the simulator have one address, and a host of no use is shunned.
    leasing.world.store.leases.isShunned = async () => false;
    await leasing.until(id, 'starting');
    const { attempts } = await leasing.provision(id);
    expect(attempts).toMatchObject([{ error: expect.stringContaining('0 of 1 GPUs') }, { n: 2 }]);
    expect(await leasing.machines()).toEqual([attempts[1]?.machine]);
  });

  test('whose disk is too small for the weights is of no use, unless a cache keeps these', async () => {
    await using leasing = await openLeasingWorld();
    const free = 20;
    const needs: number[] = [];
    leasing.inside.check = async ({ diskGb }) => {
      needs.push(diskGb);
      return free < diskGb ? `its disk has ${free} GB left, and ${diskGb} GB are needed` : null;
    };
    leasing.world.store.leases.isShunned = async () => false;
    const id = first(await leasing.plan());
    for (let turn = 0; turn < 4; turn += 1) await leasing.step(id);
    // Of 40 GB that were asked for, file systems and images take some.
    expect(needs).toEqual([32]);
    expect((await leasing.provision(id)).attempts[0]?.error).toContain('32 GB are needed');
    leasing.leasing.modelCache = () => 'volume';
    await leasing.until(id, 'starting');
    expect(needs).toEqual([32, 1]);
  });

  test('that is not reached in time is given back', async () => {
    await using leasing = await openLeasingWorld();
    const id = first(await leasing.plan());
    leasing.inside.check = async () => {
      throw new SluiceError('Transient', 'ssh.refused', 'nobody listens');
    };
    for (let turn = 0; turn < 5; turn += 1) await leasing.step(id);
    expect(await leasing.provision(id)).toMatchObject({
      state: 'booting',
      reason: 'nobody listens (ssh.refused)',
    });
    leasing.world.ahead += 21 * MINUTE;
    for (let turn = 0; turn < 3; turn += 1) await leasing.step(id);
    const { attempts } = await leasing.provision(id);
    expect(attempts).toHaveLength(2);
    expect(await leasing.machines()).toEqual([attempts[1]?.machine]);
  });

  test('on a host that gave one of no use is given back at once', async () => {
    await using leasing = await openLeasingWorld();
    const id = first(await leasing.plan());
    await leasing.world.store.leases.shun('runpod 192.0.2.7', MINUTE);
    for (let turn = 0; turn < 4; turn += 1) await leasing.step(id);
    const { attempts } = await leasing.provision(id);
    expect(attempts[0]?.error).toContain('of no use before');
  });

  test('that vanishes in mid-run is replaced', async () => {
    await using leasing = await openLeasingWorld();
    const { jobId, provisions } = await leasing.plan();
    const id = provisions[0] ?? '';
    const { attempts } = await leasing.until(id, 'serving');
    await leasing.control.act(attempts[0]?.machine ?? '', 'vanish');
    leasing.inside.healthy = false;
    leasing.inside.engine = async () => {
      throw new SluiceError('Transient', 'ssh.refused', 'nobody listens');
    };
    await leasing.step(id);
    expect((await leasing.provision(id)).state).toBe('starting');
    await leasing.step(id);
    expect((await leasing.provision(id)).state).toBe('releasing');
    const all = await leasing.world.store.provisions.ofJob(jobId);
    expect(all.map(({ state }) => state)).toEqual(['releasing', 'intended']);
    leasing.inside.healthy = true;
    leasing.inside.engine = async () => ({ is: 'running' });
    await leasing.until(all[1]?.id ?? '', 'serving');
    expect(await leasing.world.job(jobId)).toMatchObject({ state: 'in_progress' });
    expect(await leasing.machines()).toHaveLength(1);
  });
});

describe('an engine', () => {
  const CRASH = { is: 'exited', code: 1, lastWords: 'loading\nCUDA out of memory\n' } as const;

  test('that ends while it starts ends the job, with its last words', async () => {
    await using leasing = await openLeasingWorld();
    const { jobId, provisions } = await leasing.plan();
    const id = provisions[0] ?? '';
    leasing.inside.engine = async () => CRASH;
    await leasing.until(id, 'releasing');
    const job = await leasing.world.job(jobId);
    expect(job).toMatchObject({ state: 'cancelling', outcome: 'submit_failed' });
    expect(job.errors).toMatchObject([{ code: 'engine_crashed' }]);
    expect(job.errors[0]?.message).toContain('CUDA out of memory');
    const events = await leasing.world.store.jobs.events(jobId);
    expect(events.find(({ kind }) => kind === 'engine')?.message).toContain('out of memory');
  });

  test('that ends after it served is started again, and replaced when that is no use', async () => {
    await using leasing = await openLeasingWorld();
    const { jobId, provisions } = await leasing.plan();
    const id = provisions[0] ?? '';
    await leasing.until(id, 'serving');
    leasing.inside.healthy = false;
    leasing.inside.engine = async () => CRASH;
    await leasing.step(id);
    await leasing.step(id);
    expect(await leasing.provision(id)).toMatchObject({ state: 'starting', crashes: 1 });
    expect(leasing.inside.started).toBe(2);
    await leasing.until(id, 'releasing');
    expect((await leasing.world.job(jobId)).outcome).toBeNull();
    expect(await leasing.world.store.provisions.ofJob(jobId)).toHaveLength(2);
  });

  test('that is not healthy in time ends the job', async () => {
    await using leasing = await openLeasingWorld();
    const { jobId, provisions } = await leasing.plan();
    const id = provisions[0] ?? '';
    leasing.inside.healthy = false;
    await leasing.until(id, 'starting');
    await leasing.step(id);
    leasing.world.ahead += 31 * MINUTE;
    await leasing.until(id, 'releasing');
    expect((await leasing.world.job(jobId)).errors).toMatchObject([{ code: 'engine_not_ready' }]);
  });
});

test('a paused job gives its machines back after a while, and gets others when it is resumed', async () => {
  await using leasing = await openLeasingWorld();
  const { jobId, provisions } = await leasing.plan();
  const id = provisions[0] ?? '';
  await leasing.until(id, 'serving');
  await leasing.world.store.jobs.pause(jobId, 'me');
  await settle(jobId, leasing.world.deps, { replace: true });
  expect((await leasing.provision(id)).state).toBe('serving');
  leasing.world.ahead += 2 * MINUTE;
  await settle(jobId, leasing.world.deps, { replace: true });
  expect((await leasing.provision(id)).state).toBe('releasing');
  expect(await leasing.world.job(jobId)).toMatchObject({ state: 'resource_preparing' });
  await leasing.world.store.jobs.resume(jobId);
  await settle(jobId, leasing.world.deps, { replace: true });
  const all = await leasing.world.store.provisions.ofJob(jobId);
  expect(all.map(({ state }) => state)).toEqual(['releasing', 'intended']);
});

test('no more machines are leased than may be', async () => {
  await using leasing = await openLeasingWorld({ maxLeases: 2 });
  const { jobId, provisions } = await leasing.plan({ replicas: 3 });
  for (const id of provisions) for (let turn = 0; turn < 3; turn += 1) await leasing.step(id);
  expect(await leasing.machines()).toHaveLength(2);
  const waiting = await leasing.provision(provisions[2] ?? '');
  expect(waiting).toMatchObject({
    state: 'intended',
    reason: expect.stringContaining('MAX_LEASES'),
  });
  await cancel(leasing, jobId);
  for (const id of provisions) await untilReleased(leasing, id);
  expect(await leasing.world.store.leases.seated()).toEqual([]);
});
