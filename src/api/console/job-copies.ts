import * as v from 'valibot';
import { invalidInput } from '../../domain/errors.ts';
import { isExpired, retryInputId } from '../../domain/file.ts';
import { isFinal } from '../../domain/job.ts';
import type { JobRecord } from '../../domain/job.ts';
import { countBits } from '../../domain/segment.ts';
import { exactObject, parse } from '../body.ts';
import { clientSchema, clientWish } from '../client.ts';
import { metadataSchema } from '../metadata.ts';
import { outputPrefixSchema, outputWish, requireUnchanged } from '../places.ts';
import { requester } from '../requester.ts';
import type { ApiContext } from '../routes.ts';
import { creationJobId, prioritySchema, submitJob } from '../submit.ts';
import type { FieldNames, JobWish } from '../submit.ts';
import { jobFiles } from '../views.ts';
import type { JobsDeps } from './job-read.ts';
import { jobNameSchema, optionalJson, windowSchema } from './request.ts';

/** What a copy of a job may have otherwise; what is left out is as it was, each field of `client` by itself. */
export const copySchema = exactObject({
  name: v.nullish(jobNameSchema),
  completion_window: windowSchema,
  metadata: v.nullish(metadataSchema),
  client: v.nullish(clientSchema),
  priority: prioritySchema,
  output_prefix: outputPrefixSchema,
});

/** Whatever is wrong with a copy comes of the job that it is to be a copy of. */
const COPY_FIELDS: FieldNames = { input: 'id', template: 'id', resources: 'id' };

/** A new job that asks all of another one again. */
export async function clone(c: ApiContext, job: JobRecord, deps: JobsDeps): Promise<JobRecord> {
  const wish = await copyOf(c, job);
  const { creationKey: idempotencyKey } = c.var;
  const { retryOf } = job.options;
  if (retryOf !== null && !(await isRepeat(creationJobId(idempotencyKey), deps))) {
    if (await isGone(job.input, deps)) {
      const message = `The input of the job '${job.id}' was not written, or was deleted. POST /api/v1/jobs/${retryOf}/retry asks the failed lines of that job again.`;
      throw invalidInput('invalid_input_file', message, { param: 'id' });
    }
  }
  wish.options = { ...wish.options, retryOf: null };
  return submitJob(deps, wish, { idempotencyKey, fields: COPY_FIELDS });
}

/**
 * A new job for the lines of another one that failed or were not reached. Its input is written when it is planned, out
 * of the first one's input and error file; where that dies in between, planning begins anew.
 */
export async function retry(c: ApiContext, job: JobRecord, deps: JobsDeps): Promise<JobRecord> {
  const wish = await copyOf(c, job);
  const idempotencyKey = c.var.creationKey;
  const jobId = creationJobId(idempotencyKey);
  // A repeat must be answered as the first time, even if the first job's files were deleted since.
  if (!(await isRepeat(jobId, deps))) await checkRetry(job, deps);
  wish.options = { ...wish.options, retryOf: job.id };
  return submitJob(
    deps,
    { ...wish, jobId, input: retryInputId(jobId) },
    { idempotencyKey, fields: COPY_FIELDS, inputFollows: true },
  );
}

async function isRepeat(jobId: string, { store }: JobsDeps): Promise<boolean> {
  return (await store.jobs.get(jobId)) !== null;
}

async function checkRetry(job: JobRecord, deps: JobsDeps): Promise<void> {
  if (!isFinal(job.state)) {
    const message = `The job '${job.id}' is ${job.state}: its failed lines can be asked again when it is over. Wait, or cancel it.`;
    throw invalidInput('job_not_over', message, { param: 'id' });
  }
  await requireThere(job.input, deps);
  const { error } = jobFiles(job);
  if (error === null) throw nothingToRetry(await whyNoErrorFile(job, deps));
  for (const file of [job.input, error]) {
    if (!(await isGone(file, deps))) continue;
    const what = file === error ? 'error file' : 'input file';
    const message = `The ${what} '${file}' of the job '${job.id}' was deleted: upload the lines to ask again, and create a job over them.`;
    throw invalidInput('retry_source_gone', message, { param: 'id' });
  }
  await requireThere(error, deps);
  if ((await countBadLines(job, deps)) < job.failed) return;
  throw nothingToRetry(
    `No failed line of the job '${job.id}' can be asked: its error file '${error}' says what is wrong with each. Mend these lines, upload them, and create a job over them.`,
  );
}

function nothingToRetry(message: string): Error {
  return invalidInput('nothing_to_retry', message, { param: 'id' });
}

async function whyNoErrorFile(job: JobRecord, deps: JobsDeps): Promise<string> {
  const { id, state, errors, lines, completed } = job;
  const { retryOf } = job.options;
  if (state === 'completed' || (lines > 0 && completed === lines)) {
    return `No line of the job '${id}' failed, so that there is nothing to ask again. POST /api/v1/jobs/${id}/clone asks all of it.`;
  }
  const [error] = errors;
  if (state === 'failed' && error !== undefined) {
    return `The input of the job '${id}' was refused (${error.code}), and none of its lines was asked: mend it, upload it, and create a job over it.`;
  }
  const ended = `The job '${id}' is ${state}: it ended before its input was read.`;
  if (retryOf !== null && (await isGone(job.input, deps))) {
    return `${ended} POST /api/v1/jobs/${retryOf}/retry asks the failed lines of that job again.`;
  }
  return `${ended} POST /api/v1/jobs/${id}/clone asks all of it.`;
}

/** What lies in a bucket of the user's may be another one by now. */
async function requireThere(fileId: string, deps: JobsDeps): Promise<void> {
  const file = await deps.store.files.get(fileId);
  if (file !== null) await requireUnchanged(deps, file, 'id');
}

async function isGone(fileId: string, { store }: JobsDeps): Promise<boolean> {
  const file = await store.files.get(fileId);
  return file === null || isExpired(file, Date.now());
}

/** Lines that planning refused one by one; asked again they are refused again. */
async function countBadLines(job: JobRecord, { store }: JobsDeps): Promise<number> {
  if (job.options.validation !== 'lenient') return 0;
  let count = 0;
  for await (const { bad } of store.shards.accepted(job.id, 0, job.shards)) {
    if (bad !== null) count += countBits(bad);
  }
  return count;
}

/** A job like this one, but for what the request says. */
async function copyOf(c: ApiContext, job: JobRecord): Promise<JobWish> {
  const body = parse(copySchema, await optionalJson(c));
  const { outputPrefix } = job.options;
  const { maxConcurrency, options } = clientWish(body.client, job.options);
  return {
    name: body.name ?? job.name,
    endpoint: job.endpoint,
    input: job.input,
    ...outputWish(body.output_prefix ?? outputPrefix, 'output_prefix'),
    completionWindow: body.completion_window ?? job.completionWindow,
    metadata: body.metadata ?? job.metadata,
    maxConcurrency: maxConcurrency ?? job.maxConcurrency,
    engines: job.engines,
    options: {
      ...job.options,
      owner: requester(c) || job.options.owner,
      ...options,
      ...(body.priority ? { priority: body.priority } : {}),
      expectedRequests: null,
    },
  };
}
