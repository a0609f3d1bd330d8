import { randomBytes } from 'node:crypto';
import { freemem } from 'node:os';
import { createS3Storage } from '../../src/storage/s3.ts';
import { startS3Proxy } from '../support/s3-proxy.ts';
import { ANY_KEYS, startS3Server } from '../support/s3-server.ts';
import type { Environment } from '../support/server.ts';

const MIB = 1024 ** 2;
/** The test server holds in memory what it is given, some of it twice while parts become an object. */
const MEMORY_FACTOR = 3;
const MOST_IN_MEMORY = 2 * 1024 * MIB;

/** Where a bench keeps its objects. */
export interface BenchStore extends AsyncDisposable {
  endpoint: string;
  bucket: string;
  prefix: string;
  /** What it is, for people. */
  name: string;
  keys: { accessKeyId: string; secretAccessKey: string };
  /** Why so many bytes do not fit; null: they do. */
  refusal(bytes: number): string | null;
}

/** The bucket that S3_ENDPOINT, S3_BUCKET and AWS_* name, below a random prefix; else one of a server of our own. */
export async function openBenchStore(): Promise<BenchStore> {
  const { S3_ENDPOINT: endpoint, S3_BUCKET: bucket, S3_REGION: region = 'us-east-1' } = process.env;
  const { AWS_ACCESS_KEY_ID: id = '', AWS_SECRET_ACCESS_KEY: secret = '' } = process.env;
  const prefix = `bench-${randomBytes(6).toString('hex')}/`;
  if (endpoint === undefined || bucket === undefined) return openOwn(prefix);
  if (!endpoint.startsWith('http://')) {
    throw new Error(
      'S3_ENDPOINT has to begin with http://: requests are counted on their way to it.',
    );
  }
  const keys = { accessKeyId: id, secretAccessKey: secret };
  const where = { endpoint, bucket, prefix, region, forcePathStyle: true, isAws: false };
  return {
    endpoint,
    bucket,
    prefix,
    keys,
    name: `${bucket} at ${endpoint}`,
    refusal: () => null,
    async [Symbol.asyncDispose]() {
      const storage = createS3Storage({ ...where, credentials: keys, anyKey: true });
      for await (const key of storage.list('')) await storage.delete(key);
    },
  };
}

async function openOwn(prefix: string): Promise<BenchStore> {
  const server = await startS3Server();
  return {
    endpoint: server.url,
    bucket: await server.createBucket(),
    prefix,
    keys: ANY_KEYS,
    name: 'fauxqs, which keeps objects in memory',
    refusal(bytes) {
      const most = Math.min(MOST_IN_MEMORY, freemem() / MEMORY_FACTOR);
      if (bytes <= most) return null;
      const [wanted, room] = [bytes, most].map((each) => `${Math.round(each / MIB)} MiB`);
      return `${wanted} do not fit: the test server keeps objects in memory and holds ${room}. Set S3_ENDPOINT, S3_BUCKET, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a bucket that does.`;
    },
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  };
}

/** Settings of a server whose files lie there. */
export function storeEnvironment(store: BenchStore, endpoint: string): Environment {
  const { S3_PART_SIZE: partSize } = process.env;
  return {
    STORAGE_TYPE: 'S3',
    S3_BUCKET: store.bucket,
    S3_PREFIX: store.prefix,
    S3_ENDPOINT: endpoint,
    AWS_ACCESS_KEY_ID: store.keys.accessKeyId,
    AWS_SECRET_ACCESS_KEY: store.keys.secretAccessKey,
    ...(partSize === undefined ? {} : { S3_PART_SIZE: partSize }),
  };
}

/** A request that stores pay and limit writes by. */
export interface CountedPut {
  /** ms since 1970, when all of it had come. */
  at: number;
  operation: string;
  isSegment: boolean;
}

const PUTS = new Set([
  'PutObject',
  'CreateMultipartUpload',
  'UploadPart',
  'CompleteMultipartUpload',
]);

export interface CountingProxy extends AsyncDisposable {
  url: string;
  /** Since it was called last. */
  takePuts(): CountedPut[];
  /** GETs of objects since it was called last. */
  takeGets(): number;
}

/** Passes on what is sent to a store, and counts what writes. */
export async function startCountingProxy(target: string): Promise<CountingProxy> {
  let puts: CountedPut[] = [];
  let gets = 0;
  const proxy = await startS3Proxy(target, ({ operation, url }) => {
    const isSegment = url.includes('/segments/');
    if (PUTS.has(operation)) puts.push({ at: Date.now(), operation, isSegment });
    if (operation === 'GetObject') gets += 1;
    return 'pass';
  });
  return {
    url: proxy.url,
    takePuts() {
      const taken = puts;
      puts = [];
      return taken;
    },
    takeGets() {
      const taken = gets;
      gets = 0;
      return taken;
    },
    [Symbol.asyncDispose]: () => proxy[Symbol.asyncDispose](),
  };
}
