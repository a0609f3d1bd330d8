import { randomUUID } from 'node:crypto';
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  HeadObjectCommand,
} from '@aws-sdk/client-s3';
import type { ObjectVersion } from './object-version.ts';
import { COMPLETE_IDLE_MS } from './s3-client.ts';
import type { CallOptions, S3Bucket } from './s3-client.ts';
import { failureOf, GIVE_UP_MS } from './s3-retry.ts';

/** A server that copies parts together before it says anything takes so long for a GiB. */
const COPY_MS_PER_GIB = 20_000;
/** Giving up an upload is not worth a longer wait: what stays is found later. */
const ABANDON_ATTEMPTS = 3;
/** Tells whose a completed object is when the answer was lost. */
const MARK = 'sluice-put';

/** One that the store knows. */
export interface Upload {
  key: string;
  id: string;
  mark: string;
  /** It was given up, as far as the store let it. */
  isOver: boolean;
}

export interface SentPart {
  PartNumber: number;
  ETag: string | undefined;
  ChecksumCRC32?: string;
}

/** An object that is made in parts. */
export interface Multipart {
  bucket: S3Bucket;
  key: string;
  /** Aborted by the caller's signal, and by the first part that fails. */
  stop: AbortController;
  sent: SentPart[];
}

/** Some stores leave out the quotes where the ETag is in XML, and want them in If-Match. */
export function versionOf(answer: {
  ETag?: string | undefined;
  VersionId?: string | undefined;
}): ObjectVersion | null {
  const { ETag: etag = '', VersionId: version = null } = answer;
  if (etag === '') return null;
  return { etag: etag.includes('"') ? etag : `"${etag}"`, version };
}

/** Runs an operation; what is not the abort's reason becomes an error of the store. */
export async function ofStore<T>(
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
export async function create({ bucket, key, stop }: Multipart): Promise<Upload> {
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

/** How long a store may take that copies so many bytes before it answers, ms. */
export function patienceFor(
  { idleMs }: S3Bucket,
  bytes: number,
): { requestTimeout: number; limitMs: number; giveUpMs: number } {
  const requestTimeout = 2 * idleMs + COPY_MS_PER_GIB * (bytes / 2 ** 30);
  // A head may come at once, and the rest when all is copied.
  const limitMs = requestTimeout + COMPLETE_IDLE_MS;
  return { requestTimeout, limitMs, giveUpMs: requestTimeout + GIVE_UP_MS };
}

/** Makes the object visible. Once sent it is not cut off: nobody would know whether it is. */
export async function complete(
  put: Multipart,
  made: Upload,
  bytes: number,
): Promise<ObjectVersion | null> {
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

function tryComplete(put: Multipart, made: Upload, bytes: number): Promise<ObjectVersion | null> {
  const { bucket, key, stop, sent } = put;
  const parts = sent.toSorted((a, b) => a.PartNumber - b.PartNumber);
  const where = { Bucket: bucket.options.bucket, Key: bucket.full(key), UploadId: made.id };
  const input = { ...where, MultipartUpload: { Parts: parts } };
  const { requestTimeout, ...limits } = patienceFor(bucket, bytes);
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
    { signal: stop.signal, letRun: true, ...limits },
  );
}

/** What is under the key if it is what this upload became. */
async function findOurs(
  { bucket, key }: Multipart,
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
  put: Multipart,
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

export async function abandonQuietly({ bucket }: Multipart, made: Upload): Promise<void> {
  if (made.isOver) return;
  made.isOver = true;
  const { key, id } = made;
  try {
    await abandonUpload(bucket, { key, uploadId: id }, { attempts: ABANDON_ATTEMPTS });
  } catch {
    // It must not hide the error that led here; the sweep of abandoned uploads finds what stays.
  }
}
