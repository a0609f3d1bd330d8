import { expect, test } from 'vitest';
import { permanent, transient } from '../../src/domain/errors.ts';
import type { CallerMachine } from '../../src/domain/lease.ts';
import { stopJob } from '../../processors/settle.ts';
import { openLeasingWorld, resourcesOf } from '../support/leasing-world.ts';
import type { LeasingWorld } from '../support/leasing-world.ts';

const MINUTE = 60_000;
const AWAY = transient('ssh.unreachable', 'root@192.0.2.9:22 cannot be reached (EHOSTUNREACH)');
const MACHINE: CallerMachine = {
  login: { host: '192.0.2.9', port: 22, user: 'root' },
  hostKey: null,
};

/** A job for a machine of its caller's, and its only provision. */
async function plan(
  leasing: LeasingWorld,
  machine: Partial<CallerMachine> = {},
): Promise<{ jobId: string; id: string }> {
  const { jobId, provisions } = await leasing.plan({ machine: { ...MACHINE, ...machine } });
  expect(provisions).toHaveLength(1);
  return { jobId, id: provisions[0] ?? '' };
}

async function cancel({ world }: LeasingWorld, jobId: string): Promise<void> {
  await stopJob(jobId, { outcome: 'cancelled', event: 'enough' }, world.deps);
}

/** Has the machine's stops counted from now on; each does what `stop` does. */
function countStops({ inside }: LeasingWorld, stop: () => Promise<void> = async () => {}) {
  const count = { stops: 0 };
  inside.stop = async () => {
    count.stops += 1;
    await stop();
  };
  return count;
}

test('nothing is leased for it, no seat is taken, and its engine is stopped once', async () => {
  await using leasing = await openLeasingWorld({ maxLeases: 1 });
  const count = countStops(leasing);
  const { jobId, id } = await plan(leasing);
  const serving = await leasing.until(id, 'serving');
  expect(serving).toMatchObject({
    owner: 'caller',
    provider: 'runpod',
    attempts: [],
    login: MACHINE.login,
    hostKey: expect.stringMatching(/^ssh-ed25519 /),
  });
  expect((await leasing.world.job(jobId)).state).toBe('in_progress');
  const leased = await leasing.plan();
  await leasing.until(leased.provisions[0] ?? '', 'booting');
  expect(await leasing.machines()).toHaveLength(1);
  await cancel(leasing, jobId);
  await leasing.until(id, 'released');
  expect(count.stops).toBe(1);
  expect(await leasing.machines()).toHaveLength(1);
});

test('a machine that is away is waited for, and the first key that it shows is the one for all time', async () => {
  await using leasing = await openLeasingWorld();
  const { inside, world } = leasing;
  const shown = inside.hostKey;
  inside.hostKey = async () => Promise.reject(AWAY);
  const { jobId, id } = await plan(leasing);
  await leasing.step(id);
  world.ahead += 5 * 60 * MINUTE;
  await leasing.step(id);
  expect(await leasing.provision(id)).toMatchObject({ state: 'intended' });
  expect((await world.job(jobId)).reason).toMatch(
    /^The machine that you named is waited for: root@/,
  );
  inside.hostKey = shown;
  const { hostKey } = await leasing.until(id, 'starting');
  // Another provision of the job trusts nobody else.
  inside.hostKey = async () => 'ssh-ed25519 another';
  await world.deps.advanceProvision(await leasing.provision(id), 'releasing');
  await world.store.provisions.create({
    id: `${id}1`,
    job: jobId,
    slot: 0,
    provider: 'runpod',
    owner: 'caller',
    address: `lease://${id}1`,
  });
  expect((await leasing.until(`${id}1`, 'starting')).hostKey).toBe(hostKey);
});

test('it need not be of a kind that this server leases', async () => {
  await using leasing = await openLeasingWorld();
  const machine = { ...MACHINE, hostKey: 'SHA256:named' };
  const { spec } = resourcesOf();
  const rare = { ...spec, accelerator: { ...spec.accelerator, type: 'Home-made 9000' } };
  const { provisions } = await leasing.plan({ machine, spec: rare });
  const { attempts } = await leasing.until(provisions[0] ?? '', 'serving');
  expect(attempts).toEqual([]);
});

test('a named key is used without asking the machine for one', async () => {
  await using leasing = await openLeasingWorld();
  leasing.inside.hostKey = async () => Promise.reject(AWAY);
  const { id } = await plan(leasing, { hostKey: 'SHA256:named' });
  expect((await leasing.until(id, 'starting')).hostKey).toBe('SHA256:named');
});

test('an engine that served has all its time to come back, however long ago it was started', async () => {
  await using leasing = await openLeasingWorld();
  const { inside, world } = leasing;
  const { provisions } = await leasing.plan();
  const { jobId, id } = await plan(leasing);
  for (const each of [provisions[0] ?? '', id]) {
    inside.healthy = true;
    await leasing.until(each, 'serving');
    world.ahead += 40 * MINUTE;
    inside.healthy = false;
    await leasing.until(each, 'starting');
    await leasing.step(each);
    expect((await leasing.provision(each)).state).toBe('starting');
  }
  const engine = inside.engine;
  inside.engine = async () => Promise.reject(AWAY);
  await leasing.step(id);
  world.ahead += 40 * MINUTE;
  inside.engine = engine;
  await leasing.step(id);
  expect(await leasing.provision(id)).toMatchObject({ state: 'starting', unreachableSince: null });
  world.ahead += 31 * MINUTE;
  await leasing.step(id);
  expect((await world.job(jobId)).errors).toMatchObject([{ code: 'engine_not_ready' }]);
});

test("somebody else's engine ends the job, and is left alone", async () => {
  await using leasing = await openLeasingWorld();
  const count = countStops(leasing);
  leasing.inside.engine = async () =>
    Promise.reject(permanent('engine.other_command', 'it has another engine: stop that one first'));
  const { jobId, id } = await plan(leasing);
  await leasing.until(id, 'released');
  expect((await leasing.world.job(jobId)).errors).toMatchObject([{ code: 'engine.other_command' }]);
  expect(count.stops).toBe(0);
});

test('an engine that cannot be stopped is tried for ten minutes, and then named', async () => {
  await using leasing = await openLeasingWorld();
  const count = countStops(leasing, async () => Promise.reject(AWAY));
  const { jobId, id } = await plan(leasing);
  await leasing.until(id, 'serving');
  await cancel(leasing, jobId);
  await leasing.step(id);
  await leasing.step(id);
  expect(await leasing.provision(id)).toMatchObject({
    state: 'releasing',
    reason: expect.stringContaining('cannot be reached'),
  });
  leasing.world.ahead += 11 * MINUTE;
  await leasing.step(id);
  expect(await leasing.provision(id)).toMatchObject({
    state: 'released',
    reason: expect.stringMatching(/^The engine may still run on 192\.0\.2\.9: /),
  });
  expect(count.stops).toBe(3);
});

test('a start that comes after the stop is undone', async () => {
  await using leasing = await openLeasingWorld();
  const count = countStops(leasing);
  const { jobId, id } = await plan(leasing);
  await leasing.until(id, 'starting');
  leasing.inside.engine = async () => {
    await cancel(leasing, jobId);
    await leasing.until(id, 'released');
    return { is: 'running' };
  };
  await leasing.step(id);
  expect(count.stops).toBe(2);
});

test('who leaves a machine waits for one that has claimed it, and leaves the engine to one that uses it', async () => {
  await using leasing = await openLeasingWorld();
  const count = countStops(leasing);
  const { provisions } = leasing.world.store;
  const [first, second] = [await plan(leasing), await plan(leasing)];
  await leasing.until(first.id, 'serving');
  await leasing.until(second.id, 'starting');
  await provisions.keep(second.id, { claimedAt: 1 });
  await cancel(leasing, first.jobId);
  await leasing.step(first.id);
  expect((await leasing.provision(first.id)).state).toBe('releasing');
  // It sees that the first one leaves, and waits in its turn.
  await leasing.step(second.id);
  expect(await leasing.provision(second.id)).toMatchObject({ claimedAt: null, engineAt: null });
  await leasing.step(first.id);
  expect((await leasing.provision(first.id)).state).toBe('released');
  expect(count.stops).toBe(1);

  await leasing.until(second.id, 'serving');
  const third = await plan(leasing);
  await leasing.until(third.id, 'serving');
  await cancel(leasing, second.jobId);
  await leasing.until(second.id, 'released');
  expect(count.stops).toBe(1);
  await cancel(leasing, third.jobId);
  await leasing.until(third.id, 'released');
  expect(count.stops).toBe(2);
});
