import { expect } from 'vitest';
import type { MachineProvider } from '../../src/domain/provision.ts';
import type { AskedEntry } from '../simulators/cloud/control.ts';
import type { LedgerEntry } from '../simulators/cloud/ledger.ts';
import { download, expectExactLines, makeInput, parseLines, upload } from './batch.ts';
import type { Input, Results } from './batch.ts';
import type { Cloud } from './clouds.ts';
import { until } from './until.ts';

const MODEL = 'Qwen/Qwen2.5-7B-Instruct';

/** `accelerator.type` as each provider's users write it. */
export const H100: Record<MachineProvider, string> = {
  runpod: 'NVIDIA H100 80GB HBM3',
  lambdaCloud: 'H100',
};

/** Parts of a template's specification; objects are laid over those of the guide's template. */
export type SpecChanges = Record<string, unknown>;

/** The specification of the guide's template, with the accelerator as this provider calls it. */
function guideSpec(provider: MachineProvider, changes: SpecChanges = {}): object {
  const spec: Record<string, unknown> = {
    engine: {
      type: 'vllm',
      version: 'latest',
      image: 'vllm/vllm-openai:latest',
      invocation: 'http_server',
      serve_args: ['--trust-remote-code'],
      health_endpoint: '/health',
      ready_timeout_seconds: 1800,
      metrics_endpoint: '/metrics',
    },
    model_source: { type: 'huggingface', uri: MODEL },
    accelerator: { type: H100[provider], count: 1, vram_gb: 80, interconnect: 'pcie' },
    parallelism: { tp: 1, pp: 1, dp: 1, ep: 1 },
    engine_args: { gpu_memory_utilization: '0.90' },
    quantization: { weight: 'fp16', kv_cache: 'auto' },
    supported_endpoints: ['/v1/chat/completions'],
    deployment_mode: 'dedicated',
  };
  for (const [key, value] of Object.entries(changes)) {
    const old = spec[key];
    const isPart = typeof old === 'object' && typeof value === 'object' && !Array.isArray(value);
    spec[key] = isPart ? { ...old, ...value } : value;
  }
  return spec;
}

/** Posts and returns the answer's JSON; an answer that is no success is an error that shows it. */
export async function post<T = Record<string, unknown>>(
  url: string,
  path: string,
  body: unknown,
  idempotencyKey?: string,
): Promise<T> {
  const repeats = idempotencyKey === undefined ? {} : { 'idempotency-key': idempotencyKey };
  const answer = await fetch(`${url}${path}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...repeats },
    body: JSON.stringify(body),
  });
  const text = await answer.text();
  if (!answer.ok) throw new Error(`POST ${path} answered ${answer.status}: ${text}`);
  return JSON.parse(text) as T; // the API's answers have tests of their own
}

/** A model and its template, as a job names them. */
export interface Template {
  modelId: string;
  name: string;
  version: string;
}

const models = new Map<string, Promise<string>>();
let templates = 0;

async function createModel(url: string, model: string): Promise<string> {
  const wish = { name: model.split('/').at(-1), categories: ['LLM'], serving_name: model };
  return (await post<{ id: string }>(url, '/api/v1/models', wish)).id;
}

/** Creates a model, unless that was done, and a template of its own for it: the guide's, with changes. */
export async function createTemplate(
  url: string,
  provider: MachineProvider,
  changes: SpecChanges = {},
  model: string = MODEL,
): Promise<Template> {
  const key = `${url} ${model}`;
  const made = models.get(key) ?? createModel(url, model);
  models.set(key, made);
  const modelId = await made;
  templates += 1;
  const template = { name: `cloud-${templates}`, version: 'v1.0.0' };
  const spec = guideSpec(provider, { model_source: { uri: model }, ...changes });
  const path = `/api/v1/models/${modelId}/deployment-templates`;
  await post(url, path, { ...template, status: 'active', spec });
  return { modelId, ...template };
}

/** So many requests for the guide's model. */
export function leaseInput(count: number, name = 'line'): Input {
  return makeInput(count, { name, model: MODEL });
}

/** Uploads an input and creates a job for it; `more` are further fields of the request. */
export async function createJob(
  url: string,
  template: Template,
  input: Pick<Input, 'text'>,
  more: Record<string, unknown> = {},
): Promise<string> {
  const { id } = await post<{ id: string }>(url, '/api/v1/jobs', {
    input_dataset: await upload(url, input.text),
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    name: 'lease',
    model_id: template.modelId,
    model_template_name: template.name,
    model_template_version: template.version,
    ...more,
  });
  return id;
}

/** Cancels a job; one that is over already stays as it is. */
export async function cancelJob(url: string, id: string): Promise<void> {
  const answer = await fetch(`${url}/api/v1/jobs/${id}/cancel`, { method: 'POST', body: '{}' });
  await answer.body?.cancel();
  if (answer.status >= 500) throw new Error(`cancelling answered ${answer.status}`);
}

/** A job as the Console shows it, as far as these tests look. */
export interface LeaseJob {
  id: string;
  status: string;
  batch_id: string;
  provision_id: string;
  provision: {
    provision_id: string;
    provider: string;
    status: string;
    region: string;
    error_message: string;
    raw_json: string;
  } | null;
  events: { id: string; status: string; message: string }[];
  error_code: string;
  error_message: string;
  output_dataset: string;
  error_dataset: string;
  request_counts: { total: number; completed: number; failed: number } | null;
}

export async function readLeaseJob(url: string, id: string): Promise<LeaseJob> {
  const answer = await fetch(`${url}/api/v1/jobs/${id}`);
  if (!answer.ok) throw new Error(`the job answers ${answer.status}: ${await answer.text()}`);
  return (await answer.json()) as LeaseJob; // the view's fields are tested with the API
}

interface Patience {
  timeoutMs?: number;
  what?: string;
  /** In these states nothing more is to come: the wait ends with an error at once. */
  hopeless?: RegExp;
}

/** Polls a job until the condition holds, and returns it. */
export async function untilJob(
  url: string,
  id: string,
  condition: (job: LeaseJob) => boolean,
  { timeoutMs = 40_000, what = 'the condition', hopeless }: Patience = {},
): Promise<LeaseJob> {
  let last: LeaseJob | undefined;
  try {
    return await until(
      async () => {
        last = await readLeaseJob(url, id);
        if (condition(last)) return last;
        if (hopeless?.test(last.status) === true) throw new Error('nothing more is to come');
        return undefined;
      },
      { timeoutMs, everyMs: 50, what: `${what} of ${id}` },
    );
  } catch (error) {
    const shown = JSON.stringify(last, null, 1);
    throw new Error(`${String(error)}; it is ${shown}`, { cause: error });
  }
}

const FINAL = /^(?:completed|failed|expired|cancelled|resource_failed|submit_failed)$/;

export function isFinal(status: string): boolean {
  return FINAL.test(status);
}

/** Polls a job until it is in this state; another final one is an error at once. */
export function untilStatus(
  url: string,
  id: string,
  status: string,
  timeoutMs = 40_000,
): Promise<LeaseJob> {
  const patience = { timeoutMs, what: `state ${status}`, hopeless: FINAL };
  return untilJob(url, id, (job) => job.status === status, patience);
}

/** Waits until the provider has no machine (of a type) any more, whatever it would list; an error names those left. */
export async function untilNoMachine(
  { control }: Cloud,
  { type, timeoutMs = 20_000 }: { type?: string; timeoutMs?: number } = {},
): Promise<void> {
  let left: string[] = [];
  const none = async (): Promise<boolean> => {
    const all = await control.inventory();
    const mine = all.filter((machine) => type === undefined || machine.type === type);
    left = mine.map(({ id, name, phase }) => `${id} ${name} ${phase}`);
    return left.length === 0;
  };
  await until(none, { timeoutMs, everyMs: 50, what: 'an empty inventory' }).catch(
    (error: unknown) => {
      throw new Error(`${String(error)}: ${left.join(', ')}`, { cause: error });
    },
  );
}

/** Waits for a machine that fits; tests that share a cloud tell theirs by their type. Resolves to its id. */
export async function untilMachine(
  { control }: Cloud,
  condition: (machine: LedgerEntry) => boolean,
): Promise<string> {
  const find = async () => (await control.inventory()).find(condition);
  return (await until(find, { everyMs: 50, what: 'a machine' })).id;
}

/** All machines of a type that there ever were, oldest first. */
export async function machinesOf({ control }: Cloud, type: string): Promise<LedgerEntry[]> {
  return (await control.ledger()).machines.filter((machine) => machine.type === type);
}

/** Asks the engine on a machine at its own /admin endpoints; `body` makes it a POST. */
export async function askEngine(
  { control }: Cloud,
  machine: string,
  path: string,
  body?: unknown,
): Promise<unknown> {
  const data = body === undefined ? '' : `-d '${JSON.stringify(body).replaceAll("'", `'\\''`)}'`;
  const command = `curl -sSf ${data} http://127.0.0.1:8000/admin/${path}`;
  const answer = await control.act(machine, 'exec', { command });
  const { code, stdout, stderr } = answer as { code: number; stdout: string; stderr: string };
  if (code !== 0) throw new Error(`the engine on ${machine}: ${stderr}`);
  return JSON.parse(stdout);
}

/** Reads both files of a finished job and makes sure that each line is answered exactly once. */
export async function expectJobExact(url: string, job: LeaseJob, input: Input): Promise<Results> {
  const [output, error] = await Promise.all([
    download(url, job.output_dataset),
    download(url, job.error_dataset),
  ]);
  const results = { output: parseLines(output), error: parseLines(error) };
  expectExactLines(results, input);
  expect(job.request_counts).toEqual({
    total: input.customIds.length,
    completed: results.output.length,
    failed: results.error.length,
  });
  return results;
}

/** By custom_id: what the engines of these clouds have dealt with, in the order of their arrival. */
export async function askedLines(
  clouds: readonly Cloud[],
  input: Input,
): Promise<Map<string, AskedEntry[]>> {
  const ids = new Map([...input.marks].map(([id, mark]) => [mark, id]));
  const lines = new Map<string, AskedEntry[]>(input.customIds.map((id) => [id, []]));
  for (const { control } of clouds) {
    for (const entry of await control.asked()) {
      const id = ids.get(`sim-${entry.sha256.slice(0, 16)}`);
      if (id !== undefined) lines.get(id)?.push(entry);
    }
  }
  return lines;
}

/** Lines that a further request was made for after one had got its whole answer. */
export async function answeredAgain(clouds: readonly Cloud[], input: Input): Promise<string[]> {
  const lines = await askedLines(clouds, input);
  return [...lines].flatMap(([id, entries]) => {
    const answered = entries.filter(({ outcome }) => outcome === 'answered').length;
    return answered > 1 ? [id] : [];
  });
}
