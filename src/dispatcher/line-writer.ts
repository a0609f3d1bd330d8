import type { Writable } from 'node:stream';
import { finished } from 'node:stream/promises';
import { transient } from '../domain/errors.ts';

/** Lines go to the stream in batches of this size: a write for each would cost more than the line. */
const BATCH_BYTES = 256 * 1024;

/** Writes lines to a stream at the stream's own pace. */
export interface LineWriter {
  /** Answers with a promise only when the stream wants the writer to wait. */
  write(line: Buffer): Promise<void> | void;
  /** Writes what is left, ends the stream, and waits until it has taken everything. */
  end(): Promise<void>;
  /** Breaks the stream off, so that whoever reads it fails as well. */
  destroy(error: unknown): void;
}

/** Writes to a stream that somebody else has destroyed reject with its error, or `assembly.sink_closed` (Transient). */
export function createLineWriter(sink: Writable): LineWriter {
  let batch: Buffer[] = [];
  let bytes = 0;

  // An error may be emitted while nobody waits, and would end the process; the next write finds it in `errored`.
  sink.on('error', () => undefined);

  function check(): void {
    if (sink.errored !== null) throw sink.errored;
    if (!sink.destroyed) return;
    throw transient('assembly.sink_closed', 'the file was closed before its last line was written');
  }

  async function drained(): Promise<void> {
    await new Promise<void>((resolve) => {
      function settle(): void {
        sink.off('drain', settle);
        sink.off('close', settle);
        resolve();
      }
      sink.on('drain', settle);
      sink.on('close', settle);
    });
    check();
  }

  function flush(): Promise<void> | void {
    check();
    const joined = Buffer.concat(batch, bytes);
    batch = [];
    bytes = 0;
    return sink.write(joined) ? undefined : drained();
  }

  return {
    write(line) {
      batch.push(line);
      bytes += line.length;
      return bytes >= BATCH_BYTES ? flush() : undefined;
    },
    async end() {
      await flush();
      sink.end();
      await finished(sink, { readable: false, cleanup: true });
    },
    destroy(error) {
      sink.destroy(error instanceof Error ? error : new Error(String(error)));
    },
  };
}
