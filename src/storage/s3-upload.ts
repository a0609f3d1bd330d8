import { createHash } from 'node:crypto';
import { PutObjectCommand, UploadPartCommand } from '@aws-sdk/client-s3';
import { permanent } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';
import { abortable, stoppable } from './abortable.ts';
import type { ByteSource } from './abortable.ts';
import type { PutResult } from './contract.ts';
import type { ObjectVersion } from './object-version.ts';
import type { S3Bucket } from './s3-client.ts';
import { abandonQuietly, complete, create, ofStore, versionOf } from './s3-multipart.ts';
import type { Multipart, Upload } from './s3-multipart.ts';
import { gatherParts, MOST_PARTS, mostBytes, PART_BYTES } from './s3-parts.ts';
import type { Part, PartSizes } from './s3-parts.ts';

/** Parts of one put that are on their way while the next one is gathered. */
const MOST_SENDING = 2;
/** What all puts of a store together may have on its way so; a put that finds no room sends its parts one by one. */
const SPARE_BYTES = 64 * 2 ** 20;
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

/** A put that is under way. */
interface Sending extends Multipart {
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
  return stoppable(signal, (stop) => {
    const put: Sending = { bucket, key, stop, sent: [], flying: new Set(), free: [] };
    return send(put, source, spare);
  });
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
