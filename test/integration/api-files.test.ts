import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { request } from 'node:http';
import type { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { NotFoundError, toFile } from 'openai';
import * as v from 'valibot';
import { describe, expect, inject, test } from 'vitest';
import type { ApiDeps } from '../../src/api/app.ts';
import { transient } from '../../src/domain/errors.ts';
import { errorOf, errorSchema } from '../support/api-answers.ts';
import {
  FORM_TYPE,
  formBody,
  postForm,
  rawRequest,
  startApi,
  uploadInput,
} from '../support/api.ts';
import type { FormPart, TestApi } from '../support/api.ts';
import { until } from '../support/until.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const SMALL_LIMITS = { maxFileBytes: 2 * MiB, maxBatchFileBytes: 1 * MiB };

const fileSchema = v.strictObject({
  id: v.pipe(v.string(), v.regex(/^file-[A-Za-z0-9]{24}$/)),
  object: v.literal('file'),
  bytes: v.pipe(v.number(), v.integer()),
  created_at: v.pipe(v.number(), v.integer()),
  filename: v.string(),
  purpose: v.picklist(['assistants', 'batch', 'fine-tune', 'vision', 'user_data', 'evals']),
  status: v.literal('uploaded'),
  expires_at: v.optional(v.pipe(v.number(), v.integer())),
});
const listSchema = v.strictObject({
  object: v.literal('list'),
  data: v.array(fileSchema),
  first_id: v.string(),
  last_id: v.string(),
  has_more: v.boolean(),
});

function start(overrides?: (deps: ApiDeps) => Partial<ApiDeps>): Promise<TestApi> {
  return startApi(inject('redisUrl'), overrides);
}

function batchForm(value: string, filename = 'in.jsonl'): FormPart[] {
  return [
    { name: 'purpose', value: 'batch' },
    { name: 'file', filename, value },
  ];
}

function expiresAfter(anchor: string, seconds: string): FormPart[] {
  return [
    { name: 'expires_after[anchor]', value: anchor },
    { name: 'expires_after[seconds]', value: seconds },
  ];
}

function purposeLast(value: string): FormPart[] {
  return batchForm(value).toReversed();
}

describe('uploads', () => {
  test('the SDK uploads, reads back and deletes a file', async () => {
    await using api = await start();
    const text = '{"custom_id":"a"}\n{"custom_id":"ü"}';
    const file = await toFile(Buffer.from(text), 'lines.jsonl');

    const created = await api.openai.files.create({ file, purpose: 'batch' });
    v.assert(fileSchema, created);
    expect(created).toMatchObject({ bytes: 36, filename: 'lines.jsonl', purpose: 'batch' });
    expect(Math.abs(created.created_at - Date.now() / 1_000)).toBeLessThan(60);

    expect(await api.openai.files.retrieve(created.id)).toStrictEqual(created);
    expect(await (await api.openai.files.content(created.id)).text()).toBe(text);
    const record = await api.store.files.get(created.id);
    expect(record?.sha256).toBe(createHash('sha256').update(text).digest('hex'));

    const deleted = await api.openai.files.delete(created.id);
    expect(deleted).toStrictEqual({ id: created.id, object: 'file', deleted: true });
    expect(await api.stored()).toStrictEqual([]);
    await expect(api.openai.files.retrieve(created.id)).rejects.toThrow(NotFoundError);
    await expect(api.openai.files.delete(created.id)).rejects.toThrow(NotFoundError);
  });

  test('fields come in any order, with and without Content-Length, and unknown ones are ignored', async () => {
    await using api = await start();
    const extra = { name: 'note', value: 'created_at' };
    const orders = [batchForm('abc'), purposeLast('abc'), [extra, ...purposeLast('abc'), extra]];
    for (const parts of orders) {
      const chunked = await postForm(api, parts);
      expect(v.parse(fileSchema, JSON.parse(chunked.text)).bytes).toBe(3);
      const body = formBody(parts);
      const whole = await fetch(`${api.url}/v1/files/`, {
        method: 'POST',
        headers: { 'content-type': FORM_TYPE },
        body,
      });
      expect(v.parse(fileSchema, await whole.json()).bytes).toBe(3);
    }
    expect(await api.stored()).toHaveLength(6);
  });

  test('bytes arrive as they were sent, boundaries of their own included', async () => {
    await using api = await start();
    const tricky = `\r\n--a-boundary-that\r\n\0\ufeff--\r\n${'x'.repeat(200_000)}\r\n`;
    const answer = await postForm(api, purposeLast(tricky));
    const { id } = v.parse(fileSchema, JSON.parse(answer.text));
    const content = await fetch(`${api.url}/v1/files/${id}/content`);
    expect(Buffer.from(await content.arrayBuffer()).equals(Buffer.from(tricky))).toBe(true);
  });

  test('expires_after is kept as expires_at, wherever its fields stand', async () => {
    await using api = await start();
    const expiry = expiresAfter('created_at', '3600');
    for (const parts of [
      [...expiry, ...batchForm('abc')],
      [...purposeLast('abc'), ...expiry],
    ]) {
      const file = v.parse(fileSchema, JSON.parse((await postForm(api, parts)).text));
      expect(file.expires_at).toBe(file.created_at + 3_600);
    }
    const created = await api.openai.files.create({
      file: await toFile(Buffer.from('{}'), 'a.jsonl'),
      purpose: 'batch',
      expires_after: { anchor: 'created_at', seconds: 2_592_000 },
    });
    expect(created.expires_at).toBe(created.created_at + 2_592_000);
    expect(await api.openai.files.retrieve(created.id)).toStrictEqual(created);
    const { data } = await api.openai.files.list({ limit: 1 });
    expect(data).toStrictEqual([created]);
    expect(await api.openai.files.retrieve(await uploadInput(api))).not.toHaveProperty(
      'expires_at',
    );
  });

  const ANCHOR = 'expires_after[anchor]';
  const SECONDS = 'expires_after[seconds]';
  const wrong: [string, FormPart[], string, string][] = [
    ...['3599', '2592001', '-1', '3600.5', 'soon', ''].map(
      (seconds): [string, FormPart[], string, string] => [
        `an expiry after '${seconds}' seconds`,
        [...batchForm('x'), ...expiresAfter('created_at', seconds)],
        SECONDS,
        'invalid_value',
      ],
    ),
    [
      'an unknown anchor',
      [...expiresAfter('last_active_at', '3600'), ...batchForm('x')],
      ANCHOR,
      'invalid_value',
    ],
    [
      'an anchor alone',
      [...expiresAfter('created_at', '3600').slice(0, 1), ...batchForm('x')],
      SECONDS,
      'missing_required_parameter',
    ],
    [
      'seconds alone',
      [...batchForm('x'), ...expiresAfter('created_at', '3600').slice(1)],
      ANCHOR,
      'missing_required_parameter',
    ],
    [
      'an expiry given twice',
      [
        ...batchForm('x'),
        ...expiresAfter('created_at', '3600'),
        ...expiresAfter('created_at', '3600'),
      ],
      ANCHOR,
      'invalid_value',
    ],
    ...['expires_after', 'expires_after[second]', 'expires_after_seconds'].map(
      (name): [string, FormPart[], string, string] => [
        `an expiry as the field ${name}`,
        [{ name, value: '3600' }, ...batchForm('x')],
        name,
        'unknown_parameter',
      ],
    ),
    ['no file', [{ name: 'purpose', value: 'batch' }], 'file', 'missing_required_parameter'],
    ['no purpose', batchForm('x').slice(1), 'purpose', 'missing_required_parameter'],
    ['nothing at all', [], 'file', 'missing_required_parameter'],
    [
      'an unknown purpose',
      [{ name: 'purpose', value: 'fun' }, ...batchForm('x').slice(1)],
      'purpose',
      'invalid_value',
    ],
    [
      'an unknown purpose at the end',
      [...batchForm('x').slice(1), { name: 'purpose', value: 'batch_output' }],
      'purpose',
      'invalid_value',
    ],
    [
      'two purposes',
      [...batchForm('x'), { name: 'purpose', value: 'batch' }],
      'purpose',
      'invalid_value',
    ],
    ['two files', [...batchForm('x'), ...batchForm('y').slice(1)], 'file', 'invalid_form'],
    ['an empty file', batchForm(''), 'file', 'empty_file'],
    ['an empty file before its purpose', purposeLast(''), 'file', 'empty_file'],
    ['no filename', batchForm('x', ''), 'file', 'invalid_filename'],
    ['a long filename', batchForm('x', 'n'.repeat(256)), 'file', 'invalid_filename'],
    [
      'text instead of a file',
      [
        { name: 'purpose', value: 'batch' },
        { name: 'file', value: 'x' },
      ],
      'file',
      'invalid_filename',
    ],
    [
      'a file of another name',
      [...batchForm('x'), { name: 'data', filename: 'a', value: 'x' }],
      'data',
      'invalid_form',
    ],
    [
      'far too many fields',
      [...Array.from({ length: 40 }, (_, n) => ({ name: `f${n}`, value: '' })), ...batchForm('x')],
      'file',
      'invalid_form',
    ],
  ];
  test.for(wrong)('%s is refused and nothing is stored', async ([, parts, param, code]) => {
    await using api = await start();
    const answer = await postForm(api, parts);
    expect(answer.status).toBe(400);
    expect(errorOf(answer.text)).toMatchObject({ param, code, type: 'invalid_request_error' });
    expect(await api.stored()).toStrictEqual([]);
    expect((await api.openai.files.list()).data).toStrictEqual([]);
  });

  test('a part need not have a name, and is no file of ours then', async () => {
    await using api = await start();
    const boundary = FORM_TYPE.replace(/.*boundary=/, '');
    const headers = { 'content-type': FORM_TYPE };
    const answers = ['', '; filename="a"'].map((more) => {
      const nameless = `--${boundary}\r\nContent-Disposition: form-data${more}\r\n\r\nx\r\n`;
      const body = [nameless, formBody(batchForm('abc'))];
      return rawRequest(`${api.url}/v1/files`, { method: 'POST', headers, body });
    });
    const [field, file] = await Promise.all(answers);
    expect([field?.status, file?.status]).toEqual([200, 400]);
    expect(errorOf(file?.text ?? '')).toMatchObject({ code: 'invalid_form', param: '' });
  });

  test('a body that is no form is refused', async () => {
    await using api = await start();
    for (const type of ['application/json', 'multipart/form-data', 'text/plain', FORM_TYPE]) {
      const answer = await rawRequest(`${api.url}/v1/files`, {
        method: 'POST',
        headers: { 'content-type': type },
        body: ['{}'],
      });
      expect([type, answer.status]).toStrictEqual([type, 400]);
      expect(errorOf(answer.text).param).toBe('file');
    }
  });

  test('a form that ends early is refused wherever it ends, and nothing is stored', async () => {
    await using api = await start();
    const whole = formBody(purposeLast('0123456789'));
    const cuts = Array.from({ length: whole.length - 4 }, (_, n) => n);
    for (const cut of cuts) {
      const answer = await fetch(`${api.url}/v1/files`, {
        method: 'POST',
        headers: { 'content-type': FORM_TYPE },
        body: whole.slice(0, cut),
      });
      expect([cut, answer.status]).toStrictEqual([cut, 400]);
      v.assert(errorSchema, await answer.json());
    }
    expect(await api.stored()).toStrictEqual([]);
  });

  test('a client that hangs up in the middle leaves nothing', async () => {
    await using api = await start();
    for (const parts of [batchForm('x'.repeat(MiB)), purposeLast('x'.repeat(MiB))]) {
      const before = api.observed.length;
      const outgoing = request(`${api.url}/v1/files`, {
        method: 'POST',
        headers: { 'content-type': FORM_TYPE },
      });
      outgoing.on('error', () => undefined);
      outgoing.write(formBody(parts).slice(0, MiB / 2));
      await until(() => (outgoing.socket?.bytesWritten ?? 0) > MiB / 2);
      outgoing.destroy();
      await until(() => api.observed.length > before);
      expect(api.observed.at(-1)).toMatchObject({ route: '/v1/files', status: 499 });
    }
    expect(await api.stored()).toStrictEqual([]);
    expect((await api.openai.files.list()).data).toStrictEqual([]);
    expect(api.logs.filter((line) => Number(line['level']) >= 50)).toStrictEqual([]);
  });
});

describe('limits', () => {
  test('a file of exactly the limit is taken, one byte more is refused', async () => {
    await using api = await start((deps) => ({ limits: { ...deps.limits, ...SMALL_LIMITS } }));
    const other = { name: 'purpose', value: 'user_data' };
    const cases: [FormPart[], number][] = [
      [batchForm('x'.repeat(MiB)), 200],
      [purposeLast('x'.repeat(MiB)), 200],
      [[other, ...batchForm('x'.repeat(2 * MiB)).slice(1)], 200],
      [batchForm('x'.repeat(MiB + 1)), 413],
      [purposeLast('x'.repeat(MiB + 1)), 413],
      [[other, ...batchForm('x'.repeat(2 * MiB + 1)).slice(1)], 413],
    ];
    for (const [parts, status] of cases) {
      expect((await postForm(api, parts)).status).toBe(status);
    }
    expect(await api.stored()).toHaveLength(3);
  });

  test('a client that writes its whole body first reads the 413', async () => {
    await using api = await start((deps) => ({ limits: { ...deps.limits, ...SMALL_LIMITS } }));
    const large = 'x'.repeat(48 * MiB);
    for (const parts of [batchForm(large), purposeLast(large)]) {
      const body = Buffer.from(formBody(parts));
      for (const length of [{}, { 'content-length': String(body.length) }]) {
        const answer = await rawRequest(`${api.url}/v1/files`, {
          method: 'POST',
          headers: { 'content-type': FORM_TYPE, ...length },
          body: [body],
        });
        expect(answer.status).toBe(413);
        expect(answer.headers['x-request-id']).toMatch(/^req_/);
        const error = errorOf(answer.text);
        expect(error).toMatchObject({ code: 'content_size_limit_exceeded', param: 'file' });
      }
    }
    expect(await api.stored()).toStrictEqual([]);
  });

  test('the SDK and curl read the 413 of a body that is refused while they send', async () => {
    await using api = await start((deps) => ({ limits: { ...deps.limits, ...SMALL_LIMITS } }));
    const bytes = Buffer.alloc(32 * MiB, 'x');
    const upload = api.openai.files.create({
      file: await toFile(bytes, 'large.jsonl'),
      purpose: 'batch',
    });
    await expect(upload).rejects.toMatchObject({
      status: 413,
      code: 'content_size_limit_exceeded',
    });
    await until(() => api.observed.length > 0);
    expect(api.observed[0]).toMatchObject({ route: '/v1/files', status: 413 });
    for (const chunked of [[], ['-H', 'Transfer-Encoding: chunked']]) {
      const options = ['-sS', '-F', 'file=@-;filename=large.jsonl', '-F', 'purpose=batch'];
      const curl = spawn('curl', [...options, ...chunked, `${api.url}/v1/files`]);
      curl.stdin.on('error', () => undefined); // it stops reading once it is refused
      curl.stdin.end(bytes);
      const output = await buffer(curl.stdout);
      expect(errorOf(output.toString()).code).toBe('content_size_limit_exceeded');
    }
    expect(await api.stored()).toStrictEqual([]);
  });

  test('storage that is slower than the client slows the client', async () => {
    const release = Promise.withResolvers<void>();
    await using api = await start((deps) => ({
      storage: {
        ...deps.storage,
        async put(_key, source) {
          for await (const _chunk of source) await release.promise;
          return { bytes: 0, sha256: '' };
        },
      },
    }));
    const outgoing = request(`${api.url}/v1/files`, {
      method: 'POST',
      headers: { 'content-type': FORM_TYPE },
    });
    const closed = new Promise((done) => outgoing.once('close', done));
    outgoing.on('error', () => undefined);
    const [head = ''] = formBody(batchForm('#')).split('#');
    outgoing.write(head);
    const piece = Buffer.alloc(MiB, 'x');
    let taken = 0;
    while (taken < 64 && (outgoing.write(piece) || (await drained(outgoing)))) taken += 1;
    // MiB: what sockets and streams hold; storage has taken one piece.
    expect(taken).toBeLessThan(32);
    outgoing.destroy();
    release.resolve();
    await closed;
  });

  test('a storage without room is said while the client still sends', async () => {
    await using api = await start((deps) => ({
      storage: {
        ...deps.storage,
        put: () => Promise.reject(transient('storage.full', 'The storage is full.')),
      },
    }));
    const answer = await postForm(api, batchForm('x'.repeat(32 * MiB)));
    expect(answer.status).toBe(503);
    expect(answer.headers['retry-after']).toBe('1');
    expect(errorOf(answer.text)).toMatchObject({ code: 'storage.full', type: 'server_error' });
  });

  test('bytes whose record cannot be written are removed', async () => {
    await using api = await start((deps) => ({
      store: {
        ...deps.store,
        files: {
          ...deps.store.files,
          create: () => Promise.reject(new Error('Connection is closed.')),
        },
      },
    }));
    const answer = await postForm(api, batchForm('x'));
    expect(answer.status).toBe(503);
    expect(errorOf(answer.text)).toMatchObject({ code: 'store.unreachable' });
    expect(await api.stored()).toStrictEqual([]);
  });
});

/** Whether the request drains within a moment; false when the server reads no more. */
async function drained(outgoing: NodeJS.EventEmitter): Promise<boolean> {
  try {
    await once(outgoing, 'drain', { signal: AbortSignal.timeout(500) });
    return true;
  } catch {
    return false; // only the signal ends it
  }
}

describe('lists', () => {
  test('the SDK walks all pages in both orders', async () => {
    await using api = await start();
    const ids: string[] = [];
    for (let n = 0; n < 7; n += 1) ids.push(await uploadInput(api));
    for (const [order, expected] of [
      ['desc', ids.toReversed()],
      ['asc', ids],
    ] as const) {
      const walked: string[] = [];
      for await (const file of api.openai.files.list({ limit: 3, order })) walked.push(file.id);
      expect(walked.toSorted()).toStrictEqual(expected.toSorted());
      expect(new Set(walked).size).toBe(7);
    }
    const page = await (await fetch(`${api.url}/v1/files?limit=7`)).json();
    const { data, first_id, last_id, has_more } = v.parse(listSchema, page);
    expect([first_id, last_id, has_more]).toStrictEqual([data[0]?.id, data[6]?.id, false]);
  });

  test('a purpose filters, and an empty page has no more', async () => {
    await using api = await start();
    await uploadInput(api);
    const own = await fetch(`${api.url}/v1/files?purpose=batch`);
    expect(v.parse(listSchema, await own.json()).data).toHaveLength(1);
    const none = await fetch(`${api.url}/api/v1/files?purpose=evals`);
    expect(await none.json()).toStrictEqual({
      object: 'list',
      data: [],
      first_id: '',
      last_id: '',
      has_more: false,
    });
  });

  const wrong = [
    ['limit=0', 'limit'],
    ['limit=10001', 'limit'],
    ['limit=ten', 'limit'],
    ['order=up', 'order'],
    ['purpose=fun', 'purpose'],
    ['after=file-unknown', 'after'],
    ['after=}{', 'after'],
  ] as const;
  test.for(wrong)('?%s is refused and named', async ([query, param]) => {
    await using api = await start();
    const answer = await rawRequest(`${api.url}/v1/files?${query}`);
    expect([answer.status, errorOf(answer.text).param]).toStrictEqual([400, param]);
  });
});

describe('downloads', () => {
  test('content has its type, its length and a name that stays one header', async () => {
    await using api = await start();
    const cases = [
      [
        'batch',
        'a b.jsonl',
        'application/jsonl',
        `filename="a b.jsonl"; filename*=UTF-8''a%20b.jsonl`,
      ],
      [
        'vision',
        'ü%.png',
        'application/octet-stream',
        `filename="__.png"; filename*=UTF-8''%C3%BC%25`,
      ],
      ['batch', 'tab\there\x07.jsonl', 'application/jsonl', 'filename="tabhere.jsonl"'],
    ] as const;
    for (const [purpose, filename, type, disposition] of cases) {
      const created = await api.openai.files.create({
        file: await toFile(Buffer.from('{}\n'), filename),
        purpose,
      });
      for (const method of ['GET', 'HEAD']) {
        const answer = await rawRequest(`${api.url}/v1/files/${created.id}/content/`, { method });
        expect(answer.status).toBe(200);
        expect(answer.headers['content-type']).toBe(type);
        expect(answer.headers['content-length']).toBe('3');
        expect(answer.headers['content-disposition']).toContain(`attachment; ${disposition}`);
        expect(answer.text).toBe(method === 'GET' ? '{}\n' : '');
      }
    }
  });

  test('HEAD opens nothing, and a download that breaks off closes what it opened', async () => {
    const opened: Readable[] = [];
    await using api = await start((deps) => ({
      storage: {
        ...deps.storage,
        async get(key, range) {
          const stream = await deps.storage.get(key, range);
          opened.push(stream);
          return stream;
        },
      },
    }));
    const id = await uploadInput(api, 'x'.repeat(32 * MiB));
    await rawRequest(`${api.url}/v1/files/${id}/content`, { method: 'HEAD' });
    expect(opened).toHaveLength(0);
    const abort = new AbortController();
    const response = await fetch(`${api.url}/v1/files/${id}/content`, { signal: abort.signal });
    await response.body?.getReader().read();
    expect(opened.map((stream) => stream.destroyed)).toStrictEqual([false]);
    abort.abort();
    await until(() => opened[0]?.destroyed, { what: 'the stream of the broken download to close' });
  });

  test('a record whose bytes are gone is a 404', async () => {
    await using api = await start();
    const id = await uploadInput(api);
    await api.storage.delete(`files/${id}`);
    const answer = await rawRequest(`${api.url}/v1/files/${id}/content`);
    expect([answer.status, errorOf(answer.text).type]).toStrictEqual([404, 'not_found_error']);
  });
});

describe('the console', () => {
  test('has the same files under its own paths', async () => {
    await using api = await start();
    const uploaded = await postForm(api, purposeLast('abc'), '/api/v1/files/upload');
    const file = v.parse(fileSchema, JSON.parse(uploaded.text));
    const paths = { get: `/api/v1/files/${file.id}`, content: `/api/v1/files/${file.id}/content` };
    expect(await (await fetch(api.url + paths.get)).json()).toStrictEqual(file);
    expect(await (await fetch(api.url + paths.content)).text()).toBe('abc');
    const listed = v.parse(listSchema, await (await fetch(`${api.url}/api/v1/files`)).json());
    expect(listed.data).toStrictEqual([file]);
  });
});

describe('deletion', () => {
  test('is refused while an unfinished job needs the file', async () => {
    await using api = await start();
    const input = await uploadInput(api);
    const batch = await api.openai.batches.create({
      input_file_id: input,
      endpoint: '/v1/chat/completions',
      completion_window: '24h',
    });
    const refused = await rawRequest(`${api.url}/v1/files/${input}`, { method: 'DELETE' });
    expect(refused.status).toBe(400);
    expect(errorOf(refused.text)).toMatchObject({ code: 'file_in_use', param: 'id' });
    expect(errorOf(refused.text).message).toContain(batch.id);
    await api.openai.batches.cancel(batch.id);
    expect((await api.openai.files.delete(input)).deleted).toBe(true);
    expect(await api.stored()).toStrictEqual([]);
  });
});
