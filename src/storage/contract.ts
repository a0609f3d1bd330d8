import type { Readable } from 'node:stream';

/** What is known of a stored object without reading it. */
export interface ObjectInfo {
  bytes: number;
  /** ms since 1970. */
  modifiedAt: number;
}

export interface PutResult {
  bytes: number;
  /** Hex digest of the bytes that were written. */
  sha256: string;
}

/**
 * Where inputs, segments, outputs and error files live. Keys are relative paths of `[A-Za-z0-9._-]` segments;
 * any other key is `InvalidInput`, so that none can leave the store. Every method may be repeated.
 */
export interface Storage {
  /**
   * Writes a stream of unknown length. Atomic and durable: once it resolves the whole object is on stable storage
   * under `key` and replaces what was there; when it rejects, or the process dies, nothing is visible.
   * Rejects with `storage.full` (Transient) when there is no room, with the source's own error when that fails,
   * and with the signal's reason when aborted. A source that is a stream is then destroyed with the same error.
   */
  put(
    key: string,
    source: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
    options?: { signal?: AbortSignal },
  ): Promise<PutResult>;
  /** Opens the bytes `start` to `end`, end excluded, of an object. `storage.not_found` (NotFound) if it is absent. */
  get(key: string, range?: { start?: number; end?: number }): Promise<Readable>;
  /** Null when there is no such object. */
  head(key: string): Promise<ObjectInfo | null>;
  /** Removes an object; one that is absent is a success. */
  delete(key: string): Promise<void>;
  /** Keys below a prefix that ends in `/`, in no order; objects that come or go meanwhile may or may not be seen. */
  list(prefix: string): AsyncIterable<string>;
  /** The store's random identity, made at first use: two hosts with folders of their own have different ones. */
  identity(): Promise<string>;
}
