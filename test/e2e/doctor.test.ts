import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { Finding } from '../../src/main/doctor.ts';
import { startRedis } from '../support/redis.ts';
import type { TestRedis } from '../support/redis.ts';
import { startS3Proxy } from '../support/s3-proxy.ts';
import type { S3Fate, S3Proxy, S3ProxyOptions, S3Request } from '../support/s3-proxy.ts';
import { startS3Server } from '../support/s3-server.ts';
import type { S3Server } from '../support/s3-server.ts';
import { makeFolder, requireNothingLeft, runCli, startSluice } from '../support/server.ts';
import type { Environment, TestFolder } from '../support/server.ts';
import { startVersionedStore } from '../support/versioned-store.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import { logged } from '../support/worker-processes.ts';
import { LONG } from '../support/chaos.ts';

let redis: TestRedis;
let server: S3Server;
let folder: TestFolder;
let bucket = '';
let proxies: S3Proxy[] = [];

beforeAll(async () => {
  [redis, server, folder] = await Promise.all([startRedis(), startS3Server(), makeFolder()]);
  bucket = await server.createBucket();
});
afterEach(async () => {
  for (const proxy of proxies.splice(0)) await proxy[Symbol.asyncDispose]();
});
afterAll(async () => {
  await redis.stop();
  await server[Symbol.asyncDispose]();
  await folder[Symbol.asyncDispose]();
  requireNothingLeft();
});

function environment(more: Environment): Environment {
  return {
    REDIS_URL: redis.url,
    DATA_DIR: folder.path,
    HTTP_ADDR: '127.0.0.1:0',
    S3_BUCKET: bucket,
    S3_ENDPOINT: server.url,
    S3_REGION: 'us-east-1',
    AWS_ACCESS_KEY_ID: 'access',
    AWS_SECRET_ACCESS_KEY: 'secret',
    ...more,
  };
}

/** An endpoint that answers as `decide` says. */
async function lying(
  decide: (request: S3Request) => S3Fate,
  options: S3ProxyOptions = {},
): Promise<string> {
  const proxy = await startS3Proxy(server.url, decide, options);
  proxies.push(proxy);
  return proxy.url;
}

/** What `sluice doctor` finds, and how it ends. */
async function findings(env: Environment): Promise<{ code: number | null; found: Finding[] }> {
  const { code, stdout, stderr } = await runCli(['doctor', '--json'], env);
  if (stdout === '') throw new Error(`it printed nothing: ${stderr}`);
  const { ok, checks } = JSON.parse(stdout) as { ok: boolean; checks: Finding[] }; // our own words
  expect(ok).toBe(code === 0);
  return { code, found: checks };
}

/** What is wrong with the storage in the words of the doctor, and of a server that is started: a line each. */
async function troubles(more: Environment): Promise<string[]> {
  const env = environment(more);
  const [{ code, found }, started] = await Promise.all([findings(env), runCli(['start'], env)]);
  expect(code).toBe(1);
  const failed = found.filter(({ state }) => state === 'fail');
  expect(failed.map(({ check }) => check)).toEqual(['storage']);
  expect(started.code).toBe(1);
  const lines = started.stderr.split('\n').filter((line) => line !== '' && !line.startsWith('{'));
  expect(lines).toEqual([expect.stringMatching(/^sluice: The storage cannot be used\. /)]);
  return [failed[0]?.message ?? '', lines[0] ?? ''];
}

describe('a storage that cannot be used is told at the start and by the doctor, with the setting to mend', () => {
  const SAID: [string, S3Fate, string[]][] = [
    [
      'a wrong secret key',
      { status: 403, code: 'SignatureDoesNotMatch' },
      ['the secret key is wrong', 'AWS_SECRET_ACCESS_KEY'],
    ],
    [
      'an unknown access key',
      { status: 403, code: 'InvalidAccessKeyId' },
      ['the access key is unknown', 'AWS_ACCESS_KEY_ID'],
    ],
    [
      'credentials that expired',
      { status: 400, code: 'ExpiredToken' },
      ['have expired', 'Renew AWS_ACCESS_KEY_ID'],
    ],
    [
      'another region, as most say it',
      {
        status: 400,
        code: 'AuthorizationHeaderMalformed',
        more: '<Region>eu-central-1</Region>',
      },
      ['not in region us-east-1', 'Set S3_REGION to eu-central-1'],
    ],
    [
      'another region, as Amazon says it',
      {
        status: 301,
        code: 'PermanentRedirect',
        headers: { 'x-amz-bucket-region': 'eu-west-3' },
      },
      ['not in region us-east-1', 'Set S3_REGION to eu-west-3'],
    ],
    [
      'a clock that nothing mends',
      { status: 403, code: 'RequestTimeTooSkewed' },
      ["this machine's clock", 'timedatectl'],
    ],
  ];
  test.for(SAID)('%s', async ([, fate, words]) => {
    for (const line of await troubles({ S3_ENDPOINT: await lying(() => fate) })) {
      for (const word of words) expect(line).toContain(word);
    }
  });

  test('a bucket that may only be read', async () => {
    const endpoint = await lying(({ method }) =>
      method === 'PUT' ? { status: 403, code: 'AccessDenied' } : 'pass',
    );
    for (const line of await troubles({ S3_ENDPOINT: endpoint })) {
      expect(line).toContain('Allow s3:PutObject on the bucket');
    }
  });

  test('a bucket of which nothing may be deleted', async () => {
    const endpoint = await lying(({ method }) =>
      method === 'DELETE' ? { status: 403, code: 'AccessDenied' } : 'pass',
    );
    for (const line of await troubles({ S3_ENDPOINT: endpoint })) {
      expect(line).toContain('Allow s3:DeleteObject on the bucket');
    }
  });

  test('a bucket that does not exist', async () => {
    for (const line of await troubles({ S3_BUCKET: 'no-such-bucket' })) {
      expect(line).toContain("bucket 'no-such-bucket'");
      expect(line).toContain('Create it, or mend S3_BUCKET');
    }
  });

  test('an endpoint where nobody is', async () => {
    for (const line of await troubles({ S3_ENDPOINT: 'http://127.0.0.1:1' })) {
      expect(line).toContain('nobody answers. Start the store, or mend S3_ENDPOINT');
    }
  });

  test('an endpoint with a path is refused by its setting', async () => {
    for (const command of ['doctor', 'start']) {
      const env = environment({ S3_ENDPOINT: `${server.url}/${bucket}` });
      const { code, stderr } = await runCli([command], env);
      expect(code).toBe(1);
      expect(stderr).toContain('S3_ENDPOINT must be the URL of the store alone');
    }
  });
});

describe('a storage that works', () => {
  test('is told with what each step takes, and nothing is left in it', async () => {
    const fresh = await server.createBucket();
    const { code, found } = await findings(environment({ S3_BUCKET: fresh }));
    expect(code).toBe(0);
    expect(found).toContainEqual({
      check: 'storage',
      state: 'ok',
      message: `s3://${fresh}/ at ${server.url}`,
      ms: {
        put: expect.any(Number),
        get: expect.any(Number),
        list: expect.any(Number),
        delete: expect.any(Number),
      },
    });
    const listed = await (await fetch(`${server.url}/${fresh}?list-type=2`)).text();
    expect(listed).toContain('<KeyCount>0</KeyCount>');
  });

  test('is used although the clock is wrong, and the clock is named', async () => {
    const ahead = 40 * 60_000;
    const endpoint = await lying(
      ({ headers }) => {
        const [, date = '', time = ''] =
          /^(\d{8})T(\d{6})Z$/.exec(String(headers['x-amz-date'])) ?? [];
        const iso = `${date.replace(/(....)(..)/, '$1-$2-')}T${time.replace(/(..)(..)/, '$1:$2:')}Z`;
        const isOff = Math.abs(Date.parse(iso) - Date.now() - ahead) > 15 * 60_000;
        return isOff ? { status: 403, code: 'RequestTimeTooSkewed' } : 'pass';
      },
      { clockAheadMs: ahead },
    );
    const { code, found } = await findings(environment({ S3_ENDPOINT: endpoint }));
    expect(code).toBe(0);
    expect(found).toContainEqual({
      check: 'storage',
      state: 'warn',
      message: expect.stringContaining("clock is 40 min behind the store's"),
    });
  });

  test.runIf(LONG)(
    'in a bucket that keeps versions is told where these cannot be deleted, by the server as well',
    async () => {
      await using store = await startVersionedStore();
      const env = environment({ S3_ENDPOINT: store.url });
      const fine = await findings(env);
      expect(fine.found.filter(({ check }) => check === 'storage')).toEqual([
        expect.objectContaining({ state: 'ok' }),
      ]);
      expect(store.versions).toEqual([]);
      store.refuse = (what) => (what === 'LIST versions' ? 403 : null);
      const { code, found } = await findings(env);
      expect(code).toBe(0);
      const message = expect.stringContaining(
        'Allow s3:ListBucketVersions and s3:DeleteObjectVersion',
      );
      expect(found).toContainEqual({ check: 'storage', state: 'warn', message });
      await using sluice = await startSluice({
        dataDir: folder.path,
        redisUrl: redis.url,
        roles: ['api'],
        env,
      });
      const [said] = logged(sluice, 'storage could be better');
      expect(said).toMatchObject({ level: 'warn', warning: message });
    },
  );

  test('of TOS says which endpoint it takes instead', async () => {
    const { found } = await findings({
      REDIS_URL: redis.url,
      DATA_DIR: folder.path,
      TOS_BUCKET: 'bucket',
      TOS_ENDPOINT: 'https://tos-cn-x.volces.com',
      TOS_ACCESS_KEY: 'a',
      TOS_SECRET_KEY: 'b',
    });
    const messages = found.filter(({ check }) => check === 'storage').map((one) => one.message);
    expect(messages.join('\n')).toContain(
      'its twin for S3, https://tos-s3-cn-x.volces.com, is used',
    );
  });
});

describe('what stores do otherwise than they should', () => {
  test('one that ignores If-Match is told', async () => {
    const endpoint = await lying(({ headers }) =>
      headers['if-match'] === undefined ? 'pass' : { status: 200, code: 'ignored' },
    );
    const { code, found } = await findings(environment({ S3_ENDPOINT: endpoint }));
    expect(code).toBe(0);
    expect(found).toContainEqual({
      check: 'storage',
      state: 'warn',
      message: expect.stringContaining('ignores If-Match'),
    });
  });
});

describe('the folders of ALLOWED_BUCKETS', () => {
  test('are read and written, each', async () => {
    const others = await server.createBucket();
    const ALLOWED_BUCKETS = `s3://${others}/a,s3://no-such-bucket/b`;
    const { code, found } = await findings(environment({ ALLOWED_BUCKETS }));
    expect(code).toBe(1);
    const folders = found.filter(({ check }) => check === 'folder');
    expect(folders).toEqual([
      { check: 'folder', state: 'ok', message: `s3://${others}/a/` },
      { check: 'folder', state: 'fail', message: expect.stringContaining('no-such-bucket/b/') },
    ]);
  });

  test('that may only be read are told', async () => {
    const others = await server.createBucket();
    const endpoint = await lying(({ operation }) =>
      operation === 'CreateMultipartUpload' ? { status: 403, code: 'AccessDenied' } : 'pass',
    );
    const env = environment({ S3_ENDPOINT: endpoint, ALLOWED_BUCKETS: `s3://${others}/` });
    const { code, found } = await findings(env);
    expect(code).toBe(0);
    expect(found).toContainEqual({
      check: 'folder',
      state: 'warn',
      message: expect.stringMatching(/cannot be written: .*s3:PutObject/),
    });
  });
});

describe('Redis and engines', () => {
  test('that work are fine, in a line each', async () => {
    await using engine = await startVllmProcess();
    const env = { DATA_DIR: folder.path, ENGINE_URLS: engine.url };
    const { code, stdout } = await runCli(['doctor'], env);
    const lines = stdout.trim().split('\n');
    expect(lines).toEqual([
      expect.stringMatching(/^OK {4}redis {4}Redis \d.*appendfsync always.*\(write .* ms\)$/),
      expect.stringMatching(/^(OK|WARN) +disk .*\(fsync .* ms\)$/),
      expect.stringMatching(/^OK {4}storage .*\/storage \(put .*delete .* ms\)$/),
      expect.stringMatching(/^OK {4}engine {3}http:.*\(look .* ms\)$/),
    ]);
    expect(code).toBe(0);
  });

  test('that are not there fail, with the setting to mend', async () => {
    const { code, found } = await findings({
      DATA_DIR: folder.path,
      REDIS_URL: 'redis://127.0.0.1:1',
      ENGINE_URLS: 'http://127.0.0.1:1',
    });
    expect(code).toBe(1);
    const failed = found.filter(({ state }) => state === 'fail');
    expect(failed).toEqual([
      {
        check: 'redis',
        state: 'fail',
        message: expect.stringMatching(/ECONNREFUSED.*REDIS_URL/),
      },
      {
        check: 'engine',
        state: 'fail',
        message: expect.stringMatching(/ECONNREFUSED.*ENGINE_URLS/),
      },
    ]);
  });

  test('a Redis that may lose what it acknowledged is a warning', async () => {
    await using lax = await startRedis({ appendonly: false });
    const { code, found } = await findings({ DATA_DIR: folder.path, REDIS_URL: lax.url });
    expect(code).toBe(0);
    expect(found[0]).toMatchObject({ check: 'redis', state: 'warn' });
    expect(found[0]?.message).toContain('appendonly no');
  });
});
