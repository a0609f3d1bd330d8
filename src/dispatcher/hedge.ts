import type { Admission } from './admit.ts';
import type { Clock } from './clock.ts';
import { onAbort } from './on-abort.ts';
import type { Engine } from './engine.ts';
import type { Room, Wish } from './room.ts';
import { Roster } from './roster.ts';

/** Who looks after lines that may be asked a second time. */
export interface Looks {
  /** Looks again and again, until the result is called. */
  follow(look: () => void): () => void;
}

const LOOK_MS = 250;

/** One timer for all lines of a process: a timer of its own for each would cost more than stragglers do. */
export function createLooks(clock: Clock): Looks {
  const looking = new Roster<() => void>();
  let isRunning = false;

  function run(): void {
    isRunning = true;
    clock.after(LOOK_MS, lookAll);
  }

  function lookAll(): void {
    looking.each((look) => look());
    if (looking.size > 0) run();
    else isRunning = false;
  }

  return {
    follow(look) {
      const seat = looking.enter(look);
      if (!isRunning) run();
      return () => looking.leave(seat);
    },
  };
}

/** When a job's last lines are worth asking a second time elsewhere. */
export interface Hedging {
  readonly looks: Looks;
  /** How long a line may take before that, ms; null: not now. */
  afterMs(): number | null;
  /** A line was answered after so long. */
  answered(ms: number): void;
}

/** A line that takes so many times as long as others do is a straggler. */
const STRAGGLES = 3;
const SHORTEST_MS = 1_000;
const SMOOTHING = 0.05;

/** `isTail`: every line of the job is sent or answered, so that engines may stand idle. */
export function createHedging(isTail: () => boolean, looks: Looks): Hedging {
  let mean: number | null = null;
  return {
    looks,
    afterMs: () => (mean === null || !isTail() ? null : Math.max(SHORTEST_MS, STRAGGLES * mean)),
    answered(ms) {
      mean = mean === null ? ms : mean + SMOOTHING * (ms - mean);
    },
  };
}

interface HedgeDeps {
  room: Room;
  clock: Clock;
  hedging: Hedging;
}

interface Hedged {
  /** Where it has its place, which is the caller's to give back. */
  first: Admission;
  wish: Wish;
  abort: AbortSignal;
}

interface Attempts<T> {
  send(admission: Admission, abort: AbortSignal): Promise<T>;
  /** Leave to send at another engine too, if there is leave now. */
  admitAtOnce(engine: Engine): Admission | null;
  stands(found: T): boolean;
}

/**
 * Asks one line, and where it straggles asks it once more at another engine, as soon as one has a place: the first
 * answer that stands counts, and the other request is cut. Where none stands, it is the first request's that counts.
 */
export async function withHedge<T>(
  line: Hedged,
  deps: HedgeDeps,
  attempts: Attempts<T>,
): Promise<T> {
  // One for both requests: whichever is not cut by it is over.
  const cut = new AbortController();
  if (line.abort.aborted) cut.abort(line.abort.reason);
  const forgetAbort = onAbort(line.abort, () => cut.abort(line.abort.reason));
  const straggling = Promise.withResolvers<Admission | null>();
  const stopLooking = lookForPlace(line, deps, attempts, straggling.resolve);
  const primary = attempts.send(line.first, cut.signal).finally(() => {
    stopLooking();
    straggling.resolve(null);
  });
  try {
    const spare = await straggling.promise;
    if (spare === null) return await primary;
    const second = attempts.send(spare, cut.signal).finally(() => {
      deps.room.give(spare.engine, line.wish.tenant);
    });
    return await firstThatStands(primary, second, attempts.stands, cut);
  } finally {
    forgetAbort();
  }
}

/** Looks again and again whether the line straggles and there is a place for it at another engine. */
function lookForPlace<T>(
  { first, wish }: Hedged,
  { room, clock, hedging }: HedgeDeps,
  { admitAtOnce }: Attempts<T>,
  found: (spare: Admission) => void,
): () => void {
  const begun = clock.now();
  const stopLooking = hedging.looks.follow(() => {
    const after = hedging.afterMs();
    if (after === null || clock.now() - begun < after) return;
    const engine = room.tryTakeFresh({ ...wish, avoid: first.engine });
    if (engine === null) return;
    const spare = admitAtOnce(engine);
    if (spare === null) {
      room.give(engine, wish.tenant);
      return;
    }
    stopLooking();
    found(spare);
  });
  return stopLooking;
}

async function firstThatStands<T>(
  primary: Promise<T>,
  second: Promise<T>,
  stands: (found: T) => boolean,
  cut: AbortController,
): Promise<T> {
  const standing = [primary, second].map(async (answer) => {
    const found = await answer;
    if (!stands(found)) throw new Error('no answer that stands');
    return found;
  });
  const won = await Promise.any(standing).catch(async () => primary);
  cut.abort(new Error('another request was faster'));
  await Promise.allSettled([primary, second]);
  return won;
}
