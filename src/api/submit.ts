import * as v from 'valibot';
import { invalidInput } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';
import { contentKey } from '../domain/file.ts';
import { DEFAULT_OPTIONS, ENDPOINTS, JOB_CLASSES, parseCompletionWindow } from '../domain/job.ts';
import type { Endpoint, JobOptions, JobRecord } from '../domain/job.ts';
import type { JobResources } from '../domain/lease.ts';
import { SHARD_CUT } from '../domain/plan.ts';
import type { ResolvedTemplate } from '../domain/template.ts';
import type { LineRules } from '../domain/plan.ts';
import type { Files } from '../store/files.ts';
import type { NewJob } from '../store/jobs.ts';
import type { WebhookRules } from './webhook-target.ts';
import { canonicalJson } from './body.ts';
import { requireLogin, resolveMachine } from './callers-machine.ts';
import { resolveTemplate, useTemplate } from './console/templates.ts';
import type { TemplatesDeps, TemplateWish } from './console/templates.ts';
import type { ClusterWish, MachineWish } from './engines.ts';
import { derivedText, randomText, sha256 } from './ids.ts';
import { findInput, requireWritable } from './places.ts';
import type { FoundInput, OutputWish, PlacesDeps } from './places.ts';
import {
  isLeasedFor,
  refuseResources,
  renewResources,
  requireCluster,
  resolveResources,
} from './resources.ts';
import type { LeaseDefaults } from './resources.ts';
import { NO_WISH } from './resource-wish.ts';
import type { ResourceWish } from './resource-wish.ts';

/** What creating a job needs, however it was asked for. */
export interface SubmitDeps {
  store: {
    jobs: { get(id: string): Promise<JobRecord | null> };
    files: Pick<Files, 'get' | 'create' | 'delete' | 'forget'>;
  } & TemplatesDeps['store'];
  /** Records the job and starts it. `exists`: this id with this body was there; `other`: with another body. */
  createJob(job: NewJob): Promise<{ outcome: 'created' | 'exists' | 'other'; job: JobRecord }>;
  limits: { maxBatchFileBytes: number };
  webhooks: WebhookRules;
  places: PlacesDeps['places'];
  /** What a job gets that does not say otherwise. */
  defaults: LeaseDefaults & {
    /** Most lines in flight at one engine. */
    maxConcurrency: number;
    /** A service that runs jobs in place of this server, whether or not that has engines. */
    metadataServiceUrl?: string | undefined;
    /** With which machines are logged in to. */
    sshKeyFile?: string | undefined;
  };
}

/** What refusals call the fields of the interface that a job came by. */
export interface FieldNames {
  input: string;
  template: string;
  resources: string;
}

/** A job as a user asks for it through either interface; null: the server's default. */
export interface JobWish {
  /** The id that the job is to have; a fresh one unless given. */
  jobId?: string;
  name: string;
  endpoint: Endpoint;
  /** Id of its file, or URL of an object. */
  input: string;
  /** Where its files go, if not into our storage. */
  output?: OutputWish;
  completionWindow: string;
  metadata: Record<string, string>;
  maxConcurrency: number | null;
  engines: string[];
  /** A machine of the caller's to start the engine on. */
  machine?: MachineWish;
  /** How the cluster of the server is to run it, where it says so. */
  cluster?: ClusterWish;
  options: Partial<JobOptions>;
  /** The deployment template that describes the engine. */
  template?: TemplateWish;
  /** The one model that the lines may name; `param` is the field that says so, `id` that of its record, where known. */
  model?: { name: string; param: string; id?: string };
  /** What it wants of machines that are leased for it. */
  resources?: ResourceWish;
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
 * that the store's own create decides.
 */
export async function submitJob(
  deps: SubmitDeps,
  wish: JobWish,
  {
    idempotencyKey,
    fields,
    inputFollows = false,
  }: {
    idempotencyKey: string | undefined;
    fields: FieldNames;
    /** The input is written later, when the job is planned. */
    inputFollows?: boolean;
  },
): Promise<JobRecord> {
  const {
    jobId,
    template: _template,
    model: _model,
    resources: _resources,
    machine: _machine,
    cluster: _cluster,
    output,
    ...asked
  } = wish;
  const windowMs = parseCompletionWindow(asked.completionWindow);
  const id = jobId ?? creationJobId(idempotencyKey);
  // A repeat must be answered as the first time, even if the input file was deleted since.
  const isNamed = jobId !== undefined || idempotencyKey !== undefined;
  const isRepeat = isNamed && (await deps.store.jobs.get(id)) !== null;
  const checked = isRepeat ? REPEATED : await checkNew(deps, wish, { fields, inputFollows });
  const file = await recordInput(deps, checked.found);
  const { outcome, job } = await deps.createJob({
    ...asked,
    id,
    windowMs,
    input: file?.id ?? asked.input,
    options: {
      ...DEFAULT_OPTIONS,
      ...asked.options,
      ...checked.pinned,
      ...placesOf(file, output),
    },
    maxConcurrency: asked.maxConcurrency ?? deps.defaults.maxConcurrency,
    cut: SHARD_CUT,
    bodyHash: sha256(canonicalJson(wish)),
  });
  if (outcome !== 'created') await forgetInput(deps, checked.found, job);
  if (outcome !== 'other') return job;
  throw taken(id, idempotencyKey);
}

/** The id of a job was used for another request. */
function taken(id: string, idempotencyKey: string | undefined): SluiceError {
  const isDerived = idempotencyKey !== undefined && id === creationJobId(idempotencyKey);
  if (!isDerived) {
    const message = `There is a job '${id}' already that was asked for otherwise: name another one, or none.`;
    return invalidInput('job_id_taken', message, { param: 'aibrix.job_id' });
  }
  return invalidInput(
    'idempotency_key_reused',
    'This Idempotency-Key was used before with another request body: send a new key with a new request.',
    { param: 'Idempotency-Key' },
  );
}

/** What is looked at before a job is created, and of a repeated request not again: it is answered as the first one. */
interface Checked {
  /** Null: nobody has to look at the input. */
  found: FoundInput | null;
  pinned: Partial<JobOptions>;
}

const REPEATED: Checked = { found: null, pinned: {} };

async function checkNew(
  deps: SubmitDeps,
  wish: JobWish,
  { fields, inputFollows }: { fields: FieldNames; inputFollows: boolean },
): Promise<Checked> {
  const found = inputFollows ? null : await findInput(deps, wish.input, fields.input);
  checkEngines(deps, wish);
  if (wish.output !== undefined) await requireWritable(deps, wish.output);
  return { found, pinned: await pinOptions(deps, wish, fields) };
}

function placesOf(
  file: { location?: string } | null,
  output: OutputWish | undefined,
): Pick<JobOptions, 'inputLocation' | 'outputPrefix'> {
  return { inputLocation: file?.location ?? null, outputPrefix: output?.url ?? null };
}

/** An object that a job reads gets a record, by which it can be named, looked at and downloaded. */
async function recordInput(
  { store }: SubmitDeps,
  found: FoundInput | null,
): Promise<{ id: string; location?: string } | null> {
  if (found === null) return null;
  return found.isRecorded ? found.file : store.files.create(found.file);
}

/** Of two requests at once for one job the other one has made it, and its input a record. */
async function forgetInput(
  { store }: SubmitDeps,
  found: FoundInput | null,
  job: JobRecord,
): Promise<void> {
  if (found === null || found.isRecorded || found.file.id === job.input) return;
  await store.files.delete(found.file.id);
  await store.files.forget(found.file.id);
}

/** What template, model and machines make of the options of a job. */
async function pinOptions(
  deps: SubmitDeps,
  wish: JobWish,
  fields: FieldNames,
  { isDryRun = false } = {},
): Promise<Partial<JobOptions>> {
  const asked = templateWish(deps, wish, fields);
  const template = asked === null ? null : await resolveTemplate(deps, asked);
  const { model } = wish;
  if (template === null) {
    const own = callersMachine(deps, wish, null, fields);
    const resources = own ?? machinesFor(deps, wish, null, fields);
    return { ...(model === undefined ? {} : { pinnedModel: model.name }), resources };
  }
  requireServed(template, wish);
  const own = callersMachine(deps, wish, template, fields);
  const resources = own ?? machinesFor(deps, wish, template, fields);
  if (!isDryRun) await useTemplate(deps, template);
  const { name, version, servingName } = template;
  return { pinnedModel: servingName, template: { name, version }, resources };
}

/**
 * The template of a job, which one that machines are leased for has to have: the one that it names, else that of the
 * job which it is a copy of, else the default one. Null: none.
 */
function templateWish(
  { defaults }: SubmitDeps,
  wish: JobWish,
  fields: FieldNames,
): TemplateWish | null {
  if (wish.template !== undefined) return wish.template;
  const { template: copied, resources: kept } = wish.options;
  // What is copied with its machines has its template in them.
  if (kept || (!isLeasedFor(defaults, wish) && wish.machine === undefined)) return null;
  const param = fields.template;
  if (copied) return { ...copied, param };
  const modelId = wish.model?.id;
  if (defaults.defaultTemplate !== null) {
    return { name: defaults.defaultTemplate, modelId, param, isDefault: true };
  }
  const what =
    wish.machine === undefined
      ? `This server leases machines (PROVISIONER=${defaults.providers.join()})`
      : 'An engine is started on your machine';
  throw invalidInput(
    'template_required',
    `${what}, and a deployment template says what is started on them: ` +
      `name one in '${param}', or start the server with DEFAULT_BATCH_MODEL_DEPLOYMENT_TEMPLATE. ` +
      'For an engine that runs already use aibrix.runtime of /v1/batches.',
    { param },
  );
}

/** Refuses a template that serves no such endpoint or another model. */
function requireServed(
  { name, version, servingName, spec }: ResolvedTemplate,
  { endpoint, model }: JobWish,
): void {
  const label = `The template '${name}' in version '${version}'`;
  if (spec.supported_endpoints.length > 0 && !spec.supported_endpoints.includes(endpoint)) {
    const message = `${label} serves ${spec.supported_endpoints.join(', ')}, not ${endpoint}: ask one of these, or use another template.`;
    throw invalidInput('endpoint_not_supported', message, { param: 'endpoint' });
  }
  if (model === undefined || model.name === servingName) return;
  const message = `${label} serves the model '${servingName}', not '${model.name}': leave the model out, or use another template.`;
  throw invalidInput('model_mismatch', message, { param: model.param });
}

/** What a job has that brings its machine with it, or is a copy of one that did; null: it brings none. */
function callersMachine(
  { defaults }: SubmitDeps,
  { machine, resources: asked, options }: JobWish,
  template: ResolvedTemplate | null,
  fields: FieldNames,
): JobResources | null {
  const { resources: kept = null } = options;
  if (template === null) {
    if (kept?.machine === undefined) return null;
    requireLogin(defaults, fields.resources);
    return kept;
  }
  if (machine === undefined) return null;
  if (asked !== undefined) refuseResources(defaults, asked, [machine.login.host], fields.resources);
  return resolveMachine(defaults, machine, template, fields.template);
}

/** The machines that are leased for a job; null: none, it runs on engines that are there. */
function machinesFor(
  { defaults }: SubmitDeps,
  wish: JobWish,
  template: ResolvedTemplate | null,
  fields: FieldNames,
): JobResources | null {
  const { resources: asked = null, engines } = wish;
  const { resources: kept = null } = wish.options;
  if (!isLeasedFor(defaults, wish)) {
    if (asked !== null) refuseResources(defaults, asked, engines, fields.resources);
    return null;
  }
  if (template === null) return kept && renewResources(defaults, kept, fields.resources);
  const params = { param: fields.resources, templateParam: fields.template };
  return resolveResources(defaults, asked ?? NO_WISH, template, params, wish.cluster);
}

/** The id of the job that a request makes: the same one for a request that is repeated, else a fresh one. */
export function creationJobId(idempotencyKey: string | undefined): string {
  return `job_${idempotencyKey === undefined ? randomText() : derivedText(idempotencyKey)}`;
}

/** What creating a job would refuse, short of creating it: returns what its lines must be like, and where its input is. */
export async function checkWish(
  deps: SubmitDeps,
  wish: JobWish,
  fields: FieldNames,
): Promise<{ rules: LineRules; key: string; bytes: number; resources: JobResources | null }> {
  parseCompletionWindow(wish.completionWindow);
  const { file } = await findInput(deps, wish.input, fields.input);
  checkEngines(deps, wish);
  if (wish.output !== undefined) await requireWritable(deps, wish.output);
  const pinned = await pinOptions(deps, wish, fields, { isDryRun: true });
  const { pinnedModel = null, resources = null } = pinned;
  const rules = { endpoint: wish.endpoint, pinnedModel };
  return { rules, key: contentKey(file), bytes: file.bytes, resources };
}

function checkEngines(
  { defaults }: SubmitDeps,
  { engines, machine, cluster, options }: JobWish,
): void {
  requireCluster(defaults, cluster);
  if (machine !== undefined || options.resources?.machine !== undefined) return;
  if (engines.length > 0 || defaults.engineUrls.length > 0 || defaults.providers.length > 0) return;
  if (defaults.metadataServiceUrl !== undefined) return;
  throw invalidInput(
    'no_engine',
    'This server has no engine to run a batch on: start it with ENGINE_URLS=http://host:8000, ' +
      "or name one in the request: aibrix.runtime {target: 'External', options: {base_url: 'http://host:8000'}}.",
    { param: 'aibrix.runtime' },
  );
}
