import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { request } from 'node:http';
import { Readable } from 'node:stream';
import { gunzipSync } from 'node:zlib';
import { afterEach, describe, expect, inject, test, vi } from 'vitest';
import { fileKey } from '../../src/domain/file.ts';
import { rawRequest, startApi, uploadInput } from '../support/api.ts';
import type { RawAnswer, TestApi } from '../support/api.ts';

const TEXT = '0123456789';
const LONG = '{"custom_id":"a","body":{}}\n'.repeat(1_000);

afterEach(() => {
  vi.restoreAllMocks();
});

function start(): Promise<TestApi> {
  return startApi(inject('redisUrl'));
}

function etagOf(text: string): string {
  return `"${createHash('sha256').update(text).digest('hex')}"`;
}

async function ask(
  api: TestApi,
  id: string,
  headers: Record<string, string> = {},
  method = 'GET',
): Promise<RawAnswer> {
  return rawRequest(`${api.url}/v1/files/${id}/content`, { method, headers });
}

/** A file of no bytes, which nobody can upload. */
async function emptyFile(api: TestApi): Promise<string> {
  const id = 'file-empty';
  const { bytes, sha256 } = await api.storage.put(fileKey(id), Readable.from([]));
  const record = { id, filename: 'empty', purpose: 'batch', bytes, sha256 } as const;
  return (await api.store.files.create(record)).id;
}

describe('ranges', () => {
  const found: [string, string, string][] = [
    ['bytes=0-0', '0', 'bytes 0-0/10'],
    ['bytes=2-4', '234', 'bytes 2-4/10'],
    ['bytes=7-', '789', 'bytes 7-9/10'],
    ['bytes=7-99', '789', 'bytes 7-9/10'],
    ['bytes=-3', '789', 'bytes 7-9/10'],
    ['bytes=-99', TEXT, 'bytes 0-9/10'],
    ['Bytes=0-9', TEXT, 'bytes 0-9/10'],
  ];
  test.for(found)('%s is a 206', async ([range, text, contentRange]) => {
    await using api = await start();
    const id = await uploadInput(api, TEXT);
    for (const path of ['/v1/files', '/api/v1/files']) {
      // A range is of the bytes themselves, whatever the client could unpack.
      const headers = { range, 'accept-encoding': 'gzip' };
      const answer = await rawRequest(`${api.url}${path}/${id}/content`, { headers });
      expect([answer.status, answer.text]).toStrictEqual([206, text]);
      expect(answer.headers).toMatchObject({
        'content-range': contentRange,
        'content-length': String(text.length),
        'accept-ranges': 'bytes',
        etag: etagOf(TEXT),
      });
      expect(answer.headers['content-encoding']).toBeUndefined();
    }
  });

  const whole = ['bytes=1-2,4-5', 'bytes=4-2', 'bytes=a-b', 'bytes=-', 'lines=1-2', 'bytes'];
  test.for(whole)('%s is answered with the whole', async (range) => {
    await using api = await start();
    const answer = await ask(api, await uploadInput(api, TEXT), { range });
    expect([answer.status, answer.text]).toStrictEqual([200, TEXT]);
    expect(answer.headers['content-range']).toBeUndefined();
    expect(answer.headers['content-length']).toBe('10');
  });

  test('that are answered with the whole are of plain bytes, too', async () => {
    await using api = await start();
    const headers = { range: 'bytes=1-2,4-5', 'accept-encoding': 'gzip' };
    const answer = await ask(api, await uploadInput(api, LONG), headers);
    expect(answer.headers['content-encoding']).toBeUndefined();
    expect(answer.text).toBe(LONG);
  });

  test('outside the file are a 416 that tells its size', async () => {
    await using api = await start();
    for (const [text, range] of [
      [TEXT, 'bytes=10-'],
      [TEXT, 'bytes=10-20'],
      [TEXT, 'bytes=-0'],
      ['', 'bytes=0-'],
      ['', 'bytes=-5'],
    ] as const) {
      const id = text === '' ? await emptyFile(api) : await uploadInput(api, text);
      const answer = await ask(api, id, { range });
      expect([range, answer.status]).toStrictEqual([range, 416]);
      expect(answer.headers['content-range']).toBe(`bytes */${text.length}`);
      expect(JSON.parse(answer.text).error).toMatchObject({
        type: 'invalid_request_error',
        code: 'range_not_satisfiable',
        param: 'Range',
        message: expect.stringContaining(`has ${text.length} bytes`),
      });
    }
  });

  test('under If-Range are given only of the very same bytes', async () => {
    await using api = await start();
    const id = await uploadInput(api, TEXT);
    const same = etagOf(TEXT);
    const conditions: [string, number][] = [
      [same, 206],
      [`W/${same}`, 200],
      ['"other"', 200],
      ['Sat, 21 Nov 2026 00:00:00 GMT', 200],
    ];
    for (const [condition, status] of conditions) {
      const answer = await ask(api, id, { range: 'bytes=1-2', 'if-range': condition });
      expect([condition, answer.status]).toStrictEqual([condition, status]);
    }
  });
});

describe('ETag', () => {
  test('is the digest of the bytes, and who has them gets a 304', async () => {
    await using api = await start();
    const id = await uploadInput(api, LONG);
    const etag = etagOf(LONG);
    expect((await ask(api, id)).headers['etag']).toBe(etag);
    const cases: [string, number][] = [
      [etag, 304],
      [`W/${etag}`, 304],
      [`"x", ${etag}`, 304],
      ['*', 304],
      ['"x"', 200],
    ];
    for (const method of ['GET', 'HEAD']) {
      for (const [condition, status] of cases) {
        const answer = await ask(api, id, { 'if-none-match': condition }, method);
        expect([condition, answer.status]).toStrictEqual([condition, status]);
        expect(answer.headers['etag']).toBe(etag);
        expect(answer.text).toBe(status === 200 && method === 'GET' ? LONG : '');
      }
    }
    const both = await ask(api, id, { 'if-none-match': etag, range: 'bytes=99999999-' });
    expect(both.status).toBe(304);
  });
});

describe('gzip', () => {
  async function bytesOf(api: TestApi, id: string, accept: string) {
    // Not `fetch`, which unpacks what it gets.
    const chunks: Buffer[] = [];
    const headers = { 'accept-encoding': accept };
    const outgoing = request(`${api.url}/v1/files/${id}/content`, { headers, agent: false });
    outgoing.end();
    const [incoming] = await once(outgoing, 'response');
    for await (const chunk of incoming) chunks.push(chunk);
    return { headers: incoming.headers, bytes: Buffer.concat(chunks) };
  }

  test('is used where the client takes it, streamed and under a weak tag', async () => {
    await using api = await start();
    const id = await uploadInput(api, LONG);
    for (const accept of ['gzip', 'deflate, gzip;q=0.5', 'GZIP', '*', 'br, x-gzip']) {
      const { headers, bytes } = await bytesOf(api, id, accept);
      expect([accept, headers['content-encoding']]).toStrictEqual([accept, 'gzip']);
      expect(headers['content-length']).toBeUndefined();
      expect(headers).toMatchObject({ etag: `W/${etagOf(LONG)}`, vary: 'Accept-Encoding' });
      expect(bytes.length).toBeLessThan(LONG.length / 4);
      expect(gunzipSync(bytes).toString()).toBe(LONG);
    }
    for (const accept of ['', 'identity', 'gzip;q=0', 'br', '*;q=0', '*, gzip;q=0']) {
      const { headers, bytes } = await bytesOf(api, id, accept);
      expect([accept, headers['content-encoding']]).toStrictEqual([accept, undefined]);
      expect(headers).toMatchObject({ etag: etagOf(LONG), vary: 'Accept-Encoding' });
      expect(bytes.toString()).toBe(LONG);
    }
  });

  test('is not worth it for a few bytes', async () => {
    await using api = await start();
    const { headers } = await bytesOf(api, await uploadInput(api, TEXT), 'gzip');
    expect(headers['content-encoding']).toBeUndefined();
  });

  test('reaches the SDK as it was', async () => {
    await using api = await start();
    const content = await api.openai.files.content(await uploadInput(api, LONG));
    expect(content.headers.get('content-encoding')).toBe('gzip');
    expect(await content.text()).toBe(LONG);
  });
});

describe('HEAD', () => {
  test('answers on every path of files what GET answers, without the body', async () => {
    await using api = await start();
    const id = await uploadInput(api, LONG);
    const paths = ['/v1/files', '/api/v1/files'].flatMap((base) => [
      base,
      `${base}/`,
      `${base}/${id}`,
      `${base}/${id}/content`,
      `${base}/file-none`,
      `${base}/file-none/content`,
    ]);
    for (const path of paths) {
      for (const accept of ['identity', 'gzip']) {
        const headers = { 'accept-encoding': accept };
        const get = await rawRequest(api.url + path, { headers });
        const head = await rawRequest(api.url + path, { method: 'HEAD', headers });
        expect(head.text).toBe('');
        expect([path, head.status, comparable(head)]).toStrictEqual([
          path,
          get.status,
          comparable(get),
        ]);
      }
    }
  });

  function comparable({ status, headers }: RawAnswer) {
    const own = new Set(['date', 'x-request-id', 'transfer-encoding']);
    if (status !== 200) own.add('content-length'); // an error's text has an id of its own
    return Object.fromEntries(Object.entries(headers).filter(([name]) => !own.has(name)));
  }
});

test.each(['identity', 'gzip'])(
  'a storage that fails at once cuts a download (%s)',
  async (accept) => {
    await using api = await start();
    const id = await uploadInput(api, LONG);
    const printed = vi.spyOn(console, 'error');
    api.storage.get = async () =>
      new Readable({ read: (): void => undefined }).destroy(new Error('the disk is gone'));
    const headers = { 'accept-encoding': accept };
    await expect(ask(api, id, headers)).rejects.toThrow(/aborted|hang up|reset/);
    const said = api.logs.filter(({ msg }) => msg === 'reading a file failed');
    expect(said).toMatchObject([{ file: id, err: { message: 'the disk is gone' } }]);
    expect(printed, 'the framework prints what a body fails with').not.toHaveBeenCalled();
  },
);
