import type { Parallelism, TemplateSpec } from '../template.ts';
import type { EngineAdapter, EngineSite, EngineStart } from './contract.ts';
import {
  COMMON_REFUSED,
  createFlagSet,
  hostOf,
  isSwitch,
  pinsServedName,
  readEngineArgs,
  readServeArgs,
  refuse,
  SERVED_NAME,
} from './flags.ts';
import type { Dialect, Flag, FlagSet } from './flags.ts';
import { placeModel } from './model-source.ts';
import type { ModelPlace } from './model-source.ts';

/** Of SGLang 0.5 (python/sglang/srt/server_args.py). */
const DIALECT: Dialect = {
  title: 'SGLang',
  aliases: {
    '--tensor-parallel-size': '--tp-size',
    '--tp': '--tp-size',
    '--pipeline-parallel-size': '--pp-size',
    '--pp': '--pp-size',
    '--data-parallel-size': '--dp-size',
    '--dp': '--dp-size',
    '--expert-parallel-size': '--ep-size',
    '--ep': '--ep-size',
    '--model': '--model-path',
    '-h': '--help',
  },
  sizes: { '--tp-size': 'tp', '--pp-size': 'pp', '--dp-size': 'dp', '--ep-size': 'ep' },
  refused: {
    ...COMMON_REFUSED,
    '--ssl-keyfile-password': COMMON_REFUSED['--ssl-keyfile'],
    '--admin-api-key': COMMON_REFUSED['--api-key'],
    '--model-path': 'name the model in model_source.uri',
    '--grpc-mode': 'lines are sent over HTTP; leave it out',
    '--smg-grpc-mode': 'lines are sent over HTTP; leave it out',
  },
  isFlexible: false,
};

/** What it has instead of arguments that the template spells as vLLM does. */
const RENAMED: Readonly<Record<string, string>> = {
  max_model_len: '--context-length',
  max_num_seqs: '--max-running-requests',
  max_num_batched_tokens: '--max-prefill-tokens',
  gpu_memory_utilization: '--mem-fraction-static',
  block_size: '--page-size',
  seed: '--random-seed',
  speculative_model: '--speculative-draft-model-path',
  num_speculative_tokens: '--speculative-num-draft-tokens',
};

/** What is on by default and can only be switched off. */
const OPPOSITES: Readonly<Record<string, readonly [flag: string, ...values: string[]]>> = {
  enable_prefix_caching: ['--disable-radix-cache'],
  enable_chunked_prefill: ['--chunked-prefill-size', '-1'],
};
/** Arguments of which none says as much as 0. */
const COUNTS = new Set(['swap_space', 'num_speculative_tokens']);
const MENDS: Readonly<Record<string, string>> = {
  swap_space: 'SGLang has none: leave it out',
  served_model_name: 'SGLang serves one name, that of the model; leave it out',
};

const WEIGHTS: Readonly<Record<string, readonly [flag: string, value: string]>> = {
  fp8: ['--quantization', 'fp8'],
  awq: ['--quantization', 'awq'],
  gptq: ['--quantization', 'gptq'],
  int8: ['--quantization', 'w8a8_int8'],
  bf16: ['--dtype', 'bfloat16'],
  fp16: ['--dtype', 'float16'],
};

/** `python3 -m sglang.launch_server` of SGLang 0.5 and later. */
export const sglang: EngineAdapter = { title: DIALECT.title, start };

function start(spec: TemplateSpec, site: EngineSite): EngineStart {
  const { serve_args: serveArgs } = spec.engine;
  const place = placeModel(spec, site);
  checkParallelism(spec.parallelism, spec.accelerator.count);
  const given = readServeArgs(serveArgs, DIALECT, spec.parallelism);
  const flags = createFlagSet(DIALECT);
  flags.put('--model-path', place.model);
  flags.put('--host', hostOf(site));
  flags.put('--port', String(site.port));
  const secretFiles = [...place.secretFiles];
  if (site.apiKeyFile !== null) {
    // It takes its key from its command line or from its file of settings, and from no variable.
    flags.put('--config', site.apiKeyFile);
    const entries = [{ name: 'api-key', source: { kind: 'api_key' as const } }];
    secretFiles.push({ path: site.apiKeyFile, format: 'yaml', entries });
  }
  if (!pinsServedName(given, site.servingName, 1)) flags.put(SERVED_NAME, site.servingName);
  putModel(flags, place);
  putParallelism(flags, spec.parallelism);
  putFormats(flags, spec.quantization);
  const endpoints = spec.supported_endpoints;
  if (endpoints.length > 0 && endpoints.every((endpoint) => endpoint === '/v1/embeddings')) {
    flags.suggest('--is-embedding');
  }
  flags.suggest('--enable-metrics');
  putEngineArgs(flags, spec.engine_args, given);
  return {
    argv: ['python3', '-m', 'sglang.launch_server', ...flags.render(given), ...serveArgs],
    env: place.env,
    secretFiles,
    paths: place.paths,
  };
}

function putModel(flags: FlagSet, place: ModelPlace): void {
  if (place.tokenizerRevision !== '') {
    throw refuse(
      'model_source.revision',
      'SGLang looks for the same revision in the repository of the tokenizer: leave revision or tokenizer_path empty',
    );
  }
  if (place.revision !== '') flags.put('--revision', place.revision);
  if (place.tokenizer !== '') flags.put('--tokenizer-path', place.tokenizer);
  if (place.chatTemplate !== '') flags.put('--chat-template', place.chatTemplate);
}

function checkParallelism({ tp, pp, dp, ep, sp, cp }: Parallelism, count: number): void {
  if (tp * pp * dp !== count) {
    throw refuse(
      'parallelism',
      `SGLang uses tp × pp × dp = ${tp * pp * dp} of ${count} GPUs, and spreads experts over those of tp: ` +
        `set tp to ${count}`,
    );
  }
  if (tp % ep !== 0) {
    throw refuse(
      'parallelism.ep',
      `SGLang spreads experts over the GPUs of tp, so that ${tp} must be divisible by ${ep}: set it to 1 or ${tp}`,
    );
  }
  for (const [name, size] of [['sp', sp] as const, ['cp', cp] as const]) {
    if (size === 1) continue;
    throw refuse(
      `parallelism.${name}`,
      'SGLang splits sequences and contexts for some models only, each by flags of its own: set it to 1, and write these flags into engine.serve_args',
    );
  }
}

function putParallelism(flags: FlagSet, { tp, pp, dp, ep }: Parallelism): void {
  if (tp > 1) flags.put('--tp-size', String(tp));
  if (pp > 1) flags.put('--pp-size', String(pp));
  if (dp > 1) flags.put('--dp-size', String(dp));
  if (ep > 1) flags.put('--ep-size', String(ep));
}

function putFormats(flags: FlagSet, { weight, kv_cache: cache }: TemplateSpec['quantization']) {
  const flag = WEIGHTS[weight];
  if (flag !== undefined) flags.put(...flag);
  if (cache === 'int8') {
    throw refuse('quantization.kv_cache', "SGLang has no cache of type 'int8': set fp8 or auto");
  }
  // The plain name is vLLM's word for e4m3.
  if (cache !== '') flags.put('--kv-cache-dtype', cache === 'fp8' ? 'fp8_e4m3' : cache);
}

function putEngineArgs(
  flags: FlagSet,
  engineArgs: Readonly<Record<string, string>>,
  given: readonly Flag[],
): void {
  checkSpeculation(engineArgs, given);
  readEngineArgs(engineArgs, (key, flag, value) => {
    const mend = MENDS[key] ?? (flag === SERVED_NAME ? MENDS['served_model_name'] : undefined);
    const isNothing = COUNTS.has(key) && Number(value) === 0;
    if (isNothing) return;
    if (mend !== undefined) throw refuse(`engine_args.${key}`, mend);
    const opposite = OPPOSITES[key];
    const isOff = isSwitch(value, 'off');
    if (opposite === undefined) {
      // A switch is off unless it is given, and few can be switched off.
      if (!isOff) flags.argue(key, RENAMED[key] ?? flag, ...(isSwitch(value, 'on') ? [] : [value]));
    } else if (isOff) flags.argue(key, ...opposite);
  });
}

function checkSpeculation(
  engineArgs: Readonly<Record<string, string>>,
  given: readonly Flag[],
): void {
  const model = engineArgs['speculative_model'] ?? '';
  if (model === '' || engineArgs['speculative_algorithm'] !== undefined) return;
  if (given.some(({ name }) => name === '--speculative-algorithm')) return;
  throw refuse(
    'engine_args.speculative_model',
    'SGLang wants to know how it guesses: set engine_args.speculative_algorithm to EAGLE3, STANDALONE or another of its words',
  );
}
