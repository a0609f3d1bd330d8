import type { Readable } from 'node:stream';
import { transient } from '../domain/errors.ts';
import type { Usage } from '../domain/job.ts';
import type { ShardPlan } from '../domain/plan.ts';
import type { ServingEngine } from '../domain/provision.ts';
import type { RetryPolicy } from '../domain/retry.ts';
import { isSet } from '../domain/segment.ts';
import { errorOnlyLine, requestId } from './answer-lines.ts';
import { askLine } from './ask.ts';
import type { AskDeps, Answered, Question } from './ask.ts';
import { refusalOf } from './check-line.ts';
import type { PlannedRules } from './check-line.ts';
import type { Budget } from './budget.ts';
import type { Answer, FreshAnswer } from './contract.ts';
import type { Engine } from './engine.ts';
import { scanModel, scanRequest } from './json-scan.ts';
import { readLines } from './lines.ts';
import type { InputLine } from './lines.ts';
import type { Tenant } from './room.ts';
import type { Holder, SegmentWriter } from './segment-writer.ts';
import { NO_USAGE } from './usage.ts';

/** What the dispatcher needs to know of a job; its endpoint is the path that each line asks. */
export interface DispatchJob extends PlannedRules {
  id: string;
  /** Storage key of its input. */
  inputKey: string;
  maxConcurrency: number;
  retry: RetryPolicy;
  /** The engines that serve it at this moment; the same array while they are the same. */
  engines(): readonly ServingEngine[];
}

/** A shard that this process has taken. */
export interface TakenShard {
  plan: ShardPlan;
  token: string;
  done: Buffer;
  /** Lines that go to no engine: their answer is what is wrong with them. Null: none. */
  bad: Buffer | null;
  left: number;
}

/** What one process has in hand of one job. */
export interface Hands {
  readonly job: DispatchJob;
  readonly tenant: Tenant;
  readonly writer: SegmentWriter;
  /** Lines of held shards without an answer: sent, waiting, or not even read. */
  unanswered: number;
  /** Lines in hand that have not had a place at an engine of their model yet. */
  waiting: number;
}

export interface ShardRunDeps extends AskDeps {
  maxLineBytes: number;
  openInput(key: string, range: { start: number; end: number }): Promise<Readable>;
  /** A line left the shard: for an engine, or as a bad one. */
  onSent(): void;
  onAnswered(kind: Answer['kind'], usage: Usage): void;
}

/**
 * `stop`: read and send no more lines, and none again, but wait for those in flight. `abort`: cut those, too; whoever runs a shard
 * aborts it at the job's deadline.
 */
export interface RunSignals {
  stop: AbortSignal;
  abort: AbortSignal;
}

/**
 * Asks every line of a shard that has no answer yet and has the answers committed. Resolves when nothing of the shard
 * is in flight or waits to be stored; the holder's state tells whether it is done, ours still, or lost.
 */
export async function runShard(
  shard: TakenShard,
  holder: Holder,
  hands: Hands,
  signals: RunSignals,
  deps: ShardRunDeps,
): Promise<void> {
  const failures: unknown[] = [];
  const allBack = Promise.withResolvers<void>();
  /** Lines sent and not back, and one for the reading itself. */
  let out = 1;
  let unanswered = shard.left;
  hands.unanswered += unanswered;

  function back(): void {
    out -= 1;
    if (out === 0) allBack.resolve();
  }

  function answered(found: Answered | null): void {
    hands.tenant.inHand -= 1;
    deps.room.kick();
    if (found !== null) keep(found);
    back();
  }

  function keep(found: Answered): void {
    unanswered -= 1;
    hands.unanswered -= 1;
    deps.onAnswered(found.answer.kind, found.usage);
    hands.writer.add(holder, found);
    // The last answer in hand has nothing to wait for.
    if (hands.unanswered === 0) void hands.writer.close();
  }

  /** A bug of ours, not the engine's: the line stays open, and the whole shard ends with the error. */
  function failed(error: unknown): void {
    failures.push(error);
    answered(null);
  }

  try {
    await eachOpenLine(shard, hands, signals.stop, deps, {
      send(line, model, engine) {
        hands.tenant.inHand += 1;
        out += 1;
        deps.onSent();
        const asking = ask({ line, model, engine }, shard.plan, hands, signals, deps);
        void asking.then(answered, failed);
      },
      refuse(line) {
        deps.onSent();
        keep({ answer: refused(line, shard.plan, hands.job, deps), usage: NO_USAGE });
      },
    });
  } finally {
    back();
    await allBack.promise;
    hands.unanswered -= unanswered;
    if (unanswered > 0 || hands.unanswered === 0) void hands.writer.close();
    await hands.writer.committed(holder);
  }
  if (failures.length > 0) throw failures[0];
  if (unanswered === 0 && holder.state === 'holding') await hands.writer.recommit(holder);
}

/** What becomes of a line without an answer. */
interface Handover {
  /** Without an engine the line waits in hand for a place at one of its model. */
  send(line: InputLine, model: string | null, engine: Engine | null): void;
  refuse(line: InputLine): void;
}

/** Reads the shard's lines and hands over each that has no answer. */
async function eachOpenLine(
  { plan, done, bad }: TakenShard,
  hands: Hands,
  stop: AbortSignal,
  deps: ShardRunDeps,
  to: Handover,
): Promise<void> {
  if (stop.aborted) return;
  const source = await deps.openInput(hands.job.inputKey, {
    start: plan.offset,
    end: plan.offset + plan.bytes,
  });
  const lines = readLines(whole(source, plan), {
    maxLineBytes: deps.maxLineBytes,
    startOffset: plan.offset,
    startIndex: plan.first,
  });
  try {
    for await (const batch of lines) {
      const open = batch.filter((line) => !isSet(done, line.index - plan.first));
      const isBad = (line: InputLine) => bad !== null && isSet(bad, line.index - plan.first);
      if (!(await handOver(open, isBad, hands, stop, deps, to))) return;
    }
  } finally {
    source.destroy();
  }
}

/** The source to its planned end: where an input is still being copied back, its last line may be half of one. */
async function* whole(source: Readable, plan: ShardPlan): AsyncGenerator<Buffer> {
  let missing = plan.bytes;
  for await (const chunk of source as AsyncIterable<Buffer>) {
    missing -= chunk.length;
    yield chunk;
  }
  if (missing > 0) {
    throw transient('input.short', 'The input file in storage is shorter than it was.');
  }
}

/** False when it was stopped before the last line. */
async function handOver(
  lines: readonly InputLine[],
  isBad: (line: InputLine) => boolean,
  hands: Hands,
  stop: AbortSignal,
  { room, budget }: ShardRunDeps,
  to: Handover,
): Promise<boolean> {
  for (const line of lines) {
    if (budget.isOver()) await budget.room(stop);
    if (stop.aborted) return false;
    if (isBad(line)) {
      to.refuse(line);
      continue;
    }
    const model = modelOf(line, hands.job);
    let engine = room.tryTakeFresh(hands.tenant, model);
    if (engine === null && !mayWait(model, hands, budget)) {
      engine = await room.takeFresh(hands.tenant, model, stop);
      if (engine === null) return false;
    }
    to.send(line, model, engine);
  }
  return true;
}

/** The model that decides where a line goes; null where the job names only one, so that any of its engines will do. */
function modelOf({ bytes }: InputLine, { models }: DispatchJob): string | null {
  if (models.length <= 1 || bytes === null) return null;
  const body = scanRequest(bytes)?.body;
  const model = body === undefined ? null : scanModel(body);
  return model !== null && models.includes(model) ? model : null;
}

/**
 * Whether a line without a place may wait in hand, so that lines of other models behind it go on. Those that wait take
 * at most half of what the job may have in hand, and of the memory: the other half is for lines that can go.
 */
function mayWait(model: string | null, { tenant, waiting }: Hands, budget: Budget): boolean {
  if (model === null || budget.used * 2 >= budget.limit) return false;
  return waiting < tenant.maxConcurrency * tenant.engines(null).length;
}

interface Asked {
  line: InputLine;
  model: string | null;
  engine: Engine | null;
}

async function ask(
  { line, model, engine }: Asked,
  plan: ShardPlan,
  hands: Hands,
  signals: RunSignals,
  deps: ShardRunDeps,
): Promise<Answered | null> {
  const bytes = line.bytes?.length ?? 0;
  deps.budget.add(bytes);
  try {
    const place = engine ?? (await waitForPlace(model, hands, signals.stop, deps));
    return place === null ? null : await askAt(place, line, model, plan, hands, signals, deps);
  } finally {
    deps.budget.remove(bytes);
  }
}

async function waitForPlace(
  model: string | null,
  hands: Hands,
  stop: AbortSignal,
  { room }: ShardRunDeps,
): Promise<Engine | null> {
  hands.waiting += 1;
  try {
    return await room.take(hands.tenant, model, stop);
  } finally {
    hands.waiting -= 1;
  }
}

async function askAt(
  engine: Engine,
  line: InputLine,
  model: string | null,
  plan: ShardPlan,
  { job, tenant }: Hands,
  signals: RunSignals,
  deps: ShardRunDeps,
): Promise<Answered | null> {
  const id = requestId(job.id, line.index);
  const request = line.bytes === null ? null : scanRequest(line.bytes);
  const inShard = line.index - plan.first;
  if (request === null) {
    deps.room.give(engine);
    return { answer: unreadable(inShard, id), usage: NO_USAGE };
  }
  const question: Question = { line: inShard, id, ...request };
  const { endpoint: path, retry } = job;
  return askLine(question, engine, { path, retry, tenant, model, ...signals }, deps);
}

/** The answer of a line that planning marked as bad. */
function refused(
  line: InputLine,
  plan: ShardPlan,
  job: DispatchJob,
  { maxLineBytes }: ShardRunDeps,
): FreshAnswer {
  const id = requestId(job.id, line.index);
  const pieces = [errorOnlyLine({ id, ...refusalOf(line, job, maxLineBytes) })];
  return { line: line.index - plan.first, kind: 'error', pieces };
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
