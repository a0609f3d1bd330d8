import { randomUUID } from 'node:crypto';
import { mkdir, open, unlink } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { describeError, transient } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';
import { RECORD_WORDS, wordAt } from './digest-table.ts';

const RECORD_BYTES = RECORD_WORDS * 4;
/**
 * Spilled records are grouped by the digest's first bits, and one group after the other is checked in memory.
 * A thousand partitions hold 268 million ids at the default, and cost 4 KiB of index a spill.
 */
const PARTITION_BITS = 10;
const PARTITIONS = 2 ** PARTITION_BITS;
/** How much of the scratch file is read at once. */
const READ_RECORDS = 16_384;

/** Digest records in a scratch file that has no name, so that a killed process leaves nothing behind. */
export interface DigestSpill {
  /** Appends records. Rejects with `storage.scratch` (Transient) where there is no room. */
  write(records: Uint32Array): Promise<void>;
  /**
   * All records in groups of about `records`, equal digests in one group and in the order in which they came, each
   * group as views of one buffer that the next view overwrites.
   */
  groups(records: number): Iterable<AsyncIterable<Uint32Array>>;
  /** May be called again. */
  close(): Promise<void>;
}

interface Spilled {
  /** Offset in the scratch file, in records. */
  offset: number;
  /** Index of each partition's first record within what was written, and one more for the end. */
  starts: Uint32Array;
}

function partitionOf(records: Uint32Array, at: number): number {
  return wordAt(records, at) >>> (32 - PARTITION_BITS);
}

/** The records grouped by partition, in order within each (a counting sort), and where each partition starts. */
function groupRecords(records: Uint32Array): { grouped: Uint32Array; starts: Uint32Array } {
  const starts = new Uint32Array(PARTITIONS + 1);
  for (let at = 0; at < records.length; at += RECORD_WORDS) {
    const after = partitionOf(records, at) + 1;
    starts[after] = wordAt(starts, after) + 1;
  }
  for (let p = 1; p <= PARTITIONS; p += 1) starts[p] = wordAt(starts, p) + wordAt(starts, p - 1);
  const next = starts.slice();
  const grouped = new Uint32Array(records.length);
  for (let at = 0; at < records.length; at += RECORD_WORDS) {
    const partition = partitionOf(records, at);
    const to = wordAt(next, partition);
    next[partition] = to + 1;
    for (let word = 0; word < RECORD_WORDS; word += 1) {
      grouped[to * RECORD_WORDS + word] = wordAt(records, at + word);
    }
  }
  return { grouped, starts };
}

function bytesOf(records: Uint32Array): Uint8Array {
  return new Uint8Array(records.buffer, records.byteOffset, records.byteLength);
}

async function openScratch(directory: string): Promise<FileHandle> {
  await mkdir(directory, { recursive: true });
  const path = join(directory, `custom-ids-${randomUUID()}`);
  const file = await open(path, 'wx+', 0o600);
  await unlink(path);
  return file;
}

async function writeAll(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, position + done);
    done += bytesWritten;
  }
}

/** Fills `bytes` from a range that was written before. */
async function readAll(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesRead } = await file.read(bytes, done, bytes.length - done, position + done);
    if (bytesRead === 0) throw new Error('the scratch file is shorter than what was written');
    done += bytesRead;
  }
}

/** Runs of neighbouring partitions that hold at most `records` together, at least one partition each. */
function* partitionRuns(all: readonly Spilled[], records: number): Generator<[number, number]> {
  let from = 0;
  let held = 0;
  for (let p = 0; p < PARTITIONS; p += 1) {
    let count = 0;
    for (const { starts } of all) count += wordAt(starts, p + 1) - wordAt(starts, p);
    if (held > 0 && held + count > records) {
      yield [from, p];
      from = p;
      held = 0;
    }
    held += count;
  }
  yield [from, PARTITIONS];
}

async function* readPartitions(
  file: FileHandle,
  all: readonly Spilled[],
  [from, to]: [number, number],
): AsyncGenerator<Uint32Array> {
  const buffer = new Uint32Array(READ_RECORDS * RECORD_WORDS);
  for (const { offset, starts } of all) {
    const end = wordAt(starts, to);
    for (let next = wordAt(starts, from); next < end; next += READ_RECORDS) {
      const some = buffer.subarray(0, Math.min(READ_RECORDS, end - next) * RECORD_WORDS);
      await readAll(file, bytesOf(some), (offset + next) * RECORD_BYTES);
      yield some;
    }
  }
}

function noScratch(directory: string, cause: unknown): SluiceError {
  return transient(
    'storage.scratch',
    `checking for duplicate custom_ids needs a scratch file in ${directory}: ${describeError(cause)}`,
    { cause },
  );
}

/** The scratch file is made by the first `write`, in `directory`, which is made too. */
export function createDigestSpill(directory: string): DigestSpill {
  let file: FileHandle | null = null;
  const all: Spilled[] = [];
  let written = 0;
  return {
    async write(records) {
      const { grouped, starts } = groupRecords(records);
      try {
        file ??= await openScratch(directory);
        await writeAll(file, bytesOf(grouped), written * RECORD_BYTES);
      } catch (cause) {
        throw noScratch(directory, cause);
      }
      all.push({ offset: written, starts });
      written += records.length / RECORD_WORDS;
    },
    *groups(records) {
      if (file === null) return;
      for (const run of partitionRuns(all, records)) yield readPartitions(file, all, run);
    },
    async close() {
      const open = file;
      file = null;
      await open?.close();
    },
  };
}
