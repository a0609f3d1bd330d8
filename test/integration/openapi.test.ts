import { describe, expect, inject, test } from 'vitest';
import { EXAMPLE_IDS } from '../../src/api/docs/examples.ts';
import { DOCS } from '../../src/api/openapi.ts';
import type { OpenApi } from '../../src/api/openapi.ts';
import { postForm, rawRequest, startApi, uploadInput } from '../support/api.ts';
import type { RawAnswer, TestApi } from '../support/api.ts';
import { operationsOf, schemaCheck } from '../support/openapi.ts';
import type { Described } from '../support/openapi.ts';

function start(): Promise<TestApi> {
  return startApi(inject('redisUrl'));
}

async function readDocument(api: TestApi): Promise<OpenApi> {
  return JSON.parse((await rawRequest(`${api.url}/openapi.json`)).text);
}

/** What is no interface of Sluice's own. */
const BOARD = '/admin/queues';

test('every route is in the document, and nothing else', async () => {
  await using api = await start();
  const answered = api.routes
    .filter(({ method, path }) => method !== 'ALL' && !path.startsWith(BOARD))
    .map(({ method, path }) => `${method} ${path.replaceAll(/:(\w+)/g, '{$1}')}`);
  const described = operationsOf(await readDocument(api)).map(
    ({ method, path }) => `${method.toUpperCase()} ${path}`,
  );
  expect(answered.length).toBeGreaterThan(10);
  expect(described.toSorted()).toEqual(answered.toSorted());
  const docs = Object.entries(DOCS).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`),
  );
  const routes = new Set(api.routes.map(({ method, path }) => `${method} ${path}`));
  expect(docs.filter((each) => !routes.has(each))).toEqual([]);
});

test('the document is told unchanged by its ETag', async () => {
  await using api = await start();
  const { headers, status } = await rawRequest(`${api.url}/openapi.json`);
  expect([status, headers['content-type']]).toEqual([200, 'application/json']);
  expect(headers['x-content-type-options']).toBe('nosniff');
  const known = { 'if-none-match': String(headers.etag) };
  expect(await rawRequest(`${api.url}/openapi.json`, { headers: known })).toMatchObject({
    status: 304,
    text: '',
  });
  const other = { 'if-none-match': '"other"' };
  expect(await rawRequest(`${api.url}/openapi.json`, { headers: other })).toMatchObject({
    status: 200,
  });
});

test('the page loads nothing from elsewhere, and all that it names is here', async () => {
  await using api = await start();
  const page = await rawRequest(`${api.url}/docs`);
  expect(page.status).toBe(200);
  expect(page.headers['content-security-policy']).toContain("default-src 'none'");
  expect(page.headers['content-security-policy']).not.toContain('http');
  const named = [...page.text.matchAll(/(?:src|href)="([^"]+)"/g)].map(([, path]) => path);
  expect(named.length).toBeGreaterThan(3);
  for (const path of named) {
    expect(path).toMatch(/^\/[a-z]/);
    const asset = await rawRequest(`${api.url}${path}`);
    expect([path, asset.status]).toEqual([path, 200]);
    const headers = { 'if-none-match': asset.headers.etag ?? '"none"' };
    const again = await rawRequest(`${api.url}${path}`, { headers });
    expect([path, again.status]).toEqual([path, asset.headers.etag === undefined ? 200 : 304]);
    const head = await rawRequest(`${api.url}${path}`, { method: 'HEAD' });
    expect([path, head.text]).toEqual([path, '']);
  }
  expect((await rawRequest(`${api.url}/docs/package.json`)).status).toBe(404);
  expect((await rawRequest(`${api.url}/docs/constructor`)).status).toBe(404);
});

/** The first body of an operation: its type and its example. */
function bodyOf(operation: Described): [string | undefined, unknown] {
  const [[type, content] = []] = Object.entries(operation.requestBody?.content ?? {});
  return [type, content?.example];
}

async function postExample(api: TestApi, path: string, example: unknown): Promise<string> {
  const body = [JSON.stringify(example)];
  const headers = { 'content-type': 'application/json' };
  const answer = await rawRequest(`${api.url}${path}`, { method: 'POST', headers, body });
  if (answer.status !== 200) throw new Error(`${path}: ${answer.status} ${answer.text}`);
  return JSON.parse(answer.text).id;
}

async function makeBatch(api: TestApi): Promise<string> {
  const batch = await api.openai.batches.create({
    input_file_id: await uploadInput(api),
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
  });
  return batch.id;
}

type Example = (path: string) => unknown;

/** Makes what an id of an example names, by the examples of the operations that make it. */
async function makeReal(
  api: TestApi,
  id: keyof typeof EXAMPLE_IDS,
  example: Example,
  made: ReadonlyMap<string, string>,
): Promise<string> {
  const { model } = EXAMPLE_IDS;
  const templates = '/api/v1/models/{id}/deployment-templates';
  switch (id) {
    case 'file':
      return uploadInput(api);
    case 'batch':
      return makeBatch(api);
    case 'job':
      return (await makeBatch(api)).replace('batch_', 'job_');
    case 'model':
      return postExample(api, '/api/v1/models', example('/api/v1/models'));
    case 'template':
      return postExample(api, templates.replace('{id}', model), example(templates));
    case 'webhook':
      return postExample(api, '/api/v1/webhooks', example('/api/v1/webhooks'));
    case 'upload':
      return postExample(api, '/v1/uploads', example('/v1/uploads'));
    case 'part': {
      const part = Object(example('/v1/uploads/{id}/parts'));
      const path = `/v1/uploads/${made.get('upload')}/parts`;
      const form = [{ name: 'data', filename: 'part', value: String(part.data) }];
      return JSON.parse((await postForm(api, form, path)).text).id;
    }
    case 'provision':
      return EXAMPLE_IDS[id];
  }
}

/** Puts what exists on this server, and is made for it, in the place of ids that an example names. */
async function fill(api: TestApi, text: string, example: Example): Promise<string> {
  const made = new Map<string, string>();
  let filled = text;
  for (const [id, named] of Object.entries(EXAMPLE_IDS)) {
    if (!filled.includes(named)) continue;
    // Object.entries forgets what the keys are.
    const real = await makeReal(api, id as keyof typeof EXAMPLE_IDS, example, made);
    made.set(id, real);
    filled = filled.replaceAll(named, real);
  }
  return filled;
}

/** What a parameter of a path stands for, by the beginning of the path. */
const ID_OF: Record<string, string> = {
  '/v1/files/': EXAMPLE_IDS.file,
  '/api/v1/files/': EXAMPLE_IDS.file,
  '/v1/batches/': EXAMPLE_IDS.batch,
  '/v1/uploads/': EXAMPLE_IDS.upload,
  '/api/v1/jobs/': EXAMPLE_IDS.job,
  '/api/v1/models/': EXAMPLE_IDS.model,
  '/api/v1/provisions/': EXAMPLE_IDS.provision,
  '/api/v1/webhooks/': EXAMPLE_IDS.webhook,
  '/docs/': 'start.js',
};

function pathOf(path: string): string {
  const [, id = 'unknown'] = Object.entries(ID_OF).find(([begin]) => path.startsWith(begin)) ?? [];
  return path
    .replace('{template}', EXAMPLE_IDS.template)
    .replaceAll(/\{(?:id|asset)\}/g, id)
    .replace('{name}', 'h100');
}

async function send(
  api: TestApi,
  operation: Described,
  { accept, example }: { accept: string; example: Example },
): Promise<RawAnswer> {
  const [type, body] = bodyOf(operation);
  if (type === 'multipart/form-data') {
    const path = await fill(api, pathOf(operation.path), example);
    const parts = Object.entries(Object(body)).map(([name, value]) => {
      const isFile = name === 'file' || name === 'data';
      const part = { name, value: String(value) };
      return isFile ? { ...part, filename: 'example.jsonl' } : part;
    });
    return postForm(api, parts, path);
  }
  // Both at once, so that an id in both is the same one.
  const asked = JSON.stringify([pathOf(operation.path) + (QUERIES[operation.path] ?? ''), body]);
  const [path, filled] = JSON.parse(await fill(api, asked, example));
  const headers = type === undefined ? { accept } : { accept, 'content-type': type };
  const method = operation.method.toUpperCase();
  const sent = filled === null ? [] : [JSON.stringify(filled)];
  return rawRequest(`${api.url}${path}`, { method, headers, body: sent });
}

/** Queries without which there is no answer. */
const QUERIES: Record<string, string> = {
  '/api/v1/models/{id}/deployment-templates/resolve': '?name=h100',
};

/** Operations that refuse their examples on a server where no job has run, and with what. */
const REFUSED: Record<string, [status: number, code: string]> = {
  // these tests keep files in a folder
  'post /api/v1/files/{id}/link': [400, 'links_not_available'],
  'post /api/v1/jobs/{id}/retry': [400, 'job_not_over'],
  'delete /api/v1/jobs/{id}': [400, 'job_not_over'],
  'get /v1/batches/{id}/manifest': [404, 'manifest_not_found'],
  'get /api/v1/jobs/{id}/manifest': [404, 'manifest_not_found'],
  'get /api/v1/provisions/{id}': [404, 'provision_not_found'],
  'post /api/v1/provisions/{id}/release': [404, 'provision_not_found'],
  'get /api/v1/models/{id}/deployment-templates/resolve': [404, 'template_not_found'],
  'get /api/v1/models/{id}/deployment-templates/by-name/{name}': [404, 'template_not_found'],
};

function errorCode(answer: RawAnswer): unknown {
  return answer.status < 400 ? null : JSON.parse(answer.text).error.code;
}

describe('examples', async () => {
  await using api = await start();
  const operations = operationsOf(await readDocument(api));
  function example(path: string): unknown {
    const made = operations.find((each) => each.method === 'post' && each.path === path);
    return made === undefined ? undefined : bodyOf(made)[1];
  }
  test.for(operations)('$method $path works as its example says', async (operation) => {
    await using server = await start();
    const document = await readDocument(server);
    const [[expected, success] = []] = Object.entries(operation.responses);
    const [accept = ''] = Object.keys(success?.content ?? {});
    const answer = await send(server, operation, { accept, example });
    const refused = REFUSED[`${operation.method} ${operation.path}`];
    expect([answer.status, errorCode(answer)]).toEqual(refused ?? [Number(expected), null]);
    const content =
      refused === undefined ? success?.content : operation.responses['default']?.content;
    const [[type, described] = []] = Object.entries(content ?? {});
    expect(answer.headers['content-type']).toContain(type);
    const value: unknown = type === 'application/json' ? JSON.parse(answer.text) : answer.text;
    expect(schemaCheck(document)(described?.schema ?? {}, value)).toBe('');
  });
});
