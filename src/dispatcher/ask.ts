import { isUtf8 } from 'node:buffer';
import type { Usage } from '../domain/job.ts';
import { isRetriedStatus, parseRetryAfter, retryDelay } from '../domain/retry.ts';
import type { RetryPolicy } from '../domain/retry.ts';
import { errorOnlyLine, outputLine } from './answer-lines.ts';
import type { Budget } from './budget.ts';
import type { Clock } from './clock.ts';
import type { FreshAnswer } from './contract.ts';
import { TransportError } from './engine.ts';
import type { Engine } from './engine.ts';
import type { Reply } from './exchange.ts';
import type { Room, Tenant } from './room.ts';
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
  | { is: 'answered'; answered: Answered }
  | { is: 'failed'; reason: string; retryAfterMs: number | null; last: () => FreshAnswer };

/** Where a line is asked, how often, and until when. */
interface Place {
  path: string;
  retry: RetryPolicy;
  tenant: Tenant;
  /** Only engines that serve it are asked; null: any. */
  model: string | null;
  /** No further attempt begins. */
  stop: AbortSignal;
  /** What is in flight is cut. */
  abort: AbortSignal;
}

export interface AskDeps {
  room: Room;
  clock: Clock;
  budget: Budget;
  onRetry: (reason: string) => void;
}

/**
 * Asks one line until it has an answer, starting at an engine whose place was taken for it. The place is given back
 * while the line waits for its next attempt. Resolves to null when `abort` comes first, or `stop` between two attempts,
 * where nothing is lost that an engine has worked for: the line stays open.
 * Attempts that met an engine whose breaker opened do not count: they say nothing about the line.
 */
export async function askLine(
  question: Question,
  first: Engine,
  where: Place,
  deps: AskDeps,
): Promise<Answered | null> {
  const { stop, tenant, model, retry } = where;
  let engine: Engine | null = first;
  let attempt = 0;
  while (engine !== null) {
    let tried: Attempt | null;
    let engineIsDown = false;
    try {
      tried = await tryOnce(question, engine, where, deps);
    } finally {
      engineIsDown = engine.isOpen;
      deps.room.give(engine);
    }
    if (tried === null) return null;
    if (tried.is === 'answered') return tried.answered;
    if (!engineIsDown) {
      attempt += 1;
      if (attempt > retry.maxRetries) return { answer: tried.last(), usage: NO_USAGE };
      const line = { attempt, retryAfterMs: tried.retryAfterMs };
      deps.onRetry(tried.reason);
      await deps.clock.sleep(retryDelay(retry, line, deps.clock.random()), stop);
    }
    engine = await deps.room.take(tenant, model, stop);
  }
  return null;
}

async function tryOnce(
  question: Question,
  engine: Engine,
  { path, abort }: Place,
  { clock, budget }: AskDeps,
): Promise<Attempt | null> {
  let reply: Reply;
  try {
    reply = await engine.send(path, question.body, abort);
  } catch (error) {
    if (abort.aborted) return null;
    if (!(error instanceof TransportError)) throw error;
    return broken(question, error);
  }
  // From here on the answer's bytes are counted where the finished line is kept.
  budget.remove(reply.body.length);
  return judge(question, reply, clock.now());
}

function broken(question: Question, error: TransportError): Attempt {
  const last = () => failure(question, error.code, error.message);
  // A longer answer would come again.
  if (error.code === 'response_too_large') {
    return { is: 'answered', answered: { answer: last(), usage: NO_USAGE } };
  }
  return { is: 'failed', reason: error.code, retryAfterMs: null, last };
}

function judge(question: Question, reply: Reply, now: number): Attempt {
  const parsed = parseJson(reply.body);
  const success = reply.status >= 200 && reply.status < 300;
  if (success && parsed !== undefined) {
    const answer = wrap(question, reply, reply.body, 'output');
    return { is: 'answered', answered: { answer, usage: readUsage(parsed) } };
  }
  if (success) {
    const message = `The engine answered ${reply.status} with a body that is no JSON.`;
    const last = () => failure(question, 'invalid_engine_response', message);
    return { is: 'failed', reason: 'invalid_engine_response', retryAfterMs: null, last };
  }
  const body = parsed === undefined ? errorBody(reply) : reply.body;
  const last = () => wrap(question, reply, body, 'error');
  if (!isRetriedStatus(reply.status)) {
    return { is: 'answered', answered: { answer: last(), usage: NO_USAGE } };
  }
  const retryAfterMs = parseRetryAfter(reply.retryAfter, now);
  return { is: 'failed', reason: `http_${reply.status}`, retryAfterMs, last };
}

function wrap(
  question: Question,
  reply: Reply,
  body: Buffer,
  kind: FreshAnswer['kind'],
): FreshAnswer {
  const { id, customId, line } = question;
  const requestId = reply.requestId ?? id;
  const { status } = reply;
  return { line, kind, pieces: outputLine({ id, customId, status, requestId, body }) };
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
