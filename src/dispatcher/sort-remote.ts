import { hash, randomUUID } from 'node:crypto';
import { mkdir, open, unlink } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { describeError, permanent, transient } from '../domain/errors.ts';
import type { RemoteResults } from './assemble-remote.ts';
import type { Answer } from './contract.ts';
import { scanRequest } from './json-scan.ts';
import { readLines } from './lines.ts';
import { readRemoteAnswers } from './remote-answers.ts';
import type { RemoteAnswer } from './remote-answers.ts';

/** About 100 bytes a line are held; what is larger has to come in order. */
const MOST_LINES = 2_000_000;
const WRITE_BYTES = 1024 * 1024;
const KINDS = ['output', 'error'] as const satisfies readonly Answer['kind'][];
const NEWLINE = Buffer.from('\n');

export interface SortOptions {
  /** Where a scratch file of the size of both files is made. */
  directory: string;
  maxLineBytes: number;
  maxResponseBytes: number;
}

/** Where the answer of each line of the input lies in the scratch file. */
interface Places {
  offset: Float64Array;
  length: Uint32Array;
  /** 1 for the output, 2 for the error file, 0 for none. */
  kind: Uint8Array;
}

/**
 * The same results with both files in the order of the input: for services that write them in another one, or a line
 * twice, of which the first counts and the output file's before the error file's. `close` gives the scratch file's
 * space back. Rejects with `remote.foreign` (Permanent) where a file names a request that is none of the input,
 * `remote.unordered` (Permanent) for an input of more than two million lines, and `storage.scratch` (Transient).
 */
export async function sortRemote(
  results: RemoteResults,
  options: SortOptions,
): Promise<RemoteResults & { close(): Promise<void> }> {
  const indexes = await indexInput(await results.openInput(), options);
  const size = indexes.size;
  const places = {
    offset: new Float64Array(size),
    length: new Uint32Array(size),
    kind: new Uint8Array(size),
  };
  const scratch = await createScratch(options.directory);
  try {
    const at = { indexes, places, scratch };
    await placeAll(await results.openOutput(), 1, at, options);
    await placeAll(await results.openError(), 2, at, options);
    await scratch.flush();
  } catch (error) {
    await scratch.close();
    throw error;
  }
  return {
    shards: results.shards,
    openInput: results.openInput,
    openOutput: async () => inOrder(places, 1, scratch),
    openError: async () => inOrder(places, 2, scratch),
    close: () => scratch.close(),
  };
}

function digestOf(customId: string): string {
  return hash('sha256', Buffer.from(customId, 'utf16le'), 'binary').slice(0, 16);
}

/** Which request of the input has an id; one that a later line has again is a bad line's. */
async function indexInput(
  source: AsyncIterable<Uint8Array>,
  { maxLineBytes }: SortOptions,
): Promise<Map<string, number>> {
  const indexes = new Map<string, number>();
  for await (const lines of readLines(source, { maxLineBytes })) {
    for (const { bytes } of lines) {
      const customId = bytes === null ? null : (scanRequest(bytes)?.customId ?? null);
      if (customId === null) continue;
      const digest = digestOf(String(JSON.parse(customId.toString('utf8'))));
      if (!indexes.has(digest)) indexes.set(digest, indexes.size);
    }
    if (indexes.size > MOST_LINES) {
      const message = `the remote files are not in the order of the input, which has more than ${MOST_LINES} requests`;
      throw permanent('remote.unordered', message);
    }
  }
  return indexes;
}

interface Sorting {
  indexes: Map<string, number>;
  places: Places;
  scratch: Scratch;
}

async function placeAll(
  file: AsyncIterable<Uint8Array> | null,
  kind: number,
  at: Sorting,
  { maxResponseBytes }: SortOptions,
): Promise<void> {
  if (file === null) return;
  for await (const answers of readRemoteAnswers(file, maxResponseBytes)) {
    for (const answer of answers) await place(answer, kind, at);
  }
}

async function place(
  { customId, bytes }: RemoteAnswer,
  kind: number,
  { indexes, places, scratch }: Sorting,
): Promise<void> {
  const index = indexes.get(digestOf(customId));
  if (index === undefined) {
    const message = `the remote ${KINDS[kind - 1]} file names '${customId.slice(0, 100)}', which is no request of the input`;
    throw permanent('remote.foreign', message);
  }
  if (places.kind[index] !== 0) return;
  places.kind[index] = kind;
  places.length[index] = bytes.length;
  places.offset[index] = scratch.size;
  await scratch.write(bytes);
}

async function* inOrder(
  { kind, offset, length }: Places,
  wanted: number,
  scratch: Scratch,
): AsyncGenerator<Uint8Array> {
  for (const [index, found] of kind.entries()) {
    if (found !== wanted) continue;
    yield await scratch.read(offset[index] ?? 0, length[index] ?? 0);
    yield NEWLINE;
  }
}

/** A file without a name, so that a killed process leaves nothing behind. */
interface Scratch {
  /** Bytes that were written. */
  readonly size: number;
  write(bytes: Buffer): Promise<void>;
  flush(): Promise<void>;
  read(offset: number, length: number): Promise<Buffer>;
  close(): Promise<void>;
}

async function createScratch(directory: string): Promise<Scratch> {
  async function orSay<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (cause) {
      const message = `putting remote results in order needs a scratch file in ${directory}: ${describeError(cause)}`;
      throw transient('storage.scratch', message, { cause });
    }
  }
  const file = await orSay(() => openScratch(directory));
  let [size, held] = [0, 0];
  let pieces: Buffer[] = [];
  async function flush(): Promise<void> {
    const bytes = Buffer.concat(pieces, held);
    pieces = [];
    held = 0;
    for (let done = 0; done < bytes.length;) {
      const at = size - bytes.length + done;
      const { bytesWritten } = await file.write(bytes, done, bytes.length - done, at);
      done += bytesWritten;
    }
  }
  return {
    get size() {
      return size;
    },
    async write(bytes) {
      pieces.push(bytes);
      held += bytes.length;
      size += bytes.length;
      if (held >= WRITE_BYTES) await orSay(flush);
    },
    flush: () => orSay(flush),
    async read(offset, length) {
      const bytes = Buffer.allocUnsafeSlow(length);
      for (let done = 0; done < length;) {
        const { bytesRead } = await file.read(bytes, done, length - done, offset + done);
        if (bytesRead === 0) throw new Error('the scratch file is shorter than what was written');
        done += bytesRead;
      }
      return bytes;
    },
    close: () => file.close(),
  };
}

async function openScratch(directory: string): Promise<FileHandle> {
  await mkdir(directory, { recursive: true });
  const path = join(directory, `remote-results-${randomUUID()}`);
  const file = await open(path, 'wx+', 0o600);
  await unlink(path);
  return file;
}
