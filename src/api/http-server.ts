import { createServer, maxHeaderSize, STATUS_CODES } from 'node:http';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import { getRequestListener } from '@hono/node-server';
import type { Hono } from 'hono';
import type { Logger } from 'pino';
import { describeError, errorCode, invalidInput, permanent } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';
import { errorText } from './errors.ts';
import { randomText } from './ids.ts';
import type { ApiEnv } from './routes.ts';

/** An upload of many gigabytes over a slow line is no attack; Node's own limit is five minutes. */
const LONGEST_REQUEST_MS = 6 * 3_600_000;
/** So long a refused client may go on sending, so that its socket is not reset before it has read why. */
const LINGER_MS = 1_000;

interface HttpServerDeps {
  /** As `createApp` makes it. */
  app: Pick<Hono<ApiEnv>, 'fetch'>;
  log: Pick<Logger, 'debug' | 'error'>;
  /** Node's own limits, for tests: ms, and how often they are looked at. */
  limits?: { headersTimeout: number; connectionsCheckingInterval: number };
}

/**
 * The HTTP server of an app, not listening yet. What is no HTTP, or names no host or path, never reaches a route, and
 * is refused here in the same envelope as all else.
 */
export function createHttpServer({ app, log, limits }: HttpServerDeps): Server {
  const listener = getRequestListener((request, env) => app.fetch(request, env), {
    errorHandler: (error) => answerUnroutable(error, log),
  });
  const server = createServer(
    // A request without a host is refused by the listener, which can say so; Node's own refusal is empty.
    { requireHostHeader: false, requestTimeout: LONGEST_REQUEST_MS, ...limits },
    (incoming, outgoing) => void listener(incoming, outgoing),
  );
  server.on('connect', (_incoming, socket) => {
    // Node lets go of the socket here, its error handler with it: a reset would end the process.
    socket.on('error', () => socket.destroy());
    refuse(socket, noTunnels(), log);
  });
  refuseWhatIsNoHttp(server, log);
  return server;
}

function answerUnroutable(thrown: unknown, log: HttpServerDeps['log']): Response {
  const isRequest = thrown instanceof Error && thrown.name === 'RequestError';
  const error = isRequest
    ? invalidInput(
        'bad_request',
        `This request cannot be routed (${describeError(thrown)}): send a path that begins with '/', and a valid Host header.`,
      )
    : permanent('internal_error', "Internal error. The server's log tells more.");
  const { body, headers } = refusal(error, log);
  if (!isRequest) {
    const requestId = headers['X-Request-Id'];
    log.error({ err: thrown, requestId }, 'a request failed outside of its route');
  }
  return new Response(body, { status: error.status, headers });
}

/** An error as it is sent, under an id of its own by which the log has it, as all that is answered. */
function refusal(error: SluiceError, log: HttpServerDeps['log']) {
  const requestId = `req_${randomText()}`;
  const { status, code } = error;
  log.debug({ requestId, status, code }, 'what has no route was refused');
  const body = errorText(error);
  const headers = {
    'Content-Type': 'application/json',
    'Content-Length': String(Buffer.byteLength(body)),
    'X-Request-Id': requestId,
    Connection: 'close',
  };
  return { body, headers };
}

function noTunnels(): SluiceError {
  const message = 'CONNECT is not allowed: this server is no proxy. Ask it without one.';
  return invalidInput('method_not_allowed', message, { status: 405 });
}

function refuseExpectation(
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  log: HttpServerDeps['log'],
): void {
  const asked = incoming.headers.expect ?? '';
  const error = invalidInput(
    'expectation_failed',
    `The header Expect must be '100-continue' or left out; got '${asked.slice(0, 100)}'.`,
    { param: 'Expect', status: 417 },
  );
  const { body, headers } = refusal(error, log);
  outgoing.writeHead(error.status, headers).end(body);
}

function refuseWhatIsNoHttp(server: Server, log: HttpServerDeps['log']): void {
  const answers = new WeakMap<Duplex, ServerResponse>();
  const refused = new WeakSet<Duplex>();
  server.on('request', ({ socket }, outgoing) => void answers.set(socket, outgoing));
  server.on('checkExpectation', (incoming, outgoing) => {
    refused.add(incoming.socket);
    refuseExpectation(incoming, outgoing, log);
  });
  server.on('clientError', (err, socket) => {
    // Whatever comes behind bytes that were refused is refused with them.
    if (refused.has(socket)) return;
    refused.add(socket);
    if (errorCode(err) === 'ECONNRESET' || !socket.writable) {
      socket.destroy();
      return;
    }
    const error = refusalOf(err);
    log.debug({ err }, 'what came is no request');
    const answer = answers.get(socket);
    if (answer === undefined || answer.writableFinished) {
      refuse(socket, error, log);
    } else if (answer.req.complete) {
      // The request before is whole: its answer comes first, and what is written now would be taken for it.
      answer.once('close', () => refuse(socket, error, log));
    } else if (answer.headersSent) {
      socket.destroy();
    } else {
      refuse(socket, error, log);
    }
  });
}

/** Answers on the bare socket, and closes it. */
function refuse(socket: Duplex, error: SluiceError, log: HttpServerDeps['log']): void {
  if (!socket.writable) {
    socket.destroy();
    return;
  }
  const { body, headers } = refusal(error, log);
  const head = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  const status = `${error.status} ${STATUS_CODES[error.status] ?? ''}`;
  socket.end(`HTTP/1.1 ${status}\r\n${head.join('')}\r\n${body}`);
  const linger = setTimeout(() => socket.destroy(), LINGER_MS).unref();
  socket.once('close', () => clearTimeout(linger));
}

/** What Node's parser or its clock found, as an error of ours. */
function refusalOf(err: Error): SluiceError {
  const code = errorCode(err);
  if (code === 'HPE_HEADER_OVERFLOW') {
    const message = `The request line and the headers of this request have more than ${maxHeaderSize} bytes: send fewer or shorter headers, or a shorter URL.`;
    return invalidInput('headers_too_large', message, { status: 431 });
  }
  if (code === 'HPE_CHUNK_EXTENSIONS_OVERFLOW') {
    const message = 'The chunk extensions of this request are too large: send the chunks without.';
    return invalidInput('content_size_limit_exceeded', message, { status: 413 });
  }
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT') {
    const message = 'This request was not sent whole in time: send it again, without a pause.';
    return invalidInput('request_timeout', message, { status: 408 });
  }
  // The parser's reason is a fixed text of its own, without a byte of the request.
  const { reason } = err as { reason?: unknown };
  const why = typeof reason === 'string' && reason !== '' ? ` (${reason})` : '';
  return invalidInput(
    'bad_request',
    `This is no HTTP/1.1 request that could be read${why}: send a request line, headers and a body as RFC 9112 has them, and no TLS.`,
  );
}
