import * as v from 'valibot';
import { invalidInput } from '../../domain/errors.ts';
import { isExpired, retryInputId } from '../../domain/file.ts';
import { isFinal, isOpen, isPaused, parseCompletionWindow } from '../../domain/job.ts';
import type { JobRecord } from '../../domain/job.ts';
import type { SluiceError } from '../../domain/errors.ts';
import { parse, readBody, readJson } from '../body.ts';
import { clientSchema, clientWish } from '../client.ts';
import { findJob } from '../find-job.ts';
import { derivedText, randomText } from '../ids.ts';
import { requester } from '../requester.ts';
import { pathId } from '../routes.ts';
import type { ApiContext, Handler, Route } from '../routes.ts';
import { metadataSchema, submitJob } from '../submit.ts';
import type { JobWish } from '../submit.ts';
import { jobFiles } from '../views.ts';
import { fullView } from './job-read.ts';
import type { JobsDeps } from './job-read.ts';
import { snakeKeys } from './snake-keys.ts';

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
export const extendSchema = v.object({ completion_window: v.string(WINDOW_RULE) });

async function extend(c: ApiContext, job: JobRecord, deps: JobsDeps): Promise<JobRecord> {
  const { completion_window: window } = parse(extendSchema, await optionalJson(c));
  const windowMs = parseCompletionWindow(window);
  if (!isOpen(job.state)) throw isOver(job, 'extended');
  if (job.createdAt + windowMs <= job.deadline) {
    const now = job.completionWindow;
    const message = `A completion_window counts from the creation of the job and must be longer than the present one, ${now}; got '${window}'.`;
    throw invalidInput('invalid_completion_window', message, { param: 'completion_window' });
  }
  if (!(await deps.extendJob(job, window, windowMs))) throw isOver(job, 'extended');
  return readAgain(job, deps);
}

function isOver(job: JobRecord, what: string): SluiceError {
  const message = `The job '${job.id}' cannot be ${what}: it is ${job.state}. Make a new one with POST /api/v1/jobs/${job.id}/clone.`;
  return invalidInput('job_is_over', message, { param: 'id' });
}

async function readAgain(job: JobRecord, deps: JobsDeps): Promise<JobRecord> {
  return (await deps.store.jobs.get(job.id)) ?? job;
}

const NAME_RULE = 'a text of at most 512 characters';
/** What a copy of a job may have otherwise; what is left out is as it was. */
export const copySchema = v.object({
  name: v.nullish(v.pipe(v.string(NAME_RULE), v.maxLength(512, NAME_RULE))),
  completion_window: v.nullish(v.string('a text such as 24h')),
  metadata: v.nullish(metadataSchema),
  client: v.nullish(clientSchema),
});

async function clone(c: ApiContext, job: JobRecord, deps: JobsDeps): Promise<JobRecord> {
  const wish = await copyOf(c, job);
  wish.options = { ...wish.options, retryOf: null };
  return submitJob(deps, wish, { idempotencyKey: c.var.creationKey, param: 'id' });
}

/**
 * A new job for the lines of another one that failed or were not reached. Its input is written when it is planned, out
 * of the first one's input and error file; where that dies in between, planning begins anew.
 */
async function retry(c: ApiContext, job: JobRecord, deps: JobsDeps): Promise<JobRecord> {
  const wish = await copyOf(c, job);
  if (!isFinal(job.state)) {
    const message = `The job '${job.id}' is ${job.state}: its failed lines can be asked again when it is over. Wait, or cancel it.`;
    throw invalidInput('job_not_over', message, { param: 'id' });
  }
  const { error } = jobFiles(job);
  if (error === null) {
    const message = `No line of the job '${job.id}' failed, so that there is nothing to ask again. POST /api/v1/jobs/${job.id}/clone asks all of it.`;
    throw invalidInput('nothing_to_retry', message, { param: 'id' });
  }
  for (const file of [job.input, error]) {
    const found = await deps.store.files.get(file);
    if (found !== null && !isExpired(found, Date.now())) continue;
    const what = file === error ? 'error file' : 'input file';
    const message = `The ${what} '${file}' of the job '${job.id}' was deleted: upload the lines to ask again, and create a job over them.`;
    throw invalidInput('retry_source_gone', message, { param: 'id' });
  }
  const key = c.var.creationKey;
  const jobId = `job_${key === undefined ? randomText() : derivedText(key)}`;
  wish.options = { ...wish.options, retryOf: job.id };
  return submitJob(
    deps,
    { ...wish, jobId, input: retryInputId(jobId) },
    { idempotencyKey: undefined, param: 'id', inputFollows: true },
  );
}

/** A job like this one, but for what the request says. */
async function copyOf(c: ApiContext, job: JobRecord): Promise<JobWish> {
  const body = parse(copySchema, await optionalJson(c));
  const { maxConcurrency, retry: policy } = clientWish(body.client);
  return {
    name: body.name ?? job.name,
    endpoint: job.endpoint,
    input: job.input,
    completionWindow: body.completion_window ?? job.completionWindow,
    metadata: body.metadata ?? job.metadata,
    maxConcurrency: maxConcurrency ?? job.maxConcurrency,
    engines: job.engines,
    options: {
      ...job.options,
      owner: requester(c) || job.options.owner,
      retry: policy ?? job.options.retry,
      expectedRequests: null,
    },
  };
}

/** The body of a request that needs none. */
async function optionalJson(c: ApiContext): Promise<unknown> {
  if ((await readBody(c.env.incoming)).length === 0) return {};
  return snakeKeys(await readJson(c.env.incoming), ['metadata']);
}
