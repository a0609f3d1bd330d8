import { ListMultipartUploadsCommand, ListObjectsV2Command } from '@aws-sdk/client-s3';
import type {
  ListMultipartUploadsCommandInput,
  ListMultipartUploadsCommandOutput,
} from '@aws-sdk/client-s3';
import { Readable } from 'node:stream';
import { notFound } from '../domain/errors.ts';
import { releaseSource } from './abortable.ts';
import type { AbandonedUpload, Link, LinkOptions, Storage } from './contract.ts';
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
import type { S3Bucket, S3Options } from './s3-client.ts';
import { head } from './s3-head.ts';
import type { Asking, S3ObjectInfo } from './s3-head.ts';
import { createIdentity } from './s3-identity.ts';
import type { Candidate } from './s3-identity.ts';
import { changed, get, obeysIfMatch } from './s3-get.ts';
import { join } from './s3-join.ts';
import { markerAfter } from './s3-pages.ts';
import { presign } from './s3-presign.ts';
import { erase } from './s3-versions.ts';
import type { Erased } from './s3-versions.ts';
import { abandonUpload, tryUpload } from './s3-multipart.ts';
import { createSpare, upload } from './s3-upload.ts';
import type { Uploaded } from './s3-upload.ts';

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
  /** As of every storage; with `of`, of that version where the bucket keeps versions. */
  presign(key: string, link: LinkOptions, of?: ObjectVersion): Promise<Link>;
  /** As `delete`, and tells whether old versions stay. */
  erase(key: string): Promise<Erased>;
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

/** HTTP has no empty range. */
async function getNothing(bucket: S3Bucket, key: string, of?: ObjectVersion): Promise<Readable> {
  const found = await head(bucket, key, of);
  if (found === null) throw notFound('storage.not_found', `there is no object '${key}'`);
  if (of !== undefined && !isVersion(of, found)) throw changed({ key, of }, undefined);
  return Readable.from([]);
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
  const shared = { spare: createSpare(), copying: { isUnknown: false } };
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
        return await upload(bucket, key, source, { ...shared, signal });
      } catch (error) {
        releaseSource(source, error);
        throw error;
      }
    },
    async get(key, { start = 0, end } = {}, of) {
      check(key);
      checkRange(start, end);
      return end === start ? getNothing(bucket, key, of) : get(bucket, { key, start, end, of });
    },
    obeysIfMatch: (key) => obeysIfMatch(bucket, key),
    async head(key, of, asking) {
      check(key);
      return head(bucket, key, of, asking);
    },
    tryWriting: (key, asking) => tryUpload(bucket, key, asking),
    copy: (from, to, joining) => storage.concat([from], to, joining),
    async concat(parts, to, joining = {}) {
      for (const key of [...parts, to]) check(key);
      return join(bucket, parts, to, { ...joining, ...shared });
    },
    async presign(key, link, of) {
      check(key);
      return presign(bucket, key, link, { of, clockAheadMs: clockAheadMs(bucket) });
    },
    async delete(key) {
      await storage.erase(key);
    },
    async erase(key) {
      check(key);
      return erase(bucket, key);
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
