import { createHash } from 'node:crypto';
import { mkdir, open } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { dirname, relative, sep } from 'node:path';
import type { PutResult } from './contract.ts';

/** Chunks are gathered to writes of this size: many small ones would each cost a trip to the thread pool. */
const BATCH_BYTES = 1024 * 1024;
/** So many chunks are written as they are; more of them cost less as one copy. */
const MOST_CHUNKS = 64;

interface Batch {
  chunks: Uint8Array[];
  bytes: number;
}

async function writeAll(file: FileHandle, { chunks, bytes }: Batch): Promise<void> {
  // Not joined first, since the copies would be garbage as large as all that is written.
  const isFew = chunks.length <= MOST_CHUNKS;
  let done = isFew ? (await file.writev(chunks)).bytesWritten : 0;
  if (done === bytes) return;
  // What is left when the disk took a part, which is mostly its last: the next write says why.
  const whole = Buffer.concat(chunks, bytes);
  while (done < bytes) {
    done += (await file.write(whole, done, bytes - done, null)).bytesWritten;
  }
}

/** Gathers chunks to batches of about a mebibyte. */
async function* batches(source: AsyncIterable<Uint8Array>): AsyncGenerator<Batch> {
  let chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of source) {
    chunks.push(chunk);
    bytes += chunk.length;
    if (bytes < BATCH_BYTES) continue;
    yield { chunks, bytes };
    chunks = [];
    bytes = 0;
  }
  if (bytes > 0) yield { chunks, bytes };
}

/**
 * Writes a source to an open file and onto the disk. Failures of the file are rethrown as what `failed` makes of them,
 * the source's own pass as they are.
 */
export async function writeSource(
  file: FileHandle,
  source: AsyncIterable<Uint8Array>,
  failed: (cause: unknown) => Promise<Error>,
): Promise<PutResult> {
  const digest = createHash('sha256');
  let bytes = 0;
  async function orFail(work: Promise<void>): Promise<void> {
    try {
      await work;
    } catch (cause) {
      throw await failed(cause);
    }
  }
  for await (const batch of batches(source)) {
    const written = orFail(writeAll(file, batch));
    // the thread pool writes meanwhile
    for (const chunk of batch.chunks) digest.update(chunk);
    await written;
    bytes += batch.bytes;
  }
  await orFail(file.sync());
  return { bytes, sha256: digest.digest('hex') };
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

/** Folders whose own entry is known to be on the disk, so that a put need not see to it again. */
export interface SyncedFolders {
  /** Makes the entry of a file in `folder` durable, and the folder's own entry and its parents' up to the root. */
  sync(folder: string): Promise<void>;
  forget(folder: string): void;
}

/** Beyond this many the memory is started anew, which costs a few syncs. */
const MOST_REMEMBERED = 10_000;

export function createSyncedFolders(root: string): SyncedFolders {
  const known = new Set<string>([root]);
  return {
    async sync(folder) {
      const unknown: string[] = [];
      for (let at = folder; !known.has(at); at = dirname(at)) unknown.push(at);
      // A folder's entry is in its parent. All at once, so that the disk's journal is flushed about once.
      await Promise.all([...new Set([folder, ...unknown.map(dirname)])].map(syncDirectory));
      if (known.size > MOST_REMEMBERED) known.clear();
      for (const path of [root, ...unknown]) known.add(path);
    },
    forget(folder) {
      known.delete(folder);
    },
  };
}

/** Makes a folder with its parents, and syncs the entries of those that were missing. */
export async function makeFolder(path: string): Promise<void> {
  const first = await mkdir(path, { recursive: true });
  if (first === undefined) return;
  const made = relative(dirname(first), path).split(sep);
  for (let at = path, n = 0; n < made.length; n += 1) {
    at = dirname(at);
    await syncDirectory(at);
  }
}
