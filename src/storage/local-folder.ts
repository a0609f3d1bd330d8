import { randomUUID } from 'node:crypto';
import { lstat, mkdir, open, readdir, rename, unlink } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { errorCode, permanent } from '../domain/errors.ts';
import type { AbandonedUpload } from './contract.ts';
import { invalidKey } from './keys.ts';
import { isAbsent, readError, writeError } from './local-errors.ts';
import { createSyncedFolders, makeFolder } from './local-files.ts';
import type { SyncedFolders } from './local-files.ts';

const TEMPORARY = '.tmp';
/** A temporary file that was not written to for so long belongs to a process that died. */
const STALE_MS = 24 * 3_600_000;
/** How often a put makes its folder again when deletes of the last neighbour remove it. */
const FOLDER_ATTEMPTS = 5;

/** The folder of a store. */
export interface Folder {
  directory: string;
  temporary: string;
  synced: SyncedFolders;
  /** Resolves when the folder is there and has been swept; tried again after a failure. */
  ready(): Promise<void>;
}

/** Whether a name in the folder of a store is that of what is not written to its end. */
export function isTemporary(name: string): boolean {
  return name === TEMPORARY;
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

export async function* abandoned(folder: Folder, before: number): AsyncGenerator<AbandonedUpload> {
  try {
    yield* stale(folder.temporary, before);
  } catch (error) {
    // nothing was ever put
    if (!isAbsent(error)) throw readError(folder.directory, error);
  }
}

export async function abandon(folder: Folder, name: string): Promise<void> {
  try {
    await removeTemporary(folder.temporary, name);
  } catch (error) {
    throw await writeError(folder.directory, name, error);
  }
}

export function openFolder(directory: string): Folder {
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
export async function withTemporary<T>(
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

/** Moves a file that is on the disk to its key, so that it is there after a power cut as well. */
export async function moveDurably(folder: Folder, from: string, key: string): Promise<void> {
  const target = join(folder.directory, key);
  try {
    await moveInto(from, target);
    await folder.synced.sync(dirname(target));
  } catch (cause) {
    throw await writeError(folder.directory, key, cause);
  }
}
