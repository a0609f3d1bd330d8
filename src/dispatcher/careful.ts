import { MANY_TAKES } from '../domain/plan.ts';
import type { Clock } from './clock.ts';
import { onAbort } from './on-abort.ts';
import type { Pass, Wish } from './room.ts';
import type { SegmentWriter } from './segment-writer.ts';
import type { Solitude } from './solitude.ts';

/** So many processes have to die with one line alone in hand before it is to blame. */
const DEATHS_TO_BLAME = 3;

/** A line that was alone in hand of processes that died. */
export interface CrashMark {
  /** Index within its shard. */
  line: number;
  deaths: number;
  /** How long ago the last of them was counted, ms. */
  sinceMs: number;
}

export interface CarefulDeps {
  clock: Clock;
  solitude: Solitude;
  /** Deaths that are closer together, ms, count as one: whatever kills all processes at once is not the line. */
  crashApartMs: number;
  /** Notes which line of a shard is alone in hand; false where the shard is not ours any more. */
  markAlone(line: number): Promise<boolean>;
}

/**
 * Runs a shard that processes keep dying with: few of its lines in hand, half as many at each further take, until one
 * is alone. Each answer is committed at once, so that it is not asked again.
 */
export interface Careful {
  /** Waits until a line (its index within the shard) may go. `crashed`: it is not asked any more. */
  before(line: number, wish: Wish, stop: AbortSignal): Promise<'send' | 'crashed' | 'stopped'>;
  /** A line is answered, or stays open: the next may go once what is answered is committed. */
  afterCommit(writer: Pick<SegmentWriter, 'close'>): void;
}

interface Taken {
  left: number;
  takes: number;
  crashed: CrashMark | null;
}

/** Null for a shard that may be run as any other. */
export function createCareful(
  { left, takes, crashed }: Taken,
  { clock, solitude, crashApartMs, markAlone }: CarefulDeps,
): Careful | null {
  const hasKilled = crashed !== null && crashed.deaths > 0;
  if (takes <= MANY_TAKES && !hasKilled) return null;
  let hand = hasKilled ? 1 : Math.max(1, Math.floor(left / 2 ** (takes - MANY_TAKES)));
  let out = 0;
  let alone: Pass | null = null;
  let wake: () => void = () => {};
  const begun = clock.now();

  async function untilRoom(stop: AbortSignal): Promise<void> {
    while (out >= hand && !stop.aborted) {
      await new Promise<void>((resolve) => {
        const forget = onAbort(stop, resolve);
        wake = () => {
          forget();
          resolve();
        };
      });
    }
  }

  /** False where it may not be sent now. */
  async function isolate(line: number, wish: Wish, stop: AbortSignal): Promise<boolean> {
    if (crashed?.line === line) {
      const waitMs = crashApartMs - crashed.sinceMs - (clock.now() - begun);
      if (waitMs > 0) await clock.sleep(waitMs, stop);
    }
    const pass = await solitude.enter(stop);
    if (pass === null) return false;
    let isMarked = false;
    try {
      isMarked = await markAlone(line);
    } finally {
      if (!isMarked) solitude.leave(pass);
    }
    if (!isMarked) return false;
    alone = pass;
    wish.pass = pass;
    return true;
  }

  function after(): void {
    out -= 1;
    // As slowly as it is shown to be harmless.
    hand += 1;
    if (alone !== null) solitude.leave(alone);
    alone = null;
    wake();
  }

  return {
    async before(line, wish, stop) {
      await untilRoom(stop);
      if (stop.aborted) return 'stopped';
      const isBlamed = crashed?.line === line && crashed.deaths >= DEATHS_TO_BLAME;
      if (!isBlamed && hand === 1 && !(await isolate(line, wish, stop))) return 'stopped';
      out += 1;
      return isBlamed ? 'crashed' : 'send';
    },
    afterCommit: (writer) => void writer.close().then(after),
  };
}
