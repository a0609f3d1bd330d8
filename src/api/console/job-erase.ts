import { invalidInput } from '../../domain/errors.ts';
import { jobNotFound } from '../find-job.ts';
import { isJobId } from '../ids.ts';
import { pathId } from '../routes.ts';
import type { ApiContext } from '../routes.ts';
import type { JobsDeps } from './job-read.ts';

/** Erases a job that is over. Again, for a month, it answers the same: who deletes what is deleted has what they want. */
export async function eraseJob(c: ApiContext, deps: JobsDeps): Promise<Response> {
  const id = pathId(c);
  const outcome = isJobId(id) ? await deps.eraseJob(id) : 'gone';
  if (outcome === 'gone') throw jobNotFound(id);
  if (outcome === 'running') {
    const message = `The job '${id}' is not over: cancel it with POST /api/v1/jobs/${id}/cancel, and delete it when it has ended.`;
    throw invalidInput('job_not_over', message, { param: 'id' });
  }
  if (outcome !== 'erased') {
    const { usedBy } = outcome;
    const message = `The job '${usedBy}' asks failed lines of the job '${id}' again, and has not read them yet: wait a moment, or cancel it first.`;
    throw invalidInput('job_in_use', message, { param: 'id' });
  }
  return c.json({ id, object: 'job', deleted: true });
}
