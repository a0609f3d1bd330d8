import { createHash, randomUUID } from 'node:crypto';
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  HeadObjectCommand,
  PutObjectCommand,
  UploadPartCommand,
} from '@aws-sdk/client-s3';
import { permanent } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';
import { abortable } from './abortable.ts';
import type { ByteSource } from './abortable.ts';
import type { PutResult } from './contract.ts';
import type { ObjectVersion } from './object-version.ts';
import { COMPLETE_IDLE_MS } from './s3-client.ts';
import type { CallOptions, S3Bucket } from './s3-client.ts';
import { gatherParts, MOST_PARTS, mostBytes, PART_BYTES } from './s3-parts.ts';
import type { Part, PartSizes } from './s3-parts.ts';
import { failureOf, GIVE_UP_MS } from './s3-retry.ts';

/** Parts of one put that are on their way while the next one is gathered. */
const MOST_SENDING = 2;
/** What all puts of a store together may have on its way so; a put that finds no room sends its parts one by one. */
const SPARE_BYTES = 64 * 2 ** 20;
/** A server that copies parts together before it says anything takes so long for a GiB. */
const COMPLETE_MS_PER_GIB = 20_000;
/** Giving up an upload is not worth a longer wait: what stays is found later. */
const ABANDON_ATTEMPTS = 3;
/** Tells whose a completed object is when the answer was lost. */
const MARK = 'sluice-put';

/** Memory that puts share. */
export interface Spare {
  /** False when there is not so much. */
  take(bytes: number): boolean;
  giveBack(bytes: number): void;
}

export function createSpare(bytes = SPARE_BYTES): Spare {
  let left = bytes;
  return {
    take(wanted) {
      if (wanted > left) return false;
      left -= wanted;
      return true;
    },
    giveBack(taken) {
      left += taken;
    },
  };
}

/** What was written. */
export interface Uploaded extends PutResult {
  /** The version that it became; null where the store did not say. */
  made: ObjectVersion | null;
}

interface Upload {
  key: string;
  id: string;
  mark: string;
  /** It was given up, as far as the store let it. */
  isOver: boolean;
}

interface SentPart {
  PartNumber: number;
  ETag: string | undefined;
  ChecksumCRC32?: string;
}

/** A put that is under way. */
interface Sending {
  bucket: S3Bucket;
  key: string;
  /** Aborted by the caller's signal, and by the first part that fails. */
  stop: AbortController;
  sent: SentPart[];
  flying: Set<Promise<void>>;
  free: Buffer[];
}

/**
 * Writes a source as one object: with one request if it is no longer than a part, else in parts of which at most three
 * are in memory. Whatever fails, the upload is given up and none of its bytes is ever visible.
 */
export async function upload(
  bucket: S3Bucket,
  key: string,
  source: ByteSource,
  { spare, signal }: { spare: Spare; signal: AbortSignal | undefined },
): Promise<Uploaded> {
  const stop = new AbortController();
  const onAbort = () => stop.abort(signal?.reason);
  signal?.addEventListener('abort', onAbort, { once: true });
  const put: Sending = { bucket, key, stop, sent: [], flying: new Set(), free: [] };
  try {
    signal?.throwIfAborted();
    return await send(put, source, spare);
  } finally {
    signal?.removeEventListener('abort', onAbort);
  }
}

async function send(put: Sending, source: ByteSource, spare: Spare): Promise<Uploaded> {
  const { stop, free } = put;
  const digest = createHash('sha256');
  let bytes = 0;
  let made: Upload | null = null;
  const sizes = sizesOf(put.bucket);
  try {
    const chunks = abortable(source, stop.signal);
    for await (const part of gatherParts(chunks, sizes, free, lengthOf(source))) {
      digest.update(part.bytes);
      bytes += part.bytes.length;
      stop.signal.throwIfAborted();
      if (part.isLast && made === null) {
        const version = await putWhole(put, part.bytes);
        return { bytes, sha256: digest.digest('hex'), made: version };
      }
      if (part.n > MOST_PARTS) throw tooLarge(put, sizes);
      made ??= await create(put);
      await sendPart(put, made, part, spare);
    }
    await Promise.all(put.flying);
    stop.signal.throwIfAborted();
    const version = made === null ? null : await complete(put, made, bytes);
    return { bytes, sha256: digest.digest('hex'), made: version };
  } catch (error) {
    stop.abort(error);
    // A part that arrives after its upload was given up would stay.
    await Promise.allSettled(put.flying);
    if (made !== null) await abandonQuietly(put, made);
    throw error;
  }
}

/** Of a source that is all there, as a segment is; undefined for any other. */
function lengthOf(source: ByteSource): number | undefined {
  if (!Array.isArray(source)) return undefined;
  return source.reduce((sum: number, { length }: Uint8Array) => sum + length, 0);
}

function sizesOf({ options }: S3Bucket): PartSizes {
  return { first: options.partBytes ?? PART_BYTES, isEqual: options.equalParts ?? false };
}

function tooLarge({ key }: Sending, sizes: PartSizes): SluiceError {
  const most = Math.floor(mostBytes(sizes) / 2 ** 30);
  return permanent(
    'storage.too_large',
    `object '${key}' is longer than ${most} GiB, which is all that ${MOST_PARTS} parts hold here. Raise S3_PART_SIZE.`,
  );
}

async function putWhole(
  { bucket, key, stop }: Sending,
  body: Buffer,
): Promise<ObjectVersion | null> {
  const where = { Bucket: bucket.options.bucket, Key: bucket.full(key) };
  const input = { ...where, Body: body, ContentLength: body.length };
  const put = await ofStore(bucket, 'PutObject', stop.signal, () =>
    bucket.call((options) => bucket.client.send(new PutObjectCommand(input), options), {
      signal: stop.signal,
      limitMs: Infinity,
    }),
  );
  return versionOf(put);
}

/** Some stores leave out the quotes where the ETag is in XML, and want them in If-Match. */
function versionOf(answer: {
  ETag?: string | undefined;
  VersionId?: string | undefined;
}): ObjectVersion | null {
  const { ETag: etag = '', VersionId: version = null } = answer;
  if (etag === '') return null;
  return { etag: etag.includes('"') ? etag : `"${etag}"`, version };
}

/** Runs an operation; what is not the abort's reason becomes an error of the store. */
async function ofStore<T>(
  bucket: S3Bucket,
  operation: string,
  signal: AbortSignal,
  run: () => Promise<T>,
): Promise<T> {
  try {
    return await run();
  } catch (error) {
    signal.throwIfAborted();
    throw bucket.fail(operation, error);
  }
}

/** Begins an upload. Once sent it is not cut off: an upload whose id nobody knows would stay. */
async function create({ bucket, key, stop }: Sending): Promise<Upload> {
  const mark = randomUUID();
  const input = {
    Bucket: bucket.options.bucket,
    Key: bucket.full(key),
    Metadata: { [MARK]: mark },
    ...(bucket.options.isAws ? { ChecksumAlgorithm: 'CRC32' as const } : {}),
  };
  const { UploadId: id } = await ofStore(bucket, 'CreateMultipartUpload', stop.signal, () =>
    bucket.call((options) => bucket.client.send(new CreateMultipartUploadCommand(input), options), {
      signal: stop.signal,
      letRun: true,
    }),
  );
  if (id !== undefined && id !== '') return { key, id, mark, isOver: false };
  throw bucket.fail('CreateMultipartUpload', new Error('the store gave no upload id'));
}

/** Sends a part in the background where there is memory for the next one meanwhile. */
async function sendPart(put: Sending, made: Upload, part: Part, spare: Spare): Promise<void> {
  while (put.flying.size >= MOST_SENDING) await Promise.race(put.flying);
  put.stop.signal.throwIfAborted();
  const room = part.bytes.length;
  const inBackground = spare.take(room);
  async function run(): Promise<void> {
    try {
      await uploadPart(put, made, part);
      put.free.push(part.bytes);
    } catch (error) {
      put.stop.abort(error);
      throw error;
    } finally {
      if (inBackground) spare.giveBack(room);
      put.flying.delete(running);
    }
  }
  const running = run();
  put.flying.add(running);
  // Whoever waits for all parts hears of it, too.
  running.catch(() => undefined);
  if (!inBackground) await running;
}

async function uploadPart({ bucket, key, stop, sent }: Sending, made: Upload, part: Part) {
  const { n, bytes } = part;
  const input = {
    Bucket: bucket.options.bucket,
    Key: bucket.full(key),
    UploadId: made.id,
    PartNumber: n,
    Body: bytes,
    ContentLength: bytes.length,
  };
  const { signal } = stop;
  const { ETag, ChecksumCRC32 } = await ofStore(bucket, 'UploadPart', signal, () =>
    bucket.call((options) => bucket.client.send(new UploadPartCommand(input), options), {
      signal,
      limitMs: Infinity,
    }),
  );
  sent.push({ PartNumber: n, ETag, ...(ChecksumCRC32 === undefined ? {} : { ChecksumCRC32 }) });
}

/** Makes the object visible. Once sent it is not cut off: nobody would know whether it is. */
async function complete(put: Sending, made: Upload, bytes: number): Promise<ObjectVersion | null> {
  const { bucket, stop } = put;
  try {
    return await ofStore(bucket, 'CompleteMultipartUpload', stop.signal, () =>
      tryComplete(put, made, bytes),
    );
  } catch (error) {
    stop.signal.throwIfAborted();
    // It may have been done although no answer said so; once the upload is given up, it is or never will be.
    await abandonQuietly(put, made);
    const ours = await findOursQuietly(put, made, bytes);
    if (ours === null) throw error;
    return ours;
  }
}

function tryComplete(put: Sending, made: Upload, bytes: number): Promise<ObjectVersion | null> {
  const { bucket, key, stop, sent } = put;
  const parts = sent.toSorted((a, b) => a.PartNumber - b.PartNumber);
  const where = { Bucket: bucket.options.bucket, Key: bucket.full(key), UploadId: made.id };
  const input = { ...where, MultipartUpload: { Parts: parts } };
  const requestTimeout = 2 * bucket.idleMs + COMPLETE_MS_PER_GIB * (bytes / 2 ** 30);
  // A head may come at once, and the rest when the parts are put together.
  const limitMs = requestTimeout + COMPLETE_IDLE_MS;
  return bucket.call(
    async (options, n) => {
      try {
        const command = new CompleteMultipartUploadCommand(input);
        return versionOf(await bucket.patient.send(command, { ...options, requestTimeout }));
      } catch (error) {
        // An earlier try may have done it, and its answer been lost.
        const isGone = n > 1 && failureOf(error).code === 'NoSuchUpload';
        const ours = isGone ? await findOurs(put, made, bytes) : null;
        if (ours === null) throw error;
        return ours;
      }
    },
    { signal: stop.signal, letRun: true, limitMs, giveUpMs: requestTimeout + GIVE_UP_MS },
  );
}

/** What is under the key if it is what this upload became. */
async function findOurs(
  { bucket, key }: Sending,
  { mark }: Upload,
  bytes: number,
): Promise<ObjectVersion | null> {
  const input = { Bucket: bucket.options.bucket, Key: bucket.full(key) };
  try {
    const found = await bucket.call((options) =>
      bucket.client.send(new HeadObjectCommand(input), options),
    );
    const isOurs = found.ContentLength === bytes && found.Metadata?.[MARK] === mark;
    return isOurs ? (versionOf(found) ?? { etag: '', version: found.VersionId ?? null }) : null;
  } catch (error) {
    if (failureOf(error).status === 404) return null;
    throw error;
  }
}

async function findOursQuietly(
  put: Sending,
  made: Upload,
  bytes: number,
): Promise<ObjectVersion | null> {
  try {
    return await findOurs(put, made, bytes);
  } catch {
    // What is told is why it could not be completed.
    return null;
  }
}

/** Gives up an upload: a success where it is gone. Rejects with an error of the store. */
export async function abandonUpload(
  bucket: S3Bucket,
  { key, uploadId }: { key: string; uploadId: string },
  asking: CallOptions = {},
): Promise<void> {
  const input = { Bucket: bucket.options.bucket, Key: bucket.full(key), UploadId: uploadId };
  try {
    await bucket.call(
      (options) => bucket.client.send(new AbortMultipartUploadCommand(input), options),
      asking,
    );
  } catch (error) {
    if (failureOf(error).code === 'NoSuchUpload') return;
    throw bucket.fail('AbortMultipartUpload', error);
  }
}

/** Begins an upload and gives it up: that takes the right to write, and nobody ever sees an object. */
export async function tryUpload(bucket: S3Bucket, key: string, asking: CallOptions): Promise<void> {
  const input = { Bucket: bucket.options.bucket, Key: bucket.full(key) };
  try {
    const { UploadId: uploadId } = await bucket.call(
      (options) => bucket.client.send(new CreateMultipartUploadCommand(input), options),
      asking,
    );
    if (uploadId !== undefined) await abandonUpload(bucket, { key, uploadId }, asking);
  } catch (error) {
    throw bucket.fail('CreateMultipartUpload', error);
  }
}

async function abandonQuietly({ bucket }: Sending, made: Upload): Promise<void> {
  if (made.isOver) return;
  made.isOver = true;
  const { key, id } = made;
  try {
    await abandonUpload(bucket, { key, uploadId: id }, { attempts: ABANDON_ATTEMPTS });
  } catch {
    // It must not hide the error that led here; the sweep of abandoned uploads finds what stays.
  }
}
