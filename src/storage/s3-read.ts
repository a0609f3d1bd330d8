import { Readable } from 'node:stream';
import { transient } from '../domain/errors.ts';
import { pause } from './s3-retry.ts';

/** A stretch of an object that is being received. */
export interface Stretch {
  body: Readable;
  /** Bytes that will come. */
  bytes: number;
}

export interface ResumingOptions {
  /** Opens the rest of the same version of the object. */
  reopen(start: number, signal: AbortSignal): Promise<Stretch>;
  /** A body that gives nothing for so long while somebody wants it is cut off, ms. */
  idleMs: number;
  /** How often in a row it may break without 64 KiB in between. */
  attempts: number;
  /** The error that ends the stream, of what broke it for good. */
  fail(cause: unknown): Error;
}

/** What has to come between two breaks so that they do not count together. */
const PROGRESS_BYTES = 64 * 1024;
const BUFFER_BYTES = 256 * 1024;

/**
 * One unbroken stream over an object whose connection may break, end early or hang: the rest is asked for from the byte
 * that was reached. While nobody reads, nothing is asked for again. Destroying it lets the connection go.
 */
export function resuming(first: Stretch, start: number, options: ResumingOptions): Readable {
  return new ResumingStream(first, start, options);
}

class ResumingStream extends Readable {
  readonly #options: ResumingOptions;
  readonly #end: number;
  readonly #stop = new AbortController();
  #at: number;
  #body: Readable | null = null;
  /** Somebody waits for bytes. */
  #isWanted = false;
  #isOpening = false;
  /** How often it broke without much in between. */
  #failures = 0;
  /** Where it broke last. */
  #brokeAt: number;
  #idle: NodeJS.Timeout | undefined;

  constructor(first: Stretch, start: number, options: ResumingOptions) {
    super({ highWaterMark: BUFFER_BYTES });
    this.#options = options;
    this.#at = start;
    this.#brokeAt = start;
    this.#end = start + first.bytes;
    this.#attach(first.body);
  }

  override _read(): void {
    this.#isWanted = true;
    if (this.#body !== null) this.#resume(this.#body);
    else if (!this.#isOpening) void this.#open();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    clearTimeout(this.#idle);
    this.#stop.abort(error ?? new Error('nobody reads on'));
    this.#body?.destroy();
    done(error);
  }

  #resume(body: Readable): void {
    this.#watch(body);
    body.resume();
  }

  #watch(body: Readable): void {
    const { idleMs } = this.#options;
    clearTimeout(this.#idle);
    this.#idle = setTimeout(() => body.destroy(new Error(`no byte for ${idleMs} ms`)), idleMs);
  }

  #attach(body: Readable): void {
    this.#body = body;
    // It waits for the first read, and may break meanwhile.
    body.pause();
    body.on('data', (chunk: Buffer) => this.#take(body, chunk));
    body.on('error', (error) => this.#broke(body, error));
    body.once('close', () => this.#broke(body, new Error('the connection was closed')));
    body.once('end', () => this.#ended(body));
  }

  #take(body: Readable, chunk: Buffer): void {
    this.#at += chunk.length;
    // A few bytes each time are no progress: a whole object would take for ever.
    if (this.#at - this.#brokeAt >= PROGRESS_BYTES) this.#failures = 0;
    this.#isWanted = this.push(chunk);
    if (this.#isWanted) {
      this.#watch(body);
      return;
    }
    clearTimeout(this.#idle);
    body.pause();
  }

  #ended(body: Readable): void {
    const missing = this.#end - this.#at;
    if (missing > 0) {
      this.#broke(body, new Error(`the body ended ${missing} bytes early`));
      return;
    }
    clearTimeout(this.#idle);
    this.#body = null;
    this.push(null);
  }

  #broke(body: Readable, error: Error): void {
    // One end is told in several events, and a reader that is gone has no use for it.
    if (this.#body !== body || this.destroyed) return;
    this.#body = null;
    clearTimeout(this.#idle);
    body.destroy();
    this.#failures += 1;
    this.#brokeAt = this.#at;
    if (this.#failures >= this.#options.attempts) this.destroy(this.#options.fail(error));
    else if (this.#isWanted) void this.#open();
  }

  async #open(): Promise<void> {
    const { signal } = this.#stop;
    this.#isOpening = true;
    try {
      if (this.#failures > 0) await pause(this.#failures, { code: '', status: null }, signal);
      this.#proceed(await this.#options.reopen(this.#at, signal));
    } catch (error) {
      if (!this.destroyed) this.destroy(this.#options.fail(error));
    } finally {
      this.#isOpening = false;
    }
  }

  #proceed({ body, bytes }: Stretch): void {
    if (this.destroyed) {
      body.destroy();
      return;
    }
    if (bytes !== this.#end - this.#at) {
      body.destroy();
      throw transient('storage.changed', 'an object changed its length while it was read');
    }
    this.#attach(body);
    if (this.#isWanted) this.#resume(body);
  }
}
