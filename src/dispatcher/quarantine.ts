import type { Clock } from './clock.ts';
import type { Engine } from './engine.ts';
import { onAbort } from './on-abort.ts';
import type { Pass, Room, Wish } from './room.ts';

/** Suspects come back one after the other as their shards are read again. */
const GATHER_MS = 100;
const LOOK_MS = 20;
/** A turn is good for some seconds. */
const RENEW_MS = 2_000;

/**
 * Whose turn it is to isolate at an engine, of all processes that send there: lines that are each alone for their own
 * process are not alone there, and an innocent one would be blamed for the other.
 */
export interface Isolation {
  /** Takes the turn, or keeps it; false while another process has it, or nobody can tell. Never rejects. */
  take(address: string): Promise<boolean>;
  giveBack(address: string): void;
}

/** Lines that were let in together; the engine is theirs until the last has left. */
export interface Batch extends Pass {
  readonly engine: Engine;
  /** How many were let in. */
  size: number;
  /** Those of them that are in. */
  readonly members: Set<Wish>;
  /** Aborted when the engine takes no more of them: who waits for a place there has to enter anew. */
  readonly over: AbortController;
  readonly empty: AbortController;
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

/** Lets suspects in by batches, one at a time in this process, and of all processes one at a time at an engine. */
export interface Quarantine {
  /** Waits to be let in; null when the signal is aborted first. Whoever is in has to leave. */
  enter(who: Entrant, stop: AbortSignal): Promise<Batch | null>;
  leave(batch: Batch, wish: Wish): void;
}

export function createQuarantine(
  room: Room,
  clock: Clock,
  isolation: Isolation,
  closed: AbortSignal,
): Quarantine {
  const waiting = new Set<Waiter>();
  let [batches, isRunning] = [0, false];

  async function run(): Promise<void> {
    if (isRunning) return;
    isRunning = true;
    while (waiting.size > 0 && !closed.aborted) {
      await clock.sleep(GATHER_MS, closed);
      const engine = engineFor(waiting);
      if (engine !== null) await inTurn(engine, isolation, clock, serve);
    }
    isRunning = false;
  }

  async function serve(engine: Engine): Promise<void> {
    batches += 1;
    const batch = createBatch(batches, engine);
    room.keep(engine, batch);
    try {
      while (engine.inFlight > 0 && canGoOn(engine)) await clock.sleep(LOOK_MS, closed);
      if (!canGoOn(engine)) return;
      letIn(batch, waiting);
      while (batch.members.size > 0 && !closed.aborted) {
        if (![...batch.members].some((wish) => takes(engine, wish))) batch.over.abort();
        await clock.sleep(LOOK_MS, batch.empty.signal);
      }
    } finally {
      room.letGo(engine);
    }
  }

  function canGoOn(engine: Engine): boolean {
    return !closed.aborted && [...waiting].some(({ wish }) => takes(engine, wish));
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
    leave({ members, empty }, wish) {
      members.delete(wish);
      if (members.size === 0) empty.abort();
    },
  };
}

/** Serves an engine if it is this process's turn there. */
async function inTurn(
  engine: Engine,
  isolation: Isolation,
  clock: Clock,
  serve: (engine: Engine) => Promise<void>,
): Promise<void> {
  const { address } = engine;
  if (!(await isolation.take(address))) return;
  let forget = clock.after(RENEW_MS, renew);
  function renew(): void {
    void isolation.take(address);
    forget = clock.after(RENEW_MS, renew);
  }
  try {
    await serve(engine);
  } finally {
    forget();
    isolation.giveBack(address);
  }
}

function createBatch(id: number, engine: Engine): Batch {
  const [over, empty] = [new AbortController(), new AbortController()];
  return { id, engine, size: 0, members: new Set(), over, empty };
}

/** Those that may be with the fewest others go first: they are the nearest to an end. */
function letIn(batch: Batch, waiting: Iterable<Waiter>): void {
  const fit = [...waiting].filter(({ wish }) => takes(batch.engine, wish));
  const ordered = fit.toSorted((a, b) => a.most() - b.most());
  const chosen = ordered.slice(0, ordered[0]?.most() ?? 0);
  batch.size = chosen.length;
  for (const { wish, resolve } of chosen) {
    batch.members.add(wish);
    resolve(batch);
  }
}

/** Whether a line could be sent to the engine, were nothing in flight there. */
function takes(engine: Engine, { tenant, model, permitted }: Wish): boolean {
  if (engine.isOpen || !tenant.mayAsk(engine, permitted === engine)) return false;
  // Among many processes the places may be all others'.
  if (tenant.cap(engine) < 1 || (tenant.isAdaptive && engine.window.limit < 1)) return false;
  return tenant.engines(model).includes(engine);
}

/** The least busy engine of those that any of them may be sent to. */
function engineFor(waiting: Iterable<Waiter>): Engine | null {
  let best: Engine | null = null;
  for (const { wish } of waiting) {
    for (const engine of wish.tenant.engines(wish.model)) {
      if (takes(engine, wish) && (best === null || engine.load < best.load)) best = engine;
    }
  }
  return best;
}
