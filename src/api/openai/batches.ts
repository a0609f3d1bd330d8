import * as v from 'valibot';
import { invalidInput, notFound } from '../../domain/errors.ts';
import { batchIdOf, batchStatus, isFinal, jobIdOf } from '../../domain/job.ts';
import type { JobRecord } from '../../domain/job.ts';
import type { Jobs } from '../../store/jobs.ts';
import { exactObject, parse, readJson } from '../body.ts';
import { requireEngines, runtimeSchema } from '../engines.ts';
import { isJobId } from '../ids.ts';
import { limitSchema } from '../query.ts';
import { pathId } from '../routes.ts';
import type { ApiContext, Route } from '../routes.ts';
import { clientEntries, endpointSchema, metadataSchema, submitJob } from '../submit.ts';
import type { SubmitDeps } from '../submit.ts';
import { batchView, pageView } from '../views.ts';

export interface BatchesDeps extends SubmitDeps {
  store: SubmitDeps['store'] & { jobs: Pick<Jobs, 'get' | 'page'> };
  /** Stops a job that is not over; what it answers is the job as it then is. */
  stopJob(id: string, outcome: 'cancelled'): Promise<JobRecord>;
}

/** OpenAI's Batch interface, with the `aibrix` key as its one extension. */
export function batchRoutes(deps: BatchesDeps): Route[] {
  return [
    { path: '/v1/batches', get: (c) => list(c, deps), post: (c) => create(c, deps) },
    {
      path: '/v1/batches/:id',
      async get(c) {
        return c.json(batchView(await findJob(deps, pathId(c))));
      },
    },
    { path: '/v1/batches/:id/cancel', post: (c) => cancel(c, deps) },
  ];
}

const ID_RULE = 'the id of an uploaded file';
const createSchema = v.object({
  input_file_id: v.pipe(v.string(ID_RULE), v.nonEmpty(ID_RULE)),
  endpoint: endpointSchema,
  completion_window: v.string('a text such as 24h'),
  metadata: v.nullish(metadataSchema),
  aibrix: v.nullish(
    exactObject({
      client: v.nullish(exactObject(clientEntries)),
      runtime: v.nullish(runtimeSchema),
    }),
  ),
});

async function create(c: ApiContext, deps: BatchesDeps): Promise<Response> {
  const body = parse(createSchema, await readJson(c.env.incoming));
  const engines = body.aibrix?.runtime;
  const wish = {
    name: '',
    endpoint: body.endpoint,
    input: body.input_file_id,
    completionWindow: body.completion_window,
    metadata: body.metadata ?? {},
    maxConcurrency: body.aibrix?.client?.max_concurrency ?? null,
    engines: engines ? requireEngines(engines, 'aibrix.runtime.options') : [],
    options: {},
  };
  const idempotencyKey = c.req.header('idempotency-key');
  const job = await submitJob(deps, wish, { idempotencyKey, param: 'input_file_id' });
  return c.json(batchView(job));
}

async function findJob(deps: BatchesDeps, batchId: string): Promise<JobRecord> {
  const id = jobIdOf(batchId);
  const job = id !== null && isJobId(id) ? await deps.store.jobs.get(id) : null;
  if (job !== null) return job;
  throw notFound('batch_not_found', `There is no batch '${batchId.slice(0, 100)}'.`, {
    param: 'id',
  });
}

const listSchema = v.object({ after: v.optional(v.string()), limit: limitSchema(100, 20) });

async function list(c: ApiContext, deps: BatchesDeps): Promise<Response> {
  const { after, limit } = parse(listSchema, c.req.query());
  const page = after === undefined ? { limit } : { limit, after: cursor(after) };
  const { jobs, hasMore } = await deps.store.jobs.page(page);
  return c.json(pageView(jobs.map(batchView), hasMore));
}

function cursor(batchId: string): string {
  const id = jobIdOf(batchId);
  if (id !== null) return id;
  const message = `There is no batch '${batchId.slice(0, 100)}' to go on after.`;
  throw invalidInput('invalid_cursor', message, { param: 'after' });
}

async function cancel(c: ApiContext, deps: BatchesDeps): Promise<Response> {
  const job = await findJob(deps, pathId(c));
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
