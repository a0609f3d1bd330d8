import type { Processor, Verdict } from '../queues/worker.ts';
import type { JobRecord } from '../src/domain/job.ts';
import { isLeased, isOnCallersMachine } from '../src/domain/provision.ts';
import { leaveMachine } from './callers-machine.ts';
import type { Deps } from './deps.ts';
import { finalize } from './finalize.ts';
import { releaseMachine } from './lease-release.ts';
import { readOrNull } from './read-or-null.ts';
import { isRemote, releaseRemote } from './remote.ts';
import { stopRemote } from './remote-stop.ts';
import { settle } from './settle.ts';

const LOOK_WHILE_CANCELLING_MS = 200;
const LOOK_WHILE_WRITTEN_MS = 200;
/** Longer than a dead worker's lock, so that whoever can still hand in has done so. */
const LONGEST_CANCELLING_MS = 8_000;

/** Gives a provision back, collects what a stopped job has in flight, or writes a finished job's files. */
export const release: Processor<Deps> = async (task, deps) => {
  if (task.id.startsWith('prov_')) return releaseProvision(task, deps);
  const job = await deps.store.jobs.get(task.id);
  if (job === null || job.wake !== task.wake) return 'done';
  if (job.state === 'cancelling') {
    const verdict = isRemote(job) ? await stopRemote(job, task.signal, deps) : null;
    return verdict ?? collect(job, deps);
  }
  if (job.state !== 'finalizing') return 'done';
  // Who has written most of its files while it ran ends it, too.
  if (await deps.store.writer(job.id).isHeld()) return { againInMs: LOOK_WHILE_WRITTEN_MS };
  return finalize(job, task.signal, deps);
};

/** A static engine is nobody's to switch off: giving it back is a matter of the record. */
async function releaseProvision(
  { id, wake, signal }: Parameters<typeof release>[0],
  deps: Deps,
): Promise<Verdict> {
  const provision = await deps.store.provisions.get(id);
  if (provision?.state !== 'releasing' || provision.wake !== wake) return 'done';
  if (isOnCallersMachine(provision)) return leaveMachine(provision, signal, deps);
  if (isLeased(provision)) return releaseMachine(provision, deps);
  const job = await readOrNull(deps.store.jobs, provision.job);
  if (job !== null && isRemote(job)) {
    const verdict = await releaseRemote(job, signal, deps);
    if (verdict !== null) return verdict;
  }
  await deps.advanceProvision(provision, 'released');
  return 'done';
}

async function collect(job: JobRecord, deps: Deps): Promise<Verdict> {
  await deps.store.jobs.publishStop(job.id);
  const held = await deps.store.shards.held(job.id);
  const since = deps.now() - (job.enteredAt.cancelling ?? 0);
  if (held > 0 && since < LONGEST_CANCELLING_MS) return { againInMs: LOOK_WHILE_CANCELLING_MS };
  const event = 'Answers in flight are collected; writing the output files.';
  // Why it was stopped is in its errors; from here on the reason tells why the files are late.
  const moved = await deps.advanceJob(job, 'finalizing', { event, set: { reason: '' } });
  if (moved !== 'stale') await settle(job.id, deps);
  return 'done';
}
