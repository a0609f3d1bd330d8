import { Readable } from 'node:stream';
import { describe, expect, test } from 'vitest';
import { loadSettings } from '../../config/load.ts';
import { SluiceError } from '../../src/domain/errors.ts';
import { describeStorage, storageSettings } from '../../src/main/storage-settings.ts';
import { elect } from '../../src/storage/s3-identity.ts';
import { gatherParts, MOST_PARTS, mostBytes, partBytes } from '../../src/storage/s3-parts.ts';
import { s3Options } from '../../src/storage/s3-target.ts';
import { tosOptions } from '../../src/storage/tos.ts';

const MIB = 2 ** 20;
const KEYS = { AWS_ACCESS_KEY_ID: 'id', AWS_SECRET_ACCESS_KEY: 'hunter2' };
const TOS_KEYS = { TOS_ACCESS_KEY: 'id', TOS_SECRET_KEY: 'hunter2' };

function storageOf(environment: Record<string, string>) {
  return storageSettings(loadSettings(environment));
}

function refusal(environment: Record<string, string>): string {
  try {
    loadSettings(environment);
  } catch (error) {
    if (error instanceof SluiceError) return error.message;
    throw error;
  }
  throw new Error('it should have been refused');
}

describe('STORAGE_TYPE', () => {
  const s3 = { S3_BUCKET: 'bucket', S3_ENDPOINT: 'http://minio:9000' };
  const tos = { TOS_BUCKET: 'bucket', TOS_REGION: 'cn-beijing', ...TOS_KEYS };

  test('AUTO takes the bucket that is set, and else the folder', () => {
    expect(storageOf({}).type).toBe('LOCAL');
    expect(storageOf(s3).type).toBe('S3');
    expect(storageOf(tos).type).toBe('TOS');
    expect(refusal({ ...s3, ...tos })).toMatch(/STORAGE_TYPE=S3 or STORAGE_TYPE=TOS/);
  });

  test('says which one is meant, in either case', () => {
    expect(storageOf({ ...s3, ...tos, STORAGE_TYPE: 'S3' }).type).toBe('S3');
    expect(storageOf({ ...s3, ...tos, STORAGE_TYPE: 'tos' }).type).toBe('TOS');
    const settings = storageOf({ ...s3, ...tos, STORAGE_TYPE: 'local', DATA_DIR: '/data' });
    expect(settings).toEqual({ type: 'LOCAL', directory: '/data/storage' });
  });
});

describe('what does not fit together is refused with the mend', () => {
  const aws = { S3_BUCKET: 'bucket', S3_REGION: 'us-west-2' };
  const tos = { TOS_BUCKET: 'bucket', TOS_REGION: 'cn-x', ...TOS_KEYS };
  test.for<[Record<string, string>, string]>([
    [{ STORAGE_TYPE: 'S3', S3_REGION: 'x1' }, 'S3_BUCKET'],
    [{ S3_BUCKET: 'bucket' }, 'S3_REGION'],
    [{ S3_BUCKET: 'bucket', S3_ENDPOINT: 'https://s3.us-west-2.amazonaws.com' }, 'S3_REGION'],
    [{ ...aws, AWS_ACCESS_KEY_ID: 'id' }, 'AWS_SECRET_ACCESS_KEY'],
    [{ ...aws, AWS_SECRET_ACCESS_KEY: 'x' }, 'AWS_ACCESS_KEY_ID'],
    [{ STORAGE_TYPE: 'TOS', TOS_REGION: 'cn-x', ...TOS_KEYS }, 'TOS_BUCKET'],
    [{ TOS_BUCKET: 'bucket', ...TOS_KEYS }, 'TOS_REGION'],
    [{ ...tos, TOS_SECRET_KEY: '' }, 'TOS_SECRET_KEY'],
    [{ ...tos, TOS_BUCKET: 'a.bucket' }, 'a dot'],
  ])('%o: %s', ([environment, mend]) => {
    expect(refusal(environment)).toMatch(/^One setting is wrong/);
    expect(refusal(environment)).toContain(mend);
  });

  test('but not where it is not used', () => {
    expect(storageOf({ STORAGE_TYPE: 'LOCAL', S3_BUCKET: 'bucket' }).type).toBe('LOCAL');
  });
});

describe('keys of several owners are not mixed', () => {
  const bucket = { S3_BUCKET: 'bucket', S3_ENDPOINT: 'http://minio:9000' };
  const ours = { STORAGE_AWS_ACCESS_KEY_ID: 'id', STORAGE_AWS_SECRET_ACCESS_KEY: 'hunter2' };
  const credentials = { accessKeyId: 'id', secretAccessKey: 'hunter2' };

  function keysOf(environment: Record<string, string>) {
    const settings = storageOf(environment);
    return settings.type === 'LOCAL' ? null : settings.credentials;
  }

  test('a token or secret of the environment does not join another id', () => {
    const theirs = { AWS_SESSION_TOKEN: 'token', AWS_SECRET_ACCESS_KEY: 'theirs' };
    expect(keysOf({ ...bucket, ...ours, ...theirs })).toEqual(credentials);
    expect(keysOf({ ...bucket, ...ours, ...theirs, AWS_ACCESS_KEY_ID: ' ' })).toEqual(credentials);
    const whole = { ...theirs, AWS_ACCESS_KEY_ID: 'them' };
    expect(keysOf({ ...bucket, ...ours, ...whole })).toEqual({
      accessKeyId: 'them',
      secretAccessKey: 'theirs',
      sessionToken: 'token',
    });
    const tos = {
      TOS_BUCKET: 'bucket',
      TOS_REGION: 'cn-x',
      STORAGE_TOS_ACCESS_KEY: 'id',
      STORAGE_TOS_SECRET_KEY: 'hunter2',
      TOS_SECRET_KEY: 'theirs',
    };
    expect(keysOf(tos)).toEqual(credentials);
  });

  test('half a pair is refused, whatever lies beside it', () => {
    const half = { ...bucket, AWS_ACCESS_KEY_ID: 'them', STORAGE_AWS_SECRET_ACCESS_KEY: 'hunter2' };
    expect(refusal(half)).toContain('belong together');
  });
});

describe('other names', () => {
  test('those of AIBrix are read', () => {
    const s3 = storageOf({
      STORAGE_AWS_BUCKET: 'bucket',
      STORAGE_AWS_REGION: 'us-west-2',
      STORAGE_AWS_ENDPOINT_URL: 'http://minio:9000',
      STORAGE_AWS_ACCESS_KEY_ID: 'id',
      STORAGE_AWS_SECRET_ACCESS_KEY: 'hunter2',
    });
    expect(s3).toMatchObject({
      type: 'S3',
      bucket: 'bucket',
      region: 'us-west-2',
      endpoint: 'http://minio:9000',
      credentials: { accessKeyId: 'id', secretAccessKey: 'hunter2' },
    });
    const tos = storageOf({
      STORAGE_TOS_BUCKET: 'bucket',
      STORAGE_TOS_REGION: 'cn-x',
      STORAGE_TOS_ENDPOINT: 'https://tos-s3-cn-x.volces.com',
      STORAGE_TOS_ACCESS_KEY: 'id',
      STORAGE_TOS_SECRET_KEY: 'hunter2',
    });
    expect(tos).toMatchObject({
      type: 'TOS',
      bucket: 'bucket',
      region: 'cn-x',
      endpoint: 'https://tos-s3-cn-x.volces.com',
      credentials: { accessKeyId: 'id', secretAccessKey: 'hunter2' },
    });
  });

  test('those of Amazon’s SDK are read, and ours go first', () => {
    const sdk = { AWS_ENDPOINT_URL: 'http://a:1', AWS_ENDPOINT_URL_S3: 'http://b:2' };
    const region = { AWS_DEFAULT_REGION: 'r1', AWS_REGION: 'r2' };
    const common = { S3_BUCKET: 'bucket', ...sdk, ...region };
    expect(storageOf(common)).toMatchObject({ endpoint: 'http://b:2', region: 'r2' });
    const ours = { S3_ENDPOINT: 'http://c:3', S3_REGION: 'r3' };
    expect(storageOf({ ...common, ...ours })).toMatchObject({
      endpoint: 'http://c:3',
      region: 'r3',
    });
  });

  test('a refusal names the one that was set, and no secret', () => {
    const message = refusal({ S3_BUCKET: 'bucket', AWS_ENDPOINT_URL: 'http://host/path' });
    expect(message).toContain('AWS_ENDPOINT_URL must be');
    expect(refusal({ STORAGE_TOS_SECRET_KEY: 'hunter2 hunter2' })).not.toContain('hunter2');
  });
});

describe('a bucket of S3', () => {
  const target = { bucket: 'bucket', prefix: '', pathStyle: 'auto' } as const;
  test.for<[string | undefined, boolean, boolean, boolean, string]>([
    // endpoint, path style, Amazon's own, equal parts, region
    [undefined, false, true, false, 'us-east-1'],
    ['https://s3.eu-west-1.amazonaws.com', false, true, false, 'us-east-1'],
    ['https://s3.cn-north-1.amazonaws.com.cn', false, true, false, 'us-east-1'],
    ['http://127.0.0.1:9000', true, false, false, 'us-east-1'],
    ['https://storage.googleapis.com', true, false, false, 'us-east-1'],
    ['https://0123.r2.cloudflarestorage.com', true, false, true, 'auto'],
    ['https://oss-cn-hangzhou.aliyuncs.com', false, false, false, 'us-east-1'],
    ['https://cos.ap-guangzhou.myqcloud.com', false, false, false, 'us-east-1'],
    ['https://notamazonaws.com', true, false, false, 'us-east-1'],
  ])('at %s', ([endpoint, forcePathStyle, isAws, equalParts, region]) => {
    expect(s3Options({ ...target, endpoint })).toMatchObject({
      forcePathStyle,
      isAws,
      equalParts,
      region,
    });
  });

  test('S3_PATH_STYLE says otherwise', () => {
    const environment = { S3_BUCKET: 'bucket', S3_ENDPOINT: 'http://minio:9000', ...KEYS };
    for (const [value, expected] of [
      ['auto', true],
      ['true', true],
      ['false', false],
    ] as const) {
      const settings = storageOf({ ...environment, S3_PATH_STYLE: value });
      if (settings.type !== 'S3') throw new Error('no S3');
      expect(s3Options(settings).forcePathStyle).toBe(expected);
    }
  });

  test('S3_PREFIX ends in a slash, S3_PART_SIZE is handed on, and people see where it is', () => {
    const settings = storageOf({
      S3_BUCKET: 'bucket',
      S3_ENDPOINT: 'minio:9000',
      S3_PREFIX: 'a/b',
      S3_PART_SIZE: '16MiB',
    });
    expect(settings).toMatchObject({ prefix: 'a/b/', partBytes: 16 * MIB });
    expect(describeStorage(settings)).toBe('s3://bucket/a/b/ at https://minio:9000');
  });
});

describe('a bucket of TOS', () => {
  const target = {
    bucket: 'bucket',
    prefix: '',
    credentials: { accessKeyId: 'id', secretAccessKey: 'x' },
  };
  test.for<[string | undefined, string | undefined, string, string, boolean]>([
    // endpoint, region, endpoint and region that are used, whether the log says so
    [undefined, 'cn-x', 'https://tos-s3-cn-x.volces.com', 'cn-x', false],
    ['https://tos-cn-x.volces.com', undefined, 'https://tos-s3-cn-x.volces.com', 'cn-x', true],
    ['https://tos-cn-x.ivolces.com', 'cn-y', 'https://tos-s3-cn-x.ivolces.com', 'cn-y', true],
    ['https://tos-s3-cn-x.volces.com', undefined, 'https://tos-s3-cn-x.volces.com', 'cn-x', false],
    ['http://127.0.0.1:9000', 'cn-x', 'http://127.0.0.1:9000', 'cn-x', false],
  ])('at %s in %s', ([endpoint, region, used, known, isNoted]) => {
    const { options, note } = tosOptions({ ...target, endpoint, region });
    expect(options).toMatchObject({ endpoint: used, region: known, forcePathStyle: false });
    expect(options.isAws).toBe(false);
    expect(note !== null).toBe(isNoted);
    expect(note ?? used).toContain(used);
  });

  test('whose region nobody knows is refused', () => {
    expect(() => tosOptions({ ...target, endpoint: 'https://example.com' })).toThrow('TOS_REGION');
  });
});

describe('parts', () => {
  test('hold the 5 TiB that a store takes, and none is larger than 5 GiB', () => {
    const sizes = { first: 8 * MIB, isEqual: false };
    expect(mostBytes(sizes)).toBeGreaterThanOrEqual(5 * 2 ** 40);
    let sum = 0;
    for (let n = 1; n <= MOST_PARTS; n += 1) {
      sum += partBytes(n, sizes);
      expect(partBytes(n, sizes)).toBeLessThanOrEqual(5 * 2 ** 30);
    }
    expect(sum).toBe(mostBytes(sizes));
    expect([1, 1_000, 1_001, 2_001].map((n) => partBytes(n, sizes) / MIB)).toEqual([8, 8, 16, 32]);
  });

  test('hold a whole segment each, which is one request so', async () => {
    const settings = storageOf({ S3_BUCKET: 'bucket', S3_ENDPOINT: 'minio:9000' });
    if (settings.type !== 'S3') throw new Error('no S3');
    const sizes = { first: settings.partBytes ?? 0, isEqual: false };
    // Closed at 8 MiB, with the answer that filled it and a header of 9 bytes for each of 200.
    const answers = Math.ceil((8 * MIB) / 200);
    const chunks = [Buffer.alloc(answers * 209), Buffer.alloc(512 * 1024)];
    const found: boolean[] = [];
    for await (const { isLast } of gatherParts(Readable.from(chunks), sizes, []))
      found.push(isLast);
    expect(found).toEqual([true]);
  });

  test('are of one size where they have to be', () => {
    const sizes = { first: 8 * MIB, isEqual: true };
    expect(partBytes(MOST_PARTS, sizes)).toBe(8 * MIB);
    expect(mostBytes(sizes)).toBe(MOST_PARTS * 8 * MIB);
  });
});

test('the identity is the oldest candidate, and of two that are as old the smaller', () => {
  expect(elect([])).toBeNull();
  const [a, b, c] = [
    { identity: 'a', madeAt: 2_000 },
    { identity: 'b', madeAt: 1_000 },
    { identity: 'c', madeAt: 1_000 },
  ];
  expect(elect([a, b, c])).toBe('b');
  expect(elect([c, b, a])).toBe('b');
});
