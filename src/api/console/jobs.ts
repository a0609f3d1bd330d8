import * as v from 'valibot';
import { invalidInput, notFound } from '../../domain/errors.ts';
import { isFinal } from '../../domain/job.ts';
import type { JobRecord } from '../../domain/job.ts';
import type { Jobs } from '../../store/jobs.ts';
import type { Provisions } from '../../store/provisions.ts';
import { exactObject, parse, readJson } from '../body.ts';
import { isJobId } from '../ids.ts';
import { pathId } from '../routes.ts';
import type { ApiContext, Route } from '../routes.ts';
import { clientEntries, endpointSchema, metadataSchema, submitJob } from '../submit.ts';
import type { SubmitDeps } from '../submit.ts';
import { jobView } from './job-view.ts';
import { snakeKeys } from './snake-keys.ts';

export interface JobsDeps extends SubmitDeps {
  store: SubmitDeps['store'] & {
    jobs: Pick<Jobs, 'get' | 'page' | 'events'>;
    provisions: Pick<Provisions, 'ofJob'>;
  };
  stopJob(id: string, outcome: 'cancelled'): Promise<JobRecord>;
}

/** The Console API's jobs: snake_case out, both cases in. */
export function jobRoutes(deps: JobsDeps): Route[] {
  return [
    { path: '/api/v1/jobs', get: (c) => list(c, deps), post: (c) => create(c, deps) },
    {
      path: '/api/v1/jobs/:id',
      async get(c) {
        return c.json(await fullView(deps, await findJob(deps, pathId(c))));
      },
    },
    { path: '/api/v1/jobs/:id/cancel', post: (c) => cancel(c, deps) },
  ];
}

/** protojson's habit: an empty text is one that was not given. */
const windowSchema = v.pipe(
  v.nullish(v.string('a text such as 24h'), ''),
  v.transform((text) => (text === '' ? '24h' : text)),
);

const ID_RULE = 'the id of an uploaded file';
const NAME_RULE = 'a text of at most 512 characters';
const createSchema = v.object({
  input_dataset: v.pipe(v.string(ID_RULE), v.nonEmpty(ID_RULE)),
  endpoint: endpointSchema,
  completion_window: windowSchema,
  name: v.nullish(v.pipe(v.string(NAME_RULE), v.maxLength(512, NAME_RULE)), ''),
  metadata: v.nullish(metadataSchema),
  client: v.nullish(exactObject(clientEntries)),
});

async function create(c: ApiContext, deps: JobsDeps): Promise<Response> {
  const body = parse(createSchema, snakeKeys(await readJson(c.env.incoming), ['metadata']));
  const wish = {
    name: body.name,
    endpoint: body.endpoint,
    input: body.input_dataset,
    completionWindow: body.completion_window,
    metadata: body.metadata ?? {},
    maxConcurrency: body.client?.max_concurrency ?? null,
    engines: [],
    options: {},
  };
  const idempotencyKey = c.req.header('idempotency-key');
  const job = await submitJob(deps, wish, { idempotencyKey, param: 'input_dataset' });
  return c.json(await fullView(deps, job));
}

async function findJob(deps: JobsDeps, id: string): Promise<JobRecord> {
  const job = isJobId(id) ? await deps.store.jobs.get(id) : null;
  if (job !== null) return job;
  throw notFound('job_not_found', `There is no job '${id.slice(0, 100)}'.`, { param: 'id' });
}

async function fullView(deps: JobsDeps, job: JobRecord) {
  const [events, provisions] = await Promise.all([
    deps.store.jobs.events(job.id),
    deps.store.provisions.ofJob(job.id),
  ]);
  return jobView(job, events, provisions);
}

const LIMIT_RULE = 'an integer';
const [DEFAULT_LIMIT, MAX_LIMIT] = [20, 100] as const;
/** The Console API takes any number: none or less is the default, more than the most is the most. */
const listSchema = v.object({
  after: v.optional(v.string(), ''),
  limit: v.optional(
    v.pipe(
      v.string(LIMIT_RULE),
      v.regex(/^-?\d{1,9}$/, LIMIT_RULE),
      v.transform((text) => Math.min(Number(text), MAX_LIMIT)),
      v.transform((limit) => (limit <= 0 ? DEFAULT_LIMIT : limit)),
    ),
    String(DEFAULT_LIMIT),
  ),
});

async function list(c: ApiContext, deps: JobsDeps): Promise<Response> {
  const { after, limit } = parse(listSchema, c.req.query());
  if (after !== '' && !isJobId(after)) throw unknownCursor(after);
  const page = after === '' ? { limit } : { limit, after };
  const { jobs, hasMore } = await deps.store.jobs.page(page);
  const views = await Promise.all(jobs.map((job) => fullView(deps, job)));
  return c.json({
    jobs: views,
    first_id: views[0]?.id ?? '',
    last_id: views.at(-1)?.id ?? '',
    has_more: hasMore && views.length > 0,
  });
}

function unknownCursor(after: string): Error {
  return invalidInput(
    'invalid_cursor',
    `There is no job '${after.slice(0, 100)}' to go on after.`,
    {
      param: 'after',
    },
  );
}

async function cancel(c: ApiContext, deps: JobsDeps): Promise<Response> {
  const job = await findJob(deps, pathId(c));
  const isEnding = isFinal(job.state) || job.state === 'cancelling' || job.state === 'finalizing';
  const after = isEnding ? job : await deps.stopJob(job.id, 'cancelled');
  return c.json(await fullView(deps, after));
}
