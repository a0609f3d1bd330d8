import type { IncomingHttpHeaders } from 'node:http';
import type { Socket } from 'node:net';
import { Client, Dispatcher } from 'undici';

interface Connection {
  readonly client: Client;
  isFree: boolean;
}

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
  readonly #all = new Set<Connection>();
  /** The one that was used last is the last. */
  readonly #free: Connection[] = [];
  #closing: Promise<void> | null = null;

  constructor(origin: string, options: Client.Options) {
    super();
    this.#origin = origin;
    this.#options = {
      ...options,
      // One request a connection, and none that many could share.
      pipelining: 1,
      allowH2: false,
      ...(origin.startsWith('http:') &&
        options.connect === undefined && { connect: { ...sharedReads(), port: 0 } }),
    };
  }

  override dispatch(
    options: Dispatcher.DispatchOptions,
    handler: Dispatcher.DispatchHandler,
  ): boolean {
    const connection = this.#free.pop() ?? this.#open();
    connection.isFree = false;
    connection.client.dispatch(options, new Tracked(handler, connection, this.#free));
    return true;
  }

  /** Cuts all connections, now and for ever: what is in flight, and what comes later, fails. May be called twice. */
  override async destroy(): Promise<void> {
    this.#closing ??= this.#destroyAll();
    return this.#closing;
  }

  async #destroyAll(): Promise<void> {
    await Promise.all([...this.#all].map(async ({ client }) => client.destroy()));
  }

  #open(): Connection {
    const client = new Client(this.#origin, this.#options);
    const connection = { client, isFree: false };
    client.on('disconnect', () => this.#drop(connection));
    this.#all.add(connection);
    if (this.#closing !== null) void client.destroy();
    return connection;
  }

  /** One that fell idle makes room; one that broke with a request is used again. */
  #drop(connection: Connection): void {
    if (!connection.isFree) return;
    // The longest idle are the first.
    this.#free.splice(this.#free.indexOf(connection), 1);
    this.#all.delete(connection);
    void connection.client.destroy();
  }
}

/**
 * A request, as its caller sees it. Its connection is free as soon as it is over: undici says so only a turn of the loop
 * later, when the next request of the same caller has found no free one and opened another.
 */
class Tracked implements Dispatcher.DispatchHandler {
  readonly #handler: Dispatcher.DispatchHandler;
  readonly #connection: Connection;
  readonly #free: Connection[];
  #isOver = false;

  constructor(handler: Dispatcher.DispatchHandler, connection: Connection, free: Connection[]) {
    this.#handler = handler;
    this.#connection = connection;
    this.#free = free;
  }

  onRequestStart(controller: Dispatcher.DispatchController, context: unknown): void {
    this.#handler.onRequestStart?.(controller, context);
  }

  onResponseStart(
    controller: Dispatcher.DispatchController,
    status: number,
    headers: IncomingHttpHeaders,
    text?: string,
  ): void {
    this.#handler.onResponseStart?.(controller, status, headers, text);
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    this.#handler.onResponseData?.(controller, chunk);
  }

  onResponseEnd(controller: Dispatcher.DispatchController, trailers: IncomingHttpHeaders): void {
    this.#end();
    this.#handler.onResponseEnd?.(controller, trailers);
  }

  onResponseError(controller: Dispatcher.DispatchController, error: Error): void {
    this.#end();
    this.#handler.onResponseError?.(controller, error);
  }

  #end(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#connection.isFree = true;
    this.#free.push(this.#connection);
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
