import type { Verdict } from '../queues/worker.ts';
import type { SluiceError } from '../src/domain/errors.ts';
import type { Deps } from './deps.ts';
import {
  AGAIN_MS,
  BATCH_LOST,
  isRemoteTrouble,
  keep,
  LOOK_MS,
  lookAt,
  LOST_AFTER_MS,
  serviceOf,
  SHARE_OF_RUN,
  SHARE_OF_WAIT,
  WAIT_MS,
  within,
} from './remote.ts';
import type { RemoteJob, RemoteTask } from './remote.ts';

/** How long a stopped job waits for its remote batch to end, at most: what is answered there is worth that. */
const LONGEST_STOPPING_MS = 3_600_000;

/**
 * Stops the batch of a job that was stopped, and sees to it that its end is on record. Null when there is nothing left
 * to wait for.
 */
export async function stopRemote(
  job: RemoteJob,
  signal: AbortSignal,
  deps: Deps,
): Promise<Verdict | null> {
  const { remote } = job;
  if (remote.end !== null || (remote.batch === null && remote.asked === null)) return null;
  try {
    const task = { job, service: serviceOf(job, deps), signal };
    const verdict = remote.batch === null ? await findStopped(task, deps) : await stop(task, deps);
    if (verdict !== 'left') return verdict;
  } catch (error) {
    signal.throwIfAborted();
    if (!isRemoteTrouble(error)) throw error;
    const verdict = await afterTrouble(job, error, deps);
    if (verdict !== null) return verdict;
  }
  const fields = { jobId: job.id, remote: remote.batch };
  deps.log.error(fields, 'remote batch left, its end is not known');
  return null;
}

/** Milliseconds since the job was stopped. */
function stoppedFor({ enteredAt }: RemoteJob, { now }: Deps): number {
  return now() - (enteredAt.cancelling ?? now());
}

async function stop(
  { job, service, signal }: RemoteTask,
  deps: Deps,
): Promise<Verdict | 'left' | null> {
  const look = await lookAt(job, service, signal, deps);
  if (look === null) return { againInMs: AGAIN_MS };
  if (look.end !== null) return null;
  await service.cancel(look.id, signal);
  const since = stoppedFor(job, deps);
  if (since > LONGEST_STOPPING_MS) return 'left';
  return { againInMs: within(LOOK_MS, since / SHARE_OF_RUN) };
}

/** A batch that was asked for may turn up for a while, and nobody else would stop it. */
async function findStopped(
  { job, service, signal }: RemoteTask,
  deps: Deps,
): Promise<Verdict | null> {
  const { remote } = job;
  // Only the input was sent: no batch without its id.
  if (remote.file === null) return null;
  const found = await service.findBatch(job.id, job.createdAt, signal);
  if (found !== null) return keep(job, { batch: found.id }, deps);
  const isOver = deps.now() - (remote.asked?.at ?? 0) >= service.unclearMs;
  return isOver ? null : { againInMs: WAIT_MS.first };
}

/** Null where it is waited for no longer. */
async function afterTrouble(
  job: RemoteJob,
  { code, message }: SluiceError,
  deps: Deps,
): Promise<Verdict | null> {
  const since = stoppedFor(job, deps);
  if (since > (code === BATCH_LOST ? LOST_AFTER_MS : LONGEST_STOPPING_MS)) return null;
  await deps.store.jobs.note(job.id, message);
  return { againInMs: within(WAIT_MS, since / SHARE_OF_WAIT) };
}
