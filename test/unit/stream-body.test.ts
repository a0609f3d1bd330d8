import { once } from 'node:events';
import { createServer, request } from 'node:http';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import { afterEach, expect, test } from 'vitest';
import { cutWhenUnread } from '../../src/api/stream-body.ts';
import { until } from '../support/until.ts';

const servers: Server[] = [];
afterEach(() => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    server.close();
  }
});

/** Both ends of one answer, of which the client reads nothing by itself. */
async function anAnswer(): Promise<{ outgoing: ServerResponse; incoming: IncomingMessage }> {
  const server = createServer();
  servers.push(server);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('the server has no port');
  const asking = request({ port: address.port, host: '127.0.0.1', agent: false }).end();
  const [, outgoing] = (await once(server, 'request')) as [unknown, ServerResponse];
  outgoing.flushHeaders();
  const [incoming] = (await once(asking, 'response')) as [IncomingMessage];
  incoming.on('error', () => undefined); // told by `errored`
  return { outgoing, incoming };
}

test('an answer that has nothing to say for long is not cut, and its reader gets it', async () => {
  const { outgoing, incoming } = await anAnswer();
  let silences = 0;
  cutWhenUnread(outgoing, 40);
  // Of the socket: a listener of the answer would itself keep Node from cutting it.
  outgoing.socket?.on('timeout', () => {
    silences += 1;
    if (silences === 1) outgoing.write('so far ');
    else outgoing.end('so good');
  });
  let text = '';
  for await (const chunk of incoming) text += String(chunk);
  expect(text).toBe('so far so good');
  expect(silences).toBe(2);
});

test('a reader that leaves bytes waiting is cut', async () => {
  const { outgoing, incoming } = await anAnswer();
  cutWhenUnread(outgoing, 40);
  const piece = Buffer.alloc(1024 * 1024);
  // What the kernel takes does not wait here.
  while (outgoing.writableLength < 8 * piece.length) {
    outgoing.write(piece);
    await new Promise(setImmediate);
  }
  await until(() => outgoing.destroyed, { timeoutMs: 5_000 });
  expect(incoming.complete).toBe(false);
});
