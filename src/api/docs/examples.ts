import type { FileRecord } from '../../domain/file.ts';
import { DEFAULT_OPTIONS } from '../../domain/job.ts';
import type { JobRecord } from '../../domain/job.ts';
import type { ModelRecord } from '../../domain/model.ts';
import { NO_LEASE } from '../../domain/provision.ts';
import type { ProvisionRecord } from '../../domain/provision.ts';
import type { TemplateRecord } from '../../domain/template.ts';
import type { UploadRecord } from '../../domain/upload.ts';
import type { WebhookAttempt, WebhookEndpoint } from '../../domain/webhook.ts';
import type { Offer } from '../../resources/contract.ts';

/** Ids that examples name; whoever sends an example puts ids of the server in their place. */
export const EXAMPLE_IDS = {
  file: 'file-TkQhBvKxGQZ3mVwNLc7uYsEd',
  job: 'job_pM4rWnXe8TzKyBq2HfVdJc6L',
  batch: 'batch_pM4rWnXe8TzKyBq2HfVdJc6L',
  model: 'model-sim-model',
  template: 'tpl_Zk3uRwYbE9sHnQmXf5LcVt7A',
  provision: 'prov_pM4rWnXe8TzKyBq2HfVdJc6L_0_0',
  webhook: 'we_Gd8vTjKqPz4WnYxLm2RbHs6C',
  upload: 'upload_Nc5xWqTmGz7LkVhYp9RbJs3E',
  part: 'part_Hw2kZtXvQm8LrNyGb4PcJs6D',
} as const;

const BEGUN = Date.UTC(2026, 0, 15, 9, 30);
const HOUR = 3_600_000;

/** One line of an input file. */
export const EXAMPLE_LINE = JSON.stringify({
  custom_id: 'question-1',
  method: 'POST',
  url: '/v1/chat/completions',
  body: { model: 'sim-model', messages: [{ role: 'user', content: 'What is a sluice?' }] },
});

export const EXAMPLE_FILE: FileRecord = {
  id: EXAMPLE_IDS.file,
  bytes: 41_302,
  sha256: '',
  filename: 'questions.jsonl',
  purpose: 'batch',
  createdAt: BEGUN - 60_000,
};

export const EXAMPLE_UPLOAD: UploadRecord = {
  id: EXAMPLE_IDS.upload,
  status: 'pending',
  filename: EXAMPLE_FILE.filename,
  purpose: 'batch',
  mimeType: 'application/jsonl',
  bytes: EXAMPLE_LINE.length,
  expiresAfterMs: null,
  createdAt: BEGUN - 120_000,
  expiresAt: BEGUN - 120_000 + HOUR,
  busyUntil: 0,
  endedAt: null,
  result: null,
  isFileMade: false,
};

/** A job that is over and had one line which its engine refused. */
export const EXAMPLE_JOB: JobRecord = {
  id: EXAMPLE_IDS.job,
  state: 'completed',
  version: 6,
  wake: 2,
  outcome: 'completed',
  name: 'nightly questions',
  endpoint: '/v1/chat/completions',
  input: EXAMPLE_IDS.file,
  completionWindow: '24h',
  deadline: BEGUN + 24 * HOUR,
  metadata: { team: 'search' },
  maxConcurrency: 256,
  engines: [],
  options: DEFAULT_OPTIONS,
  remote: null,
  cut: { lines: 1_000, bytes: 8_388_608 },
  models: ['sim-model'],
  lines: 200,
  shards: 1,
  doneShards: 1,
  completed: 199,
  failed: 1,
  usage: { inputTokens: 3_201, cachedTokens: 512, outputTokens: 20_480, reasoningTokens: 0 },
  outputFile: 'file-pM4rWnXe8TzKyBq2HfVdJc6L-output',
  errorFile: 'file-pM4rWnXe8TzKyBq2HfVdJc6L-error',
  errors: [],
  reason: '',
  pausedAt: null,
  pausedBy: '',
  givenUp: [],
  createdAt: BEGUN,
  enteredAt: {
    queued: BEGUN,
    resource_preparing: BEGUN + 1_000,
    submitting: BEGUN + 1_000,
    in_progress: BEGUN + 2_000,
    finalizing: BEGUN + 41_000,
    completed: BEGUN + 42_000,
  },
};

/** The same job before anything was done for it. */
export const EXAMPLE_NEW_JOB: JobRecord = {
  ...EXAMPLE_JOB,
  state: 'queued',
  version: 1,
  wake: 1,
  outcome: null,
  models: [],
  lines: 0,
  shards: 0,
  doneShards: 0,
  completed: 0,
  failed: 0,
  usage: { inputTokens: 0, cachedTokens: 0, outputTokens: 0, reasoningTokens: 0 },
  outputFile: null,
  errorFile: null,
  enteredAt: { queued: BEGUN },
};

export const EXAMPLE_PROVISION: ProvisionRecord = {
  id: EXAMPLE_IDS.provision,
  job: EXAMPLE_IDS.job,
  slot: 0,
  state: 'serving',
  version: 3,
  wake: 3,
  provider: 'static',
  owner: 'sluice',
  address: 'http://127.0.0.1:8000',
  models: null,
  ...NO_LEASE,
  reason: '',
  reasonAt: null,
  createdAt: BEGUN + 1_000,
  enteredAt: { intended: BEGUN + 1_000, starting: BEGUN + 1_200, serving: BEGUN + 2_000 },
};

export const EXAMPLE_OFFER: Offer = {
  provider: 'static',
  id: 'http://127.0.0.1:8000',
  kind: 'engine',
  type: '',
  count: null,
  architecture: null,
  vramGb: null,
  pricePerHour: null,
  stock: 'available',
  regions: [],
  address: 'http://127.0.0.1:8000',
  models: ['sim-model'],
  error: '',
  checkedAt: BEGUN,
};

export const EXAMPLE_MODEL: ModelRecord = {
  id: EXAMPLE_IDS.model,
  name: 'Sim Model',
  icon_bg: '',
  icon_text: '',
  icon_text_color: '',
  categories: ['LLM'],
  is_new: false,
  pricing: { uncached_input: '', cached_input: '', output: '', per_minute: '', per_image: '' },
  context_length: '',
  description: '',
  metadata: { state: '', created_on: '2026-01-15', provider_name: '', hugging_face: '' },
  specification: { calibrated: false, mixture_of_experts: false, parameters: '' },
  tags: [],
  serving_name: 'sim-model',
  createdAt: BEGUN,
};

export const EXAMPLE_TEMPLATE: TemplateRecord = {
  id: EXAMPLE_IDS.template,
  modelId: EXAMPLE_IDS.model,
  name: 'h100',
  version: 'v1.0.0',
  status: 'active',
  spec: {
    engine: {
      type: 'vllm',
      version: '0.11.0',
      image: 'vllm/vllm-openai:v0.11.0',
      invocation: 'http_server',
      serve_args: [],
      health_endpoint: '',
      ready_timeout_seconds: 600,
      metrics_endpoint: '',
    },
    model_source: {
      type: 'huggingface',
      uri: 'Qwen/Qwen2.5-7B-Instruct',
      revision: '',
      tokenizer_path: '',
      chat_template_path: '',
      auth_secret_ref: '',
    },
    accelerator: { type: 'NVIDIA H100', count: 1, interconnect: '', vram_gb: 0, sku_hint: '' },
    parallelism: { tp: 1, pp: 1, dp: 1, ep: 1, sp: 1, cp: 1 },
    engine_args: { max_num_seqs: '256' },
    quantization: { weight: '', kv_cache: '', weights_artifact_uri: '' },
    supported_endpoints: ['/v1/chat/completions'],
    deployment_mode: 'dedicated',
    service_id: '',
  },
  revision: 1,
  createdAt: BEGUN,
  updatedAt: BEGUN,
  usedAt: null,
};

export const EXAMPLE_WEBHOOK: WebhookEndpoint = {
  id: EXAMPLE_IDS.webhook,
  url: 'https://example.com/hooks/sluice',
  events: ['batch.completed', 'batch.failed'],
  secret: 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwqGx0kKcRc5s=',
  disabled: '',
  createdAt: BEGUN,
};

export const EXAMPLE_ATTEMPT: WebhookAttempt = {
  event: 'evt_Yt6nKpWzRq3MvXbGh8LcJd5S',
  type: 'batch.completed',
  status: 'delivered',
  code: 200,
  durationMs: 84,
  error: '',
  response: '',
  attempt: 1,
  at: BEGUN + 43_000,
  nextAt: null,
};
