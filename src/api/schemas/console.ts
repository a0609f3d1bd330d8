import * as v from 'valibot';
import { JOB_CLASSES, JOB_STATES, ON_ERROR_RATE, UPSTREAM_STREAMS } from '../../domain/job.ts';
import { MODEL_CATEGORIES } from '../../domain/model.ts';
import { PROVISION_STATES } from '../../domain/provision.ts';
import { TEMPLATE_STATUSES } from '../../domain/template.ts';
import { WEBHOOK_EVENTS } from '../../domain/webhook.ts';
import { countsSchema } from './openai.ts';

/**
 * What the answers of the Console API look like, for its description. Its messages leave no field out: what is
 * unknown is an empty text, 0 or null.
 */
const text = v.string();
const whole = v.pipe(v.number(), v.integer());
const time = v.pipe(whole, v.metadata({ description: 'Unix seconds; 0: has not happened.' }));

const whenAdaptive = v.pipe(
  v.nullable(whole),
  v.description('Null: `adaptive_concurrency` is false.'),
);
const ownLimit = v.pipe(v.nullable(v.number()), v.description('Null: no limit of its own.'));

const eventSchema = v.looseObject({
  id: text,
  label: text,
  source: text,
  status: text,
  at: time,
  message: text,
  duration_seconds: whole,
});

const jobProvisionSchema = v.looseObject({
  provision_id: text,
  provider: text,
  status: text,
  region: text,
  error_message: text,
  created_at: time,
  updated_at: time,
  raw_json: text,
});

export const jobSchema = v.looseObject({
  id: text,
  batch_id: v.pipe(text, v.description('The same job under /v1/batches.')),
  name: text,
  endpoint: text,
  model: text,
  input_dataset: text,
  output_dataset: text,
  error_dataset: text,
  manifest: v.pipe(text, v.description('Path of the manifest of its files; empty: it has none.')),
  input_location: v.pipe(
    text,
    v.description("URL of an input in a bucket of the user's, else ''."),
  ),
  output_prefix: v.pipe(
    text,
    v.description("Folder in a bucket of the user's that its files go to, else ''."),
  ),
  completion_window: text,
  status: v.picklist(JOB_STATES),
  created_at: time,
  queued_at: time,
  resource_preparing_at: time,
  submitting_at: time,
  in_progress_at: time,
  finalizing_at: time,
  completed_at: time,
  expires_at: time,
  request_counts: v.nullable(countsSchema),
  usage: v.nullable(
    v.looseObject({ input_tokens: whole, output_tokens: whole, total_tokens: whole }),
  ),
  prefix_cache_hit_rate: v.pipe(
    v.nullable(v.number()),
    v.description(
      'Share of the input tokens, 0 to 1, that engines had in their prefix caches. Null until one says so in its usage: vLLM does with --enable-prompt-tokens-details.',
    ),
  ),
  metadata: v.record(text, text),
  errors: v.array(v.object({ code: text, message: text, param: text, line: whole })),
  error_message: text,
  error_code: text,
  created_by: text,
  retry_of: text,
  priority: v.picklist(JOB_CLASSES),
  client: v.pipe(
    v.looseObject({
      max_concurrency: whole,
      adaptive_concurrency: v.boolean(),
      adaptive_max_factor: v.pipe(
        v.nullable(v.number()),
        v.description('Null: no bound but `max_concurrency`, or not adaptive.'),
      ),
      adaptive_healthy_window: whenAdaptive,
      adaptive_additive_increase: whenAdaptive,
      retry_policy: v.object({
        max_retries: whole,
        base_delay_seconds: v.number(),
        max_delay_seconds: v.number(),
      }),
      requests_per_second: ownLimit,
      tokens_per_minute: ownLimit,
      request_timeout_seconds: v.pipe(
        v.nullable(v.number()),
        v.description('Null: `REQUEST_TIMEOUT` and `ANSWER_TIMEOUT` of the server hold.'),
      ),
      upstream_stream: v.picklist(UPSTREAM_STREAMS),
      on_error_rate: v.picklist(ON_ERROR_RATE),
      hedging: v.boolean(),
    }),
    v.description(
      'How its lines are sent, in the words of the request: as asked for, else as the server does by default.',
    ),
  ),
  paused_at: v.pipe(
    whole,
    v.description('Unix seconds since when it is paused, whatever its status; 0: it is not.'),
  ),
  paused_by: v.pipe(text, v.description('Who paused it; empty where nobody said.')),
  provision_id: text,
  provision: v.nullable(jobProvisionSchema),
  events: v.array(eventSchema),
});

export const jobListSchema = v.looseObject({
  jobs: v.array(jobSchema),
  first_id: text,
  last_id: text,
  has_more: v.boolean(),
});

export const explanationSchema = v.object({
  id: text,
  status: v.picklist(JOB_STATES),
  code: v.pipe(text, v.description('A stable word for what is in its way.')),
  explanation: v.pipe(text, v.description('One sentence for people.')),
});

export const modelSchema = v.looseObject({
  id: text,
  name: text,
  categories: v.array(v.picklist(MODEL_CATEGORIES)),
  context_length: text,
  description: text,
  serving_name: v.pipe(text, v.description('What requests name as `model`.')),
  tags: v.array(text),
});

export const modelListSchema = v.object({ models: v.array(modelSchema) });

export const templateSchema = v.looseObject({
  id: text,
  name: text,
  version: text,
  status: v.picklist(TEMPLATE_STATUSES),
  model_id: text,
  spec: v.looseObject({}),
  used: v.pipe(v.boolean(), v.description('From the first job on only its status may change.')),
  created_at: text,
  updated_at: text,
});

export const templateListSchema = v.object({ templates: v.array(templateSchema) });

export const provisionSchema = v.looseObject({
  ...jobProvisionSchema.entries,
  id: text,
  job_id: text,
  status: v.picklist(PROVISION_STATES),
  owner: v.pipe(text, v.description('`sluice`, or `caller`: shown and used, never destroyed.')),
  address: text,
});

export const provisionListSchema = v.object({
  provisions: v.array(provisionSchema),
  first_id: text,
  last_id: text,
  has_more: v.boolean(),
});

const unknownNumber = v.nullable(v.number());

export const offerListSchema = v.object({
  offers: v.array(
    v.looseObject({
      provider: text,
      id: text,
      kind: v.picklist(['engine', 'machine']),
      type: text,
      count: unknownNumber,
      vram_gb: unknownNumber,
      price_per_hour: v.pipe(unknownNumber, v.description('US dollars.')),
      stock: v.picklist(['available', 'unavailable', 'unknown']),
      region: text,
      address: text,
      models: v.array(text),
      error: text,
      checked_at: time,
    }),
  ),
});

export const webhookSchema = v.object({
  id: text,
  object: v.literal('webhook'),
  url: text,
  events: v.array(v.picklist(WEBHOOK_EVENTS)),
  status: v.picklist(['active', 'disabled']),
  disabled_reason: text,
  created_at: time,
});

export const newWebhookSchema = v.object({
  ...webhookSchema.entries,
  secret: v.pipe(text, v.description('Shown here only; it signs every event.')),
});

export const webhookListSchema = v.object({ webhooks: v.array(webhookSchema) });

export const webhookEventSchema = v.object({
  id: text,
  object: v.literal('event'),
  type: text,
  created_at: time,
  data: v.object({ id: text }),
});

export const deliveryListSchema = v.object({
  deliveries: v.array(
    v.looseObject({
      event_id: text,
      type: text,
      attempt: whole,
      status: text,
      error: text,
      at: time,
      next_at: v.nullable(time),
    }),
  ),
});
