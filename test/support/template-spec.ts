import type { TemplateSpec } from '../../src/domain/template.ts';

/** Fields of a template that differ from the plainest one. */
export type Changes = { [K in keyof TemplateSpec]?: Partial<TemplateSpec[K]> };

/** A template that vLLM starts as it is. */
export function makeSpec(changes: Changes = {}): TemplateSpec {
  const { supported_endpoints: endpoints, engine_args: args } = changes;
  return {
    engine: {
      type: 'vllm',
      version: '0.32.0',
      image: 'vllm/vllm-openai:v0.32.0',
      invocation: 'http_server',
      serve_args: [],
      health_endpoint: '',
      ready_timeout_seconds: 600,
      metrics_endpoint: '',
      ...changes.engine,
    },
    model_source: {
      type: 'huggingface',
      uri: 'Qwen/Qwen3-8B',
      revision: '',
      tokenizer_path: '',
      chat_template_path: '',
      auth_secret_ref: '',
      ...changes.model_source,
    },
    accelerator: {
      type: 'H100',
      count: 1,
      interconnect: '',
      vram_gb: 0,
      sku_hint: '',
      ...changes.accelerator,
    },
    parallelism: { tp: 1, pp: 1, dp: 1, ep: 1, sp: 1, cp: 1, ...changes.parallelism },
    engine_args: { ...(args as Record<string, string> | undefined) },
    quantization: { weight: '', kv_cache: '', weights_artifact_uri: '', ...changes.quantization },
    supported_endpoints: [...((endpoints as TemplateSpec['supported_endpoints']) ?? [])],
    deployment_mode: 'dedicated',
    service_id: '',
  };
}
