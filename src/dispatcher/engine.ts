import { createHash } from 'node:crypto';
import { crc32 } from 'node:zlib';
import type { Dispatcher } from 'undici';
import { describeError } from '../domain/errors.ts';
import { createBreaker } from './breaker.ts';
import type { Breaker } from './breaker.ts';
import type { Budget } from './budget.ts';
import type { Clock } from './clock.ts';
import type { EngineWindow } from './engine-window.ts';
import { exchange } from './exchange.ts';
import type { Reply } from './exchange.ts';
import { attemptLimits, createTicker } from './timeouts.ts';
import type { Timeouts } from './timeouts.ts';
import { isBroken, isEnginesFault, transportError } from './transport-error.ts';
import { createUpstream } from './upstream.ts';
import type { AttemptWish } from './upstream.ts';

/** This process's way to an engine, opened by a runtime. */
export interface EngineConnection {
  readonly dispatcher: Dispatcher;
  readonly origin: string;
  readonly pathPrefix: string;
  readonly headers: Readonly<Record<string, string>>;
  close(): Promise<void>;
}

/**
 * One engine as this process sees it, known by its address. Its breaker opens when nothing but broken connections
 * came back several times in a row; then nothing is sent until `/health` answers.
 */
export interface Engine {
  readonly address: string;
  readonly isOpen: boolean;
  /** Lines in flight, all jobs together: the room counts them. */
  inFlight: number;
  /** How busy it is for what it takes. */
  readonly load: number;
  /** Tells engines apart where lines are spread over them, the same in every process. */
  readonly seed: number;
  readonly window: EngineWindow;
  /** A name of the API key that it is sent, the same in every process; null: none. */
  readonly key: string | null;
  /**
   * Asks once. Throws TransportError when no whole answer came, and the signal's reason when that aborted it.
   * Bytes of the answer are added to the budget; who gets the reply removes them. Whether the engine streamed it or
   * not, the reply is whole.
   */
  send(path: string, body: Buffer, signal: AbortSignal, job: AttemptWish): Promise<Reply>;
  /** Looks whether it still lives; its breaker opens at once where it does not. */
  doubt(): Promise<void>;
  close(): Promise<void>;
}

interface EngineOptions {
  address: string;
  connection: EngineConnection;
  budget: Budget;
  maxResponseBytes: number;
  timeouts: Timeouts;
  clock: Clock;
  /** How much it takes compared with others; 1 where nobody said. */
  weight: number;
  /** Makes its window; `inFlight` is what this process has in flight there. */
  openWindow: (inFlight: () => number) => EngineWindow;
  /** The breaker opened: somebody should look at the engine. */
  onDown: (address: string, reason: string) => void;
  /** The breaker closed, lines may be sent again. */
  onUp: (address: string) => void;
}

const PROBE_TIMEOUT_MS = 5_000;

export function createEngine(options: EngineOptions): Engine {
  const { address, connection } = options;
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

  const window = options.openWindow(() => engine.inFlight);
  const engine: Engine = {
    address,
    inFlight: 0,
    seed: crc32(address),
    window,
    key: keyName(connection.headers),
    get load() {
      return engine.inFlight / (Math.max(1, window.limit) * options.weight);
    },
    get isOpen() {
      return breaker.isOpen;
    },
    send: createSender(options, headers, breaker),
    doubt: async () => breaker.doubt(`${address} broke a connection and does not answer`),
    async close() {
      window.close();
      breaker.close();
      await connection.close();
    },
  };
  return engine;
}

/** The key itself must not come into names of records. */
function keyName(headers: EngineConnection['headers']): string | null {
  const authorization = headers['authorization'];
  if (authorization === undefined) return null;
  return createHash('sha256').update(authorization).digest('hex').slice(0, 16);
}

function createSender(options: EngineOptions, headers: string[], breaker: Breaker): Engine['send'] {
  const { address, connection, budget, timeouts } = options;
  const { origin, pathPrefix } = connection;
  const upstream = createUpstream();
  const ticker = createTicker(options.clock);
  return async (path, body, signal, job) => {
    signal.throwIfAborted();
    const attempt = upstream.begin(path, body, job);
    const request = {
      origin,
      path: `${pathPrefix}${path}`,
      method: 'POST',
      headers,
      body: attempt.body,
    } as const;
    budget.add(attempt.copied);
    try {
      const reply = await exchange(connection.dispatcher, request, {
        budget,
        maxBytes: options.maxResponseBytes,
        signal,
        ticker,
        times: attemptLimits(timeouts, job.answerTimeoutMs),
        openStream: attempt.openStream,
        onSilence: (ms) => (attempt.silentMs = ms),
      });
      breaker.succeeded();
      upstream.sawEnd(attempt, job, reply.status);
      return reply;
    } catch (error) {
      signal.throwIfAborted();
      const isCut = isBroken(error) && upstream.sawEnd(attempt, job, null) === 'cut';
      if (!isCut && isEnginesFault(error)) {
        breaker.failed(`${address} gave no answer: ${describeError(error)}`);
      }
      throw transportError(error, timeouts);
    } finally {
      budget.remove(attempt.copied);
    }
  };
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
