import { describe, expect, inject, test } from 'vitest';
import type { ApiDeps } from '../../src/api/app.ts';
import { createKeyPair } from '../../src/runtimes/ssh/keys.ts';
import { createdJob, refusedWith } from '../support/api-answers.ts';
import { postJson, uploadInput } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';
import { addTemplate, SERVED, SPEC, startLeasing, TEMPLATE } from '../support/leasing-api.ts';

const ENDPOINT = '/v1/chat/completions';
const LINE = JSON.stringify({
  custom_id: 'a',
  method: 'POST',
  url: ENDPOINT,
  body: { model: SERVED, messages: [{ role: 'user', content: 'x' }] },
});
const HOST = '203.0.113.7';
const { publicKey: KEY } = createKeyPair();

/** A server of engines that run already, which has a key for machines. */
function start(defaults: Partial<ApiDeps['defaults']> = {}): Promise<TestApi> {
  const some = { providers: [], engineUrls: ['http://engine:8000'], sshKeyFile: '/keys/id' };
  return startLeasing(inject('redisUrl'), { ...some, ...defaults });
}

interface Wish {
  target?: string;
  options?: object;
  /** Further fields of `aibrix`. */
  more?: object;
  path?: string;
}

async function ask(
  api: TestApi,
  { target = 'RunPod', options = { host: HOST }, more = {}, path = '' }: Wish = {},
) {
  return postJson(api, `/v1/batches${path}`, {
    input_file_id: await uploadInput(api, `${LINE}\n`),
    endpoint: ENDPOINT,
    completion_window: '24h',
    aibrix: { model_template: { name: TEMPLATE }, runtime: { target, options }, ...more },
  });
}

/** What a job has of one that names nothing but the host. */
const PLAIN = { login: { host: HOST, port: 22, user: 'root' }, hostKey: null };

test('a batch for a machine of its caller has its template, and leases nothing', async () => {
  await using api = await start();
  const { engines, options } = await createdJob(api, await ask(api));
  expect(engines).toEqual([]);
  expect(options).toMatchObject({
    template: { name: TEMPLATE, version: 'v1.0.0' },
    pinnedModel: SERVED,
    resources: {
      spec: { engine: SPEC.engine, accelerator: SPEC.accelerator },
      servingName: SERVED,
      replicas: 1,
      providers: ['runpod'],
      maxCostUsd: null,
      maxIdleMinutes: null,
      machine: PLAIN,
    },
  });
});

describe('of aibrix.runtime.options', () => {
  const FIELDS: [string, Wish, object][] = [
    [
      'host by name',
      { options: { host: 'gpu-1.example.org' } },
      { machine: { login: { host: 'gpu-1.example.org' } } },
    ],
    [
      'host as IPv6',
      { options: { host: '2001:db8::7' } },
      { machine: { login: { host: '2001:db8::7' } } },
    ],
    [
      'ssh_port',
      { options: { host: HOST, ssh_port: 10_022 } },
      { machine: { login: { port: 10_022 } } },
    ],
    [
      'ssh_user',
      { options: { host: HOST, ssh_user: 'gpu' } },
      { machine: { login: { user: 'gpu' } } },
    ],
    ['host_key', { options: { host: HOST, host_key: KEY } }, { machine: { hostKey: KEY } }],
    [
      'vllm_args',
      { options: { host: HOST, vllm_args: ['--seed', '7'] } },
      { spec: { engine: { serve_args: [...SPEC.engine.serve_args, '--seed', '7'] } } },
    ],
    ['model as it is served', { options: { host: HOST, model: SERVED } }, { servingName: SERVED }],
    [
      'the user of LambdaCloud',
      { target: 'LambdaCloud' },
      { providers: ['lambdaCloud'], machine: { login: { user: 'ubuntu' } } },
    ],
    [
      'image',
      { target: 'LambdaCloud', options: { host: HOST, image: 'mine:1' } },
      { spec: { engine: { image: 'mine:1' } } },
    ],
  ];
  test.each(FIELDS)('%s is kept', async (_field, wish, kept) => {
    await using api = await start();
    const { options } = await createdJob(api, await ask(api, wish));
    expect(options.resources).toMatchObject(kept);
  });

  const url = 'http://1.2.3.4:8000';
  const at = 'aibrix.runtime.options';
  const WRONG: [string, Wish, string, string, RegExp][] = [
    [
      'host that is none',
      { options: { host: 'a b' } },
      'invalid_value',
      `${at}.host`,
      /IP address/,
    ],
    [
      'host as an option',
      { options: { host: '-oProxyCommand=x' } },
      'invalid_value',
      `${at}.host`,
      /IP address/,
    ],
    [
      'host with External',
      { target: 'External' },
      'invalid_value',
      `${at}.host`,
      /RunPod or LambdaCloud/,
    ],
    ['host with Kubernetes', { target: 'Kubernetes' }, 'invalid_value', `${at}.host`, /base_url/],
    [
      'host and http_base_url',
      { options: { host: HOST, http_base_url: url } },
      'invalid_value',
      `${at}.http_base_url`,
      /SSH tunnel/,
    ],
    ['ssh_host', { options: { ssh_host: HOST } }, 'invalid_value', `${at}.ssh_host`, /in host/],
    [
      'ssh_port',
      { options: { host: HOST, ssh_port: 0 } },
      'invalid_value',
      `${at}.ssh_port`,
      /65535/,
    ],
    [
      'ssh_user',
      { options: { host: HOST, ssh_user: '-l' } },
      'invalid_value',
      `${at}.ssh_user`,
      /letters/,
    ],
    [
      'host_key',
      { options: { host: HOST, host_key: 'MD5:00' } },
      'invalid_value',
      `${at}.host_key`,
      /ssh-keygen/,
    ],
    [
      'host_key without host',
      { options: { base_url: url, host_key: KEY } },
      'invalid_value',
      `${at}.host_key`,
      /in host/,
    ],
    [
      'image on a pod',
      { options: { host: HOST, image: 'i' } },
      'invalid_value',
      `${at}.image`,
      /no container/,
    ],
    [
      'vllm_args',
      { options: { host: HOST, vllm_args: '-q' } },
      'invalid_type',
      `${at}.vllm_args`,
      /list/,
    ],
    [
      'another model',
      { options: { host: HOST, model: 'other' } },
      'model_mismatch',
      `${at}.model`,
      /starts the model/,
    ],
    [
      'no machine at all',
      { options: {} },
      'missing_required_parameter',
      `${at}.base_url`,
      /'host'/,
    ],
  ];
  test.each(WRONG)('%s is refused', async (_what, wish, code, param, message) => {
    await using api = await start();
    expect(await ask(api, wish)).toMatchObject(refusedWith(code, param, message));
  });
});

test('a model may be named by its source, too', async () => {
  await using api = await start();
  const uri = 'org/qwen-quantized';
  await addTemplate(api, 'source', { ...SPEC, model_source: { type: 'huggingface', uri } });
  const model_template = { name: 'source' };
  for (const model of [uri, SERVED]) {
    const wish = { options: { host: HOST, model }, more: { model_template } };
    expect((await createdJob(api, await ask(api, wish))).options.pinnedModel).toBe(SERVED);
  }
});

test('a machine is refused where the server cannot log in, with the mend', async () => {
  await using keyless = await start({ sshKeyFile: undefined });
  const param = 'aibrix.runtime.options.host';
  expect(await ask(keyless)).toMatchObject(
    refusedWith('ssh.key_missing', param, /AIBRIX_BATCH_SSH_KEY_FILE/),
  );
  await using remote = await start({ metadataServiceUrl: 'http://metadata:8090' });
  expect(await ask(remote)).toMatchObject(
    refusedWith('invalid_value', param, /METADATA_SERVICE_URL/),
  );
});

test('a machine needs a template, and one that can be started', async () => {
  await using api = await start();
  expect(await ask(api, { more: { model_template: null } })).toMatchObject(
    refusedWith('template_required', 'aibrix.model_template', /your machine/),
  );
  await using lucky = await start({ defaultTemplate: TEMPLATE });
  const { options } = await createdJob(lucky, await ask(lucky, { more: { model_template: null } }));
  expect(options.template).toEqual({ name: TEMPLATE, version: 'v1.0.0' });
  await addTemplate(api, 'shared', { ...SPEC, deployment_mode: 'shared' });
  expect(await ask(api, { more: { model_template: { name: 'shared' } } })).toMatchObject(
    refusedWith('engine.refused', 'aibrix.model_template', /dedicated/),
  );
});

test.each([[[]], [['runpod', 'lambdaCloud']]] as const)(
  'wishes for leased machines are refused beside one, providers being %j',
  async (providers) => {
    await using api = await start({ providers, mostReplicas: 8 });
    const param = 'aibrix.resource_allocation';
    for (const [field, value] of Object.entries({ replicas: 2, regions: ['x'], max_cost_usd: 1 })) {
      const answer = await ask(api, { more: { resource_allocation: { [field]: value } } });
      expect(answer).toMatchObject(
        refusedWith('invalid_value', `${param}.${field}`, /aibrix.runtime/),
      );
    }
  },
);

test('a copy of such a job runs on the same machine, as the job shows it, and costs nothing', async () => {
  // Not one of its own engines has to be there.
  await using api = await start({ engineUrls: [] });
  const first = await createdJob(api, await ask(api, { options: { host: HOST, host_key: KEY } }));
  const copy = await createdJob(api, await postJson(api, `/api/v1/jobs/${first.id}/clone`, {}));
  expect(copy.options.resources).toEqual(first.options.resources);
  const body = await (await fetch(`${api.url}/api/v1/jobs/${copy.id}`)).json();
  expect(body).toMatchObject({
    runtime: {
      target: 'RunPod',
      options: { host: HOST, ssh_port: '22', ssh_user: 'root', host_key: KEY },
    },
    resource_allocation: null,
    cost: null,
  });
});

test('a batch for such a machine is validated without asking anybody else', async () => {
  await using api = await start({ providers: ['runpod'] });
  const { status, body } = await ask(api, { path: '/validate' });
  expect({ status, body }).toMatchObject({
    status: 200,
    body: { warnings: { data: [] } },
  });
});
