import { GetObjectCommand } from '@aws-sdk/client-s3';
import { Readable } from 'node:stream';
import { notFound, permanent, transient } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';
import { isVersion } from './object-version.ts';
import type { ObjectVersion } from './object-version.ts';
import type { S3Bucket } from './s3-client.ts';
import { resuming } from './s3-read.ts';
import type { Stretch } from './s3-read.ts';
import { failureOf } from './s3-retry.ts';

/** A stretch of an object that somebody wants, and of which version. */
export interface Wish {
  key: string;
  start: number;
  /** Excluded; undefined: to its end. */
  end: number | undefined;
  of: ObjectVersion | undefined;
}

/** What says for certain that there is no such object: other answers with 404 may be of a proxy, or about a user. */
export const ABSENT = new Set(['NoSuchKey', 'NoSuchVersion']);
/** How often in a row a body may break without much in between. */
const READ_ATTEMPTS = 8;

function rangeOf({ start, end }: Pick<Wish, 'start' | 'end'>): { Range?: string } {
  if (start === 0 && end === undefined) return {};
  return { Range: `bytes=${start}-${end === undefined ? '' : end - 1}` };
}

/** Whether `Content-Range` tells of just the bytes that were asked for: a part of them must not pass for all. */
function isWhole(came: string | undefined, { start, end }: Wish, bytes: number): boolean {
  const [, first, last, total] = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(came ?? '')?.map(Number) ?? [];
  if (first !== start || last === undefined || total === undefined) return false;
  return last + 1 === Math.min(end ?? total, total) && bytes === last + 1 - start;
}

/** What says that an object is another one by now, where the store did not notice. */
function otherVersion(): Error {
  const error = new Error('the store gave another version than it was asked for');
  return Object.assign(error, { name: 'PreconditionFailed', $metadata: { httpStatusCode: 412 } });
}

/** Sends one GET, and makes sure that what comes is what was asked for: some stores ignore If-Match, or ranges. */
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
  if (!(body instanceof Readable)) {
    throw transient('storage.unavailable', `object '${key}' came without a body`);
  }
  const given = { etag: etag ?? '', version: found.VersionId ?? null };
  const fault = faultOf(wish, { ...given, bytes, came });
  if (fault === null && bytes !== undefined) return { body, bytes, etag };
  // Nobody listens yet, and what breaks when it is cut off is of no interest.
  body.on('error', () => undefined);
  body.destroy();
  throw fault ?? transient('storage.unavailable', `object '${key}' came without a length`);
}

function faultOf(
  wish: Wish,
  given: ObjectVersion & { bytes: number | undefined; came: string | undefined },
): Error | null {
  const { key, of } = wish;
  const { bytes, came } = given;
  if (bytes === undefined) return null;
  if (of !== undefined && !isVersion(of, given)) return otherVersion();
  const { Range: asked } = rangeOf(wish);
  if ((asked === undefined && came === undefined) || isWhole(came, wish, bytes)) return null;
  const message = `the store sent ${came ?? 'all'} in ${bytes} bytes of '${key}' for ${asked ?? 'all'}`;
  return transient('storage.unavailable', message);
}

function isReplaced(error: unknown): boolean {
  return failureOf(error).status === 412;
}

/** The error of a read of a version that is not there any more. */
export function changed({ key, of }: Pick<Wish, 'key' | 'of'>, cause: unknown): SluiceError {
  const message = `object '${key}' is another one by now than ${of?.etag ?? 'the one asked for'}`;
  return permanent('storage.changed', message, { cause });
}

/** The error of a GET, or null where the range lies beyond the end of the object. */
function readFailure(bucket: S3Bucket, wish: Wish, error: unknown): Error | null {
  if (failureOf(error).status === 416) return null;
  if (ABSENT.has(failureOf(error).code))
    return notFound('storage.not_found', `there is no object '${wish.key}'`);
  return isReplaced(error) ? changed(wish, error) : bucket.fail('GetObject', error);
}

/** Reads a stretch that is not empty, over connections that break. Rejects as a storage's `get`. */
export async function get(bucket: S3Bucket, wish: Wish): Promise<Readable> {
  const { key, start, of } = wish;
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

/** Whether the store refuses to give an object for an ETag that it does not have. Rejects as a storage's `get`. */
export async function obeysIfMatch(bucket: S3Bucket, key: string): Promise<boolean> {
  const where = { Bucket: bucket.options.bucket, Key: bucket.full(key) };
  const input = { ...where, IfMatch: `"${'0'.repeat(32)}"` };
  try {
    const { Body: body } = await bucket.call((options) =>
      bucket.client.send(new GetObjectCommand(input), options),
    );
    if (body instanceof Readable) body.on('error', () => undefined).destroy();
    return false;
  } catch (error) {
    if (isReplaced(error)) return true;
    throw bucket.fail('GetObject', error);
  }
}
