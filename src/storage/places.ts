import type { Readable } from 'node:stream';
import {
  isChangedObject,
  notFound,
  permanent,
  shownError,
  SluiceError,
  transient,
} from '../domain/errors.ts';
import { formatLocation, formatPinned, isUrl, isWithin, parseAddress } from '../domain/location.ts';
import type { Location, Pin } from '../domain/location.ts';
import type {
  AbandonedUpload,
  Link,
  LinkOptions,
  ObjectInfo,
  PutResult,
  Storage,
} from './contract.ts';
import { isSameEtag } from './object-version.ts';
import type { ObjectVersion } from './object-version.ts';
import type { S3Options } from './s3-client.ts';
import { S3_NAMES } from './s3-errors.ts';
import { s3Options } from './s3-target.ts';
import type { S3Target } from './s3-target.ts';
import type { Asking } from './s3-head.ts';
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
  /** Hears, once, a sentence where a setting is taken otherwise than it was given. */
  onNote?: (note: string) => void;
  /** How long somebody waits for a look at a place, ms; 15 s unless given. */
  lookMs?: number;
}

/** Places, and the storage that reads and writes them as well as what is its own. */
export interface Opened {
  places: Places;
  storage: Storage;
}

/** What tries whether a folder can be written is called so, and never becomes an object. */
const PROBE = '.sluice-write-check';
/** What we write below a folder. */
const OURS =
  /(?:^|\/)(?:batch_[A-Za-z0-9]+_(?:output\.jsonl|error\.jsonl|manifest\.json)|\.sluice-write-check)$/;
const LOOK_MS = 15_000;
const LOOK_ATTEMPTS = 2;

/**
 * Makes a storage take addresses of objects (`s3://bucket/key`, and the pinned ones that its `put` returns) wherever it
 * takes a key to read, to write or to link to; keys are its own as before. What is pinned is read as it was: where the object was
 * changed, that is `storage.changed` (Permanent). Addresses outside of the allowed folders are
 * `storage.not_allowed` (Permanent), whoever asks: records may be older than the setting. Outside, nothing is ever
 * listed, joined or deleted.
 */
export function openPlaces(own: Storage, options: PlacesOptions): Opened {
  const { allowed, lookMs = LOOK_MS } = options;
  const open = bucketOpener(options);
  const places = placesOf(allowed, lookMs, open);

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
    async presign(key, link) {
      const address = addressOf(key);
      if (address === null) return own.presign(key, link);
      return presign(await open(address.location), address, link);
    },
    async head(key) {
      const address = addressOf(key);
      if (address === null) return own.head(key);
      return head(await open(address.location), address);
    },
    /** Those of the allowed folders, too, where we began them; their keys are URLs. */
    async *abandoned(olderThanMs) {
      yield* own.abandoned(olderThanMs);
      const failures: unknown[] = [];
      for (const folder of allowed) {
        try {
          yield* abandonedIn(await open(folder), folder, olderThanMs);
        } catch (error) {
          // The others are to be looked at all the same.
          failures.push(error);
        }
      }
      if (failures.length > 0) throw failures[0];
    },
    async abandon(upload) {
      const address = addressOf(upload.key);
      if (address === null) return own.abandon(upload);
      const { location } = address;
      await (await open(location)).abandon({ ...upload, key: location.key });
    },
  };
  return { places, storage };
}

type Open = (location: Location) => Promise<S3Storage>;

/** Opens each bucket once. */
function bucketOpener(options: PlacesOptions): Open {
  const buckets = new Map<string, Promise<S3Storage>>();

  const told = new Set<string>();
  function tell(note: string): void {
    if (!told.has(note)) options.onNote?.(note);
    told.add(note);
  }

  return async function open(location) {
    const { wanted, note } = optionsOf(location, options);
    if (note !== null) tell(note);
    const name = `${location.scheme}://${location.bucket}`;
    const opened = buckets.get(name) ?? openBucketStorage(wanted);
    buckets.set(name, opened);
    return opened;
  };
}

function placesOf(allowed: readonly Location[], lookMs: number, open: Open): Places {
  return {
    allowed,
    async look(location) {
      const store = await open(location);
      return soon(location, lookMs, (asking) => look(store, location, asking));
    },
    async isThere(location, pin) {
      const store = await open(location);
      return soon(location, lookMs, async (asking) => {
        const found = await orNewest(pin, (of) => store.head(location.key, of, asking));
        return found !== null && isSameEtag(found.etag, pin.etag);
      });
    },
    async tryWriting(folder) {
      const store = await open(folder);
      await soon(folder, lookMs, (asking) => store.tryWriting(`${folder.key}${PROBE}`, asking));
    },
  };
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
  const { made, ...stored } = await store.write(location.key, source, sending);
  if (made !== null && made.etag !== '') {
    return { ...stored, address: formatPinned(location, pinOf(made)) };
  }
  let found: FoundObject | null;
  try {
    found = await look(store, location, {});
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
    if (pin === null) return await store.get(location.key, range);
    return await orNewest(pin, (of) => store.get(location.key, range, of));
  } catch (error) {
    if (pin !== null && isChangedObject(error)) throw await changed(store, location, pin, error);
    throw error;
  }
}

async function head(store: S3Storage, { location, pin }: Address): Promise<ObjectInfo | null> {
  if (pin === null) return store.head(location.key);
  const found = await orNewest(pin, (of) => store.head(location.key, of));
  if (found === null || isSameEtag(found.etag, pin.etag)) return found;
  throw await changed(store, location, pin, undefined);
}

/** A link names a version, or none: one that is pinned by its ETag alone is looked at now, and not when it is used. */
async function presign(
  store: S3Storage,
  { location, pin }: Address,
  link: LinkOptions,
): Promise<Link> {
  if (pin === null) return store.presign(location.key, link);
  return orNewest(pin, async (of) => {
    const found = await store.head(location.key, of);
    if (found === null) {
      throw notFound('storage.not_found', `there is no object '${formatLocation(location)}'`);
    }
    if (!isSameEtag(found.etag, pin.etag)) throw await changed(store, location, pin, undefined);
    return store.presign(location.key, link, of);
  });
}

/** What speaks S3 is loaded where it is used first: most deployments have no such places. */
async function openBucketStorage(options: S3Options): Promise<S3Storage> {
  const { createS3Storage } = await import('./s3.ts');
  return createS3Storage(options);
}

/** How the bucket of a location is reached, if it may be. */
function optionsOf(
  location: Location,
  { allowed, s3, tos }: PlacesOptions,
): { wanted: S3Options; note: string | null } {
  const { scheme, bucket } = location;
  if (isWithin(allowed, location)) {
    if (scheme === 's3') return { wanted: inWords(s3Options(s3(bucket))), note: null };
    const { options, note } = tosOptions(tos(bucket));
    return { wanted: inWords(options), note };
  }
  const message = `'${formatLocation(location)}' is not among the folders that ALLOWED_BUCKETS names`;
  throw permanent('storage.not_allowed', message);
}

/** Messages must not send anybody to the setting of our own bucket. */
function inWords(options: S3Options): S3Options {
  const { names = S3_NAMES } = options;
  return { ...options, anyKey: true, names: { ...names, bucket: 'the bucket in the URL' } };
}

/** Ends a look for which somebody waits in time, whatever the store does. */
async function soon<T>(
  location: Location,
  lookMs: number,
  ask: (asking: Asking) => Promise<T>,
): Promise<T> {
  const stop = new AbortController();
  const message = `'${formatLocation(location)}': its store did not answer within ${lookMs / 1_000} s. See whether it is overloaded or away.`;
  const timer = setTimeout(() => stop.abort(transient('storage.unavailable', message)), lookMs);
  try {
    return await ask({ signal: stop.signal, attempts: LOOK_ATTEMPTS });
  } finally {
    clearTimeout(timer);
  }
}

/** What was there before the bucket kept versions has one by this name, which the next write replaces. */
function pinOf({ etag, version }: ObjectVersion): Pin {
  return { etag, version: version === 'null' ? null : version };
}

/** Reading a version by its id needs a right of its own (s3:GetObjectVersion): without, the ETag has to do. */
async function orNewest<T>(pin: Pin, ask: (of: Pin) => Promise<T>): Promise<T> {
  try {
    return await ask(pin);
  } catch (error) {
    if (pin.version === null || !isDenied(error)) throw error;
    return ask({ ...pin, version: null });
  }
}

async function* abandonedIn(
  store: S3Storage,
  folder: Location,
  olderThanMs: number,
): AsyncGenerator<AbandonedUpload> {
  try {
    for await (const upload of store.abandoned(olderThanMs, folder.key)) {
      const { key } = upload;
      if (OURS.test(key)) yield { ...upload, key: formatLocation({ ...folder, key }) };
    }
  } catch (error) {
    // Nobody needs this right but to tidy up, and whoever owns the bucket may do that with a rule of its own.
    if (!isDenied(error)) throw error;
  }
}

async function look(
  store: S3Storage,
  { key }: Location,
  asking: Asking,
): Promise<FoundObject | null> {
  const found = await store.head(key, undefined, asking);
  if (found === null) return null;
  const { bytes, etag } = found;
  if (etag === '') {
    throw permanent('storage.no_etag', 'the store gives no ETag, by which a version is known');
  }
  const pin = pinOf(found);
  const mayRead = pin.version === null || (await mayReadVersion(store, key, pin, asking));
  return { bytes, pin: mayRead ? pin : { etag, version: null } };
}

async function mayReadVersion(
  store: S3Storage,
  key: string,
  of: Pin,
  asking: Asking,
): Promise<boolean> {
  try {
    return (await store.head(key, of, asking)) !== null;
  } catch (error) {
    if (isDenied(error)) return false;
    throw error;
  }
}

function isDenied(error: unknown): boolean {
  return error instanceof SluiceError && error.code === 'storage.denied';
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
    return `what it is now cannot be seen (${shownError(error)})`;
  }
}
