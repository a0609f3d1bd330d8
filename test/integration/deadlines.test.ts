import { randomUUID } from 'node:crypto';
import { expect, test } from 'vitest';
import type { Deps } from '../../processors/deps.ts';
import { processors } from '../../processors/index.ts';
import { extendJob } from '../../processors/pause.ts';
import { openShards, stopJob } from '../../processors/settle.ts';
import { Watches } from '../../processors/watch.ts';
import type { Delivery } from '../../queues/catalog.ts';
import { recordKey } from '../../src/store/keys.ts';
import { openRecordWorld } from '../support/record-world.ts';
import type { RecordWorld } from '../support/record-world.ts';
import { jobInProgress } from '../support/store-back-ends.ts';
import { until } from '../support/until.ts';

const NEVER = new AbortController().signal;

/** A worker without BullMQ, whose shards are sent until somebody stops them; nobody sweeps. */
function openWorker(world: RecordWorld) {
  const queued: Delivery[] = [];
  const sent: string[] = [];
  const { log } = world.deps;
  const watches = new Watches({ store: world.store, now: world.deps.now, onEngines() {}, log });
  const deps: Deps = {
    ...world.deps,
    async add(delivery) {
      const isThere = queued.some(
        ({ entity, wake }) => entity === delivery.entity && wake === delivery.wake,
      );
      if (!isThere) queued.push(delivery);
    },
    ahead: () => 2,
    watches,
    newToken: randomUUID,
    graceOver: NEVER,
    dispatcher: {
      asideMs: () => 0,
      async run(_shard, _job, { stop, abort }) {
        sent.push(_job.id);
        expect(stop.aborted || abort.aborted, 'lines of a job that is over').toBe(false);
        await new Promise((resolve) => {
          stop.addEventListener('abort', resolve, { once: true });
        });
        return 'stopped';
      },
    },
  };
  /** Delivers what waits, and what that adds, until nothing waits or `most` were delivered. */
  async function deliverAll(most = 50): Promise<number> {
    let count = 0;
    for (let next = queued.shift(); next !== undefined && count < most; next = queued.shift()) {
      count += 1;
      const task = { id: next.entity, wake: next.wake, signal: NEVER, lockLost: NEVER };
      await processors.dispatch(task, deps);
    }
    return count;
  }
  return { deps, sent, queued, watches, deliverAll };
}

test('a worker that nobody sweeps for stops at the deadline, and goes on when it is moved', async () => {
  using world = openRecordWorld();
  const { store } = world;
  const { id } = await jobInProgress(store, { shards: 20, lines: 10 });
  const { deps, sent, queued, watches, deliverAll } = openWorker(world);
  await openShards(id, deps);
  await world.setField(recordKey(id), 'deadline', Date.now() + 300);

  const delivered = await deliverAll();
  expect(Date.now()).toBeGreaterThanOrEqual((await world.job(id)).deadline);
  expect(sent.length, 'it was sent before its deadline').toBeGreaterThan(0);
  expect(delivered, 'shards that are refused wait for whoever ends the job').toBeLessThan(10);
  expect(await store.shards.pending(id)).toEqual([]);
  expect((await world.job(id)).state, 'nobody is there who ends it').toBe('in_progress');

  // A sweeper opens shards for as long as the record says that the job is in progress.
  const before = sent.length;
  await openShards(id, deps);
  expect(await deliverAll()).toBe(2);
  expect(sent.length).toBe(before);

  const job = await world.job(id);
  expect(await extendJob(job, '48h', 172_800_000, deps)).toBe(true);
  expect(queued, 'shards wait again without a sweep').toHaveLength(2);
  const going = deliverAll(1);
  await until(() => sent.length > before, { what: 'lines that are sent again' });
  await store.jobs.move(await world.job(id), 'cancelling', { outcome: 'cancelled' });
  watches.poke(id);
  await going;
});

test('an expiry that Redis refuses, since its own clock is not there yet, is not asked for again at once', async () => {
  using world = openRecordWorld();
  const { store } = world;
  const { id } = await jobInProgress(store);
  // Extended: then Redis looks at the deadline itself, and this process believes to be past it.
  await store.jobs.extend(await world.job(id), '48h', 172_800_000);
  await world.setField(recordKey(id), 'deadline', Date.now() + 400);
  const before = await world.job(id);
  let asked = 0;
  const advanceJob: Deps['advanceJob'] = (job, to, change) => {
    asked += 1;
    return world.deps.advanceJob(job, to, change);
  };
  const stop = { outcome: 'expired', event: 'Over.', deadline: before.deadline } as const;
  const refused = await stopJob(id, stop, { ...world.deps, advanceJob });
  expect(refused).toEqual(before);
  expect(asked).toBe(1);
  expect((await store.jobs.events(id)).map(({ message }) => message)).not.toContain('Over.');

  await until(() => Date.now() > before.deadline, { what: 'the deadline' });
  expect(await stopJob(id, stop, world.deps)).toMatchObject({
    state: 'cancelling',
    outcome: 'expired',
  });
  // Another deadline than the one that was found to be over.
  const other = await jobInProgress(store);
  expect(await stopJob(other.id, stop, world.deps)).toMatchObject({ state: 'in_progress' });
});
