import { randomBytes } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { loadSettings } from '../../config/load.ts';
import { storageSettings } from '../../src/main/storage-settings.ts';
import { createStorage } from '../../src/storage/index.ts';
import type { StorageSettings } from '../../src/storage/index.ts';
import { createS3Storage } from '../../src/storage/s3.ts';
import { s3Options } from '../../src/storage/s3-target.ts';
import { tosOptions } from '../../src/storage/tos.ts';
import '../support/localhost-dns.ts';
import { startS3Proxy } from '../support/s3-proxy.ts';
import type { S3Proxy, S3Request } from '../support/s3-proxy.ts';
import { ANY_KEYS, startS3Server } from '../support/s3-server.ts';
import type { S3Server } from '../support/s3-server.ts';
import { describeStorage } from '../support/storage-suite.ts';
import type { StorageUnderTest } from '../support/storage-suite.ts';

const IS_LIVE = process.env['STORAGE_LIVE'] !== undefined;

const COPIES = { whole: true, parts: true };
/** The server of the tests lists no uploads, and believes every signature. */
const FAUXQS = {
  nestedKeys: true,
  listsUploads: false,
  copies: COPIES,
  links: 'believed',
} as const;

async function openStorage(settings: StorageSettings): Promise<StorageUnderTest> {
  return { storage: await createStorage(settings), settings };
}

describe.skipIf(IS_LIVE)('a server of S3', () => {
  let server: S3Server;
  beforeAll(async () => {
    server = await startS3Server();
  });
  afterAll(() => server[Symbol.asyncDispose]());

  describeStorage('S3', {
    create: async () =>
      openStorage({
        type: 'S3',
        bucket: await server.createBucket(),
        prefix: '',
        endpoint: server.url,
        pathStyle: 'auto',
        credentials: ANY_KEYS,
      }),
    destroy: () => Promise.resolve(),
    flags: FAUXQS,
  });
});

/** What a store that only promises the protocol of S3 is never to be sent. */
function violations({ url, headers }: S3Request, buckets: readonly string[]): string[] {
  const host = headers.host ?? '';
  const [bucket = ''] = host.split('.');
  const found = Object.keys(headers).filter((name) =>
    /^x-amz-(trailer|sdk-checksum|checksum|decoded)|^content-md5$|^expect$/.test(name),
  );
  const encoding = headers['content-encoding'] ?? '';
  if (encoding !== '') found.push(`content-encoding ${encoding}`);
  const sha256 = String(headers['x-amz-content-sha256'] ?? '');
  if (sha256.startsWith('STREAMING')) found.push(sha256);
  if (!buckets.includes(bucket)) found.push(`host ${host}`);
  if (buckets.some((each) => url.startsWith(`/${each}`))) found.push(`path ${url}`);
  return found;
}

describe.skipIf(IS_LIVE)('a server of TOS', () => {
  const buckets: string[] = [];
  const found: string[] = [];
  let server: S3Server;
  let proxy: S3Proxy;
  beforeAll(async () => {
    server = await startS3Server();
    proxy = await startS3Proxy(server.url, (request) => {
      found.push(...violations(request, buckets));
      return 'pass';
    });
  });
  afterEach(() => {
    const all = found.splice(0);
    if (all.length > 0) throw new Error(`a store of TOS was sent: ${all.join(', ')}`);
  });
  afterAll(async () => {
    await proxy[Symbol.asyncDispose]();
    await server[Symbol.asyncDispose]();
  });

  async function settings(port = proxy.port) {
    const bucket = await server.createBucket();
    buckets.push(bucket);
    const endpoint = `http://tos-s3-cn-test.localhost:${port}`;
    const region = 'cn-test';
    const common = { bucket, prefix: 'sluice/test/', endpoint, region };
    return { ...common, credentials: ANY_KEYS };
  }

  describeStorage('TOS', {
    create: async () => openStorage({ type: 'TOS', ...(await settings()) }),
    createDirect: async () => {
      const port = Number(new URL(server.url).port);
      return openStorage({ type: 'TOS', ...(await settings(port)) });
    },
    destroy: () => Promise.resolve(),
    flags: FAUXQS,
  });

  test('would notice path style and checksums', async () => {
    const common = await settings();
    const path = await createStorage({ type: 'S3', ...common, pathStyle: 'true' });
    await path.head('key').catch(() => undefined);
    expect(found.splice(0)).toEqual([
      `host tos-s3-cn-test.localhost:${proxy.port}`,
      `path /${common.bucket}/sluice/test/key`,
      `host tos-s3-cn-test.localhost:${proxy.port}`,
      `path /${common.bucket}/`,
    ]);
    const url = `http://${common.bucket}.localhost:${proxy.port}/key`;
    await fetch(url, { method: 'PUT', body: 'x', headers: { 'x-amz-checksum-crc32': 'AAAAAA==' } });
    expect(found.splice(0)).toEqual(['x-amz-checksum-crc32']);
  });
});

describe.runIf(IS_LIVE)('a live bucket', () => {
  const settings = IS_LIVE ? storageSettings(loadSettings()) : null;

  describeStorage('live', {
    async create() {
      if (settings === null || settings.type === 'LOCAL') throw new Error('no bucket is set');
      const prefix = `${settings.prefix}test-${randomBytes(8).toString('hex')}/`;
      return openStorage({ ...settings, prefix });
    },
    async destroy({ settings: made }) {
      if (made.type === 'LOCAL') return;
      const options = made.type === 'S3' ? s3Options(made) : tosOptions(made).options;
      // what storages keep for themselves, too
      const all = createS3Storage({ ...options, anyKey: true });
      for await (const key of all.list('')) await all.delete(key);
      for await (const one of all.abandoned(0)) await all.abandon(one);
    },
    flags: {
      nestedKeys: process.env['STORAGE_NESTED_KEYS'] !== 'false',
      listsUploads: true,
      copies: process.env['STORAGE_COPIES'] === 'false' ? { whole: false, parts: false } : COPIES,
      links: 'checked',
    },
  });
});
