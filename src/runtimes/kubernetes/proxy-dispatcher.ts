import type { IncomingHttpHeaders } from 'node:http';
import { Dispatcher } from 'undici';
import * as v from 'valibot';
import { errorCode, toError, transient } from '../../domain/errors.ts';
import { ClientPool } from '../client-pool.ts';

/** Names no machine: requests without credentials are refused under it. */
const NOWHERE = 'http://127.0.0.1';

/**
 * Sends requests through the proxy of an API server, with its credentials. What that server says for itself is no answer
 * of the engine: that there is no way to it now is told as a connection that could not be made, or that broke.
 */
export class ProxyDispatcher extends Dispatcher {
  readonly #pool: ClientPool;
  readonly #authorization: () => Promise<string | null>;
  readonly #nowhere: ClientPool;
  #problem = new Error('nobody has asked for credentials yet');

  constructor(pool: ClientPool, authorization: () => Promise<string | null>) {
    super();
    this.#pool = pool;
    this.#authorization = authorization;
    this.#nowhere = new ClientPool(NOWHERE, {
      connect: (_options, callback) => callback(this.#problem, null),
    });
  }

  override dispatch(
    options: Dispatcher.DispatchOptions,
    handler: Dispatcher.DispatchHandler,
  ): boolean {
    void this.#send(options, handler);
    return true;
  }

  async #send(
    options: Dispatcher.DispatchOptions,
    handler: Dispatcher.DispatchHandler,
  ): Promise<void> {
    try {
      const authorization = await this.#authorization();
      const headers = [...withoutCredentials(options.headers)];
      if (authorization !== null) headers.push('authorization', authorization);
      this.#pool.dispatch({ ...options, headers }, new AnswerGuard(handler));
    } catch (error) {
      this.#problem = toError(error);
      this.#nowhere.dispatch({ ...options, origin: NOWHERE }, handler);
    }
  }

  override async destroy(): Promise<void> {
    await Promise.all([this.#pool.destroy(), this.#nowhere.destroy()]);
  }
}

/** The API server takes the header for itself, and the engine never sees it. */
function withoutCredentials(headers: Dispatcher.DispatchOptions['headers']): string[] {
  const found: string[] = [];
  for (const [name, value] of pairsOf(headers)) {
    if (name.toLowerCase() !== 'authorization') found.push(name, value);
  }
  return found;
}

function pairsOf(headers: Dispatcher.DispatchOptions['headers']): [string, string][] {
  if (headers === undefined || headers === null) return [];
  if (Array.isArray(headers)) {
    return Array.from({ length: headers.length / 2 }, (_, i) => [
      String(headers[2 * i]),
      String(headers[2 * i + 1]),
    ]);
  }
  const all = Symbol.iterator in headers ? [...headers] : Object.entries(headers);
  return all.flatMap(([name, value]) => (value === undefined ? [] : [[name, String(value)]]));
}

/** A `Status` of the API server is small; what is larger is an engine's. */
const MOST_STATUS_BYTES = 16 * 1024;

const statusSchema = v.pipe(
  v.string(),
  v.parseJson(),
  v.object({
    kind: v.literal('Status'),
    apiVersion: v.literal('v1'),
    message: v.nullish(v.string(), ''),
  }),
);

interface Held {
  status: number;
  headers: IncomingHttpHeaders;
  text: string | undefined;
  chunks: Buffer[];
  bytes: number;
}

/** A request, as its caller sees it; an answer that may be the API server's is held until that is known. */
class AnswerGuard implements Dispatcher.DispatchHandler {
  readonly #handler: Dispatcher.DispatchHandler;
  #held: Held | null = null;
  #isStarted = false;

  constructor(handler: Dispatcher.DispatchHandler) {
    this.#handler = handler;
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
    const isJson = headers['content-type']?.startsWith('application/json') ?? false;
    if (status >= 400 && isJson) {
      this.#held = { status, headers, text, chunks: [], bytes: 0 };
      return;
    }
    this.#isStarted = true;
    this.#handler.onResponseStart?.(controller, status, headers, text);
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    const held = this.#held;
    if (held === null) {
      this.#handler.onResponseData?.(controller, chunk);
      return;
    }
    held.chunks.push(Buffer.from(chunk));
    held.bytes += chunk.length;
    if (held.bytes > MOST_STATUS_BYTES) this.#letGo(controller, held);
  }

  onResponseEnd(controller: Dispatcher.DispatchController, trailers: IncomingHttpHeaders): void {
    const held = this.#held;
    if (held !== null) {
      const refusal = refusalOf(held);
      if (refusal !== null) {
        this.#held = null;
        this.#handler.onResponseError?.(controller, refusal);
        return;
      }
      this.#letGo(controller, held);
    }
    this.#handler.onResponseEnd?.(controller, trailers);
  }

  onResponseError(controller: Dispatcher.DispatchController, error: Error): void {
    this.#handler.onResponseError?.(controller, this.#isStarted ? error : asCutWay(error));
  }

  #letGo(controller: Dispatcher.DispatchController, held: Held): void {
    this.#held = null;
    this.#isStarted = true;
    this.#handler.onResponseStart?.(controller, held.status, held.headers, held.text);
    for (const chunk of held.chunks) this.#handler.onResponseData?.(controller, chunk);
  }
}

/** What shows that the API server has not reached the engine. */
const UNREACHED =
  /connection refused|no endpoints available|no such host|no route to host|dial tcp|i\/o timeout|not found/i;

/** Null: it is what the engine answered. */
function refusalOf({ status, chunks }: Held): Error | null {
  const parsed = v.safeParse(statusSchema, Buffer.concat(chunks).toString('utf8'));
  if (!parsed.success) return null;
  const message = `The API server says ${status}: ${parsed.output.message}`;
  // Refused or kept waiting by the API server itself, the engine has not heard of it.
  if (status < 500 || UNREACHED.test(message)) return transient('kubernetes.no_way', message);
  return Object.assign(new Error(message), { code: 'ECONNRESET' });
}

const BROKEN = new Set(['UND_ERR_SOCKET', 'ECONNRESET', 'EPIPE', 'ECONNABORTED']);

/** An engine that breaks is told by the API server: a connection to that which breaks says nothing of a line. */
function asCutWay(error: Error): Error {
  if (!BROKEN.has(errorCode(error))) return error;
  const cause = transient('kubernetes.cut', 'The connection through the API server was cut.', {
    cause: error,
  });
  return Object.assign(new Error(cause.message, { cause }), { code: errorCode(error) });
}
