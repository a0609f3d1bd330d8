import {
  DeleteObjectCommand,
  HeadBucketCommand,
  HeadObjectCommand,
  ListMultipartUploadsCommand,
  ListObjectsV2Command,
} from '@aws-sdk/client-s3';
import type {
  ListMultipartUploadsCommandInput,
  ListMultipartUploadsCommandOutput,
} from '@aws-sdk/client-s3';
import { Readable } from 'node:stream';
import { notFound, transient } from '../domain/errors.ts';
import { releaseSource } from './abortable.ts';
import type { AbandonedUpload, ObjectInfo, Storage } from './contract.ts';
import {
  checkObjectKey,
  checkRange,
  invalidKey,
  isPlainKey,
  isReserved,
  withoutSlash,
} from './keys.ts';
import { isVersion } from './object-version.ts';
import type { ObjectVersion } from './object-version.ts';
import { openBucket } from './s3-client.ts';
import type { CallOptions, S3Bucket, S3Options } from './s3-client.ts';
import { createIdentity } from './s3-identity.ts';
import type { Candidate } from './s3-identity.ts';
import { ABSENT, changed, get, obeysIfMatch } from './s3-get.ts';
import { failureOf } from './s3-retry.ts';
import { abandonUpload, createSpare, tryUpload, upload } from './s3-upload.ts';
import type { Uploaded } from './s3-upload.ts';

export interface S3ObjectInfo extends ObjectInfo, ObjectVersion {}

/** How long, and how often, whoever waits for the answer lets a store be asked. */
export type Asking = Pick<CallOptions, 'signal' | 'attempts'>;

/** A bucket as a storage, which knows its objects' versions besides. */
export interface S3Storage extends Storage {
  /** As `put`, and tells which version the object became. */
  write(...put: Parameters<Storage['put']>): Promise<Uploaded>;
  /**
   * As of every storage. With `of`, only that version: `storage.changed` (Permanent) where the object is another one by
   * now, and `storage.not_found` where it is gone.
   */
  get(key: string, range?: { start?: number; end?: number }, of?: ObjectVersion): Promise<Readable>;
  /** With `of`, that version where the bucket keeps versions. */
  head(key: string, of?: ObjectVersion, asking?: Asking): Promise<S3ObjectInfo | null>;
  /** Rejects unless an object can be written under a key, which none is. */
  tryWriting(key: string, asking: Asking): Promise<void>;
  /** Those below a prefix. */
  abandoned(olderThanMs: number, prefix?: string): AsyncIterable<AbandonedUpload>;
  /** Whether the store refuses to give an object for another ETag than it has: else each read compares them alone. */
  obeysIfMatch(key: string): Promise<boolean>;
}

const IDENTITY = 'identity/';
const CLOSE_MS = 5_000;

/** Runs an operation that nobody can abort. */
async function ask<T>(
  bucket: S3Bucket,
  operation: string,
  run: Parameters<typeof bucket.call<T>>[0],
): Promise<T> {
  try {
    return await bucket.call(run);
  } catch (error) {
    throw bucket.fail(operation, error);
  }
}

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

async function head(
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

async function remove(bucket: S3Bucket, key: string): Promise<void> {
  const input = { Bucket: bucket.options.bucket, Key: bucket.full(key) };
  try {
    await bucket.call((options) => bucket.client.send(new DeleteObjectCommand(input), options));
  } catch (error) {
    if (!ABSENT.has(failureOf(error).code)) throw bucket.fail('DeleteObject', error);
  }
}

/** Objects whose key in the bucket begins with the storage's prefix and this one; keys without the storage's. */
async function* objects(
  bucket: S3Bucket,
  prefix: string,
): AsyncGenerator<{ key: string; modifiedAt: number }> {
  const whole = bucket.full(prefix);
  let next: string | undefined;
  do {
    const input = {
      Bucket: bucket.options.bucket,
      Prefix: whole,
      ...(next === undefined ? {} : { ContinuationToken: next }),
    };
    const page = await ask(bucket, 'ListObjectsV2', (options) =>
      bucket.client.send(new ListObjectsV2Command(input), options),
    );
    for (const { Key: key, LastModified: at } of page.Contents ?? []) {
      if (key?.startsWith(whole) !== true) continue;
      yield { key: key.slice(bucket.options.prefix.length), modifiedAt: at?.getTime() ?? 0 };
    }
    next = markerAfter(page.IsTruncated, page.NextContinuationToken, next);
  } while (next !== undefined);
}

/**
 * Where a listing goes on; undefined at its end. One that says that there is more, and not where, or where it was just
 * now, must not pass for a whole one, nor go on for ever.
 */
function markerAfter(
  isTruncated: boolean | undefined,
  marker: string | undefined,
  last: string | undefined,
): string | undefined {
  if (isTruncated !== true) return undefined;
  if (marker !== undefined && marker !== '' && marker !== last) return marker;
  const what = marker === last && marker !== undefined ? 'the same place again' : 'no place';
  throw transient(
    'storage.unavailable',
    `the store says that its list has more, and gives ${what} to go on from`,
  );
}

async function* abandoned(
  bucket: S3Bucket,
  prefix: string,
  olderThanMs: number,
): AsyncGenerator<AbandonedUpload> {
  const common = { Bucket: bucket.options.bucket, Prefix: bucket.full(prefix) };
  let marker: string | undefined;
  let input: ListMultipartUploadsCommandInput = common;
  do {
    const page: ListMultipartUploadsCommandOutput = await listUploads(bucket, input);
    // The store tells its own times.
    const before = Date.now() + clockAheadMs(bucket) - olderThanMs;
    for (const { Key: key, UploadId: uploadId, Initiated: begun } of page.Uploads ?? []) {
      if (key === undefined || uploadId === undefined || begun === undefined) continue;
      const startedAt = begun.getTime();
      if (!key.startsWith(common.Prefix) || startedAt > before) continue;
      yield { key: key.slice(bucket.options.prefix.length), uploadId, startedAt };
    }
    const { NextKeyMarker: KeyMarker = '', NextUploadIdMarker: UploadIdMarker } = page;
    const next = KeyMarker === '' ? '' : `${UploadIdMarker ?? ''} ${KeyMarker}`;
    marker = markerAfter(page.IsTruncated, next, marker);
    input = { ...common, KeyMarker, UploadIdMarker };
  } while (marker !== undefined);
}

/** Its answers tell whole seconds, and took a while. */
function clockAheadMs({ client }: S3Bucket): number {
  const { systemClockOffset: ahead } = client.config;
  return Math.abs(ahead) < CLOSE_MS ? 0 : ahead;
}

function listUploads(
  bucket: S3Bucket,
  input: ListMultipartUploadsCommandInput,
): Promise<ListMultipartUploadsCommandOutput> {
  return ask(bucket, 'ListMultipartUploads', (options) =>
    bucket.client.send(new ListMultipartUploadsCommand(input), options),
  );
}

function identityOf(bucket: S3Bucket): () => Promise<string> {
  return createIdentity({
    async candidates() {
      const found: Candidate[] = [];
      for await (const { key, modifiedAt } of objects(bucket, IDENTITY)) {
        const identity = key.slice(IDENTITY.length);
        if (/^[0-9a-f]{32}$/.test(identity)) found.push({ identity, madeAt: modifiedAt });
      }
      return found;
    },
    async add(identity) {
      const signal = undefined;
      const spare = createSpare(0);
      await upload(bucket, `${IDENTITY}${identity}`, [Buffer.from('')], { spare, signal });
    },
    has: async (identity) => (await head(bucket, `${IDENTITY}${identity}`)) !== null,
  });
}

const MOST_KEY_BYTES = 1_024;

function checkAnyKey(key: string): void {
  if (key === '' || Buffer.byteLength(key) > MOST_KEY_BYTES) {
    throw invalidKey(key, `is empty or longer than ${MOST_KEY_BYTES} bytes`);
  }
}

/**
 * A bucket, or what is below a prefix of it, as a store. An object becomes visible with the answer to its one PutObject
 * or CompleteMultipartUpload, and not before; stores read after write and list after write, as Amazon's and those that
 * promise the same do. Requests that fail for a reason that may pass are sent again, and a body that breaks is read on
 * from where it broke. Besides the contract: `storage.too_large` (Permanent) for an object that the store cannot hold,
 * and Transient `storage.credentials`, `.denied`, `.no_bucket`, `.wrong_region`, `.clock_skew`, `.unreachable` and
 * `.unavailable`, each with the setting to mend. The keys `identity/…` and `.tmp/…` are reserved.
 */
export function createS3Storage(options: S3Options): S3Storage {
  const bucket = openBucket(options);
  const spare = createSpare();
  const isAny = options.anyKey === true;
  const check = isAny ? checkAnyKey : checkObjectKey;
  const storage: S3Storage = {
    async put(...wanted) {
      const { bytes, sha256 } = await storage.write(...wanted);
      return { bytes, sha256 };
    },
    async write(key, source, { signal } = {}) {
      try {
        check(key);
        return await upload(bucket, key, source, { spare, signal });
      } catch (error) {
        releaseSource(source, error);
        throw error;
      }
    },
    async get(key, { start = 0, end } = {}, of) {
      check(key);
      checkRange(start, end);
      if (end !== start) return get(bucket, { key, start, end, of });
      // HTTP has no empty range
      const found = await head(bucket, key, of);
      if (found === null) throw notFound('storage.not_found', `there is no object '${key}'`);
      if (of !== undefined && !isVersion(of, found)) throw changed({ key, of }, undefined);
      return Readable.from([]);
    },
    obeysIfMatch: (key) => obeysIfMatch(bucket, key),
    async head(key, of, asking) {
      check(key);
      return head(bucket, key, of, asking);
    },
    tryWriting: (key, asking) => tryUpload(bucket, key, asking),
    async delete(key) {
      check(key);
      await remove(bucket, key);
    },
    async *list(prefix) {
      if (prefix !== '' && !isAny) checkObjectKey(withoutSlash(prefix));
      for await (const { key } of objects(bucket, prefix)) {
        // A shared bucket holds what others put there, and consoles make objects that stand for folders.
        if (isAny || (isPlainKey(key) && !isReserved(key))) yield key;
      }
    },
    identity: () => identity(),
    abandoned: (olderThanMs, prefix = '') => abandoned(bucket, prefix, olderThanMs),
    abandon: ({ key, uploadId }) => abandonUpload(bucket, { key, uploadId }),
    clockAheadMs: () => clockAheadMs(bucket),
  };
  const identity = identityOf(bucket);
  return storage;
}
