import { statfs } from 'node:fs/promises';
import { describeError, errorCode, permanent, SluiceError, transient } from '../domain/errors.ts';
import { invalidKey } from './keys.ts';

const FULL = new Set(['ENOSPC', 'EDQUOT', 'EFBIG']);
const REFUSED = new Set(['EACCES', 'EPERM', 'EROFS']);
/** What a key meets that is a folder, or that lies below an object. */
const MISPLACED = new Set(['EISDIR', 'ENOTDIR', 'EEXIST', 'ENOTEMPTY']);
/** A symbolic link where an object should be is none: we make no links, and follow none. */
const ABSENT = new Set(['ENOENT', 'ENOTDIR', 'ELOOP', 'EISDIR']);

export function isAbsent(error: unknown): boolean {
  return ABSENT.has(errorCode(error));
}

async function roomLeft(directory: string): Promise<string> {
  try {
    const { bavail, blocks, bsize } = await statfs(directory);
    const [free, all] = [bavail, blocks].map((n) => `${Math.floor((n * bsize) / 2 ** 20)} MiB`);
    return `${free} of ${all} free`;
  } catch (error) {
    return `free space unknown: ${describeError(error)}`;
  }
}

async function fullError(directory: string, code: string, cause: unknown): Promise<SluiceError> {
  const why = {
    ENOSPC: 'no room left',
    EDQUOT: 'the quota is used up',
    EFBIG: 'the file is longer than the file system or the process limit (ulimit -f) allows',
  }[code];
  const room = await roomLeft(directory);
  return transient(
    'storage.full',
    `${why} in ${directory} (${room}). Delete files there or give it more room; writing goes on by itself.`,
    { cause },
  );
}

/** The error of a write to the folder as one of ours, which says what to do. */
export async function writeError(
  directory: string,
  key: string,
  cause: unknown,
): Promise<SluiceError> {
  if (cause instanceof SluiceError) return cause;
  const code = errorCode(cause);
  if (FULL.has(code)) return fullError(directory, code, cause);
  if (REFUSED.has(code)) {
    return permanent(
      'storage.not_writable',
      `${directory} is not writable for user id ${process.getuid?.()} (${code}). Give this user the folder or choose another one.`,
      { cause },
    );
  }
  if (MISPLACED.has(code)) return invalidKey(key, 'would be a folder and an object at once');
  return unavailable(directory, cause);
}

/** The error of a look into the folder; what is absent is the caller's to tell. */
export function readError(directory: string, cause: unknown): SluiceError {
  if (cause instanceof SluiceError) return cause;
  const code = errorCode(cause);
  if (!REFUSED.has(code)) return unavailable(directory, cause);
  return permanent(
    'storage.not_readable',
    `${directory} is not readable for user id ${process.getuid?.()} (${code}). Give this user the folder.`,
    { cause },
  );
}

function unavailable(directory: string, cause: unknown): SluiceError {
  return transient('storage.unavailable', `${directory}: ${describeError(cause)}`, { cause });
}
