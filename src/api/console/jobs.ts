import * as v from 'valibot';
import { invalidInput } from '../../domain/errors.ts';
import { isOpen } from '../../domain/job.ts';
import { isModelId } from '../../domain/model.ts';
import { exactObject, parse, readJson } from '../body.ts';
import { clientSchema, clientWish } from '../client.ts';
import { findJob } from '../find-job.ts';
import { isJobId } from '../ids.ts';
import { metadataSchema } from '../metadata.ts';
import { inputSchema, outputPrefixSchema, outputWish } from '../places.ts';
import { unknownCursor } from '../query.ts';
import { requester } from '../requester.ts';
import { requestSchema, requestWish } from '../resource-wish.ts';
import { pathId } from '../routes.ts';
import type { ApiContext, Route } from '../routes.ts';
import { endpointSchema, submitJob, prioritySchema, validationSchema } from '../submit.ts';
import type { FieldNames, JobWish } from '../submit.ts';
import { jobWebhook, webhookSchema } from '../webhook-target.ts';
import { explainRoute } from './explain.ts';
import { jobActionRoutes } from './job-actions.ts';
import { jobChoice, listSchema } from './job-filter.ts';
import { fullView } from './job-read.ts';
import type { JobsDeps } from './job-read.ts';
import { eraseJob } from './job-erase.ts';
import { jobNameSchema, listQuery, windowSchema } from './request.ts';
import { snakeKeys } from './snake-keys.ts';

export type { JobsDeps } from './job-read.ts';
export { listSchema } from './job-filter.ts';

/** The Console API's jobs: snake_case out, both cases in. */
export function jobRoutes(deps: JobsDeps): Route[] {
  return [
    { path: '/api/v1/jobs', get: (c) => list(c, deps), post: (c) => create(c, deps) },
    {
      path: '/api/v1/jobs/:id',
      async get(c) {
        return c.json(await fullView(deps, await findJob(deps.store.jobs, pathId(c))));
      },
      delete: (c) => eraseJob(c, deps),
    },
    { path: '/api/v1/jobs/:id/cancel', post: (c) => cancel(c, deps) },
    explainRoute(deps),
    ...jobActionRoutes(deps),
  ];
}

/** What the Console calls the fields that a refusal may name. */
export const JOB_FIELDS: FieldNames = {
  input: 'input_dataset',
  template: 'model_template_name',
  resources: 'resource_request',
};

const OWNER_RULE = 'a text of at most 255 characters';
const MODEL_RULE = 'the id of a model of /api/v1/models';
const TEMPLATE_RULE = 'the name or version of a deployment template';
const COUNT_RULE = 'a whole number of requests, 0 or more';
const INJECTION_RULE =
  'left out, or not enabled: this server injects no errors into jobs. To see failures, run a job against an engine that fails';
export const createSchema = exactObject({
  input_dataset: inputSchema,
  endpoint: endpointSchema,
  completion_window: windowSchema,
  name: v.nullish(jobNameSchema, ''),
  metadata: v.nullish(metadataSchema),
  client: v.nullish(clientSchema),
  created_by: v.nullish(v.pipe(v.string(OWNER_RULE), v.maxLength(255, OWNER_RULE)), ''),
  model_id: v.nullish(v.string(MODEL_RULE), ''),
  model_template_name: v.nullish(v.string(TEMPLATE_RULE), ''),
  model_template_version: v.nullish(v.string(TEMPLATE_RULE), ''),
  request_count_total: v.nullish(
    v.pipe(v.number(COUNT_RULE), v.integer(COUNT_RULE), v.minValue(0, COUNT_RULE)),
    0,
  ),
  resource_request: v.nullish(requestSchema),
  injection_config: v.nullish(
    v.pipe(
      v.looseObject({ enabled: v.nullish(v.unknown()) }, 'an object'),
      v.check(({ enabled }) => !enabled, INJECTION_RULE),
    ),
  ),
  webhook: webhookSchema,
  validation: validationSchema,
  priority: prioritySchema,
  output_prefix: outputPrefixSchema,
});

/** What a request's body asks for, whether it is created or only validated. */
export async function readWish(c: ApiContext, deps: JobsDeps): Promise<JobWish> {
  const body = parse(createSchema, snakeKeys(await readJson(c.env.incoming), ['metadata']));
  const { maxConcurrency, options } = clientWish(body.client);
  const resources = requestWish(body.resource_request);
  return {
    ...(await modelWish(deps, body)),
    ...(resources === null ? {} : { resources }),
    name: body.name,
    endpoint: body.endpoint,
    input: body.input_dataset,
    ...outputWish(body.output_prefix, 'output_prefix'),
    completionWindow: body.completion_window ?? '24h',
    metadata: body.metadata ?? {},
    maxConcurrency,
    engines: [],
    options: {
      ...options,
      owner: body.created_by || requester(c),
      expectedRequests: body.request_count_total || null,
      webhook: jobWebhook(deps, body.webhook, 'webhook'),
      ...(body.validation ? { validation: body.validation } : {}),
      ...(body.priority ? { priority: body.priority } : {}),
    },
  };
}

async function create(c: ApiContext, deps: JobsDeps): Promise<Response> {
  const wish = await readWish(c, deps);
  const idempotencyKey = c.var.creationKey;
  const job = await submitJob(deps, wish, { idempotencyKey, fields: JOB_FIELDS });
  return c.json(await fullView(deps, job));
}

/** A template by its name; a model alone pins what it is served as. */
async function modelWish(
  { store }: JobsDeps,
  body: Pick<
    v.InferOutput<typeof createSchema>,
    'model_id' | 'model_template_name' | 'model_template_version'
  >,
): Promise<Pick<JobWish, 'template' | 'model'>> {
  const { model_id: modelId, model_template_name: name, model_template_version: version } = body;
  if (name !== '') {
    const param = 'model_template_name';
    return {
      template: { name, modelId: modelId || undefined, version: version || undefined, param },
    };
  }
  if (version !== '') {
    const message =
      'A model_template_version needs the model_template_name that it is a version of.';
    throw invalidInput('missing_required_parameter', message, { param: 'model_template_name' });
  }
  if (modelId === '') return {};
  const model = isModelId(modelId) ? await store.models.get(modelId) : null;
  if (model !== null) {
    return { model: { name: model.serving_name, param: 'model_id', id: modelId } };
  }
  const message = `There is no model '${modelId.slice(0, 100)}': GET /api/v1/models lists all.`;
  throw invalidInput('model_not_found', message, { param: 'model_id' });
}

async function list(c: ApiContext, deps: JobsDeps): Promise<Response> {
  const filter = parse(listSchema, listQuery(c));
  const { after, limit } = filter;
  if (after !== '' && !isJobId(after)) throw unknownCursor('job', after);
  const choice = jobChoice(filter);
  const { jobs, hasMore, cursor } = await deps.store.jobs.page({ ...choice, limit, after });
  const views = await Promise.all(jobs.map((job) => fullView(deps, job)));
  return c.json({
    jobs: views,
    first_id: views[0]?.id ?? '',
    // What the next page goes on after: with a filter it may lie behind the last job that is shown.
    last_id: hasMore ? cursor : (views.at(-1)?.id ?? ''),
    has_more: hasMore,
  });
}

async function cancel(c: ApiContext, deps: JobsDeps): Promise<Response> {
  const job = await findJob(deps.store.jobs, pathId(c));
  const after = isOpen(job.state) ? await deps.stopJob(job.id, 'cancelled') : job;
  return c.json(await fullView(deps, after));
}
