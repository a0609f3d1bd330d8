import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  createBatch,
  download,
  expectExact,
  makeInput,
  openaiClient,
  untilFinal,
  upload,
} from '../support/batch.ts';
import type { Input } from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import type { TestRedis } from '../support/redis.ts';
import { startS3Proxy } from '../support/s3-proxy.ts';
import { ANY_KEYS, startS3Server } from '../support/s3-server.ts';
import type { S3Server } from '../support/s3-server.ts';
import { makeFolder, requireNothingLeft, runCli, startSluice } from '../support/server.ts';
import type { Environment } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

let server: S3Server;
let engine: VllmProcess;
let redis: TestRedis;
let bucket: string;
beforeAll(async () => {
  server = await startS3Server();
  engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  redis = await startRedis();
  bucket = await server.createBucket();
});
afterAll(async () => {
  await redis.stop();
  await engine.close();
  await server[Symbol.asyncDispose]();
  requireNothingLeft();
});

/** What differs between two runs of one input: ids that are made anew, and times. */
function comparable(text: string): string {
  return text
    .replaceAll(/"(id|request_id)":"[^"]*"/g, '"$1":""')
    .replaceAll(/"created":\d+/g, '"created":0');
}

/** Runs an input, a line of which its engine refuses, and returns the two files. */
async function run(url: string, input: Input): Promise<{ output: string; error: string }> {
  const { id } = await createBatch(url, await upload(url, input.text));
  const batch = await untilFinal(url, id, 60_000);
  expect(batch.status).toBe('completed');
  await expectExact(url, batch, input);
  return {
    output: await download(url, batch.output_file_id),
    error: batch.error_file_id === undefined ? '' : await download(url, batch.error_file_id),
  };
}

function keysIn(environment: Environment): Environment {
  return {
    ...environment,
    AWS_ACCESS_KEY_ID: ANY_KEYS.accessKeyId,
    AWS_SECRET_ACCESS_KEY: ANY_KEYS.secretAccessKey,
  };
}

async function listBucket(bucket: string): Promise<string[]> {
  const listed = await (await fetch(`${server.url}/${bucket}?list-type=2`)).text();
  return [...listed.matchAll(/<Key>(.*?)<\/Key>/g)].map(([, key = '']) => key);
}

test('STORAGE_TYPE=S3: processes with folders of their own share a bucket, and write what a folder would hold', async () => {
  await using proxy = await startS3Proxy(server.url);
  await using one = await makeFolder();
  await using two = await makeFolder();
  await using three = await makeFolder();
  const env = keysIn({
    STORAGE_TYPE: 'S3',
    S3_BUCKET: bucket,
    S3_ENDPOINT: proxy.url,
    S3_PREFIX: 'sluice/test',
    S3_PART_SIZE: '5MiB',
  });
  const shared = { redisUrl: redis.url, engines: [engine.url], env, timeoutMs: 60_000 };
  await using api = await startSluice({ ...shared, dataDir: one.path, roles: ['api'] });
  const roles = ['worker', 'sweeper'];
  await using worker = await startSluice({ ...shared, dataDir: two.path, roles });

  const input = makeInput(500, { padding: 22_000 });
  const inBucket = await run(api.url, input);
  // the input alone is longer than two parts
  const parts = proxy.seen.filter(({ operation }) => operation === 'UploadPart');
  expect(parts.filter(({ bytes }) => bytes === 5 * 2 ** 20).length).toBeGreaterThanOrEqual(2);
  expect(Math.max(...parts.map(({ bytes }) => bytes))).toBe(5 * 2 ** 20);
  const keys = await listBucket(bucket);
  expect(keys.filter((key) => !key.startsWith('sluice/test/'))).toEqual([]);
  expect(keys.length).toBeGreaterThan(2);

  const range = { headers: { range: 'bytes=100-199' } };
  const client = openaiClient(api.url);
  const [file] = (await client.files.list({ purpose: 'batch' })).data;
  if (file === undefined) throw new Error('no input file is listed');
  const part = await client.files.content(file.id, range);
  expect(await part.text()).toBe(input.text.slice(100, 200));

  await using local = await startSluice({
    dataDir: three.path,
    engines: [engine.url],
    timeoutMs: 60_000,
  });
  const inFolder = await run(local.url, input);
  expect(comparable(inBucket.output)).toBe(comparable(inFolder.output));
  expect(comparable(inBucket.error)).toBe(comparable(inFolder.error));
  for (const each of [api, worker, local]) expect(await each.stop()).toMatchObject({ code: 0 });
});

test('another bucket or prefix than the one that Redis knows is refused', async () => {
  await using folder = await makeFolder();
  const known = { S3_BUCKET: bucket, S3_ENDPOINT: server.url, S3_PREFIX: 'sluice/test' };
  const others = [{ S3_PREFIX: 'two' }, { S3_BUCKET: await server.createBucket() }];
  await Promise.all(
    others.map(async (other) => {
      const { code, stderr } = await runCli(['start'], {
        ...keysIn({ ...known, ...other }),
        DATA_DIR: folder.path,
        REDIS_URL: redis.url,
        HTTP_ADDR: '127.0.0.1:0',
      });
      expect(code).toBe(1);
      expect(stderr).toContain('This Redis belongs to the storage');
    }),
  );
});

test('TOS_BUCKET: a batch runs in a bucket that is named by the host', async () => {
  await using folder = await makeFolder();
  const below = await server.createBucket();
  const { port } = new URL(server.url);
  await using sluice = await startSluice({
    dataDir: folder.path,
    engines: [engine.url],
    timeoutMs: 60_000,
    env: {
      TOS_BUCKET: below,
      TOS_ENDPOINT: `http://tos-s3-cn-test.localhost:${port}`,
      TOS_REGION: 'cn-test',
      TOS_PREFIX: 'below',
      TOS_ACCESS_KEY: ANY_KEYS.accessKeyId,
      TOS_SECRET_KEY: ANY_KEYS.secretAccessKey,
      NODE_OPTIONS: `--import=${new URL('../support/localhost-dns.ts', import.meta.url).href}`,
    },
  });
  await run(sluice.url, makeInput(200));
  const keys = await listBucket(below);
  expect(keys.length).toBeGreaterThan(2);
  expect(keys.filter((key) => !key.startsWith('below/'))).toEqual([]);
  expect(await sluice.stop()).toMatchObject({ code: 0 });
});
