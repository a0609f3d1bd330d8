import * as v from 'valibot';
import {
  DEFAULT_OPTIONS,
  ENDPOINTS,
  JOB_EVENT_KINDS,
  JOB_STATES,
  OUTCOMES,
  JOB_CLASSES,
  ON_ERROR_RATE,
  UPSTREAM_STREAMS,
} from '../domain/job.ts';
import type { JobEvent, JobRecord } from '../domain/job.ts';
import { LEASE_PROVIDERS } from '../domain/provision.ts';
import { REMOTE_ENDS } from '../domain/remote.ts';
import { count, integer, jsonText, parseEntered, parseRecord, textOrNull } from './parse.ts';
import type { Fields } from './parse.ts';
import { templateSpec } from './templates.ts';

const strings = v.pipe(v.optional(v.string(), '[]'), jsonText, v.array(v.string()));

const jobError = v.object({
  code: v.string(),
  message: v.string(),
  line: v.nullable(v.number()),
  param: v.nullable(v.string()),
});

const retryPolicy = v.object({ maxRetries: v.number(), baseMs: v.number(), capMs: v.number() });
const limits = v.object({
  requestsPerSecond: v.nullable(v.number()),
  tokensPerMinute: v.nullable(v.number()),
});
const adaptive = v.object({
  maxFactor: v.nullable(v.number()),
  healthyWindow: v.number(),
  additiveIncrease: v.number(),
});
const template = v.object({ name: v.string(), version: v.string() });
const resources = v.object({
  spec: templateSpec,
  servingName: v.string(),
  templateId: v.string(),
  replicas: v.number(),
  providers: v.array(v.picklist(LEASE_PROVIDERS)),
  regions: v.array(v.string()),
  gpuTypes: v.array(v.string()),
  interruptible: v.boolean(),
  maxPricePerHour: v.nullable(v.number()),
  maxCostUsd: v.nullable(v.number()),
  maxIdleMinutes: v.nullable(v.number()),
  namespace: v.exactOptional(v.string()),
  form: v.exactOptional(v.literal('job')),
  machine: v.exactOptional(
    v.object({
      login: v.object({ host: v.string(), port: v.number(), user: v.string() }),
      hostKey: v.nullable(v.string()),
    }),
  ),
});

const options = v.pipe(
  v.optional(v.string(), '{}'),
  jsonText,
  v.object({
    owner: v.optional(v.string(), DEFAULT_OPTIONS.owner),
    outputExpiresAfter: v.optional(v.nullable(v.number()), DEFAULT_OPTIONS.outputExpiresAfter),
    validation: v.optional(v.picklist(['strict', 'lenient']), DEFAULT_OPTIONS.validation),
    retryOf: v.optional(v.nullable(v.string()), DEFAULT_OPTIONS.retryOf),
    webhook: v.optional(v.nullable(v.string()), DEFAULT_OPTIONS.webhook),
    retry: v.optional(v.nullable(retryPolicy), DEFAULT_OPTIONS.retry),
    answerTimeoutMs: v.optional(v.nullable(v.number()), DEFAULT_OPTIONS.answerTimeoutMs),
    limits: v.optional(limits, DEFAULT_OPTIONS.limits),
    upstreamStream: v.optional(v.picklist(UPSTREAM_STREAMS), DEFAULT_OPTIONS.upstreamStream),
    adaptive: v.optional(v.nullable(adaptive), DEFAULT_OPTIONS.adaptive),
    priority: v.optional(v.picklist(JOB_CLASSES), DEFAULT_OPTIONS.priority),
    onErrorRate: v.optional(v.picklist(ON_ERROR_RATE), DEFAULT_OPTIONS.onErrorRate),
    hedging: v.optional(v.boolean(), DEFAULT_OPTIONS.hedging),
    template: v.optional(v.nullable(template), DEFAULT_OPTIONS.template),
    pinnedModel: v.optional(v.nullable(v.string()), DEFAULT_OPTIONS.pinnedModel),
    expectedRequests: v.optional(v.nullable(v.number()), DEFAULT_OPTIONS.expectedRequests),
    inputLocation: v.optional(v.nullable(v.string()), DEFAULT_OPTIONS.inputLocation),
    outputPrefix: v.optional(v.nullable(v.string()), DEFAULT_OPTIONS.outputPrefix),
    resources: v.optional(v.nullable(resources), DEFAULT_OPTIONS.resources),
  }),
);

const remote = v.object({
  url: v.string(),
  file: v.nullable(v.string()),
  asked: v.nullable(v.object({ at: v.number(), by: v.string() })),
  batch: v.nullable(v.string()),
  end: v.nullable(
    v.object({
      status: v.picklist(REMOTE_ENDS),
      output: v.nullable(v.string()),
      error: v.nullable(v.string()),
    }),
  ),
});

const jobFields = v.object({
  state: v.picklist(JOB_STATES),
  version: integer,
  wake: integer,
  outcome: v.optional(v.picklist(OUTCOMES)),
  name: v.string(),
  endpoint: v.picklist(ENDPOINTS),
  input: v.string(),
  window: v.string(),
  deadline: integer,
  // Not `v.record`, which drops keys such as `constructor`.
  metadata: v.pipe(jsonText, v.custom<Record<string, string>>(isStringRecord)),
  max_concurrency: integer,
  engines: strings,
  options,
  remote: v.optional(v.pipe(jsonText, remote)),
  cut: v.pipe(jsonText, v.object({ lines: v.number(), bytes: v.number() })),
  models: strings,
  given_up: strings,
  lines: count,
  shards: count,
  done_shards: count,
  completed: count,
  failed: count,
  tokens_in: count,
  tokens_cached: count,
  tokens_out: count,
  tokens_reasoning: count,
  output_file: textOrNull,
  error_file: textOrNull,
  errors: v.pipe(v.optional(v.string(), '[]'), jsonText, v.array(jobError)),
  reason: v.optional(v.string(), ''),
  paused_at: v.optional(integer),
  paused_by: v.optional(v.string(), ''),
  created_at: integer,
});

/** A job of its hash's fields; throws `store.damaged_record` (Permanent) with the field at fault. */
export function parseJobRecord(id: string, fields: Fields): JobRecord {
  const job = parseRecord(id, jobFields, fields);
  return {
    id,
    state: job.state,
    version: job.version,
    wake: job.wake,
    outcome: job.outcome ?? null,
    name: job.name,
    endpoint: job.endpoint,
    input: job.input,
    completionWindow: job.window,
    deadline: job.deadline,
    metadata: job.metadata,
    maxConcurrency: job.max_concurrency,
    engines: job.engines,
    options: job.options,
    remote: job.remote ?? null,
    cut: job.cut,
    models: job.models,
    givenUp: job.given_up,
    lines: job.lines,
    shards: job.shards,
    doneShards: job.done_shards,
    completed: job.completed,
    failed: job.failed,
    usage: {
      inputTokens: job.tokens_in,
      cachedTokens: job.tokens_cached,
      outputTokens: job.tokens_out,
      reasoningTokens: job.tokens_reasoning,
    },
    outputFile: job.output_file,
    errorFile: job.error_file,
    errors: job.errors,
    reason: job.reason,
    pausedAt: job.paused_at ?? null,
    pausedBy: job.paused_by,
    createdAt: job.created_at,
    enteredAt: parseEntered(id, JOB_STATES, fields),
  };
}

function isStringRecord(value: unknown): boolean {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
  return Object.values(value).every((each) => typeof each === 'string');
}

const eventFields = v.tuple([
  v.literal('state'),
  v.picklist(JOB_STATES),
  v.literal('message'),
  v.string(),
  v.optional(v.literal('kind'), 'kind'),
  v.optional(v.picklist(JOB_EVENT_KINDS), 'state'),
]);

/** An entry of a job's history; its id begins with Redis' time in ms. */
export function parseJobEvent(jobId: string, id: string, fields: string[]): JobEvent {
  const [, state, , message, , kind] = parseRecord(`${jobId} event ${id}`, eventFields, fields);
  return { id, at: Number(id.split('-')[0]), kind, state, message };
}
