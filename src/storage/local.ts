import { randomUUID } from 'node:crypto';
import { constants } from 'node:fs';
import {
  link,
  lstat,
  mkdir,
  open,
  opendir,
  readdir,
  readFile,
  rename,
  rmdir,
  unlink,
} from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { Readable } from 'node:stream';
import { errorCode, notFound, permanent } from '../domain/errors.ts';
import { abortable, releaseSource } from './abortable.ts';
import type { AbandonedUpload, ObjectInfo, PutResult, Storage } from './contract.ts';
import { checkObjectKey, checkRange, invalidKey, withoutSlash } from './keys.ts';
import { isAbsent, readError, writeError } from './local-errors.ts';
import { createSyncedFolders, makeFolder, writeSource } from './local-files.ts';
import type { SyncedFolders } from './local-files.ts';

const TEMPORARY = '.tmp';
const IDENTITY = 'identity';
/** A temporary file that was not written to for so long belongs to a process that died. */
const STALE_MS = 24 * 3_600_000;
/** Reads of this size take a few lines of JSON to a thousand at once. */
const READ_BYTES = 256 * 1024;
/** How often a put makes its folder again when deletes of the last neighbour remove it. */
const FOLDER_ATTEMPTS = 5;

interface Folder {
  directory: string;
  temporary: string;
  synced: SyncedFolders;
  /** Resolves when the folder is there and has been swept; tried again after a failure. */
  ready(): Promise<void>;
}

/** Temporary files that nobody has written to since. */
async function* stale(temporary: string, before: number): AsyncGenerator<AbandonedUpload> {
  for (const name of await readdir(temporary)) {
    try {
      const { mtimeMs } = await lstat(join(temporary, name));
      const startedAt = Math.floor(mtimeMs);
      if (mtimeMs < before) yield { key: `${TEMPORARY}/${name}`, uploadId: name, startedAt };
    } catch (error) {
      // its process was faster
      if (!isAbsent(error)) throw error;
    }
  }
}

async function removeTemporary(temporary: string, name: string): Promise<void> {
  if (!/^[\w-]+$/.test(name)) throw invalidKey(name, 'names no temporary file');
  try {
    await unlink(join(temporary, name));
  } catch (error) {
    // another process was faster
    if (!isAbsent(error)) throw error;
  }
}

/** Removes what killed processes left behind. */
async function sweep(temporary: string): Promise<void> {
  for await (const { uploadId } of stale(temporary, Date.now() - STALE_MS)) {
    await removeTemporary(temporary, uploadId);
  }
}

async function* abandoned(folder: Folder, before: number): AsyncGenerator<AbandonedUpload> {
  try {
    yield* stale(folder.temporary, before);
  } catch (error) {
    // nothing was ever put
    if (!isAbsent(error)) throw readError(folder.directory, error);
  }
}

async function abandon(folder: Folder, name: string): Promise<void> {
  try {
    await removeTemporary(folder.temporary, name);
  } catch (error) {
    throw await writeError(folder.directory, name, error);
  }
}

function openFolder(directory: string): Folder {
  const temporary = join(directory, TEMPORARY);
  let preparing: Promise<void> | null = null;
  async function prepare(): Promise<void> {
    try {
      await makeFolder(temporary);
      await sweep(temporary);
    } catch (cause) {
      preparing = null;
      if (errorCode(cause) !== 'EEXIST' && errorCode(cause) !== 'ENOTDIR') {
        throw await writeError(directory, TEMPORARY, cause);
      }
      throw permanent('storage.not_writable', `${directory} is not a folder`, { cause });
    }
  }
  return {
    directory,
    temporary,
    synced: createSyncedFolders(directory),
    ready() {
      preparing ??= prepare();
      return preparing;
    },
  };
}

/** Runs `use` on a new file in the temporary folder; unless `use` has moved it, it is removed. */
async function withTemporary<T>(
  { directory, temporary }: Folder,
  key: string,
  use: (file: FileHandle, path: string) => Promise<{ result: T; moved: boolean }>,
): Promise<T> {
  const path = join(temporary, `${process.pid}-${randomUUID()}`);
  let file: FileHandle;
  try {
    file = await open(path, 'wx');
  } catch (cause) {
    throw await writeError(directory, key, cause);
  }
  let moved = false;
  try {
    const used = await use(file, path);
    moved = used.moved;
    return used.result;
  } finally {
    await file.close();
    // what cannot be removed now is swept a day later, and must not hide the error that led here
    if (!moved) await unlink(path).catch(() => undefined);
  }
}

/** Renames into place; the target's folder is made when it is missing, which a delete may make it again. */
async function moveInto(from: string, to: string): Promise<void> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      await rename(from, to);
      return;
    } catch (error) {
      if (errorCode(error) !== 'ENOENT' || attempt === FOLDER_ATTEMPTS) throw error;
      await mkdir(dirname(to), { recursive: true });
    }
  }
}

async function put(
  folder: Folder,
  key: string,
  source: AsyncIterable<Uint8Array>,
  signal: AbortSignal | undefined,
): Promise<PutResult> {
  const target = join(folder.directory, key);
  const failed = (cause: unknown) => writeError(folder.directory, key, cause);
  await folder.ready();
  return withTemporary(folder, key, async (file, path) => {
    const result = await writeSource(file, source, failed);
    signal?.throwIfAborted();
    try {
      await moveInto(path, target);
      await folder.synced.sync(dirname(target));
    } catch (cause) {
      throw await failed(cause);
    }
    return { result, moved: true };
  });
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
  if (object === null) throw notFound('storage.not_found', `there is no object '${key}'`);
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
    if (key === TEMPORARY || key === IDENTITY) continue;
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
