import type { Clock } from './clock.ts';
import type { Engine } from './engine.ts';
import { onAbort } from './on-abort.ts';
import type { Pass, Room, Wish } from './room.ts';

/** Suspects come back one after the other as their shards are read again. */
const GATHER_MS = 100;
const LOOK_MS = 20;
/** Two processes that both isolate at one engine shall not send at the same moments. */
const MOST_JITTER_MS = 1_000;

/** Lines that were let in together; the engine is theirs until the last has left. */
export interface Batch extends Pass {
  readonly engine: Engine;
  inside: number;
  readonly empty: PromiseWithResolvers<void>;
}

/** A line that waits to be let in. */
export interface Entrant {
  wish: Wish;
  /** In how large a batch it may go in. */
  most(): number;
}

interface Waiter extends Entrant {
  resolve(batch: Batch | null): void;
}

/** Lets suspects in by batches, one at a time in this process. */
export interface Quarantine {
  /** Waits to be let in; null when the signal is aborted first. Whoever is in has to leave. */
  enter(who: Entrant, stop: AbortSignal): Promise<Batch | null>;
  leave(batch: Batch): void;
}

export function createQuarantine(room: Room, clock: Clock, closed: AbortSignal): Quarantine {
  const waiting = new Set<Waiter>();
  let batches = 0;
  let isRunning = false;

  async function run(): Promise<void> {
    if (isRunning) return;
    isRunning = true;
    while (waiting.size > 0 && !closed.aborted) {
      await clock.sleep(GATHER_MS, closed);
      const engine = engineFor(waiting);
      if (engine !== null) await serve(engine);
    }
    isRunning = false;
  }

  async function serve(engine: Engine): Promise<void> {
    batches += 1;
    const batch: Batch = { id: batches, engine, inside: 0, empty: Promise.withResolvers() };
    room.keep(engine, batch);
    try {
      while (engine.inFlight > 0 && canGoOn(engine)) await clock.sleep(LOOK_MS, closed);
      if (engine.window.processes > 1) await clock.sleep(clock.random() * MOST_JITTER_MS, closed);
      if (!canGoOn(engine)) return;
      letIn(batch, waiting);
      if (batch.inside > 0) await batch.empty.promise;
    } finally {
      room.letGo(engine);
    }
  }

  function canGoOn(engine: Engine): boolean {
    return !engine.isOpen && waiting.size > 0 && !closed.aborted;
  }

  return {
    async enter(who, stop) {
      if (stop.aborted || closed.aborted) return null;
      return new Promise((resolve) => {
        const waiter: Waiter = { ...who, resolve: finish };
        const forgetStop = onAbort(stop, () => finish(null));
        const forgetClosed = onAbort(closed, () => finish(null));
        function finish(batch: Batch | null): void {
          forgetStop();
          forgetClosed();
          waiting.delete(waiter);
          resolve(batch);
        }
        waiting.add(waiter);
        void run();
      });
    },
    leave(batch) {
      batch.inside -= 1;
      if (batch.inside === 0) batch.empty.resolve();
    },
  };
}

/** Those that may be with the fewest others go first: they are the nearest to an end. */
function letIn(batch: Batch, waiting: Iterable<Waiter>): void {
  const fit = [...waiting].filter(({ wish }) => enginesOf(wish).includes(batch.engine));
  const ordered = fit.toSorted((a, b) => a.most() - b.most());
  const chosen = ordered.slice(0, ordered[0]?.most() ?? 0);
  batch.inside = chosen.length;
  for (const { resolve } of chosen) resolve(batch);
}

function enginesOf({ tenant, model }: Wish): readonly Engine[] {
  return tenant.engines(model);
}

/** The least busy engine of those that any of them may be sent to. */
function engineFor(waiting: Iterable<Waiter>): Engine | null {
  let best: Engine | null = null;
  for (const { wish } of waiting) {
    for (const engine of enginesOf(wish)) {
      if (!engine.isOpen && (best === null || engine.load < best.load)) best = engine;
    }
  }
  return best;
}
