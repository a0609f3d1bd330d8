import type { Readable } from 'node:stream';
import { describeError, permanent, SluiceError, transient } from '../domain/errors.ts';
import { formatLocation, formatPinned, isUrl, isWithin, parseAddress } from '../domain/location.ts';
import type { Location, Pin } from '../domain/location.ts';
import type { ObjectInfo, PutResult, Storage } from './contract.ts';
import type { S3Options } from './s3-client.ts';
import { S3_NAMES } from './s3-errors.ts';
import { s3Options } from './s3-target.ts';
import type { S3Target } from './s3-target.ts';
import type { S3Storage } from './s3.ts';
import { tosOptions } from './tos.ts';
import type { TosTarget } from './tos.ts';

/** An object of a bucket that belongs to somebody else, as it is now. */
export interface FoundObject {
  bytes: number;
  pin: Pin;
}

/** Buckets beside the deployment's own storage, in which batches may have their inputs and outputs. */
export interface Places {
  /** Folders that a batch may name; nothing outside of them is ever read or written. */
  allowed: readonly Location[];
  /**
   * Looks at an object; null when there is none. Rejects as a storage does: `storage.denied`, `.no_bucket` and the like.
   */
  look(location: Location): Promise<FoundObject | null>;
  /** Whether that version of an object can be read. Rejects as `look`. */
  isThere(location: Location, pin: Pin): Promise<boolean>;
  /** Rejects, as `look`, unless objects can be written below the folder. Leaves none there. */
  tryWriting(folder: Location): Promise<void>;
}

export interface PlacesOptions {
  allowed: readonly Location[];
  /** How a whole bucket is reached. */
  s3(bucket: string): S3Target;
  tos(bucket: string): TosTarget;
}

/** Places, and the storage that reads and writes them as well as what is its own. */
export interface Opened {
  places: Places;
  storage: Storage;
}

/** What tries whether a folder can be written is called so, and never becomes an object. */
const PROBE = '.sluice-write-check';

/**
 * Makes a storage take addresses of objects (`s3://bucket/key`, and the pinned ones that its `put` returns) wherever it
 * takes keys to read and write; keys are its own as before. What is pinned is read as it was: where the object was
 * changed, that is `storage.changed` (Permanent). Addresses outside of the allowed folders are
 * `storage.not_allowed` (Permanent), whoever asks: records may be older than the setting. Outside, nothing is ever
 * listed or deleted.
 */
export function openPlaces(own: Storage, options: PlacesOptions): Opened {
  const { allowed } = options;
  const buckets = new Map<string, Promise<S3Storage>>();

  async function open(location: Location): Promise<S3Storage> {
    const wanted = optionsOf(location, options);
    const name = `${location.scheme}://${location.bucket}`;
    const opened = buckets.get(name) ?? openBucketStorage(wanted);
    buckets.set(name, opened);
    return opened;
  }

  const places: Places = {
    allowed,
    look: async (location) => look(await open(location), location),
    async isThere(location, pin) {
      const found = await (await open(location)).head(location.key, pin);
      return found?.etag === pin.etag;
    },
    tryWriting: async (folder) => tryWriting(optionsOf(folder, options), folder),
  };

  /** Null for what is no address, but a key of our own. */
  function addressOf(text: string): ReturnType<typeof parseAddress> {
    return isUrl(text) ? parseAddress(text) : null;
  }

  const storage: Storage = {
    ...own,
    async put(key, source, sending) {
      const address = addressOf(key);
      if (address === null) return own.put(key, source, sending);
      const { location } = address;
      return put(await open(location), location, source, sending);
    },
    async get(key, range) {
      const address = addressOf(key);
      if (address === null) return own.get(key, range);
      return get(await open(address.location), address, range);
    },
    async head(key) {
      const address = addressOf(key);
      if (address === null) return own.head(key);
      return head(await open(address.location), address);
    },
  };
  return { places, storage };
}

/** What an address says. */
interface Address {
  location: Location;
  pin: Pin | null;
}

async function put(
  store: S3Storage,
  location: Location,
  source: Parameters<Storage['put']>[1],
  sending: Parameters<Storage['put']>[2],
): Promise<PutResult> {
  const stored = await store.put(location.key, source, sending);
  let found: FoundObject | null;
  try {
    found = await look(store, location);
  } catch (error) {
    // A folder may be there to be written only; nobody can say then which version this is.
    if (isDenied(error)) return { ...stored, address: formatLocation(location) };
    throw error;
  }
  if (found?.bytes === stored.bytes) {
    return { ...stored, address: formatPinned(location, found.pin) };
  }
  const message = `'${formatLocation(location)}' was written, and changed by somebody else at once`;
  throw transient('storage.changed', message);
}

async function get(
  store: S3Storage,
  { location, pin }: Address,
  range: Parameters<Storage['get']>[1],
): Promise<Readable> {
  try {
    return await store.get(location.key, range, pin ?? undefined);
  } catch (error) {
    if (pin !== null && isChanged(error)) throw await changed(store, location, pin, error);
    throw error;
  }
}

async function head(store: S3Storage, { location, pin }: Address): Promise<ObjectInfo | null> {
  const found = await store.head(location.key, pin ?? undefined);
  if (found === null || pin === null || found.etag === pin.etag) return found;
  throw await changed(store, location, pin, undefined);
}

/** What speaks S3 is loaded where it is used first: most deployments have no such places. */
async function openBucketStorage(options: S3Options): Promise<S3Storage> {
  const { createS3Storage } = await import('./s3.ts');
  return createS3Storage(options);
}

/** How the bucket of a location is reached, if it may be. */
function optionsOf(location: Location, { allowed, s3, tos }: PlacesOptions): S3Options {
  const { scheme, bucket } = location;
  if (isWithin(allowed, location)) {
    return inWords(scheme === 's3' ? s3Options(s3(bucket)) : tosOptions(tos(bucket)).options);
  }
  const message = `'${formatLocation(location)}' is not among the folders that ALLOWED_BUCKETS names`;
  throw permanent('storage.not_allowed', message);
}

/** Messages must not send anybody to the setting of our own bucket. */
function inWords(options: S3Options): S3Options {
  const { names = S3_NAMES } = options;
  return { ...options, anyKey: true, names: { ...names, bucket: 'the bucket in the URL' } };
}

async function look(store: S3Storage, { key }: Location): Promise<FoundObject | null> {
  const found = await store.head(key);
  if (found === null) return null;
  const { bytes, etag } = found;
  if (etag === '') {
    throw permanent('storage.no_etag', 'the store gives no ETag, by which a version is known');
  }
  // What was there before the bucket kept versions has one by this name, which the next write replaces.
  const isKept = found.version !== null && found.version !== 'null';
  const version = isKept && (await mayReadVersion(store, key, found)) ? found.version : null;
  return { bytes, pin: { etag, version } };
}

/** Reading a version by its id needs a right of its own (s3:GetObjectVersion). */
async function mayReadVersion(store: S3Storage, key: string, of: Pin): Promise<boolean> {
  try {
    return (await store.head(key, of)) !== null;
  } catch (error) {
    if (isDenied(error)) return false;
    throw error;
  }
}

function isDenied(error: unknown): boolean {
  return error instanceof SluiceError && error.code === 'storage.denied';
}

/** Begins an upload and gives it up: that takes the right to write, and nobody ever sees an object. */
async function tryWriting(options: S3Options, { bucket, key }: Location): Promise<void> {
  const { CreateMultipartUploadCommand } = await import('@aws-sdk/client-s3');
  const { openBucket } = await import('./s3-client.ts');
  const { abandonUpload } = await import('./s3-upload.ts');
  const opened = openBucket(options);
  const name = `${key}${PROBE}`;
  try {
    const input = { Bucket: bucket, Key: name };
    const { UploadId: uploadId } = await opened.call((send) =>
      opened.client.send(new CreateMultipartUploadCommand(input), send),
    );
    if (uploadId !== undefined) await abandonUpload(opened, { key: name, uploadId });
  } catch (error) {
    throw opened.fail('CreateMultipartUpload', error);
  } finally {
    opened.client.destroy();
  }
}

function isChanged(error: unknown): boolean {
  return (
    error instanceof SluiceError && error.code === 'storage.changed' && error.kind === 'Permanent'
  );
}

async function changed(
  store: S3Storage,
  location: Location,
  pin: Pin,
  cause: unknown,
): Promise<SluiceError> {
  const message = `'${formatLocation(location)}' was changed: it was the version with ETag ${pin.etag}, and ${await nowOf(store, location)}.`;
  // Gone for good, and no fault of this request.
  return new SluiceError('Permanent', 'storage.changed', message, { status: 410, cause });
}

async function nowOf(store: S3Storage, { key }: Location): Promise<string> {
  try {
    const now = await store.head(key);
    if (now === null) return 'is gone';
    const at = new Date(now.modifiedAt).toISOString();
    return `is one of ${now.bytes} bytes with ETag ${now.etag} since ${at}`;
  } catch (error) {
    // That it changed is known already.
    return `what it is now cannot be seen (${describeError(error)})`;
  }
}
