import { expect, test } from 'vitest';
import { DEFAULT_OPTIONS } from '../../src/domain/job.ts';
import type { JobOptions, JobRecord } from '../../src/domain/job.ts';
import type { JobResources, LeaseAttempt } from '../../src/domain/lease.ts';
import { leaseAddress } from '../../src/domain/provision.ts';
import type { ProvisionRecord } from '../../src/domain/provision.ts';
import { remoteOrder } from '../../src/runtimes/remote/order.ts';
import { refuseCreate } from '../simulators/metadata-service/check.ts';
import { openJobWorld } from '../support/job-world.ts';

const { job, provision } = openJobWorld('submitting', 'starting');

const SPEC = {
  engine: { type: 'vllm', image: 'vllm/vllm-openai:v1', serve_args: ['--trust-remote-code'] },
  model_source: { type: 'huggingface', uri: 'org/model' },
} as JobResources['spec']; // the parts that are read

const RESOURCES = { spec: SPEC, servingName: 'org/model', replicas: 1 } as JobResources; // so, too

function orderOf(
  options: Partial<JobOptions>,
  change: Partial<JobRecord> = {},
  on: Partial<ProvisionRecord> = {},
) {
  const order = remoteOrder(
    { ...job, ...change, options: { ...DEFAULT_OPTIONS, ...options } },
    { ...provision, ...on },
    { file: 'file-1', engineUrls: ['http://engine:8000'] },
  );
  return { ...order, refusal: refuseCreate(JSON.parse(JSON.stringify(order))) };
}

function leased(attempt: Partial<LeaseAttempt>, host: string, port: number, user: string) {
  const current = { n: 1, machine: 'pod1', gpuType: 'H100', ...attempt } as LeaseAttempt; // what is read
  return {
    address: leaseAddress(provision.id),
    current: 1,
    attempts: [current],
    login: { host, port, user },
  };
}

test.for([
  {
    provider: 'runpod' as const,
    at: ['1.2.3.4', 10_022, 'root'] as const,
    target: 'RunPod',
    base: 'https://pod1-8000.proxy.runpod.net',
  },
  {
    provider: 'lambdaCloud' as const,
    at: ['5.6.7.8', 22, 'ubuntu'] as const,
    target: 'LambdaCloud',
    base: 'http://5.6.7.8:8000',
  },
])(
  'the machine of $provider is handed over as the Console does it',
  ({ provider, at, target, base }) => {
    const [host, port, user] = at;
    const template = { name: 'qwen', version: 'v1.0.0' };
    const { aibrix, refusal } = orderOf(
      { resources: RESOURCES, template, pinnedModel: 'org/model' },
      {},
      leased({ provider }, host, port, user),
    );
    expect(aibrix).toEqual({
      job_id: job.id,
      model: 'org/model',
      runtime: {
        target,
        options: {
          host,
          ssh_port: port,
          ssh_user: user,
          http_base_url: base,
          model: 'org/model',
          image: 'vllm/vllm-openai:v1',
          vllm_args: ['--trust-remote-code'],
        },
      },
      resource_allocation: {
        provision_id: provision.id,
        resource_details: [{ gpu_type: 'H100', replica: 1 }],
      },
      model_template: { ...template, spec: SPEC },
      client: { max_concurrency: 8 },
    });
    expect(refusal).toBeNull();
  },
);

test('the engine is told the name that requests use where that is not what it loads', () => {
  const resources = { ...RESOURCES, servingName: 'short' };
  const { aibrix } = orderOf({ resources }, {}, leased({ provider: 'runpod' }, 'h', 1, 'root'));
  expect(aibrix['runtime']).toMatchObject({
    options: { vllm_args: ['--served-model-name', 'short', '--trust-remote-code'] },
  });
});

test('a machine that nobody can log in to yet is waited for', () => {
  const on = { ...leased({ provider: 'runpod' }, 'h', 1, 'root'), login: null };
  expect(() => orderOf({ resources: RESOURCES }, {}, on)).toThrow('The machine is not known yet.');
});

test('the own engines of a batch go before those of the server; without any the service has its own', () => {
  const runtime = (options: object) => ({ target: 'External', options });
  expect(orderOf({}).aibrix['runtime']).toEqual(runtime({ base_url: 'http://engine:8000' }));
  const engines = ['http://a:1', 'http://b:1'];
  expect(orderOf({}, { engines }).aibrix['runtime']).toEqual(runtime({ base_urls: engines }));
  const none = remoteOrder(job, provision, { file: 'file-1', engineUrls: [] });
  expect(none.aibrix).toEqual({ job_id: job.id, model: 'm', client: { max_concurrency: 8 } });
});

test('what a user chose of how lines are sent goes along, and nothing that everybody gets', () => {
  const plain = orderOf({
    retry: { maxRetries: 3, baseMs: 500, capMs: 2_000 },
    answerTimeoutMs: 9_000,
  });
  expect(plain.aibrix['client']).toEqual({
    max_concurrency: 8,
    retry_policy: { max_retries: 3, base_delay_seconds: 0.5, max_delay_seconds: 2 },
    request_timeout_seconds: 9,
  });
  expect(plain.refusal).toBeNull();
  const adaptive = { maxFactor: 4, healthyWindow: 2, additiveIncrease: 3 };
  expect(orderOf({ adaptive }).aibrix['client']).toMatchObject({
    adaptive_max_factor: 4,
    adaptive_healthy_window: 2,
    adaptive_additive_increase: 3,
  });
  const more = {
    adaptive: null,
    limits: { requestsPerSecond: 5, tokensPerMinute: 60 },
    upstreamStream: 'always',
    onErrorRate: 'fail',
    hedging: true,
    priority: 'high',
  } as const;
  expect(orderOf(more).aibrix).toMatchObject({
    priority: 'high',
    client: {
      adaptive_concurrency: false,
      requests_per_second: 5,
      tokens_per_minute: 60,
      upstream_stream: 'always',
      on_error_rate: 'fail',
      hedging: true,
    },
  });
});

test('several models, and names that are too long for metadata', () => {
  const { aibrix, metadata, refusal } = orderOf(
    { owner: 'x'.repeat(600) },
    { models: ['a', 'b'], name: 'n' },
  );
  expect(aibrix).not.toHaveProperty('model');
  expect(metadata['aibrix.console.created_by']).toHaveLength(512);
  expect(refusal).toBeNull();
});
