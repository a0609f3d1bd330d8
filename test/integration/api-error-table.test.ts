import { once } from 'node:events';
import { connect } from 'node:net';
import * as v from 'valibot';
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';
import { FORM_TYPE, formBody, rawRequest, startApi, uploadInput } from '../support/api.ts';
import type { FormPart, RawAnswer, TestApi } from '../support/api.ts';
import { until } from '../support/until.ts';

/** What each endpoint takes. An id is one of its kind that names nothing. */
interface Endpoint {
  path: string;
  methods: readonly string[];
  /** Its POST takes JSON, and needs some. */
  json?: true;
  /** Its POST takes a form. */
  form?: true;
  /** What its list allows. */
  list?: { limit: readonly string[]; cursor: string };
  /** What is said of an id that names nothing. */
  missing?: string;
}

const LIMITS = ['0', '-1', '1.5', 'ten', '', '99999999999999999999', '1e2'];

const TEMPLATES = '/api/v1/models/:id/deployment-templates';

const ENDPOINTS: readonly Endpoint[] = [
  {
    path: '/v1/files',
    methods: ['GET', 'POST'],
    form: true,
    list: { limit: [...LIMITS, '10001'], cursor: 'file-none' },
  },
  { path: '/v1/files/:id', methods: ['GET', 'DELETE'], missing: 'file_not_found' },
  { path: '/v1/files/:id/content', methods: ['GET'], missing: 'file_not_found' },
  { path: '/api/v1/files', methods: ['GET'], list: { limit: LIMITS, cursor: 'file-none' } },
  { path: '/api/v1/files/upload', methods: ['POST'], form: true },
  { path: '/api/v1/files/:id', methods: ['GET'], missing: 'file_not_found' },
  { path: '/api/v1/files/:id/content', methods: ['GET'], missing: 'file_not_found' },
  { path: '/api/v1/files/:id/link', methods: ['POST'], missing: 'file_not_found' },
  {
    path: '/v1/batches',
    methods: ['GET', 'POST'],
    json: true,
    list: { limit: [...LIMITS, '101'], cursor: 'batch_none' },
  },
  { path: '/v1/batches/validate', methods: ['POST'], json: true },
  { path: '/v1/batches/:id', methods: ['GET'], missing: 'batch_not_found' },
  { path: '/v1/batches/:id/cancel', methods: ['POST'], missing: 'batch_not_found' },
  { path: '/v1/batches/:id/events', methods: ['GET'], missing: 'batch_not_found' },
  { path: '/v1/batches/:id/output', methods: ['GET'], missing: 'batch_not_found' },
  { path: '/v1/batches/:id/manifest', methods: ['GET'], missing: 'batch_not_found' },
  { path: '/v1/batches/:id/errors', methods: ['GET'], missing: 'batch_not_found' },
  {
    path: '/api/v1/jobs',
    methods: ['GET', 'POST'],
    json: true,
    // The Console takes 0 and less for its default.
    list: { limit: ['1.5', 'ten', '99999999999999999999'], cursor: 'job_none' },
  },
  { path: '/api/v1/jobs/validate', methods: ['POST'], json: true },
  { path: '/api/v1/jobs/:id', methods: ['GET', 'DELETE'], missing: 'job_not_found' },
  { path: '/api/v1/jobs/:id/cancel', methods: ['POST'], missing: 'job_not_found' },
  { path: '/api/v1/jobs/:id/events', methods: ['GET'], missing: 'job_not_found' },
  { path: '/api/v1/jobs/:id/explain', methods: ['GET'], missing: 'job_not_found' },
  { path: '/api/v1/jobs/:id/pause', methods: ['POST'], missing: 'job_not_found' },
  { path: '/api/v1/jobs/:id/resume', methods: ['POST'], missing: 'job_not_found' },
  { path: '/api/v1/jobs/:id/extend', methods: ['POST'], missing: 'job_not_found' },
  { path: '/api/v1/jobs/:id/clone', methods: ['POST'], missing: 'job_not_found' },
  { path: '/api/v1/jobs/:id/retry', methods: ['POST'], missing: 'job_not_found' },
  { path: '/api/v1/jobs/:id/output', methods: ['GET'], missing: 'job_not_found' },
  { path: '/api/v1/jobs/:id/manifest', methods: ['GET'], missing: 'job_not_found' },
  { path: '/api/v1/jobs/:id/errors', methods: ['GET'], missing: 'job_not_found' },
  { path: '/api/v1/jobs/:id/deliveries', methods: ['GET'], missing: 'job_not_found' },
  { path: '/api/v1/models', methods: ['GET', 'POST'], json: true },
  { path: '/api/v1/models/:id', methods: ['GET', 'DELETE'], missing: 'model_not_found' },
  { path: TEMPLATES, methods: ['GET', 'POST'], json: true, missing: 'model_not_found' },
  { path: `${TEMPLATES}/resolve`, methods: ['GET'] },
  { path: `${TEMPLATES}/by-name/{name}`, methods: ['GET'] },
  { path: `${TEMPLATES}/{template}`, methods: ['GET', 'PUT', 'PATCH', 'DELETE'] },
  { path: '/api/v1/catalog', methods: ['GET'] },
  { path: '/api/v1/health', methods: ['GET'] },
  { path: '/api/v1/config/job-capabilities', methods: ['GET'] },
  { path: '/api/v1/provisions', methods: ['GET'] },
  { path: '/api/v1/provisions/:id', methods: ['GET'], missing: 'provision_not_found' },
  { path: '/api/v1/provisions/:id/release', methods: ['POST'], missing: 'provision_not_found' },
  { path: '/api/v1/machines', methods: ['GET'] },
  { path: '/api/v1/webhooks', methods: ['GET', 'POST'], json: true },
  { path: '/api/v1/webhooks/:id', methods: ['GET', 'DELETE'], missing: 'webhook_not_found' },
  { path: '/api/v1/webhooks/:id/test', methods: ['POST'], missing: 'webhook_not_found' },
  { path: '/api/v1/webhooks/:id/deliveries', methods: ['GET'], missing: 'webhook_not_found' },
  { path: '/v1/uploads', methods: ['POST'], json: true },
  { path: '/v1/uploads/:id', methods: ['GET'], missing: 'upload_not_found' },
  { path: '/v1/uploads/:id/parts', methods: ['POST'], missing: 'upload_not_found' },
  { path: '/v1/uploads/:id/complete', methods: ['POST'], missing: 'upload_not_found' },
  { path: '/v1/uploads/:id/cancel', methods: ['POST'], missing: 'upload_not_found' },
  { path: '/openapi.json', methods: ['GET'] },
  { path: '/health', methods: ['GET'] },
  { path: '/ready', methods: ['GET'] },
  { path: '/metrics', methods: ['GET'] },
];

const envelope = v.strictObject({
  error: v.strictObject({
    message: v.pipe(v.string(), v.minLength(10), v.maxLength(1_000)),
    type: v.string(),
    param: v.nullable(v.string()),
    code: v.string(),
  }),
});

/** A message tells what is allowed, what is missing, or what to send instead. */
const MEND =
  /must be|Did you mean|may have|allowed|[Ss]end |Missing required|There is no|no object with id|uploaded as|must have|may be|is sent as|There are no|not valid|nested deeper|only|at least|at most|given twice|at a time|takes|needs/;

let api: TestApi;
let input = '';
beforeAll(async () => {
  api = await startApi(inject('redisUrl'));
  input = await uploadInput(api);
});
afterAll(() => api.stop());

function errorOf({ status, text }: RawAnswer) {
  const { error } = v.parse(envelope, JSON.parse(text));
  const type = status === 404 ? 'not_found_error' : 'invalid_request_error';
  expect(error.type).toBe(type);
  expect(error.message).toMatch(MEND);
  return { ...error, status };
}

interface Sent {
  method?: string;
  headers?: Record<string, string>;
  body?: string | Buffer;
}

async function ask(path: string, { method = 'GET', headers = {}, body }: Sent = {}) {
  const pieces = body === undefined ? [] : [body];
  return rawRequest(api.url + path, { method, headers, body: pieces });
}

/** The path as it is asked for, with this id and names that are free. */
function concrete(path: string, id = 'none'): string {
  return path.replace(':id', id).replaceAll(/\{\w+\}/g, 'none');
}

describe('every endpoint', () => {
  test.for(ENDPOINTS)('$path refuses a method that it lacks', async ({ path, methods }) => {
    for (const method of ['PROPFIND', 'PUT', 'PATCH', 'DELETE', 'POST', 'GET']) {
      if (methods.includes(method)) continue;
      const answer = await ask(concrete(path), { method });
      const known = answer.headers['allow']?.split(', ') ?? [];
      if (known.includes(method)) continue; // it has learned one more
      expect(errorOf(answer)).toMatchObject({ status: 405, code: 'method_not_allowed' });
      expect(known).toEqual(expect.arrayContaining([...methods]));
    }
  });

  // Where a body is needed, it is read first.
  const byId = ENDPOINTS.filter(({ missing }) => missing !== undefined).map(
    ({ json: takes, methods, ...rest }) => ({
      ...rest,
      methods: methods.filter((method) => takes !== true || method !== 'POST'),
    }),
  );
  test.for(byId)(
    '$path says of an id that it names nothing',
    async ({ path, methods, missing }) => {
      const ids = [
        'none',
        'file-none',
        'batch_none',
        'job_none',
        '%00',
        '..%2f..',
        '__proto__',
        '%ed%a0%80',
        'x'.repeat(5_000),
      ];
      for (const method of methods) {
        for (const id of ids) {
          const answer = await ask(concrete(path, id), { method });
          expect([id, errorOf(answer)]).toMatchObject([
            id,
            { status: 404, code: missing, param: 'id' },
          ]);
        }
      }
    },
  );

  const lists = ENDPOINTS.filter(({ list }) => list !== undefined);
  test.for(lists)('$path refuses a page that cannot be', async ({ path, list }) => {
    for (const limit of list?.limit ?? []) {
      const error = errorOf(await ask(`${path}?limit=${limit}`));
      expect([limit, error]).toMatchObject([
        limit,
        { status: 400, code: 'invalid_value', param: 'limit' },
      ]);
    }
    for (const after of [list?.cursor, 'x', '%00', '__proto__', 'a'.repeat(5_000)]) {
      const error = errorOf(await ask(`${path}?after=${after}`));
      expect([after, error]).toMatchObject([
        after,
        { status: 400, code: 'invalid_cursor', param: 'after' },
      ]);
    }
  });

  const json = { 'content-type': 'application/json' };
  const bodies: [string, number, string, Sent][] = [
    ['nothing', 400, 'invalid_json', { headers: json }],
    ['malformed JSON', 400, 'invalid_json', { headers: json, body: '{"a":' }],
    ['an array', 400, 'invalid_json', { headers: json, body: '[{}]' }],
    ['a number', 400, 'invalid_json', { headers: json, body: '1e999' }],
    ['bytes that are no UTF-8', 400, 'invalid_json', { body: Buffer.from([0x7b, 0xff, 0x7d]) }],
    ['a deep nest', 400, 'invalid_json', { body: `${'{"a":'.repeat(9_999)}1${'}'.repeat(9_999)}` }],
    [
      'a form',
      400,
      'invalid_content_type',
      { headers: { 'content-type': FORM_TYPE }, body: formBody([]) },
    ],
    [
      'a picture',
      400,
      'invalid_content_type',
      { headers: { 'content-type': 'image/png' }, body: '{}' },
    ],
    [
      'compressed',
      400,
      'invalid_content_encoding',
      { headers: { ...json, 'content-encoding': 'gzip' }, body: 'x' },
    ],
    [
      'too much',
      413,
      'content_size_limit_exceeded',
      { headers: json, body: `{"a":"${'x'.repeat(2 ** 20)}"}` },
    ],
  ];
  const jsons = ENDPOINTS.filter(({ json: takes }) => takes === true);
  const pairs = jsons.flatMap(({ path }) => bodies.map((each) => [path, ...each] as const));
  test.for(pairs)('POST %s refuses %s', async ([path, , status, code, sent]) => {
    expect(errorOf(await ask(concrete(path), { method: 'POST', ...sent }))).toMatchObject({
      status,
      code,
    });
  });

  test.for(jsons)('$path gives up on a body that breaks off', async ({ path }) => {
    const before = api.observed.length;
    const socket = connect(Number(new URL(api.url).port), '127.0.0.1');
    socket.write(`POST ${concrete(path)} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"a"`);
    await once(socket, 'connect');
    setTimeout(() => socket.destroy(), 20);
    const seen = () => api.observed.slice(before).find(({ status }) => status === 499);
    expect(await until(seen)).toMatchObject({ route: path, method: 'POST' });
  });
});

/** Fields of a create: what stands there, and what is said of it. */
type Wrong = readonly [change: object, code: string, param: string];

const long = 'x'.repeat(513);
const METADATA: Wrong[] = [
  [{ metadata: 'x' }, 'invalid_type', 'metadata'],
  [{ metadata: { a: 1 } }, 'invalid_type', 'metadata.a'],
  [{ metadata: { [long.slice(0, 65)]: '' } }, 'invalid_value', 'metadata'],
  [{ metadata: { a: long } }, 'invalid_value', 'metadata'],
  [
    { metadata: Object.fromEntries(Array.from({ length: 17 }, (_, n) => [`k${n}`, ''])) },
    'invalid_value',
    'metadata',
  ],
];

const ENDPOINT: Wrong[] = [
  [{ endpoint: undefined }, 'missing_required_parameter', 'endpoint'],
  [{ endpoint: null }, 'invalid_type', 'endpoint'],
  [{ endpoint: '/v1/images' }, 'invalid_value', 'endpoint'],
  [{ endpoint: ['/v1/embeddings'] }, 'invalid_type', 'endpoint'],
];

const WINDOW: Wrong[] = [
  [{ completion_window: 24 }, 'invalid_type', 'completion_window'],
  [{ completion_window: 'tomorrow' }, 'invalid_completion_window', 'completion_window'],
  [{ completion_window: '0h' }, 'invalid_completion_window', 'completion_window'],
];

function ofInput(field: string): Wrong[] {
  return [
    [{ [field]: undefined }, 'missing_required_parameter', field],
    [{ [field]: 7 }, 'invalid_type', field],
    [{ [field]: '' }, 'invalid_value', field],
    [{ [field]: 'file-none' }, 'invalid_input_file', field],
    [{ [field]: '../../etc' }, 'invalid_input_file', field],
    [{ [field]: '\u0000\ud800' }, 'invalid_input_file', field],
    [{ [field]: long.repeat(20) }, 'invalid_input_file', field],
  ];
}

const BATCH: Wrong[] = [
  ...ofInput('input_file_id'),
  ...ENDPOINT,
  ...WINDOW,
  ...METADATA,
  [{ completion_window: undefined }, 'missing_required_parameter', 'completion_window'],
  [{ completion_windows: '24h' }, 'unknown_parameter', 'completion_windows'],
  [{ validation: 'lenient' }, 'unknown_parameter', 'validation'],
  [{ aibrix: 'x' }, 'invalid_type', 'aibrix'],
  [{ aibrix: { validation: 'lax' } }, 'invalid_value', 'aibrix.validation'],
  [{ aibrix: { validation: true } }, 'invalid_type', 'aibrix.validation'],
  [{ aibrix: { webhook: { url: 'x' } } }, 'invalid_value', 'aibrix.webhook.url'],
  [{ aibrix: { webhook: { url: 1 } } }, 'invalid_type', 'aibrix.webhook.url'],
  [{ aibrix: { clients: {} } }, 'unknown_parameter', 'aibrix.clients'],
  [
    { aibrix: { client: { max_concurrency: 0 } } },
    'invalid_value',
    'aibrix.client.max_concurrency',
  ],
  [
    { aibrix: { client: { max_concurrency: 1.5 } } },
    'invalid_value',
    'aibrix.client.max_concurrency',
  ],
  [
    { aibrix: { client: { max_concurrency: 1e308 } } },
    'invalid_value',
    'aibrix.client.max_concurrency',
  ],
  [
    { aibrix: { client: { max_concurrency: '8' } } },
    'invalid_type',
    'aibrix.client.max_concurrency',
  ],
  [
    { aibrix: { client: { [long]: 1 } } },
    'unknown_parameter',
    `aibrix.client.${long}`.slice(0, 100) + '…',
  ],
];

const JOB: Wrong[] = [
  ...ofInput('input_dataset'),
  ...ENDPOINT,
  ...WINDOW,
  ...METADATA,
  [{ inputDatasets: 'x' }, 'unknown_parameter', 'input_datasets'],
  [{ resource_request: { replica: 1 } }, 'unknown_parameter', 'resource_request.replica'],
  [{ resource_request: 1 }, 'invalid_type', 'resource_request'],
  [{ injection_config: 1 }, 'invalid_type', 'injection_config'],
  [{ validation: 'lax' }, 'invalid_value', 'validation'],
  [{ validation: true }, 'invalid_type', 'validation'],
  [{ name: 7 }, 'invalid_type', 'name'],
  [{ name: long }, 'invalid_value', 'name'],
];

const CREATES = [
  ['/v1/batches', 'input_file_id', BATCH],
  ['/v1/batches/validate', 'input_file_id', BATCH],
  ['/api/v1/jobs', 'input_dataset', JOB],
  ['/api/v1/jobs/validate', 'input_dataset', JOB],
] as const;

describe('fields of a create', () => {
  const rows = CREATES.flatMap(([path, field, wrongs]) =>
    wrongs.map((wrong) => [path, JSON.stringify(wrong[0]).slice(0, 60), field, wrong] as const),
  );
  test.for(rows)('%s refuses %s', async ([path, , field, [change, code, param]]) => {
    const whole = { endpoint: '/v1/chat/completions', completion_window: '24h', [field]: input };
    const body = JSON.stringify({ ...whole, ...change });
    const error = errorOf(await ask(path, { method: 'POST', body }));
    expect(error).toMatchObject({ status: 400, code, param });
    // What is wrong with a file is said of the file.
    const named = code === 'invalid_input_file' ? 'file' : (param.split('.')[0] ?? '');
    expect(error.message.toLowerCase()).toContain(named);
  });
});

const UPLOAD: Wrong[] = [
  [{ filename: undefined }, 'missing_required_parameter', 'filename'],
  [{ filename: '' }, 'invalid_value', 'filename'],
  [{ filename: long }, 'invalid_value', 'filename'],
  [{ purpose: 'batch_output' }, 'invalid_value', 'purpose'],
  [{ purpose: 7 }, 'invalid_type', 'purpose'],
  [{ mimeType: 'text/plain' }, 'unknown_parameter', 'mimeType'],
  [{ bytes: 0 }, 'invalid_value', 'bytes'],
  [{ bytes: -1 }, 'invalid_value', 'bytes'],
  [{ bytes: 1.5 }, 'invalid_value', 'bytes'],
  [{ bytes: 2 ** 60 }, 'invalid_value', 'bytes'],
  [{ bytes: '10' }, 'invalid_type', 'bytes'],
  [{ mime_type: 'text' }, 'invalid_value', 'mime_type'],
  [{ mime_type: 'text/plain\r\nX: y' }, 'invalid_value', 'mime_type'],
  [{ expires_after: 3_600 }, 'invalid_type', 'expires_after'],
  [{ expires_after: { anchor: 'now', seconds: 3_600 } }, 'invalid_value', 'expires_after.anchor'],
  [{ expires_after: { anchor: 1, seconds: 3_600 } }, 'invalid_type', 'expires_after.anchor'],
  [
    { expires_after: { anchor: 'created_at' } },
    'missing_required_parameter',
    'expires_after.seconds',
  ],
  [
    { expires_after: { anchor: 'created_at', seconds: 1 } },
    'invalid_value',
    'expires_after.seconds',
  ],
];

const COMPLETE: Wrong[] = [
  [{ part_ids: undefined }, 'missing_required_parameter', 'part_ids'],
  [{ part_ids: 'x' }, 'invalid_type', 'part_ids'],
  [{ part_ids: [] }, 'invalid_value', 'part_ids'],
  [{ part_ids: [1] }, 'invalid_type', 'part_ids.0'],
  [{ md5: 'x' }, 'invalid_value', 'md5'],
  [{ md5: 7 }, 'invalid_type', 'md5'],
  [{ parts: [] }, 'unknown_parameter', 'parts'],
];

const PLAIN = { filename: 'a.jsonl', purpose: 'batch', bytes: 3, mime_type: 'application/jsonl' };

/** A pending upload of three bytes. */
async function uploadId(): Promise<string> {
  const answer = await ask('/v1/uploads', { method: 'POST', body: JSON.stringify(PLAIN) });
  return v.parse(v.object({ id: v.string() }), JSON.parse(answer.text)).id;
}

describe('uploads', () => {
  const named = (wrongs: Wrong[]) =>
    wrongs.map((wrong) => [JSON.stringify(wrong[0]).slice(0, 60), wrong] as const);

  test.for(named(UPLOAD))('a create with %s is refused', async ([, [change, code, param]]) => {
    const body = JSON.stringify({ ...PLAIN, ...change });
    const error = errorOf(await ask('/v1/uploads', { method: 'POST', body }));
    expect(error).toMatchObject({ status: 400, code, param });
  });

  test.for(named(COMPLETE))(
    'a completion with %s is refused',
    async ([, [change, code, param]]) => {
      const body = JSON.stringify({ part_ids: ['part_none'], ...change });
      const path = `/v1/uploads/${await uploadId()}/complete`;
      expect(errorOf(await ask(path, { method: 'POST', body }))).toMatchObject({
        status: 400,
        code,
        param,
      });
    },
  );

  test('parts of a wrong form are refused', async () => {
    const path = `/v1/uploads/${await uploadId()}/parts`;
    const data: FormPart = { name: 'data', filename: 'blob', value: '{}\n' };
    const whole = formBody([data]);
    const wrong: [string, string, string, string | null][] = [
      [FORM_TYPE, formBody([]), 'missing_required_parameter', 'data'],
      [FORM_TYPE, formBody([{ ...data, name: 'file' }]), 'invalid_form', 'file'],
      [FORM_TYPE, formBody([data, data]), 'invalid_form', 'data'],
      [FORM_TYPE, formBody([{ ...data, value: '' }]), 'empty_part', 'data'],
      [FORM_TYPE, formBody([{ ...data, value: 'xxxx' }]), 'bytes_mismatch', 'data'],
      [FORM_TYPE, whole.slice(0, -8), 'invalid_form', 'data'],
      ['application/json', '{}', 'invalid_content_type', 'data'],
    ];
    for (const [type, body, code, param] of wrong) {
      const headers = { 'content-type': type };
      const error = errorOf(await ask(path, { method: 'POST', headers, body }));
      expect([body, error]).toMatchObject([body, { status: 400, code, param }]);
    }
    for await (const key of api.storage.list('uploads/')) expect.fail(`${key} is left`);
  });
});

const FILE: FormPart = { name: 'file', filename: 'a.jsonl', value: '{}\n' };
const PURPOSE: FormPart = { name: 'purpose', value: 'batch' };

/** A form and what is said of it. */
const FORMS: [string, readonly FormPart[], string, string][] = [
  ['no file', [PURPOSE], 'missing_required_parameter', 'file'],
  ['no purpose', [FILE], 'missing_required_parameter', 'purpose'],
  ['an unknown purpose', [{ ...PURPOSE, value: 'x' }, FILE], 'invalid_value', 'purpose'],
  [
    'the purpose of an output',
    [{ ...PURPOSE, value: 'batch_output' }, FILE],
    'invalid_value',
    'purpose',
  ],
  ['two purposes', [PURPOSE, PURPOSE, FILE], 'invalid_value', 'purpose'],
  ['two files', [PURPOSE, FILE, FILE], 'invalid_form', 'file'],
  ['a file under another name', [PURPOSE, { ...FILE, name: 'data' }], 'invalid_form', 'data'],
  ['a file without a name', [PURPOSE, { ...FILE, filename: '' }], 'invalid_filename', 'file'],
  ['a name that is too long', [PURPOSE, { ...FILE, filename: long }], 'invalid_filename', 'file'],
  ['a file that is a field', [PURPOSE, { name: 'file', value: 'x' }], 'invalid_filename', 'file'],
];

describe('forms', () => {
  const takers = ENDPOINTS.filter(({ form }) => form === true).map(({ path }) => path);
  const rows = takers.flatMap((path) => FORMS.map((each) => [path, ...each] as const));
  test.for(rows)('%s refuses %s', async ([path, , parts, code, param]) => {
    const before = await api.stored();
    const headers = { 'content-type': FORM_TYPE };
    const answer = await ask(path, { method: 'POST', headers, body: formBody(parts) });
    expect(errorOf(answer)).toMatchObject({ status: 400, code, param });
    expect(await api.stored()).toEqual(before);
  });

  test.for(takers)('%s refuses what is no form, or none to its end', async (path) => {
    const before = await api.stored();
    const whole = formBody([PURPOSE, FILE]);
    const wrong: [string, string, string][] = [
      ['application/json', '{}', 'invalid_content_type'],
      ['multipart/form-data', whole, 'invalid_content_type'],
      ['multipart/form-data; boundary=', whole, 'invalid_form'],
      ['multipart/form-data; boundary=other', whole, 'invalid_form'],
      [FORM_TYPE, whole.slice(0, -8), 'invalid_form'],
      [
        FORM_TYPE,
        formBody([{ ...FILE, value: '{}\n'.repeat(60_000) }]).slice(0, -50),
        'invalid_form',
      ],
      [FORM_TYPE, '', 'invalid_form'],
      [FORM_TYPE, 'x'.repeat(100_000), 'invalid_form'],
    ];
    for (const [type, body, code] of wrong) {
      const answer = await ask(path, { method: 'POST', headers: { 'content-type': type }, body });
      expect([type, body.length, errorOf(answer)]).toMatchObject([
        type,
        body.length,
        { status: 400, code },
      ]);
    }
    expect(await api.stored()).toEqual(before);
  });
});

test('an endpoint that is listed is in this table', async () => {
  const answer = await ask('/openapi.json');
  const { paths } = v.parse(
    v.object({ paths: v.record(v.string(), v.unknown()) }),
    JSON.parse(answer.text),
  );
  const known = new Set(ENDPOINTS.map(({ path }) => path.replace(':id', '{id}')));
  const missing = Object.keys(paths).filter(
    (path) => !known.has(path) && !path.startsWith('/docs'),
  );
  expect(missing).toEqual([]);
});
