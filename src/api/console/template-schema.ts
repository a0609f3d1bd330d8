import * as v from 'valibot';
import { ENDPOINTS } from '../../domain/job.ts';
import {
  DEPLOYMENT_MODES,
  ENGINE_TYPES,
  INTERCONNECTS,
  INVOCATIONS,
  KV_CACHE_FORMATS,
  MODEL_SOURCES,
  parallelismProblem,
  TEMPLATE_STATUSES,
  WEIGHT_FORMATS,
} from '../../domain/template.ts';
import type { TemplateSpec } from '../../domain/template.ts';
import { exactObject } from '../body.ts';
import { requiredText, textField, textList, wholeField, wordField } from './texts.ts';

const MOST_TEXT = 2_048;
const MOST_GPUS = 1_024;

/** Arguments of the engine that have a type there; any other is handed on as it is. */
const ENGINE_ARGS: Record<string, { rule: string; fits(text: string): boolean }> = {
  max_num_batched_tokens: atLeast(1),
  max_num_seqs: atLeast(1),
  max_model_len: atLeast(1),
  block_size: atLeast(1),
  num_speculative_tokens: atLeast(0),
  swap_space: {
    rule: 'a number of at least 0',
    fits: isDecimal,
  },
  gpu_memory_utilization: {
    rule: 'a number above 0 and at most 1',
    fits: (text) => isDecimal(text) && Number(text) > 0 && Number(text) <= 1,
  },
  enable_prefix_caching: { rule: 'true or false', fits: isFlag },
  enable_chunked_prefill: { rule: 'true or false', fits: isFlag },
};

function atLeast(least: number) {
  return {
    rule: `a whole number of at least ${least}`,
    fits: (text: string) => /^\d{1,15}$/.test(text) && Number(text) >= least,
  };
}

function isDecimal(text: string): boolean {
  return /^\d{1,9}(?:\.\d{1,9})?$/.test(text);
}

function isFlag(text: string): boolean {
  return /^(?:true|false)$/i.test(text);
}

const ARGS_RULE =
  'an object of at most 200 arguments of the engine by name, such as {"max_num_seqs": "256"}';
const ARG_RULE = `a text of at most ${MOST_TEXT} characters, a number, true or false`;

/** AIBrix has texts only; a number or a flag means the same. */
const engineArg = v.pipe(
  v.union([v.string(), v.number(), v.boolean()], ARG_RULE),
  v.transform(String),
  v.maxLength(MOST_TEXT, ARG_RULE),
);

const engineArgsSchema = v.nullish(
  v.pipe(
    v.record(v.string(), engineArg, ARGS_RULE),
    v.check((args) => Object.keys(args).length <= 200, ARGS_RULE),
    v.rawCheck(({ dataset, addIssue }) => {
      if (!dataset.typed) return;
      for (const [key, value] of Object.entries(dataset.value)) {
        const arg = Object.hasOwn(ENGINE_ARGS, key) ? ENGINE_ARGS[key] : undefined;
        if (arg === undefined || arg.fits(value)) continue;
        const input = dataset.value;
        addIssue({
          message: arg.rule,
          path: [{ type: 'object', origin: 'value', input, key, value }],
        });
      }
    }),
    // In one order, so that equal specs are equal texts.
    v.transform((args) =>
      Object.fromEntries(Object.entries(args).toSorted(([a], [b]) => (a < b ? -1 : 1))),
    ),
  ),
  {},
);

function requiredWord<const Words extends readonly string[]>(words: Words) {
  return v.picklist(words, `one of ${words.join(', ')}`);
}

const COUNT_RULE = `a whole number from 1 to ${MOST_GPUS}`;
const ENDPOINTS_RULE = `a list of at least one of ${ENDPOINTS.join(', ')}`;

const parts = exactObject({
  tp: wholeField(1, MOST_GPUS, 1),
  pp: wholeField(1, MOST_GPUS, 1),
  dp: wholeField(1, MOST_GPUS, 1),
  ep: wholeField(1, MOST_GPUS, 1),
  sp: wholeField(1, MOST_GPUS, 1),
  cp: wholeField(1, MOST_GPUS, 1),
});

/** How a model is deployed, as AIBrix's console and its metadata service describe it together. */
const specSchema = v.pipe(
  exactObject({
    engine: exactObject({
      type: requiredWord(ENGINE_TYPES),
      version: requiredText(128),
      image: requiredText(MOST_TEXT),
      invocation: wordField(INVOCATIONS, 'http_server'),
      serve_args: textList(200, MOST_TEXT),
      health_endpoint: textField(MOST_TEXT),
      ready_timeout_seconds: wholeField(10, 86_400, 600),
      metrics_endpoint: textField(MOST_TEXT),
    }),
    model_source: exactObject({
      type: requiredWord(MODEL_SOURCES),
      uri: requiredText(MOST_TEXT),
      revision: textField(MOST_TEXT),
      tokenizer_path: textField(MOST_TEXT),
      chat_template_path: textField(MOST_TEXT),
      auth_secret_ref: textField(MOST_TEXT),
    }),
    accelerator: exactObject({
      type: requiredText(256),
      count: v.pipe(
        v.number(COUNT_RULE),
        v.integer(COUNT_RULE),
        v.minValue(1, COUNT_RULE),
        v.maxValue(MOST_GPUS, COUNT_RULE),
      ),
      interconnect: wordField(INTERCONNECTS, ''),
      vram_gb: wholeField(1, 65_536, 0),
      sku_hint: textField(256),
    }),
    parallelism: v.nullish(parts, {}),
    engine_args: engineArgsSchema,
    quantization: v.nullish(
      exactObject({
        weight: wordField(WEIGHT_FORMATS, ''),
        kv_cache: wordField(KV_CACHE_FORMATS, ''),
        weights_artifact_uri: textField(MOST_TEXT),
      }),
      {},
    ),
    supported_endpoints: v.pipe(
      v.array(v.picklist(ENDPOINTS, ENDPOINTS_RULE), ENDPOINTS_RULE),
      v.minLength(1, ENDPOINTS_RULE),
      v.transform((endpoints) => [...new Set(endpoints)]),
    ),
    deployment_mode: wordField(DEPLOYMENT_MODES, 'dedicated'),
    service_id: textField(256),
  }),
  v.rawCheck(({ dataset, addIssue }) => {
    if (!dataset.typed) return;
    const problem = parallelismProblem(dataset.value);
    if (problem === null) return;
    const { value: input } = dataset;
    const path = [
      {
        type: 'object' as const,
        origin: 'value' as const,
        input,
        key: 'parallelism',
        value: input.parallelism,
      },
    ] as const;
    addIssue({ message: `one share for each GPU: ${problem}`, path: [...path] });
  }),
  v.transform((spec): TemplateSpec => spec),
);

const VERSION_RULE =
  'a text such as v1.0.0, of at most 64 letters, digits, dots, dashes, underscores and pluses';
const versionText = v.pipe(v.string(VERSION_RULE), v.regex(/^[\w.+-]{1,64}$/, VERSION_RULE));
/** What a template says of itself may come back with a change, as when a whole one is edited and sent. */
const ownFields = {
  model_id: v.nullish(v.string('the id of the model in the path')),
  id: v.optional(v.unknown()),
  created_at: v.optional(v.unknown()),
  updated_at: v.optional(v.unknown()),
  used: v.optional(v.unknown()),
};

export const createTemplateSchema = exactObject({
  name: requiredText(128),
  version: v.pipe(
    v.nullish(v.string(VERSION_RULE), ''),
    v.transform((text) => (text === '' ? 'v1.0.0' : text)),
    versionText,
  ),
  status: wordField(TEMPLATE_STATUSES, 'active'),
  spec: specSchema,
  ...ownFields,
});

/** Whatever is not given, or empty, stays as it is. */
export const changeTemplateSchema = exactObject({
  name: textField(128),
  version: v.nullish(v.union([v.literal(''), versionText], VERSION_RULE), ''),
  status: v.nullish(
    v.picklist([...TEMPLATE_STATUSES, ''], `one of ${TEMPLATE_STATUSES.join(', ')}`),
    '',
  ),
  spec: v.nullish(specSchema),
  ...ownFields,
});
