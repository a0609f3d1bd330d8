import * as v from 'valibot';
import { invalidInput } from '../domain/errors.ts';
import { isExpired } from '../domain/file.ts';
import type { FileRecord } from '../domain/file.ts';
import { DEFAULT_OPTIONS, ENDPOINTS, JOB_CLASSES, parseCompletionWindow } from '../domain/job.ts';
import type { Endpoint, JobOptions, JobRecord } from '../domain/job.ts';
import { SHARD_CUT } from '../domain/plan.ts';
import type { LineRules } from '../domain/plan.ts';
import type { NewJob } from '../store/jobs.ts';
import type { WebhookRules } from './webhook-target.ts';
import { canonicalJson } from './body.ts';
import { resolveTemplate, useTemplate } from './console/templates.ts';
import type { TemplatesDeps, TemplateWish } from './console/templates.ts';
import { derivedText, isFileId, randomText, sha256 } from './ids.ts';

/** What creating a job needs, however it was asked for. */
export interface SubmitDeps {
  store: {
    jobs: { get(id: string): Promise<JobRecord | null> };
    files: { get(id: string): Promise<FileRecord | null> };
  } & TemplatesDeps['store'];
  /** Records the job and starts it. `exists`: this id with this body was there; `other`: with another body. */
  createJob(job: NewJob): Promise<{ outcome: 'created' | 'exists' | 'other'; job: JobRecord }>;
  limits: { maxBatchFileBytes: number };
  webhooks: WebhookRules;
  /** What a job gets that does not say otherwise. */
  defaults: {
    /** Most lines in flight at one engine. */
    maxConcurrency: number;
    /** The engines of this server. */
    engineUrls: readonly string[];
  };
}

/** A job as a user asks for it through either interface; null: the server's default. */
export interface JobWish {
  /** The id that the job is to have; a fresh one unless given. */
  jobId?: string;
  name: string;
  endpoint: Endpoint;
  input: string;
  completionWindow: string;
  metadata: Record<string, string>;
  maxConcurrency: number | null;
  engines: string[];
  options: Partial<JobOptions>;
  /** The deployment template that describes the engine. */
  template?: TemplateWish;
  /** The one model that the lines may name; `param` is the field that says so. */
  model?: { name: string; param: string };
}

/** Whether one bad line fails a batch, or is answered in the error file while the rest runs. */
export const validationSchema = v.nullish(
  v.picklist(
    ['strict', 'lenient'],
    "'strict' (one bad line fails the batch) or 'lenient' (bad lines go to the error file)",
  ),
);

/** Whose lines go first; jobs of one class take turns. */
export const prioritySchema = v.nullish(
  v.picklist(JOB_CLASSES, `one of ${JOB_CLASSES.join(', ')}: jobs of a class take turns`),
);

export const endpointSchema = v.picklist(ENDPOINTS, `one of ${ENDPOINTS.join(', ')}`);

/**
 * Creates the job, or finds the one that the same `Idempotency-Key` made before: its id is derived from the key, so
 * that the store's own create decides. `param` is the name that the input file has in this interface.
 */
export async function submitJob(
  deps: SubmitDeps,
  wish: JobWish,
  {
    idempotencyKey,
    param,
    inputFollows = false,
  }: {
    idempotencyKey: string | undefined;
    param: string;
    /** The input is written later, when the job is planned. */
    inputFollows?: boolean;
  },
): Promise<JobRecord> {
  const { jobId, template: _template, model: _model, ...asked } = wish;
  const windowMs = parseCompletionWindow(asked.completionWindow);
  const id = jobId ?? creationJobId(idempotencyKey);
  // A repeat must be answered as the first time, even if the input file was deleted since.
  const isNamed = jobId !== undefined || idempotencyKey !== undefined;
  const isRepeat = isNamed && (await deps.store.jobs.get(id)) !== null;
  if (!isRepeat && !inputFollows) await checkInput(deps, asked.input, param);
  checkEngines(deps, asked.engines);
  const pinned = isRepeat ? {} : await pinModel(deps, wish);
  const { outcome, job } = await deps.createJob({
    ...asked,
    id,
    windowMs,
    options: { ...DEFAULT_OPTIONS, ...asked.options, ...pinned },
    maxConcurrency: asked.maxConcurrency ?? deps.defaults.maxConcurrency,
    cut: SHARD_CUT,
    bodyHash: sha256(canonicalJson(wish)),
  });
  if (outcome !== 'other') return job;
  const isDerived = idempotencyKey !== undefined && id === creationJobId(idempotencyKey);
  if (!isDerived) {
    const message = `There is a job '${id}' already that was asked for otherwise: name another one, or none.`;
    throw invalidInput('job_id_taken', message, { param: 'aibrix.job_id' });
  }
  throw invalidInput(
    'idempotency_key_reused',
    'This Idempotency-Key was used before with another request body: send a new key with a new request.',
    { param: 'Idempotency-Key' },
  );
}

/** What a template or model makes of a job: the model that each line must name, and an endpoint that is served. */
async function pinModel(
  deps: SubmitDeps,
  wish: JobWish,
  { isDryRun = false } = {},
): Promise<Partial<JobOptions>> {
  const { template: asked, model, endpoint } = wish;
  if (asked === undefined) return model === undefined ? {} : { pinnedModel: model.name };
  const template = await resolveTemplate(deps, asked);
  const { name, version, servingName, spec } = template;
  const label = `The template '${name}' in version '${version}'`;
  if (spec.supported_endpoints.length > 0 && !spec.supported_endpoints.includes(endpoint)) {
    const message = `${label} serves ${spec.supported_endpoints.join(', ')}, not ${endpoint}: ask one of these, or use another template.`;
    throw invalidInput('endpoint_not_supported', message, { param: 'endpoint' });
  }
  if (model !== undefined && model.name !== servingName) {
    const message = `${label} serves the model '${servingName}', not '${model.name}': leave the model out, or use another template.`;
    throw invalidInput('model_mismatch', message, { param: model.param });
  }
  if (!isDryRun) await useTemplate(deps, template);
  return { pinnedModel: servingName, template: { name, version } };
}

/** The id of the job that a request makes: the same one for a request that is repeated, else a fresh one. */
export function creationJobId(idempotencyKey: string | undefined): string {
  return `job_${idempotencyKey === undefined ? randomText() : derivedText(idempotencyKey)}`;
}

/** What creating a job would refuse, short of creating it: returns what its lines must be like, and its input. */
export async function checkWish(
  deps: SubmitDeps,
  wish: JobWish,
  param: string,
): Promise<{ rules: LineRules; file: FileRecord }> {
  parseCompletionWindow(wish.completionWindow);
  const file = await checkInput(deps, wish.input, param);
  checkEngines(deps, wish.engines);
  const { pinnedModel = null } = await pinModel(deps, wish, { isDryRun: true });
  return { rules: { endpoint: wish.endpoint, pinnedModel }, file };
}

async function checkInput(deps: SubmitDeps, fileId: string, param: string): Promise<FileRecord> {
  const file = isFileId(fileId) ? await deps.store.files.get(fileId) : null;
  if (file === null || isExpired(file, Date.now())) {
    const message = `There is no file '${fileId.slice(0, 100)}': GET /v1/files lists all, POST /v1/files uploads one.`;
    throw invalidInput('invalid_input_file', message, { param });
  }
  if (file.purpose !== 'batch') {
    throw invalidInput(
      'invalid_input_file',
      `File '${file.id}' has the purpose '${file.purpose}'; the input of a batch needs 'batch'.`,
      { param },
    );
  }
  const limit = deps.limits.maxBatchFileBytes;
  if (file.bytes > limit) {
    throw invalidInput(
      'invalid_input_file',
      `File '${file.id}' has ${file.bytes} bytes; the input of a batch may have at most ${limit}.`,
      { param },
    );
  }
  return file;
}

function checkEngines({ defaults }: SubmitDeps, engines: readonly string[]): void {
  if (engines.length > 0 || defaults.engineUrls.length > 0) return;
  throw invalidInput(
    'no_engine',
    'This server has no engine to run a batch on: start it with ENGINE_URLS=http://host:8000, ' +
      "or name one in the request: aibrix.runtime {target: 'External', options: {base_url: 'http://host:8000'}}.",
    { param: 'aibrix.runtime' },
  );
}
