import { servesModel } from '../domain/provision.ts';
import type { ServingEngine } from '../domain/provision.ts';
import { createBudget } from './budget.ts';
import { createChunkPool } from './chunk-pool.ts';
import { createEngine } from './engine.ts';
import type { Engine, EngineConnection } from './engine.ts';
import { createErrorGuard, SILENT_MS } from './error-guard.ts';
import type { ErrorGuard, Trouble } from './error-guard.ts';
import { createHedging, createLooks } from './hedge.ts';
import { createMetricsReader } from './engine-metrics.ts';
import { createEngineWindow } from './engine-window.ts';
import type { EngineWindow, ShareEngine } from './engine-window.ts';
import { createGivenUp } from './given-up.ts';
import { createLimiter } from './limiter.ts';
import type { Limiter, LimiterDeps } from './limiter.ts';
import { firstOf } from './on-abort.ts';
import { createRoom, placesOf } from './room.ts';
import type { Tenant } from './room.ts';
import { SegmentWriter } from './segment-writer.ts';
import type { Holder, SegmentDeps } from './segment-writer.ts';
import { runShard } from './shard-run.ts';
import { createSolitude } from './solitude.ts';
import type { Isolation } from './quarantine.ts';
import { createSuspects } from './suspects.ts';
import type { Timeouts } from './timeouts.ts';
import { createTurns } from './turns.ts';
import type { Turn, Turns } from './turns.ts';
import { mostOf, windowRules } from './window-rules.ts';
import type { DispatchJob, Hands, RunSignals, ShardRunDeps, TakenShard } from './shard-run.ts';

export type { DispatchJob, RunSignals, TakenShard } from './shard-run.ts';

/** Everything that a dispatcher touches outside itself. */
export interface DispatcherDeps
  extends
    Omit<SegmentDeps, 'budget' | 'room' | 'pool'>,
    Omit<ShardRunDeps, 'budget' | 'room' | 'onSent' | 'limiter' | 'suspects' | 'solitude'> {
  memoryBudget: number;
  maxResponseBytes: number;
  timeouts: Timeouts;
  connect(address: string): EngineConnection;
  /** How much an engine takes compared with others: 1 where nobody said. */
  weightOf(address: string): number;
  /** Processes that may send to an engine. */
  processes(): number;
  /** Rate limits of engines and of what is sent one key, and how the processes share them. */
  limits: Pick<LimiterDeps, 'engineLimits' | 'keyLimits' | 'draw'>;
  /** How the processes that send to an engine keep to one window. */
  share: ShareEngine;
  isolation: Isolation;
  /** Something is wrong with a job as a whole: it should not go on like that. */
  onTrouble(jobId: string, trouble: Trouble): void;
  /** An engine gives nothing but broken connections: somebody should look at it. */
  onEngineDown(address: string, reason: string): void;
}

/** How much a process has to do, for its seats and its metrics. */
export interface Load {
  /** Lines of held shards that were not sent yet. */
  unsent: number;
  inFlight: number;
  /** Lines that are answered and wait for their commit. */
  uncommitted: number;
  budgetUsed: number;
}

/** `job` is as the newest shard brought it: engines may have changed while answers of an older one wait to be stored. */
interface HandsOfJob extends Hands {
  guard: ErrorGuard | null;
  job: DispatchJob;
  holders: number;
  readonly turn: Turn;
}

const IDLE_ENGINE_MS = 60_000;
const OVER_BUDGET_MS = 250;
const RENEWED_AFTER_MS = 2_000;

/**
 * Sends the lines of the shards that this process holds. All of them share the places at its engines, one memory
 * budget, and one open segment a job. It knows streams and functions, neither Redis nor a store.
 */
export class Dispatcher {
  readonly #deps: DispatcherDeps;
  readonly #room = createRoom();
  readonly #limiter: Limiter;
  readonly #suspects;
  readonly #solitude;
  readonly #pool = createChunkPool();
  readonly #looks;
  readonly #engines = new Map<string, Engine>();
  readonly #hands = new Map<string, HandsOfJob>();
  readonly #budget;
  readonly #giveUp = new AbortController();
  readonly #drops = new Map<string, () => void>();
  readonly #turns: Turns;
  #unsent = 0;

  constructor(deps: DispatcherDeps) {
    this.#deps = deps;
    this.#looks = createLooks(deps.clock);
    this.#budget = createBudget(deps.memoryBudget, () => this.#closeSegments());
    this.#turns = createTurns(deps.clock);
    this.#suspects = createSuspects({ ...deps, room: this.#room });
    this.#solitude = createSolitude(this.#room, deps.clock, () => this.load.inFlight);
    this.#limiter = createLimiter({
      ...deps.limits,
      clock: deps.clock,
      newOp: deps.newSegmentId,
      onChange: () => this.#room.kick(),
      onError: (error) => deps.log.warn({ err: error }, 'rate limit not drawn'),
    });
  }

  get load(): Load {
    let inFlight = 0;
    for (const engine of this.#engines.values()) inFlight += engine.inFlight;
    let uncommitted = 0;
    for (const { writer } of this.#hands.values()) uncommitted += writer.pending;
    return { unsent: this.#unsent, inFlight, uncommitted, budgetUsed: this.#budget.used };
  }

  /** For how long this process wants no shard of a job, ms; 0: it takes one. */
  asideMs(jobId: string): number {
    return this.#budget.isOver() ? OVER_BUDGET_MS : this.#turns.asideMs(jobId);
  }

  /** Engines of a job came or went, or models were given up: lines that wait may go, or need not wait any more. */
  enginesChanged(): void {
    for (const { givenUp } of this.#hands.values()) givenUp.check();
    this.#room.kick();
  }

  /**
   * Works on a shard until every line of it is committed (`done`), the store says that it is not ours (`lost`), or a
   * signal ends it (`stopped`: give it back).
   */
  async run(
    shard: TakenShard,
    job: DispatchJob,
    signals: RunSignals,
  ): Promise<'done' | 'lost' | 'stopped'> {
    const holder: Holder = {
      shard: shard.plan.n,
      token: shard.token,
      lines: shard.plan.lines,
      state: shard.left === 0 ? 'done' : 'holding',
      left: shard.left,
      pending: 0,
      kept: [],
    };
    const hands = this.#take(job);
    const stop = firstOf(signals.stop, hands.turn.over.signal);
    const abort = firstOf(signals.abort);
    let unsent = shard.left;
    this.#unsent += unsent;
    hands.turn.unsent += unsent;
    try {
      await runShard(
        shard,
        holder,
        hands,
        { stop: stop.signal, abort: abort.signal },
        {
          ...this.#deps,
          budget: this.#budget,
          room: this.#room,
          limiter: this.#limiter,
          suspects: this.#suspects,
          solitude: this.#solitude,
          onSent: () => {
            unsent -= 1;
            this.#unsent -= 1;
            hands.turn.unsent -= 1;
            hands.turn.sent += 1;
          },
        },
      );
    } finally {
      stop.release();
      abort.release();
      this.#unsent -= unsent;
      hands.turn.unsent -= unsent;
      this.#release(hands);
    }
    return holder.state === 'holding' ? 'stopped' : holder.state;
  }

  /** Cuts what is left in flight and gives up storing. Call it when no shard runs any more, or has to. */
  async close(): Promise<void> {
    for (const cancel of this.#drops.values()) cancel();
    this.#limiter.close();
    this.#suspects.close();
    this.#giveUp.abort(new Error('the process stops'));
    await Promise.all([...this.#engines.values()].map((engine) => engine.close()));
    this.#engines.clear();
  }

  #take(job: DispatchJob): HandsOfJob {
    const hands = this.#hands.get(job.id) ?? this.#open(job);
    hands.job = job;
    hands.guard = this.#renewed(hands);
    hands.holders += 1;
    return hands;
  }

  #open(job: DispatchJob): HandsOfJob {
    const deps = { ...this.#deps, budget: this.#budget, room: this.#room, pool: this.#pool };
    const writer = new SegmentWriter(job.id, deps, this.#giveUp.signal);
    const isTail = () => hands.turn.unsent + hands.waiting === 0;
    const hands: HandsOfJob = {
      job,
      tenant: this.#openTenant(() => hands),
      givenUp: createGivenUp(() => hands.job),
      guard: job.isGuarded ? this.#openGuard(job, () => placesOf(hands.tenant)) : null,
      hedging: job.isHedged ? createHedging(isTail, this.#looks) : null,
      writer,
      unanswered: 0,
      waiting: 0,
      holders: 0,
      turn: this.#turns.begin(job.id, () => placesOf(hands.tenant)),
    };
    this.#hands.set(job.id, hands);
    return hands;
  }

  /** Who takes a shard of a job a while after its trouble was told does so because that is mended, or was not heard. */
  #renewed(hands: HandsOfJob): ErrorGuard | null {
    const { guard, job, tenant } = hands;
    const toldAt = guard?.toldAt ?? null;
    if (toldAt === null || this.#deps.clock.now() - toldAt < RENEWED_AFTER_MS) return guard;
    return this.#openGuard({ ...job, isFresh: false }, () => placesOf(tenant));
  }

  #openGuard(job: DispatchJob, places: () => number): ErrorGuard {
    const { clock, onTrouble } = this.#deps;
    const tell = (trouble: Trouble) => onTrouble(job.id, trouble);
    // Caution ends by itself where nothing is answered, and then lines wait that may go.
    if (job.isFresh) clock.after(SILENT_MS, () => this.#room.kick());
    return createErrorGuard({ isFresh: job.isFresh, places, now: clock.now, onTrouble: tell });
  }

  #openTenant(hands: () => HandsOfJob): Tenant {
    const job = () => hands().job;
    // Asked for each line: made anew only when the job's engines are. Its models are few.
    let serving: readonly ServingEngine[] = [];
    const byModel = new Map<string | null, readonly Engine[]>();
    return {
      get rank() {
        return job().rank;
      },
      get isAdaptive() {
        return job().adaptive !== null;
      },
      cap: ({ window }) => {
        const cap = window.part(mostOf(job()));
        return Math.min(cap, hands().guard?.most ?? cap);
      },
      mayAsk: ({ address }, hasPermit) => this.#limiter.isOpen(job().id, address, hasPermit),
      inHand: 0,
      allInFlight: 0,
      inFlight: new Map(),
      engines: (model: string | null) => {
        const now = job().engines();
        if (now !== serving) byModel.clear();
        serving = now;
        const known = byModel.get(model);
        if (known !== undefined) return known;
        const fit = now.filter((each) => servesModel(each, model));
        const engines = fit.map(({ address }) => this.#engineAt(address));
        byModel.set(model, engines);
        return engines;
      },
    };
  }

  #release(hands: HandsOfJob): void {
    hands.holders -= 1;
    if (hands.holders > 0) return;
    this.#hands.delete(hands.job.id);
    this.#turns.end(hands.job.id);
    // All of them, not only those that serve the job at the end: one that was lost would be probed for ever.
    for (const address of this.#engines.keys()) this.#dropLater(address);
  }

  #dropLater(address: string): void {
    this.#drops.get(address)?.();
    this.#drops.set(
      address,
      this.#deps.clock.after(IDLE_ENGINE_MS, () => this.#dropIdle(address)),
    );
  }

  #engineAt(address: string): Engine {
    const known = this.#engines.get(address);
    if (known !== undefined) return known;
    const connection = this.#deps.connect(address);
    const engine: Engine = createEngine({
      address,
      connection,
      weight: this.#deps.weightOf(address),
      openWindow: (inFlight) => this.#openWindow(address, connection, inFlight),
      budget: this.#budget,
      maxResponseBytes: this.#deps.maxResponseBytes,
      timeouts: this.#deps.timeouts,
      clock: this.#deps.clock,
      onDown: (_address, reason) => {
        this.#suspects.died(engine);
        this.#deps.onEngineDown(address, reason);
      },
      onUp: () => this.#room.kick(),
    });
    this.#engines.set(address, engine);
    return engine;
  }

  #openWindow(address: string, connection: EngineConnection, inFlight: () => number): EngineWindow {
    const metrics = createMetricsReader(connection);
    return createEngineWindow({
      address,
      clock: this.#deps.clock,
      rules: () => windowRules(this.#jobsAt(address)),
      inFlight,
      isUsed: () => this.#jobsAt(address).length > 0,
      processes: this.#deps.processes,
      readMetrics: async () => metrics.read(),
      share: this.#deps.share,
      onChange: () => this.#room.kick(),
      onError: (error) => this.#deps.log.warn({ address, err: error }, 'window not steered'),
    });
  }

  #jobsAt(address: string): DispatchJob[] {
    const jobs = [...this.#hands.values()].map(({ job }) => job);
    return jobs.filter((job) => job.engines().some((each) => each.address === address));
  }

  #dropIdle(address: string): void {
    this.#drops.delete(address);
    const engine = this.#engines.get(address);
    if (engine === undefined) return;
    if (this.#jobsAt(address).length > 0) return;
    if (engine.inFlight > 0) {
      this.#dropLater(address);
      return;
    }
    this.#engines.delete(address);
    void engine.close();
  }

  #closeSegments(): void {
    for (const { writer } of this.#hands.values()) void writer.close();
  }
}
