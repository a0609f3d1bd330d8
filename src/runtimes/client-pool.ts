import type { Socket } from 'node:net';
import { Client, Dispatcher } from 'undici';

/** The most that one read of a socket brings. */
const READ_BYTES = 64 * 1024;

/**
 * As many connections to one origin as there are requests at the same time. undici's own pool looks through all its
 * connections for each request: with 4,096 of them that took twice the CPU of everything else. This one knows which
 * are free, and uses the one that was used last, so that those that are too many fall idle and are closed.
 */
export class ClientPool extends Dispatcher {
  readonly #origin: string;
  readonly #options: Client.Options;
  readonly #all: Client[] = [];
  readonly #free: Client[] = [];
  #closing: Promise<void> | null = null;

  constructor(origin: string, options: Client.Options) {
    super();
    this.#origin = origin;
    this.#options = {
      ...options,
      // One request a connection: that is how a client says when it is free.
      pipelining: 1,
      allowH2: false,
      ...(origin.startsWith('http:') && { connect: { ...sharedReads(), port: 0 } }),
    };
  }

  override dispatch(
    options: Dispatcher.DispatchOptions,
    handler: Dispatcher.DispatchHandler,
  ): boolean {
    const client = this.#free.pop() ?? this.#open();
    const isFree = client.dispatch(options, handler);
    // Else it says so when it is.
    if (isFree) this.#free.push(client);
    return true;
  }

  /** Cuts all connections, now and for ever: what is in flight, and what comes later, fails. May be called twice. */
  override async destroy(): Promise<void> {
    this.#closing ??= Promise.all(this.#all.map(async (client) => client.destroy())).then(() => {});
    return this.#closing;
  }

  #open(): Client {
    const client = new Client(this.#origin, this.#options);
    client.on('drain', () => this.#free.push(client));
    this.#all.push(client);
    if (this.#closing !== null) void client.destroy();
    return client;
  }
}

/**
 * All sockets read into one buffer, and what they read is copied: Node would allocate 64 KiB for each read and cut that
 * to size, which costs more than the copy and makes V8 collect garbage all the time. Reads and copies take turns on
 * the one thread there is.
 */
function sharedReads() {
  const buffer = Buffer.allocUnsafeSlow(READ_BYTES);
  return {
    onread: {
      buffer,
      callback(this: Socket, bytes: number) {
        return this.push(Buffer.from(buffer.subarray(0, bytes)));
      },
    },
  };
}
