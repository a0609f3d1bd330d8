import * as v from 'valibot';
import { expect, inject, test } from 'vitest';
import { createdJob } from '../support/api-answers.ts';
import { postJson, startApi, uploadInput } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';

const errorSchema = v.object({
  error: v.object({ message: v.string(), param: v.nullable(v.string()), code: v.string() }),
});
const created = v.object({ id: v.string(), model: v.nullable(v.string()) });

function start(): Promise<TestApi> {
  return startApi(inject('redisUrl'));
}

function batch(input: string, more: object = {}) {
  const endpoint = '/v1/chat/completions';
  return { input_file_id: input, endpoint, completion_window: '24h', ...more };
}

test('output_expires_after is kept as seconds, within the limits of OpenAI', async () => {
  await using api = await start();
  const input = await uploadInput(api);
  for (const seconds of [3_600, 2_592_000]) {
    const more = { output_expires_after: { anchor: 'created_at', seconds } };
    const record = await createdJob(api, await postJson(api, '/v1/batches', batch(input, more)));
    expect(record.options.outputExpiresAfter).toBe(seconds);
  }
  const plain = await createdJob(api, await postJson(api, '/v1/batches', batch(input)));
  expect(plain.options.outputExpiresAfter).toBeNull();
  const wrong: [object, string][] = [
    [{ anchor: 'created_at', seconds: 3_599 }, 'output_expires_after.seconds'],
    [{ anchor: 'created_at', seconds: 2_592_001 }, 'output_expires_after.seconds'],
    [{ anchor: 'created_at', seconds: 3_600.5 }, 'output_expires_after.seconds'],
    [{ anchor: 'created_at' }, 'output_expires_after.seconds'],
    [{ anchor: 'last_active_at', seconds: 3_600 }, 'output_expires_after.anchor'],
    [{ anchor: 'created_at', seconds: 3_600, days: 1 }, 'output_expires_after.days'],
  ];
  for (const [expiry, param] of wrong) {
    const answer = await postJson(
      api,
      '/v1/batches',
      batch(input, { output_expires_after: expiry }),
    );
    expect([answer.status, v.parse(errorSchema, answer.body).error.param]).toEqual([400, param]);
  }
});

test('aibrix.job_id names the job, once', async () => {
  await using api = await start();
  const input = await uploadInput(api);
  const jobId = `job_${crypto.randomUUID().replaceAll('-', '')}`;
  const body = batch(input, { aibrix: { job_id: jobId } });
  const first = await postJson(api, '/v1/batches', body);
  expect((await createdJob(api, first)).id).toBe(jobId);
  const again = await postJson(api, '/v1/batches', body);
  expect(again.body, 'the same request finds what it made').toEqual(first.body);

  const other = await postJson(api, '/v1/batches', { ...body, metadata: { other: 'yes' } });
  const { error } = v.parse(errorSchema, other.body);
  expect([other.status, error.code, error.param]).toEqual([400, 'job_id_taken', 'aibrix.job_id']);
  for (const wrong of ['x', 'job_', 'job_a-b', 'job_a}{b', `job_${'a'.repeat(101)}`]) {
    const answer = await postJson(api, '/v1/batches', batch(input, { aibrix: { job_id: wrong } }));
    const refusal = v.parse(errorSchema, answer.body).error;
    expect([answer.status, refusal.param]).toEqual([400, 'aibrix.job_id']);
    expect(refusal.message).toMatch(/letters and digits/);
  }
});

test('aibrix.model is the model that every line must name', async () => {
  await using api = await start();
  const more = { aibrix: { model: 'only-this' } };
  const answer = await postJson(api, '/v1/batches', batch(await uploadInput(api), more));
  expect((await createdJob(api, answer)).options.pinnedModel).toBe('only-this');
  expect(v.parse(created, answer.body).model).toBe('only-this');
});

test('aibrix.client.retry_policy changes what it names and leaves the rest', async () => {
  await using api = await start();
  const input = await uploadInput(api);
  const policies: [object, object][] = [
    [{ max_retries: 0 }, { maxRetries: 0, baseMs: 250, capMs: 30_000 }],
    [
      { base_delay_seconds: 0.5, max_delay_seconds: 2 },
      { maxRetries: 10, baseMs: 500, capMs: 2_000 },
    ],
  ];
  for (const [policy, kept] of policies) {
    const more = { aibrix: { client: { retry_policy: policy } } };
    const record = await createdJob(api, await postJson(api, '/v1/batches', batch(input, more)));
    expect(record.options.retry).toEqual(kept);
    const job = await postJson(api, '/api/v1/jobs', {
      input_dataset: input,
      endpoint: '/v1/embeddings',
      client: { retryPolicy: policy },
    });
    expect((await createdJob(api, job)).options.retry).toEqual(kept);
  }
});

test('aibrix.client.request_timeout_seconds and upstream_stream reach the record, on both interfaces', async () => {
  await using api = await start();
  const input = await uploadInput(api);
  const asked: [object, object][] = [
    [{}, { answerTimeoutMs: null, upstreamStream: 'auto' }],
    [
      { request_timeout_seconds: 1.5, upstream_stream: 'always' },
      { answerTimeoutMs: 1_500, upstreamStream: 'always' },
    ],
    [{ upstream_stream: 'never' }, { answerTimeoutMs: null, upstreamStream: 'never' }],
  ];
  for (const [client, options] of asked) {
    const more = { aibrix: { client } };
    const record = await createdJob(api, await postJson(api, '/v1/batches', batch(input, more)));
    expect(record.options).toMatchObject(options);
    const body = { input_dataset: input, endpoint: '/v1/embeddings', client };
    const job = await createdJob(api, await postJson(api, '/api/v1/jobs', body));
    expect(job.options).toMatchObject(options);
  }
});

test('aibrix.client.requests_per_second and tokens_per_minute reach the record, on both interfaces', async () => {
  await using api = await start();
  const input = await uploadInput(api);
  const asked: [object, object][] = [
    [{}, { requestsPerSecond: null, tokensPerMinute: null }],
    [{ requests_per_second: 0.5 }, { requestsPerSecond: 0.5, tokensPerMinute: null }],
    [
      { requests_per_second: null, tokens_per_minute: 90_000 },
      { requestsPerSecond: null, tokensPerMinute: 90_000 },
    ],
  ];
  for (const [client, limits] of asked) {
    const more = { aibrix: { client } };
    const record = await createdJob(api, await postJson(api, '/v1/batches', batch(input, more)));
    expect(record.options.limits).toEqual(limits);
    const body = { input_dataset: input, endpoint: '/v1/embeddings', client };
    const job = await createdJob(api, await postJson(api, '/api/v1/jobs', body));
    expect(job.options.limits).toEqual(limits);
  }
});

test('aibrix.client.adaptive_* and aibrix.priority reach the record, on both interfaces and in a clone', async () => {
  await using api = await start();
  const input = await uploadInput(api);
  const asked: [object, object | null][] = [
    [{}, { maxFactor: null, healthyWindow: 8, additiveIncrease: 1 }],
    [{ adaptive_concurrency: false }, null],
    [{ adaptive_concurrency: true }, { maxFactor: null, healthyWindow: 8, additiveIncrease: 1 }],
    [
      { adaptive_max_factor: 2.5, adaptive_healthy_window: 16, adaptive_additive_increase: 4 },
      { maxFactor: 2.5, healthyWindow: 16, additiveIncrease: 4 },
    ],
  ];
  for (const [client, adaptive] of asked) {
    const more = { aibrix: { client, priority: 'high' } };
    const record = await createdJob(api, await postJson(api, '/v1/batches', batch(input, more)));
    expect(record.options).toMatchObject({ adaptive, priority: 'high' });
    const body = { input_dataset: input, endpoint: '/v1/embeddings', client, priority: 'low' };
    const job = await createdJob(api, await postJson(api, '/api/v1/jobs', body));
    expect(job.options).toMatchObject({ adaptive, priority: 'low' });
    const path = `/api/v1/jobs/${job.id}/clone`;
    const same = await createdJob(api, await postJson(api, path, {}));
    expect(same.options).toMatchObject({ adaptive, priority: 'low' });
    const other = await createdJob(api, await postJson(api, path, { priority: 'normal' }));
    expect(other.options).toMatchObject({ adaptive, priority: 'normal' });
  }
});

test('a job shows how its lines are sent, in the words in which that was asked for', async () => {
  await using api = await start();
  const client = {
    max_concurrency: 7,
    adaptive_concurrency: true,
    adaptive_max_factor: 3,
    adaptive_healthy_window: 9,
    adaptive_additive_increase: 2,
    retry_policy: { max_retries: 1, base_delay_seconds: 0.5, max_delay_seconds: 2 },
    requests_per_second: 5,
    tokens_per_minute: 600,
    request_timeout_seconds: 30,
    upstream_stream: 'always',
    on_error_rate: 'continue',
    hedging: true,
  };
  const job = await postJson(api, '/api/v1/jobs', {
    input_dataset: await uploadInput(api),
    endpoint: '/v1/embeddings',
    client,
    priority: 'low',
  });
  expect(job.body).toMatchObject({ client, priority: 'low' });
});

test('what has no effect on this server is refused with a reason and the mend', async () => {
  await using api = await start();
  const input = await uploadInput(api);
  const wrong: [object, string, RegExp][] = [
    [{ client: { adaptive_concurrency: 1 } }, 'client.adaptive_concurrency', /true/],
    [{ client: { adaptive_max_factor: 0.5 } }, 'client.adaptive_max_factor', /1 to 1024/],
    [{ client: { adaptive_healthy_window: 0 } }, 'client.adaptive_healthy_window', /1 to 1024/],
    [
      { client: { adaptive_additive_increase: 1.5 } },
      'client.adaptive_additive_increase',
      /1 to 1024/,
    ],
    [
      { client: { adaptive_concurrency: false, adaptive_healthy_window: 8 } },
      'client.adaptive_concurrency',
      /adaptive_healthy_window/,
    ],
    [{ priority: 'urgent' }, 'priority', /high, normal, low/],
    [
      { client: { retry_policy: { no_endpoint_max_retries: 3 } } },
      'client.retry_policy.no_endpoint_max_retries',
      /waits for one until the deadline/,
    ],
    [{ client: { request_timeout_seconds: 0.5 } }, 'client.request_timeout_seconds', /1 to 86400/],
    [{ client: { request_timeout_seconds: 86_401 } }, 'client.request_timeout_seconds', /86400/],
    [{ client: { upstream_stream: true } }, 'client.upstream_stream', /auto, always, never/],
    [{ client: { retry_policy: { max_retries: 101 } } }, 'client.retry_policy.max_retries', /100/],
    [
      { client: { retry_policy: { base_delay_seconds: -1 } } },
      'client.retry_policy.base_delay_seconds',
      /3600/,
    ],
    [
      { resource_allocation: { provision_id: 'p' } },
      'resource_allocation.provision_id',
      /aibrix\.runtime/,
    ],
    [
      { resource_allocation: { regions: ['us'] } },
      'resource_allocation.regions',
      /no effect: this server leases no machines: .*PROVISIONER=runpod/,
    ],
    [{ model_template: {} }, 'model_template.name', /Missing/],
    [{ model_template: { name: 'none' } }, 'model_template', /none/],
    [{ model: '' }, 'model', /1 to 512/],
  ];
  for (const [aibrix, param, message] of wrong) {
    const answer = await postJson(api, '/v1/batches', batch(input, { aibrix }));
    const { error } = v.parse(errorSchema, answer.body);
    expect([answer.status, error.param]).toEqual([400, `aibrix.${param}`]);
    expect(error.message).toMatch(message);
  }
  const same = { aibrix: { client: { adaptive_concurrency: false, max_concurrency: 3 } } };
  const fine = await postJson(api, '/v1/batches', batch(input, same));
  expect((await createdJob(api, fine)).maxConcurrency).toBe(3);
});

test('an engine of the caller may run anywhere, and is named in the words of AIBrix, too', async () => {
  await using api = await start();
  const input = await uploadInput(api);
  const url = 'https://abc123-8000.proxy.runpod.net';
  const runtimes: [object, string[]][] = [
    [{ target: 'RunPod', options: { http_base_url: url } }, [url]],
    [{ target: 'LambdaCloud', options: { base_url: `${url}/v1` } }, [url]],
    [
      { target: 'Kubernetes', options: { base_urls: [url, 'http://b'], base_url: url } },
      [url, 'http://b'],
    ],
    [
      { target: 'External', options: { http_base_url: url, base_url: 'http://a' } },
      ['http://a', url],
    ],
  ];
  for (const [runtime, engines] of runtimes) {
    const answer = await postJson(api, '/v1/batches', batch(input, { aibrix: { runtime } }));
    expect((await createdJob(api, answer)).engines).toEqual(engines);
  }
});

test('a runtime that names no engine, or says what only a machine has, is refused with the mend', async () => {
  await using api = await start();
  const input = await uploadInput(api);
  const url = { http_base_url: 'http://1.2.3.4:8000' };
  const wrong: [object, string, RegExp][] = [
    [{ target: 'RunPod', options: { ...url, ssh_port: 22 } }, 'options.ssh_port', /in host/],
    [{ target: 'RunPod', options: { ssh_user: 'root' } }, 'options.ssh_user', /in host/],
    [{ target: 'LambdaCloud', options: { ...url, image: 'i' } }, 'options.image', /in host/],
    [{ target: 'LambdaCloud', options: { vllm_args: ['-q'] } }, 'options.vllm_args', /in host/],
    [{ target: 'RunPod', options: { ...url, model: 'm' } }, 'options.model', /aibrix\.model/],
    [{ target: 'Kubernetes' }, 'target', /PROVISIONER=kubernetes/],
    [{ target: 'KubernetesJob', options: {} }, 'target', /PROVISIONER=kubernetes/],
    [
      { target: 'External', options: { ...url, namespace: 'batch' } },
      'options.namespace',
      /without base_url/,
    ],
    [{ target: 'RunPod', options: {} }, 'options.base_url', /'base_url' or 'base_urls'/],
    [{ target: 'KubernetesJob', options: url }, 'options.base_url', /brings its engine along/],
    [{ target: 'Nowhere', options: url }, 'target', /External, RunPod, LambdaCloud, Kubernetes/],
  ];
  for (const [runtime, param, message] of wrong) {
    const answer = await postJson(api, '/v1/batches', batch(input, { aibrix: { runtime } }));
    const { error } = v.parse(errorSchema, answer.body);
    expect([answer.status, error.param]).toEqual([400, `aibrix.runtime.${param}`]);
    expect(error.message).toMatch(message);
  }
});

test('the Console refuses what it cannot give a job', async () => {
  await using api = await start();
  const job = { input_dataset: await uploadInput(api), endpoint: '/v1/embeddings' };
  const wrong: [object, string, RegExp][] = [
    [{ resource_request: { replicas: 2 } }, 'resource_request.replicas', /ENGINE_URLS/],
    [{ resource_request: { replicas: 1_025 } }, 'resource_request.replicas', /1024/],
    [
      { resourceRequest: { providerConfig: { region: 'x' } } },
      'resource_request.provider_config',
      /provider, regions, gpu_types/,
    ],
    [
      { resource_request: { provider: 'runpod' } },
      'resource_request.provider',
      /PROVISIONER=runpod/,
    ],
    [{ resource_request: { maxCostUsd: 5 } }, 'resource_request.max_cost_usd', /no effect/],
    [{ injection_config: { enabled: true } }, 'injection_config', /injects no errors/],
    [{ request_count_total: -1 }, 'request_count_total', /0 or more/],
    [{ model_template_version: 'v1' }, 'model_template_name', /needs/],
    [{ model_id: 'model-none' }, 'model_id', /\/api\/v1\/models/],
    [{ model_template_name: 'none' }, 'model_template_name', /none/],
  ];
  for (const [more, param, message] of wrong) {
    const answer = await postJson(api, '/api/v1/jobs', { ...job, ...more });
    const { error } = v.parse(errorSchema, answer.body);
    expect([answer.status, error.param, error.message]).toEqual([
      400,
      param,
      expect.stringMatching(message),
    ]);
  }
  const fine = await postJson(api, '/api/v1/jobs', {
    ...job,
    resource_request: { replicas: 1, provider_config: {} },
    injection_config: { enabled: false },
  });
  expect(fine.status, 'one engine is what there is').toBe(200);
});
