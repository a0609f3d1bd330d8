import { createHash, randomUUID } from 'node:crypto';
import { Redis } from 'ioredis';
import { toFile } from 'openai';
import { describe, expect, inject, test } from 'vitest';
import { createExpiry } from '../../processors/expiry.ts';
import type { ApiDeps } from '../../src/api/app.ts';
import { transient } from '../../src/domain/errors.ts';
import { FORM_TYPE, formBody, postForm, postJson, rawRequest, startApi } from '../support/api.ts';
import type { RawAnswer, TestApi } from '../support/api.ts';

const MiB = 1024 ** 2;

function start(overrides?: (deps: ApiDeps) => Partial<ApiDeps>): Promise<TestApi> {
  return startApi(inject('redisUrl'), overrides);
}

const WISH = { filename: 'in.jsonl', purpose: 'batch', mime_type: 'application/jsonl' } as const;

function makeUpload(api: TestApi, bytes: number) {
  return api.openai.uploads.create({ ...WISH, bytes });
}

/** Sends texts as parts, all at once, and returns their ids in this order. */
async function sendParts(api: TestApi, uploadId: string, texts: readonly string[]) {
  const sent = texts.map(async (text) => {
    const data = await toFile(Buffer.from(text), 'part');
    return (await api.openai.uploads.parts.create(uploadId, { data })).id;
  });
  return Promise.all(sent);
}

/** An upload of these parts, which are there. */
async function filled(api: TestApi, ...texts: string[]) {
  const { id } = await makeUpload(api, Buffer.byteLength(texts.join('')));
  return { id, part_ids: await sendParts(api, id, texts) };
}

function complete(api: TestApi, id: string, body: object) {
  return postJson(api, `/v1/uploads/${id}/complete`, body);
}

async function partsStored(api: TestApi): Promise<string[]> {
  const keys: string[] = [];
  for await (const key of api.storage.list('uploads/')) keys.push(key);
  return keys;
}

function sweeper(api: TestApi, ahead = 0) {
  const { store, storage } = api;
  const log = { debug: ignore, info: ignore, warn: ignore, error: ignore };
  return createExpiry('test', { store, storage, log, now: () => Date.now() + ahead });
}

function ignore(): void {}

function md5Of(text: string): string {
  return createHash('md5').update(text).digest('hex');
}

/** Makes an upload an hour old. */
async function age(id: string): Promise<void> {
  const redis = new Redis(inject('redisUrl'));
  await redis.hset(`{${id}}`, 'expires_at', Date.now() - 1);
  redis.disconnect();
}

describe('an upload', () => {
  test('of parts sent at once, in any order, becomes the file that was announced', async () => {
    await using api = await start();
    const texts = ['{"custom_id":"a"}\n', '{"custom_id":"ü"}\n', '{"custom_id":"c"}'];
    const text = texts.join('');
    const bytes = Buffer.byteLength(text);
    const expires_after = { anchor: 'created_at', seconds: 7_200 } as const;
    const made = await api.openai.uploads.create({ ...WISH, bytes, expires_after });
    expect(made).toMatchObject({ ...named(), bytes, object: 'upload', status: 'pending' });
    expect(made.expires_at).toBe(made.created_at + 3_600);
    expect(made.file).toBeNull();

    const ids = await sendParts(api, made.id, texts.toReversed());
    const part_ids = ids.toReversed();
    expect(new Set(part_ids).size).toBe(3);
    const md5 = md5Of(text).toUpperCase();
    const done = await api.openai.uploads.complete(made.id, { part_ids, md5 });
    expect(done).toMatchObject({ id: made.id, status: 'completed', bytes, ...named() });
    const file = done.file;
    if (!file) throw new Error('a completed upload has a file');
    expect(file).toMatchObject({ ...named(), bytes, status: 'uploaded' });
    expect(file.expires_at).toBe(file.created_at + 7_200);
    expect(await api.openai.files.retrieve(file.id)).toStrictEqual(file);
    expect(await (await api.openai.files.content(file.id)).text()).toBe(text);
    const record = await api.store.files.get(file.id);
    expect(record?.sha256).toBe(createHash('sha256').update(text).digest('hex'));
    const seen = await fetch(`${api.url}/v1/uploads/${made.id}`);
    expect(await seen.json()).toStrictEqual(done);

    expect(await partsStored(api)).toHaveLength(3);
    await sweeper(api).round();
    expect(await partsStored(api)).toStrictEqual([]);
    expect(await api.stored()).toStrictEqual([`files/${file.id}`]);
  });

  test('is downloaded as the type that it was announced with', async () => {
    await using api = await start();
    const wish = {
      filename: 'a.png',
      purpose: 'vision',
      mime_type: 'image/png',
      bytes: 1,
    } as const;
    const { id } = await api.openai.uploads.create(wish);
    const done = await api.openai.uploads.complete(id, {
      part_ids: await sendParts(api, id, ['x']),
    });
    const content = await fetch(`${api.url}/v1/files/${done.file?.id}/content`);
    expect(content.headers.get('content-type')).toBe('image/png');
    expect(content.headers.get('x-content-type-options')).toBe('nosniff');
  });

  test('leaves out parts that are not named, as those that were sent twice', async () => {
    await using api = await start();
    const { id, part_ids } = await filled(api, 'ab', 'cd');
    await sendParts(api, id, ['ab', 'xy']);
    const done = await api.openai.uploads.complete(id, { part_ids });
    expect(await (await api.openai.files.content(done.file?.id ?? '')).text()).toBe('abcd');
  });

  test('completed again answers the same; with other parts or another digest it is refused', async () => {
    await using api = await start();
    const { id, part_ids } = await filled(api, 'ab', 'cd');
    const first = await complete(api, id, { part_ids });
    await sweeper(api).round();
    for (const body of [{ part_ids }, { part_ids, md5: md5Of('abcd') }]) {
      expect((await complete(api, id, body)).body).toStrictEqual(first.body);
    }
    const other = await complete(api, id, { part_ids: part_ids.toReversed() });
    expect([other.status, other.body]).toMatchObject([
      400,
      { error: { code: 'upload_not_pending' } },
    ]);
    const wrong = await complete(api, id, { part_ids, md5: md5Of('x') });
    expect([wrong.status, wrong.body]).toMatchObject([400, { error: { code: 'md5_mismatch' } }]);
    const { data } = await api.openai.files.list();
    expect(data).toHaveLength(1);
    // Its file is gone for good once somebody deletes it.
    await api.openai.files.delete(data[0]?.id ?? '');
    expect(await complete(api, id, { part_ids })).toMatchObject({
      status: 200,
      body: { file: null },
    });
    await sweeper(api).round();
    expect((await api.openai.files.list()).data).toStrictEqual([]);
    expect(await api.stored()).toStrictEqual([]);
  });

  test('completed by several at once is one file, and all get it', async () => {
    await using api = await start();
    const { id, part_ids } = await filled(api, 'a'.repeat(MiB), 'b'.repeat(MiB));
    const answers = await Promise.all([1, 2, 3, 4].map(() => complete(api, id, { part_ids })));
    expect(new Set(answers.map(({ body }) => JSON.stringify(body))).size).toBe(1);
    expect(answers[0]).toMatchObject({ status: 200, body: { status: 'completed' } });
    expect((await api.openai.files.list()).data).toHaveLength(1);
    expect(await api.stored()).toHaveLength(1);
  });

  test('completed in two orders at once has the bytes of the one that won', async () => {
    await using api = await start();
    const { id, part_ids } = await filled(api, 'ab', 'cd');
    const orders = [part_ids, part_ids.toReversed()];
    const answers = await Promise.all(orders.map((ids) => complete(api, id, { part_ids: ids })));
    expect(new Set(answers.map(({ status }) => status))).toStrictEqual(new Set([200, 400]));
    const [file] = (await api.openai.files.list()).data;
    const text = await (await api.openai.files.content(file?.id ?? '')).text();
    expect(text).toBe(answers[0]?.status === 200 ? 'abcd' : 'cdab');
  });

  test('with a wrong order under md5 is mended by the right one', async () => {
    await using api = await start();
    const { id, part_ids } = await filled(api, 'ab', 'cd');
    const begun = performance.now();
    const md5 = md5Of('abcd');
    const wrong = await complete(api, id, { part_ids: part_ids.toReversed(), md5 });
    expect(wrong).toMatchObject({
      status: 400,
      body: { error: { code: 'md5_mismatch', param: 'md5' } },
    });
    expect(await api.stored()).toStrictEqual([]);
    expect((await complete(api, id, { part_ids, md5 })).status).toBe(200);
    // Not after the time that a dead attempt is waited for.
    expect(performance.now() - begun).toBeLessThan(8_000);
  });

  test('sent again by an SDK that heard no answer is one upload', async () => {
    await using api = await start();
    const body = { ...WISH, bytes: 3 };
    const first = await postJson(api, '/v1/uploads', body);
    const retry = await postJson(api, '/v1/uploads', body, { 'x-stainless-retry-count': '1' });
    expect(retry.body).toStrictEqual(first.body);
    const another = await postJson(api, '/v1/uploads', body);
    expect(another.body).not.toMatchObject({ id: (first.body as { id: string }).id });
  });
});

function named() {
  const { mime_type: _type, ...rest } = WISH;
  return rest;
}

describe('a completion that breaks off', () => {
  test('while it writes leaves no file, and the next one makes it', async () => {
    let broken = true;
    await using api = await start((deps) => ({
      storage: {
        ...deps.storage,
        concat(parts, key, options) {
          if (!broken) return deps.storage.concat(parts, key, options);
          return Promise.reject(transient('storage.full', 'The storage is full.'));
        },
      },
    }));
    const { id, part_ids } = await filled(api, 'ab', 'cd');
    expect(await complete(api, id, { part_ids })).toMatchObject({
      status: 503,
      body: { error: { code: 'storage.full' } },
    });
    expect((await api.openai.files.list()).data).toStrictEqual([]);
    broken = false;
    expect((await complete(api, id, { part_ids })).status).toBe(200);
  });

  test('after its bytes are stored leaves none behind', async () => {
    let lost = 1;
    await using api = await start((deps) => ({
      store: {
        ...deps.store,
        uploads: {
          ...deps.store.uploads,
          complete(id, result) {
            lost -= 1;
            if (lost < 0) return deps.store.uploads.complete(id, result);
            return Promise.reject(new Error('Connection is closed.'));
          },
        },
      },
    }));
    const { id, part_ids } = await filled(api, 'ab', 'cd');
    expect((await complete(api, id, { part_ids })).status).toBe(503);
    expect((await api.openai.files.list()).data).toStrictEqual([]);
    const done = await complete(api, id, { part_ids });
    expect(done.status).toBe(200);
    expect(await api.stored()).toHaveLength(2);
    await sweeper(api).round();
    expect(await api.stored()).toHaveLength(1);
  });

  test('before its file has a record is brought to its end by the sweeper, or by a repeat', async () => {
    let broken = true;
    await using api = await start((deps) => ({
      store: {
        ...deps.store,
        files: {
          ...deps.store.files,
          create: (file) =>
            broken
              ? Promise.reject(new Error('Connection is closed.'))
              : deps.store.files.create(file),
        },
      },
    }));
    for (const mend of ['sweeper', 'repeat']) {
      broken = true;
      const { id, part_ids } = await filled(api, 'ab', 'cd');
      expect((await complete(api, id, { part_ids })).status).toBe(503);
      broken = false;
      if (mend === 'sweeper') await sweeper(api).round();
      expect((await api.openai.files.list()).data).toHaveLength(1);
      const done = await complete(api, id, { part_ids });
      expect(done).toMatchObject({
        status: 200,
        body: { status: 'completed', file: { bytes: 4 } },
      });
    }
    expect((await api.openai.files.list()).data).toHaveLength(2);
  });

  test('of a process that died is taken over once its time is over', async () => {
    await using api = await start();
    const { id, part_ids } = await filled(api, 'ab', 'cd');
    expect(await api.store.uploads.begin(id, 'file-dead', 700)).toBe('begun');
    expect(await api.store.uploads.begin(id, 'file-other', 700)).toBe('busy');
    expect((await complete(api, id, { part_ids })).status).toBe(200);
    const result = { fileId: 'file-dead', sha256: 'x', md5: 'x', list: 'x' };
    expect(await api.store.uploads.complete(id, result)).toBe('over');
  });

  test('whose part is gone from the storage says so', async () => {
    await using api = await start();
    const { id, part_ids } = await filled(api, 'ab', 'cd');
    await api.storage.delete(`uploads/${id}/${part_ids[1]}`);
    const answer = await complete(api, id, { part_ids });
    expect(answer).toMatchObject({ status: 500, body: { error: { code: 'upload_part_lost' } } });
    expect(await api.stored()).toStrictEqual([]);
  });
});

describe('an end', () => {
  test('by cancel takes the parts with it, and is the same when it comes again', async () => {
    await using api = await start();
    const { id, part_ids } = await filled(api, 'ab', 'cd');
    const cancelled = await api.openai.uploads.cancel(id);
    expect(cancelled).toMatchObject({ id, status: 'cancelled', file: null });
    expect(await api.openai.uploads.cancel(id)).toStrictEqual(cancelled);
    expect(await complete(api, id, { part_ids })).toMatchObject({ status: 400 });
    await sweeper(api).round();
    expect(await partsStored(api)).toStrictEqual([]);
  });

  test('by cancel while its parts are joined leaves no file', async () => {
    const begun = Promise.withResolvers<void>();
    const goOn = Promise.withResolvers<void>();
    await using api = await start((deps) => ({
      storage: {
        ...deps.storage,
        async concat(parts, key, options) {
          begun.resolve();
          await goOn.promise;
          return deps.storage.concat(parts, key, options);
        },
      },
    }));
    const { id, part_ids } = await filled(api, 'ab', 'cd');
    const answer = complete(api, id, { part_ids });
    await begun.promise;
    expect((await api.openai.uploads.cancel(id)).status).toBe('cancelled');
    goOn.resolve();
    expect(await answer).toMatchObject({
      status: 400,
      body: { error: { code: 'upload_not_pending' } },
    });
    await sweeper(api).round();
    expect(await api.stored()).toStrictEqual([]);
    expect((await api.openai.files.list()).data).toStrictEqual([]);
  });

  test('comes after an hour by itself', async () => {
    await using api = await start();
    const { id, part_ids } = await filled(api, 'ab', 'cd');
    await age(id);
    const seen = await fetch(`${api.url}/v1/uploads/${id}`);
    expect(await seen.json()).toMatchObject({ status: 'expired', file: null });
    const part = await postForm(
      api,
      [{ name: 'data', filename: 'p', value: 'x' }],
      `/v1/uploads/${id}/parts`,
    );
    for (const answer of [
      part,
      await rawRequest(`${api.url}/v1/uploads/${id}/cancel`, { method: 'POST' }),
      await rawRequest(`${api.url}/v1/uploads/${id}/complete`, {
        method: 'POST',
        body: [JSON.stringify({ part_ids })],
      }),
    ]) {
      expect(answer.status).toBe(400);
      const { error } = JSON.parse(answer.text);
      expect(error).toMatchObject({ code: 'upload_not_pending', param: 'id' });
      expect(error.message).toContain('expired');
    }
    const clear = sweeper(api);
    await clear.round();
    await clear.round();
    expect((await api.store.uploads.get(id))?.status).toBe('expired');
    expect(await partsStored(api)).toStrictEqual([]);
  });

  test('finds a part that came late, and then forgets all but the record', async () => {
    await using api = await start();
    const { id } = await filled(api, 'ab');
    await api.openai.uploads.cancel(id);
    await sweeper(api).round();
    await api.storage.put(`uploads/${id}/part_late`, [Buffer.from('x')]);
    await api.store.uploads.postpone(id, 0);
    await sweeper(api, 8 * 3_600_000).round();
    expect(await partsStored(api)).toStrictEqual([]);
    await api.store.uploads.postpone(id, 0);
    expect(await api.store.uploads.due(10)).toStrictEqual([]);
    expect((await api.store.uploads.parts(id)).size).toBe(0);
    expect((await api.store.uploads.get(id))?.status).toBe('cancelled');
  });

  test('before its hour is over does not come by the sweeper', async () => {
    await using api = await start();
    const { id, part_ids } = await filled(api, 'ab');
    await sweeper(api).round();
    expect(await api.store.uploads.due(10)).toStrictEqual([]);
    expect((await complete(api, id, { part_ids })).status).toBe(200);
  });
});

describe('a part', () => {
  test('may have 64 MiB and not a byte more', async () => {
    await using api = await start();
    const { id } = await makeUpload(api, 65 * MiB);
    const path = `/v1/uploads/${id}/parts`;
    const exact = await postForm(
      api,
      [{ name: 'data', filename: 'p', value: 'x'.repeat(64 * MiB) }],
      path,
    );
    expect(exact.status).toBe(200);
    const over = await postForm(
      api,
      [{ name: 'data', filename: 'p', value: 'x'.repeat(64 * MiB + 1) }],
      path,
    );
    expect(over.status).toBe(413);
    expect(JSON.parse(over.text).error).toMatchObject({
      code: 'content_size_limit_exceeded',
      param: 'data',
    });
    expect(await partsStored(api)).toHaveLength(1);
  });
});

describe('wrong input', () => {
  const body = { ...WISH, bytes: 10 };
  const after = (expires_after: unknown) => ({ ...body, expires_after });
  const creates: [string, unknown, string, string, number?][] = [
    ['no filename', { ...body, filename: undefined }, 'filename', 'missing_required_parameter'],
    ['an empty filename', { ...body, filename: '' }, 'filename', 'invalid_value'],
    ['a long filename', { ...body, filename: 'n'.repeat(256) }, 'filename', 'invalid_value'],
    ['a filename that is none', { ...body, filename: 7 }, 'filename', 'invalid_type'],
    ['no purpose', { ...body, purpose: undefined }, 'purpose', 'missing_required_parameter'],
    ['an unknown purpose', { ...body, purpose: 'batch_output' }, 'purpose', 'invalid_value'],
    ['no bytes', { ...body, bytes: undefined }, 'bytes', 'missing_required_parameter'],
    ['bytes as text', { ...body, bytes: '10' }, 'bytes', 'invalid_type'],
    ['no byte', { ...body, bytes: 0 }, 'bytes', 'invalid_value'],
    ['half a byte', { ...body, bytes: 1.5 }, 'bytes', 'invalid_value'],
    ['no type', { ...body, mime_type: undefined }, 'mime_type', 'missing_required_parameter'],
    ['a type that is none', { ...body, mime_type: 'jsonl\r\nx: y' }, 'mime_type', 'invalid_value'],
    ['an expiry that is none', after('1h'), 'expires_after', 'invalid_type'],
    [
      'an expiry without an anchor',
      after({ seconds: 3_600 }),
      'expires_after.anchor',
      'missing_required_parameter',
    ],
    [
      'an expiry with a slip',
      after({ anchor: 'created_at', seconds: 3_600, second: 7_200 }),
      'expires_after.second',
      'unknown_parameter',
    ],
    [
      'another anchor',
      after({ anchor: 'now', seconds: 3_600 }),
      'expires_after.anchor',
      'invalid_value',
    ],
    [
      'too short an expiry',
      after({ anchor: 'created_at', seconds: 3_599 }),
      'expires_after.seconds',
      'invalid_value',
    ],
    [
      'too long an expiry',
      after({ anchor: 'created_at', seconds: 2_592_001 }),
      'expires_after.seconds',
      'invalid_value',
    ],
    [
      'more than a batch may have',
      { ...body, bytes: 200 * MiB + 1 },
      'bytes',
      'content_size_limit_exceeded',
      413,
    ],
    [
      'more than MAX_UPLOAD_BYTES',
      { ...body, purpose: 'user_data', bytes: 8 * 1024 ** 3 + 1 },
      'bytes',
      'content_size_limit_exceeded',
      413,
    ],
  ];
  test.for(creates)('of a new upload: %s', async ([, json, param, code, status = 400]) => {
    await using api = await start();
    const answer = await postJson(api, '/v1/uploads', json);
    expect(answer.status).toBe(status);
    expect(answer.body).toMatchObject({ error: { type: 'invalid_request_error', code, param } });
    const setting = status === 413 ? /MAX_(UPLOAD|BATCH_FILE)_BYTES/ : '';
    expect(JSON.stringify(answer.body)).toMatch(setting);
  });

  const part = (value: string) => [{ name: 'data', filename: 'p', value }];
  const parts: [string, Parameters<typeof formBody>[0], string, string][] = [
    ['none', [], 'data', 'missing_required_parameter'],
    ['text that is no file', [{ name: 'data', value: 'x' }], 'data', 'invalid_filename'],
    [
      'a file of another name',
      [{ name: 'file', filename: 'p', value: 'x' }],
      'file',
      'invalid_form',
    ],
    ['two files', [...part('x'), ...part('y')], 'data', 'invalid_form'],
    ['no bytes', part(''), 'data', 'empty_part'],
    ['more bytes than were announced', part('x'.repeat(11)), 'data', 'bytes_mismatch'],
  ];
  test.for(parts)('of a part: %s', async ([, form, param, code]) => {
    await using api = await start();
    const { id } = await makeUpload(api, 10);
    const answer = await postForm(api, form, `/v1/uploads/${id}/parts`);
    refused(answer, param, code);
    expect(await partsStored(api)).toStrictEqual([]);
  });

  test('of a part: no form, and a form that ends early', async () => {
    await using api = await start();
    const { id } = await makeUpload(api, 10);
    const whole = formBody(part('x'));
    for (const [type, text, code] of [
      ['application/json', '{}', 'invalid_content_type'],
      ['multipart/form-data', whole, 'invalid_content_type'],
      [FORM_TYPE, whole.slice(0, -10), 'invalid_form'],
    ] as const) {
      const headers = { 'content-type': type };
      const asked = { method: 'POST', headers, body: [text] };
      refused(await rawRequest(`${api.url}/v1/uploads/${id}/parts`, asked), 'data', code);
    }
    expect(await partsStored(api)).toStrictEqual([]);
  });

  const completes: [string, (ids: string[]) => unknown, string, string][] = [
    ['no ids', () => ({}), 'part_ids', 'missing_required_parameter'],
    ['ids that are none', () => ({ part_ids: 'part_x' }), 'part_ids', 'invalid_type'],
    ['an empty list', () => ({ part_ids: [] }), 'part_ids', 'invalid_value'],
    ['an id that is none', () => ({ part_ids: [7] }), 'part_ids.0', 'invalid_type'],
    [
      'too many ids',
      () => ({ part_ids: Array(10_001).fill('part_x') }),
      'part_ids',
      'invalid_value',
    ],
    ['an unknown part', ([a]) => ({ part_ids: [a, 'part_x'] }), 'part_ids.1', 'invalid_part_id'],
    ['a part twice', ([a]) => ({ part_ids: [a, a] }), 'part_ids.1', 'invalid_part_id'],
    ['too few parts', ([a]) => ({ part_ids: [a] }), 'part_ids', 'bytes_mismatch'],
    ['an MD5 that is none', (part_ids) => ({ part_ids, md5: 'abc' }), 'md5', 'invalid_value'],
    ['another MD5', (part_ids) => ({ part_ids, md5: md5Of('x') }), 'md5', 'md5_mismatch'],
  ];
  test.for(completes)('of a completion: %s', async ([, bodyOf, param, code]) => {
    await using api = await start();
    const { id, part_ids } = await filled(api, 'ab', 'cd');
    const answer = await complete(api, id, bodyOf(part_ids) as object);
    expect(answer.status).toBe(400);
    expect(answer.body).toMatchObject({ error: { type: 'invalid_request_error', code, param } });
    expect((await complete(api, id, { part_ids })).status).toBe(200);
  });

  test('of an upload that is not there is a 404 everywhere', async () => {
    await using api = await start();
    const body = [JSON.stringify({ part_ids: ['part_x'] })];
    for (const id of ['upload_none', '}{', randomUUID()]) {
      for (const [method, path] of [
        ['GET', ''],
        ['HEAD', ''],
        ['POST', '/parts'],
        ['POST', '/complete'],
        ['POST', '/cancel'],
      ] as const) {
        const url = `${api.url}/v1/uploads/${encodeURIComponent(id)}${path}`;
        const answer = await rawRequest(url, { method, body: method === 'POST' ? body : [] });
        expect([id, path, answer.status]).toStrictEqual([id, path, 404]);
        if (method === 'HEAD') continue;
        const error = { type: 'not_found_error', code: 'upload_not_found', param: 'id' };
        expect(JSON.parse(answer.text).error).toMatchObject(error);
      }
    }
  });

  test('of a completed upload: no part, and no cancel', async () => {
    await using api = await start();
    const { id, part_ids } = await filled(api, 'ab');
    await complete(api, id, { part_ids });
    refused(await postForm(api, part('x'), `/v1/uploads/${id}/parts`), 'id', 'upload_not_pending');
    const cancel = await rawRequest(`${api.url}/v1/uploads/${id}/cancel`, { method: 'POST' });
    refused(cancel, 'id', 'upload_not_pending');
    expect((await api.store.uploads.get(id))?.status).toBe('completed');
  });

  function refused(answer: RawAnswer, param: string, code: string): void {
    expect(answer.status).toBe(400);
    const { error } = JSON.parse(answer.text);
    expect(error).toMatchObject({ type: 'invalid_request_error', code, param });
  }
});
