import * as v from 'valibot';
import { JOB_CLASSES, JOB_STATES, ON_ERROR_RATE, UPSTREAM_STREAMS } from '../../domain/job.ts';
import { ATTEMPT_STATES } from '../../domain/lease.ts';
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
  raw_json: v.pipe(
    text,
    v.description(
      'All that is known of it, as JSON in camelCase. `attempts` are the machines that were asked for, also after every ' +
        "ending: `provider`, `name`, `machineId`, `region`, `pricePerHour`, when it was asked for, created, reached and gone, `error`, and `raw`, the provider's own last answer. In a job `others` are its other provisions.",
    ),
  ),
});

const dollars = v.pipe(v.number(), v.description('US dollars.'));
const dollarsOrNull = v.nullable(dollars);

const allocationSchema = v.looseObject({
  provision_id: text,
  resource_details: v.array(
    v.looseObject({
      gpu_type: text,
      replica: v.pipe(whole, v.description('How many such machines.')),
      extra: v.pipe(
        v.record(text, text),
        v.description('`provider`, `region`, `offer`, `gpu_count`, `price_per_hour`.'),
      ),
    }),
  ),
  requested: v.looseObject({
    replicas: whole,
    provider: v.array(text),
    regions: v.array(text),
    gpu_types: v.array(text),
    gpu_count: whole,
    interruptible: v.boolean(),
    max_price_per_hour: dollarsOrNull,
    max_cost_usd: dollarsOrNull,
    max_idle_minutes: v.nullable(v.number()),
  }),
  raw_json: text,
});

const costSchema = v.object({
  so_far_usd: v.pipe(
    v.number(),
    v.description('US dollars, of all machines that it ever had and whose price is known.'),
  ),
  per_hour_usd: v.pipe(v.number(), v.description('US dollars, of those that it has now.')),
  unpriced_machines: v.pipe(
    whole,
    v.description('Machines whose price nobody knows; the cost leaves them out.'),
  ),
  is_final: v.pipe(v.boolean(), v.description('It is over, and no machine of it costs any more.')),
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
  resource_allocation: v.pipe(
    v.nullable(allocationSchema),
    v.description(
      'The machines that it has, had, or asks for. Null: none are leased for it, it runs on engines that are there.',
    ),
  ),
  cost: v.pipe(
    v.nullable(costSchema),
    v.description('What its machines have cost. Null: none are leased for it.'),
  ),
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

const unknownNumber = v.nullable(v.number());

const machineFields = {
  id: text,
  name: v.pipe(text, v.description('What the provider calls it, too.')),
  region: text,
  gpu_type: text,
  gpu_count: whole,
  price_per_hour: v.pipe(unknownNumber, v.description('US dollars.')),
};

export const machineListSchema = v.object({
  machines: v.array(
    v.looseObject({
      provider: text,
      ...machineFields,
      status: v.picklist(['booting', 'running', 'stopping', 'gone']),
      created_at: time,
      use: v.pipe(
        v.picklist(['wanted', 'unwanted', 'orphan', 'gone']),
        v.description('`unwanted`: its provision has no use for it. `orphan`: no record names it.'),
      ),
      reason: v.pipe(text, v.description('Why nobody wants it, or why it is left alone.')),
      provision_id: text,
      job_id: text,
    }),
  ),
  failures: v.array(v.object({ provider: text, reason: text })),
});

export const provisionSchema = v.looseObject({
  ...jobProvisionSchema.entries,
  id: text,
  job_id: text,
  status: v.picklist(PROVISION_STATES),
  machine: v.pipe(
    v.nullable(v.looseObject({ ...machineFields, status: v.picklist(ATTEMPT_STATES) })),
    v.description('The machine that it stands on, or asked for last. Null: it leases none.'),
  ),
  owner: v.pipe(text, v.description('`sluice`, or `caller`: shown and used, never destroyed.')),
  address: text,
});

export const provisionListSchema = v.object({
  provisions: v.array(provisionSchema),
  first_id: text,
  last_id: text,
  has_more: v.boolean(),
});

export const offerListSchema = v.object({
  offers: v.array(
    v.looseObject({
      provider: text,
      id: text,
      kind: v.picklist(['engine', 'machine']),
      type: text,
      count: unknownNumber,
      architecture: v.pipe(
        v.nullable(v.picklist(['x86_64', 'arm64'])),
        v.description('Of the processors; null: not known.'),
      ),
      vram_gb: unknownNumber,
      price_per_hour: v.pipe(unknownNumber, v.description('US dollars.')),
      stock: v.picklist(['available', 'unavailable', 'unknown']),
      region: v.pipe(text, v.description('The `regions`, with `, ` between.')),
      regions: v.pipe(
        v.array(text),
        v.description('Where it can be had now; empty: the provider does not say.'),
      ),
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
