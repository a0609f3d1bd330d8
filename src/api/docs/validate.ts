import * as v from 'valibot';
import { ENDPOINTS } from '../../domain/job.ts';
import { createSchema as createJobSchema } from '../console/jobs.ts';
import { createSchema as createBatchSchema } from '../openai/batches.ts';
import { validationView } from '../validate.ts';
import { EXAMPLE_IDS } from './examples.ts';
import type { Answer, Docs } from './operation.ts';

const count = v.pipe(v.number(), v.integer(), v.minValue(0));

const WARNINGS =
  'What may keep a batch waiting, or end it, and does not make it invalid. `no_engine_answers`: none of the engines of ' +
  '`ENGINE_URLS` could be asked, and the batch would wait for one. `model_not_served` names a model of the input that ' +
  'none of them serves: where one is silent, its lines would wait; where all answer and go on so for 30 s, a `strict` ' +
  'job ends as `submit_failed`, and a `lenient` one fails these lines, or ends so, too, where none of its models is ' +
  'served. The engines are asked for their `/v1/models` as for `/api/v1/catalog`, each for at most 2 seconds, and the ' +
  'answer is used for 10. Engines that the request names in `aibrix.runtime` are not asked. `lease.…`: no machine that the ' +
  'catalog of the providers has now fits the template and the request.';

const validationSchema = v.object({
  object: v.literal('batch.validation'),
  valid: v.pipe(v.boolean(), v.description('Whether a batch from this body would be run.')),
  validation: v.picklist(['strict', 'lenient']),
  input_file_id: v.string(),
  endpoint: v.picklist(ENDPOINTS),
  bytes: v.pipe(count, v.description('Of the whole file.')),
  total_lines: v.pipe(count, v.description('Lines read: all, or one more than are allowed.')),
  bad_lines: count,
  problems: v.object({
    object: v.literal('list'),
    data: v.pipe(
      v.array(
        v.object({
          code: v.string(),
          message: v.string(),
          line: v.nullable(v.pipe(count, v.description('Line of the input file, from 1.'))),
          param: v.nullable(v.string()),
        }),
      ),
      v.description('The first 100 by line.'),
    ),
    total: count,
  }),
  warnings: v.pipe(
    v.object({
      object: v.literal('list'),
      data: v.array(
        v.object({ code: v.string(), message: v.string(), param: v.nullable(v.string()) }),
      ),
    }),
    v.description(WARNINGS),
  ),
  models: v.array(v.string()),
  estimated_input_tokens: v.pipe(
    count,
    v.description('Bytes of text in what the model reads, divided by 4; images and the like not.'),
  ),
  estimate_basis: v.string(),
  max_output_tokens: v.pipe(
    count,
    v.description('The sum of the limits that lines give, times `n` where they ask for several.'),
  ),
  lines_without_output_limit: count,
  cost_estimate: v.pipe(
    v.nullable(
      v.object({
        usd: v.pipe(
          v.nullable(v.number()),
          v.description('US dollars, of all machines; null where nobody knows their price.'),
        ),
        basis: v.pipe(
          v.picklist(['measured', 'assumed']),
          v.description(
            '`assumed`: the template was never run on such a GPU, and the estimate may be off by several times.',
          ),
        ),
        seconds: v.pipe(count, v.description('From the request for machines to their release.')),
        output_tokens: count,
        provider: v.string(),
        gpu_type: v.string(),
        gpu_count: v.pipe(count, v.description('Of one machine.')),
        replicas: count,
        price_per_hour: v.pipe(
          v.nullable(v.number()),
          v.description('US dollars, of one machine.'),
        ),
      }),
    ),
    v.description(
      'On the cheapest machine of the catalog that fits. Null: none is leased for it, or none fits now, which `warnings` says.',
    ),
  ),
});

const DESCRIPTION =
  'The same body as for creating, and nothing is created. Two inputs are validated at once; a third request is ' +
  'answered 429. One that hangs up ends its validation.';

const problem = {
  code: 'invalid_json_line',
  message: "This line is not parseable as valid JSON. Column 1: expected a value, got 'n'.",
  line: 17,
  param: null,
};

const EXAMPLE_COST = {
  usd: 0.51,
  basis: 'assumed' as const,
  seconds: 609,
  output_tokens: 12_736,
  provider: 'runpod' as const,
  gpu_type: 'NVIDIA H100 80GB HBM3',
  gpu_count: 1,
  replicas: 1,
  price_per_hour: 2.99,
};

const answer: Answer = {
  description: 'What would come of it.',
  schema: validationSchema,
  example: validationView(
    { input: EXAMPLE_IDS.file, endpoint: '/v1/chat/completions', options: {} },
    41_302,
    {
      lines: 200,
      bad: 1,
      total: 1,
      unfit: null,
      models: ['sim-model'],
      problems: [problem],
      estimate: { inputTokens: 6_120, maxOutputTokens: 12_736, unlimited: 0 },
    },
    { warnings: [], cost: EXAMPLE_COST },
  ),
};

const common = { endpoint: '/v1/chat/completions', completion_window: '24h' };

export const validateDocs: Docs = {
  '/v1/batches/validate': {
    post: {
      tag: 'Batches',
      summary: 'Validate an input without creating a batch',
      description: DESCRIPTION,
      body: { schema: createBatchSchema, example: { input_file_id: EXAMPLE_IDS.file, ...common } },
      answer,
    },
  },
  '/api/v1/jobs/validate': {
    post: {
      tag: 'Jobs',
      summary: 'Validate an input without creating a job',
      description: DESCRIPTION,
      body: { schema: createJobSchema, example: { input_dataset: EXAMPLE_IDS.file, ...common } },
      answer,
    },
  },
};
