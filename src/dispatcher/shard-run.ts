import type { Readable } from 'node:stream';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Adaptive, Usage } from '../domain/job.ts';
import type { ShardPlan } from '../domain/plan.ts';
import type { ServingEngine } from '../domain/provision.ts';
import type { RetryPolicy } from '../domain/retry.ts';
import { isSet } from '../domain/segment.ts';
import type { ErrorGuard } from './error-guard.ts';
import type { Hedging } from './hedge.ts';
import type { GivenUp } from './given-up.ts';
import type { LimitedJob } from './admit.ts';
import type { AskDeps, Answered } from './ask.ts';
import { createCareful } from './careful.ts';
import type { Careful, CrashMark } from './careful.ts';
import type { PlannedRules } from './check-line.ts';
import type { Budget } from './budget.ts';
import type { Answer } from './contract.ts';
import type { Engine } from './engine.ts';
import { scanModel, scanRequest } from './json-scan.ts';
import { askInHand, crashed, refused, WORKER_CRASHED } from './line-run.ts';
import type { InputLine } from './lines.ts';
import { affinityOf } from './prefix-order.ts';
import { placesOf } from './room.ts';
import type { Room, Tenant, Wish } from './room.ts';
import type { Holder, SegmentWriter } from './segment-writer.ts';
import { openLines } from './shard-lines.ts';
import type { Solitude } from './solitude.ts';
import type { Suspects } from './suspects.ts';
import type { AttemptWish } from './upstream.ts';

/**
 * Lines that are sent before answers are looked at. Where this process is what holds everything up, more in flight only
 * wait for it, and grow old to the garbage collector meanwhile.
 */
const MOST_AT_ONCE = 32;

/** What the dispatcher needs to know of a job; its endpoint is the path that each line asks. */
export interface DispatchJob extends PlannedRules, AttemptWish, LimitedJob {
  id: string;
  /** Storage key of its input. */
  inputKey: string;
  /** Lines in flight that it may have at one engine, all processes together. */
  maxConcurrency: number;
  /** How it wants windows to adapt; null: `maxConcurrency` is all that holds it back. */
  adaptive: Adaptive | null;
  /** Its turn among other jobs, the lowest first. */
  rank: number;
  /** Its errors are watched: where they are not its lines' own, whoever runs the job is told. */
  isGuarded: boolean;
  /** None of its lines was answered when this process began with it. */
  isFresh: boolean;
  /** Its last lines may be asked twice. */
  isHedged: boolean;
  retry: RetryPolicy;
  /** The engines that serve it at this moment; the same array while they are the same. */
  engines(): readonly ServingEngine[];
  /** Models whose lines are answered with an error, since no engine serves them. */
  givenUp(): readonly string[];
}

/** A shard that this process has taken. */
export interface TakenShard {
  plan: ShardPlan;
  token: string;
  done: Buffer;
  /** Lines that go to no engine: their answer is what is wrong with them. Null: none. */
  bad: Buffer | null;
  left: number;
  /** How often it was taken since the last commit, this time included, and not given back. */
  takes: number;
  /** What is held against one of its lines; null: nothing. */
  crashed: CrashMark | null;
}

/** What one process has in hand of one job. */
export interface Hands {
  readonly job: DispatchJob;
  readonly tenant: Tenant;
  readonly givenUp: GivenUp;
  readonly guard: ErrorGuard | null;
  readonly hedging: Hedging | null;
  readonly writer: SegmentWriter;
  /** Lines of held shards without an answer: sent, waiting, or not even read. */
  unanswered: number;
  /** Lines in hand that have not had a place at an engine of their model yet. */
  waiting: number;
}

export interface ShardRunDeps extends AskDeps {
  maxLineBytes: number;
  openInput(key: string, range: { start: number; end: number }): Promise<Readable>;
  suspects: Suspects;
  solitude: Solitude;
  /** Deaths of processes that count for a line are so far apart, ms. */
  crashApartMs: number;
  /** Notes which line of a shard is alone in hand; false where the token does not hold the shard. */
  markAlone(jobId: string, n: number, token: string, line: number): Promise<boolean>;
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
  const careful = carefulOf(shard, hands, deps);
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
    putDown(hands.tenant, deps.room);
    if (found !== null) keep(found);
    careful?.afterCommit(hands.writer);
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
    await eachOpenLine(shard, careful, hands, signals.stop, deps, {
      send(line, wish, engine) {
        hands.tenant.inHand += 1;
        out += 1;
        deps.onSent();
        const asked = { line, wish, engine, alone: careful?.alone ?? null };
        void askInHand(asked, shard.plan, hands, signals, deps, { answered, failed });
      },
      answer(found) {
        deps.onSent();
        keep(found);
      },
      isOurs: () => holder.state === 'holding',
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

/** One line less in hand: new ones may have waited for that. */
function putDown(tenant: Tenant, room: Room): void {
  const heldBack = tenant.inHand >= 2 * placesOf(tenant);
  tenant.inHand -= 1;
  if (heldBack) room.kick();
}

function carefulOf(shard: TakenShard, hands: Hands, deps: ShardRunDeps): Careful | null {
  const { plan, token } = shard;
  return createCareful(shard, {
    ...deps,
    markAlone: async (line) => deps.markAlone(hands.job.id, plan.n, token, line),
  });
}

/** What becomes of a line without an answer. */
interface Handover {
  /** Without an engine the line waits in hand for a place at one of its model, as long as that is wanted. */
  send(line: InputLine, wish: Wish, engine: Engine | null): void;
  /** The line goes to no engine: it is a bad one, its model is given up, or processes died of it. */
  answer(found: Answered): void;
  /** False once somebody else has the shard: what is sent from then on is asked twice. */
  isOurs(): boolean;
}

/** Reads the shard's lines and hands over each that has no answer. */
async function eachOpenLine(
  { plan, done, bad }: TakenShard,
  careful: Careful | null,
  hands: Hands,
  stop: AbortSignal,
  deps: ShardRunDeps,
  to: Handover,
): Promise<void> {
  if (stop.aborted) return;
  const { inputKey, endpoint } = hands.job;
  // Who looks for one line looks at them in the same order each time.
  const wanted = { plan, done, inputKey, endpoint, inOrder: careful !== null };
  const isBad = (line: InputLine) => bad !== null && isSet(bad, line.index - plan.first);
  const crew = { careful, plan, isBad, hands };
  for await (const lines of openLines(wanted, deps)) {
    if (!(await handOver(lines, crew, stop, deps, to))) return;
  }
}

interface Crew {
  careful: Careful | null;
  plan: ShardPlan;
  isBad(line: InputLine): boolean;
  hands: Hands;
}

/** False when it was stopped before the last line. */
async function handOver(
  lines: readonly InputLine[],
  crew: Crew,
  stop: AbortSignal,
  deps: ShardRunDeps,
  to: Handover,
): Promise<boolean> {
  let atOnce = 0;
  for (const line of lines) {
    if (deps.budget.isOver()) await deps.budget.room(stop);
    if (stop.aborted || !to.isOurs()) return false;
    const wish = wishOrAnswer(line, crew, deps, to);
    if (wish === null) continue;
    if (crew.careful !== null) {
      if (!(await handCarefully(line, wish, crew.careful, crew, stop, deps, to))) return false;
      continue;
    }
    const place = placeNow(line, wish, crew, stop, deps);
    to.send(line, wish, place instanceof Promise ? await place : place);
    atOnce = place instanceof Promise ? 0 : atOnce + 1;
    if (atOnce === MOST_AT_ONCE) {
      atOnce = 0;
      await nextTurn();
    }
  }
  return true;
}

/** What a line needs a place for; null where it goes to no engine, and has its answer. */
function wishOrAnswer(
  line: InputLine,
  { isBad, hands, plan }: Crew,
  deps: ShardRunDeps,
  to: Handover,
): Wish | null {
  const isRefused = isBad(line);
  const model = isRefused ? null : modelOf(line, hands.job);
  if (!isRefused && !hands.givenUp.has(model)) return wishOf(line, model, hands);
  to.answer(refused(line, model, plan, hands, deps));
  return null;
}

/** False when it was stopped before the line might go. */
async function handCarefully(
  line: InputLine,
  wish: Wish,
  careful: Careful,
  crew: Crew,
  stop: AbortSignal,
  deps: ShardRunDeps,
  to: Handover,
): Promise<boolean> {
  const fate = await careful.before(line.index - crew.plan.first, stop);
  if (fate === 'stopped') return false;
  if (fate === 'send') to.send(line, wish, await placeNow(line, wish, crew, stop, deps));
  else answerCrashed(line, crew, to);
  return true;
}

function answerCrashed(line: InputLine, { careful, plan, hands }: Crew, to: Handover): void {
  to.answer(crashed(line, plan, hands, WORKER_CRASHED));
  careful?.afterCommit(hands.writer);
}

function wishOf(line: InputLine, model: string | null, { tenant, job }: Hands): Wish {
  const { bytes } = line;
  const isSpread = bytes !== null && tenant.engines(model).length > 1;
  return { tenant, model, affinity: isSpread ? affinityOf(bytes, job.endpoint) : null };
}

/** A place for a line that is not in hand yet; what has to be waited for is a promise, since most need not wait. */
function placeNow(
  line: InputLine,
  wish: Wish,
  { careful, hands }: Crew,
  stop: AbortSignal,
  { room, budget, suspects }: ShardRunDeps,
): Engine | null | Promise<Engine | null> {
  // It waits in hand for a place where it is isolated, and nobody behind it for that.
  const isAlone = careful !== null && careful.alone !== null;
  if (isAlone || suspects.isCharged(hands.job.id, line.index)) return null;
  const engine = room.tryTakeFresh(wish);
  if (engine !== null || mayWait(wish, hands, budget)) return engine;
  return room.takeFresh(wish, hands.givenUp.whileWanted(wish.model, stop));
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
function mayWait({ tenant, model }: Wish, { waiting }: Hands, budget: Budget): boolean {
  if (model === null || budget.used * 2 >= budget.limit) return false;
  return waiting < placesOf(tenant);
}
