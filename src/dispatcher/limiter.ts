import { holdMs, learn, NO_LIMITS, reservation } from '../domain/rate-limit.ts';
import type { JobLimits, LimitHeaders, RateLimits, TokenRecord } from '../domain/rate-limit.ts';
import type { Clock } from './clock.ts';
import { Tap } from './limit-tap.ts';
import type { DrawUnits } from './limit-tap.ts';
import { onAbort } from './on-abort.ts';

/** Whose limits a request is under. */
export interface LimitScope {
  jobId: string;
  /** Address of the engine. */
  engine: string;
  /** A name of the API key that the engine is sent, never the key itself; null: none. */
  key: string | null;
  limits: JobLimits;
}

export interface Permit {
  /**
   * Tokens that the answer says it took, 0 for a refusal; null: nothing was used (no connection), and the request is
   * given back as well.
   */
  settle(tokensUsed: number | null): void;
}

/** Holds requests back until every limit that they are under has room for them. */
export interface Limiter {
  /** What a request needs: nothing (no limit applies, it may go at once), a permit, or one that counts tokens. */
  needs(scope: LimitScope): 'nothing' | 'permit' | 'tokens';
  /**
   * False while the engine wants to be left alone, or requests of the job to it wait here, which is nothing to one
   * that has its permit.
   */
  isOpen(jobId: string, engine: string, hasPermit: boolean): boolean;
  /** A permit if there is one at once and nobody waits before; `tokens` is the estimate of what the request takes. */
  tryPermit(scope: LimitScope, tokens: number): Permit | null;
  /**
   * Waits until the request may go under every limit that applies; null when the signal aborts first, or the engine
   * begins to want to be left alone meanwhile, so that another one may be better.
   */
  permit(scope: LimitScope, tokens: number, signal: AbortSignal): Promise<Permit | null>;
  /** Heeds what an engine said about its own limits. */
  heed(
    engine: string,
    reply: { status: number; retryAfterMs: number | null },
    headers: LimitHeaders | null,
  ): void;
  /** Ends all timers. Who waits goes on waiting: signals end that. */
  close(): void;
}

export interface LimiterDeps {
  clock: Clock;
  /** Of each engine, and of all engines that are sent the same key. */
  engineLimits: RateLimits;
  keyLimits: RateLimits;
  draw: DrawUnits;
  newOp: () => string;
  /** `isOpen` may have become true. */
  onChange: () => void;
  onError: (error: unknown) => void;
}

/** What a request takes of the taps of its lane. */
interface Cost {
  estimate: number;
  tokens: number;
}

interface Waiter {
  /** Its turn among all. */
  turn: number;
  cost: Cost;
  resolve: (permit: Permit | null) => void;
}

/** Requests of one job to one engine, which are under the same limits. */
interface Lane {
  engine: string;
  requests: readonly Tap[];
  tokens: readonly Tap[];
  record: TokenRecord;
  waiters: Set<Waiter>;
  usedAt: number;
}

/** A lane and who is the first in it. */
interface Standing {
  lane: Lane;
  first: Waiter;
}

/** A job or engine that was not heard of for so long is forgotten, and with it what its answers have taught. */
const FORGET_MS = 60_000;

/** Hands out permits in order: of requests under one limit the one that came first goes first. */
export function createLimiter(deps: LimiterDeps): Limiter {
  return new SharedLimiter(deps);
}

class SharedLimiter implements Limiter {
  readonly #deps: LimiterDeps;
  readonly #taps = new Map<string, Tap>();
  readonly #lanes = new Map<string, Lane>();
  /** Those of them where somebody waits. */
  readonly #standing = new Set<Lane>();
  /** Engines that want to be left alone, and until when; each has one timer, however often it says so. */
  readonly #holds = new Map<string, number>();
  readonly #timers = new Set<() => void>();
  #turns = 0;
  #isForgetting = false;

  constructor(deps: LimiterDeps) {
    this.#deps = deps;
  }

  needs({ engine, key, limits }: LimitScope): 'nothing' | 'permit' | 'tokens' {
    const { engineLimits, keyLimits } = this.#deps;
    let isLimited = this.#holds.has(engine);
    for (const each of [limits, engineLimits, key === null ? NO_LIMITS : keyLimits]) {
      if (each.tokensPerMinute !== null) return 'tokens';
      isLimited ||= each.requestsPerSecond !== null;
    }
    return isLimited ? 'permit' : 'nothing';
  }

  isOpen(jobId: string, engine: string, hasPermit: boolean): boolean {
    if (this.#holds.has(engine)) return false;
    if (hasPermit || this.#standing.size === 0) return true;
    return (this.#lanes.get(laneName(jobId, engine))?.waiters.size ?? 0) === 0;
  }

  tryPermit(scope: LimitScope, estimate: number): Permit | null {
    const lane = this.#laneOf(scope);
    if (lane.waiters.size > 0 || this.#holds.has(scope.engine)) return null;
    const cost = costOf(lane, estimate);
    return hasUnits(lane, cost) && !this.#isClaimed(lane) ? this.#take(lane, cost) : null;
  }

  async permit(scope: LimitScope, estimate: number, signal: AbortSignal): Promise<Permit | null> {
    if (signal.aborted) return null;
    const atOnce = this.tryPermit(scope, estimate);
    if (atOnce !== null) return atOnce;
    const lane = this.#laneOf(scope);
    return new Promise((resolve) => {
      this.#turns += 1;
      const waiter: Waiter = { turn: this.#turns, cost: costOf(lane, estimate), resolve: finish };
      const forgetSignal = onAbort(signal, () => {
        this.#leave(lane, waiter);
        resolve(null);
        this.#pump();
        this.#deps.onChange();
      });
      function finish(permit: Permit | null): void {
        forgetSignal();
        resolve(permit);
      }
      this.#enter(lane, waiter);
    });
  }

  heed(
    engine: string,
    reply: { status: number; retryAfterMs: number | null },
    headers: LimitHeaders | null,
  ): void {
    const ms = holdMs(reply, headers);
    const until = this.#deps.clock.now() + ms;
    if (ms === 0 || until <= (this.#holds.get(engine) ?? 0)) return;
    const hasTimer = this.#holds.has(engine);
    this.#holds.set(engine, until);
    if (!hasTimer) this.#later(ms, () => this.#endHold(engine));
    for (const lane of this.#standing) {
      if (lane.engine !== engine) continue;
      for (const waiter of lane.waiters) {
        this.#leave(lane, waiter);
        waiter.resolve(null);
      }
    }
  }

  close(): void {
    for (const cancel of this.#timers) cancel();
    for (const tap of this.#taps.values()) tap.close();
  }

  #endHold(engine: string): void {
    const left = (this.#holds.get(engine) ?? 0) - this.#deps.clock.now();
    if (left > 0) {
      this.#later(left, () => this.#endHold(engine));
      return;
    }
    this.#holds.delete(engine);
    this.#pump();
    this.#deps.onChange();
  }

  /** Who waits first goes first; where units are missing for one, nobody behind takes of what it waits for. */
  #pump(): void {
    if (this.#standing.size === 0) return;
    let wasFreed = false;
    const claimed = new Set<Tap>();
    const queue = this.#inTurn();
    for (let next = queue.pop(); next !== undefined; next = queue.pop()) {
      const { lane, first } = next;
      if (!this.#mayGo(lane, first, claimed)) continue;
      this.#leave(lane, first);
      first.resolve(this.#take(lane, first.cost));
      const [second] = lane.waiters;
      if (second === undefined) wasFreed = true;
      else insert(queue, { lane, first: second });
    }
    if (wasFreed) this.#deps.onChange();
  }

  #mayGo(lane: Lane, first: Waiter, claimed: Set<Tap>): boolean {
    return !this.#holds.has(lane.engine) && fits(lane, first.cost, claimed);
  }

  /** The lanes where somebody waits, the one whose first has waited longest at the end. */
  #inTurn(): Standing[] {
    const queue: Standing[] = [];
    for (const lane of this.#standing) {
      const [first] = lane.waiters;
      if (first !== undefined) queue.push({ lane, first });
    }
    return queue.toSorted((a, b) => b.first.turn - a.first.turn);
  }

  /** Whether those who wait are short of what a lane would take, although there is enough for it alone. */
  #isClaimed({ tokens }: Lane): boolean {
    // Of requests everybody needs one: where somebody is short of that, there is none for anybody.
    if (tokens.every((tap) => tap.awaited <= tap.units)) return false;
    const claimed = new Set<Tap>();
    for (const { lane, first } of this.#inTurn().toReversed()) this.#mayGo(lane, first, claimed);
    return tokens.some((tap) => claimed.has(tap));
  }

  #take(lane: Lane, { estimate, tokens }: Cost): Permit {
    for (const tap of lane.requests) tap.take(1);
    for (const tap of lane.tokens) tap.take(tokens);
    let isSettled = false;
    return {
      settle: (used) => {
        if (isSettled) return;
        isSettled = true;
        if (used === null) for (const tap of lane.requests) tap.give(1);
        // A refusal teaches nothing about answers.
        else if (used > 0) lane.record = learn(lane.record, estimate, used);
        for (const tap of lane.tokens) tap.give(tokens - (used ?? 0));
        const [requestsBack, tokensBack] = [used === null, tokens > (used ?? 0)];
        // Nobody can go for what nobody waits for.
        const isWanted =
          (requestsBack && lane.requests.some((tap) => tap.awaited > 0)) ||
          (tokensBack && lane.tokens.some((tap) => tap.awaited > 0));
        if (isWanted) this.#pump();
      },
    };
  }

  #enter(lane: Lane, waiter: Waiter): void {
    lane.waiters.add(waiter);
    this.#standing.add(lane);
    for (const tap of lane.requests) tap.wait(1);
    for (const tap of lane.tokens) tap.wait(waiter.cost.tokens);
  }

  #leave(lane: Lane, waiter: Waiter): void {
    lane.waiters.delete(waiter);
    if (lane.waiters.size === 0) this.#standing.delete(lane);
    for (const tap of lane.requests) tap.wait(-1);
    for (const tap of lane.tokens) tap.wait(-waiter.cost.tokens);
  }

  #laneOf(scope: LimitScope): Lane {
    const name = laneName(scope.jobId, scope.engine);
    let lane = this.#lanes.get(name);
    if (lane === undefined) {
      lane = {
        engine: scope.engine,
        requests: this.#tapsOf(scope, 'requestsPerSecond', 1),
        tokens: this.#tapsOf(scope, 'tokensPerMinute', 60),
        record: { estimated: 0, used: 0 },
        waiters: new Set(),
        usedAt: 0,
      };
      this.#lanes.set(name, lane);
      this.#forgetLater();
    }
    lane.usedAt = this.#deps.clock.now();
    return lane;
  }

  #tapsOf(
    { jobId, engine, key, limits }: LimitScope,
    kind: keyof RateLimits,
    seconds: number,
  ): Tap[] {
    const { engineLimits, keyLimits } = this.#deps;
    const owners = [
      { name: `job:${jobId}`, limit: limits[kind] },
      { name: `engine:${engine}`, limit: engineLimits[kind] },
      { name: `key:${key}`, limit: key === null ? null : keyLimits[kind] },
    ];
    return owners.flatMap(({ name, limit }) =>
      limit === null ? [] : [this.#tapAt(`${name}:${kind}`, limit / seconds)],
    );
  }

  #tapAt(name: string, perSecond: number): Tap {
    const known = this.#taps.get(name);
    if (known !== undefined) return known;
    const { clock, draw, newOp, onError } = this.#deps;
    const onUnits = () => {
      if (tap.awaited > 0) this.#pump();
    };
    const tap: Tap = new Tap({ name, perSecond, clock, draw, newOp, onError, onUnits });
    this.#taps.set(name, tap);
    return tap;
  }

  #forgetLater(): void {
    if (this.#isForgetting) return;
    this.#isForgetting = true;
    this.#later(FORGET_MS, () => this.#forget());
  }

  /** A tap that is gone from here still sends back what permits of it return. */
  #forget(): void {
    this.#isForgetting = false;
    for (const [name, lane] of this.#lanes) {
      const isOld = this.#deps.clock.now() - lane.usedAt >= FORGET_MS;
      if (isOld && lane.waiters.size === 0) this.#lanes.delete(name);
    }
    const lanes = [...this.#lanes.values()];
    const used = new Set(lanes.flatMap(({ requests, tokens }) => [...requests, ...tokens]));
    for (const [name, tap] of this.#taps) if (tap.isIdle && !used.has(tap)) this.#taps.delete(name);
    if (lanes.length > 0 || this.#taps.size > 0) this.#forgetLater();
  }

  #later(ms: number, task: () => void): void {
    const cancel = this.#deps.clock.after(ms, () => {
      this.#timers.delete(cancel);
      task();
    });
    this.#timers.add(cancel);
  }
}

function laneName(jobId: string, engine: string): string {
  return `${jobId} ${engine}`;
}

function costOf({ tokens, record }: Lane, estimate: number): Cost {
  return { estimate, tokens: tokens.length === 0 ? 0 : reservation(record, estimate) };
}

function hasUnits({ requests, tokens }: Lane, cost: Cost): boolean {
  return requests.every((tap) => tap.units >= 1) && tokens.every((tap) => tap.units >= cost.tokens);
}

/** Whether all that a request needs is in hand and not claimed before; what is missing is claimed from now on. */
function fits({ requests, tokens }: Lane, cost: Cost, claimed: Set<Tap>): boolean {
  const isClaimed = (tap: Tap) => claimed.has(tap);
  if (requests.some(isClaimed) || tokens.some(isClaimed)) return false;
  let isShort = false;
  function claim(tap: Tap, need: number): void {
    if (tap.units >= need) return;
    claimed.add(tap);
    isShort = true;
  }
  for (const tap of requests) claim(tap, 1);
  for (const tap of tokens) claim(tap, cost.tokens);
  return !isShort;
}

/** Keeps a queue, whose next one is its last, in order of turns. */
function insert(queue: Standing[], one: Standing): void {
  let [from, to] = [0, queue.length];
  while (from < to) {
    const middle = (from + to) >>> 1;
    if ((queue[middle]?.first.turn ?? 0) > one.first.turn) from = middle + 1;
    else to = middle;
  }
  queue.splice(from, 0, one);
}
