import type { IncomingHttpHeaders } from 'node:http';
import type { Dispatcher } from 'undici';
import { toError } from '../domain/errors.ts';
import type { LimitHeaders } from '../domain/rate-limit.ts';
import type { Budget } from './budget.ts';
import { limitHeaders } from './limit-headers.ts';
import { whoFollows } from './on-abort.ts';
import type { Abortable } from './on-abort.ts';
import type { Roster, Seat } from './roster.ts';
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
 * line would cost as much as the request itself, and so would promises on the way. Bytes of the answer are added to the
 * budget as they come; they are taken off again when it fails, else by whoever gets the reply. Fails with the signal's
 * reason when aborted, and with TimedOutError, TooLongError or StreamCutError as they say. The request should have no
 * time limits: they are kept here, not by undici.
 */
export function exchange(
  dispatcher: Pick<Dispatcher, 'dispatch'>,
  request: Dispatcher.DispatchOptions,
  asker: Asker,
  limits: ExchangeLimits,
): void {
  dispatcher.dispatch(request, new Exchange(asker, limits));
}

/** What all requests to an engine share. */
export interface ExchangeLimits {
  budget: Budget;
  maxBytes: number;
  ticker: Ticker;
}

/** Who asks: exactly one of `replied` and `failed` is called, once. */
export interface Asker {
  readonly times: AttemptLimits;
  readonly signal: AbortSignal;
  /** Puts an answer together that comes as a stream of events; null: none was asked for. */
  readonly openStream: (() => AnswerStream) | null;
  /** Before the answer began, nothing came for `silentMs`. */
  replied(reply: Reply, silentMs: number): void;
  failed(error: unknown, silentMs: number): void;
}

const EVENT_STREAM = 'text/event-stream';
const NO_HEADERS: IncomingHttpHeaders = {};

class Exchange implements Dispatcher.DispatchHandler, Ticked, Abortable {
  readonly #asker: Asker;
  readonly #limits: ExchangeLimits;
  readonly #following: Roster<Abortable>;
  readonly #abortSeat: Seat<Abortable>;
  readonly #tickSeat: Seat<Ticked>;
  #chunks: Buffer[] = [];
  #stream: AnswerStream | null = null;
  #controller: Dispatcher.DispatchController | null = null;
  /** Bytes that are held, and counted in the budget. */
  #length = 0;
  #status = 0;
  #headers = NO_HEADERS;
  #turn: Promise<() => void> | null = null;
  #isPaused = false;
  #isOver = false;
  /** How long it takes, and how long nothing came, ms. */
  #taken = BEFORE_FIRST_TICK;
  #silent = BEFORE_FIRST_TICK;
  #firstSilence: number | null = null;
  #hasBytes = false;

  constructor(asker: Asker, limits: ExchangeLimits) {
    this.#asker = asker;
    this.#limits = limits;
    this.#following = whoFollows(asker.signal);
    this.#abortSeat = this.#following.enter(this);
    this.#tickSeat = limits.ticker.follow(this);
  }

  aborted(): void {
    this.#fail(this.#asker.signal.reason);
  }

  tick(ms: number): void {
    // We hold it back ourselves.
    if (this.#isPaused) return;
    this.#taken += ms;
    const { times } = this.#asker;
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
    const { openStream } = this.#asker;
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
    const reply: Reply = {
      status: this.#status,
      body,
      requestId: single(this.#headers['x-request-id']),
      // Its type is a lie where a proxy sends it once more.
      retryAfter: single(this.#headers['retry-after']) ?? undefined,
      limits: limitHeaders(this.#headers),
    };
    this.#letGo();
    this.#asker.replied(reply, this.#silence);
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
    this.#letGo();
    this.#controller?.abort(toError(error));
    this.#asker.failed(error, this.#silence);
  }

  /** One that took long is old to the garbage collector by now, and would keep alive for long what it has. */
  #letGo(): void {
    this.#chunks = [];
    this.#headers = NO_HEADERS;
    this.#stream = null;
  }

  get #silence(): number {
    return this.#firstSilence ?? this.#silent;
  }

  /** False when it was over already: undici reports an abort of ours as an error, too. */
  #end(): boolean {
    if (this.#isOver) return false;
    this.#isOver = true;
    this.#following.leave(this.#abortSeat);
    this.#limits.ticker.leave(this.#tickSeat);
    void this.#turn?.then((endTurn) => endTurn());
    return true;
  }
}

function single(header: string | string[] | undefined): string | null {
  return (Array.isArray(header) ? header[0] : header) ?? null;
}
