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
import type { S3Bucket } from './s3-client.ts';
import { gatherParts, MOST_PARTS, mostBytes, PART_BYTES } from './s3-parts.ts';
import type { Part, PartSizes } from './s3-parts.ts';
import { failureOf } from './s3-retry.ts';

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

interface Upload {
  key: string;
  id: string;
  mark: string;
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
): Promise<PutResult> {
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

async function send(put: Sending, source: ByteSource, spare: Spare): Promise<PutResult> {
  const { stop, free } = put;
  const digest = createHash('sha256');
  let bytes = 0;
  let made: Upload | null = null;
  const sizes = sizesOf(put.bucket);
  try {
    for await (const part of gatherParts(abortable(source, stop.signal), sizes, free)) {
      digest.update(part.bytes);
      bytes += part.bytes.length;
      stop.signal.throwIfAborted();
      if (part.isLast && made === null) {
        await putWhole(put, part.bytes);
        return { bytes, sha256: digest.digest('hex') };
      }
      if (part.n > MOST_PARTS) throw tooLarge(put, sizes);
      made ??= await create(put);
      await sendPart(put, made, part, spare);
    }
    await Promise.all(put.flying);
    stop.signal.throwIfAborted();
    if (made !== null) await complete(put, made, bytes);
    return { bytes, sha256: digest.digest('hex') };
  } catch (error) {
    stop.abort(error);
    // A part that arrives after its upload was given up would stay.
    await Promise.allSettled(put.flying);
    if (made !== null) await abandonQuietly(put, made);
    throw error;
  }
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

async function putWhole({ bucket, key, stop }: Sending, body: Buffer): Promise<void> {
  const where = { Bucket: bucket.options.bucket, Key: bucket.full(key) };
  const input = { ...where, Body: body, ContentLength: body.length };
  await ofStore(bucket, 'PutObject', stop.signal, () =>
    bucket.call((options) => bucket.client.send(new PutObjectCommand(input), options), {
      signal: stop.signal,
    }),
  );
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
  if (id !== undefined && id !== '') return { key, id, mark };
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
    bucket.call((options) => bucket.client.send(new UploadPartCommand(input), options), { signal }),
  );
  sent.push({ PartNumber: n, ETag, ...(ChecksumCRC32 === undefined ? {} : { ChecksumCRC32 }) });
}

/** Makes the object visible. Once sent it is not cut off: nobody would know whether it is. */
async function complete(put: Sending, made: Upload, bytes: number): Promise<void> {
  const { bucket, key, stop, sent } = put;
  const parts = sent.toSorted((a, b) => a.PartNumber - b.PartNumber);
  const where = { Bucket: bucket.options.bucket, Key: bucket.full(key), UploadId: made.id };
  const input = { ...where, MultipartUpload: { Parts: parts } };
  const requestTimeout = 2 * bucket.idleMs + COMPLETE_MS_PER_GIB * (bytes / 2 ** 30);
  await ofStore(bucket, 'CompleteMultipartUpload', stop.signal, () =>
    bucket.call(
      async (options, n) => {
        try {
          const command = new CompleteMultipartUploadCommand(input);
          await bucket.patient.send(command, { ...options, requestTimeout });
        } catch (error) {
          // An earlier try may have done it, and its answer been lost.
          const isGone = n > 1 && failureOf(error).code === 'NoSuchUpload';
          if (isGone && (await isOurs(put, made, bytes))) return;
          throw error;
        }
      },
      { signal: stop.signal, letRun: true },
    ),
  );
}

async function isOurs({ bucket, key }: Sending, { mark }: Upload, bytes: number): Promise<boolean> {
  const input = { Bucket: bucket.options.bucket, Key: bucket.full(key) };
  const found = await bucket.call((options) =>
    bucket.client.send(new HeadObjectCommand(input), options),
  );
  return found.ContentLength === bytes && found.Metadata?.[MARK] === mark;
}

/** Gives up an upload: a success where it is gone. Rejects with an error of the store. */
export async function abandonUpload(
  bucket: S3Bucket,
  { key, uploadId }: { key: string; uploadId: string },
  attempts?: number,
): Promise<void> {
  const input = { Bucket: bucket.options.bucket, Key: bucket.full(key), UploadId: uploadId };
  try {
    await bucket.call(
      (options) => bucket.client.send(new AbortMultipartUploadCommand(input), options),
      attempts === undefined ? {} : { attempts },
    );
  } catch (error) {
    if (failureOf(error).code === 'NoSuchUpload') return;
    throw bucket.fail('AbortMultipartUpload', error);
  }
}

async function abandonQuietly({ bucket }: Sending, { key, id }: Upload): Promise<void> {
  try {
    await abandonUpload(bucket, { key, uploadId: id }, ABANDON_ATTEMPTS);
  } catch {
    // It must not hide the error that led here; the sweep of abandoned uploads finds what stays.
  }
}
