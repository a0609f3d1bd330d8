import type { ApiDeps } from '../../src/api/app.ts';
import { EXAMPLE_OFFER, EXAMPLE_PROVISION } from '../../src/api/docs/examples.ts';
import { leaseAddress } from '../../src/domain/provision.ts';
import type { ProvisionRecord } from '../../src/domain/provision.ts';
import type { JobRecord } from '../../src/domain/job.ts';
import type { LeaseAttempt } from '../../src/domain/lease.ts';
import type { Offer } from '../../src/resources/contract.ts';
import { postJson, startApi } from './api.ts';
import type { Overrides, TestApi } from './api.ts';

/** As the guide to leased machines writes it. */
export const SPEC = {
  engine: {
    type: 'vllm',
    version: 'latest',
    image: 'vllm/vllm-openai:latest',
    serve_args: ['--trust-remote-code'],
    ready_timeout_seconds: 1_800,
  },
  model_source: { type: 'huggingface', uri: 'Qwen/Qwen2.5-7B-Instruct' },
  accelerator: { type: 'H100', count: 1, vram_gb: 80, interconnect: 'pcie' },
  supported_endpoints: ['/v1/chat/completions'],
};
export const SERVED = 'Qwen/Qwen2.5-7B-Instruct';
export const MODEL = 'model-qwen';
export const TEMPLATE = 'qwen-cloud';

/** The API of a server that leases machines and has a model with a template. */
export async function startLeasing(
  redisUrl: string,
  defaults: Partial<ApiDeps['defaults']> = {},
  more: Overrides = () => ({}),
): Promise<TestApi> {
  const api = await startApi(redisUrl, (deps) => ({
    defaults: {
      ...deps.defaults,
      engineUrls: [],
      providers: ['runpod', 'lambdaCloud'],
      mostReplicas: 8,
      cluster: { namespaces: [], form: 'deployment' },
      ...defaults,
    },
    ...more(deps),
  }));
  const model = await postJson(api, '/api/v1/models', {
    id: MODEL,
    name: 'Qwen',
    serving_name: SERVED,
  });
  if (model.status !== 200) throw new Error(`no model: ${JSON.stringify(model.body)}`);
  await addTemplate(api, TEMPLATE, SPEC);
  return api;
}

export async function addTemplate(api: TestApi, name: string, spec: object): Promise<void> {
  const path = `/api/v1/models/${MODEL}/deployment-templates`;
  const made = await postJson(api, path, { name, version: 'v1.0.0', spec });
  if (made.status !== 200) throw new Error(`no template: ${JSON.stringify(made.body)}`);
}

/** A kind of machine as a catalog shows it. */
export function machineOffer(more: Partial<Offer> = {}): Offer {
  return {
    ...EXAMPLE_OFFER,
    provider: 'runpod',
    id: '1x NVIDIA H100 PCIe',
    kind: 'machine',
    type: 'NVIDIA H100 PCIe',
    count: 1,
    vramGb: 80,
    pricePerHour: 2.4,
    regions: [],
    architecture: null,
    address: '',
    models: [],
    ...more,
  };
}

/** An attempt whose machine ran for an hour, and is gone. */
export function attemptOf(n: number, more: Partial<LeaseAttempt> = {}): LeaseAttempt {
  return {
    n,
    name: `sl-0a1b2c3d-0123456789abcdef-${n}-t6x0k0`,
    provider: 'runpod',
    offer: '1x NVIDIA H100 PCIe',
    gpuType: 'NVIDIA H100 PCIe',
    gpuCount: 1,
    pricePerHour: 2.4,
    region: 'US-KS-2',
    hostKey: 'ssh-ed25519 AAAA',
    state: 'gone',
    askedAt: 1_000_000_000_000,
    machine: `pod-${n}`,
    createdAt: 1_000_000_000_000,
    reachedAt: 1_000_000_060_000,
    endedAt: 1_000_003_600_000,
    missing: 0,
    missingSince: null,
    missingAt: null,
    notBefore: null,
    error: '',
    raw: '{"desiredStatus":"RUNNING"}',
    ...more,
  };
}

/** A provision that leased machines for a job. */
export function leasedProvision(
  job: Pick<JobRecord, 'id'>,
  slot: number,
  more: Partial<ProvisionRecord>,
): ProvisionRecord {
  const id = `prov_${job.id.slice('job_'.length)}_${slot}_0`;
  return {
    ...EXAMPLE_PROVISION,
    id,
    job: job.id,
    slot,
    provider: 'runpod',
    address: leaseAddress(id),
    current: more.attempts?.at(-1)?.n ?? 0,
    ...more,
  };
}
