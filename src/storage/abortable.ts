import { Readable } from 'node:stream';

export type ByteSource = AsyncIterable<Uint8Array> | Iterable<Uint8Array>;

/** Ends a stream that nobody will read on, so that its writer does not wait for ever and learns the reason. */
export function releaseSource(source: ByteSource, reason: unknown): void {
  if (!(source instanceof Readable)) return;
  // whoever put the stream has the reason already; without a listener it would end the process
  source.on('error', () => undefined);
  source.destroy(reason instanceof Error ? reason : new Error(String(reason)));
}

/** A stream is left as it is when reading stops early: `releaseSource` tells it why. */
async function* chunksOf(source: ByteSource): AsyncGenerator<Uint8Array> {
  yield* source instanceof Readable ? source.iterator({ destroyOnReturn: false }) : source;
}

/** A listener for each chunk: one promise raced against all of them would remember every race. */
function nextOrAbort(
  iterator: AsyncIterator<Uint8Array>,
  signal: AbortSignal,
): Promise<IteratorResult<Uint8Array>> {
  return new Promise((settle, reject) => {
    const abort = () => reject(signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    iterator
      .next()
      .then(settle, reject)
      .finally(() => signal.removeEventListener('abort', abort));
  });
}

/**
 * The chunks of a source until the signal is aborted, even while the source hangs; then rejects with the signal's
 * reason and does not wait for the source.
 */
export async function* abortable(
  source: ByteSource,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array> {
  if (signal === undefined) {
    yield* chunksOf(source);
    return;
  }
  const iterator = chunksOf(source);
  let hasEnded = false;
  try {
    for (;;) {
      signal.throwIfAborted();
      const next = await nextOrAbort(iterator, signal);
      hasEnded = next.done === true;
      if (next.done === true) return;
      yield next.value;
    }
  } finally {
    // a hanging generator answers this when its chunk comes; the caller has the abort's reason already
    if (!hasEnded) iterator.return(undefined).catch(() => undefined);
  }
}

/** Runs what can be stopped from within as well as by a signal; once it has ended, the signal is let go. */
export async function stoppable<T>(
  signal: AbortSignal | undefined,
  run: (stop: AbortController) => Promise<T>,
): Promise<T> {
  signal?.throwIfAborted();
  const stop = new AbortController();
  const onAbort = () => stop.abort(signal?.reason);
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    return await run(stop);
  } finally {
    signal?.removeEventListener('abort', onAbort);
  }
}
