import { PassThrough, pipeline } from 'node:stream';
import type { Readable } from 'node:stream';
import { constants, createGzip } from 'node:zlib';
import { transient } from '../../domain/errors.ts';
import { csvOf } from './csv.ts';
import { itemsOf } from './items.ts';
import type { Item } from './items.ts';
import { mergedJsonl } from './jsonl.ts';
import { parquetOf } from './parquet.ts';
import { isRewritten } from './query.ts';
import type { Conversion } from './query.ts';

/** Each holds a row group, or some lines, and takes a thread's time; others are told to come again. */
export const MOST_CONVERTED = 8;
const AGAIN_MS = 2_000;
const BUFFER_BYTES = 256 * 1024;

/** Conversions that go on in this process. */
export interface ConversionSlots {
  taken: number;
}

/**
 * Takes a slot, and returns what gives it back; to be called before anything is awaited or opened, since many may come
 * at once. Throws `too_many_readers` (Transient) where there are as many conversions as may be at once.
 */
export function takeSlot(slots: ConversionSlots): () => void {
  if (slots.taken >= MOST_CONVERTED) {
    const message =
      `This server is converting ${MOST_CONVERTED} downloads already: ` +
      'try again later, or leave format, merge and gzip out.';
    throw transient('too_many_readers', message, { retryAfterMs: AGAIN_MS });
  }
  slots.taken += 1;
  let isTaken = true;
  return function free() {
    if (isTaken) slots.taken -= 1;
    isTaken = false;
  };
}

/**
 * The lines of an output or error file in the form that was asked for; `input` is the file that they are merged with.
 * It calls `onClose` when it is closed. What breaks in a source breaks it, never just ends it, and who destroys it ends
 * them.
 */
export function convert(
  sources: { answers: Readable; input: Readable | null },
  conversion: Conversion,
  onClose: () => void,
): Readable {
  const { answers, input } = sources;
  const both = input === null ? [answers] : [answers, input];
  // One may break while the other is read: it is told when its own turn comes.
  for (const source of both) source.on('error', () => undefined);
  const rewritten = isRewritten(conversion)
    ? streamOf(bytesOf(itemsOf(answers, input), conversion))
    : answers;
  rewritten.once('close', () => {
    onClose();
    for (const source of both) source.destroy();
  });
  return conversion.isGzip ? gzipped(rewritten) : rewritten;
}

/** One that closes as soon as it is destroyed, also while what it is made of waits for a source. */
function streamOf(bytes: AsyncGenerator<Buffer>): Readable {
  const stream = new PassThrough({ highWaterMark: BUFFER_BYTES });
  pipeline(bytes, stream, () => undefined);
  return stream;
}

function bytesOf(items: AsyncGenerator<Item[]>, conversion: Conversion): AsyncGenerator<Buffer> {
  if (conversion.format === 'csv') return csvOf(items, conversion);
  if (conversion.format === 'parquet') return parquetOf(items, conversion);
  return mergedJsonl(items);
}

/** The stream compressed; either one's end by an error is the other's. */
export function gzipped(stream: Readable): Readable {
  // The fastest level: JSON shrinks to a quarter even so, and downloads are not to wait for it.
  const gzip = createGzip({ level: constants.Z_BEST_SPEED });
  pipeline(stream, gzip, () => undefined);
  return gzip;
}
