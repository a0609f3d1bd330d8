import type { IncomingMessage } from 'node:http';
import type { MiddlewareHandler } from 'hono';
import type { Logger } from 'pino';
import { CLIENT_CLOSED } from './errors.ts';
import { randomText } from './ids.ts';
import type { ApiContext, ApiEnv } from './routes.ts';

/** A refused body is read on for so long, so that its sender gets to read the refusal. */
const DRAIN = { bytes: 1024 ** 3, ms: 30_000 } as const;

/** Called once a request is over. `route` is a pattern or `unknown`, `seconds` the time until the last byte. */
type Observe = (route: string, method: string, status: number, seconds: number) => void;

export interface RequestsDeps {
  log: Logger;
  observe?: Observe;
}

const METHODS = new Set(['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS']);
/** What machines and open pages ask every few seconds. */
const QUIET_ROUTES = new Set(['/health', '/ready', '/metrics', '/admin/queues']);

/** Gives each request an id and a logger, and writes one log line when it is over. */
export function eachRequest(deps: RequestsDeps): MiddlewareHandler<ApiEnv> {
  async function handle(c: ApiContext, next: () => Promise<void>): Promise<void> {
    const requestId = `req_${randomText()}`;
    c.set('requestId', requestId);
    c.set('log', deps.log.child({ requestId }));
    c.set('route', 'unknown');
    whenOver(c, deps);
    await next();
    c.res.headers.set('x-request-id', requestId);
    if (c.res.status >= 400 && isStillSending(c.env.incoming)) await answerAndDrain(c);
  }
  return handle;
}

function whenOver(c: ApiContext, deps: RequestsDeps): void {
  const started = performance.now();
  const { outgoing } = c.env;
  outgoing.once('close', () => {
    const ms = performance.now() - started;
    // Who hangs up after a refusal has had it; only a success that broke off is none.
    const isWhole = outgoing.writableFinished || (outgoing.headersSent && c.res.status >= 400);
    const status = isWhole ? outgoing.statusCode : CLIENT_CLOSED;
    const method = METHODS.has(c.req.method) ? c.req.method : 'OTHER';
    const { route } = c.var;
    deps.observe?.(route, method, status, ms / 1_000);
    const line = { method, route, path: c.req.path, status, ms: Math.round(ms) };
    if (QUIET_ROUTES.has(route)) c.var.log.debug(line, 'request');
    else c.var.log.info(line, 'request');
  });
}

function isStillSending(incoming: IncomingMessage): boolean {
  return !incoming.complete && !incoming.destroyed;
}

/**
 * Sends a refusal while its request is still being sent. Many clients write their whole body before they read, and
 * a socket closed with unread bytes is reset, which can destroy the answer on its way: so the answer is sent at
 * once with its length, and ends only when the rest was read.
 */
async function answerAndDrain(c: ApiContext): Promise<void> {
  const { incoming } = c.env;
  const body = new Uint8Array(await c.res.arrayBuffer());
  const drained = drain(incoming);
  const stream = new ReadableStream<Uint8Array>({
    async start(controller) {
      controller.enqueue(body);
      await drained.promise;
      controller.close();
    },
    cancel: drained.stop,
  });
  const headers = new Headers(c.res.headers);
  headers.set('content-length', String(body.length));
  headers.set('connection', 'close');
  c.res = new Response(stream, { status: c.res.status, headers });
}

function drain(incoming: IncomingMessage): { promise: Promise<void>; stop: () => void } {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, DRAIN.ms).unref();
  let bytes = 0;
  function count(chunk: Buffer): void {
    bytes += chunk.length;
    if (bytes > DRAIN.bytes) resolve();
  }
  incoming.on('data', count);
  for (const event of ['end', 'close', 'error']) incoming.once(event, () => resolve());
  incoming.resume();
  const done = promise.then(() => {
    clearTimeout(timer);
    incoming.off('data', count);
  });
  return { promise: done, stop: () => resolve() };
}
