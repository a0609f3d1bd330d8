import { wantsEngines } from '../src/domain/job.ts';
import type { JobRecord } from '../src/domain/job.ts';
import type { ProvisionRecord } from '../src/domain/provision.ts';
import type { Deps } from './deps.ts';

/** Says on a provision, and on its job where that waits for it, why it stands where it stands; '': nothing is the matter. */
export async function say(
  { provision, job }: { provision: ProvisionRecord; job: Pick<JobRecord, 'id'> },
  reason: string,
  { store, log }: Pick<Deps, 'store' | 'log'>,
): Promise<void> {
  if (provision.reason === reason) return;
  await store.provisions.note(provision.id, reason);
  await noteUnlessServed(job.id, reason, { store });
  if (reason === '') return;
  log.warn({ jobId: job.id, provisionId: provision.id, reason }, 'engine waited for');
}

/** Says for what a job waits: while another engine serves it, it waits for nothing. */
export async function noteUnlessServed(
  jobId: string,
  reason: string,
  { store }: Pick<Deps, 'store'>,
): Promise<void> {
  const job = await store.jobs.get(jobId);
  if (job === null || !wantsEngines(job.state) || job.state === 'in_progress') return;
  await store.jobs.note(jobId, reason);
}
