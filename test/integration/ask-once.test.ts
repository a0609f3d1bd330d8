import { once } from 'node:events';
import { createServer as createHttpServer } from 'node:http';
import type { RequestListener } from 'node:http';
import { createServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { afterEach, expect, test } from 'vitest';
import { errorCode } from '../../src/domain/errors.ts';
import { askOnce } from '../../src/resources/ask-once.ts';
import { until } from '../support/until.ts';
import { createApi } from '../../src/resources/lambda-cloud/api.ts';

const servers: { server: Server; sockets: Set<Socket> }[] = [];
afterEach(async () => {
  for (const { server, sockets } of servers.splice(0)) {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  }
});

async function listen(server: Server) {
  const sockets = new Set<Socket>();
  servers.push({ server, sockets });
  server.on('connection', (socket) => sockets.add(socket));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo; // a TCP server that listens has one
  return { port, sockets };
}

async function serve(listener: RequestListener) {
  return listen(createHttpServer(listener));
}

const LONG = () => AbortSignal.timeout(20_000);
const CALL = { method: 'POST', headers: {}, body: '{}' } as const;

test('what has no connection in time is not sent, and is known not to be', async () => {
  // It takes connections and says nothing, so that TLS never comes to be.
  const { port } = await listen(createServer());
  const url = `https://127.0.0.1:${port}/pods`;
  const from = performance.now();
  const failure = await askOnce({ ...CALL, url, signal: LONG(), connectMs: 200 }).catch(errorCode);
  expect(failure).toBe('UND_ERR_CONNECT_TIMEOUT');
  expect(performance.now() - from).toBeLessThan(5_000);
  const ask = createApi({ apiKey: 'k', baseUrl: `https://127.0.0.1:${port}` });
  expect(await ask('POST', '/launch', {}, 200)).toMatchObject({ is: 'unsent' });
});

test('each has a connection of its own, and leaves none open', async () => {
  const seen: string[] = [];
  const { port, sockets } = await serve((request, response) => {
    seen.push(`${request.method} ${request.url} ${request.headers.connection}`);
    response.setHeader('X-Own', 'yes').end('{"a":1}');
  });
  const url = `http://127.0.0.1:${port}/v2/pods?limit=5`;
  for (let n = 0; n < 2; n += 1) {
    const answer = await askOnce({ ...CALL, method: 'GET', body: null, url, signal: LONG() });
    expect(answer).toMatchObject({ status: 200, text: '{"a":1}', headers: { 'x-own': 'yes' } });
  }
  expect(seen).toEqual(Array(2).fill('GET /v2/pods?limit=5 close'));
  expect(sockets.size).toBe(2);
  const closed = () => [...sockets].every(({ destroyed }) => destroyed);
  await until(closed, { timeoutMs: 3_000, what: 'the end of the connections' });
});

test('half an answer is none, and what takes too long is cut', async () => {
  const half = await serve((_request, response) => {
    response.writeHead(200, { 'content-length': '10' });
    response.write('half', () => response.destroy());
  });
  const url = `http://127.0.0.1:${half.port}/`;
  await expect(askOnce({ ...CALL, url, signal: LONG() })).rejects.toThrow(
    /length does not match|closed|reset/,
  );
  const mute = await serve(() => undefined);
  const signal = AbortSignal.timeout(100);
  const late = askOnce({ ...CALL, url: `http://127.0.0.1:${mute.port}/`, signal });
  await expect(late).rejects.toThrow(/timeout|aborted/i);
});
