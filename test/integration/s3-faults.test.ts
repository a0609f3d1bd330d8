import { once } from 'node:events';
import { createServer } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { createS3Storage } from '../../src/storage/s3.ts';
import type { S3Storage } from '../../src/storage/s3.ts';
import type { S3Options } from '../../src/storage/s3-client.ts';
import { startS3Proxy } from '../support/s3-proxy.ts';
import type { S3Fate, S3Proxy, S3ProxyOptions, S3Request } from '../support/s3-proxy.ts';
import { ANY_KEYS, startS3Server } from '../support/s3-server.ts';
import type { S3Server } from '../support/s3-server.ts';
import { bytesOf, keysOf } from '../support/storage-suite.ts';
import { until } from '../support/until.ts';

const MIB = 2 ** 20;

let server: S3Server;
beforeAll(async () => {
  server = await startS3Server();
});
afterAll(() => server[Symbol.asyncDispose]());

function open(endpoint: string, more: Partial<S3Options> = {}): S3Storage {
  return createS3Storage({
    bucket: 'bucket',
    prefix: '',
    endpoint,
    region: 'us-east-1',
    forcePathStyle: true,
    isAws: false,
    credentials: ANY_KEYS,
    partBytes: 5 * MIB,
    idleMs: 30_000,
    attempts: 2,
    ...more,
  });
}

/** A store of which each answer is made up. */
async function startFake(
  answer: (request: IncomingMessage, response: ServerResponse, n: number) => void,
): Promise<{ url: string; underWay(): number; asked(): number }> {
  let [asked, underWay] = [0, 0];
  const http = createServer((request, response) => {
    underWay += 1;
    asked += 1;
    response.on('close', () => (underWay -= 1));
    answer(request, response, asked);
  }).listen(0, '127.0.0.1');
  await once(http, 'listening');
  onTestFinished(() => {
    http.closeAllConnections();
    http.close();
  });
  const { port } = http.address() as AddressInfo; // a TCP server that listens has one
  return {
    url: `http://127.0.0.1:${port}`,
    underWay: () => underWay,
    asked: () => asked,
  };
}

async function startProxy(
  decide: (request: S3Request) => S3Fate,
  options: S3ProxyOptions = {},
): Promise<{ proxy: S3Proxy; bucket: string }> {
  const bucket = await server.createBucket();
  const proxy = await startS3Proxy(server.url, decide, options);
  onTestFinished(() => proxy[Symbol.asyncDispose]());
  return { proxy, bucket };
}

describe('a store that ignores If-Match', () => {
  /** One object, given to whoever asks, whatever for. */
  async function ignorant(head: Record<string, string> = {}) {
    return startFake((request, response) => {
      response.writeHead(200, { etag: '"new"', 'content-length': 4 * MIB, ...head });
      // only a reader that cuts it off ends it
      response.write(request.method === 'HEAD' ? '' : Buffer.alloc(MIB));
    });
  }

  test('does not pass another version for the one that was asked for', async () => {
    const fake = await ignorant();
    const reading = open(fake.url).get('key', {}, { etag: '"old"', version: null });
    await expect(reading).rejects.toMatchObject({ kind: 'Permanent', code: 'storage.changed' });
    await until(() => fake.underWay() === 0);
  });

  test('does not pass another version by its id', async () => {
    const fake = await ignorant({ 'x-amz-version-id': 'v2' });
    const reading = open(fake.url).get('key', {}, { etag: '"new"', version: 'v1' });
    await expect(reading).rejects.toMatchObject({ kind: 'Permanent', code: 'storage.changed' });
  });

  test('does not mix two versions in one stream', async () => {
    const fake = await startFake((_, response, n) => {
      const [start, etag] = n === 1 ? [0, '"old"'] : [10, '"new"'];
      response.writeHead(n === 1 ? 200 : 206, {
        etag,
        'content-length': 20 - start,
        ...(n === 1 ? {} : { 'content-range': 'bytes 10-19/20' }),
      });
      if (n === 1) response.write('0123456789', () => response.destroy());
      else response.end('abcdefghij');
    });
    const stream = await open(fake.url, { attempts: 4 }).get('key');
    await expect(bytesOf(stream)).rejects.toMatchObject({
      kind: 'Transient',
      code: 'storage.changed',
    });
  });

  test('has no empty range of a version that is gone', async () => {
    const fake = await startFake((_, response) => {
      response.writeHead(200, { etag: '"new"', 'content-length': 4 }).end();
    });
    const of = { etag: '"old"', version: null };
    const reading = open(fake.url).get('key', { start: 2, end: 2 }, of);
    await expect(reading).rejects.toMatchObject({ code: 'storage.changed' });
  });

  test('is told from one that obeys it', async () => {
    const fake = await ignorant();
    expect(await open(fake.url).obeysIfMatch('key')).toBe(false);
    await until(() => fake.underWay() === 0);
    const { proxy, bucket } = await startProxy(() => 'pass');
    const storage = open(proxy.url, { bucket });
    await storage.put('key', [Buffer.from('1')]);
    expect(await storage.obeysIfMatch('key')).toBe(true);
  });
});

describe('a part of an object', () => {
  const LIES: [string, Record<string, string>][] = [
    ['shorter', { 'content-range': 'bytes 2-4/10', 'content-length': '3' }],
    ['longer', { 'content-range': 'bytes 2-9/10', 'content-length': '8' }],
    ['of another length than it says', { 'content-range': 'bytes 2-7/10', 'content-length': '5' }],
    ['elsewhere', { 'content-range': 'bytes 3-7/10', 'content-length': '5' }],
    ['of an unknown whole', { 'content-range': 'bytes 2-7/*', 'content-length': '6' }],
  ];
  test.for(LIES)('that is %s is not taken for what was asked for', async ([, head]) => {
    const fake = await startFake((_, response) => {
      response.writeHead(206, { etag: '"x"', ...head });
      response.write('12');
    });
    await expect(open(fake.url).get('key', { start: 2, end: 8 })).rejects.toMatchObject({
      kind: 'Transient',
      code: 'storage.unavailable',
    });
    await until(() => fake.underWay() === 0);
  });

  test('that ends with the object is whole', async () => {
    const fake = await startFake((_, response) => {
      response.writeHead(206, { 'content-range': 'bytes 2-4/5', 'content-length': '3' }).end('abc');
    });
    expect(String(await bytesOf(await open(fake.url).get('key', { start: 2, end: 8 })))).toBe(
      'abc',
    );
  });

  test('without a length lets its connection go', async () => {
    const fake = await startFake((_, response) => {
      response.writeHead(200, { etag: '"x"' });
      response.write('12');
    });
    await expect(open(fake.url).get('key')).rejects.toMatchObject({ code: 'storage.unavailable' });
    await until(() => fake.underWay() === 0);
  });
});

describe('where the clock is off', () => {
  const ahead = { clockAheadMs: 40 * 60_000 };

  test('what is refused for another reason is asked for once', async () => {
    const { proxy, bucket } = await startProxy(
      ({ operation }) =>
        operation === 'DeleteObject' ? { status: 403, code: 'AccessDenied' } : 'pass',
      ahead,
    );
    const storage = open(proxy.url, { bucket, attempts: 10 });
    await expect(storage.get('none')).rejects.toMatchObject({ code: 'storage.not_found' });
    await expect(storage.delete('none')).rejects.toMatchObject({ code: 'storage.denied' });
    await storage.put('key', [Buffer.from('1')]);
    expect(String(await bytesOf(await storage.get('key', { start: 5 })))).toBe('');
    const old = { etag: '"old"', version: null };
    await expect(storage.get('key', {}, old)).rejects.toMatchObject({ code: 'storage.changed' });
    expect(proxy.counts()).toEqual({ GetObject: 3, DeleteObject: 1, PutObject: 1 });
  });

  test.for(['RequestTimeTooSkewed', 'RequestExpired'])(
    '%s is asked for once more, and not for ever',
    async (code) => {
      const { proxy, bucket } = await startProxy(() => ({ status: 403, code }), ahead);
      const storage = open(proxy.url, { bucket, attempts: 10 });
      await expect(storage.delete('key')).rejects.toMatchObject({ kind: 'Transient' });
      expect(proxy.counts()).toEqual({ DeleteObject: 2 });
    },
  );
});

describe('the last request of an upload', () => {
  function* chunks(mebibytes: number): Generator<Buffer> {
    for (let n = 0; n < mebibytes; n += 1) yield Buffer.alloc(MIB, n + 1);
  }

  test('that was done, and said to have failed, is found by its mark', async () => {
    const { proxy, bucket } = await startProxy(({ operation }) =>
      operation === 'CompleteMultipartUpload' ? 'lose' : 'pass',
    );
    // A single try, as a long wait for an answer leaves it
    const storage = open(proxy.url, { bucket, attempts: 1 });
    expect(await storage.put('key', chunks(6))).toMatchObject({ bytes: 6 * MIB });
    expect((await storage.head('key'))?.bytes).toBe(6 * MIB);
  });

  test('that was not done fails, and is given up once', async () => {
    const { proxy, bucket } = await startProxy(({ operation }) =>
      operation === 'CompleteMultipartUpload' ? 'reset' : 'pass',
    );
    const storage = open(proxy.url, { bucket, attempts: 1 });
    await expect(storage.put('key', chunks(6))).rejects.toMatchObject({ kind: 'Transient' });
    expect(proxy.counts()).toMatchObject({ AbortMultipartUpload: 1 });
    expect(await storage.head('key')).toBeNull();
  });
});

describe('a list that says that it has more', () => {
  const LISTS: [string, string][] = [
    ['objects, and not where', '<IsTruncated>true</IsTruncated>'],
    [
      'objects, at the same place again',
      '<IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>',
    ],
    ['uploads, and not where', '<IsTruncated>true</IsTruncated>'],
    [
      'uploads, at the same place again',
      '<IsTruncated>true</IsTruncated><NextKeyMarker>x</NextKeyMarker><NextUploadIdMarker>y</NextUploadIdMarker>',
    ],
  ];
  test.for(LISTS)('%s, is no list', async ([what, said]) => {
    const root = what.startsWith('objects') ? 'ListBucketResult' : 'ListMultipartUploadsResult';
    const fake = await startFake((_, response, n) => {
      if (n > 5) return void response.destroy();
      response.writeHead(200, { 'content-type': 'application/xml' });
      response.end(`<?xml version="1.0"?><${root}>${said}</${root}>`);
    });
    const storage = open(fake.url, { attempts: 1 });
    async function all(): Promise<void> {
      if (what.startsWith('objects')) await keysOf(storage);
      else await storage.abandoned(0)[Symbol.asyncIterator]().next();
    }
    await expect(all()).rejects.toMatchObject({
      kind: 'Transient',
      code: 'storage.unavailable',
      message: expect.stringContaining('to go on from'),
    });
    expect(fake.asked()).toBeLessThan(3);
  });
});

test('uploads are as old as the store says', async () => {
  const ahead = 40 * 60_000;
  const begun = new Date(Date.now() + ahead - 60_000).toISOString();
  const one = `<Upload><Key>key</Key><UploadId>id</UploadId><Initiated>${begun}</Initiated></Upload>`;
  const fake = await startFake((_, response) => {
    response.setHeader('date', new Date(Date.now() + ahead).toUTCString());
    response.writeHead(200, { 'content-type': 'application/xml' });
    response.end(
      `<?xml version="1.0"?><ListMultipartUploadsResult>${one}</ListMultipartUploadsResult>`,
    );
  });
  async function found(olderThanMs: number): Promise<string[]> {
    const keys: string[] = [];
    for await (const { key } of open(fake.url).abandoned(olderThanMs)) keys.push(key);
    return keys;
  }
  expect(await found(30_000)).toEqual(['key']);
  expect(await found(120_000)).toEqual([]);
});

test('parts wait for nobody to say that they may be sent', async () => {
  const { proxy, bucket } = await startProxy(() => 'pass');
  await open(proxy.url, { bucket }).put('key', [Buffer.alloc(3 * MIB)]);
  expect(proxy.seen.map(({ headers }) => headers.expect)).toEqual([undefined]);
});

describe('a store that does not answer', () => {
  test('and is nowhere is told so, by each address of its name', async () => {
    await expect(open('http://localhost:1', { attempts: 1 }).head('key')).rejects.toMatchObject({
      code: 'storage.unreachable',
      message: expect.stringContaining('nobody answers'),
    });
  });

  test('in time is not said to be away', async () => {
    const fake = await startFake(() => undefined);
    const storage = open(fake.url, { attempts: 1, idleMs: 300 });
    await expect(storage.head('key')).rejects.toMatchObject({
      code: 'storage.unavailable',
      message: expect.stringContaining('takes too long to answer'),
    });
  });

  test('to its end is not waited for, however lively it is', async () => {
    const fake = await startFake((_, response) => {
      response.writeHead(200, { 'content-type': 'application/xml' });
      const drip = setInterval(() => response.write(' '), 20);
      response.on('close', () => clearInterval(drip));
    });
    const storage = open(fake.url, { attempts: 1, idleMs: 300 });
    await expect(keysOf(storage)).rejects.toMatchObject({
      code: 'storage.unavailable',
      message: expect.stringContaining('takes too long to answer'),
    });
    await until(() => fake.underWay() === 0);
  });
});

test('a signature that nobody can make is not asked for again', async () => {
  const { failureOf, retried } = await import('../../src/storage/s3-retry.ts');
  let tries = 0;
  const failing = retried(
    () => {
      tries += 1;
      return Promise.reject(Object.assign(new Error('no token'), { name: 'TokenProviderError' }));
    },
    { attempts: 10 },
  );
  await expect(failing).rejects.toThrow('no token');
  expect(tries).toBe(1);
  const refused = new AggregateError([], 'connect');
  expect(failureOf(Object.assign(refused, { code: 'ECONNREFUSED' })).code).toBe('ECONNREFUSED');
});

test('a body that gives a few bytes at a time is given up', async () => {
  const all = Buffer.alloc(MIB, 'x');
  const fake = await startFake((request, response) => {
    const start = Number(/^bytes=(\d+)-/.exec(String(request.headers.range))?.[1] ?? 0);
    response.writeHead(start === 0 ? 200 : 206, {
      etag: '"x"',
      'content-length': MIB - start,
      ...(start === 0 ? {} : { 'content-range': `bytes ${start}-${MIB - 1}/${MIB}` }),
    });
    response.write(all.subarray(0, 100), () => response.destroy());
  });
  const stream = await open(fake.url, { attempts: 4 }).get('key');
  await expect(bytesOf(stream)).rejects.toMatchObject({ code: 'storage.unavailable' });
  expect(fake.asked()).toBe(4);
});

test('an identity that no listing shows is tried twice, and no more', async () => {
  const { createIdentity } = await import('../../src/storage/s3-identity.ts');
  const added: string[] = [];
  const identity = createIdentity(
    {
      candidates: async () => {
        if (added.length > 5) throw new Error('for ever');
        return [];
      },
      add: async (one) => void added.push(one),
      has: async () => false,
    },
    1,
  );
  await expect(identity()).rejects.toMatchObject({ kind: 'Permanent', code: 'storage.unfit' });
  expect(added).toHaveLength(2);
});
