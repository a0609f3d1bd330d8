import { describe, expect, test } from 'vitest';
import { loadSettings } from '../../config/load.ts';

const S3 = { S3_ENDPOINT: 'http://127.0.0.1:9000' };
/** The store of S3_ENDPOINT is TOS, inside of its cloud, by the protocol of S3. */
const TWINS = {
  S3_ENDPOINT: 'https://tos-s3-cn-beijing.ivolces.com',
  TOS_ENDPOINT: 'https://tos-cn-beijing.volces.com',
  TOS_ACCESS_KEY: 'k',
  TOS_SECRET_KEY: 's',
};
const TOS = { TOS_REGION: 'cn-beijing', TOS_ACCESS_KEY: 'k', TOS_SECRET_KEY: 's' };

test('ALLOWED_BUCKETS names folders, with or without a slash at their end', () => {
  const list = ' s3://bucket/a , s3://bucket/b/c/,tos://other ';
  const { allowedBuckets } = loadSettings({ ...S3, ...TOS, ALLOWED_BUCKETS: list });
  expect(allowedBuckets).toEqual([
    { scheme: 's3', bucket: 'bucket', key: 'a/' },
    { scheme: 's3', bucket: 'bucket', key: 'b/c/' },
    { scheme: 'tos', bucket: 'other', key: '' },
  ]);
  expect(loadSettings({}).allowedBuckets).toEqual([]);
});

test('an input in a bucket may be larger than any upload', () => {
  const large = { MAX_BATCH_FILE_BYTES: '20GiB' };
  expect(() => loadSettings(large)).toThrow('MAX_BATCH_FILE_BYTES');
  expect(loadSettings({ ...S3, ...large, ALLOWED_BUCKETS: 's3://bucket' }).maxBatchFileBytes).toBe(
    20 * 2 ** 30,
  );
});

describe('ALLOWED_BUCKETS is refused', () => {
  const OWN = { ...S3, S3_BUCKET: 'own', S3_PREFIX: 'live/sluice/' };
  test.for([
    [{ ALLOWED_BUCKETS: 's3://bucket/' }, 'S3_REGION'],
    [{ ...S3, ALLOWED_BUCKETS: 'tos://bucket/' }, 'TOS_ACCESS_KEY'],
    [{ ...TOS, TOS_SECRET_KEY: '', ALLOWED_BUCKETS: 'tos://bucket/' }, 'TOS_SECRET_KEY'],
    [{ ...OWN, ALLOWED_BUCKETS: 's3://own' }, 'its own files'],
    [{ ...OWN, ALLOWED_BUCKETS: 's3://own/live/' }, 'its own files'],
    [{ ...OWN, ALLOWED_BUCKETS: 's3://own/live/sluice' }, 'its own files'],
    [{ ...OWN, ALLOWED_BUCKETS: 's3://own/live/sluice/files/' }, 'its own files'],
    [{ ...S3, S3_BUCKET: 'own', ALLOWED_BUCKETS: 's3://own/data/' }, 'S3_PREFIX'],
    [{ ...TOS, TOS_BUCKET: 'own', ALLOWED_BUCKETS: 'tos://own/data/' }, 'TOS_PREFIX'],
    [{ ...S3, AWS_SECRET_ACCESS_KEY: 's', ALLOWED_BUCKETS: 's3://bucket/' }, 'belong together'],
    [{ ...S3, AWS_ACCESS_KEY_ID: 'k', ALLOWED_BUCKETS: 's3://bucket/' }, 'belong together'],
    [{ ...TWINS, S3_BUCKET: 'own', ALLOWED_BUCKETS: 'tos://own/data/' }, 'its own files'],
    [
      { ...TWINS, STORAGE_TYPE: 'TOS', TOS_BUCKET: 'own', ALLOWED_BUCKETS: 's3://own/' },
      'its own files',
    ],
  ] as const)('%o: %s', ([environment, word]) => {
    expect(() => loadSettings(environment)).toThrow(/^One setting is wrong:\n {2}ALLOWED_BUCKETS/);
    expect(() => loadSettings(environment)).toThrow(word);
  });

  test.for(['s3://own/live/sluice2/', 's3://own/live/other/', 's3://own2/', 'tos://own/'])(
    '%s is not where the server keeps its own files',
    (ALLOWED_BUCKETS) => {
      expect(loadSettings({ ...OWN, ...TOS, ALLOWED_BUCKETS }).allowedBuckets).toHaveLength(1);
    },
  );
});
