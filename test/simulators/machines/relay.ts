import { connect, createServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';

/** A public port in front of a machine, as a provider's network maps it. */
export interface Relay {
  host: string;
  port: number;
  /** Ends all connections with a reset. */
  cut(): void;
  /** Passes nothing on and ends nothing, until thawed. */
  freeze(frozen: boolean): void;
  /** Stops listening and resets what is open. */
  close(): Promise<void>;
}

export interface RelayTarget {
  host: string;
  port: number;
}

/**
 * Listens on `host`, on a free port unless one is given, and passes each connection to `target()`, asked anew for each. A target that is
 * not there looks like a closed port: the connection is reset.
 */
export async function startRelay(
  host: string,
  target: () => RelayTarget | undefined,
  port = 0,
): Promise<Relay> {
  const pairs = new Map<Socket, Socket>();
  let frozen = false;

  function join(one: Socket, two: Socket): void {
    one.pipe(two);
    two.pipe(one);
  }

  function part(one: Socket, two: Socket): void {
    one.unpipe(two).pause();
    two.unpipe(one).pause();
  }

  function accept(client: Socket): void {
    const to = target();
    if (to === undefined) {
      client.resetAndDestroy();
      return;
    }
    const upstream = connect(to.port, to.host);
    pairs.set(client, upstream);
    client.setNoDelay(true);
    upstream.setNoDelay(true);
    const end = (): void => {
      pairs.delete(client);
      client.destroy();
      upstream.destroy();
    };
    client.on('error', end).on('close', end);
    upstream.on('error', () => {
      client.resetAndDestroy();
      end();
    });
    upstream.on('close', end);
    if (frozen) part(client, upstream);
    else join(client, upstream);
  }

  function cut(): void {
    for (const [client, upstream] of pairs) {
      client.resetAndDestroy();
      upstream.destroy();
    }
    pairs.clear();
  }

  const server: Server = createServer(accept);
  const { promise, resolve, reject } = Promise.withResolvers<undefined>();
  server.once('error', reject).listen(port, host, () => resolve(undefined));
  await promise;
  return {
    host,
    port: (server.address() as AddressInfo).port, // a TCP server has no other kind of address
    cut,
    freeze(next) {
      if (frozen === next) return;
      frozen = next;
      for (const [client, upstream] of pairs) {
        if (next) part(client, upstream);
        else join(client, upstream);
      }
    },
    async close() {
      const closed = Promise.withResolvers<undefined>();
      server.close(() => closed.resolve(undefined));
      cut();
      await closed.promise;
    },
  };
}
