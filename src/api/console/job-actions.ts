import * as v from 'valibot';
import { invalidInput } from '../../domain/errors.ts';
import { isOpen, isPaused, parseCompletionWindow } from '../../domain/job.ts';
import type { JobRecord } from '../../domain/job.ts';
import type { SluiceError } from '../../domain/errors.ts';
import { exactObject, parse } from '../body.ts';
import { findJob } from '../find-job.ts';
import { requester } from '../requester.ts';
import { pathId } from '../routes.ts';
import type { ApiContext, Handler, Route } from '../routes.ts';
import { clone, retry } from './job-copies.ts';
import { fullView } from './job-read.ts';
import type { JobsDeps } from './job-read.ts';
import { optionalJson } from './request.ts';

/** What may be done with a job beside making and cancelling it. */
export function jobActionRoutes(deps: JobsDeps): Route[] {
  const actions = { pause, resume, extend, clone, retry };
  return Object.entries(actions).map(([name, action]) => ({
    path: `/api/v1/jobs/:id/${name}`,
    post: answering(action, deps),
  }));
}

type Action = (c: ApiContext, job: JobRecord, deps: JobsDeps) => Promise<JobRecord>;

/** Answers the job that an action leaves or makes. */
function answering(action: Action, deps: JobsDeps): Handler {
  return async (c) => {
    const job = await findJob(deps.store.jobs, pathId(c));
    return c.json(await fullView(deps, await action(c, job, deps)));
  };
}

async function pause(c: ApiContext, job: JobRecord, deps: JobsDeps): Promise<JobRecord> {
  if (isPaused(job)) return job;
  if (!(await deps.pauseJob(job.id, requester(c)))) throw isOver(job, 'paused');
  return readAgain(job, deps);
}

async function resume(_c: ApiContext, job: JobRecord, deps: JobsDeps): Promise<JobRecord> {
  if (isOpen(job.state) && !isPaused(job)) return job;
  if (!(await deps.resumeJob(job.id))) throw isOver(job, 'resumed');
  return readAgain(job, deps);
}

const WINDOW_RULE = 'a text such as 48h, counted from the creation of the job';
export const extendSchema = exactObject({
  completion_window: v.pipe(v.string(WINDOW_RULE), v.nonEmpty(WINDOW_RULE)),
});

async function extend(c: ApiContext, job: JobRecord, deps: JobsDeps): Promise<JobRecord> {
  const { completion_window: window } = parse(extendSchema, await optionalJson(c));
  const windowMs = parseCompletionWindow(window);
  if (!isOpen(job.state)) throw isOver(job, 'extended');
  if (job.createdAt + windowMs <= job.deadline) throw isTooShort(job, window);
  const extended = await deps.extendJob(job, window, windowMs);
  const after = await readAgain(job, deps);
  if (extended) return after;
  // It has ended meanwhile, or somebody else gave it a longer one.
  throw isOpen(after.state) ? isTooShort(after, window) : isOver(after, 'extended');
}

function isTooShort(job: JobRecord, window: string): SluiceError {
  const now = job.completionWindow;
  const message = `A completion_window counts from the creation of the job and must be longer than the present one, ${now}; got '${window}'.`;
  return invalidInput('invalid_completion_window', message, { param: 'completion_window' });
}

function isOver(job: JobRecord, what: string): SluiceError {
  const message = `The job '${job.id}' cannot be ${what}: it is ${job.state}. Make a new one with POST /api/v1/jobs/${job.id}/clone.`;
  return invalidInput('job_is_over', message, { param: 'id' });
}

async function readAgain(job: JobRecord, deps: JobsDeps): Promise<JobRecord> {
  return (await deps.store.jobs.get(job.id)) ?? job;
}
