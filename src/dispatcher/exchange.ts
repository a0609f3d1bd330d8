import type { IncomingHttpHeaders } from 'node:http';
import type { Dispatcher } from 'undici';
import { toError } from '../domain/errors.ts';
import type { Budget } from './budget.ts';
import { onAbort } from './on-abort.ts';

/** What an engine said to one request, read whole. */
export interface Reply {
  status: number;
  body: Buffer;
  requestId: string | null;
  retryAfter: string | undefined;
}

/** The answer was cut off by us: it is longer than one may be. */
export class TooLongError extends Error {
  constructor(limit: number) {
    super(`The answer is longer than ${limit} bytes.`);
    this.name = 'TooLongError';
  }
}

/** Answers up to this length never wait for their turn. */
const SHORT_ANSWER_BYTES = 256 * 1024;

/**
 * One request and its whole answer over undici's lowest interface: streams, iterators and abort listeners for each
 * line would cost as much as the request itself. Bytes of the answer are added to the budget as they come; they are
 * taken off again when it fails, else by whoever gets the reply. Rejects with the signal's reason when aborted.
 */
export function exchange(
  dispatcher: Dispatcher,
  request: Dispatcher.DispatchOptions,
  limits: Limits,
): Promise<Reply> {
  const { promise, resolve, reject } = Promise.withResolvers<Reply>();
  dispatcher.dispatch(request, new Exchange(limits, resolve, reject));
  return promise;
}

interface Limits {
  budget: Budget;
  maxBytes: number;
  signal: AbortSignal;
}

class Exchange implements Dispatcher.DispatchHandler {
  readonly #limits: Limits;
  readonly #resolve: (reply: Reply) => void;
  readonly #reject: (error: unknown) => void;
  readonly #forgetSignal: () => void;
  readonly #chunks: Buffer[] = [];
  #controller: Dispatcher.DispatchController | null = null;
  #length = 0;
  #status = 0;
  #headers: IncomingHttpHeaders = {};
  #turn: Promise<() => void> | null = null;
  #isOver = false;

  constructor(limits: Limits, resolve: (reply: Reply) => void, reject: (error: unknown) => void) {
    this.#limits = limits;
    this.#resolve = resolve;
    this.#reject = reject;
    this.#forgetSignal = onAbort(limits.signal, () => this.#fail(limits.signal.reason));
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
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    const { budget, maxBytes } = this.#limits;
    this.#chunks.push(chunk);
    this.#length += chunk.length;
    budget.add(chunk.length);
    if (this.#length > maxBytes) this.#fail(new TooLongError(maxBytes));
    else if (this.#length > SHORT_ANSWER_BYTES && budget.isOver()) this.#waitForTurn(controller);
  }

  onResponseEnd(): void {
    if (!this.#end()) return;
    const [first] = this.#chunks;
    this.#resolve({
      status: this.#status,
      body: first !== undefined && this.#chunks.length === 1 ? first : Buffer.concat(this.#chunks),
      requestId: single(this.#headers['x-request-id']),
      // Its type is a lie where a proxy sends it once more.
      retryAfter: single(this.#headers['retry-after']) ?? undefined,
    });
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    this.#fail(error);
  }

  /** Holds the connection back until it is this answer's turn; the turn ends with the answer. */
  #waitForTurn(controller: Dispatcher.DispatchController): void {
    if (this.#turn !== null) return;
    controller.pause();
    this.#turn = this.#limits.budget.turn();
    void this.#turn.then(() => {
      if (!this.#isOver) controller.resume();
    });
  }

  #fail(error: unknown): void {
    if (!this.#end()) return;
    this.#limits.budget.remove(this.#length);
    this.#chunks.length = 0;
    this.#controller?.abort(toError(error));
    this.#reject(error);
  }

  /** False when it was over already: undici reports an abort of ours as an error, too. */
  #end(): boolean {
    if (this.#isOver) return false;
    this.#isOver = true;
    this.#forgetSignal();
    void this.#turn?.then((endTurn) => endTurn());
    return true;
  }
}

function single(header: string | string[] | undefined): string | null {
  return (Array.isArray(header) ? header[0] : header) ?? null;
}
