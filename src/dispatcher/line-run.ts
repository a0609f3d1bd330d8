import type { ShardPlan } from '../domain/plan.ts';
import { errorOnlyLine, requestId } from './answer-lines.ts';
import { askLine } from './ask.ts';
import type { Answered, Question } from './ask.ts';
import type { Alone } from './careful.ts';
import { customIdOf, refusalOf } from './check-line.ts';
import type { FreshAnswer } from './contract.ts';
import type { Engine } from './engine.ts';
import { scanRequest } from './json-scan.ts';
import type { InputLine } from './lines.ts';
import type { Wish } from './room.ts';
import type { Hands, RunSignals, ShardRunDeps } from './shard-run.ts';
import type { Suspect } from './suspects.ts';
import { NO_USAGE } from './usage.ts';

/** A line that is in hand. */
export interface Asked {
  line: InputLine;
  wish: Wish;
  engine: Engine | null;
  alone: Alone | null;
}

/** What came of a line: exactly one of both is called. */
export interface Outcome {
  answered(found: Answered | null): void;
  failed(error: unknown): void;
}

/** Has a line asked until it has an answer that stands, or none is to be had now. Never rejects. */
export async function askInHand(
  { line, wish, engine, alone }: Asked,
  plan: ShardPlan,
  hands: Hands,
  signals: RunSignals,
  deps: ShardRunDeps,
  outcome: Outcome,
): Promise<void> {
  const bytes = line.bytes?.length ?? 0;
  const suspect = deps.suspects.of(hands.job.id, line.index, wish, alone);
  deps.budget.add(bytes);
  let found: Answered | null = null;
  try {
    const stop = hands.givenUp.whileWanted(wish.model, signals.stop);
    const place = engine ?? (await waitForPlace(suspect, hands, stop));
    if (place !== null) {
      const until = { stop, abort: signals.abort };
      found = await askAt(place, { line, wish, suspect }, plan, hands, until, deps);
    }
    suspect.left(found !== null);
    found ??= signals.stop.aborted ? null : unasked(line, wish, suspect, plan, hands, deps);
  } catch (error) {
    suspect.left(false);
    outcome.failed(error);
    return;
  } finally {
    deps.budget.remove(bytes);
  }
  outcome.answered(found);
}

/** The answer of a line that came back without one, where there is none to be had; null: it stays open. */
function unasked(
  line: InputLine,
  { model }: Wish,
  { blame }: Suspect,
  plan: ShardPlan,
  hands: Hands,
  deps: ShardRunDeps,
): Answered | null {
  if (blame > 0) return crashed(line, plan, hands, engineCrashed(blame));
  return hands.givenUp.has(model) ? refused(line, model, plan, hands, deps) : null;
}

async function waitForPlace(
  suspect: Suspect,
  hands: Hands,
  stop: AbortSignal,
): Promise<Engine | null> {
  hands.waiting += 1;
  try {
    return await suspect.take(stop);
  } finally {
    hands.waiting -= 1;
  }
}

function askAt(
  engine: Engine,
  { line, wish, suspect }: { line: InputLine; wish: Wish; suspect: Suspect },
  plan: ShardPlan,
  { job, guard, hedging }: Hands,
  { stop, abort }: RunSignals,
  deps: ShardRunDeps,
): Promise<Answered | null> | Answered {
  const id = requestId(job.id, line.index);
  const request = line.bytes === null ? null : scanRequest(line.bytes);
  const inShard = line.index - plan.first;
  if (request === null) {
    deps.room.give(engine, wish.tenant);
    return { answer: unreadable(inShard, id), usage: NO_USAGE };
  }
  const { customId, body } = request;
  const question: Question = { line: inShard, id, customId, body };
  const { endpoint: path, retry } = job;
  const where = { path, retry, wish, job, suspect, guard, hedging, stop, abort };
  return askLine(question, engine, where, deps);
}

/** The answer of a line whose model is given up, or, where that is null, of one that planning marked as bad. */
export function refused(
  line: InputLine,
  model: string | null,
  plan: ShardPlan,
  { job, givenUp }: Hands,
  { maxLineBytes }: ShardRunDeps,
): Answered {
  const id = requestId(job.id, line.index);
  const refusal =
    model === null ? refusalOf(line, job, maxLineBytes) : givenUp.refusalOf(line, model);
  const pieces = [errorOnlyLine({ id, ...refusal })];
  return { answer: { line: line.index - plan.first, kind: 'error', pieces }, usage: NO_USAGE };
}

export const WORKER_CRASHED = {
  code: 'worker_crashed',
  message: 'Three processes died while this request was the only one that they worked on.',
};

function engineCrashed(deaths: number) {
  const message = `An engine died ${deaths} times while this request was in flight, in the end as the only one there.`;
  return { code: 'engine_crashed', message };
}

/** The answer of a line that is not asked any more, for what became of whoever worked on it. */
export function crashed(
  line: InputLine,
  plan: ShardPlan,
  { job }: Hands,
  error: { code: string; message: string },
): Answered {
  const id = requestId(job.id, line.index);
  const pieces = [errorOnlyLine({ id, customId: customIdOf(line), ...error })];
  return { answer: { line: line.index - plan.first, kind: 'error', pieces }, usage: NO_USAGE };
}

/** Planning has read this line as a request: the stored input is no longer what it was. */
function unreadable(line: number, id: string): FreshAnswer {
  const message = 'The stored input file has changed since it was validated.';
  const customId = Buffer.from('null');
  return {
    line,
    kind: 'error',
    pieces: [errorOnlyLine({ id, customId, code: 'invalid_json_line', message })],
  };
}
