/** Stores that URLs of objects name, by the scheme of the URL. */
export const SCHEMES = ['s3', 'tos'] as const;
export type Scheme = (typeof SCHEMES)[number];

/** An object of a bucket that belongs to somebody else; of a folder the key ends in `/`, or is empty. */
export interface Location {
  scheme: Scheme;
  bucket: string;
  key: string;
}

/** One version of an object: its bytes never change. */
export interface Pin {
  /** As the store gives it, quotes included. */
  etag: string;
  /** Id of the version where the bucket keeps versions, and they may be read; else null. */
  version: string | null;
}

/** What a URL names, or what is wrong with it: a sentence that begins after the URL. */
export type Parsed = { location: Location } | { problem: string };

/** As long as stores allow, in bytes. */
const MAX_KEY = 1_024;
/** What is written below a folder: the longest id of a batch, and what is behind it. */
const ROOM_FOR_NAMES = 160;
/** Amazon's rules of bucket names. */
export const BUCKET_NAME = /^[a-z0-9](?:[a-z0-9-]|\.(?!\.)){1,61}[a-z0-9]$/;
/** Characters that no key may have here: those that end a key in a URL, and those that nobody sees. */
const REFUSED = /[?#\\\p{Cc}\p{Cf}\u2028\u2029]/u;

/** Whether a text is meant to be a URL; no id of ours has a colon. */
export function isUrl(text: string): boolean {
  return text.includes(':');
}

/** The object that a URL `s3://bucket/key` or `tos://bucket/key` names; the key stands for itself, `%` included. */
export function parseObjectUrl(url: string): Parsed {
  const parsed = parse(url);
  if ('problem' in parsed) return parsed;
  const { key } = parsed.location;
  if (key === '') return { problem: 'names a bucket, and no object in it' };
  if (key.endsWith('/')) return { problem: 'ends in a slash: it names a folder, and no object' };
  return parsed;
}

/** The folder that a URL names, with or without a slash at its end. */
export function parseFolderUrl(url: string): Parsed {
  const parsed = parse(url);
  if ('problem' in parsed) return parsed;
  const { key } = parsed.location;
  if (key === '' || key.endsWith('/')) return checkRoom(parsed.location);
  return checkRoom({ ...parsed.location, key: `${key}/` });
}

function checkRoom(location: Location): Parsed {
  const bytes = byteLength(location.key);
  const most = MAX_KEY - ROOM_FOR_NAMES;
  return bytes > most ? { problem: `is longer than ${most} bytes` } : { location };
}

function parse(url: string): Parsed {
  const [, scheme, bucket = '', key = ''] = /^(s3|tos):\/\/([^/]*)(?:\/(.*))?$/s.exec(url) ?? [];
  if (!isScheme(scheme))
    return { problem: 'is no URL such as s3://bucket/key or tos://bucket/key' };
  if (!BUCKET_NAME.test(bucket)) {
    const rule = 'of 3 to 63 characters out of a-z, 0-9, - and .';
    return { problem: `has '${bucket.slice(0, 100)}' where the name of a bucket ${rule} belongs` };
  }
  if (scheme === 'tos' && bucket.includes('.')) {
    return { problem: 'has a bucket with a dot, which no host name of TOS may have' };
  }
  const problem = problemOfKey(key);
  return problem === null ? { location: { scheme, bucket, key } } : { problem };
}

function byteLength(text: string): number {
  return new TextEncoder().encode(text).length;
}

function isScheme(text: string | undefined): text is Scheme {
  return SCHEMES.some((scheme) => scheme === text);
}

function problemOfKey(key: string): string | null {
  if (REFUSED.test(key) || !key.isWellFormed()) {
    return 'has a ?, #, backslash, control character or invisible character, which no key may have here';
  }
  if (byteLength(key) > MAX_KEY) return `has a key of more than ${MAX_KEY} bytes`;
  const names = (key.endsWith('/') ? key.slice(0, -1) : key).split('/');
  // What some servers take for a way out of a folder, or for the same key as another one.
  const isPlain = key === '' || names.every((name) => !['', '.', '..'].includes(name));
  return isPlain ? null : 'has an empty name, . or .. in its path';
}

/** Whether one of these folders has the object or folder in it, or is it. */
export function isWithin(folders: readonly Location[], { scheme, bucket, key }: Location): boolean {
  return folders.some(
    (folder) => folder.scheme === scheme && folder.bucket === bucket && key.startsWith(folder.key),
  );
}

export function formatLocation({ scheme, bucket, key }: Location): string {
  return `${scheme}://${bucket}/${key}`;
}

/** The URL of one version of an object, which no user can write: theirs have no `?`. */
export function formatPinned(location: Location, { etag, version }: Pin): string {
  const pin = new URLSearchParams({ etag, ...(version === null ? {} : { version }) });
  return `${formatLocation(location)}?${pin.toString()}`;
}

/** What `formatPinned` or `formatLocation` wrote, or null for anything else. */
export function parseAddress(text: string): { location: Location; pin: Pin | null } | null {
  const [url = '', query] = text.split('?', 2);
  const parsed = parse(url);
  if ('problem' in parsed) return null;
  const pin = new URLSearchParams(query);
  const etag = pin.get('etag');
  const { location } = parsed;
  return { location, pin: etag === null ? null : { etag, version: pin.get('version') } };
}

/** Where an object lies, for people: the version is left out. */
export function shownAddress(address: string): string {
  return address.split('?', 1)[0] ?? address;
}
