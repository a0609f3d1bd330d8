import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { createCollector } from '../../processors/collect.ts';
import { createInventorySweep } from '../../processors/inventory.ts';
import { machineName } from '../../src/domain/lease.ts';
import { call, podBody } from '../simulators/runpod/asking.ts';
import { HOUR, MINUTE, openInventoryWorld, startClouds } from '../support/inventory-world.ts';
import type { Clouds, InventoryWorld } from '../support/inventory-world.ts';

/** Provisions. */
const A = 'a';
const B = 'b';
const DESTROYED = 'a machine that nobody needs is destroyed';
const LEFT_ALONE = 'a machine that no record names is left alone';

let clouds: Clouds;
let world: InventoryWorld;
beforeEach(async () => {
  clouds = await startClouds();
  world = await openInventoryWorld(clouds);
});
afterEach(async () => {
  await world[Symbol.asyncDispose]();
  await clouds[Symbol.asyncDispose]();
});

/** Lets the first sighting of an orphan have been so long ago, by the clock of the next look. */
async function seenBefore(ms: number, { redis, namespace, ahead } = world): Promise<void> {
  const key = `${namespace}:orphans`;
  for (const member of await redis.zrange(key, '0', '-1')) {
    await redis.zadd(key, Date.now() + ahead - ms, member);
  }
}

/** Two looks, far enough apart for all that is an orphan. */
async function lookTwice(deployment: InventoryWorld): Promise<void> {
  deployment.ahead = HOUR;
  await deployment.look();
  await seenBefore(6 * MINUTE, deployment);
  await deployment.look();
}

describe('a machine that a record names', () => {
  test('stays as long as it is needed, and goes at the first look after', async () => {
    const wanted = await world.create('runpod', A);
    const released = await world.create('lambdaCloud', B);
    await world.record(A, [{ machine: wanted }]);
    await world.record(B, [{ machine: released, provider: 'lambdaCloud' }]);
    await world.look();
    expect((await world.there()).toSorted()).toEqual([wanted, released].toSorted());
    expect(await world.metric('sluice_machines{provider="runpod",state="running"}')).toMatch(/ 1$/);
    await world.record(B, [{ machine: released, provider: 'lambdaCloud' }], { state: 'released' });
    await world.look();
    expect(await world.there()).toEqual([wanted]);
    expect(world.logs).toContainEqual({
      level: 'warn',
      message: DESTROYED,
      provider: 'lambdaCloud',
      machine: released,
      name: expect.stringMatching(new RegExp(`^${world.stamp}-[0-9a-z]{16}-1-`)),
      price_per_hour: expect.any(Number),
      reason: 'its provision is released',
      tries: 1,
    });
    await world.look();
    expect(await world.metric('sluice_leaked_machines{provider="lambdaCloud"}')).toMatch(/ 0$/);
  });

  test('goes when its provision has gone on to the next attempt', async () => {
    const [first, second] = [await world.create('runpod', A), await world.create('runpod', A, 2)];
    await world.record(A, [{ machine: first, state: 'unknown' }, { machine: second }]);
    await world.look();
    expect(await world.there()).toEqual([second]);
  });

  test('has its id written where nobody got the answer of its create', async () => {
    const id = await world.create('runpod', A);
    await world.record(A, [{ state: 'unknown' }], { state: 'creating' });
    await world.look();
    expect((await world.read(A))?.attempts).toMatchObject([
      { machine: id, state: 'there', createdAt: expect.any(Number), region: expect.any(String) },
    ]);
    expect(await world.there()).toEqual([id]);
  });

  test('is kept once where there are several of its name', async () => {
    const key = world.store.provisions.keyOf(world.id(A));
    const name = machineName(world.stamp, key, 1, Date.now());
    const create = () => call(`${clouds.runpod.url}/v2`, 'POST', '/pods', podBody(name));
    const ids = [];
    for (let n = 0; n < 3; n += 1) ids.push((await create()).body.id);
    await world.record(A, [{ name, state: 'asked' }], { state: 'creating' });
    await world.look();
    expect(await world.there()).toEqual([ids[0]]);
    expect((await world.read(A))?.attempts[0]?.machine).toBe(ids[0]);
  });

  test('that another job took over stays until that one has given it back', async () => {
    const id = await world.create('runpod', A);
    const left = { state: 'released', handedTo: B } as const;
    await world.record(A, [{ machine: id, state: 'handed' }], left);
    const name = (await world.read(A))?.attempts[0]?.name ?? '';
    await world.record(B, [{ machine: id, name }]);
    await world.look();
    // The record of who leased it goes with its job.
    await world.erase(A);
    await lookTwice(world);
    expect(await world.there()).toEqual([id]);
    expect(world.said('warn')).toEqual([]);
    // Whoever has it now is found by the name of who leased it.
    await world.record(A, [{ machine: id, state: 'handed' }], left);
    await world.record(B, [{ machine: id, name }], { state: 'released' });
    await world.look();
    expect(await world.there()).toEqual([]);
  });
});

test('a machine that is handed over is left alone until its taker is known', async () => {
  const id = await world.create('runpod', A);
  await world.record(B, []);
  await world.record(A, [{ machine: id }], { state: 'releasing', handedTo: B });
  await world.look();
  expect(world.said('warn')).toEqual([]);
  // By then its taker has it on record, unless Redis has lost that.
  for (const state of ['handed', 'there'] as const) {
    await world.record(A, [{ machine: id, state }], { state: 'released', handedTo: B });
    await world.look();
    expect([state, await world.there()]).toEqual([state, [id]]);
  }
  expect(new Set(world.said('warn'))).toEqual(new Set([LEFT_ALONE]));
});

describe('a destroy', () => {
  test('that the provider confirmed and lost is repeated, and not at every look', async () => {
    const id = await world.create('runpod', A);
    await world.record(A, [{ machine: id }], { state: 'released' });
    await clouds.runpod.control.setFaults([{ kind: 'lost', op: 'terminate', count: 1 }]);
    const sweep = createInventorySweep('a', world.deps);
    const { signal } = new AbortController();
    await sweep.round(signal);
    await sweep.round(signal);
    expect(await world.there()).toEqual([id]);
    const [found] = await clouds.runpod.control.inventory();
    expect(found?.terminate_asked_at).toHaveLength(1);
    expect(await world.metric('sluice_leaked_machines{provider="runpod"}')).toMatch(/ 1$/);
    world.ahead += 16_000;
    await sweep.round(signal);
    expect(await world.there()).toEqual([]);
    expect(world.said('warn')).toEqual([DESTROYED, DESTROYED]);
  });

  test('that has no effect for 10 minutes is an error', async () => {
    const id = await world.create('runpod', A);
    await world.record(A, [{ machine: id }], { state: 'released' });
    await clouds.runpod.control.setFaults([{ kind: 'lost', op: 'terminate' }]);
    await world.look();
    world.ahead = 9 * MINUTE;
    await world.look('a');
    expect(world.said('error')).toEqual([]);
    world.ahead = 10 * MINUTE + 1_000;
    // Who has the lease then may be another process.
    await world.redis.del(`${world.namespace}:machine-sweep`);
    await world.look('b');
    expect(world.logs).toContainEqual(
      expect.objectContaining({ level: 'error', machine: id, minutes: 10 }),
    );
  });

  test('that fails does not keep the others', async () => {
    const ids = [await world.create('runpod', A), await world.create('runpod', B)];
    await world.record(A, [{ machine: ids[0] ?? '' }], { state: 'released' });
    await world.record(B, [{ machine: ids[1] ?? '' }], { state: 'released' });
    await clouds.runpod.control.setFaults([{ kind: 'error', op: 'terminate', count: 1 }]);
    await world.look();
    expect(await world.there()).toHaveLength(1);
  });

  test('is not done on what is wanted again by the time of it', async () => {
    const id = await world.create('runpod', A);
    await world.record(A, [{ machine: id }], { state: 'released' });
    const { unreleased } = world.deps.store.provisions;
    let looks = 0;
    world.deps.store.provisions.unreleased = async function* records() {
      looks += 1;
      if (looks === 2) await world.record(A, [{ machine: id }]);
      yield* unreleased();
    };
    await world.look();
    expect(looks).toBe(2);
    expect(await world.there()).toEqual([id]);
    expect(world.said('warn')).toEqual([]);
  });
});

describe('a machine that no record names', () => {
  test('goes when it is 15 minutes old and was found so 5 minutes before', async () => {
    const id = await world.create('runpod', A);
    await world.look();
    expect(world.logs).toContainEqual(
      expect.objectContaining({ message: LEFT_ALONE, reason: 'it is younger than 15 minutes' }),
    );
    world.ahead = HOUR;
    await seenBefore(4 * MINUTE);
    await world.look();
    expect(await world.there()).toEqual([id]);
    expect(await world.metric('sluice_leaked_machines{provider="runpod"}')).toMatch(/ 1$/);
    await seenBefore(5 * MINUTE + 1_000);
    await world.look();
    expect(await world.there()).toEqual([]);
  });

  test('is no longer known as one once a record names it', async () => {
    const id = await world.create('runpod', A);
    world.ahead = HOUR;
    await world.look();
    await world.record(A, [{ machine: id }]);
    await world.look();
    expect(await world.redis.exists(`${world.namespace}:orphans`)).toBe(0);
  });

  test('of a Redis that came back empty is only reported, until a person confirms', async () => {
    await using empty = await openInventoryWorld(clouds, {
      stamp: world.stamp,
      over: world.folder,
    });
    const id = await empty.create('runpod', A);
    await lookTwice(empty);
    expect(await empty.there()).toEqual([id]);
    expect(empty.logs).toContainEqual(
      expect.objectContaining({
        message: LEFT_ALONE,
        machine: id,
        reason: expect.stringMatching(/lost its data.*run sluice gc --confirm\.$/),
      }),
    );
    expect(await empty.metric('sluice_leaked_machines{provider="runpod"}')).toMatch(/ 1$/);
    const times = { segmentKeepMs: HOUR, orphanAgeMs: HOUR, everyMs: HOUR };
    const never = { jobRetentionMs: null, fileRetentionMs: null };
    const { storage, store } = empty;
    const deps = { ...empty.deps, ...times, ...never, storage, store };
    const wish = { dryRun: false, confirm: true };
    await createCollector('gc', deps).run(wish, new AbortController().signal);
    await empty.look();
    expect(await empty.there()).toEqual([]);
  });

  test('is only reported while a record cannot be read, which may name it', async () => {
    const id = await world.create('runpod', A);
    await world.record(B, [{ machine: 'x' }]);
    const { get } = world.deps.store.provisions;
    world.deps.store.provisions.get = async (provision) => {
      if (provision === world.id(B)) throw new Error('damaged');
      return get(provision);
    };
    await lookTwice(world);
    expect(await world.there()).toEqual([id]);
    expect(world.logs).toContainEqual(
      expect.objectContaining({
        reason: `The record of provision ${world.id(B)} cannot be read.`,
      }),
    );
  });

  test('is left to the deployment whose it is', async () => {
    await using other = await openInventoryWorld(clouds);
    const ours = new Set([await world.create('runpod', A), await world.create('lambdaCloud', B)]);
    const theirs = [await other.create('runpod', A), await other.create('lambdaCloud', B)];
    await call(`${clouds.runpod.url}/v2`, 'POST', '/pods', podBody('training'));
    await lookTwice(world);
    const left = await other.there();
    expect(left).toEqual(expect.arrayContaining(theirs));
    expect(left.filter((id) => ours.has(id))).toEqual([]);
    await lookTwice(other);
    expect(await other.there()).toHaveLength(1);
  });
});

describe('a sweeper', () => {
  test.each([
    ['and another one has it', 'other'],
    ['and nobody has it', null],
  ])('that lost its lease between look and destroy %s destroys nothing', async (_what, taker) => {
    const id = await world.create('runpod', A);
    const named = await world.create('runpod', B);
    await world.record(B, [{ machine: named }], { state: 'released' });
    world.ahead = HOUR;
    const { destroyed } = world.store.machines;
    // It sleeps when all is decided, right before it destroys.
    let notes = 0;
    async function note(machine: Parameters<typeof destroyed.note>[0]): Promise<number> {
      notes += 1;
      await world.redis.del(`${world.namespace}:machine-sweep`);
      if (taker !== null) await world.store.machines.sweep.lease(taker, MINUTE);
      return destroyed.note(machine);
    }
    world.deps.store.machines = { ...world.store.machines, destroyed: { ...destroyed, note } };
    await world.look();
    expect(notes).toBe(1);
    expect((await world.there()).toSorted()).toEqual([id, named].toSorted());
    expect(world.said('warn')).not.toContain(DESTROYED);
  });

  test('without the lease does nothing and tells no numbers', async () => {
    const id = await world.create('runpod', A);
    await world.record(A, [{ machine: id }], { state: 'released' });
    expect(await world.store.machines.sweep.lease('other', MINUTE)).toBe(true);
    expect(await world.look()).toBe(false);
    expect(await world.there()).toEqual([id]);
    expect(await world.metric('sluice_machines{')).toBeUndefined();
  });

  test('that cannot list one provider says so, and compares the others', async () => {
    const ids = [await world.create('runpod', A), await world.create('lambdaCloud', B)];
    await world.record(A, [{ machine: ids[0] ?? '' }], { state: 'released' });
    const lambda = { provider: 'lambdaCloud', machine: ids[1] ?? '' } as const;
    await world.record(B, [lambda], { state: 'released' });
    await clouds.runpod.control.setFaults([{ kind: 'error', op: 'list', error: 'forbidden' }]);
    await world.look();
    expect(await world.there()).toEqual([ids[0]]);
    expect(world.said('warn')).toEqual([
      'the machines of a provider could not be compared',
      DESTROYED,
    ]);
  });

  test('hands its lease on when it ends', async () => {
    const sweep = createInventorySweep('a', world.deps);
    await sweep.round(new AbortController().signal);
    expect(await world.look('b')).toBe(false);
    await sweep.close();
    expect(await world.look('b')).toBe(true);
  });
});
