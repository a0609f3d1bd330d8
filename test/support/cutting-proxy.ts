import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import type { Socket } from 'node:net';

/**
 * What becomes of a request: `pass`; `lose`: it never arrives; `mute`: it is handled, but its answer is lost;
 * `leave`: its sender is cut off as soon as it was forwarded, so that what comes next meets it still running.
 */
export const FATES = ['pass', 'lose', 'mute', 'leave'] as const;
export type Fate = (typeof FATES)[number];

/** A request as it was sent: head and body, whole. */
export type Decide = (request: string) => Fate;

export interface CuttingProxy extends AsyncDisposable {
  url: string;
}

/** A proxy for HTTP requests with a Content-Length or no body, one after the other on each connection. */
export async function startCuttingProxy(target: string, decide: Decide): Promise<CuttingProxy> {
  const { hostname, port } = new URL(target);
  const sockets = new Set<Socket>();
  function pair(client: Socket): void {
    const server = connect(Number(port), hostname);
    for (const socket of [client, server]) {
      sockets.add(socket);
      socket.setNoDelay();
      socket.on('error', () => socket.destroy());
      socket.on('close', () => sockets.delete(socket));
    }
    client.on('close', () => fate === 'leave' || server.destroy());
    server.on('close', () => client.destroy());
    let fate: Fate = 'pass';
    let pending = '';
    client.on('data', (chunk) => {
      pending += chunk.toString('latin1');
      const length = wholeLength(pending);
      if (length === null) return;
      const request = pending.slice(0, length);
      pending = pending.slice(length);
      fate = decide(request);
      if (fate === 'lose') {
        client.destroy();
        return;
      }
      server.write(request, 'latin1');
      if (fate === 'leave') client.destroy();
    });
    server.on('data', (chunk) => {
      if (fate === 'pass') client.write(chunk);
      else server.destroy();
    });
  }
  const listener = createServer(pair).listen(0, '127.0.0.1');
  await once(listener, 'listening');
  const address = listener.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  return {
    url: `http://127.0.0.1:${address.port}`,
    async [Symbol.asyncDispose]() {
      listener.close();
      for (const socket of sockets) socket.destroy();
      await once(listener, 'close');
    },
  };
}

/** Of the first request in `text`, or null while it is not whole. */
function wholeLength(text: string): number | null {
  const end = text.indexOf('\r\n\r\n');
  if (end < 0) return null;
  const [, bytes = '0'] = /^content-length: *(\d+)/im.exec(text.slice(0, end)) ?? [];
  const length = end + 4 + Number(bytes);
  return text.length < length ? null : length;
}
