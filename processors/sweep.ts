import { deliveryId, shardEntity } from '../queues/catalog.ts';
import type { Delivery } from '../queues/catalog.ts';
import type { Queues } from '../queues/queues.ts';
import { classNow, isFinal, isPaused, JOB } from '../src/domain/job.ts';
import type { JobRecord } from '../src/domain/job.ts';
import { PROVISION } from '../src/domain/provision.ts';
import type { ProvisionRecord } from '../src/domain/provision.ts';
import type { Store } from '../src/store/store.ts';
import type { SettleDeps } from './deps.ts';
import { guardSpending } from './spending.ts';
import { addShards, finishJob, isAnswered, openShards, settle, stopJob } from './settle.ts';

export interface SweepDeps extends SettleDeps {
  store: Pick<Store, 'jobs' | 'shards' | 'provisions' | 'leases' | 'sweep'>;
  isLive: Queues['isLive'];
  now(): number;
}

export interface Sweeper {
  /** Looks at everything unfinished once, if this process has the lease; false when another one has it. */
  sweep(signal: AbortSignal): Promise<boolean>;
  /** Stops jobs whose deadline is over. */
  expire(): Promise<void>;
  /** Lets another process sweep at once. */
  close(): Promise<void>;
}

/** Records and BullMQ differ for a moment at each step; what differs for longer was lost. */
const LOST_AFTER_MS = 3_000;
const DANGLING_AFTER_MS = 60_000;
const LEASE_MS = 10_000;
const AT_ONCE = 20;

/**
 * Mends what a crash left between a record and its delivery, and what only time changes. Redis is the system of
 * record and BullMQ a cache of it: a record in a state with a queue, but without a delivery there, is scheduled anew.
 */
export function createSweeper(holder: string, deps: SweepDeps): Sweeper {
  const missing = createMissing(deps);
  return {
    async sweep(signal) {
      if (!(await deps.store.sweep.lease(holder, LEASE_MS))) return false;
      await each(deps.store.jobs.active(), signal, deps, (id) => sweepJob(id, missing, deps));
      await each(deps.store.provisions.unreleased(), signal, deps, (id) =>
        sweepProvision(id, missing, deps),
      );
      // Who worked on a provision while it was released may have sat down after that.
      for (const id of await deps.store.leases.seated()) await deps.store.provisions.forget(id);
      missing.forgetOld();
      return true;
    },
    async expire() {
      const event = 'The completion window is over.';
      const due = await deps.store.jobs.due(AT_ONCE);
      await Promise.all(
        due.map(async (id) => {
          try {
            const job = await deps.store.jobs.get(id);
            // Its lost answers were to be asked again, and who wanted that was late.
            if (job !== null && isFinal(job.state)) return await deps.store.jobs.forget(id);
            // Its deadline was moved, and who moved it died before the index had it.
            if (job !== null && (await deps.store.jobs.mendDeadline(job))) return;
            const deadline = job?.deadline;
            await stopJob(id, { outcome: 'expired', event, deadline }, deps);
          } catch (error) {
            // The others are overdue as well, and this one is due again in the next round.
            deps.log.error({ id, err: error }, 'an overdue job could not be stopped');
          }
        }),
      );
    },
    async close() {
      await deps.store.sweep.yield(holder);
    },
  };
}

/** Runs a task for each id, some at once; one that fails is logged and does not keep the others waiting. */
async function each(
  ids: AsyncIterable<string>,
  signal: AbortSignal,
  deps: SweepDeps,
  task: (id: string) => Promise<void>,
): Promise<void> {
  const running = new Set<Promise<void>>();
  for await (const id of ids) {
    if (signal.aborted) break;
    const run: Promise<void> = task(id)
      .catch((error: unknown) => deps.log.error({ id, err: error }, 'sweeping a record failed'))
      .finally(() => running.delete(run));
    running.add(run);
    if (running.size >= AT_ONCE) await Promise.race(running);
  }
  await Promise.all(running);
}

async function sweepJob(id: string, missing: Missing, deps: SweepDeps): Promise<void> {
  const job = await deps.store.jobs.get(id);
  if (job === null) {
    // Index first, record second: an entry without a record is a creation that died, or has not got there yet.
    if ((await deps.store.jobs.age(id)) > DANGLING_AFTER_MS) await deps.store.jobs.forget(id);
    return;
  }
  if (isFinal(job.state)) {
    await settle(id, deps);
    await deps.store.jobs.forget(id);
    return;
  }
  const { queue } = JOB[job.state];
  if (queue !== null && (await missing.isLost({ queue, entity: id, wake: job.wake }))) {
    const wake = await deps.store.jobs.wake(id, job.wake);
    if (wake !== 'stale') await deps.add({ queue, entity: id, wake });
  }
  if (isAnswered(job)) await finishJob(id, deps);
  // Of a paused job nothing waits for anybody; who resumes it opens shards again.
  else if (job.state === 'in_progress' && !isPaused(job)) await sweepShards(job, missing, deps);
  await settle(id, deps, { replace: true });
  await guardSpending(job, deps);
}

async function sweepShards(job: JobRecord, missing: Missing, deps: SweepDeps): Promise<void> {
  for (const { n, wake } of await deps.store.shards.pending(job.id)) {
    const delivery: Delivery = { queue: 'dispatch', entity: shardEntity(job.id, n), wake };
    if (!(await missing.isLost(delivery))) continue;
    const fresh = await deps.store.shards.rewake(job.id, { n, wake });
    if (fresh !== 'stale')
      await addShards(job.id, [{ n, wake: fresh }], classNow(job, deps.now()), deps);
  }
  await openShards(job.id, deps);
}

async function sweepProvision(id: string, missing: Missing, deps: SweepDeps): Promise<void> {
  const provision = await deps.store.provisions.get(id);
  if (provision === null) {
    if ((await deps.store.provisions.age(id)) > DANGLING_AFTER_MS)
      await deps.store.provisions.forget(id);
    return;
  }
  const { queue } = PROVISION[provision.state];
  if (queue === null) {
    await deps.store.provisions.forget(id);
    return;
  }
  if (await isAbandoned(provision, deps)) {
    await deps.advanceProvision(provision, 'releasing');
    return;
  }
  if (!(await missing.isLost({ queue, entity: id, wake: provision.wake }))) return;
  const wake = await deps.store.provisions.wake(id, provision.wake);
  if (wake !== 'stale') await deps.add({ queue, entity: id, wake });
}

async function isAbandoned({ job, state }: ProvisionRecord, deps: SweepDeps): Promise<boolean> {
  if (state === 'releasing') return false;
  const record = await deps.store.jobs.get(job);
  return record === null || isFinal(record.state);
}

interface Missing {
  /** True when BullMQ has lacked the delivery for a while. */
  isLost(delivery: Delivery): Promise<boolean>;
  /** Drops sightings of what is no longer looked for. */
  forgetOld(): void;
}

/** Remembers since when deliveries are missing, so that one that is just being added is not added twice. */
function createMissing(deps: Pick<SweepDeps, 'isLive' | 'now'>): Missing {
  const since = new Map<string, number>();
  return {
    async isLost(delivery) {
      const name = deliveryId(delivery);
      if (await deps.isLive(delivery)) {
        since.delete(name);
        return false;
      }
      const now = deps.now();
      const first = since.get(name) ?? now;
      since.set(name, first);
      if (now - first < LOST_AFTER_MS) return false;
      since.delete(name);
      return true;
    },
    forgetOld() {
      const now = deps.now();
      for (const [name, first] of since) if (now - first > DANGLING_AFTER_MS) since.delete(name);
    },
  };
}
