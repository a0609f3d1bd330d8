import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import type { Socket } from 'node:net';

/** A moment of a conversation, and what happens then. */
export interface Trigger {
  /** Whether these bytes of a client are the ones that are waited for. */
  request(chunk: Buffer): boolean;
  /** Then it is the answer that counts: the next bytes to that client of which this holds. */
  reply?(chunk: Buffer): boolean;
  /** Whether the bytes that fired it arrive, and a moment passes; else nobody ever sees them. */
  arrives: boolean;
  act(): void;
}

interface Address {
  host: string;
  port: number;
}

/** Stands before a server, sees what is said, and acts at an exact moment of it. */
export interface TapProxy extends AsyncDisposable, Address {
  /** Resolves when the trigger has fired, which it does once; at most one is armed. */
  arm(trigger: Trigger): Promise<void>;
  disarm(): void;
  /** From now on nothing more is passed on to clients, until `switchTo`. */
  hold(): void;
  /** Breaks all connections; new ones go to this server. */
  switchTo(target: Address): void;
}

interface Armed {
  trigger: Trigger;
  fired(): void;
}

/** For a process to read what has arrived; its answers gather for longer before it writes them down. */
const MOMENT_MS = 5;

export async function startTapProxy(first: Address): Promise<TapProxy> {
  const sockets = new Set<Socket>();
  let target = first;
  let armed: Armed | null = null;
  let isHeld = false;

  /** Whether the bytes may still arrive. */
  function fire({ trigger, fired }: Armed): boolean {
    armed = null;
    function act(): void {
      trigger.act();
      fired();
    }
    if (trigger.arrives) setTimeout(act, MOMENT_MS);
    else act();
    return trigger.arrives;
  }

  function pair(client: Socket): void {
    const server = connect(target);
    let awaited: Armed | null = null;
    function drop(): void {
      for (const socket of [client, server]) {
        socket.destroy();
        sockets.delete(socket);
      }
    }
    for (const socket of [client, server]) {
      sockets.add(socket);
      socket.setNoDelay();
      socket.on('error', drop);
      socket.on('close', drop);
    }
    client.on('data', (chunk) => {
      const now = armed;
      if (now?.trigger.request(chunk)) {
        if (now.trigger.reply !== undefined) awaited = now;
        else if (!fire(now)) return drop();
      }
      server.write(chunk);
    });
    server.on('data', (chunk) => {
      if (isHeld) return;
      if (awaited !== null && awaited === armed && awaited.trigger.reply?.(chunk)) {
        if (!fire(awaited)) return drop();
      }
      client.write(chunk);
    });
  }

  const listener = createServer(pair).listen(0, '127.0.0.1');
  await once(listener, 'listening');
  const address = listener.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  function dropAll(): void {
    for (const socket of sockets) socket.destroy();
  }
  return {
    host: '127.0.0.1',
    port: address.port,
    arm: async (trigger) => new Promise((resolve) => (armed = { trigger, fired: resolve })),
    disarm() {
      armed = null;
    },
    hold() {
      isHeld = true;
    },
    switchTo(next) {
      target = next;
      isHeld = false;
      dropAll();
    },
    async [Symbol.asyncDispose]() {
      listener.close();
      dropAll();
      await once(listener, 'close');
    },
  };
}
