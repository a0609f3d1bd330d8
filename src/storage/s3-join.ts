import { CopyObjectCommand, UploadPartCopyCommand } from '@aws-sdk/client-s3';
import { notFound, permanent, SluiceError, transient } from '../domain/errors.ts';
import { abortable, stoppable } from './abortable.ts';
import type { JoinOptions, JoinResult, PutResult } from './contract.ts';
import { digestOf, inspected } from './inspected.ts';
import type { ObjectVersion } from './object-version.ts';
import type { S3Bucket, SendOptions } from './s3-client.ts';
import { ABSENT, changed, get } from './s3-get.ts';
import { head } from './s3-head.ts';
import { abandonQuietly, complete, create, patienceFor } from './s3-multipart.ts';
import type { Multipart, Upload } from './s3-multipart.ts';
import { MOST_PARTS } from './s3-parts.ts';
import { failureOf } from './s3-retry.ts';
import { upload } from './s3-upload.ts';
import type { Spare } from './s3-upload.ts';

/** Least bytes of a part that is not the last. */
const LEAST_PART = 5 * 2 ** 20;
/** What a store copies with one CopyObject. */
const MOST_COPIED = 5 * 2 ** 30;
/** Longer objects are copied in stretches, so that no single request takes for ever. */
const MOST_STRETCH = 2 ** 30;
const LOOKS_AT_ONCE = 8;
const COPIES_AT_ONCE = 4;

/** What is known of how a store copies. */
export interface Copying {
  /** It said that it cannot: it is not asked again. */
  isUnknown: boolean;
}

export interface Joining extends JoinOptions {
  spare: Spare;
  copying: Copying;
}

/** An object to copy, as it was when it was looked at. */
interface Source {
  key: string;
  bytes: number;
  of: ObjectVersion;
}

/** What becomes one part. */
interface Stretch {
  /** From 1. */
  n: number;
  source: Source;
  start: number;
  /** Excluded. */
  end: number;
}

/**
 * Writes objects one after the other as one: the store copies them where it can and they are long enough, while their
 * bytes are read once for the inspector; else these are sent again. All requests name the ETag that each object had at
 * first, so that what was read is what is joined. Rejects as a storage's `concat`.
 */
export async function join(
  bucket: S3Bucket,
  from: readonly string[],
  to: string,
  options: Joining,
): Promise<JoinResult> {
  const { spare, signal } = options;
  signal?.throwIfAborted();
  const sources = await lookAt(bucket, from, signal).catch((error: unknown) => {
    // What the store made of it hides who ended it, and why.
    signal?.throwIfAborted();
    throw error;
  });
  const copied = await byStore(bucket, sources, to, options);
  if (copied !== null) return { ...copied, byStore: true };
  const source = inspected(bytesOf(bucket, sources), options.inspect?.());
  const { bytes, sha256 } = await upload(bucket, to, source, { spare, signal });
  return { bytes, sha256, byStore: false };
}

/** Those that have bytes. */
async function lookAt(
  bucket: S3Bucket,
  keys: readonly string[],
  signal: AbortSignal | undefined,
): Promise<Source[]> {
  const found: Source[] = [];
  await inLanes([...keys.entries()], LOOKS_AT_ONCE, async ([n, key]) => {
    signal?.throwIfAborted();
    const info = await head(bucket, key, undefined, { signal });
    if (info === null) throw absent(key);
    // The version's id would take a right of its own to read; the ETag is as good.
    found[n] = { key, bytes: info.bytes, of: { etag: info.etag, version: null } };
  });
  return found.filter(({ bytes }) => bytes > 0);
}

/** Null where the store cannot, or will not, copy these. */
async function byStore(
  bucket: S3Bucket,
  sources: readonly Source[],
  to: string,
  { copying, signal, inspect }: Joining,
): Promise<PutResult | null> {
  const stretches = copying.isUnknown ? null : stretchesOf(sources, bucket);
  if (stretches === null) return null;
  try {
    return await stoppable(signal, (stop) => {
      const put: Multipart = { bucket, key: to, stop, sent: [] };
      const read = () =>
        digestOf(abortable(inspected(bytesOf(bucket, sources), inspect?.()), stop.signal));
      return stretches.length === 1
        ? copyWhole(put, stretches, read)
        : copyStretches(put, stretches, read);
    });
  } catch (error) {
    const code = error instanceof SluiceError ? error.code : '';
    if (code !== UNKNOWN && code !== REFUSED) throw error;
    copying.isUnknown ||= code === UNKNOWN;
    return null;
  }
}

/** Null where these cannot be parts of one object. */
function stretchesOf(sources: readonly Source[], { options }: S3Bucket): Stretch[] | null {
  const [only] = sources;
  if (only === undefined) return null;
  if (sources.length === 1 && only.bytes <= MOST_COPIED) {
    return [{ n: 1, source: only, start: 0, end: only.bytes }];
  }
  const stretches: Stretch[] = [];
  for (const source of sources) {
    const count = Math.ceil(source.bytes / MOST_STRETCH);
    const size = Math.ceil(source.bytes / count);
    for (let start = 0; start < source.bytes; start += size) {
      const end = Math.min(start + size, source.bytes);
      stretches.push({ n: stretches.length + 1, source, start, end });
    }
  }
  return fit(stretches, options.equalParts === true) ? stretches : null;
}

function fit(stretches: readonly Stretch[], wantsEqual: boolean): boolean {
  const sizes = stretches.map(({ start, end }) => end - start);
  const last = sizes.pop() ?? 0;
  const first = sizes[0] ?? Infinity;
  if (stretches.length > MOST_PARTS || sizes.some((size) => size < LEAST_PART)) return false;
  return !wantsEqual || (last <= first && sizes.every((size) => size === first));
}

/** Read first, since the copy is visible at once. */
async function copyWhole(
  { bucket, key, stop }: Multipart,
  [whole]: readonly Stretch[],
  read: () => Promise<PutResult>,
): Promise<PutResult> {
  if (whole === undefined) throw new Error('nothing to copy');
  const digest = await read();
  const { source } = whole;
  const input = {
    Bucket: bucket.options.bucket,
    Key: bucket.full(key),
    ...sourceOf(bucket, source),
  };
  await copy(bucket, 'CopyObject', whole, stop.signal, async (send) => {
    const { CopyObjectResult: made } = await bucket.patient.send(
      new CopyObjectCommand(input),
      send,
    );
    return made;
  });
  return digest;
}

async function copyStretches(
  put: Multipart,
  stretches: readonly Stretch[],
  read: () => Promise<PutResult>,
): Promise<PutResult> {
  const { stop } = put;
  const made = await create(put);
  let digest: PutResult;
  try {
    // Alone: of a store that cannot do it, nothing is read in vain.
    for (const first of stretches.slice(0, 1)) await copyStretch(put, made, first);
    const tasks = [
      inLanes(stretches.slice(1), COPIES_AT_ONCE, (each) => copyStretch(put, made, each)),
      read(),
    ] as const;
    for (const task of tasks) task.catch((error: unknown) => stop.abort(error));
    await Promise.allSettled(tasks);
    stop.signal.throwIfAborted();
    digest = await tasks[1];
    await finish(put, made, digest.bytes);
  } catch (error) {
    await abandonQuietly(put, made);
    throw error;
  }
  return digest;
}

/** Copies a stretch. Once sent it is not cut off: a part that arrives after its upload was given up would stay. */
async function copyStretch(put: Multipart, made: Upload, stretch: Stretch): Promise<void> {
  const { bucket, key, stop, sent } = put;
  const { n, source, start, end } = stretch;
  stop.signal.throwIfAborted();
  const isWhole = start === 0 && end === source.bytes;
  const input = {
    Bucket: bucket.options.bucket,
    Key: bucket.full(key),
    UploadId: made.id,
    PartNumber: n,
    ...sourceOf(bucket, source),
    ...(isWhole ? {} : { CopySourceRange: `bytes=${start}-${end - 1}` }),
  };
  const copied = await copy(bucket, 'UploadPartCopy', stretch, stop.signal, async (send) => {
    const command = new UploadPartCopyCommand(input);
    return (await bucket.patient.send(command, send)).CopyPartResult;
  });
  const { ETag, ChecksumCRC32 } = copied;
  sent.push({ PartNumber: n, ETag, ...(ChecksumCRC32 === undefined ? {} : { ChecksumCRC32 }) });
}

/** Completes what was copied; a store that wants other parts than these says so only here. */
async function finish(put: Multipart, made: Upload, bytes: number): Promise<void> {
  try {
    await complete(put, made, bytes);
  } catch (error) {
    const cause = error instanceof SluiceError ? error.cause : error;
    if (failureOf(cause).status !== 400) throw error;
    throw permanent(REFUSED, 'the store does not take these parts', { cause: error });
  }
}

function sourceOf(bucket: S3Bucket, { key, of }: Source) {
  const path = bucket.full(key).split('/').map(encodeURIComponent).join('/');
  return {
    CopySource: `${bucket.options.bucket}/${path}`,
    ...(of.etag === '' ? {} : { CopySourceIfMatch: of.etag }),
  };
}

/** The store does not know how to copy. */
const UNKNOWN = 'storage.copy_unknown';
/** It knows, and will not copy this. */
const REFUSED = 'storage.copy_refused';
/** Refusals that another way to write the same does not mend, or that are about the source. */
const NO_REFUSALS = new Set([401, 404, 408, 409, 412, 429]);

async function copy<T extends { ETag?: string | undefined }>(
  bucket: S3Bucket,
  operation: string,
  { source, start, end }: Stretch,
  signal: AbortSignal,
  run: (send: SendOptions) => Promise<T | undefined>,
): Promise<T> {
  const { requestTimeout, ...limits } = patienceFor(bucket, end - start);
  let made: T | undefined;
  try {
    made = await bucket.call((options, n) => orNothing(run({ ...options, requestTimeout }), n), {
      signal,
      letRun: true,
      ...limits,
    });
  } catch (error) {
    signal.throwIfAborted();
    throw copyFailure(bucket, operation, source, error);
  }
  // A store that does not know the header has taken an empty body.
  if (made?.ETag !== undefined && made.ETag !== '') return made;
  throw permanent(UNKNOWN, 'the store did not say what it copied');
}

/** As the SDK names an answer of 200 without a body, which Amazon gives where it broke off: it is worth a repeat. */
const EMPTY_ANSWER = 'S3 aborted request';
const EMPTY_ANSWERS = 3;

/** A store that answers so each time did not see what it was asked for: nothing, from the `n`th on. */
async function orNothing<T>(answer: Promise<T | undefined>, n: number): Promise<T | undefined> {
  try {
    return await answer;
  } catch (error) {
    if (n < EMPTY_ANSWERS || failureOf(error).message !== EMPTY_ANSWER) throw error;
    return undefined;
  }
}

function copyFailure(bucket: S3Bucket, operation: string, source: Source, cause: unknown): Error {
  const { status, code } = failureOf(cause);
  if (ABSENT.has(code)) return absent(source.key);
  if (status === 412) return replaced(source, cause);
  if (status === 501 || status === 405) {
    return permanent(UNKNOWN, 'the store does not copy', { cause });
  }
  const isRefused = status !== null && status >= 400 && status < 500 && !NO_REFUSALS.has(status);
  return isRefused
    ? permanent(REFUSED, 'the store does not copy this', { cause })
    : bucket.fail(operation, cause);
}

function absent(key: string): SluiceError {
  return notFound('storage.not_found', `there is no object '${key}'`);
}

function replaced(source: Source, cause: unknown): SluiceError {
  return transient('storage.changed', changed(source, cause).message, { cause });
}

async function* bytesOf(
  bucket: S3Bucket,
  sources: readonly Source[],
): AsyncGenerator<Uint8Array, void, undefined> {
  for (const source of sources) {
    const { key, of } = source;
    try {
      yield* (await get(bucket, { key, start: 0, end: undefined, of })) as AsyncIterable<Buffer>;
    } catch (error) {
      const isChanged = error instanceof SluiceError && error.code === 'storage.changed';
      throw isChanged ? replaced(source, error) : error;
    }
  }
}

/** Runs a task for each item, so many at a time, until one fails; when it rejects none runs any more. */
async function inLanes<T>(
  items: readonly T[],
  most: number,
  run: (item: T) => Promise<void>,
): Promise<void> {
  const next = items.values();
  let isOver = false;
  async function lane(): Promise<void> {
    for (const item of next) {
      if (isOver) return;
      await run(item);
    }
  }
  const lanes = Array.from({ length: Math.min(most, items.length) }, async () => {
    try {
      await lane();
    } catch (error) {
      isOver = true;
      throw error;
    }
  });
  await Promise.allSettled(lanes);
  await Promise.all(lanes);
}
