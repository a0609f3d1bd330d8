import type { Dispatcher } from 'undici';
import { describeError, errorCode } from '../domain/errors.ts';
import { createBreaker } from './breaker.ts';
import type { Budget } from './budget.ts';
import type { Clock } from './clock.ts';
import { exchange, TooLongError } from './exchange.ts';
import type { Reply } from './exchange.ts';

/** This process's way to an engine, opened by a runtime. */
export interface EngineConnection {
  readonly dispatcher: Dispatcher;
  readonly origin: string;
  readonly pathPrefix: string;
  readonly headers: Readonly<Record<string, string>>;
  close(): Promise<void>;
}

/** No answer came: the connection broke, the engine stayed silent too long, or the answer was cut. */
export class TransportError extends Error {
  readonly code: 'engine_unreachable' | 'engine_timeout' | 'response_too_large';

  constructor(code: TransportError['code'], message: string, cause?: unknown) {
    super(message, { cause });
    this.name = 'TransportError';
    this.code = code;
  }
}

/**
 * One engine as this process sees it, known by its address. Its breaker opens when nothing but broken connections
 * came back several times in a row; then nothing is sent until `/health` answers.
 */
export interface Engine {
  readonly address: string;
  readonly isOpen: boolean;
  inFlight: number;
  /**
   * Asks once. Throws TransportError when no whole answer came, and the signal's reason when that aborted it.
   * Bytes of the answer are added to the budget; who gets the reply removes them.
   */
  send(path: string, body: Buffer, signal: AbortSignal): Promise<Reply>;
  close(): Promise<void>;
}

interface EngineOptions {
  address: string;
  connection: EngineConnection;
  budget: Budget;
  maxResponseBytes: number;
  clock: Clock;
  /** The breaker opened: somebody should look at the engine. */
  onDown: (address: string, reason: string) => void;
  /** The breaker closed, lines may be sent again. */
  onUp: (address: string) => void;
}

const PROBE_TIMEOUT_MS = 5_000;

export function createEngine(options: EngineOptions): Engine {
  const { address, connection, budget } = options;
  const headers = [
    'content-type',
    'application/json',
    ...Object.entries(connection.headers).flat(),
  ];
  const breaker = createBreaker({
    clock: options.clock,
    probe: () => answersHealth(connection, headers),
    onOpen: (reason) => options.onDown(address, reason),
    onClose: () => options.onUp(address),
  });

  return {
    address,
    inFlight: 0,
    get isOpen() {
      return breaker.isOpen;
    },
    async send(path, body, signal) {
      signal.throwIfAborted();
      const request = {
        origin: connection.origin,
        path: `${connection.pathPrefix}${path}`,
        method: 'POST',
        headers,
        body,
      } as const;
      try {
        const limits = { budget, maxBytes: options.maxResponseBytes, signal };
        const reply = await exchange(connection.dispatcher, request, limits);
        breaker.succeeded();
        return reply;
      } catch (error) {
        signal.throwIfAborted();
        if (error instanceof TooLongError) {
          throw new TransportError('response_too_large', error.message, error);
        }
        breaker.failed(`${address} gave no answer: ${describeError(error)}`);
        throw transportError(error);
      }
    },
    async close() {
      breaker.close();
      await connection.close();
    },
  };
}

/** The line's owner is told what happened, not where: addresses of machines are no business of the output file's. */
function transportError(error: unknown): TransportError {
  const name = error instanceof Error ? error.name : 'Error';
  const code = errorCode(error) || name;
  return /timeout/i.test(name) || code.includes('TIMEOUT')
    ? new TransportError('engine_timeout', `The engine did not answer in time (${code}).`, error)
    : new TransportError(
        'engine_unreachable',
        `The connection to the engine broke (${code}).`,
        error,
      );
}

/** Servers other than vLLM may have no `/health`; that they answer at all is then the sign. */
async function answersHealth(connection: EngineConnection, headers: string[]): Promise<boolean> {
  try {
    const { statusCode, body } = await connection.dispatcher.request({
      origin: connection.origin,
      path: `${connection.pathPrefix}/health`,
      method: 'GET',
      headers,
      headersTimeout: PROBE_TIMEOUT_MS,
      bodyTimeout: PROBE_TIMEOUT_MS,
    });
    await body.dump();
    return statusCode === 200 || statusCode === 404;
  } catch {
    return false; // any failure to answer means the same: not yet
  }
}
