import { createHash } from 'node:crypto';
import { crc32 } from 'node:zlib';
import type { Dispatcher } from 'undici';
import { describeError, toError } from '../domain/errors.ts';
import { createBreaker } from './breaker.ts';
import type { Breaker } from './breaker.ts';
import type { Budget } from './budget.ts';
import type { Clock } from './clock.ts';
import type { EngineWindow } from './engine-window.ts';
import { exchange } from './exchange.ts';
import type { Asker, Reply } from './exchange.ts';
import type { AnswerStream } from './stream-answer.ts';
import { attemptLimits, createTicker } from './timeouts.ts';
import type { AttemptLimits, Timeouts } from './timeouts.ts';
import { isBroken, isEnginesFault, transportError } from './transport-error.ts';
import { createUpstream } from './upstream.ts';
import type { AttemptWish, Upstream, UpstreamAttempt } from './upstream.ts';

/** This process's way to an engine, opened by a runtime. */
export interface EngineConnection {
  readonly dispatcher: Dispatcher;
  readonly origin: string;
  readonly pathPrefix: string;
  readonly headers: Readonly<Record<string, string>>;
  /** Absent: at `/metrics`. */
  metricsPath?(): Promise<string>;
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
  const { connection, clock, budget, maxResponseBytes: maxBytes } = options;
  const { origin, pathPrefix, dispatcher } = connection;
  const desk = { ...options, breaker, upstream: createUpstream() };
  const limits = { budget, maxBytes, ticker: createTicker(clock) };
  return async (path, body, signal, job) =>
    new Promise((resolve, reject) => {
      if (signal.aborted) {
        reject(toError(signal.reason));
        return;
      }
      const sending = new Sending(desk, { path, body, signal, job }, resolve, reject);
      const request = {
        origin,
        path: pathPrefix === '' ? path : `${pathPrefix}${path}`,
        method: 'POST',
        headers,
        body: sending.body,
        // Kept by the exchange.
        headersTimeout: 0,
        bodyTimeout: 0,
      } as const;
      exchange(dispatcher, request, sending, limits);
    });
}

/** What all attempts at an engine share. */
interface Desk {
  address: string;
  budget: Budget;
  timeouts: Timeouts;
  breaker: Breaker;
  upstream: Upstream;
}

/** A class because there is one for each line: closures of its own would cost every line a microsecond. */
class Sending implements Asker {
  readonly #desk: Desk;
  readonly #job: AttemptWish;
  readonly #attempt: UpstreamAttempt;
  readonly #resolve: (reply: Reply) => void;
  readonly #reject: (error: unknown) => void;
  readonly times: AttemptLimits;
  readonly signal: AbortSignal;

  constructor(
    desk: Desk,
    asked: { path: string; body: Buffer; signal: AbortSignal; job: AttemptWish },
    resolve: (reply: Reply) => void,
    reject: (error: unknown) => void,
  ) {
    this.#desk = desk;
    this.#job = asked.job;
    this.#attempt = desk.upstream.begin(asked.path, asked.body, asked.job);
    this.#resolve = resolve;
    this.#reject = reject;
    this.times = attemptLimits(desk.timeouts, asked.job.answerTimeoutMs);
    this.signal = asked.signal;
    desk.budget.add(this.#attempt.copied);
  }

  get body(): Buffer {
    return this.#attempt.body;
  }

  get openStream(): (() => AnswerStream) | null {
    return this.#attempt.openStream;
  }

  replied(reply: Reply, silentMs: number): void {
    const { budget, breaker, upstream } = this.#desk;
    budget.remove(this.#attempt.copied);
    breaker.succeeded();
    this.#attempt.silentMs = silentMs;
    upstream.sawEnd(this.#attempt, this.#job, reply.status);
    this.#resolve(reply);
  }

  failed(error: unknown, silentMs: number): void {
    const { address, budget, breaker, timeouts, upstream } = this.#desk;
    budget.remove(this.#attempt.copied);
    if (this.signal.aborted) {
      this.#reject(this.signal.reason);
      return;
    }
    this.#attempt.silentMs = silentMs;
    const isCut = isBroken(error) && upstream.sawEnd(this.#attempt, this.#job, null) === 'cut';
    if (!isCut && isEnginesFault(error)) {
      breaker.failed(`${address} gave no answer: ${describeError(error)}`);
    }
    this.#reject(transportError(error, timeouts));
  }
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
