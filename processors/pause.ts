import type { JobRecord } from '../src/domain/job.ts';
import { PROVISION } from '../src/domain/provision.ts';
import type { SettleDeps } from './deps.ts';
import { fillLeftSlots, openShards } from './settle.ts';

/** What a paused job's provisions wait before they look again whether it is paused; resuming wakes them. */
export const PAUSED_LOOK_MS = 5_000;

/** What a paused job says that was planned, and has only bad lines; its planning waits for whoever resumes it. */
export const NOTHING_TO_ASK =
  'No line of the input can be sent to an engine: the job ends when it is resumed.';

/**
 * Holds a job: what is in flight is answered and committed, shards are given back, and no engine is started. False
 * where it has an outcome, or is gone. `why` goes into its history.
 */
export async function pauseJob(
  id: string,
  by: string,
  { store }: Pick<SettleDeps, 'store'>,
  why = '',
): Promise<boolean> {
  const paused = await store.jobs.pause(id, by, why);
  if (paused) await store.jobs.publishStop(id);
  return paused;
}

/**
 * Lets a paused job go on where it stands: what waits is added at once, and what was released meanwhile is replaced.
 * False as with `pauseJob`. May be called again after a crash anywhere, or the sweeper does the rest.
 */
export async function resumeJob(id: string, deps: SettleDeps): Promise<boolean> {
  if (!(await deps.store.jobs.resume(id))) return false;
  await openShards(id, deps);
  const provisions = await deps.store.provisions.ofJob(id);
  const job = await deps.store.jobs.get(id);
  if (job !== null) {
    await wakePlanning(job, deps);
    if (job.state === 'in_progress' && job.reason !== '') await deps.store.jobs.note(id, '');
    await fillLeftSlots(job, provisions, deps);
  }
  for (const provision of provisions) {
    const { queue } = PROVISION[provision.state];
    if (queue !== 'provisioning' && queue !== 'submission') continue;
    const wake = await deps.store.provisions.wake(provision.id, provision.wake);
    if (wake !== 'stale') await deps.add({ queue, entity: provision.id, wake });
  }
  return true;
}

/** Only where it waits for this: a planner that reads the input is not to get a second one beside it. */
async function wakePlanning(
  { id, state, reason, wake }: JobRecord,
  { store, add }: Pick<SettleDeps, 'store' | 'add'>,
): Promise<void> {
  if (state !== 'queued' || reason !== NOTHING_TO_ASK) return;
  const fresh = await store.jobs.wake(id, wake);
  if (fresh !== 'stale') await add({ queue: 'planning', entity: id, wake: fresh });
}

/**
 * Gives a job another deadline, and tells those who send its lines. False as with `pauseJob`. Past the old deadline
 * no shard was taken any more: they are opened again.
 */
export async function extendJob(
  job: JobRecord,
  completionWindow: string,
  windowMs: number,
  deps: Pick<SettleDeps, 'store' | 'add' | 'ahead' | 'now'>,
): Promise<boolean> {
  const extended = await deps.store.jobs.extend(job, completionWindow, windowMs);
  if (!extended) return false;
  await deps.store.jobs.publishStop(job.id);
  await openShards(job.id, deps);
  return true;
}
