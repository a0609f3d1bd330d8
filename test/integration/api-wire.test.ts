import { once } from 'node:events';
import { maxHeaderSize } from 'node:http';
import type { Server } from 'node:http';
import { connect } from 'node:net';
import type { AddressInfo, Socket } from 'node:net';
import { Readable } from 'node:stream';
import { Hono } from 'hono';
import { pino } from 'pino';
import { afterEach, describe, expect, inject, test } from 'vitest';
import type { ApiDeps } from '../../src/api/app.ts';
import { createHttpServer } from '../../src/api/http-server.ts';
import type { ApiEnv } from '../../src/api/routes.ts';
import { startApi, uploadInput } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';
import { until } from '../support/until.ts';

const MiB = 1024 ** 2;
const HEAD = 'GET /slow HTTP/1.1\r\nHost: x\r\n\r\n';

const sockets: Socket[] = [];
const servers: Server[] = [];
afterEach(async () => {
  for (const socket of sockets.splice(0)) socket.destroy();
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  }
});

function open(port: number): Socket {
  const socket = connect({ host: '127.0.0.1', port, allowHalfOpen: true });
  socket.on('error', () => undefined); // told by what was read
  sockets.push(socket);
  return socket;
}

function portOf(api: TestApi): number {
  return Number(new URL(api.url).port);
}

/** All that comes until the other side ends or cuts. */
async function readAll(socket: Socket): Promise<string> {
  let text = '';
  socket.on('data', (chunk) => void (text += chunk.toString('latin1')));
  if (!socket.readableEnded && !socket.closed) {
    await Promise.race([once(socket, 'end'), once(socket, 'close')]);
  }
  return text;
}

/** Bytes that are sent, and answers as they come back; the body of the last one is parsed. */
async function send(port: number, bytes: string | Buffer) {
  const socket = open(port);
  socket.write(bytes);
  const text = await readAll(socket);
  const at = text.lastIndexOf('HTTP/1.1 4');
  const [head = '', body = ''] = text.slice(at).split('\r\n\r\n');
  return { text, head, status: Number(head.slice(9, 12)), body: JSON.parse(body || 'null') };
}

function refusal(code: string, message: RegExp, param: string | null = null) {
  const type = 'invalid_request_error';
  return { error: { message: expect.stringMatching(message), type, param, code } };
}

/** A server whose one route answers when it is told to. */
async function startSlow() {
  const asked: { begin(): void; end(): void }[] = [];
  const app = new Hono<ApiEnv>();
  app.all('/slow', async ({ env: { outgoing } }) => {
    const begun = Promise.withResolvers<void>();
    const ended = Promise.withResolvers<void>();
    asked.push({ begin: begun.resolve, end: ended.resolve });
    await begun.promise;
    const body = new ReadableStream<Uint8Array>({
      async start(controller) {
        controller.enqueue(Buffer.from('so far'));
        await Promise.race([ended.promise, once(outgoing, 'close')]);
        controller.close();
      },
    });
    return new Response(body, { headers: { 'transfer-encoding': 'chunked' } });
  });
  const server = createHttpServer({
    app,
    log: pino({ level: 'silent' }),
    limits: { headersTimeout: 100, connectionsCheckingInterval: 20 },
  });
  servers.push(server.listen(0, '127.0.0.1'));
  await once(server, 'listening');
  return { port: (server.address() as AddressInfo).port, asked }; // a TCP server that listens has one
}

describe('what is no request', () => {
  const UNREADABLE: [string, string, number, ReturnType<typeof refusal>][] = [
    ['no HTTP', 'nope\r\n\r\n', 400, refusal('bad_request', /request line, headers and a body/)],
    ['TLS', '\u0016\u0003\u0001\u0002\u0000', 400, refusal('bad_request', /no TLS/)],
    [
      'a header without a name',
      'GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n',
      400,
      refusal('bad_request', /read \(.+\): send/),
    ],
    [
      'two lengths',
      'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
      400,
      refusal('bad_request', /Content-Length|Transfer-Encoding/),
    ],
    [
      'far too long a header',
      `GET / HTTP/1.1\r\nHost: x\r\nX: ${'y'.repeat(maxHeaderSize)}\r\n\r\n`,
      431,
      refusal('headers_too_large', new RegExp(`more than ${maxHeaderSize} bytes: send fewer`)),
    ],
    [
      'far too long a path',
      `GET /${'y'.repeat(maxHeaderSize)} HTTP/1.1\r\nHost: x\r\n\r\n`,
      431,
      refusal('headers_too_large', /shorter URL/),
    ],
    [
      'no host',
      'GET /v1/files HTTP/1.1\r\nConnection: close\r\n\r\n',
      400,
      refusal('bad_request', /valid Host header/),
    ],
    [
      'a host that is none',
      'GET /v1/files HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n',
      400,
      refusal('bad_request', /valid Host header/),
    ],
    [
      'a tunnel',
      'CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n',
      405,
      refusal('method_not_allowed', /no proxy\. Ask it without/),
    ],
    [
      'an expectation that nobody meets',
      'POST /v1/batches HTTP/1.1\r\nHost: x\r\nExpect: wonders\r\nContent-Length: 2\r\n\r\n',
      417,
      refusal('expectation_failed', /'100-continue' or left out; got 'wonders'/, 'Expect'),
    ],
    [
      'such an expectation before a chunk that is none',
      'POST /v1/batches HTTP/1.1\r\nHost: x\r\nExpect: wonders\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n',
      417,
      refusal('expectation_failed', /got 'wonders'/, 'Expect'),
    ],
  ];
  test.for(UNREADABLE)(
    '%s is refused in the envelope of all errors',
    async ([, bytes, ...want]) => {
      await using api = await startApi(inject('redisUrl'));
      const { head, status, body } = await send(portOf(api), Buffer.from(bytes, 'latin1'));
      expect([status, body]).toEqual(want);
      expect(head).toMatch(/^content-type: application\/json$/im);
      expect(head).toMatch(/^connection: close$/im);
      const [, requestId = 'none'] = /^x-request-id: (req_\w+)$/im.exec(head) ?? [];
      expect(api.logs.map((entry) => entry['requestId'])).toContain(requestId);
      expect(api.logs.filter(({ level }) => Number(level) >= 50)).toEqual([]);
    },
  );

  test('tunnels that are reset at once cost nobody anything', async () => {
    await using api = await startApi(inject('redisUrl'));
    const port = portOf(api);
    await Promise.all(
      Array.from({ length: 300 }, async (_, index) => {
        const socket = open(port);
        await once(socket, 'connect');
        socket.write(
          'CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\nmore than was asked for',
        );
        // Some of them before the refusal is on its way, some behind it.
        if (index % 2 === 0) await Promise.race([once(socket, 'data'), once(socket, 'close')]);
        socket.resetAndDestroy();
        await once(socket, 'close');
      }),
    );
    expect((await fetch(`${api.url}/health`)).status).toBe(200);
  });

  test('a chunk that is none, while nothing is answered yet', async () => {
    const { port, asked } = await startSlow();
    const head = 'POST /slow HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n';
    const { text, status, body } = await send(port, `${head}zz\r\n`);
    expect([status, body]).toEqual([400, refusal('bad_request', /chunk size/)]);
    expect(text.match(/HTTP\/1\.1 \d/g)).toHaveLength(1);
    expect(asked.length).toBeLessThanOrEqual(1);
  });

  test('a request that does not come in time is told so', async () => {
    const { port } = await startSlow();
    const { status, body } = await send(port, 'GET / HTTP/1.1\r\nHos');
    expect([status, body]).toEqual([408, refusal('request_timeout', /again, without a pause/)]);
  });

  test('an answer that has begun is cut, and nothing is written into it', async () => {
    const { port, asked } = await startSlow();
    const socket = open(port);
    socket.write('POST /slow HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n');
    await until(() => asked.length === 1);
    asked[0]?.begin();
    const all = readAll(socket);
    await until(() => socket.bytesRead > 0);
    socket.write('zz\r\n');
    const text = await all;
    expect(text).toMatch(/^HTTP\/1\.1 200 /);
    expect(text).not.toContain('error');
    expect(text.endsWith('0\r\n\r\n')).toBe(false);
  });

  test('garbage behind a request waits for the answer to that', async () => {
    const { port, asked } = await startSlow();
    const socket = open(port);
    socket.write(`${HEAD}nope\r\n\r\n`);
    const all = readAll(socket);
    await until(() => asked.length === 1);
    asked[0]?.begin();
    await until(() => socket.bytesRead > 0);
    asked[0]?.end();
    const text = await all;
    expect(text).toMatch(/^HTTP\/1\.1 200 [^]*so far\r\n0\r\n\r\nHTTP\/1\.1 400 [^]*"bad_request"/);
  });
});

/** Bytes as they come, whose end comes only when it is let. */
async function* endLate(source: Readable, end: Promise<void>): AsyncGenerator<Buffer> {
  yield* source as AsyncIterable<Buffer>;
  await end;
}

/** Reads so many bytes of an answer's body, and no more. */
async function readBody(socket: Socket, length: number): Promise<void> {
  let head = '';
  let read = -1;
  for await (const chunk of socket.iterator({ destroyOnReturn: false })) {
    if (read >= 0) read += chunk.length;
    else {
      head += chunk.toString('latin1');
      const end = head.indexOf('\r\n\r\n');
      if (end >= 0) read = head.length - end - 4;
    }
    if (read >= length) return;
  }
}

describe('a download', () => {
  async function statusOf(
    api: TestApi,
    { range, length, size = 8 * MiB }: { range: string; length: number; size?: number },
  ): Promise<number> {
    const id = await uploadInput(api, 'x'.repeat(size));
    const socket = open(portOf(api));
    socket.write(`GET /v1/files/${id}/content HTTP/1.1\r\nHost: x\r\n${range}\r\n`);
    await readBody(socket, length);
    socket.resetAndDestroy();
    const seen = () => api.observed.find(({ route }) => route.endsWith('/content'));
    return (await until(seen)).status;
  }

  /** A storage that gives all bytes and is slow to say that there are no more. */
  function slowEnds(end: Promise<void>): (deps: ApiDeps) => Partial<ApiDeps> {
    return ({ storage }) => ({
      storage: {
        ...storage,
        get: async (key, range) => Readable.from(endLate(await storage.get(key, range), end)),
      },
    });
  }

  test.each([
    ['whole', '', 8 * MiB, 200],
    ['a range', 'Range: bytes=5-70000\r\n', 69_996, 206],
  ])(
    'that is hung up on behind its last byte was complete (%s)',
    async (_, range, length, status) => {
      const { promise, resolve } = Promise.withResolvers<void>();
      await using api = await startApi(inject('redisUrl'), slowEnds(promise));
      expect(await statusOf(api, { range, length })).toBe(status);
      resolve();
    },
  );

  test('that is hung up on before its last byte was not', async () => {
    await using api = await startApi(inject('redisUrl'));
    // More than the kernel takes of it while nobody reads.
    expect(await statusOf(api, { range: '', length: 1, size: 32 * MiB })).toBe(499);
  });
});
