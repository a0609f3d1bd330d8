/*
 * The command line of an engine, read as strictly as the real one reads it, so that a flag that is
 * rendered wrong shows here and not on a paid machine. vLLM: vllm/engine/arg_utils.py and
 * vllm/entrypoints/openai/cli_args.py; SGLang: python/sglang/srt/server_args.py.
 */

/** How many words follow a flag: none, one, or as many as there are. */
type Arity = 'flag' | 'value' | 'list';

export type EngineKind = 'vllm' | 'sglang';

/** What the imitated engine does with its command line. */
export interface EngineArgs {
  kind: EngineKind;
  model: string;
  servedNames: string[];
  host: string | undefined;
  port: number;
  apiKey: string | undefined;
  maxNumSeqs: number | undefined;
  /** GPUs that it wants on this machine. */
  worldSize: number;
  quantization: string | undefined;
  downloadDir: string | undefined;
}

/** A command line that the engine refuses; the message is its last line on stderr. */
export class RefusedArguments extends Error {
  override name = 'RefusedArguments';
  exitCode: number;

  constructor(message: string, exitCode: number) {
    super(message);
    this.exitCode = exitCode;
  }
}

const words = (text: string): string[] => text.trim().split(/\s+/);

const VLLM_VALUES = words(`
  model host port uvicorn-log-level api-key tokenizer tokenizer-mode revision code-revision
  tokenizer-revision chat-template chat-template-content-format dtype kv-cache-dtype max-model-len
  max-num-seqs max-num-batched-tokens max-num-queued-reqs max-num-queued-tokens
  gpu-memory-utilization swap-space cpu-offload-gb block-size seed tensor-parallel-size tp
  pipeline-parallel-size pp data-parallel-size dp data-parallel-size-local dpl
  data-parallel-address data-parallel-rpc-port data-parallel-start-rank data-parallel-backend
  data-parallel-rank decode-context-parallel-size dcp prefill-context-parallel-size
  distributed-executor-backend nnodes node-rank master-addr master-port quantization load-format
  download-dir config config-format uds ssl-keyfile ssl-certfile root-path tool-call-parser
  tool-parser-plugin reasoning-parser response-role hf-overrides hf-config-path hf-token
  rope-scaling rope-theta runner convert task max-loras max-lora-rank max-cpu-loras
  speculative-config compilation-config generation-config override-generation-config
  limit-mm-per-prompt guided-decoding-backend structured-outputs-config scheduling-policy
  max-logprobs max-seq-len-to-capture all2all-backend attention-backend kv-transfer-config
  async-scheduling-depth mm-processor-kwargs model-impl logits-processor-pattern
  served-model-name-prefix kv-cache-memory-bytes optimization-level api-server-count`);
const VLLM_FLAGS = words(`
  trust-remote-code enable-prefix-caching enable-chunked-prefill enforce-eager disable-log-requests
  disable-log-stats enable-log-requests disable-uvicorn-access-log enable-lora enable-expert-parallel
  enable-auto-tool-choice enable-request-id-headers enable-server-load-tracking headless
  disable-custom-all-reduce disable-frontend-multiprocessing enable-sleep-mode async-scheduling
  skip-tokenizer-init disable-sliding-window disable-cascade-attn enable-prompt-tokens-details
  enable-force-include-usage return-tokens-as-token-ids language-model-only enable-eplb
  disable-hybrid-kv-cache-manager allow-credentials use-tqdm-on-load`);
const VLLM_LISTS = words(`
  served-model-name lora-modules allowed-origins allowed-methods allowed-headers middleware
  logits-processors cuda-graph-sizes`);

const SGLANG_VALUES = words(`
  model-path model tokenizer-path tokenizer-mode host port served-model-name api-key tensor-parallel-size tp-size
  tp pipeline-parallel-size pp-size data-parallel-size dp-size dp expert-parallel-size ep-size ep
  mem-fraction-static context-length max-running-requests max-total-tokens chunked-prefill-size
  max-prefill-tokens schedule-policy dtype kv-cache-dtype quantization load-format download-dir
  revision chat-template reasoning-parser tool-call-parser random-seed log-level nnodes node-rank
  dist-init-addr attention-backend sampling-backend grammar-backend watchdog-timeout
  speculative-algorithm cuda-graph-max-bs stream-interval file-storage-path json-model-override-args`);
const SGLANG_FLAGS = words(`
  trust-remote-code enable-metrics disable-radix-cache disable-cuda-graph enable-torch-compile
  enable-dp-attention enable-ep-moe skip-server-warmup log-requests enable-mixed-chunk
  disable-overlap-schedule enable-p2p-check skip-tokenizer-init enable-cache-report`);

/** `vllm.model_executor.layers.quantization.QUANTIZATION_METHODS`, shortened. */
const QUANTIZATIONS = words(`
  awq awq_marlin bitsandbytes compressed-tensors deepspeedfp experts_int8 fbgemm_fp8 fp8 fp_quant
  gguf gptq gptq_marlin hqq inc modelopt modelopt_fp4 moe_wna16 mxfp4 ptpc_fp8 quark rtn torchao
  w8a8_fp8 w8a8_int8`);

const CHOICES: Record<string, readonly string[]> = {
  dtype: words('auto bfloat16 float float16 float32 half'),
  'kv-cache-dtype': words('auto bfloat16 fp8 fp8_e4m3 fp8_e5m2 fp8_inc fp8_ds_mla nvfp4'),
};

function arities(values: string[], flags: string[], lists: string[]): Map<string, Arity> {
  const known = new Map<string, Arity>();
  for (const name of values) known.set(name, 'value');
  for (const name of flags) known.set(name, 'flag');
  for (const name of lists) known.set(name, 'list');
  return known;
}

const KNOWN: Record<EngineKind, Map<string, Arity>> = {
  vllm: arities(VLLM_VALUES, VLLM_FLAGS, VLLM_LISTS),
  sglang: arities(SGLANG_VALUES, SGLANG_FLAGS, []),
};

const PROGRAM: Record<EngineKind, string> = { vllm: 'vllm serve', sglang: 'launch_server.py' };

interface Words {
  plain: string[];
  options: Map<string, string[]>;
}

const SHORT: Record<string, string> = {
  '-tp': '--tp',
  '-pp': '--pp',
  '-dp': '--dp',
  '-q': '--quantization',
};

/** The words after a flag that are its own; takes them from `rest`. */
function takeValues(kind: EngineKind, name: string, arity: Arity, rest: string[]): string[] {
  const values: string[] = [];
  if (arity === 'flag') return values;
  while (rest[0] !== undefined && !rest[0].startsWith('--')) {
    values.push(rest.shift() ?? '');
    if (arity === 'value') break;
  }
  if (values.length > 0) return values;
  const wanted = arity === 'list' ? 'at least one' : 'one';
  throw refused(kind, `argument --${name}: expected ${wanted} argument`);
}

function checkChoice(kind: EngineKind, name: string, value: string | undefined): void {
  const choices = CHOICES[name];
  if (choices === undefined || value === undefined || choices.includes(value)) return;
  const shown = choices.map((choice) => `'${choice}'`).join(', ');
  throw refused(kind, `argument --${name}: invalid choice: '${value}' (choose from ${shown})`);
}

/** vLLM takes `--max_model_len` and `--max-model-len` alike, and `--no-x` for each of its switches. */
function split(kind: EngineKind, args: readonly string[]): Words {
  const known = KNOWN[kind];
  const found: Words = { plain: [], options: new Map() };
  const unknown: string[] = [];
  const rest = args.map((word) => SHORT[word] ?? word);
  for (let word = rest.shift(); word !== undefined; word = rest.shift()) {
    if (!word.startsWith('--')) {
      found.plain.push(word);
      continue;
    }
    const at = word.indexOf('=');
    const name = (at < 0 ? word : word.slice(0, at)).slice(2).replaceAll('_', '-');
    const arity = known.get(name) ?? known.get(name.replace(/^no-/, ''));
    if (arity === undefined) {
      unknown.push(word);
      continue;
    }
    const values = at < 0 ? takeValues(kind, name, arity, rest) : [word.slice(at + 1)];
    checkChoice(kind, name, values[0]);
    found.options.set(name, values);
  }
  if (unknown.length > 0) throw refused(kind, `unrecognized arguments: ${unknown.join(' ')}`);
  return found;
}

function refused(kind: EngineKind, message: string): RefusedArguments {
  return new RefusedArguments(`${PROGRAM[kind]}: error: ${message}`, 2);
}

function toInteger(
  kind: EngineKind,
  options: Map<string, string[]>,
  names: string[],
): number | undefined {
  for (const name of names) {
    const text = options.get(name)?.[0];
    if (text === undefined) continue;
    const value = Number(text);
    if (!Number.isInteger(value))
      throw refused(kind, `argument --${name}: invalid int value: '${text}'`);
    return value;
  }
  return undefined;
}

function modelOf(kind: EngineKind, { plain, options }: Words): string {
  const named = options.get('model')?.[0] ?? options.get('model-path')?.[0];
  if (kind === 'sglang') {
    if (named === undefined)
      throw refused(kind, 'the following arguments are required: --model-path');
    return named;
  }
  // `--model` beside `serve` still works and warns (vllm/entrypoints/cli/serve.py).
  return plain[0] ?? named ?? 'Qwen/Qwen3-0.6B';
}

/** Reads the words after `vllm serve` or `sglang.launch_server`; throws RefusedArguments. */
export function parseEngineArgs(kind: EngineKind, args: readonly string[]): EngineArgs {
  const found = split(kind, args);
  const { plain, options } = found;
  if (plain.length > (kind === 'vllm' ? 1 : 0)) {
    throw refused(
      kind,
      `unrecognized arguments: ${plain.slice(kind === 'vllm' ? 1 : 0).join(' ')}`,
    );
  }
  const model = modelOf(kind, found);
  const tp = toInteger(kind, options, ['tensor-parallel-size', 'tp-size', 'tp']) ?? 1;
  const pp = toInteger(kind, options, ['pipeline-parallel-size', 'pp-size', 'pp']) ?? 1;
  const dp =
    toInteger(kind, options, [
      'data-parallel-size-local',
      'dpl',
      'data-parallel-size',
      'dp-size',
      'dp',
    ]) ?? 1;
  for (const name of ['max-model-len', 'max-num-batched-tokens', 'seed'])
    toInteger(kind, options, [name]);
  const quantization = options.get('quantization')?.[0];
  if (quantization !== undefined && !QUANTIZATIONS.includes(quantization)) {
    // ModelConfig._verify_quantization: after parsing, so it is a traceback and not a usage line.
    const methods = QUANTIZATIONS.map((name) => `'${name}'`).join(', ');
    throw new RefusedArguments(
      `ValueError: Unknown quantization method: ${quantization}. Must be one of [${methods}].`,
      1,
    );
  }
  const served = options.get('served-model-name');
  return {
    kind,
    model,
    servedNames: served === undefined || served.length === 0 ? [model] : served,
    host: options.get('host')?.[0],
    port: toInteger(kind, options, ['port']) ?? (kind === 'vllm' ? 8000 : 30_000),
    apiKey: options.get('api-key')?.[0],
    maxNumSeqs: toInteger(kind, options, ['max-num-seqs', 'max-running-requests']),
    worldSize: tp * pp * dp,
    quantization,
    downloadDir: options.get('download-dir')?.[0],
  };
}
