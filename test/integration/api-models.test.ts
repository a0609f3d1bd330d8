import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { expect, inject, test } from 'vitest';
import { createStaticCatalog } from '../../src/resources/static/catalog.ts';
import { postJson, startApi } from '../support/api.ts';
import type { Overrides, TestApi } from '../support/api.ts';
import { tick } from '../support/tick.ts';

const PATH = '/api/v1/models';
const SEED = {
  name: 'Qwen2.5 7B Instruct',
  categories: ['LLM'],
  serving_name: 'Qwen/Qwen2.5-7B-Instruct',
};

function start(overrides?: Overrides): Promise<TestApi> {
  return startApi(inject('redisUrl'), overrides);
}

async function get(api: TestApi, path: string): Promise<{ status: number; body: unknown }> {
  const response = await fetch(`${api.url}${path}`);
  return { status: response.status, body: await response.json() };
}

async function remove(api: TestApi, id: string): Promise<{ status: number; body: unknown }> {
  const response = await fetch(`${api.url}${PATH}/${id}`, { method: 'DELETE' });
  return { status: response.status, body: await response.json() };
}

function refused(code: string, param: string | null, message: RegExp) {
  return {
    error: expect.objectContaining({ code, param, message: expect.stringMatching(message) }),
  };
}

test('a model is created with every field of the Console, and read and listed as it was answered', async () => {
  await using api = await start();
  const created = await postJson(api, PATH, SEED);

  expect(created).toMatchObject({ status: 200 });
  expect(created.body).toEqual({
    id: 'model-qwen2.5-7b-instruct',
    name: 'Qwen2.5 7B Instruct',
    icon_bg: '',
    icon_text: '',
    icon_text_color: '',
    categories: ['LLM'],
    is_new: false,
    pricing: { uncached_input: '', cached_input: '', output: '', per_minute: '', per_image: '' },
    context_length: '',
    description: '',
    metadata: {
      state: '',
      created_on: new Date().toISOString().slice(0, 10),
      provider_name: '',
      hugging_face: '',
    },
    specification: { calibrated: false, mixture_of_experts: false, parameters: '' },
    tags: [],
    serving_name: 'Qwen/Qwen2.5-7B-Instruct',
  });
  expect(await get(api, `${PATH}/model-qwen2.5-7b-instruct`)).toEqual({
    status: 200,
    body: created.body,
  });
  expect(await get(api, PATH)).toEqual({ status: 200, body: { models: [created.body] } });
});

test('every field that is given is kept, in either case', async () => {
  await using api = await start();
  const given = {
    id: 'own-id',
    name: 'Whisper',
    iconBg: '#000',
    iconText: 'W',
    iconTextColor: '#fff',
    categories: ['Audio'],
    isNew: true,
    pricing: { perMinute: '0.006' },
    contextLength: '448',
    description: 'Hears.',
    metadata: { state: 'Ready', createdOn: '2026-01-02', providerName: 'OpenAI', huggingFace: 'h' },
    specification: { calibrated: true, mixtureOfExperts: true, parameters: '1.5B' },
    tags: ['speech'],
    servingName: 'whisper-1',
  };
  const { body } = await postJson(api, PATH, given);
  expect(body).toEqual({
    id: 'own-id',
    name: 'Whisper',
    icon_bg: '#000',
    icon_text: 'W',
    icon_text_color: '#fff',
    categories: ['Audio'],
    is_new: true,
    pricing: {
      uncached_input: '',
      cached_input: '',
      output: '',
      per_minute: '0.006',
      per_image: '',
    },
    context_length: '448',
    description: 'Hears.',
    metadata: {
      state: 'Ready',
      created_on: '2026-01-02',
      provider_name: 'OpenAI',
      hugging_face: 'h',
    },
    specification: { calibrated: true, mixture_of_experts: true, parameters: '1.5B' },
    tags: ['speech'],
    serving_name: 'whisper-1',
  });
});

test('the list is newest first, and is searched by name, provider and category', async () => {
  await using api = await start();
  for (const [name, provider_name, category] of [
    ['Llama 3', 'Meta', 'LLM'],
    ['Whisper', 'OpenAI', 'Audio'],
    ['Qwen', 'Alibaba', 'LLM'],
  ]) {
    await postJson(api, PATH, { name, metadata: { provider_name }, categories: [category] });
    await tick();
  }
  async function names(query: string): Promise<string[]> {
    const { body } = await get(api, `${PATH}${query}`);
    return (body as { models: { name: string }[] }).models.map(({ name }) => name);
  }
  expect(await names('')).toEqual(['Qwen', 'Whisper', 'Llama 3']);
  expect(await names('?search=LLAMA')).toEqual(['Llama 3']);
  expect(await names('?search=openai')).toEqual(['Whisper']);
  expect(await names('?category=LLM')).toEqual(['Qwen', 'Llama 3']);
  expect(await names('?category=LLM&search=meta')).toEqual(['Llama 3']);
  expect(await names('?search=nothing')).toEqual([]);
});

test('a name or id that is taken is refused with the way out', async () => {
  await using api = await start();
  await postJson(api, PATH, SEED);
  const again = await postJson(api, PATH, { ...SEED, name: 'QWEN2.5 7B instruct' });
  expect(again.status).toBe(409);
  expect(again.body).toEqual(refused('model_exists', 'name', /choose another name/));
  const byId = await postJson(api, PATH, { ...SEED, id: 'model-qwen2.5-7b-instruct' });
  expect(byId.body).toEqual(refused('model_exists', 'id', /id/));
});

test('the same request under one Idempotency-Key makes one model and gives the same answer', async () => {
  await using api = await start();
  const headers = { 'idempotency-key': 'model-1' };
  const first = await postJson(api, PATH, SEED, headers);
  const second = await postJson(api, PATH, SEED, headers);
  expect(second).toMatchObject({ status: 200, body: first.body });
});

test('a model without templates is deleted, and its name is free again', async () => {
  await using api = await start();
  await postJson(api, PATH, SEED);
  expect(await remove(api, 'model-qwen2.5-7b-instruct')).toEqual({ status: 200, body: {} });
  expect(await get(api, PATH)).toEqual({ status: 200, body: { models: [] } });
  expect((await remove(api, 'model-qwen2.5-7b-instruct')).status).toBe(404);
  expect((await postJson(api, PATH, SEED)).status).toBe(200);
});

test.each([
  ['no name', {}, 'missing_required_parameter', 'name', /'name'/],
  ['an empty name', { name: '' }, 'invalid_value', 'name', /1 to 128 characters/],
  [
    'a category that is none',
    { name: 'x', categories: ['LLLM'] },
    'invalid_value',
    'categories.0',
    /LLM, Audio/,
  ],
  [
    'an unknown key',
    { name: 'x', servingname: 'y' },
    'unknown_parameter',
    'servingname',
    /Unknown/,
  ],
  ['an id for no URL', { name: 'x', id: 'a/b' }, 'invalid_value', 'id', /letters, digits/],
])('%s is refused', async (_what, body, code, param, message) => {
  await using api = await start();
  const answer = await postJson(api, PATH, body);
  expect(answer).toMatchObject({ status: 400, body: refused(code, param, message) });
});

test.each(['none', 'a%2Fb', '%7Bx%7D'])('a model %s that is not there is 404', async (id) => {
  await using api = await start();
  expect(await get(api, `${PATH}/${id}`)).toMatchObject({
    status: 404,
    body: refused('model_not_found', 'id', /There is no model/),
  });
});

test('capabilities say what this server takes', async () => {
  await using api = await start();
  const { status, body } = await get(api, '/api/v1/config/job-capabilities');
  expect(status).toBe(200);
  expect(body).toMatchObject({
    resource_request: { min_replicas: 1 },
    provider: 'static',
    validation_modes: ['strict', 'lenient'],
    limits: { max_file_bytes: 512 * 1024 ** 2, max_requests: 50_000 },
  });
  expect(await get(api, '/api/v1/health')).toEqual({ status: 200, body: { status: 'ok' } });
});

/** An engine that notes who asks it what. */
async function startEngine() {
  const asked: string[] = [];
  const server = createServer((incoming, outgoing) => {
    asked.push(`${incoming.url} ${incoming.headers.authorization}`);
    outgoing.end(JSON.stringify({ object: 'list', data: [{ id: 'sim-model' }] }));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}`,
    asked,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

test('the catalog shows each engine with its models as it says them, and one that is away with its error', async () => {
  await using engine = await startEngine();
  const away = 'http://127.0.0.1:9';
  let now = 1_000_000;
  const catalog = createStaticCatalog({
    engineUrls: [engine.url, away],
    engineApiKey: 'secret',
    now: () => now,
  });
  await using api = await start(() => ({ catalog }));
  const { body } = await get(api, '/api/v1/catalog');
  const offer = {
    provider: 'static',
    kind: 'engine',
    type: '',
    count: null,
    architecture: null,
    vram_gb: null,
    price_per_hour: null,
    region: '',
    regions: [],
    checked_at: 1_000,
  };
  expect(body).toEqual({
    offers: [
      {
        ...offer,
        id: engine.url,
        address: engine.url,
        stock: 'available',
        models: ['sim-model'],
        error: '',
      },
      {
        ...offer,
        id: away,
        address: away,
        stock: 'unavailable',
        models: [],
        error: expect.stringContaining('does not answer'),
      },
    ],
  });
  now += 9_999;
  await get(api, '/api/v1/catalog');
  expect(engine.asked).toEqual(['/v1/models Bearer secret']);
  now += 1;
  await Promise.all([get(api, '/api/v1/catalog'), get(api, '/api/v1/catalog')]);
  expect(engine.asked).toHaveLength(2);
});
