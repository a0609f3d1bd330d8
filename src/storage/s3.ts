import {
  DeleteObjectCommand,
  GetObjectCommand,
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
import { notFound, permanent, transient } from '../domain/errors.ts';
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
import { openBucket } from './s3-client.ts';
import type { S3Bucket, S3Options } from './s3-client.ts';
import { createIdentity } from './s3-identity.ts';
import type { Candidate } from './s3-identity.ts';
import { resuming } from './s3-read.ts';
import type { Stretch } from './s3-read.ts';
import { failureOf } from './s3-retry.ts';
import { abandonUpload, createSpare, upload } from './s3-upload.ts';

/** One version of an object, whose bytes never change. */
export interface ObjectVersion {
  /** As the store gives it, quotes included. */
  etag: string;
  /** Null where the bucket keeps no versions. */
  version: string | null;
}

export interface S3ObjectInfo extends ObjectInfo, ObjectVersion {}

/** A bucket as a storage, which knows its objects' versions besides. */
export interface S3Storage extends Storage {
  /**
   * As of every storage. With `of`, only that version: `storage.changed` (Permanent) where the object is another one by
   * now, and `storage.not_found` where it is gone.
   */
  get(key: string, range?: { start?: number; end?: number }, of?: ObjectVersion): Promise<Readable>;
  /** With `of`, that version where the bucket keeps versions. */
  head(key: string, of?: ObjectVersion): Promise<S3ObjectInfo | null>;
}

const IDENTITY = 'identity/';
const CLOSE_MS = 5_000;
/** How often in a row a body may break without a byte in between. */
const READ_ATTEMPTS = 8;

interface Wish {
  key: string;
  start: number;
  /** Excluded; undefined: to its end. */
  end: number | undefined;
  of: ObjectVersion | undefined;
}

/** What says for certain that there is no such object: other answers with 404 may be of a proxy, or about a user. */
const ABSENT = new Set(['NoSuchKey', 'NoSuchVersion']);

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
async function requireBucket(bucket: S3Bucket): Promise<void> {
  const input = { Bucket: bucket.options.bucket };
  try {
    await bucket.call((options) => bucket.client.send(new HeadBucketCommand(input), options));
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
): Promise<S3ObjectInfo | null> {
  const version = of === undefined || of.version === null ? {} : { VersionId: of.version };
  const input = { Bucket: bucket.options.bucket, Key: bucket.full(key), ...version };
  try {
    const found = await bucket.call((options) =>
      bucket.client.send(new HeadObjectCommand(input), options),
    );
    return {
      bytes: found.ContentLength ?? 0,
      modifiedAt: found.LastModified?.getTime() ?? 0,
      etag: found.ETag ?? '',
      version: found.VersionId ?? null,
    };
  } catch (error) {
    if (failureOf(error).status !== 404) throw bucket.fail('HeadObject', error);
    await requireBucket(bucket);
    return null;
  }
}

function rangeOf({ start, end }: Wish): { Range?: string } {
  if (start === 0 && end === undefined) return {};
  return { Range: `bytes=${start}-${end === undefined ? '' : end - 1}` };
}

/** Sends one GET, and makes sure that what comes is what was asked for. */
async function open(
  bucket: S3Bucket,
  wish: Wish,
  signal?: AbortSignal,
): Promise<Stretch & { etag: string | undefined }> {
  const { key, of } = wish;
  const range = rangeOf(wish);
  const input = {
    Bucket: bucket.options.bucket,
    Key: bucket.full(key),
    ...range,
    ...(of === undefined || of.etag === '' ? {} : { IfMatch: of.etag }),
    ...(of === undefined || of.version === null ? {} : { VersionId: of.version }),
  };
  const found = await bucket.call(
    (options) => bucket.client.send(new GetObjectCommand(input), options),
    { signal },
  );
  const { Body: body, ContentLength: bytes, ContentRange: came, ETag: etag } = found;
  if (!(body instanceof Readable) || bytes === undefined) {
    throw transient('storage.unavailable', `object '${key}' came without a length`);
  }
  if (range.Range !== undefined && came?.startsWith(`bytes ${wish.start}-`) !== true) {
    body.destroy();
    throw transient('storage.unavailable', `the store sent all of '${key}' for ${range.Range}`);
  }
  return { body, bytes, etag };
}

function isReplaced(error: unknown): boolean {
  return failureOf(error).status === 412;
}

/** The error of a GET, or null where the range lies beyond the end of the object. */
function readFailure(bucket: S3Bucket, { key, of }: Wish, error: unknown): Error | null {
  if (failureOf(error).status === 416) return null;
  if (ABSENT.has(failureOf(error).code))
    return notFound('storage.not_found', `there is no object '${key}'`);
  if (!isReplaced(error)) return bucket.fail('GetObject', error);
  const message = `object '${key}' is another one by now than ${of?.etag ?? 'the one asked for'}`;
  return permanent('storage.changed', message, { cause: error });
}

async function get(bucket: S3Bucket, wish: Wish): Promise<Readable> {
  const { key, start, end, of } = wish;
  checkRange(start, end);
  if (end === start) {
    // HTTP has no empty range
    if ((await head(bucket, key)) !== null) return Readable.from([]);
    throw notFound('storage.not_found', `there is no object '${key}'`);
  }
  let first;
  try {
    first = await open(bucket, wish);
  } catch (error) {
    const failure = readFailure(bucket, wish, error);
    if (failure === null) return Readable.from([]);
    throw failure;
  }
  const stop = start + first.bytes;
  const same = of ?? { etag: first.etag ?? '', version: null };
  return resuming(first, start, {
    reopen: (at, signal) => open(bucket, { key, start: at, end: stop, of: same }, signal),
    idleMs: bucket.idleMs,
    attempts: bucket.options.attempts ?? READ_ATTEMPTS,
    fail(error) {
      if (of !== undefined || !isReplaced(error)) {
        return readFailure(bucket, wish, error) ?? bucket.fail('GetObject', error);
      }
      return transient('storage.changed', `object '${key}' was replaced while it was read`);
    },
  });
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
    next = page.IsTruncated === true ? page.NextContinuationToken : undefined;
  } while (next !== undefined);
}

async function* abandoned(bucket: S3Bucket, before: number): AsyncGenerator<AbandonedUpload> {
  const { bucket: name, prefix } = bucket.options;
  let input: ListMultipartUploadsCommandInput | null = { Bucket: name, Prefix: prefix };
  while (input !== null) {
    const page: ListMultipartUploadsCommandOutput = await listUploads(bucket, input);
    for (const { Key: key, UploadId: uploadId, Initiated: begun } of page.Uploads ?? []) {
      if (key === undefined || uploadId === undefined || begun === undefined) continue;
      if (!key.startsWith(prefix) || begun.getTime() > before) continue;
      yield { key: key.slice(prefix.length), uploadId, startedAt: begun.getTime() };
    }
    const { IsTruncated: hasMore, NextKeyMarker: KeyMarker, NextUploadIdMarker } = page;
    const next = { KeyMarker, UploadIdMarker: NextUploadIdMarker };
    input = hasMore === true ? { Bucket: name, Prefix: prefix, ...next } : null;
  }
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
    async put(key, source, { signal } = {}) {
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
      return get(bucket, { key, start, end, of });
    },
    async head(key, of) {
      check(key);
      return head(bucket, key, of);
    },
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
    abandoned: (olderThanMs) => abandoned(bucket, Date.now() - olderThanMs),
    abandon: ({ key, uploadId }) => abandonUpload(bucket, { key, uploadId }),
    // Its answers tell whole seconds, and took a while.
    clockAheadMs() {
      const { systemClockOffset: ahead } = bucket.client.config;
      return Math.abs(ahead) < CLOSE_MS ? 0 : ahead;
    },
  };
  const identity = identityOf(bucket);
  return storage;
}
