import { isUtf8 } from 'node:buffer';
import type { Usage } from '../domain/job.ts';
import {
  isLate,
  isRejection,
  isRetriedStatus,
  parseRetryAfter,
  retryDelay,
} from '../domain/retry.ts';
import type { RetryPolicy } from '../domain/retry.ts';
import { admit, admitAtOnce, admitFreely } from './admit.ts';
import type { Admission, LimitedJob } from './admit.ts';
import { errorOnlyLine, outputLine } from './answer-lines.ts';
import type { Budget } from './budget.ts';
import type { Clock } from './clock.ts';
import type { FreshAnswer } from './contract.ts';
import type { Engine } from './engine.ts';
import type { Reply } from './exchange.ts';
import { faultOf } from './error-guard.ts';
import type { ErrorGuard } from './error-guard.ts';
import { withHedge } from './hedge.ts';
import type { Hedging } from './hedge.ts';
import type { Limiter, Permit } from './limiter.ts';
import type { Room, Wish } from './room.ts';
import type { Suspect } from './suspects.ts';
import { TransportError, wasNeverSent, wasWayCut } from './transport-error.ts';
import type { AttemptWish } from './upstream.ts';
import { NO_USAGE, readUsage } from './usage.ts';

/** One line to be asked. */
export interface Question {
  /** Index within its shard. */
  line: number;
  /** Its `id` in the output or error file. */
  id: string;
  /** Raw JSON string, quotes included. */
  customId: Buffer;
  body: Buffer;
}

export interface Answered {
  answer: FreshAnswer;
  usage: Usage;
}

/** What came of one attempt: an answer that stands, or a reason to ask again with the answer to give if asked too often. */
type Attempt =
  | {
      is: 'answered';
      answered: Answered;
      /** What is wrong with it; null: nothing. */ fault: string | null;
    }
  | {
      is: 'failed';
      reason: string;
      /** The engine took no work on it, and said so. */
      isRefusal: boolean;
      /** It was in the engine's hands when that broke down: it may be why. */
      mayHaveKilled: boolean;
      /** It is not counted, since it says nothing about the line. */
      isFree: boolean;
      retryAfterMs: number | null;
      last: () => FreshAnswer;
    };

/** Where a line is asked, how often, and until when. */
interface Place {
  path: string;
  retry: RetryPolicy;
  /** What its job wants of each attempt. */
  job: AttemptWish & LimitedJob;
  /** At which engine it has a place. */
  wish: Wish;
  /** What is known of it as one of those that may kill an engine. */
  suspect: Suspect;
  /** Null: errors are the user's business. */
  guard: ErrorGuard | null;
  /** Null: no line is asked twice at the same time. */
  hedging: Hedging | null;
  /** No further attempt begins. */
  stop: AbortSignal;
  /** What is in flight is cut. */
  abort: AbortSignal;
}

export interface AskDeps {
  room: Room;
  limiter: Limiter;
  clock: Clock;
  budget: Budget;
  onRetry: (reason: string) => void;
}

/**
 * Asks one line until it has an answer, starting at an engine whose place was taken for it. The place is given back
 * while the line waits for its next attempt. Resolves to null when `abort` comes first, or `stop` between two attempts,
 * where nothing is lost that an engine has worked for: the line stays open.
 * Attempts that met an engine whose breaker opened, or whose tunnel was cut, do not count: they say nothing about the line.
 */
export async function askLine(
  question: Question,
  first: Engine,
  where: Place,
  deps: AskDeps,
): Promise<Answered | null> {
  const { stop, retry, suspect } = where;
  let place: Engine | null = first;
  let attempt = 0;
  while (place !== null) {
    const admission: Admission | null =
      admitFreely(place, where.job, deps.limiter) ??
      (await admit(place, { ...where, body: question.body }, deps));
    if (admission === null) return null;
    const { engine } = admission;
    let tried: Attempt | null;
    try {
      tried = await tryAt(admission, question, where, deps);
      if (tried?.is === 'failed' && tried.mayHaveKilled) await suspect.fell(engine);
    } finally {
      deps.room.give(engine, where.wish.tenant);
    }
    if (tried === null) return null;
    if (tried.is === 'answered') {
      where.guard?.answered(tried.fault);
      return tried.answered;
    }
    if (counts(tried, engine)) {
      attempt += 1;
      if (attempt > retry.maxRetries) return givenUpAfter(tried, where);
      await restAfter(tried, attempt, where, deps);
    }
    place = await suspect.take(stop);
  }
  return null;
}

type Failed = Extract<Attempt, { is: 'failed' }>;

/** Whether an attempt says something about its line. */
function counts({ isFree }: Failed, engine: Engine): boolean {
  return !engine.isOpen && !isFree;
}

function givenUpAfter({ isRefusal, reason, last }: Failed, { guard }: Place): Answered {
  if (!isRefusal) guard?.failed(reason);
  guard?.answered(reason);
  return { answer: last(), usage: NO_USAGE };
}

/** The wait before the next attempt, with no place. */
async function restAfter(
  { isRefusal, reason, retryAfterMs }: Failed,
  attempt: number,
  { guard, retry, stop, suspect }: Place,
  { clock, onRetry }: AskDeps,
): Promise<void> {
  if (!isRefusal) guard?.failed(reason);
  onRetry(reason);
  suspect.rest();
  await clock.sleep(retryDelay(retry, { attempt, retryAfterMs }, clock.random()), stop);
}

/** One attempt, or, for a straggler of a job that wants that, two at the same time. */
function tryAt(
  admission: Admission,
  question: Question,
  where: Place,
  deps: AskDeps,
): Promise<Attempt | null> | null {
  const { hedging } = where;
  return hedging === null
    ? tryOnce(question, admission, where, deps)
    : tryHedged(question, admission, { ...where, hedging }, deps);
}

async function tryHedged(
  question: Question,
  admission: Admission,
  where: Place & { hedging: Hedging },
  deps: AskDeps,
): Promise<Attempt | null> {
  const { hedging } = where;
  const begun = deps.clock.now();
  const tried = await withHedge(
    { first: admission, wish: where.wish, abort: where.abort },
    { ...deps, hedging },
    {
      send: async (place, abort) => tryOnce(question, place, { ...where, abort }, deps),
      admitAtOnce: (engine) => admitAtOnce(engine, question.body, where.job, deps.limiter),
      stands: (found) => found?.is === 'answered',
    },
  );
  if (tried?.is === 'answered') hedging.answered(deps.clock.now() - begun);
  return tried;
}

/** One attempt. No async function, as there would be one more promise for each line. */
function tryOnce(
  question: Question,
  { engine, permit }: Admission,
  { path, abort, job }: Place,
  deps: AskDeps,
): Promise<Attempt | null> | null {
  if (abort.aborted) return unsent(permit);
  const begun = deps.clock.now();
  return engine.send(path, question.body, abort, job).then(
    (reply) => heard(question, reply, { engine, permit, begun }, deps),
    (error: unknown) => unheard(question, error, { engine, permit, abort }),
  );
}

function heard(
  question: Question,
  reply: Reply,
  { engine, permit, begun }: Admission & { begun: number },
  { budget, clock, limiter }: AskDeps,
): Attempt {
  // From here on the answer's bytes are counted where the finished line is kept.
  budget.remove(reply.body.length);
  const now = clock.now();
  const attempt = judge(question, reply, now, engine.address);
  if (isRejection(reply.status)) engine.window.rejected();
  else if (isLate(reply.status)) engine.window.timedOut();
  else engine.window.answered(now - begun, tokensOf(attempt));
  heed(engine, reply, limiter, now);
  if (permit !== null) settle(permit, reply.status, attempt);
  return attempt;
}

function unheard(
  question: Question,
  error: unknown,
  { engine, permit, abort }: Admission & { abort: AbortSignal },
): Attempt | null {
  if (abort.aborted) return null;
  if (!(error instanceof TransportError)) throw error;
  if (error.code === 'engine_timeout') engine.window.timedOut();
  if (wasNeverSent(error)) permit?.settle(null);
  return broken(question, error);
}

function heed({ address }: Engine, reply: Reply, limiter: Limiter, now: number): void {
  if (reply.limits === null && reply.status !== 429) return;
  const retryAfterMs = parseRetryAfter(reply.retryAfter, now);
  limiter.heed(address, { status: reply.status, retryAfterMs }, reply.limits);
}

/** Nobody has heard it: what it was to use is there for others. */
function unsent(permit: Permit | null): null {
  permit?.settle(null);
  return null;
}

/** Where nobody knows what an engine worked, the line has cost what was reserved for it. */
function settle(permit: Permit, status: number, attempt: Attempt): void {
  const { inputTokens, outputTokens } =
    attempt.is === 'answered' ? attempt.answered.usage : NO_USAGE;
  const used = inputTokens + outputTokens;
  if (used > 0) permit.settle(used);
  else if (status >= 400) permit.settle(0);
}

function tokensOf(attempt: Attempt): number {
  return attempt.is === 'answered' ? attempt.answered.usage.outputTokens : 0;
}

function broken(question: Question, error: TransportError): Attempt {
  const last = () => failure(question, error.code, error.message);
  // A longer answer would come again.
  if (error.code === 'response_too_large') {
    const answered = { answer: last(), usage: NO_USAGE };
    return { is: 'answered', answered, fault: error.code };
  }
  const isFree = wasWayCut(error);
  const mayHaveKilled = error.code === 'engine_unreachable' && !isFree && !wasNeverSent(error);
  const failed = { isRefusal: false, mayHaveKilled, isFree, retryAfterMs: null };
  return { is: 'failed', reason: error.code, ...failed, last };
}

function judge(question: Question, reply: Reply, now: number, engine: string): Attempt {
  const parsed = parseJson(reply.body);
  const success = reply.status >= 200 && reply.status < 300;
  if (success && parsed !== undefined) {
    const answer = wrap(question, reply, reply.body, 'output', engine);
    return { is: 'answered', answered: { answer, usage: readUsage(parsed) }, fault: null };
  }
  if (success) {
    const message = `The engine answered ${reply.status} with a body that is no JSON.`;
    const last = () => failure(question, 'invalid_engine_response', message);
    const failed = { isRefusal: false, mayHaveKilled: false, isFree: false, retryAfterMs: null };
    return { is: 'failed', reason: 'invalid_engine_response', ...failed, last };
  }
  const body = parsed === undefined ? errorBody(reply) : reply.body;
  const last = () => wrap(question, reply, body, 'error', engine);
  if (!isRetriedStatus(reply.status)) {
    const answered = { answer: last(), usage: NO_USAGE };
    return { is: 'answered', answered, fault: faultOf(reply.status, parsed) };
  }
  const retryAfterMs = parseRetryAfter(reply.retryAfter, now);
  const isRefusal = isRejection(reply.status);
  // vLLM answers all that is in flight so when its core dies.
  const mayHaveKilled = reply.status === 500;
  const failed = { isRefusal, mayHaveKilled, isFree: false, retryAfterMs };
  return { is: 'failed', reason: `http_${reply.status}`, ...failed, last };
}

function wrap(
  question: Question,
  reply: Reply,
  body: Buffer,
  kind: FreshAnswer['kind'],
  engine: string,
): FreshAnswer {
  const { id, customId, line } = question;
  const requestId = reply.requestId ?? id;
  const { status } = reply;
  return { line, kind, pieces: outputLine({ id, customId, status, requestId, body }), engine };
}

function failure({ id, customId, line }: Question, code: string, message: string): FreshAnswer {
  return { line, kind: 'error', pieces: [errorOnlyLine({ id, customId, code, message })] };
}

/** Undefined for anything but JSON in UTF-8. JSON's syntax is ASCII, so that latin1 shows its form at a third of the cost. */
function parseJson(body: Buffer): unknown {
  if (body.length === 0 || !isUtf8(body)) return undefined;
  try {
    return JSON.parse(body.toString('latin1')) as unknown;
  } catch {
    return undefined; // a cut or foreign answer is no exception here
  }
}

const MOST_ERROR_TEXT = 2_000;

/** An engine's or proxy's error page, as the JSON that the output line needs. */
function errorBody(reply: Reply): Buffer {
  const message = reply.body.toString('utf8', 0, MOST_ERROR_TEXT);
  return Buffer.from(JSON.stringify({ error: { message, type: null, param: null, code: null } }));
}
