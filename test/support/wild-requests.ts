import * as fc from 'fast-check';

/** Ids of things that are there, so that a wild request gets past the look-up. */
export interface Ids {
  file: string;
  batch: string;
  job: string;
  upload: string;
}

const BOUNDARY = 'wild-boundary';

/** Whole requests, as bytes: mostly valid ones with something wrong, some nothing but noise. */
export function wildRequest(ids: Ids): fc.Arbitrary<Buffer> {
  return fc.oneof(
    { weight: 5, arbitrary: jsonRequest(ids) },
    { weight: 3, arbitrary: formRequest(ids) },
    { weight: 2, arbitrary: readRequest(ids) },
    { weight: 1, arbitrary: fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)) },
  );
}

const wildText = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 40 }),
  fc.constantFrom(
    '',
    '\0',
    '\ud800',
    '\udfff\ud800',
    '__proto__',
    'constructor',
    'toString',
    '../..',
    '%00',
    '%',
    '😀',
    'null',
    '-1',
    'x'.repeat(70_000),
  ),
);

const wildNumber = fc.constantFrom(
  '0',
  '-0',
  '-1',
  '1e400',
  '-1e400',
  '1e-400',
  '9007199254740993',
  '0.1',
  '9'.repeat(400),
  '00',
  'NaN',
  'Infinity',
  '0x10',
);

function nest(depth: number): string {
  return `${'['.repeat(depth)}${']'.repeat(depth)}`;
}

/** JSON text, or nearly. */
const wildJson = fc.oneof(
  { weight: 4, arbitrary: wildText.map((text) => JSON.stringify(text)) },
  { weight: 3, arbitrary: wildNumber },
  {
    weight: 3,
    arbitrary: fc.constantFrom(
      'null',
      'true',
      '{}',
      '[]',
      '[[]]',
      '{"__proto__":{"x":1}}',
      '"\\ud800"',
      '"\\u0000"',
      '{"a":1,"a":2}',
      '{',
      '"',
      '\u0000',
      '',
    ),
  },
  { weight: 2, arbitrary: fc.json() },
  { weight: 1, arbitrary: fc.constantFrom(1, 63, 64, 65, 1_000, 200_000).map(nest) },
);

/** Bodies that are accepted as they are, by the paths that take them. */
function validBodies({
  file,
  batch,
  job,
  upload: uploadId,
}: Ids): [path: string, body: Record<string, string>][] {
  const batchBody = {
    input_file_id: JSON.stringify(file),
    endpoint: '"/v1/chat/completions"',
    completion_window: '"24h"',
    metadata: '{"a":"b"}',
    aibrix: '{"client":{"max_concurrency":8}}',
    output_expires_after: '{"anchor":"created_at","seconds":3600}',
  };
  const jobBody = {
    input_dataset: JSON.stringify(file),
    endpoint: '"/v1/embeddings"',
    name: '"n"',
    metadata: '{}',
    client: '{"maxConcurrency":1}',
  };
  const upload = { filename: '"f"', purpose: '"batch"', bytes: '10', mime_type: '"text/jsonl"' };
  const model = { id: '"m"', name: '"m"', categories: '["llm"]', pricing: '{}' };
  return [
    ['/v1/batches', batchBody],
    ['/v1/batches/validate', batchBody],
    ['/api/v1/jobs', jobBody],
    ['/api/v1/jobs/validate', jobBody],
    ['/v1/uploads', upload],
    [`/v1/uploads/${uploadId}/complete`, { part_ids: '["part_x"]', md5: '"x"' }],
    [`/v1/batches/${batch}/cancel`, {}],
    [`/api/v1/jobs/${job}/pause`, {}],
    [`/api/v1/jobs/${job}/resume`, {}],
    [`/api/v1/jobs/${job}/extend`, { completion_window: '"1h"', seconds: '60' }],
    [`/api/v1/jobs/${job}/clone`, jobBody],
    [`/api/v1/jobs/${job}/retry`, {}],
    ['/api/v1/models', model],
    [
      '/api/v1/models/m/deployment-templates',
      { name: '"t"', spec: '{"engine":{}}', status: '"draft"' },
    ],
    ['/api/v1/webhooks', { url: '"https://example.com/x"', events: '["batch.completed"]' }],
    ['/api/v1/provisions/prov_x/release', { action: '"end"' }],
  ];
}

/** A valid body whose fields were replaced, removed, added or written twice. */
function wildBody(fields: Record<string, string>): fc.Arbitrary<string> {
  const names = fc.oneof(fc.constantFrom(...Object.keys(fields), 'x'), wildText);
  const changes = fc.array(fc.tuple(names, fc.option(wildJson, { nil: null })), { maxLength: 3 });
  const mutated = changes.map((each) => {
    const kept = Object.entries(fields).filter(
      ([name]) => !each.some(([gone, value]) => gone === name && value === null),
    );
    const added = each.flatMap(([name, value]) => (value === null ? [] : [[name, value] as const]));
    return `{${[...kept, ...added].map(([name, value]) => `${JSON.stringify(name)}:${value}`).join(',')}}`;
  });
  return fc.oneof({ weight: 6, arbitrary: mutated }, { weight: 1, arbitrary: wildJson });
}

const wildHeaders = fc.array(
  fc.oneof(
    fc.constantFrom(
      'Idempotency-Key: a',
      'Idempotency-Key: b',
      'Idempotency-Key: ',
      'X-Stainless-Retry-Count: 1',
      'X-Stainless-Retry-Count: -1e9',
      'Authorization: Bearer ä',
      'Content-Encoding: gzip',
      'Content-Type: application/json; charset=latin1',
      'Content-Type: multipart/form-data',
      'Content-Type: x',
      'Expect: 100-continue',
      'Expect: the-unexpected',
      'Range: bytes=5-1',
      'Range: bytes=99999999999999999999-',
      'If-None-Match: *',
      'Accept-Encoding: gzip;q=nan',
      'Last-Event-ID: \x01',
      'Upgrade: websocket',
      'Host: [::',
      'Origin: null',
    ),
    fc
      .tuple(fc.stringMatching(/^[a-zA-Z-]{1,20}$/), fc.stringMatching(/^[\x20-\x7e]{0,50}$/))
      .map(([name, value]) => `${name}: ${value}`),
  ),
  { maxLength: 3 },
);

/** How the body's length is told: as it is, wrong, in chunks, in broken chunks, or not at all. */
type Framing = 'right' | 'short' | 'long' | 'chunked' | 'broken' | 'both' | 'none';
const framing: fc.Arbitrary<Framing> = fc.oneof(
  { weight: 6, arbitrary: fc.constant('right' as const) },
  { weight: 1, arbitrary: fc.constantFrom('short', 'long', 'chunked', 'broken', 'both', 'none') },
);

function framed(body: Buffer, how: Framing): { headers: string[]; bytes: Buffer } {
  const { length } = body;
  const size = length.toString(16);
  const chunks = Buffer.concat([Buffer.from(`${size}\r\n`), body, Buffer.from('\r\n0\r\n\r\n')]);
  const chunked = 'Transfer-Encoding: chunked';
  switch (how) {
    case 'right':
      return { headers: [`Content-Length: ${length}`], bytes: body };
    case 'short':
      return { headers: [`Content-Length: ${Math.floor(length / 2)}`], bytes: body };
    case 'long':
      return { headers: [`Content-Length: ${length + 10}`], bytes: body };
    case 'chunked':
      return { headers: [chunked], bytes: length === 0 ? Buffer.from('0\r\n\r\n') : chunks };
    case 'broken':
      return { headers: [chunked], bytes: Buffer.concat([Buffer.from('zz\r\n'), body]) };
    case 'both':
      return { headers: [chunked, `Content-Length: ${length}`], bytes: chunks };
    case 'none':
      return { headers: [], bytes: body };
  }
}

interface Parts {
  method: string;
  path: string;
  type: string;
  headers: readonly string[];
  body: Buffer;
  how: Framing;
  /** The share of its bytes that is sent. */
  sent: number;
}

function render({ method, path, type, headers, body, how, sent }: Parts): Buffer {
  const frame = framed(body, how);
  const head = [
    `${method} ${path} HTTP/1.1`,
    ...(headers.some((line) => /^host:/i.test(line)) ? [] : ['Host: x']),
    ...(headers.some((line) => /^content-type:/i.test(line)) ? [] : [`Content-Type: ${type}`]),
    'Connection: close',
    ...headers,
    ...frame.headers,
  ];
  const whole = Buffer.concat([Buffer.from(`${head.join('\r\n')}\r\n\r\n`, 'latin1'), frame.bytes]);
  return whole.subarray(0, Math.ceil(whole.length * sent));
}

const share = fc.oneof(
  { weight: 8, arbitrary: fc.constant(1) },
  { weight: 1, arbitrary: fc.double({ min: 0.01, max: 1, noNaN: true }) },
);

function jsonRequest(ids: Ids): fc.Arbitrary<Buffer> {
  return fc.constantFrom(...validBodies(ids)).chain(([path, fields]) =>
    fc
      .record({
        method: fc.constant('POST'),
        path: fc.constant(path),
        type: fc.constant('application/json'),
        headers: wildHeaders,
        body: wildBody(fields).map((text) => Buffer.from(text)),
        how: framing,
        sent: share,
      })
      .map(render),
  );
}

const partHead = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.constantFrom(
      'Content-Disposition: form-data; name="file"; filename="a.jsonl"',
      'Content-Disposition: form-data; name="purpose"',
      'Content-Disposition: form-data; name="data"; filename="p"',
    ),
  },
  {
    weight: 2,
    arbitrary: fc
      .tuple(wildText, wildText)
      .map(([name, file]) => `Content-Disposition: form-data; name="${name}"; filename="${file}"`),
  },
  {
    weight: 1,
    arbitrary: fc.constantFrom(
      '',
      'Content-Disposition: form-data',
      'Content-Disposition',
      'Content-Type: text/plain',
      ': :',
      `X: ${'y'.repeat(20_000)}`,
      "Content-Disposition: form-data; name*=utf-8''%ff; filename*=x",
    ),
  },
);

const part = fc.tuple(
  partHead,
  fc.oneof(
    fc.constantFrom('batch', 'user_data', '{}\n', ''),
    wildText,
    fc.constant('{"a":1}\n'.repeat(20_000)),
  ),
);

const broken = (text: string): string => text.replaceAll('\r\n', '\n');

function formRequest({ upload }: Ids): fc.Arbitrary<Buffer> {
  const valid = [
    ['Content-Disposition: form-data; name="purpose"', 'batch'],
    ['Content-Disposition: form-data; name="file"; filename="a.jsonl"', '{}\n'],
  ] as const;
  const parts = fc.oneof(
    fc.constant(valid),
    fc.array(part, { maxLength: 5 }),
    fc.array(part, { maxLength: 2 }).map((more) => [...valid, ...more]),
  );
  const end = fc.constantFrom(`--${BOUNDARY}--\r\n`, `--${BOUNDARY}`, '', '--other--\r\n');
  return fc
    .record({
      method: fc.constant('POST'),
      path: fc.constantFrom(
        '/v1/files',
        '/api/v1/files/upload',
        `/v1/uploads/${upload}/parts`,
        '/v1/batches',
      ),
      type: fc.constantFrom(
        `multipart/form-data; boundary=${BOUNDARY}`,
        `multipart/form-data; boundary="${BOUNDARY}"`,
        `multipart/mixed; boundary=${BOUNDARY}`,
      ),
      headers: wildHeaders,
      body: fc.tuple(parts, end, fc.boolean()).map(([each, last, bare]) => {
        const text =
          each.map(([head, value]) => `--${BOUNDARY}\r\n${head}\r\n\r\n${value}\r\n`).join('') +
          last;
        return Buffer.from(bare && text.length % 7 === 0 ? broken(text) : text);
      }),
      how: framing,
      sent: share,
    })
    .map(render);
}

function readRequest({ file, batch, job, upload }: Ids): fc.Arbitrary<Buffer> {
  const id = fc.oneof(
    fc.constantFrom(file, batch, job, upload, 'x'),
    wildText.map((text) => encodeURIComponent(text.toWellFormed()).slice(0, 4_000)),
  );
  const prefix = fc.constantFrom(
    '/v1/files',
    '/v1/batches',
    '/v1/uploads',
    '/api/v1/jobs',
    '/api/v1/models',
    '/api/v1/provisions',
    '/api/v1/machines',
    '/api/v1/catalog',
    '/api/v1/webhooks',
    '/api/v1/files',
    '/docs',
    '/nowhere',
    '/admin/queues/api/queues',
  );
  const suffix = fc.constantFrom(
    '',
    '/',
    '/content',
    '/cancel',
    '/events',
    '/output?order=input',
    '/errors',
    '/explain',
    '//',
    '/%ff',
    '/deployment-templates',
    '/deliveries',
  );
  const value = fc.oneof(
    wildNumber,
    wildText.map((text) => encodeURIComponent(text.toWellFormed()).slice(0, 2_000)),
  );
  const query = fc.array(
    fc.tuple(
      fc.constantFrom(
        'after',
        'limit',
        'order',
        'purpose',
        'status',
        'model',
        'q',
        'created_after',
        'created_before',
        'x',
      ),
      value,
    ),
    { maxLength: 3 },
  );
  return fc
    .record({
      method: fc.constantFrom(
        'GET',
        'GET',
        'HEAD',
        'DELETE',
        'PUT',
        'PATCH',
        'OPTIONS',
        'TRACE',
        'POST',
      ),
      path: fc
        .tuple(prefix, fc.option(id, { nil: null }), suffix, query)
        .map(([start, own, tail, pairs]) => {
          const search = pairs.map(([name, text]) => `${name}=${text}`).join('&');
          const path = `${start}${own === null ? '' : `/${own}`}${tail}`;
          return search === '' ? path : `${path}${path.includes('?') ? '&' : '?'}${search}`;
        }),
      type: fc.constant('application/json'),
      headers: wildHeaders,
      body: fc.constant(Buffer.alloc(0)),
      how: fc.constant('right' as const),
      sent: share,
    })
    .map(render);
}
