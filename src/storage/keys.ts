import { invalidInput } from '../domain/errors.ts';

const SEGMENT = /^[A-Za-z0-9._-]{1,255}$/;
/** As long as S3 allows. */
const MAX_KEY = 1_024;

/** Throws `storage.invalid_key` (InvalidInput) unless the key is a relative path of plain segments without `.` and `..`. */
function checkKey(key: string): void {
  if (!isPlainKey(key)) throw invalidKey(key, 'is no path of [A-Za-z0-9._-] names');
}

/** Whether `checkKey` takes a key. */
export function isPlainKey(key: string): boolean {
  if (key.length > MAX_KEY) return false;
  return key
    .split('/')
    .every((segment) => SEGMENT.test(segment) && segment !== '.' && segment !== '..');
}

/** What storages keep for themselves, all of them, so that objects can move from one to another. */
const RESERVED = new Set(['.tmp', 'identity']);

export function isReserved(key: string): boolean {
  return RESERVED.has(key.split('/', 1)[0] ?? '');
}

/** As `checkKey`, and refuses what storages keep for themselves. */
export function checkObjectKey(key: string): void {
  checkKey(key);
  if (isReserved(key)) throw invalidKey(key, 'is reserved');
}

/** The key of a prefix, which has to end in a slash. */
export function withoutSlash(prefix: string): string {
  if (!prefix.endsWith('/')) throw invalidKey(prefix, 'does not end in a slash');
  return prefix.slice(0, -1);
}

export function invalidKey(key: string, why: string) {
  return invalidInput('storage.invalid_key', `storage key '${key.slice(0, 200)}' ${why}`);
}

/** Throws `storage.invalid_range` (InvalidInput) unless `0 <= start <= end`, in whole bytes. */
export function checkRange(start: number, end: number | undefined): void {
  const isRange =
    Number.isSafeInteger(start) &&
    start >= 0 &&
    (end === undefined || (Number.isSafeInteger(end) && end >= start));
  if (!isRange) throw invalidInput('storage.invalid_range', `no byte range: ${start} to ${end}`);
}
