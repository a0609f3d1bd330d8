import * as v from 'valibot';
import { invalidInput } from '../../domain/errors.ts';
import { EXPIRES_AFTER_SECONDS } from '../../domain/file.ts';
import { batchIdOf, batchStatus, isFinal, jobIdOf } from '../../domain/job.ts';
import type { JobRecord } from '../../domain/job.ts';
import type { Jobs } from '../../store/jobs.ts';
import { exactObject, parse, readJson } from '../body.ts';
import { aibrixSchema, aibrixWish } from '../extension.ts';
import { findBatch } from '../find-job.ts';
import { metadataSchema } from '../metadata.ts';
import { limitSchema, unknownCursor } from '../query.ts';
import { inputSchema } from '../places.ts';
import { requester } from '../requester.ts';
import { pathId } from '../routes.ts';
import type { ApiContext, Route } from '../routes.ts';
import { endpointSchema, submitJob } from '../submit.ts';
import type { FieldNames, JobWish, SubmitDeps } from '../submit.ts';
import { batchView, pageView } from '../views.ts';
import { jobWebhook } from '../webhook-target.ts';

export interface BatchesDeps extends SubmitDeps {
  store: SubmitDeps['store'] & { jobs: Pick<Jobs, 'get' | 'page'> };
  /** Stops a job that is not over; what it answers is the job as it then is. */
  stopJob(id: string, outcome: 'cancelled'): Promise<JobRecord>;
}

/** What this interface calls the fields that a refusal may name. */
export const BATCH_FIELDS: FieldNames = {
  input: 'input_file_id',
  template: 'aibrix.model_template',
  resources: 'aibrix.resource_allocation',
};

/** OpenAI's Batch interface, with the `aibrix` key as its one extension. */
export function batchRoutes(deps: BatchesDeps): Route[] {
  return [
    { path: '/v1/batches', get: (c) => list(c, deps), post: (c) => create(c, deps) },
    {
      path: '/v1/batches/:id',
      async get(c) {
        return c.json(batchView(await findBatch(deps.store.jobs, pathId(c))));
      },
    },
    { path: '/v1/batches/:id/cancel', post: (c) => cancel(c, deps) },
  ];
}

/** OpenAI's limits of `output_expires_after`: an hour to thirty days. */
const EXPIRY_RULE = `an integer of seconds from ${EXPIRES_AFTER_SECONDS.min} to ${EXPIRES_AFTER_SECONDS.max}`;
const expirySchema = exactObject({
  anchor: v.literal('created_at', "'created_at', when the file is created"),
  seconds: v.pipe(
    v.number(EXPIRY_RULE),
    v.integer(EXPIRY_RULE),
    v.minValue(EXPIRES_AFTER_SECONDS.min, EXPIRY_RULE),
    v.maxValue(EXPIRES_AFTER_SECONDS.max, EXPIRY_RULE),
  ),
});
export const createSchema = exactObject({
  input_file_id: inputSchema,
  endpoint: endpointSchema,
  completion_window: v.string('a text such as 24h'),
  metadata: v.nullish(metadataSchema),
  output_expires_after: v.nullish(expirySchema),
  aibrix: v.nullish(aibrixSchema),
});

/** What a request's body asks for, whether it is created or only validated. */
export async function readWish(
  c: ApiContext,
  deps: Pick<BatchesDeps, 'webhooks'>,
): Promise<JobWish> {
  const body = parse(createSchema, await readJson(c.env.incoming));
  const extension = aibrixWish(body.aibrix);
  return {
    ...extension,
    name: '',
    endpoint: body.endpoint,
    input: body.input_file_id,
    completionWindow: body.completion_window,
    metadata: body.metadata ?? {},
    options: {
      ...extension.options,
      owner: requester(c),
      outputExpiresAfter: body.output_expires_after?.seconds ?? null,
      webhook: jobWebhook(deps, body.aibrix?.webhook, 'aibrix.webhook'),
    },
  };
}

async function create(c: ApiContext, deps: BatchesDeps): Promise<Response> {
  const wish = await readWish(c, deps);
  const idempotencyKey = c.var.creationKey;
  const job = await submitJob(deps, wish, { idempotencyKey, fields: BATCH_FIELDS });
  return c.json(batchView(job));
}

export const listSchema = v.object({ after: v.optional(v.string()), limit: limitSchema(100, 20) });

async function list(c: ApiContext, deps: BatchesDeps): Promise<Response> {
  const { after, limit } = parse(listSchema, c.req.query());
  const page = after === undefined ? { limit } : { limit, after: cursor(after) };
  const { jobs, hasMore } = await deps.store.jobs.page(page);
  return c.json(pageView(jobs.map(batchView), hasMore));
}

function cursor(batchId: string): string {
  const id = jobIdOf(batchId);
  if (id !== null) return id;
  throw unknownCursor('batch', batchId);
}

async function cancel(c: ApiContext, deps: BatchesDeps): Promise<Response> {
  const job = await findBatch(deps.store.jobs, pathId(c));
  const status = batchStatus({ ...job, begun: true });
  if (isFinal(job.state)) {
    // Not 409, which OpenAI's clients send again.
    throw invalidInput(
      'batch_not_cancellable',
      `Batch '${batchIdOf(job.id)}' cannot be cancelled: it is already ${status}.`,
      { param: 'id' },
    );
  }
  const isEnding = job.state === 'cancelling' || job.state === 'finalizing';
  return c.json(batchView(isEnding ? job : await deps.stopJob(job.id, 'cancelled')));
}
