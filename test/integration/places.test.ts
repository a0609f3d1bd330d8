import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { ListMultipartUploadsCommand, S3Client } from '@aws-sdk/client-s3';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { loadSettings } from '../../config/load.ts';
import { formatPinned, parseFolderUrl, parseObjectUrl } from '../../src/domain/location.ts';
import type { Location } from '../../src/domain/location.ts';
import { openAllowedPlaces } from '../../src/main/places.ts';
import type { Storage } from '../../src/storage/contract.ts';
import { createLocalStorage } from '../../src/storage/local.ts';
import { openPlaces } from '../../src/storage/places.ts';
import { createS3Storage } from '../../src/storage/s3.ts';
import type { S3Storage } from '../../src/storage/s3.ts';
import '../support/localhost-dns.ts';
import { ANY_KEYS as credentials, startS3Server } from '../support/s3-server.ts';
import { startS3Proxy } from '../support/s3-proxy.ts';
import type { S3Server } from '../support/s3-server.ts';

let server: S3Server;
let folder: string;
let own: Storage;
let bucket: S3Storage;

beforeAll(async () => {
  server = await startS3Server();
  for (const name of ['bucket', 'others']) await fetch(`${server.url}/${name}`, { method: 'PUT' });
  folder = await mkdtemp(join(tmpdir(), 'sluice-places-'));
  own = createLocalStorage({ directory: folder });
  bucket = createS3Storage({ ...connection(server.url), bucket: 'bucket', prefix: '' });
});

afterAll(async () => {
  await server[Symbol.asyncDispose]();
  await rm(folder, { recursive: true });
});

function connection(endpoint: string) {
  const region = 'us-east-1';
  return { endpoint, region, forcePathStyle: true, isAws: false, anyKey: true, credentials };
}

function open(urls: readonly string[], endpoint = server.url, more: { lookMs?: number } = {}) {
  const allowed = urls.map((url) => located(parseFolderUrl(url)));
  const target = { endpoint, region: 'us-east-1', prefix: '', credentials };
  return openPlaces(own, {
    allowed,
    s3: (name) => ({ ...target, bucket: name, pathStyle: 'auto' }),
    tos: (name) => ({ ...target, bucket: name }),
    ...more,
  });
}

function located(parsed: ReturnType<typeof parseObjectUrl>): Location {
  if ('problem' in parsed) throw new Error(parsed.problem);
  return parsed.location;
}

function object(url: string): Location {
  return located(parseObjectUrl(url));
}

async function textOf(stream: Readable): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

async function keysOf(storage: Pick<Storage, 'list'>, prefix: string): Promise<string[]> {
  const keys: string[] = [];
  for await (const key of storage.list(prefix)) keys.push(key);
  return keys;
}

test('an address is written and read in its bucket, and a key in our own storage as before', async () => {
  const { storage } = open(['s3://bucket/results']);
  const url = 's3://bucket/results/a b=c/ü+%20&.jsonl';
  const { address = '', ...stored } = await storage.put(url, [Buffer.from('hello')]);
  const sha256 = createHash('sha256').update('hello').digest('hex');
  expect(stored).toEqual({ bytes: 5, sha256 });
  expect(address.startsWith(`${url}?etag=`)).toBe(true);
  expect(await textOf(await storage.get(address))).toBe('hello');
  expect(await textOf(await storage.get(address, { start: 1, end: 4 }))).toBe('ell');
  expect(await storage.head(address)).toMatchObject({ bytes: 5 });
  expect(await textOf(await bucket.get('results/a b=c/ü+%20&.jsonl'))).toBe('hello');

  expect(await storage.put('files/x', [Buffer.from('own')])).not.toHaveProperty('address');
  expect(await textOf(await storage.get('files/x'))).toBe('own');
  expect(await keysOf(storage, 'files/')).toEqual(['files/x']);
  await storage.delete('files/x');
  expect(await storage.head('files/x')).toBeNull();
});

test('what is pinned is read as it was, or not at all', async () => {
  const { places, storage } = open(['s3://bucket']);
  const { address = '' } = await storage.put('s3://bucket/pinned', [Buffer.from('first')]);
  // The same bytes are the same version.
  await bucket.put('pinned', [Buffer.from('first')]);
  expect(await textOf(await storage.get(address))).toBe('first');

  await bucket.put('pinned', [Buffer.from('second one')]);
  const now = await places.look(object('s3://bucket/pinned'));
  const changed = {
    code: 'storage.changed',
    kind: 'Permanent',
    status: 410,
    message: expect.stringContaining(`10 bytes with ETag ${now?.pin.etag}`),
  };
  await expect(storage.get(address)).rejects.toMatchObject(changed);
  await expect(storage.get(address, { start: 1, end: 3 })).rejects.toMatchObject(changed);
  await expect(storage.head(address)).rejects.toMatchObject(changed);

  await bucket.delete('pinned');
  await expect(storage.get(address)).rejects.toMatchObject({ code: 'storage.not_found' });
  expect(await storage.head(address)).toBeNull();
  expect(await places.look(object('s3://bucket/pinned'))).toBeNull();
});

test('outside of the allowed folders nothing is read or written, whoever asks', async () => {
  const { places, storage } = open(['s3://bucket/a/b/']);
  await bucket.put('a/bc/x', [Buffer.from('theirs')]);
  const refused = {
    code: 'storage.not_allowed',
    message: expect.stringContaining('ALLOWED_BUCKETS'),
  };
  for (const url of ['s3://bucket/a/bc/x', 's3://others/a/b/x', 'tos://bucket/a/b/x']) {
    await expect(storage.get(url)).rejects.toMatchObject(refused);
    await expect(storage.get(`${url}?etag=%22x%22`)).rejects.toMatchObject(refused);
    await expect(storage.head(url)).rejects.toMatchObject(refused);
    await expect(storage.put(url, [Buffer.from('x')])).rejects.toMatchObject(refused);
    await expect(places.look(object(url))).rejects.toMatchObject(refused);
  }
  await expect(places.tryWriting(object('s3://bucket/a/bc/x'))).rejects.toMatchObject(refused);
  expect(await textOf(await bucket.get('a/bc/x'))).toBe('theirs');
});

test('tos:// goes to TOS as TOS_* say, s3:// to S3, each with its own credentials', async () => {
  await using proxy = await startS3Proxy(server.url);
  const settings = loadSettings({
    S3_ENDPOINT: server.url,
    AWS_ACCESS_KEY_ID: 'for-s3',
    AWS_SECRET_ACCESS_KEY: 'secret',
    TOS_ENDPOINT: `http://tos-s3-cn-test.localhost:${proxy.port}`,
    TOS_REGION: 'cn-test',
    TOS_ACCESS_KEY: 'for-tos',
    TOS_SECRET_KEY: 'secret',
    ALLOWED_BUCKETS: 'tos://bucket/tos/,s3://bucket/s3/',
  });
  const { places, storage } = openAllowedPlaces(own, settings);
  const { address = '' } = await storage.put('tos://bucket/tos/x', [Buffer.from('from tos')]);
  expect(await textOf(await storage.get(address))).toBe('from tos');
  await places.tryWriting(located(parseFolderUrl('tos://bucket/tos')));
  for (const { headers } of proxy.seen) {
    expect(headers.host).toBe(`bucket.tos-s3-cn-test.localhost:${proxy.port}`);
    expect(headers.authorization).toContain('Credential=for-tos/');
  }
  const asked = proxy.seen.length;
  await storage.put('s3://bucket/s3/x', [Buffer.from('from s3')]);
  expect(proxy.seen).toHaveLength(asked);
  expect(await textOf(await bucket.get('tos/x'))).toBe('from tos');
  expect(await textOf(await bucket.get('s3/x'))).toBe('from s3');
});

test('an endpoint of TOS that is replaced by its twin is told once', async () => {
  const settings = loadSettings({
    TOS_ENDPOINT: 'https://tos-cn-beijing.volces.com',
    TOS_ACCESS_KEY: 'for-tos',
    TOS_SECRET_KEY: 'secret',
    ALLOWED_BUCKETS: 'tos://bucket',
  });
  const notes: string[] = [];
  const { storage } = openAllowedPlaces(own, settings, (note) => notes.push(note));
  const stop = AbortSignal.abort(new Error('only opened'));
  for (const key of ['a', 'b']) {
    const put = storage.put(`tos://bucket/${key}`, [], { signal: stop });
    await expect(put).rejects.toThrow('only opened');
  }
  expect(notes).toEqual([expect.stringContaining('https://tos-s3-cn-beijing.volces.com')]);
});

test('what may only be written is written, and has the version that the answer tells', async () => {
  await using proxy = await startS3Proxy(server.url, ({ method }) =>
    method === 'PUT' ? 'pass' : { status: 403, code: 'AccessDenied' },
  );
  const { storage } = open(['s3://bucket'], proxy.url);
  const { address } = await storage.put('s3://bucket/write-only', [Buffer.from('x')]);
  expect(address).toMatch(/^s3:\/\/bucket\/write-only\?etag=%22[0-9a-f]{32}%22$/);
  expect(proxy.counts()).toEqual({ PutObject: 1 });
  await expect(storage.get('s3://bucket/write-only')).rejects.toMatchObject({
    code: 'storage.denied',
  });
  expect(await textOf(await bucket.get('write-only'))).toBe('x');
});

test('nothing outside is ever deleted or listed', async () => {
  const { storage } = open(['s3://bucket']);
  const { address = '' } = await storage.put('s3://bucket/kept', [Buffer.from('x')]);
  const invalid = { code: 'storage.invalid_key' };
  await expect(storage.delete(address)).rejects.toMatchObject(invalid);
  await expect(storage.delete('s3://bucket/kept')).rejects.toMatchObject(invalid);
  await expect(keysOf(storage, 's3://bucket/')).rejects.toMatchObject(invalid);
  expect(await storage.head(address)).not.toBeNull();
});

test('trying whether a folder can be written leaves nothing there', async () => {
  const { places } = open(['s3://bucket', 's3://missing']);
  const before = await keysOf(bucket, '');
  await places.tryWriting(located(parseFolderUrl('s3://bucket/new')));
  expect(await keysOf(bucket, '')).toEqual(before);
  const client = new S3Client(connection(server.url));
  onTestFinished(() => client.destroy());
  const uploads = await client.send(new ListMultipartUploadsCommand({ Bucket: 'bucket' }));
  expect(uploads.Uploads ?? []).toEqual([]);
  const missing = places.tryWriting(located(parseFolderUrl('s3://missing')));
  await expect(missing).rejects.toMatchObject({
    code: 'storage.no_bucket',
    message: expect.stringContaining('the bucket in the URL'),
  });
});

/** One object of a bucket that keeps versions, which fauxqs' do not; what is denied is answered so. */
async function startVersioned({ denied = false } = {}) {
  const versions = new Map<string, string>();
  const asked: string[] = [];
  function answer(request: IncomingMessage, response: ServerResponse): void {
    const url = new URL(request.url ?? '', 'http://x');
    const wanted = url.searchParams.get('versionId');
    asked.push(`${request.method} ${wanted ?? 'newest'}`);
    if (denied && wanted !== null) return void response.writeHead(403).end();
    const id = wanted ?? [...versions.keys()].at(-1) ?? '';
    const bytes = versions.get(id);
    if (bytes === undefined) {
      const said = '<Error><Code>NoSuchVersion</Code></Error>';
      return void response.writeHead(404, { 'content-type': 'application/xml' }).end(said);
    }
    const etag = `"${createHash('md5').update(bytes).digest('hex')}"`;
    const condition = request.headers['if-match'] ?? etag;
    if (condition !== etag) return void response.writeHead(412).end();
    response.writeHead(200, {
      etag,
      'content-length': bytes.length,
      'x-amz-version-id': id,
      'last-modified': new Date(0).toUTCString(),
    });
    response.end(request.method === 'HEAD' ? undefined : bytes);
  }
  const http = createServer(answer).listen(0, '127.0.0.1');
  await once(http, 'listening');
  onTestFinished(() => {
    http.closeAllConnections();
    http.close();
  });
  const { port } = http.address() as AddressInfo; // a TCP server that listens has one
  return { versions, asked, endpoint: `http://127.0.0.1:${port}` };
}

describe('in a bucket that keeps versions', () => {
  const location = object('s3://bucket/key');

  async function addressOf({ places }: ReturnType<typeof open>): Promise<string> {
    const found = await places.look(location);
    if (found === null) throw new Error('there is no object');
    return formatPinned(location, found.pin);
  }

  test('a version is read although the object was written again', async () => {
    const { versions, endpoint } = await startVersioned();
    const opened = open(['s3://bucket'], endpoint);
    versions.set('v1', 'first');
    const address = await addressOf(opened);
    expect(address).toContain('version=v1');
    versions.set('v2', 'second');
    expect(await textOf(await opened.storage.get(address))).toBe('first');
    expect(await opened.storage.head(address)).toMatchObject({ bytes: 5 });
    versions.delete('v1');
    await expect(opened.storage.get(address)).rejects.toMatchObject({ code: 'storage.not_found' });
    expect(await opened.storage.head(address)).toBeNull();
  });

  test('where versions may not be read, the object is pinned by its ETag', async () => {
    const { versions, endpoint } = await startVersioned({ denied: true });
    const opened = open(['s3://bucket'], endpoint);
    versions.set('v1', 'first');
    const address = await addressOf(opened);
    expect(address).not.toContain('version=');
    expect(await textOf(await opened.storage.get(address))).toBe('first');
    versions.set('v2', 'second');
    await expect(opened.storage.get(address)).rejects.toMatchObject({ code: 'storage.changed' });
  });

  test('what was there before the bucket kept versions has none', async () => {
    const { versions, asked, endpoint } = await startVersioned();
    versions.set('null', 'first');
    expect(await addressOf(open(['s3://bucket'], endpoint))).not.toContain('version=');
    expect(asked).toEqual(['HEAD newest']);
  });
});

test('what is written is pinned by the answer to its last request, however long it is', async () => {
  await using proxy = await startS3Proxy(server.url);
  const { storage } = open(['s3://bucket'], proxy.url);
  for (const [key, mebibytes] of [
    ['small', 1],
    ['large', 10],
  ] as const) {
    const chunks = Array.from({ length: mebibytes }, () => Buffer.alloc(2 ** 20));
    const { address = '' } = await storage.put(`s3://bucket/${key}`, chunks);
    const { etag = '' } = (await bucket.head(key)) ?? {};
    const pin = { etag, version: null };
    expect(address).toBe(formatPinned(object(`s3://bucket/${key}`), pin));
  }
  expect(proxy.counts()['HeadObject']).toBeUndefined();
});

test('a version that was pinned, and may not be read by its id, is read by its ETag', async () => {
  const { versions, endpoint } = await startVersioned({ denied: true });
  const { places, storage } = open(['s3://bucket'], endpoint);
  versions.set('v1', 'first');
  const location = object('s3://bucket/key');
  const etag = `"${createHash('md5').update('first').digest('hex')}"`;
  const pin = { etag, version: 'v1' };
  expect(await textOf(await storage.get(formatPinned(location, pin)))).toBe('first');
  expect(await storage.head(formatPinned(location, pin))).toMatchObject({ bytes: 5 });
  expect(await places.isThere(location, pin)).toBe(true);
  versions.set('v2', 'second');
  await expect(storage.get(formatPinned(location, pin))).rejects.toMatchObject({
    code: 'storage.changed',
  });
  expect(await places.isThere(location, pin)).toBe(false);
});

describe('a look that somebody waits for', () => {
  test('ends in time, whatever the store does', async () => {
    await using proxy = await startS3Proxy(server.url, () => 'hang');
    const { places } = open(['s3://bucket'], proxy.url, { lookMs: 300 });
    const late = { code: 'storage.unavailable', message: expect.stringContaining('within 0.3 s') };
    const location = object('s3://bucket/x');
    await expect(places.look(location)).rejects.toMatchObject(late);
    await expect(places.isThere(location, { etag: '"x"', version: null })).rejects.toMatchObject(
      late,
    );
    await expect(places.tryWriting(object('s3://bucket/out'))).rejects.toMatchObject(late);
  });

  test('asks twice at most', async () => {
    const busy = { status: 503, code: 'SlowDown' };
    await using proxy = await startS3Proxy(server.url, () => busy);
    const { places } = open(['s3://bucket'], proxy.url);
    const folder = located(parseFolderUrl('s3://bucket/out'));
    await expect(places.tryWriting(folder)).rejects.toMatchObject({ kind: 'Transient' });
    await expect(places.look(object('s3://bucket/x'))).rejects.toMatchObject({ kind: 'Transient' });
    expect(proxy.counts()).toEqual({ CreateMultipartUpload: 2, HeadObject: 2 });
  });
});

describe('uploads that were begun in allowed folders and never ended', () => {
  const keys = [
    'out/batch_1_output.jsonl',
    'out/deep/batch_1_error.jsonl',
    'out/.sluice-write-check',
    'out/batch_1_output.jsonl.gz',
    'out/backup.tar',
    'outside/batch_1_output.jsonl',
  ];

  async function startListing(refusal: number | null = null) {
    const given: string[] = [];
    const uploads = keys.map(
      (key) =>
        `<Upload><Key>${key}</Key><UploadId>of ${key}</UploadId><Initiated>1970-01-02T00:00:00Z</Initiated></Upload>`,
    );
    const http = createServer((request, response) => {
      const { pathname, searchParams } = new URL(request.url ?? '', 'http://x');
      if (request.method === 'DELETE') {
        given.push(`${pathname} ${searchParams.get('uploadId')}`);
        return void response.writeHead(204).end();
      }
      if (refusal !== null) return void response.writeHead(refusal).end();
      response.writeHead(200, { 'content-type': 'application/xml' });
      const body = `<ListMultipartUploadsResult>${uploads.join('')}</ListMultipartUploadsResult>`;
      response.end(`<?xml version="1.0"?>${body}`);
    }).listen(0, '127.0.0.1');
    await once(http, 'listening');
    onTestFinished(() => {
      http.closeAllConnections();
      http.close();
    });
    const { port } = http.address() as AddressInfo; // a TCP server that listens has one
    return { given, endpoint: `http://127.0.0.1:${port}` };
  }

  test('are found where we began them, and given up', async () => {
    const { given, endpoint } = await startListing();
    const { storage } = open(['s3://bucket/out'], endpoint);
    const found: string[] = [];
    for await (const upload of storage.abandoned(60_000)) {
      found.push(upload.key);
      await storage.abandon(upload);
    }
    expect(found).toEqual(keys.slice(0, 3).map((key) => `s3://bucket/${key}`));
    expect(given).toEqual(keys.slice(0, 3).map((key) => `/bucket/${key} of ${key}`));
  });

  test('are found although another folder’s bucket is gone, which is told', async () => {
    const { endpoint } = await startListing();
    const proxy = await startS3Proxy(endpoint, ({ url }) =>
      url.startsWith('/others') ? { status: 404, code: 'NoSuchBucket' } : 'pass',
    );
    onTestFinished(() => proxy[Symbol.asyncDispose]());
    const { storage } = open(['s3://others/out', 's3://bucket/out'], proxy.url);
    const found: string[] = [];
    async function all(): Promise<void> {
      for await (const { key } of storage.abandoned(60_000)) found.push(key);
    }
    await expect(all()).rejects.toMatchObject({ code: 'storage.no_bucket' });
    expect(found).toHaveLength(3);
  });

  test('stay where nobody may list them', async () => {
    const { endpoint } = await startListing(403);
    const { storage } = open(['s3://bucket/out'], endpoint);
    for await (const { key } of storage.abandoned(60_000)) expect.fail(key);
  });
});
