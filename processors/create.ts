import type { JobRecord } from '../src/domain/job.ts';
import type { NewJob } from '../src/store/jobs.ts';
import type { Store } from '../src/store/store.ts';
import type { SettleDeps } from './deps.ts';

interface CreateDeps extends Pick<SettleDeps, 'add' | 'log'> {
  store: { jobs: Pick<Store['jobs'], 'create'> };
}

/**
 * The one way a job begins: recorded first, delivered second, also on a repeat whose first delivery may be lost.
 * `exists`: this id with this body was there; `other`: with another body, and nothing is done.
 */
export async function createJob(
  newJob: NewJob,
  { store, add, log }: CreateDeps,
): Promise<{ outcome: 'created' | 'exists' | 'other'; job: JobRecord }> {
  const made = await store.jobs.create(newJob);
  const { id, state, wake } = made.job;
  if (made.outcome === 'other' || state !== 'queued') return made;
  try {
    await add({ queue: 'planning', entity: id, wake });
  } catch (error) {
    // The job is recorded, and the sweeper adds what waits without a delivery.
    log.warn({ jobId: id, err: error }, 'job could not be queued yet');
  }
  return made;
}
