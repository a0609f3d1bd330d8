import type { Endpoint } from './job.ts';

export const TEMPLATE_STATUSES = ['active', 'draft', 'deprecated'] as const;
export type TemplateStatus = (typeof TEMPLATE_STATUSES)[number];

export const ENGINE_TYPES = [
  'vllm',
  'sglang',
  'trtllm',
  'lmdeploy',
  'vipe',
  'mock',
  'custom',
] as const;
export const INVOCATIONS = ['http_server'] as const;
export const MODEL_SOURCES = ['huggingface', 's3', 'tos', 'local', 'hdfs'] as const;
export const INTERCONNECTS = ['nvlink', 'pcie', 'ib'] as const;
export const WEIGHT_FORMATS = ['fp8', 'awq', 'gptq', 'int8', 'bf16', 'fp16'] as const;
export const KV_CACHE_FORMATS = ['auto', 'fp8', 'fp8_e4m3', 'fp8_e5m2', 'int8'] as const;
export const DEPLOYMENT_MODES = ['dedicated', 'shared', 'external'] as const;

/** How many GPUs work on one model, in each of the ways to share it out. */
export interface Parallelism {
  tp: number;
  pp: number;
  dp: number;
  ep: number;
  sp: number;
  cp: number;
}

/**
 * How a model is deployed, in the words of the wire: it is kept, shown and handed on as it was given. An optional
 * text that was not given is empty, an optional number 0.
 */
export interface TemplateSpec {
  engine: {
    type: (typeof ENGINE_TYPES)[number];
    version: string;
    image: string;
    invocation: (typeof INVOCATIONS)[number];
    serve_args: string[];
    health_endpoint: string;
    ready_timeout_seconds: number;
    metrics_endpoint: string;
  };
  model_source: {
    type: (typeof MODEL_SOURCES)[number];
    uri: string;
    revision: string;
    tokenizer_path: string;
    chat_template_path: string;
    auth_secret_ref: string;
  };
  accelerator: {
    type: string;
    /** GPUs of one machine. */
    count: number;
    interconnect: (typeof INTERCONNECTS)[number] | '';
    vram_gb: number;
    sku_hint: string;
  };
  parallelism: Parallelism;
  engine_args: Record<string, string>;
  quantization: {
    weight: (typeof WEIGHT_FORMATS)[number] | '';
    kv_cache: (typeof KV_CACHE_FORMATS)[number] | '';
    weights_artifact_uri: string;
  };
  supported_endpoints: Endpoint[];
  deployment_mode: (typeof DEPLOYMENT_MODES)[number];
  service_id: string;
}

/** One version of a template of a model. Times are Redis time in ms. */
export interface TemplateRecord {
  id: string;
  modelId: string;
  name: string;
  version: string;
  status: TemplateStatus;
  spec: TemplateSpec;
  /** Rises with each change, so that who marks it as used has seen what it is. */
  revision: number;
  createdAt: number;
  updatedAt: number;
  /** When a job first used it; from then on only its status may change. */
  usedAt: number | null;
}

/** A template as a job takes it: a copy, which later changes of the template do not touch. */
export interface ResolvedTemplate {
  id: string;
  name: string;
  version: string;
  modelId: string;
  /** What the lines of the job must name as `body.model`. */
  servingName: string;
  revision: number;
  spec: TemplateSpec;
}

/**
 * What is wrong with how the GPUs of a template are shared out; null where it is right. AIBrix multiplies tp, pp, dp
 * and ep; in vLLM experts lie on the GPUs of tp and dp, so that tp × pp × dp alone may make up the count, too.
 */
export function parallelismProblem({
  parallelism,
  accelerator,
}: Pick<TemplateSpec, 'parallelism' | 'accelerator'>): string | null {
  const { tp, pp, dp, ep } = parallelism;
  const { count } = accelerator;
  const product = tp * pp * dp;
  if (product === count || product * ep === count) return null;
  const ways =
    ep === 1 ? `tp × pp × dp is ${product}` : `tp × pp × dp (× ep) is ${product} (${product * ep})`;
  return (
    `${ways}, but accelerator.count is ${count}: every GPU must have its part. ` +
    `Set parallelism.tp to ${count} to spread the model over all of them, or accelerator.count to ${product}`
  );
}

/**
 * Orders versions such as v1.10.0, below 0 where `a` is the lower one. Parts are compared as numbers where both are,
 * else as text; a missing part is lower than any, and a pre-release (v1.0.0-rc1) lower than its release.
 */
export function compareVersions(a: string, b: string): number {
  const [left, right] = [splitVersion(a), splitVersion(b)];
  const length = Math.max(left.parts.length, right.parts.length);
  for (let i = 0; i < length; i += 1) {
    const order = compareParts(left.parts[i] ?? '', right.parts[i] ?? '');
    if (order !== 0) return order;
  }
  if (left.pre === right.pre) return 0;
  if (left.pre === '' || right.pre === '') return left.pre === '' ? 1 : -1;
  return compareParts(left.pre, right.pre);
}

function splitVersion(version: string): { parts: string[]; pre: string } {
  const [core = '', ...rest] = version.replace(/^v/i, '').split('-');
  return { parts: core.split('.'), pre: rest.join('-') };
}

function compareParts(a: string, b: string): number {
  const areNumbers = /^\d+$/.test(a) && /^\d+$/.test(b);
  if (areNumbers && Number(a) !== Number(b)) return Number(a) - Number(b);
  if (a === b || areNumbers) return 0;
  return a < b ? -1 : 1;
}

/**
 * The template that a version names, whatever its status; without one the active one of the highest version. `none`:
 * there is no such version; `none active`: there are some, but none that is active.
 */
export function chooseTemplate<T extends Pick<TemplateRecord, 'version' | 'status'>>(
  named: readonly T[],
  version: string,
): T | 'none' | 'none active' {
  if (version !== '') return named.find((each) => each.version === version) ?? 'none';
  if (named.length === 0) return 'none';
  const active = named.filter(({ status }) => status === 'active');
  return active.toSorted((a, b) => compareVersions(b.version, a.version))[0] ?? 'none active';
}
