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

const MIB = 2 ** 20;

let server: S3Server;
let proxy: S3Proxy;
let bucket = '';
let decide: (request: S3Request) => S3Fate = () => 'pass';
/** Sees no proxy. */
let direct: S3Storage;

beforeAll(async () => {
  server = await startS3Server();
});
afterAll(() => server[Symbol.asyncDispose]());
beforeEach(async () => {
  decide = () => 'pass';
  bucket = await server.createBucket();
  proxy = await startS3Proxy(server.url, (request) => decide(request));
  direct = open({ endpoint: server.url });
});
afterEach(() => proxy[Symbol.asyncDispose]());

function open(more: Partial<S3Options> = {}): S3Storage {
  return createS3Storage({
    bucket,
    prefix: 'p/',
    endpoint: proxy.url,
    region: 'us-east-1',
    forcePathStyle: true,
    isAws: false,
    credentials: ANY_KEYS,
    ...more,
  });
}

/** Puts objects of so many mebibytes, each of another letter, and returns their keys and the digest of all. */
async function parts(...mebibytes: number[]): Promise<{ keys: string[]; sha256: string }> {
  const whole = createHash('sha256');
  const keys: string[] = [];
  for (const [n, size] of mebibytes.entries()) {
    const bytes = Buffer.alloc(size * MIB, 97 + n);
    whole.update(bytes);
    keys.push(`part-${n}`);
    await direct.put(`part-${n}`, [bytes]);
  }
  return { keys, sha256: whole.digest('hex') };
}

async function digestOf(key: string): Promise<string> {
  return createHash('sha256')
    .update(await bytesOf(await direct.get(key)))
    .digest('hex');
}

function sent(operation: string): S3Request[] {
  return proxy.seen.filter((request) => request.operation === operation);
}

describe('long parts', () => {
  test('are copied by the store, each as it was when its bytes were read', async () => {
    const { keys, sha256 } = await parts(6, 5, 1);
    const joined = await open().concat(keys, 'a_b');
    expect(joined).toEqual({ bytes: 12 * MIB, sha256, byStore: true });
    expect(await digestOf('a_b')).toBe(sha256);
    expect(proxy.counts()).toEqual({
      HeadObject: 3,
      CreateMultipartUpload: 1,
      UploadPartCopy: 3,
      GetObject: 3,
      CompleteMultipartUpload: 1,
    });
    for (const { headers } of sent('UploadPartCopy')) {
      const source = String(headers['x-amz-copy-source']).replace(`${bucket}/p/`, '');
      const { etag } = (await direct.head(source)) ?? {};
      expect(headers['x-amz-copy-source-if-match']).toBe(etag);
      const read = sent('GetObject').find(({ url }) => url.includes(source));
      expect(read?.headers['if-match']).toBe(etag);
    }
  });

  test('of Amazon are begun with checksums', async () => {
    const { keys, sha256 } = await parts(5, 1);
    const joined = await open({ isAws: true }).concat(keys, 'to');
    expect(joined).toMatchObject({ byStore: true, sha256 });
    expect(sent('CreateMultipartUpload')[0]?.headers['x-amz-checksum-algorithm']).toBe('CRC32');
  });

  test('come through when every third request fails', async () => {
    const { keys, sha256 } = await parts(6, 6, 6, 6, 6, 1);
    let count = 0;
    const fates: S3Fate[] = [{ status: 503, code: 'SlowDown' }, 'reset', 'lose'];
    decide = () => {
      count += 1;
      return count % 3 === 0 ? (fates[(count / 3) % 3] ?? 'pass') : 'pass';
    };
    expect(await open().concat(keys, 'to')).toMatchObject({ sha256, byStore: true });
    expect(await digestOf('to')).toBe(sha256);
  });

  test('that were replaced meanwhile are not joined', async () => {
    const { keys } = await parts(6, 6, 1);
    const replaced: S3Fate = { status: 412, code: 'PreconditionFailed' };
    for (const operation of ['UploadPartCopy', 'GetObject']) {
      decide = (request) =>
        request.operation === operation && /part-1/.test(JSON.stringify(request))
          ? replaced
          : 'pass';
      await expect(open().concat(keys, 'to')).rejects.toMatchObject({
        kind: 'Transient',
        code: 'storage.changed',
      });
      expect(await direct.head('to')).toBeNull();
    }
    expect(proxy.counts()['AbortMultipartUpload']).toBe(2);
  });

  test('that vanish meanwhile are told', async () => {
    const { keys } = await parts(6, 6, 1);
    decide = ({ operation, n }) =>
      operation === 'UploadPartCopy' && n === 2 ? { status: 404, code: 'NoSuchKey' } : 'pass';
    await expect(open().concat(keys, 'to')).rejects.toMatchObject({ code: 'storage.not_found' });
    expect(proxy.counts()).toMatchObject({ AbortMultipartUpload: 1 });
  });

  test('leave no upload behind when the store fails for good', async () => {
    const { keys } = await parts(6, 6, 6, 1);
    decide = ({ operation, headers }) => {
      if (operation !== 'UploadPartCopy' || !/part-2/.test(JSON.stringify(headers))) return 'pass';
      return { status: 500, code: 'InternalError' };
    };
    await expect(open({ attempts: 2 }).concat(keys, 'to')).rejects.toMatchObject({
      kind: 'Transient',
      code: 'storage.unavailable',
    });
    expect(proxy.counts()).toMatchObject({ AbortMultipartUpload: 1 });
    expect(await keysOf(direct)).toEqual(keys);
  });
});

test('a join that is aborted while nothing answers rejects with the reason', async () => {
  const { keys } = await parts(5, 1);
  for (const operation of ['HeadObject', 'GetObject']) {
    const stop = new AbortController();
    const reason = new Error('cancelled');
    decide = (request) => {
      if (request.operation !== operation) return 'pass';
      stop.abort(reason);
      return 'hang';
    };
    await expect(open().concat(keys, 'to', { signal: stop.signal })).rejects.toBe(reason);
  }
  expect(proxy.counts()).toMatchObject({ AbortMultipartUpload: 1 });
});

describe('a store that does not copy', () => {
  test.for([
    { status: 501, code: 'NotImplemented' },
    { status: 405, code: 'MethodNotAllowed' },
    // As one that does not know the header, and took an empty body.
    { status: 200, code: '' },
  ])('and says $status $code is asked once, and sent the bytes', async (fate) => {
    const { keys, sha256 } = await parts(6, 1);
    decide = ({ operation }) => (operation.includes('Copy') ? fate : 'pass');
    const storage = open();
    let begun = 0;
    function inspect() {
      begun += 1;
      return { see: () => undefined, end: () => undefined };
    }
    for (const to of ['first', 'second']) {
      expect(await storage.concat(keys, to, { inspect })).toEqual({
        bytes: 7 * MIB,
        sha256,
        byStore: false,
      });
      expect(await digestOf(to)).toBe(sha256);
    }
    expect(await storage.copy('part-1', 'one')).toMatchObject({ bytes: MIB, byStore: false });
    const { UploadPartCopy, CopyObject, AbortMultipartUpload, GetObject } = proxy.counts();
    expect(UploadPartCopy).toBe(fate.status === 200 ? 3 : 1);
    expect(CopyObject).toBeUndefined();
    expect(AbortMultipartUpload).toBe(1);
    // Found out before anything was read in vain.
    expect(GetObject).toBe(5);
    expect(begun).toBe(2);
  });

  test('as a whole object is sent its bytes', async () => {
    const { keys, sha256 } = await parts(2);
    decide = ({ operation }) =>
      operation === 'CopyObject' ? { status: 501, code: 'NotImplemented' } : 'pass';
    expect(await open().concat(keys, 'to')).toMatchObject({ sha256, byStore: false });
    expect(await digestOf('to')).toBe(sha256);
  });

  test('these, by their rights or sizes, is asked for others', async () => {
    const { keys, sha256 } = await parts(6, 1);
    for (const [operation, fate] of [
      ['UploadPartCopy', { status: 403, code: 'AccessDenied' }],
      ['CompleteMultipartUpload', { status: 400, code: 'InvalidPart' }],
    ] as const) {
      let refused = 0;
      decide = (request) => {
        if (request.operation !== operation || refused > 0) return 'pass';
        refused += 1;
        return fate;
      };
      const storage = open();
      expect(await storage.concat(keys, 'to')).toMatchObject({ sha256, byStore: false });
      expect(await digestOf('to')).toBe(sha256);
      expect(await storage.concat(keys, 'to')).toMatchObject({ sha256, byStore: true });
    }
  });

  test('parts of different sizes is sent them', async () => {
    const r2 = open({ equalParts: true });
    const uneven = await parts(6, 5, 1);
    expect(await r2.concat(uneven.keys, 'to')).toMatchObject({ byStore: false });
    const long = await parts(5, 6);
    expect(await r2.concat(long.keys, 'to')).toMatchObject({ byStore: false });
    expect(proxy.counts()['UploadPartCopy']).toBeUndefined();
    const even = await parts(5, 5, 1);
    const joined = await r2.concat(even.keys, 'to');
    expect(joined).toMatchObject({ byStore: true, sha256: even.sha256 });
    expect(await digestOf('to')).toBe(even.sha256);
  });

  test('is not asked for parts that are too short', async () => {
    const { keys, sha256 } = await parts(5, 4, 5);
    expect(await open().concat(keys, 'to')).toMatchObject({ sha256, byStore: false });
    expect(proxy.counts()['UploadPartCopy']).toBeUndefined();
    expect(await digestOf('to')).toBe(sha256);
  });
});

describe('one part', () => {
  test('is copied whole, and only what was read', async () => {
    const { keys, sha256 } = await parts(1);
    const joined = await open().concat(keys, 'to');
    expect(joined).toEqual({ bytes: MIB, sha256, byStore: true });
    expect(proxy.counts()).toEqual({ HeadObject: 1, GetObject: 1, CopyObject: 1 });
    expect(sent('CopyObject')[0]?.headers).toMatchObject({
      'x-amz-copy-source': `${bucket}/p/part-0`,
      'x-amz-copy-source-if-match': (await direct.head('part-0'))?.etag,
    });
    expect(await digestOf('to')).toBe(sha256);
  });

  test('that was replaced meanwhile is not copied', async () => {
    await parts(1);
    decide = ({ operation }) =>
      operation === 'CopyObject' ? { status: 412, code: 'PreconditionFailed' } : 'pass';
    await expect(open().copy('part-0', 'to')).rejects.toMatchObject({ code: 'storage.changed' });
    expect(await direct.head('to')).toBeNull();
  });

  test('is asked for again when its answer is lost', async () => {
    const { sha256 } = await parts(1);
    decide = ({ operation, n }) => (operation === 'CopyObject' && n === 1 ? 'lose' : 'pass');
    expect(await open().copy('part-0', 'to')).toMatchObject({ sha256, byStore: true });
    expect(proxy.counts()['CopyObject']).toBe(2);
  });
});
