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
  /** Where just these bytes are read from now on; absent: under the key that they were written to. */
  address?: string;
}

/** Looks at all bytes of an object that is being made of others, before anybody can see it. */
export interface Inspector {
  /** All bytes, in order; they are not kept. */
  see(chunk: Uint8Array): void;
  /** They were all; what it throws is why there will be no such object. */
  end(): void;
}

export interface JoinOptions {
  signal?: AbortSignal;
  /** Makes one for each time that the bytes are read from their start: again where the store first has to be tried. */
  inspect?: () => Inspector;
}

export interface JoinResult extends PutResult {
  /** Whether the store itself put the bytes together: they were read, and not sent again. */
  byStore: boolean;
}

export interface LinkOptions {
  /** At least 1, at most a week. */
  expiresInSeconds: number;
  /** What a browser is to call the file: the value of its `Content-Disposition`. */
  disposition?: string;
  /** Media type that the answer is to have. */
  type?: string;
}

export interface Link {
  url: string;
  /** ms since 1970; earlier than was asked for where the credentials that signed it end before. */
  expiresAt: number;
}

/** A write that was begun and neither finished nor given up: its process died, or its store did not hear of the end. */
export interface AbandonedUpload {
  /** What it was to become. Where only its bytes are known, as in a folder, the name of what holds them. */
  key: string;
  uploadId: string;
  /** ms since 1970; of a local one when it was last written to. */
  startedAt: number;
}

/**
 * Where inputs, segments, outputs and error files live. Keys are relative paths of `[A-Za-z0-9._-]` segments;
 * any other key is `InvalidInput`, so that none can leave the store. Every method may be repeated. Where a method
 * names no errors of its own, it rejects with a Transient one (`storage.…`) that says what is wrong with the store and
 * how to mend it; what the store itself is to be asked again for was asked again by then.
 */
export interface Storage {
  /**
   * Writes a stream of unknown length. Atomic and durable: once it resolves the whole object is on stable storage
   * under `key` and replaces what was there; when it rejects, or the process dies, nothing is visible. Only where the
   * store's last answer was lost may the object be there all the same, and then it is whole.
   * Rejects with `storage.full` (Transient) when there is no room, with the source's own error when that fails,
   * and with the signal's reason when aborted. A source that is a stream is then destroyed with the same error.
   */
  put(
    key: string,
    source: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
    options?: { signal?: AbortSignal },
  ): Promise<PutResult>;
  /**
   * Opens the bytes `start` to `end`, end excluded, of an object. `storage.not_found` (NotFound) if it is absent; a range
   * beyond its end is empty. All bytes that one stream gives are of one version of the object: when it is replaced while
   * they are read, they go on as they were, or the stream ends with `storage.changed` (Transient).
   */
  get(key: string, range?: { start?: number; end?: number }): Promise<Readable>;
  /**
   * Writes the bytes of one object under another key, with no trip of theirs back to the store where that can copy.
   * Atomic and durable as `put`, and rejects as it does; besides with `storage.not_found` (NotFound) where there is no
   * such object, `storage.changed` (Transient) where it was replaced meanwhile, and with what the inspector threw.
   * What the inspector saw, and the digest is of, is what the object has; its source stays.
   */
  copy(from: string, to: string, options?: JoinOptions): Promise<JoinResult>;
  /**
   * Writes the bytes of several objects, one after the other, as one. As `copy` in all; of a join that fails nothing is
   * visible, and of one whose process dies there is what `abandoned` finds.
   */
  concat(parts: readonly string[], to: string, options?: JoinOptions): Promise<JoinResult>;
  /**
   * An address from which anybody who has it can download the object, until it expires; nothing is asked of the store, so
   * that one for an absent object is refused when it is used. What is replaced or deleted is so for its link, too.
   * `storage.no_links` (InvalidInput) where the store is not reached by addresses, `storage.invalid_expiry`
   * (InvalidInput) for a time out of bounds, and `storage.credentials` (Transient) where there are none to sign with.
   */
  presign(key: string, options: LinkOptions): Promise<Link>;
  /** Null when there is no such object. */
  head(key: string): Promise<ObjectInfo | null>;
  /**
   * Removes an object, at once and for all who read from then on; one that is absent is a success. In a bucket that keeps
   * versions all of them are removed, where the store lets us: until it resolves, and where it does not, old ones may be
   * read by their ids. One that was put meanwhile stays.
   */
  delete(key: string): Promise<void>;
  /** Keys below a prefix that ends in `/`, in no order; objects that come or go meanwhile may or may not be seen. */
  list(prefix: string): AsyncIterable<string>;
  /** The store's random identity, made at first use: two hosts with folders of their own have different ones. */
  identity(): Promise<string>;
  /**
   * Writes that were begun over `olderThanMs` ago and never ended, in no order; one that is still running may be among
   * them if it takes so long. In a bucket that is shared without a prefix of its own, other programs' are, too.
   */
  abandoned(olderThanMs: number): AsyncIterable<AbandonedUpload>;
  /** Gives up a write, and frees what it holds; one that is gone is a success. If it still runs, its put rejects. */
  abandon(upload: AbandonedUpload): Promise<void>;
  /** What the store's clock is ahead of this machine's by its latest answer, ms; 0 where they are close. */
  clockAheadMs(): number;
}
