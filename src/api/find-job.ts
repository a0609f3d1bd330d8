import { notFound } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';
import { jobIdOf } from '../domain/job.ts';
import type { JobRecord } from '../domain/job.ts';
import type { Jobs } from '../store/jobs.ts';
import { isJobId } from './ids.ts';

/** Finds a job by the id of its interface, or throws what is to be answered (NotFound). */
export type FindJob = (jobs: Pick<Jobs, 'get'>, id: string) => Promise<JobRecord>;

/** The job that OpenAI's interface shows as this batch. */
export async function findBatch(jobs: Pick<Jobs, 'get'>, batchId: string): Promise<JobRecord> {
  const id = jobIdOf(batchId);
  const job = id !== null && isJobId(id) ? await jobs.get(id) : null;
  if (job !== null) return job;
  const message = `There is no batch '${batchId.slice(0, 100)}': GET /v1/batches lists all.`;
  throw notFound('batch_not_found', message, { param: 'id' });
}

/** The job of this id, as the Console knows it. */
export async function findJob(jobs: Pick<Jobs, 'get'>, id: string): Promise<JobRecord> {
  const job = isJobId(id) ? await jobs.get(id) : null;
  if (job !== null) return job;
  throw jobNotFound(id);
}

export function jobNotFound(id: string): SluiceError {
  const message = `There is no job '${id.slice(0, 100)}': GET /api/v1/jobs lists all.`;
  return notFound('job_not_found', message, { param: 'id' });
}
