/** Size of a chunk; what is larger is allocated for itself and never kept. */
export const CHUNK_BYTES = 256 * 1024;
/** What is kept for the next segment: as much as one holds when it is full. */
const MOST_FREE = 32;

/** Memory that open segments gather in, used again and again: what lives for seconds is dear to collect. */
export interface ChunkPool {
  /** A chunk of `CHUNK_BYTES`, or of `bytes` where that is more; its content is anything. */
  take(bytes: number): Buffer;
  /** Takes a chunk back that nobody reads or writes any more. */
  give(chunk: Buffer): void;
}

export function createChunkPool(): ChunkPool {
  const free: Buffer[] = [];
  return {
    take(bytes) {
      if (bytes > CHUNK_BYTES) return Buffer.allocUnsafeSlow(bytes);
      return free.pop() ?? Buffer.allocUnsafeSlow(CHUNK_BYTES);
    },
    give(chunk) {
      if (chunk.length === CHUNK_BYTES && free.length < MOST_FREE) free.push(chunk);
    },
  };
}
