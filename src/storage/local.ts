import { randomUUID } from 'node:crypto';
import { constants, createReadStream } from 'node:fs';
import { copyFile, link, lstat, open, opendir, readFile, rmdir, unlink } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { Readable } from 'node:stream';
import { errorCode, invalidInput, notFound, permanent } from '../domain/errors.ts';
import { abortable, releaseSource } from './abortable.ts';
import type { JoinOptions, JoinResult, ObjectInfo, PutResult, Storage } from './contract.ts';
import { digestOf, inspected } from './inspected.ts';
import { checkObjectKey, checkRange, withoutSlash } from './keys.ts';
import { isAbsent, readError, writeError } from './local-errors.ts';
import { writeSource } from './local-files.ts';
import {
  abandon,
  abandoned,
  moveDurably,
  openFolder,
  isTemporary,
  withTemporary,
} from './local-folder.ts';
import type { Folder } from './local-folder.ts';

const IDENTITY = 'identity';
/** Reads of this size take a few lines of JSON to a thousand at once. */
const READ_BYTES = 256 * 1024;

async function put(
  folder: Folder,
  key: string,
  source: AsyncIterable<Uint8Array>,
  signal: AbortSignal | undefined,
): Promise<PutResult> {
  const failed = (cause: unknown) => writeError(folder.directory, key, cause);
  await folder.ready();
  return withTemporary(folder, key, async (file, path) => {
    const result = await writeSource(file, source, failed);
    signal?.throwIfAborted();
    await moveDurably(folder, path, key);
    return { result, moved: true };
  });
}

/** Copies a file as the kernel does it best, which may share the blocks, and reads what came of it. */
async function copy(
  folder: Folder,
  { from, to }: { from: string; to: string },
  { signal, inspect }: JoinOptions,
): Promise<JoinResult> {
  if ((await head(folder.directory, from)) === null) throw absent(from);
  await folder.ready();
  return withTemporary(folder, to, async (file, path) => {
    try {
      await copyFile(join(folder.directory, from), path, constants.COPYFILE_FICLONE);
    } catch (cause) {
      throw isAbsent(cause) ? absent(from) : await writeError(folder.directory, to, cause);
    }
    const bytes = createReadStream(path, { highWaterMark: READ_BYTES });
    const digest = await digestOf(abortable(inspected(bytes, inspect?.()), signal));
    signal?.throwIfAborted();
    await syncFile(folder, to, file);
    await moveDurably(folder, path, to);
    return { result: { ...digest, byStore: true }, moved: true };
  });
}

async function syncFile({ directory }: Folder, key: string, file: FileHandle): Promise<void> {
  try {
    await file.sync();
  } catch (cause) {
    throw await writeError(directory, key, cause);
  }
}

async function concat(
  folder: Folder,
  { parts, to }: { parts: readonly string[]; to: string },
  { signal, inspect }: JoinOptions,
): Promise<JoinResult> {
  async function* all(): AsyncGenerator<Uint8Array> {
    for (const part of parts)
      yield* (await get(folder.directory, part, {})) as AsyncIterable<Buffer>;
  }
  const source = abortable(inspected(all(), inspect?.()), signal);
  return { ...(await put(folder, to, source, signal)), byStore: false };
}

function absent(key: string): Error {
  return notFound('storage.not_found', `there is no object '${key}'`);
}

/** Opens an object, or null: a symbolic link is none, so that no key leads out of the folder. */
async function openObject(
  directory: string,
  key: string,
): Promise<{ file: FileHandle; bytes: number } | null> {
  try {
    const file = await open(join(directory, key), constants.O_RDONLY | constants.O_NOFOLLOW);
    const stat = await file.stat();
    if (stat.isFile()) return { file, bytes: stat.size };
    await file.close();
    return null;
  } catch (error) {
    if (isAbsent(error)) return null;
    throw readError(directory, error);
  }
}

async function get(
  directory: string,
  key: string,
  range: { start?: number; end?: number },
): Promise<Readable> {
  const { start = 0, end } = range;
  checkRange(start, end);
  const object = await openObject(directory, key);
  if (object === null) throw absent(key);
  const { file, bytes } = object;
  const last = Math.min(end ?? bytes, bytes) - 1;
  if (last < start) {
    await file.close();
    return Readable.from([]);
  }
  return file.createReadStream({ start, end: last, highWaterMark: READ_BYTES });
}

async function head(directory: string, key: string): Promise<ObjectInfo | null> {
  try {
    const stat = await lstat(join(directory, key));
    return stat.isFile() ? { bytes: stat.size, modifiedAt: Math.floor(stat.mtimeMs) } : null;
  } catch (error) {
    if (isAbsent(error)) return null;
    throw readError(directory, error);
  }
}

/** Removes the folders that an object leaves empty: `rmdir` refuses one that is not, whoever writes meanwhile. */
async function removeEmptyFolders(folder: Folder, key: string): Promise<void> {
  for (let at = dirname(key); at !== '.'; at = dirname(at)) {
    const path = join(folder.directory, at);
    folder.synced.forget(path);
    try {
      await rmdir(path);
    } catch {
      // in use, nearly always; an empty folder that stays does no harm
      return;
    }
  }
}

async function remove(folder: Folder, key: string): Promise<void> {
  if ((await head(folder.directory, key)) === null) return;
  try {
    await unlink(join(folder.directory, key));
  } catch (error) {
    if (!isAbsent(error)) throw await writeError(folder.directory, key, error);
  }
  await removeEmptyFolders(folder, key);
}

async function* list(directory: string, prefix: string): AsyncGenerator<string> {
  let entries;
  try {
    entries = await opendir(join(directory, prefix), { bufferSize: 256 });
  } catch (error) {
    if (isAbsent(error)) return;
    throw readError(directory, error);
  }
  for await (const entry of entries) {
    const key = `${prefix}${entry.name}`;
    if (isTemporary(key) || key === IDENTITY) continue;
    if (entry.isDirectory()) yield* list(directory, `${key}/`);
    else if (entry.isFile()) yield key;
  }
}

async function readIdentity(directory: string): Promise<string | null> {
  let text: string;
  try {
    text = await readFile(join(directory, IDENTITY), 'latin1');
  } catch (error) {
    if (isAbsent(error)) return null;
    throw readError(directory, error);
  }
  const identity = text.trim();
  if (/^[0-9a-f]{32}$/.test(identity)) return identity;
  throw permanent(
    'storage.identity_damaged',
    `${join(directory, IDENTITY)} does not hold 32 hexadecimal digits. Restore it, or delete it if no job is running.`,
  );
}

/** Makes the identity unless there is one: `link` never replaces, so that of two processes one wins and both read it. */
async function makeIdentity(folder: Folder): Promise<string> {
  const { directory } = folder;
  await folder.ready();
  const made = randomUUID().replaceAll('-', '');
  await withTemporary(folder, IDENTITY, async (file, path) => {
    try {
      await file.writeFile(`${made}\n`);
      await file.sync();
      await link(path, join(directory, IDENTITY));
      await folder.synced.sync(directory);
    } catch (cause) {
      if (errorCode(cause) !== 'EEXIST') throw await writeError(directory, IDENTITY, cause);
    }
    return { result: null, moved: false };
  });
  return (await readIdentity(directory)) ?? made;
}

/**
 * A folder as a store: an object is a file at its key. Writers put a temporary file in `.tmp`, sync it, rename it into
 * place and sync the folder, so an object is whole or not there. Needs a file system with hard links for `identity`.
 * Besides the contract: `storage.not_writable` and `storage.not_readable` (Permanent) where rights are missing,
 * `storage.unavailable` (Transient) for other trouble of the disk; the keys `.tmp/…` and `identity` are reserved;
 * a key cannot be another one's folder. A stream whose put fails is destroyed with the same error.
 */
export function createLocalStorage({ directory: path }: { directory: string }): Storage {
  const directory = resolve(path);
  const folder = openFolder(directory);
  return {
    async put(key, source, { signal } = {}) {
      try {
        checkObjectKey(key);
        signal?.throwIfAborted();
        return await put(folder, key, abortable(source, signal), signal);
      } catch (error) {
        releaseSource(source, error);
        throw error;
      }
    },
    async get(key, range = {}) {
      checkObjectKey(key);
      return get(directory, key, range);
    },
    async copy(from, to, options = {}) {
      for (const key of [from, to]) checkObjectKey(key);
      options.signal?.throwIfAborted();
      return copy(folder, { from, to }, options);
    },
    async concat(parts, to, options = {}) {
      for (const key of [...parts, to]) checkObjectKey(key);
      options.signal?.throwIfAborted();
      return concat(folder, { parts, to }, options);
    },
    async presign(key) {
      checkObjectKey(key);
      throw invalidInput('storage.no_links', 'a folder has no addresses to download from');
    },
    async head(key) {
      checkObjectKey(key);
      return head(directory, key);
    },
    async delete(key) {
      checkObjectKey(key);
      await remove(folder, key);
    },
    async *list(prefix) {
      if (prefix !== '') checkObjectKey(withoutSlash(prefix));
      yield* list(directory, prefix);
    },
    async identity() {
      return (await readIdentity(directory)) ?? (await makeIdentity(folder));
    },
    abandoned: (olderThanMs) => abandoned(folder, Date.now() - olderThanMs),
    abandon: ({ uploadId }) => abandon(folder, uploadId),
    clockAheadMs: () => 0,
  };
}
