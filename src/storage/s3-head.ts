import { HeadBucketCommand, HeadObjectCommand } from '@aws-sdk/client-s3';
import type { ObjectInfo } from './contract.ts';
import type { ObjectVersion } from './object-version.ts';
import type { CallOptions, S3Bucket } from './s3-client.ts';
import { failureOf } from './s3-retry.ts';

export interface S3ObjectInfo extends ObjectInfo, ObjectVersion {}

/** How long, and how often, whoever waits for the answer lets a store be asked. */
export type Asking = Pick<CallOptions, 'signal' | 'attempts'>;

/** An answer without a body cannot say whether only the object is missing: a bucket that is must not look like that. */
async function requireBucket(bucket: S3Bucket, asking: Asking): Promise<void> {
  const input = { Bucket: bucket.options.bucket };
  try {
    await bucket.call(
      (options) => bucket.client.send(new HeadBucketCommand(input), options),
      asking,
    );
  } catch (error) {
    const isGone = failureOf(error).status === 404;
    const cause = isGone ? Object.assign(new Error('404'), { name: 'NoSuchBucket' }) : error;
    throw bucket.fail('HeadBucket', cause);
  }
}

/** What is known of an object, or of one version of it; null when there is none. Rejects as a storage's `head`. */
export async function head(
  bucket: S3Bucket,
  key: string,
  of?: ObjectVersion,
  asking: Asking = {},
): Promise<S3ObjectInfo | null> {
  const version = of === undefined || of.version === null ? {} : { VersionId: of.version };
  const input = { Bucket: bucket.options.bucket, Key: bucket.full(key), ...version };
  try {
    const found = await bucket.call(
      (options) => bucket.client.send(new HeadObjectCommand(input), options),
      asking,
    );
    return {
      bytes: found.ContentLength ?? 0,
      modifiedAt: found.LastModified?.getTime() ?? 0,
      etag: found.ETag ?? '',
      version: found.VersionId ?? null,
    };
  } catch (error) {
    if (failureOf(error).status !== 404) throw bucket.fail('HeadObject', error);
    await requireBucket(bucket, asking);
    return null;
  }
}
