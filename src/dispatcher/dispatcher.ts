import { servesModel } from '../domain/provision.ts';
import type { ServingEngine } from '../domain/provision.ts';
import { createBudget } from './budget.ts';
import { createChunkPool } from './chunk-pool.ts';
import { createEngine } from './engine.ts';
import type { Engine, EngineConnection } from './engine.ts';
import { createRoom } from './room.ts';
import { SegmentWriter } from './segment-writer.ts';
import type { Holder, SegmentDeps } from './segment-writer.ts';
import { runShard } from './shard-run.ts';
import type { DispatchJob, Hands, RunSignals, ShardRunDeps, TakenShard } from './shard-run.ts';

export type { DispatchJob, RunSignals, TakenShard } from './shard-run.ts';

/** Everything that a dispatcher touches outside itself. */
export interface DispatcherDeps
  extends
    Omit<SegmentDeps, 'budget' | 'room' | 'pool'>,
    Omit<ShardRunDeps, 'budget' | 'room' | 'onSent'> {
  memoryBudget: number;
  maxResponseBytes: number;
  connect(address: string): EngineConnection;
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
  job: DispatchJob;
  holders: number;
  /** Lines of it that were not sent yet. */
  unsent: number;
}

const IDLE_ENGINE_MS = 60_000;

/**
 * Sends the lines of the shards that this process holds. All of them share the places at its engines, one memory
 * budget, and one open segment a job. It knows streams and functions, neither Redis nor a store.
 */
export class Dispatcher {
  readonly #deps: DispatcherDeps;
  readonly #room = createRoom();
  readonly #pool = createChunkPool();
  readonly #engines = new Map<string, Engine>();
  readonly #hands = new Map<string, HandsOfJob>();
  readonly #budget;
  readonly #giveUp = new AbortController();
  readonly #roomListeners = new Set<() => void>();
  readonly #drops = new Map<string, () => void>();
  #unsent = 0;

  constructor(deps: DispatcherDeps) {
    this.#deps = deps;
    this.#budget = createBudget(deps.memoryBudget, () => this.#closeSegments());
  }

  get load(): Load {
    let inFlight = 0;
    for (const engine of this.#engines.values()) inFlight += engine.inFlight;
    let uncommitted = 0;
    for (const { writer } of this.#hands.values()) uncommitted += writer.pending;
    return { unsent: this.#unsent, inFlight, uncommitted, budgetUsed: this.#budget.used };
  }

  /** Whether another shard would find room: fewer lines wait here than the engines' places take. */
  get wantsMore(): boolean {
    if (this.#budget.isOver()) return false;
    let places = 1;
    for (const { tenant } of this.#hands.values()) {
      places = Math.max(places, tenant.maxConcurrency * tenant.engines(null).length);
    }
    return this.#unsent < places;
  }

  /** Whether so many lines of a job wait here that its engines have no place for more. */
  isFull(jobId: string): boolean {
    const hands = this.#hands.get(jobId);
    if (hands === undefined) return false;
    const { tenant, unsent } = hands;
    return unsent >= Math.max(1, tenant.maxConcurrency * tenant.engines(null).length);
  }

  /** Calls back whenever `wantsMore` may have become true. */
  onRoom(listener: () => void): void {
    this.#roomListeners.add(listener);
  }

  /** Engines of a job came or went: lines that wait may go. */
  enginesChanged(): void {
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
    let unsent = shard.left;
    this.#unsent += unsent;
    hands.unsent += unsent;
    try {
      await runShard(shard, holder, hands, signals, {
        ...this.#deps,
        budget: this.#budget,
        room: this.#room,
        onSent: () => {
          unsent -= 1;
          this.#unsent -= 1;
          hands.unsent -= 1;
          this.#tellRoom();
        },
      });
    } finally {
      this.#unsent -= unsent;
      hands.unsent -= unsent;
      this.#release(hands);
      this.#tellRoom();
    }
    return holder.state === 'holding' ? 'stopped' : holder.state;
  }

  /** Cuts what is left in flight and gives up storing. Call it when no shard runs any more, or has to. */
  async close(): Promise<void> {
    for (const cancel of this.#drops.values()) cancel();
    this.#giveUp.abort(new Error('the process stops'));
    await Promise.all([...this.#engines.values()].map((engine) => engine.close()));
    this.#engines.clear();
  }

  #take(job: DispatchJob): HandsOfJob {
    const hands = this.#hands.get(job.id) ?? this.#open(job);
    hands.job = job;
    hands.holders += 1;
    return hands;
  }

  #open(job: DispatchJob): HandsOfJob {
    const deps = { ...this.#deps, budget: this.#budget, room: this.#room, pool: this.#pool };
    const writer = new SegmentWriter(job.id, deps, this.#giveUp.signal);
    // Asked for each line: made anew only when the job's engines are. Its models are few.
    let serving: readonly ServingEngine[] = [];
    const byModel = new Map<string | null, readonly Engine[]>();
    const tenant = {
      maxConcurrency: job.maxConcurrency,
      inHand: 0,
      engines: (model: string | null) => {
        const now = hands.job.engines();
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
    const hands: HandsOfJob = {
      job,
      tenant,
      writer,
      unanswered: 0,
      waiting: 0,
      holders: 0,
      unsent: 0,
    };
    this.#hands.set(job.id, hands);
    return hands;
  }

  #release(hands: HandsOfJob): void {
    hands.holders -= 1;
    if (hands.holders > 0) return;
    this.#hands.delete(hands.job.id);
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
    const engine = createEngine({
      address,
      connection: this.#deps.connect(address),
      budget: this.#budget,
      maxResponseBytes: this.#deps.maxResponseBytes,
      clock: this.#deps.clock,
      onDown: this.#deps.onEngineDown,
      onUp: () => this.#room.kick(),
    });
    this.#engines.set(address, engine);
    return engine;
  }

  #dropIdle(address: string): void {
    this.#drops.delete(address);
    const engine = this.#engines.get(address);
    if (engine === undefined) return;
    const used = [...this.#hands.values()].some(({ job }) =>
      job.engines().some((each) => each.address === address),
    );
    if (used) return;
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

  #tellRoom(): void {
    for (const listener of this.#roomListeners) listener();
  }
}
