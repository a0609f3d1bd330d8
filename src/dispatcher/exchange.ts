import type { IncomingHttpHeaders } from 'node:http';
import type { Dispatcher } from 'undici';
import { toError } from '../domain/errors.ts';
import type { LimitHeaders } from '../domain/rate-limit.ts';
import type { Budget } from './budget.ts';
import { limitHeaders } from './limit-headers.ts';
import { onAbort } from './on-abort.ts';
import type { AnswerStream } from './stream-answer.ts';
import { BEFORE_FIRST_TICK, timedOut } from './timeouts.ts';
import type { AttemptLimits, Ticked, Ticker } from './timeouts.ts';

/** What an engine said to one request, read whole. */
export interface Reply {
  status: number;
  body: Buffer;
  requestId: string | null;
  retryAfter: string | undefined;
  /** What it says about its rate limits; null: nothing. */
  limits: LimitHeaders | null;
}

/** The answer was cut off by us: it is longer than one may be. */
export class TooLongError extends Error {
  constructor(limit: number) {
    super(`The answer is longer than ${limit} bytes.`);
    this.name = 'TooLongError';
  }
}

/** A streamed answer ended before it was whole. */
export class StreamCutError extends Error {
  constructor() {
    super('The stream of the answer ended before the answer did.');
    this.name = 'StreamCutError';
  }
}

/** Answers up to this length never wait for their turn. */
const SHORT_ANSWER_BYTES = 256 * 1024;

/**
 * One request and its whole answer over undici's lowest interface: streams, iterators and abort listeners for each
 * line would cost as much as the request itself. Bytes of the answer are added to the budget as they come; they are
 * taken off again when it fails, else by whoever gets the reply. Rejects with the signal's reason when aborted, and with
 * TimedOutError, TooLongError or StreamCutError as they say. Time limits are kept here, not by undici.
 */
export function exchange(
  dispatcher: Pick<Dispatcher, 'dispatch'>,
  request: Dispatcher.DispatchOptions,
  limits: ExchangeLimits,
): Promise<Reply> {
  const { promise, resolve, reject } = Promise.withResolvers<Reply>();
  const untimed = { ...request, headersTimeout: 0, bodyTimeout: 0 };
  dispatcher.dispatch(untimed, new Exchange(limits, resolve, reject));
  return promise;
}

interface ExchangeLimits {
  budget: Budget;
  maxBytes: number;
  times: AttemptLimits;
  ticker: Ticker;
  signal: AbortSignal;
  /** Puts an answer together that comes as a stream of events; null: none was asked for. */
  openStream: (() => AnswerStream) | null;
  /** Told at the end how long nothing came before the answer began, ms, whatever came of it. */
  onSilence: (ms: number) => void;
}

const EVENT_STREAM = 'text/event-stream';

class Exchange implements Dispatcher.DispatchHandler, Ticked {
  readonly #limits: ExchangeLimits;
  readonly #resolve: (reply: Reply) => void;
  readonly #reject: (error: unknown) => void;
  readonly #forgetSignal: () => void;
  readonly #forgetTicks: () => void;
  readonly #chunks: Buffer[] = [];
  #stream: AnswerStream | null = null;
  #controller: Dispatcher.DispatchController | null = null;
  /** Bytes that are held, and counted in the budget. */
  #length = 0;
  #status = 0;
  #headers: IncomingHttpHeaders = {};
  #turn: Promise<() => void> | null = null;
  #isPaused = false;
  #isOver = false;
  /** How long it takes, and how long nothing came, ms. */
  #taken = BEFORE_FIRST_TICK;
  #silent = BEFORE_FIRST_TICK;
  #firstSilence: number | null = null;
  #hasBytes = false;

  constructor(
    limits: ExchangeLimits,
    resolve: (reply: Reply) => void,
    reject: (error: unknown) => void,
  ) {
    this.#limits = limits;
    this.#resolve = resolve;
    this.#reject = reject;
    this.#forgetSignal = onAbort(limits.signal, () => this.#fail(limits.signal.reason));
    this.#forgetTicks = limits.ticker.follow(this);
  }

  tick(ms: number): void {
    // We hold it back ourselves.
    if (this.#isPaused) return;
    this.#taken += ms;
    const { times } = this.#limits;
    if (this.#taken >= times.answer) this.#fail(timedOut('answer', times));
    // The way there has a limit of its own.
    if (this.#controller === null) return;
    this.#silent += ms;
    const which = this.#hasBytes ? 'betweenBytes' : 'firstByte';
    if (this.#silent >= times[which]) this.#fail(timedOut(which, times));
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller;
    // It was aborted while it waited for a connection.
    if (this.#isOver) controller.abort(new Error('aborted'));
  }

  onResponseStart(
    _controller: Dispatcher.DispatchController,
    status: number,
    headers: IncomingHttpHeaders,
  ): void {
    this.#status = status;
    this.#headers = headers;
    this.#firstSilence ??= this.#silent;
    const { openStream } = this.#limits;
    if (openStream === null || status < 200 || status >= 300) return;
    const type = single(headers['content-type']) ?? '';
    if (type.toLowerCase().startsWith(EVENT_STREAM)) this.#stream = openStream();
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    const { budget, maxBytes } = this.#limits;
    this.#hasBytes = true;
    this.#silent = BEFORE_FIRST_TICK;
    if (this.#stream === null) {
      this.#chunks.push(chunk);
      this.#hold(this.#length + chunk.length);
    } else {
      this.#stream.push(chunk);
      this.#hold(this.#stream.held);
    }
    if (this.#length > maxBytes) this.#fail(new TooLongError(maxBytes));
    else if (this.#length > SHORT_ANSWER_BYTES && budget.isOver()) this.#waitForTurn(controller);
  }

  onResponseEnd(): void {
    const body = this.#body();
    if (body === null) {
      this.#fail(new StreamCutError());
      return;
    }
    if (!this.#end()) return;
    this.#hold(body.length);
    this.#resolve({
      status: this.#status,
      body,
      requestId: single(this.#headers['x-request-id']),
      // Its type is a lie where a proxy sends it once more.
      retryAfter: single(this.#headers['retry-after']) ?? undefined,
      limits: limitHeaders(this.#headers),
    });
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    // Whoever said that the answer is whole may leave as it likes.
    if (this.#stream?.isWhole === true && !this.#isOver) this.onResponseEnd();
    else this.#fail(error);
  }

  /** Null: the stream was cut before the answer was whole. */
  #body(): Buffer | null {
    if (this.#stream !== null) {
      const joined = this.#stream.finish(this.#status);
      if (joined !== null) this.#status = joined.status;
      return joined?.body ?? null;
    }
    const [first] = this.#chunks;
    return first !== undefined && this.#chunks.length === 1 ? first : Buffer.concat(this.#chunks);
  }

  #hold(bytes: number): void {
    const { budget } = this.#limits;
    if (bytes > this.#length) budget.add(bytes - this.#length);
    else if (bytes < this.#length) budget.remove(this.#length - bytes);
    this.#length = bytes;
  }

  /** Holds the connection back until it is this answer's turn; the turn ends with the answer. */
  #waitForTurn(controller: Dispatcher.DispatchController): void {
    if (this.#turn !== null) return;
    controller.pause();
    this.#isPaused = true;
    this.#turn = this.#limits.budget.turn();
    void this.#turn.then(() => {
      this.#isPaused = false;
      if (!this.#isOver) controller.resume();
    });
  }

  #fail(error: unknown): void {
    if (!this.#end()) return;
    this.#hold(0);
    this.#chunks.length = 0;
    this.#stream = null;
    this.#controller?.abort(toError(error));
    this.#reject(error);
  }

  /** False when it was over already: undici reports an abort of ours as an error, too. */
  #end(): boolean {
    if (this.#isOver) return false;
    this.#isOver = true;
    this.#forgetSignal();
    this.#forgetTicks();
    this.#limits.onSilence(this.#firstSilence ?? this.#silent);
    void this.#turn?.then((endTurn) => endTurn());
    return true;
  }
}

function single(header: string | string[] | undefined): string | null {
  return (Array.isArray(header) ? header[0] : header) ?? null;
}
