import type { JobRecord } from '../src/domain/job.ts';
import { PROVISION } from '../src/domain/provision.ts';
import type { SettleDeps } from './deps.ts';
import { openShards } from './settle.ts';

/** What a paused job's provisions wait before they look again whether it is paused; resuming wakes them. */
export const PAUSED_LOOK_MS = 5_000;

/**
 * Holds a job: what is in flight is answered and committed, shards are given back, and no engine is started. False
 * where it has an outcome, or is gone.
 */
export async function pauseJob(
  id: string,
  by: string,
  { store }: Pick<SettleDeps, 'store'>,
): Promise<boolean> {
  const paused = await store.jobs.pause(id, by);
  if (paused) await store.jobs.publishStop(id);
  return paused;
}

/** Lets a paused job go on where it stands. False as with `pauseJob`. */
export async function resumeJob(
  id: string,
  deps: Pick<SettleDeps, 'store' | 'add' | 'ahead'>,
): Promise<boolean> {
  if (!(await deps.store.jobs.resume(id))) return false;
  await openShards(id, deps);
  for (const provision of await deps.store.provisions.ofJob(id)) {
    const { queue } = PROVISION[provision.state];
    if (queue !== 'provisioning' && queue !== 'submission') continue;
    const wake = await deps.store.provisions.wake(provision.id, provision.wake);
    if (wake !== 'stale') await deps.add({ queue, entity: provision.id, wake });
  }
  return true;
}

/** Gives a job another deadline, and tells those who send its lines. False as with `pauseJob`. */
export async function extendJob(
  job: JobRecord,
  completionWindow: string,
  windowMs: number,
  { store }: Pick<SettleDeps, 'store'>,
): Promise<boolean> {
  const extended = await store.jobs.extend(job, completionWindow, windowMs);
  if (extended) await store.jobs.publishStop(job.id);
  return extended;
}
