import { createHash } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { createS3Storage } from '../../src/storage/s3.ts';
import type { S3Storage } from '../../src/storage/s3.ts';
import type { S3Options } from '../../src/storage/s3-client.ts';
import { startS3Proxy } from '../support/s3-proxy.ts';
import type { S3Fate, S3Proxy, S3Request } from '../support/s3-proxy.ts';
import { ANY_KEYS, startS3Server } from '../support/s3-server.ts';
import type { S3Server } from '../support/s3-server.ts';
import { bytesOf, keysOf } from '../support/storage-suite.ts';
import { until } from '../support/until.ts';

const MIB = 2 ** 20;

let server: S3Server;
let proxy: S3Proxy;
let bucket = '';
let decide: (request: S3Request) => S3Fate = () => 'pass';

beforeAll(async () => {
  server = await startS3Server();
});
afterAll(() => server[Symbol.asyncDispose]());
beforeEach(async () => {
  decide = () => 'pass';
  bucket = await server.createBucket();
  proxy = await startS3Proxy(server.url, (request) => decide(request));
});
afterEach(() => proxy[Symbol.asyncDispose]());

function open(more: Partial<S3Options> = {}): S3Storage {
  return createS3Storage({
    bucket,
    prefix: '',
    endpoint: proxy.url,
    region: 'us-east-1',
    forcePathStyle: true,
    isAws: false,
    credentials: ANY_KEYS,
    partBytes: 5 * MIB,
    idleMs: 30_000,
    ...more,
  });
}

/** `mebibytes` that differ from each other. */
function* chunks(mebibytes: number): Generator<Buffer> {
  for (let n = 0; n < mebibytes; n += 1) yield Buffer.alloc(MIB, n + 1);
}

function sha256(source: Iterable<Uint8Array>): string {
  const hash = createHash('sha256');
  for (const chunk of source) hash.update(chunk);
  return hash.digest('hex');
}

const BUSY = { status: 503, code: 'SlowDown' } as const;

describe('a put', () => {
  test('of an object up to a part is one request', async () => {
    const storage = open();
    await storage.put('small', [Buffer.from('1')]);
    await storage.put('part', chunks(5));
    await storage.put('empty', []);
    expect(proxy.counts()).toEqual({ PutObject: 3 });
    expect((await storage.head('part'))?.bytes).toBe(5 * MIB);
  });

  test('of a longer one is sent in parts, the last of which is what is left', async () => {
    await open().put('key', chunks(13));
    expect(proxy.counts()).toEqual({
      CreateMultipartUpload: 1,
      UploadPart: 3,
      CompleteMultipartUpload: 1,
    });
    const parts = proxy.seen.filter(({ operation }) => operation === 'UploadPart');
    const sizes = parts.map(({ bytes }) => bytes / MIB);
    expect(sizes.toSorted((a, b) => b - a)).toEqual([5, 5, 3]);
  });

  test('holds at most three parts while the store is slow', async () => {
    const storage = open();
    let taken = 0;
    function* counted() {
      for (const chunk of chunks(40)) {
        taken += 1;
        yield chunk;
      }
    }
    decide = ({ operation }) => (operation === 'UploadPart' ? 'hang' : 'pass');
    const stop = new AbortController();
    const putting = storage.put('key', counted(), { signal: stop.signal });
    await until(() => proxy.counts()['UploadPart'] === 2);
    // While another object comes to the store and back, it would take more if ever it did.
    await storage.put('other', chunks(1));
    expect(sha256([await bytesOf(await storage.get('other'))])).toBe(sha256(chunks(1)));
    expect(taken).toBeGreaterThan(10);
    expect(taken).toBeLessThanOrEqual(16);
    expect(proxy.counts()['UploadPart']).toBe(2);
    stop.abort(new Error('enough'));
    await expect(putting).rejects.toThrow('enough');
  });

  test('is asked for again where the store is busy, broken or silent', async () => {
    const fates: S3Fate[] = [
      BUSY,
      'reset',
      { status: 500, code: 'InternalError' },
      'lose',
      'hang',
      { status: 400, code: 'RequestTimeout' },
    ];
    decide = ({ n }) => fates[n - 1] ?? 'pass';
    const put = await open({ idleMs: 2_000 }).put('key', chunks(1));
    expect(put).toEqual({ bytes: MIB, sha256: sha256(chunks(1)) });
    expect(proxy.counts()).toEqual({ PutObject: fates.length + 1 });
  });

  test('in parts comes through when every third request fails', async () => {
    let count = 0;
    const fates: S3Fate[] = [BUSY, 'reset', 'lose'];
    decide = () => {
      count += 1;
      return count % 3 === 0 ? (fates[(count / 3) % 3] ?? 'pass') : 'pass';
    };
    const put = await open().put('key', chunks(33));
    expect(put).toEqual({ bytes: 33 * MIB, sha256: sha256(chunks(33)) });
    decide = () => 'pass';
    expect(sha256([await bytesOf(await open().get('key'))])).toBe(put.sha256);
  });

  test('knows its object when the answer to the last request was lost', async () => {
    decide = ({ operation, n }) =>
      operation === 'CompleteMultipartUpload' && n === 1 ? 'lose' : 'pass';
    const put = await open().put('key', chunks(11));
    expect(put.bytes).toBe(11 * MIB);
    expect(proxy.counts()).toMatchObject({ CompleteMultipartUpload: 2, HeadObject: 1 });
    expect(proxy.counts()['AbortMultipartUpload']).toBeUndefined();
  });

  test('does not wait for ever for the last answer', async () => {
    decide = ({ operation, n }) =>
      operation === 'CompleteMultipartUpload' && n === 1 ? 'hang' : 'pass';
    expect(await open({ idleMs: 1_000 }).put('key', chunks(6))).toMatchObject({ bytes: 6 * MIB });
    expect(proxy.counts()).toMatchObject({ CompleteMultipartUpload: 2 });
  });

  test('does not take an object for its own that was there before', async () => {
    const storage = open();
    await storage.put('key', chunks(11));
    // the upload is gone, and nothing came of it
    decide = ({ operation, n }) => {
      if (operation !== 'CompleteMultipartUpload' || n === 1) return 'pass';
      return n === 2 ? BUSY : { status: 404, code: 'NoSuchUpload' };
    };
    await expect(storage.put('key', chunks(11))).rejects.toMatchObject({
      kind: 'Transient',
      code: 'storage.unavailable',
      message: expect.stringContaining('NoSuchUpload'),
    });
  });

  test.for(['fails', 'is aborted', 'is refused a part'])(
    'that %s gives up its upload',
    async (how) => {
      const storage = open();
      const stop = new AbortController();
      async function* source() {
        yield* chunks(12);
        if (how === 'fails') throw new Error('the source failed');
        if (how !== 'is aborted') return;
        stop.abort(new Error('stopped'));
        await new Promise(() => undefined);
      }
      const refusal = { status: 403, code: 'AccessDenied' };
      const isRefused = how === 'is refused a part';
      decide = ({ operation, n }) =>
        isRefused && operation === 'UploadPart' && n === 2 ? refusal : 'pass';
      const putting = storage.put('key', source(), { signal: stop.signal });
      const why = { fails: 'the source failed', 'is aborted': 'stopped' }[how] ?? 's3:PutObject';
      await expect(putting).rejects.toThrow(why);
      expect(proxy.counts()).toMatchObject({ CreateMultipartUpload: 1, AbortMultipartUpload: 1 });
      expect(proxy.counts()['CompleteMultipartUpload']).toBeUndefined();
      expect(await keysOf(storage)).toEqual([]);
    },
  );

  test('ends with the store’s reason when it never recovers', async () => {
    decide = () => ({ status: 503, code: 'ServiceUnavailable' });
    await expect(open({ attempts: 3 }).put('key', chunks(1))).rejects.toMatchObject({
      kind: 'Transient',
      code: 'storage.unavailable',
    });
    expect(proxy.counts()).toEqual({ PutObject: 3 });
  });
});

describe('checksums', () => {
  function checksumsOf(operation: string): string[] {
    return proxy.seen
      .filter((request) => request.operation === operation)
      .flatMap(({ headers }) => Object.keys(headers))
      .filter((name) => name.startsWith('x-amz-checksum-'));
  }

  test('are sent to Amazon with every byte, and to nobody else', async () => {
    for (const isAws of [false, true]) {
      const storage = open({ isAws });
      await storage.put('small', chunks(1));
      await storage.put('large', chunks(11));
      const crcs = isAws ? ['x-amz-checksum-crc32'] : [];
      expect(checksumsOf('PutObject')).toEqual(crcs);
      expect(checksumsOf('UploadPart')).toEqual([...crcs, ...crcs, ...crcs]);
      expect(sha256([await bytesOf(await storage.get('large'))])).toBe(sha256(chunks(11)));
    }
  });
});

describe('a get', () => {
  beforeEach(() => open().put('key', chunks(10)));

  test('is one unbroken stream over connections that break, end early or hang', async () => {
    decide = ({ operation, n }) => {
      if (operation !== 'GetObject') return 'pass';
      if (n === 1) return { cutAfter: 3 * MIB };
      if (n === 2) return { hangAfter: 1 * MIB };
      if (n === 3) return BUSY;
      return n === 4 ? { cutAfter: 0 } : 'pass';
    };
    const stream = await open({ idleMs: 2_000 }).get('key');
    expect(sha256([await bytesOf(stream)])).toBe(sha256(chunks(10)));
    const asked = proxy.seen.filter(({ operation }) => operation === 'GetObject');
    expect(asked.length).toBe(5);
    const [, second] = asked;
    expect(second?.headers.range).toMatch(/^bytes=\d+-10485759$/);
    expect(second?.headers['if-match']).toMatch(/^"/);
  });

  test('of a range goes on inside of it', async () => {
    decide = ({ operation, n }) =>
      operation === 'GetObject' && n === 1 ? { cutAfter: MIB } : 'pass';
    const [start, end] = [2 * MIB + 5, 7 * MIB];
    const read = await bytesOf(await open().get('key', { start, end }));
    expect(sha256([read])).toBe(sha256([Buffer.concat([...chunks(10)]).subarray(start, end)]));
  });

  test('never gives bytes of two versions', async () => {
    const storage = open();
    decide = ({ operation, n }) =>
      operation === 'GetObject' && n === 1 ? { cutAfter: 3 * MIB } : 'pass';
    const stream = await storage.get('key');
    await storage.put('key', [Buffer.alloc(10 * MIB)]);
    await expect(bytesOf(stream)).rejects.toMatchObject({
      kind: 'Transient',
      code: 'storage.changed',
    });
  });

  test('of one version tells when there is another one', async () => {
    const storage = open();
    const info = await storage.head('key');
    if (info === null) throw new Error('nothing there');
    await bytesOf(await storage.get('key', { end: 10 }, info));
    await storage.put('key', [Buffer.from('new')]);
    await expect(storage.get('key', {}, info)).rejects.toMatchObject({
      kind: 'Permanent',
      code: 'storage.changed',
    });
  });

  test('is given up when nothing ever comes', async () => {
    decide = ({ operation }) => (operation === 'GetObject' ? { cutAfter: 0 } : 'pass');
    await expect(open({ attempts: 3 }).get('key').then(bytesOf)).rejects.toMatchObject({
      code: 'storage.unavailable',
    });
  });

  test('lets its connection go when nobody reads on', async () => {
    decide = ({ operation }) => (operation === 'GetObject' ? { hangAfter: MIB } : 'pass');
    const stream = await open().get('key');
    for await (const chunk of stream as AsyncIterable<Buffer>) if (chunk.length > 0) break;
    expect(stream.destroyed).toBe(true);
    await until(() => proxy.underWay() === 0);
  });

  test('that waits for its reader asks for nothing twice, and goes on after a cut', async () => {
    const stream = await open({ idleMs: 300 }).get('key');
    const iterator = stream.iterator();
    await iterator.next();
    // longer than a silent connection is kept
    await until(() => proxy.underWay() === 0);
    expect(proxy.counts()['GetObject']).toBe(1);
    let bytes = 0;
    for await (const chunk of iterator) bytes += (chunk as Buffer).length;
    expect(bytes).toBeGreaterThan(9 * MIB);
    expect(proxy.counts()['GetObject']).toBe(2);
  });

  test('does not take a bucket that is gone for an object that is', async () => {
    const storage = open({ bucket: 'no-such-bucket' });
    const gone = { kind: 'Transient', code: 'storage.no_bucket' };
    await expect(storage.get('key')).rejects.toMatchObject(gone);
    await expect(storage.head('key')).rejects.toMatchObject(gone);
    await expect(storage.get('key', { start: 1, end: 1 })).rejects.toMatchObject(gone);
    await expect(storage.delete('key')).rejects.toMatchObject(gone);
  });
});

describe('an answer of 404', () => {
  test('that is not about the object does not make it absent', async () => {
    const storage = open();
    await storage.put('key', [Buffer.from('1')]);
    decide = () => ({ status: 404, code: 'XAdminUserNotFound' });
    const refused = { kind: 'Transient', code: 'storage.credentials' };
    await expect(storage.get('key')).rejects.toMatchObject(refused);
    await expect(storage.delete('key')).rejects.toMatchObject(refused);
    await expect(storage.head('key')).rejects.toMatchObject({ kind: 'Transient' });
    decide = () => ({ status: 404, code: 'NotFound' });
    await expect(storage.get('key')).rejects.toMatchObject({ code: 'storage.unavailable' });
  });

  test('to a delete is a success where the object is absent', async () => {
    decide = ({ operation }) =>
      operation === 'DeleteObject' ? { status: 404, code: 'NoSuchKey' } : 'pass';
    await open().delete('key');
    expect(proxy.counts()).toEqual({ DeleteObject: 1 });
  });
});

describe('a bucket that others use, too', () => {
  test('shows only what we could have put', async () => {
    const whole = open({ anyKey: true });
    for (const key of ['live/a', 'live/b c', 'live/x//y', 'other/z']) {
      await whole.put(key, [Buffer.from(key)]);
    }
    await open({ prefix: 'live/' }).identity();
    expect(await keysOf(open({ prefix: 'live/' }))).toEqual(['a']);
    expect((await keysOf(whole)).length).toBe(5);
    expect((await bytesOf(await whole.get('live/b c'))).toString()).toBe('live/b c');
  });

  test('is listed to its end', async () => {
    const storage = open();
    const keys = Array.from({ length: 25 }, (_, n) => `k/${String(n).padStart(2, '0')}`);
    for (const key of keys) await storage.put(key, []);
    decide = ({ operation, url }) =>
      operation === 'ListObjectsV2' ? { url: `${url}&max-keys=10` } : 'pass';
    expect(await keysOf(storage, 'k/')).toEqual(keys);
    expect(proxy.counts()['ListObjectsV2']).toBe(3);
  });
});
