import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import type { Socket } from 'node:net';

/** Stands before a redis-server and loses the replies of commands that the server has executed. */
export interface SwallowingProxy {
  host: string;
  port: number;
  /** From now on, of each command once; a script counts by its SHA-1, any other command by its name. */
  swallowEach(): void;
  /** What was swallowed since the last `swallowEach`. */
  swallowed: ReadonlySet<string>;
  close(): Promise<void>;
}

/** What a client says to every new connection; without an answer it would never be ready. */
const GREETINGS = new Set(['hello', 'info', 'client', 'select', 'auth', 'cluster', 'readonly']);
const COMMAND = /\*\d+\r\n\$\d+\r\n(\w+)\r\n(?:\$(\d+)\r\n)?/g;

export async function startSwallowingProxy(target: {
  host: string;
  port: number;
}): Promise<SwallowingProxy> {
  const swallowed = new Set<string>();
  const sockets = new Set<Socket>();
  let armed = false;

  function pair(client: Socket): void {
    const server = connect(target);
    let losing = false;
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
      for (const command of armed ? commandsIn(chunk) : []) {
        if (swallowed.has(command) || GREETINGS.has(command)) continue;
        swallowed.add(command);
        losing = true;
      }
      server.write(chunk);
    });
    server.on('data', (chunk) => {
      // A reply says that the command is executed: now its connection breaks.
      if (losing) drop();
      else client.write(chunk);
    });
  }

  const listener = createServer(pair).listen(0, '127.0.0.1');
  await once(listener, 'listening');
  const address = listener.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  return {
    host: '127.0.0.1',
    port: address.port,
    swallowEach() {
      swallowed.clear();
      armed = true;
    },
    swallowed,
    async close() {
      listener.close();
      for (const socket of sockets) socket.destroy();
      await once(listener, 'close');
    },
  };
}

/** Names of the commands in what a client wrote at once; of a script, its SHA-1. */
function commandsIn(chunk: Buffer): string[] {
  const text = chunk.toString('latin1');
  return [...text.matchAll(COMMAND)].map((match) => {
    const name = (match[1] ?? '').toLowerCase();
    const start = match.index + match[0].length;
    const argument = chunk.subarray(start, start + Number(match[2] ?? 0));
    if (name === 'evalsha') return argument.toString();
    return name === 'eval' ? createHash('sha1').update(argument).digest('hex') : name;
  });
}
