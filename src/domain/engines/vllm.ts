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
import type { Dialect, FlagSet } from './flags.ts';
import { placeModel } from './model-source.ts';
import type { ModelPlace } from './model-source.ts';

const ONE_SERVER = 'one server answers for all GPUs of a machine here; leave it out';

/** Of vLLM 0.32 (`vllm serve --help=all`). */
const DIALECT: Dialect = {
  title: 'vLLM',
  aliases: {
    '-tp': '--tensor-parallel-size',
    '-pp': '--pipeline-parallel-size',
    '-dp': '--data-parallel-size',
    '-dcp': '--decode-context-parallel-size',
    '-pcp': '--prefill-context-parallel-size',
    '-dpl': '--data-parallel-size-local',
    '-dpa': '--data-parallel-address',
    '-dpn': '--data-parallel-rank',
    '-dpr': '--data-parallel-start-rank',
    '-dpe': '--data-parallel-external-lb',
    '-dph': '--data-parallel-hybrid-lb',
    '-dpm': '--data-parallel-multi-port-external-lb',
    '-ep': '--enable-expert-parallel',
    '-n': '--nnodes',
    '-r': '--node-rank',
    '-q': '--quantization',
    '-sc': '--speculative-config',
    '-dc': '--diffusion-config',
    '-h': '--help',
    '--device-memory-utilization': '--gpu-memory-utilization',
  },
  sizes: {
    '--tensor-parallel-size': 'tp',
    '--pipeline-parallel-size': 'pp',
    '--data-parallel-size': 'dp',
    '--decode-context-parallel-size': 'cp',
  },
  refused: {
    ...COMMON_REFUSED,
    '--uds': 'the engine is reached over its port; leave it out',
    '--hf-token':
      'every process of the machine can read a command line; name the secret in model_source.auth_secret_ref',
    '--model': 'name the model in model_source.uri',
    '--grpc': 'lines are sent over HTTP; leave it out',
    '--headless': 'an engine without its HTTP server answers no line; leave it out',
    '--prefill-context-parallel-size':
      'it takes GPUs of its own, which parallelism does not count; set parallelism.cp instead',
    '--data-parallel-size-local': ONE_SERVER,
    '--data-parallel-address': ONE_SERVER,
    '--data-parallel-rank': ONE_SERVER,
    '--data-parallel-start-rank': ONE_SERVER,
    '--data-parallel-external-lb': ONE_SERVER,
    '--data-parallel-hybrid-lb': ONE_SERVER,
    '--data-parallel-multi-port-external-lb': ONE_SERVER,
  },
  isFlexible: true,
};

/** Switches that have no `--no-…`: what is off is left out. */
const PLAIN_SWITCHES = new Set(['--disable-log-stats', '--aggregate-engine-logging']);
/** Flags that take several words. */
const LISTS = new Set([
  '--lora-modules',
  '--allowed-media-domains',
  '--logits-processors',
  '--ignore-patterns',
  '--kv-cache-dtype-skip-layers',
  '--lora-target-modules',
  '--cudagraph-capture-sizes',
]);

const WEIGHTS: Readonly<Record<string, readonly [flag: string, value: string]>> = {
  fp8: ['--quantization', 'fp8'],
  awq: ['--quantization', 'awq'],
  gptq: ['--quantization', 'gptq'],
  bf16: ['--dtype', 'bfloat16'],
  fp16: ['--dtype', 'float16'],
};

/** Answered by what vLLM calls pooling; a server either pools or generates. */
const POOLED = new Set<string>(['/v1/embeddings', '/v1/rerank', '/v1/score']);

/** `vllm serve` of vLLM 0.29 and later. */
export const vllm: EngineAdapter = { title: DIALECT.title, start };

function start(spec: TemplateSpec, site: EngineSite): EngineStart {
  const { serve_args: serveArgs } = spec.engine;
  const place = placeModel(spec, site);
  checkParallelism(spec.parallelism, spec.accelerator.count);
  const given = readServeArgs(serveArgs, DIALECT, spec.parallelism);
  const flags = createFlagSet(DIALECT);
  flags.put('--host', hostOf(site));
  flags.put('--port', String(site.port));
  if (!pinsServedName(given, site.servingName)) flags.put(SERVED_NAME, site.servingName);
  putModel(flags, place);
  putParallelism(flags, spec.parallelism);
  putFormats(flags, spec.quantization);
  const endpoints = spec.supported_endpoints;
  if (endpoints.length > 0 && endpoints.every((endpoint) => POOLED.has(endpoint))) {
    flags.suggest('--runner', 'pooling');
  }
  putEngineArgs(flags, spec.engine_args);
  const secretFiles = [...place.secretFiles];
  if (site.apiKeyFile !== null) {
    const entries = [{ name: 'VLLM_API_KEY', source: { kind: 'api_key' as const } }];
    secretFiles.push({ path: site.apiKeyFile, format: 'env', entries });
  }
  return {
    argv: ['vllm', 'serve', place.model, ...flags.render(given), ...serveArgs],
    env: { ...place.env, VLLM_NO_USAGE_STATS: '1', DO_NOT_TRACK: '1' },
    secretFiles,
    paths: place.paths,
  };
}

function putModel(flags: FlagSet, place: ModelPlace): void {
  if (place.revision !== '') flags.put('--revision', place.revision);
  if (place.tokenizer !== '') flags.put('--tokenizer', place.tokenizer);
  if (place.tokenizerRevision !== '') flags.put('--tokenizer-revision', place.tokenizerRevision);
  if (place.chatTemplate !== '') flags.put('--chat-template', place.chatTemplate);
  if (place.from === 'stream') flags.suggest('--load-format', 'runai_streamer');
}

/** Each number is obeyed or refused: GPUs that are leased and not used are paid for all the same. */
function checkParallelism({ tp, pp, dp, ep, sp, cp }: Parallelism, count: number): void {
  if (tp * pp * dp !== count) {
    throw refuse(
      'parallelism',
      `vLLM uses tp × pp × dp = ${tp * pp * dp} of ${count} GPUs, and spreads experts over those of tp and dp: ` +
        `set tp to ${count} (layers are split) or dp to ${count} (attention is copied), and ep to ${count}`,
    );
  }
  if (ep !== 1 && ep !== tp * dp) {
    throw refuse(
      'parallelism.ep',
      `vLLM spreads experts over all GPUs of tp and dp or not at all: set it to ${tp * dp}, or to 1 for not at all`,
    );
  }
  if (sp !== 1) {
    throw refuse('parallelism.sp', 'vLLM has no size for sequence parallelism: set it to 1');
  }
  if (tp % cp !== 0) {
    throw refuse(
      'parallelism.cp',
      `vLLM shares out the context among the GPUs of tp, so that ${tp} must be divisible by ${cp}: set it to 1 or ${tp}`,
    );
  }
}

function putParallelism(flags: FlagSet, { tp, pp, dp, ep, cp }: Parallelism): void {
  if (tp > 1) flags.put('--tensor-parallel-size', String(tp));
  if (pp > 1) flags.put('--pipeline-parallel-size', String(pp));
  if (dp > 1) flags.put('--data-parallel-size', String(dp));
  if (cp > 1) flags.put('--decode-context-parallel-size', String(cp));
  if (ep > 1) flags.put('--enable-expert-parallel');
}

function putFormats(flags: FlagSet, { weight, kv_cache: cache }: TemplateSpec['quantization']) {
  if (weight !== '') {
    const flag = WEIGHTS[weight];
    if (flag === undefined) {
      throw refuse(
        'quantization.weight',
        `vLLM has no method '${weight}'. Leave the field empty for weights that are ${weight} already, which say so ` +
          'themselves; or name a method in engine_args.quantization, such as int8_per_channel_weight_only',
      );
    }
    flags.put(...flag);
  }
  if (cache === 'int8') {
    throw refuse(
      'quantization.kv_cache',
      "vLLM has no cache of type 'int8': set fp8, or leave it empty and set engine_args.kv_cache_dtype to a type of your version",
    );
  }
  if (cache !== '') flags.put('--kv-cache-dtype', cache);
}

function putEngineArgs(flags: FlagSet, engineArgs: Readonly<Record<string, string>>): void {
  putSpeculation(flags, engineArgs);
  readEngineArgs(engineArgs, (key, flag, value) => {
    if (key === 'speculative_model' || key === 'num_speculative_tokens') return;
    if (key === 'swap_space') {
      if (Number(value) === 0) return;
      throw refuse(
        'engine_args.swap_space',
        'vLLM has none any more, and does not start with it: leave it out',
      );
    }
    if (flag === SERVED_NAME) {
      throw refuse(`engine_args.${key}`, 'write further names of the model into engine.serve_args');
    }
    if (isSwitch(value, 'on')) flags.argue(key, flag);
    else if (!isSwitch(value, 'off')) flags.argue(key, flag, ...wordsOf(flag, value));
    // Caching of prefixes and others are on by default, so that leaving a flag out switches nothing off.
    else if (!PLAIN_SWITCHES.has(flag)) flags.argue(key, flag.replace(/^--/, '--no-'));
  });
}

/** `--speculative-model` and `--num-speculative-tokens` are gone: both are parts of one JSON text now. */
function putSpeculation(flags: FlagSet, engineArgs: Readonly<Record<string, string>>): void {
  const model = engineArgs['speculative_model'] ?? '';
  const tokens = Number(engineArgs['num_speculative_tokens'] ?? 0);
  if (model === '' && tokens === 0) return;
  if (model === '') {
    throw refuse(
      'engine_args.num_speculative_tokens',
      'vLLM wants to know which model guesses: set engine_args.speculative_model, or write both into engine_args.speculative_config',
    );
  }
  const config = { model, ...(tokens > 0 ? { num_speculative_tokens: tokens } : {}) };
  flags.put('--speculative-config', JSON.stringify(config));
}

function wordsOf(flag: string, value: string): string[] {
  if (!LISTS.has(flag) || !value.startsWith('[')) return [value];
  try {
    const list: unknown = JSON.parse(value);
    return Array.isArray(list) && list.length > 0 ? list.map(String) : [value];
  } catch {
    // No JSON: one word that begins with a bracket.
    return [value];
  }
}
