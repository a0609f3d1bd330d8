import type { Readable } from 'node:stream';

/** Streams open at once: a store's client may have no more sockets than that, a process few file handles. */
const MOST_OPEN = 16;

/** A byte range that is read in windows, each fetched whole, so that no stream stays open between them. */
export interface Range {
  length: number;
  window: number;
  /** Opens `length` bytes from `offset`, counted from the range's start. */
  open(offset: number, length: number): Promise<Readable>;
}

/** Fetches ranges, a bounded number of streams at a time. */
export interface RangeReader {
  /**
   * Begins to fetch the first window and answers with the bytes of the whole range, in order; later windows are
   * fetched when they are asked for. Ends early when the store has fewer bytes than the range, or more.
   */
  start(range: Range): AsyncGenerator<Buffer>;
  /** Begins nothing more and waits for what is under way. */
  close(): Promise<void>;
}

/** The chunks of a stream, up to the one with which it proves longer than `length`. */
async function collect(stream: Readable, length: number): Promise<Buffer[]> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    chunks.push(chunk);
    bytes += chunk.length;
    if (bytes > length) break;
  }
  return chunks;
}

export function createRangeReader(): RangeReader {
  const underWay = new Set<Promise<Buffer[]>>();
  const waiting: (() => void)[] = [];
  let open = 0;
  let closed = false;

  async function fetch(range: Range, offset: number, length: number): Promise<Buffer[]> {
    if (open < MOST_OPEN) open += 1;
    else await new Promise<void>((resolve) => waiting.push(resolve));
    try {
      return closed ? [] : await collect(await range.open(offset, length), length);
    } finally {
      const next = waiting.shift();
      if (next === undefined) open -= 1;
      else next();
    }
  }

  function begin(range: Range, offset: number): Promise<Buffer[]> {
    const fetching = fetch(range, offset, Math.min(range.window, range.length - offset));
    underWay.add(fetching);
    const forget = () => underWay.delete(fetching);
    // whoever wants the bytes sees the rejection; after a failure elsewhere nobody does
    fetching.then(forget, forget);
    return fetching;
  }

  async function* windows(range: Range, first: Promise<Buffer[]>): AsyncGenerator<Buffer> {
    let chunks = await first;
    for (let offset = 0; ; chunks = await begin(range, offset)) {
      const wanted = Math.min(range.window, range.length - offset);
      let got = 0;
      for (const chunk of chunks) {
        got += chunk.length;
        yield chunk;
      }
      offset += wanted;
      if (got !== wanted || offset === range.length) return;
    }
  }

  return {
    start(range) {
      return windows(range, begin(range, 0));
    },
    async close() {
      closed = true;
      await Promise.allSettled(underWay);
    },
  };
}
