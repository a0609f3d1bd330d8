import { afterEach, beforeEach, describe, expect, inject, test } from 'vitest';
import { resolveTemplate, useTemplate } from '../../src/api/console/templates.ts';
import type { TemplateSpec } from '../../src/domain/template.ts';
import { postJson, startApi, uploadInput } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';
import { tick } from '../support/tick.ts';

const MODEL = 'model-qwen2.5-7b-instruct';
const PATH = `/api/v1/models/${MODEL}/deployment-templates`;

/** As the guide to leased machines writes it. */
const SPEC = {
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
  model_source: { type: 'huggingface', uri: 'Qwen/Qwen2.5-7B-Instruct' },
  accelerator: { type: 'H100', count: 1, vram_gb: 80, interconnect: 'pcie' },
  parallelism: { tp: 1, pp: 1, dp: 1, ep: 1 },
  engine_args: { gpu_memory_utilization: '0.90' },
  quantization: { weight: 'fp16', kv_cache: 'auto' },
  supported_endpoints: ['/v1/chat/completions'],
  deployment_mode: 'dedicated',
};
/** The same with all that it left out. */
const KEPT = {
  ...SPEC,
  model_source: {
    type: 'huggingface',
    uri: 'Qwen/Qwen2.5-7B-Instruct',
    revision: '',
    tokenizer_path: '',
    chat_template_path: '',
    auth_secret_ref: '',
  },
  accelerator: { type: 'H100', count: 1, vram_gb: 80, interconnect: 'pcie', sku_hint: '' },
  parallelism: { tp: 1, pp: 1, dp: 1, ep: 1, sp: 1, cp: 1 },
  quantization: { weight: 'fp16', kv_cache: 'auto', weights_artifact_uri: '' },
  service_id: '',
};

interface Template {
  id: string;
  name: string;
  version: string;
  status: string;
  used: boolean;
  spec: TemplateSpec;
  created_at: string;
  updated_at: string;
}

let api: TestApi;
beforeEach(async () => {
  api = await startApi(inject('redisUrl'));
  await postJson(api, '/api/v1/models', {
    name: 'Qwen2.5 7B Instruct',
    serving_name: 'Qwen/Qwen2.5-7B-Instruct',
  });
});
afterEach(() => api.stop());

async function send(method: string, path: string, body?: unknown) {
  const response = await fetch(`${api.url}${path}`, {
    method,
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  return { status: response.status, body: await response.json() };
}

async function make(more: object = {}): Promise<Template> {
  const { status, body } = await send('POST', PATH, {
    name: 'qwen2-5-7b-cloud',
    version: 'v1.0.0',
    spec: SPEC,
    ...more,
  });
  expect(body).toMatchObject({ id: expect.any(String) });
  expect(status).toBe(200);
  await tick();
  return body as Template;
}

function refused(code: string, message: RegExp, param: unknown = null) {
  return {
    error: expect.objectContaining({ code, message: expect.stringMatching(message), param }),
  };
}

async function names(query: string): Promise<string[]> {
  const { body } = await send('GET', `${PATH}${query}`);
  const { templates } = body as { templates: Template[] };
  return templates.map(({ name, version }) => `${name}@${version}`);
}

describe('templates', () => {
  test('one is created, read and listed with every field of the schema', async () => {
    const made = await make({ status: 'active' });
    expect(made).toEqual({
      id: expect.stringMatching(/^tpl_[A-Za-z0-9]{24}$/),
      name: 'qwen2-5-7b-cloud',
      version: 'v1.0.0',
      status: 'active',
      model_id: MODEL,
      spec: KEPT,
      used: false,
      created_at: expect.stringMatching(/^20\d\d-.*Z$/),
      updated_at: made.created_at,
    });
    expect(await send('GET', `${PATH}/${made.id}`)).toEqual({ status: 200, body: made });
    expect(await send('GET', PATH)).toEqual({ status: 200, body: { templates: [made] } });
  });

  test('every optional field is kept, in either case, and numbers and flags of engine_args as texts', async () => {
    const { engine, accelerator, quantization, ...spec } = {
      ...SPEC,
      modelSource: {
        type: 's3',
        uri: 's3://b/m',
        revision: 'r',
        tokenizerPath: 't',
        chatTemplatePath: 'c',
        authSecretRef: 'a',
      },
      engineArgs: {
        maxCamel: 'kept',
        max_num_seqs: 256,
        enable_prefix_caching: true,
        swap_space: '4',
      },
      supportedEndpoints: ['/v1/embeddings', '/v1/score'],
      deploymentMode: 'shared',
      serviceId: 'svc',
      parallelism: { tp: 2, pp: 2, sp: 2, cp: 4 },
    };
    const { model_source: _source, engine_args: _args, ...rest } = spec;
    const { supported_endpoints: _ends, deployment_mode: _mode, ...own } = rest;
    const made = await make({
      spec: {
        ...own,
        engine: { ...engine, type: 'sglang' },
        accelerator: { ...accelerator, count: 4, skuHint: 'sku' },
        quantization: { ...quantization, weightsArtifactUri: 'w' },
      },
    });
    expect(made.spec).toEqual({
      ...KEPT,
      engine: { ...KEPT.engine, type: 'sglang' },
      model_source: {
        type: 's3',
        uri: 's3://b/m',
        revision: 'r',
        tokenizer_path: 't',
        chat_template_path: 'c',
        auth_secret_ref: 'a',
      },
      accelerator: { ...KEPT.accelerator, count: 4, sku_hint: 'sku' },
      parallelism: { tp: 2, pp: 2, dp: 1, ep: 1, sp: 2, cp: 4 },
      engine_args: {
        enable_prefix_caching: 'true',
        maxCamel: 'kept',
        max_num_seqs: '256',
        swap_space: '4',
      },
      quantization: { ...KEPT.quantization, weights_artifact_uri: 'w' },
      supported_endpoints: ['/v1/embeddings', '/v1/score'],
      deployment_mode: 'shared',
      service_id: 'svc',
    });
  });

  test('what is optional has the defaults of the reference', async () => {
    const { engine, model_source, supported_endpoints } = SPEC;
    const { type, version, image } = engine;
    const made = await make({
      version: '',
      spec: {
        engine: { type, version, image },
        model_source,
        accelerator: { type: 'A10', count: 1 },
        supported_endpoints,
      },
    });
    expect(made).toMatchObject({ version: 'v1.0.0', status: 'active' });
    expect(made.spec).toMatchObject({
      engine: { invocation: 'http_server', serve_args: [], ready_timeout_seconds: 600 },
      parallelism: { tp: 1, pp: 1, dp: 1, ep: 1, sp: 1, cp: 1 },
      engine_args: {},
      quantization: { weight: '', kv_cache: '' },
      deployment_mode: 'dedicated',
    });
  });

  test('the list is newest first, and filtered by name and status', async () => {
    await make({ version: 'v1', status: 'draft' });
    await make({ version: 'v2' });
    await make({ name: 'other', version: 'v1', status: 'deprecated' });
    expect(await names('')).toEqual(['other@v1', 'qwen2-5-7b-cloud@v2', 'qwen2-5-7b-cloud@v1']);
    expect(await names('?status=active')).toEqual(['qwen2-5-7b-cloud@v2']);
    expect(await names('?name=other&status=deprecated')).toEqual(['other@v1']);
    expect(await send('GET', `${PATH}?status=gone`)).toMatchObject({ status: 400 });
  });

  test('a name and version is given once a model, and again after it was deleted', async () => {
    const made = await make();
    expect(await send('POST', PATH, { name: made.name, spec: SPEC })).toEqual({
      status: 409,
      body: refused('template_exists', /choose another version/, 'version'),
    });
    await postJson(api, '/api/v1/models', { name: 'other' });
    const other = '/api/v1/models/model-other/deployment-templates';
    expect(await send('POST', other, { name: made.name, spec: SPEC })).toMatchObject({
      status: 200,
    });

    expect(await send('DELETE', `${PATH}/${made.id}`)).toEqual({ status: 200, body: {} });
    expect(await send('GET', `${PATH}/${made.id}`)).toMatchObject({ status: 404 });
    expect(await send('DELETE', `${PATH}/${made.id}`)).toMatchObject({ status: 404 });
    expect((await make()).id).not.toBe(made.id);
  });

  test.each(['PUT', 'PATCH'])('%s changes what is given and leaves the rest', async (method) => {
    const made = await make({ status: 'draft' });
    const one = await send(method, `${PATH}/${made.id}`, { status: 'active', name: '' });
    expect(one).toMatchObject({
      status: 200,
      body: { ...made, status: 'active', updated_at: expect.any(String) },
    });
    const spec = { ...SPEC, engine_args: { max_num_seqs: '64' } };
    const two = await send(method, `${PATH}/${made.id}`, { ...made, version: 'v1.1.0', spec });
    expect(two.body).toMatchObject({ id: made.id, version: 'v1.1.0', status: 'draft' });
    expect((two.body as Template).spec.engine_args).toEqual({ max_num_seqs: '64' });
    // The version that it had is free again.
    await make();
    expect(await send(method, `${PATH}/${made.id}`, { version: 'v1.0.0' })).toEqual({
      status: 409,
      body: refused('template_exists', /'v1\.0\.0'/, 'version'),
    });
  });

  test('of two changes at once none is lost', async () => {
    const made = await make();
    await Promise.all([
      send('PATCH', `${PATH}/${made.id}`, { status: 'deprecated' }),
      send('PATCH', `${PATH}/${made.id}`, { version: 'v7' }),
      send('PATCH', `${PATH}/${made.id}`, { name: 'renamed' }),
    ]);
    expect(await send('GET', `${PATH}/${made.id}`)).toMatchObject({
      body: { status: 'deprecated', version: 'v7', name: 'renamed' },
    });
  });

  test('a model with templates is not deleted', async () => {
    const made = await make();
    expect(await send('DELETE', `/api/v1/models/${MODEL}`)).toEqual({
      status: 409,
      body: refused('model_in_use', /delete them first/),
    });
    await send('DELETE', `${PATH}/${made.id}`);
    expect(await send('DELETE', `/api/v1/models/${MODEL}`)).toEqual({ status: 200, body: {} });
    expect(await send('POST', PATH, { name: 'x', spec: SPEC })).toEqual({
      status: 400,
      body: refused('model_not_found', /register it with POST \/api\/v1\/models/, 'model_id'),
    });
    expect(await send('GET', PATH)).toMatchObject({ status: 404 });
  });
});

describe('a template that a job has used', () => {
  test('stays what it was, but for its status', async () => {
    const made = await make();
    await useTemplate(api, await resolveTemplate(api, { modelId: MODEL, name: made.name }));
    expect(await send('GET', `${PATH}/${made.id}`)).toMatchObject({ body: { used: true } });

    for (const change of [
      { spec: { ...SPEC, engine_args: {} } },
      { version: 'v2' },
      { name: 'other' },
    ]) {
      expect(await send('PUT', `${PATH}/${made.id}`, change)).toEqual({
        status: 409,
        body: refused('template_in_use', /create a new version/),
      });
    }
    expect(await send('DELETE', `${PATH}/${made.id}`)).toEqual({
      status: 409,
      body: refused('template_in_use', /'deprecated'/),
    });
    // The whole of it with another status is a change of its status only.
    const whole = { ...made, status: 'deprecated', spec: SPEC };
    expect(await send('PUT', `${PATH}/${made.id}`, whole)).toMatchObject({
      status: 200,
      body: { status: 'deprecated', spec: KEPT, used: true },
    });
    await make({ version: 'v1.0.1' });
  });

  test('is used as it was resolved, or not at all', async () => {
    const made = await make();
    const resolved = await resolveTemplate(api, { modelId: MODEL, name: made.name });
    await send('PATCH', `${PATH}/${made.id}`, { spec: { ...SPEC, engine_args: {} } });
    await expect(useTemplate(api, resolved)).rejects.toMatchObject({ code: 'template_changed' });
    expect(await send('GET', `${PATH}/${made.id}`)).toMatchObject({ body: { used: false } });
    const again = await resolveTemplate(api, { modelId: MODEL, name: made.name });
    await useTemplate(api, again);
    await useTemplate(api, again);
  });
});

describe('a job that names a template', () => {
  async function submit(more: object) {
    const input_dataset = await uploadInput(api);
    return postJson(api, '/api/v1/jobs', {
      input_dataset,
      endpoint: '/v1/chat/completions',
      model_id: MODEL,
      model_template_name: 'qwen2-5-7b-cloud',
      ...more,
    });
  }

  test('uses it: it stays what it was from then on', async () => {
    await make({ version: 'v0.9.0' });
    const made = await make();
    expect(await submit({})).toMatchObject({
      status: 200,
      body: { model_template_name: made.name, model_template_version: 'v1.0.0' },
    });
    expect(await send('GET', `${PATH}/${made.id}`)).toMatchObject({ body: { used: true } });
    const change = { spec: { ...SPEC, engine_args: {} } };
    expect(await send('PUT', `${PATH}/${made.id}`, change)).toMatchObject({ status: 409 });
  });

  test.each([
    ['another endpoint', { endpoint: '/v1/embeddings' }, /\/v1\/chat\/completions, not/],
    ['a version that is none', { model_template_version: 'v9' }, /It has v1\.0\.0 active/],
    ['a name that is none', { model_template_name: 'none' }, /There is no template 'none'/],
  ])('with %s is refused, and uses nothing', async (_what, more, message) => {
    const made = await make();
    expect(await submit(more)).toMatchObject({
      status: 400,
      body: { error: { message: expect.stringMatching(message) } },
    });
    expect(await send('GET', `${PATH}/${made.id}`)).toMatchObject({ body: { used: false } });
  });
});

describe('resolving by name', () => {
  const query = (text: string) => send('GET', `${PATH}/resolve?${text}`);

  test('without a version the highest active one, by either path', async () => {
    for (const version of ['v1.9.0', 'v1.10.0', 'v1.2.0']) await make({ version });
    await make({ version: 'v2.0.0', status: 'draft' });
    const { body } = await query('name=qwen2-5-7b-cloud');
    expect(body).toMatchObject({ version: 'v1.10.0', spec: KEPT });
    expect(await send('GET', `${PATH}/by-name/qwen2-5-7b-cloud`)).toEqual({ status: 200, body });
    expect(await send('GET', `${PATH}/by-name/qwen2-5-7b-cloud?version=v2.0.0`)).toMatchObject({
      status: 200,
      body: { status: 'draft' },
    });
  });

  test('what cannot be resolved says what there is', async () => {
    await make({ status: 'draft' });
    expect(await query('name=qwen2-5-7b-cloud')).toEqual({
      status: 409,
      body: refused('template_not_active', /set the status of one to 'active'.*v1\.0\.0 draft/),
    });
    expect(await query('name=qwen2-5-7b-cloud&version=v9')).toEqual({
      status: 404,
      body: refused('template_not_found', /of version 'v9'.*It has v1\.0\.0 draft/),
    });
    expect(await query('name=none')).toMatchObject({ status: 404 });
    expect(await query('')).toEqual({
      status: 400,
      body: refused('missing_required_parameter', /'name'/, 'name'),
    });
  });

  test('a name without a model is looked for in a bounded number of models at once', async () => {
    for (let n = 0; n < 70; n += 1) await postJson(api, '/api/v1/models', { name: `other ${n}` });
    const made = await make();
    let [now, most] = [0, 0];
    const { models, templates } = api.store;
    async function list(modelId: string): ReturnType<typeof templates.list> {
      now += 1;
      most = Math.max(most, now);
      const found = await templates.list(modelId);
      now -= 1;
      return found;
    }
    const store = { models, templates: { ...templates, list } };
    const resolved = await resolveTemplate({ store }, { name: made.name });
    expect(resolved).toMatchObject({ id: made.id, modelId: MODEL });
    expect(most).toBeGreaterThan(1);
    expect(most).toBeLessThanOrEqual(20);
  });

  test('for a job it is found without a model, with the name that the engine serves', async () => {
    const made = await make();
    const wish = { name: made.name, param: 'model_template_name' };
    const resolved = await resolveTemplate(api, wish);
    expect(resolved).toMatchObject({
      id: made.id,
      name: made.name,
      version: 'v1.0.0',
      modelId: MODEL,
      servingName: 'Qwen/Qwen2.5-7B-Instruct',
      spec: KEPT,
    });
    await postJson(api, '/api/v1/models', { name: 'plain' });
    const other = '/api/v1/models/model-plain/deployment-templates';
    const model_source = { type: 'local', uri: '/models/m' };
    await send('POST', other, { name: made.name, spec: { ...SPEC, model_source } });
    await expect(resolveTemplate(api, wish)).rejects.toMatchObject({
      code: 'template_ambiguous',
      status: 400,
      param: 'model_template_name',
      message: expect.stringContaining('model_id'),
    });
    // A model without a serving name serves what it is loaded from.
    expect(await resolveTemplate(api, { ...wish, modelId: 'model-plain' })).toMatchObject({
      servingName: '/models/m',
    });
    await expect(resolveTemplate(api, { ...wish, modelId: 'a}b' })).rejects.toMatchObject({
      code: 'template_not_found',
      status: 400,
    });
  });
});

describe('what is wrong is refused with the field and the rule', () => {
  const at = (path: string, value: unknown) => {
    const [outer = '', inner] = path.split('.');
    const whole = SPEC[outer as keyof typeof SPEC];
    return {
      ...SPEC,
      [outer]: inner === undefined ? value : { ...(whole as object), [inner]: value },
    };
  };

  test.each([
    ['engine', undefined, 'missing_required_parameter', /spec\.engine/],
    ['engine.type', 'vlm', 'invalid_value', /vllm, sglang, trtllm, lmdeploy, vipe, mock/],
    ['engine.image', '', 'invalid_value', /1 to 2048 characters/],
    ['engine.invocation', 'grpc', 'invalid_value', /http_server/],
    ['engine.serve_args', 'x', 'invalid_type', /a list of at most 200 texts/],
    ['engine.ready_timeout_seconds', 5, 'invalid_value', /from 10 to 86400/],
    ['engine.flavour', 'x', 'unknown_parameter', /'spec\.engine\.flavour'/],
    ['model_source.type', 'git', 'invalid_value', /huggingface, s3, tos, local, hdfs/],
    ['model_source.uri', '', 'invalid_value', /1 to 2048/],
    ['accelerator.count', 0, 'invalid_value', /from 1 to 1024/],
    ['accelerator.interconnect', 'usb', 'invalid_value', /nvlink, pcie, ib/],
    ['parallelism.tp', 1.5, 'invalid_value', /whole number/],
    [
      'parallelism',
      { tp: 2 },
      'invalid_value',
      /accelerator\.count is 1: .*accelerator\.count to 2/,
    ],
    ['engine_args.max_num_seqs', '0', 'invalid_value', /whole number of at least 1/],
    ['engine_args.gpu_memory_utilization', 1.5, 'invalid_value', /above 0 and at most 1/],
    ['engine_args.x', ['a'], 'invalid_type', /a number, true or false/],
    ['quantization.weight', 'fp4', 'invalid_value', /fp8, awq, gptq, int8, bf16, fp16/],
    ['quantization.kv_cache', 'x', 'invalid_value', /fp8_e4m3/],
    ['supported_endpoints', [], 'invalid_value', /at least one of/],
    ['supported_endpoints', ['/v1/images'], 'invalid_value', /\/v1\/rerank/],
    ['deployment_mode', 'x', 'invalid_value', /dedicated, shared, external/],
    ['provider_config', {}, 'unknown_parameter', /spec\.provider_config/],
  ])('%s: %j', async (path, value, code, message) => {
    const answer = await send('POST', PATH, { name: 'x', spec: at(path, value) });
    const param = expect.stringContaining(`spec.${path}`);
    expect(answer).toEqual({ status: 400, body: refused(code, message, param) });
  });

  test.each([
    [{ spec: SPEC }, 'name', /'name'/],
    [{ name: 'x' }, 'spec', /'spec'/],
    [{ name: 'x', spec: SPEC, status: 'live' }, 'status', /active, draft, deprecated/],
    [{ name: 'x', spec: SPEC, version: 'v 1' }, 'version', /such as v1\.0\.0/],
    [{ name: 'x', spec: SPEC, model_id: 'other' }, 'model_id', /leave it out/],
    [{ name: 'x', spec: SPEC, sepc: {} }, 'sepc', /Unknown parameter/],
  ])('%j', async (body, param, message) => {
    expect(await send('POST', PATH, body)).toMatchObject({
      status: 400,
      body: { error: { param, message: expect.stringMatching(message) } },
    });
  });

  test('an id that is none', async () => {
    for (const id of ['tpl_none', 'x', 'a%2Fb']) {
      expect(await send('PATCH', `${PATH}/${id}`, { status: 'draft' })).toEqual({
        status: 404,
        body: refused('template_not_found', /no deployment template/, 'id'),
      });
    }
  });
});
