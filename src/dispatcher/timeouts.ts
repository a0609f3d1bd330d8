import type { Clock } from './clock.ts';
import { Roster } from './roster.ts';
import type { Seat } from './roster.ts';

/** How long an engine may take for one attempt, ms. */
export interface Timeouts {
  /** Until it accepts a connection; the connection itself keeps to it. */
  connect: number;
  /** From the request to the first byte of the answer; for an answer that is not streamed that is nearly all of it. */
  firstByte: number;
  /** Between two bytes of an answer. */
  betweenBytes: number;
  /** From the first step to the last byte. */
  answer: number;
}

/** The time limits of one attempt: what the server allows, or what the job asked for. */
export interface AttemptLimits extends Pick<Timeouts, 'firstByte' | 'betweenBytes' | 'answer'> {
  /** Whose limit `answer` is, for the message. */
  answerBy: 'ANSWER_TIMEOUT' | 'request_timeout_seconds';
}

/**
 * A job that says how long an attempt may take (ms; null: it does not) knows how long its answers are, so that the
 * wait for the first byte has no limit of its own.
 */
export function attemptLimits(timeouts: Timeouts, answerMs: number | null): AttemptLimits {
  const { firstByte, betweenBytes, answer } = timeouts;
  return answerMs === null
    ? { firstByte, betweenBytes, answer, answerBy: 'ANSWER_TIMEOUT' }
    : { firstByte: answerMs, betweenBytes, answer: answerMs, answerBy: 'request_timeout_seconds' };
}

/** An attempt took longer than it may; the message says which limit that was, and how long. */
export class TimedOutError extends Error {
  /** Whether the engine sent nothing for too long, instead of just taking too long as a whole. */
  readonly isSilence: boolean;

  constructor(message: string, isSilence: boolean) {
    super(message);
    this.name = 'TimedOutError';
    this.isSilence = isSilence;
  }
}

export function connectTimedOut(limitMs: number): string {
  return `The engine accepted no connection within ${seconds(limitMs)} (CONNECT_TIMEOUT).`;
}

export function timedOut(which: 'firstByte' | 'betweenBytes' | 'answer', limits: AttemptLimits) {
  const after = seconds(limits[which]);
  switch (which) {
    case 'firstByte':
      return new TimedOutError(
        `The engine began no answer within ${after} (REQUEST_TIMEOUT).`,
        true,
      );
    case 'betweenBytes':
      return new TimedOutError(
        `The engine fell silent for ${after} in the middle of its answer (BYTE_TIMEOUT).`,
        true,
      );
    case 'answer':
      return new TimedOutError(
        `The engine did not finish its answer within ${after} (${limits.answerBy}).`,
        false,
      );
  }
}

function seconds(ms: number): string {
  return `${Number((ms / 1_000).toFixed(1))} s`;
}

/** Who is told how much time has passed. */
export interface Ticked {
  tick(ms: number): void;
}

/** Counts the time of all that is in flight at an engine. */
export interface Ticker {
  /** Tells somebody again and again how much time has passed, until it leaves. */
  follow(one: Ticked): Seat<Ticked>;
  leave(seat: Seat<Ticked>): void;
}

const TICK_MS = 50;
/** What somebody who begins to count between two ticks counts from, ms, so that no limit ends early. */
export const BEFORE_FIRST_TICK = -TICK_MS;
/** A longer step counts as this long: while this process stood still, it was not the engine that was silent. */
const LONGEST_STEP_MS = 2 * TICK_MS;

/**
 * One timer for all: thousands of requests begin and end each second, and timers of their own for each of their limits
 * would cost more than the limits are worth. It runs while anybody follows.
 */
export function createTicker(clock: Clock): Ticker {
  const ticked = new Roster<Ticked>();
  let last = 0;
  let isRunning = false;

  function run(): void {
    isRunning = true;
    last = clock.now();
    clock.after(TICK_MS, tick);
  }

  function tick(): void {
    const step = Math.min(Math.max(0, clock.now() - last), LONGEST_STEP_MS);
    ticked.each((one) => one.tick(step));
    if (ticked.size > 0) run();
    else isRunning = false;
  }

  return {
    follow(one) {
      const seat = ticked.enter(one);
      if (!isRunning) run();
      return seat;
    },
    leave: (seat) => ticked.leave(seat),
  };
}
