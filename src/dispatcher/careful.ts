import { MANY_TAKES } from '../domain/plan.ts';
import type { Clock } from './clock.ts';
import { onAbort } from './on-abort.ts';
import type { Pass } from './room.ts';
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

/** For a line that has the whole process for itself: each of its attempts, but not the waits between them. */
export interface Alone {
  /**
   * Waits until nothing else is in flight, and keeps it so until `leave`. Null when stopped before, and where the shard
   * is not ours any more.
   */
  enter(stop: AbortSignal): Promise<Pass | null>;
  /** Does nothing for a line that is not in. */
  leave(): void;
}

/**
 * Runs a shard that processes keep dying with: few of its lines in hand, half as many at each further take, until one
 * is alone. Each answer is committed at once, so that it is not asked again.
 */
export interface Careful {
  /** Waits until a line (its index within the shard) may go. `crashed`: it is not asked any more. */
  before(line: number, stop: AbortSignal): Promise<'send' | 'crashed' | 'stopped'>;
  /** Of the line that may go, where no other may beside it. */
  readonly alone: Alone | null;
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
  let alone: Alone | null = null;
  let isLost = false;
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

  /** Whatever kills all processes at once may be over by then. */
  async function untilApart(line: number, stop: AbortSignal): Promise<void> {
    if (crashed?.line !== line) return;
    const waitMs = crashApartMs - crashed.sinceMs - (clock.now() - begun);
    if (waitMs > 0) await clock.sleep(waitMs, stop);
  }

  function mark(line: number): () => Promise<boolean> {
    return async () => {
      isLost = true;
      isLost = !(await markAlone(line));
      return !isLost;
    };
  }

  function after(): void {
    out -= 1;
    // As slowly as it is shown to be harmless.
    hand += 1;
    alone?.leave();
    alone = null;
    wake();
  }

  return {
    get alone() {
      return alone;
    },
    async before(line, stop) {
      await untilRoom(stop);
      const isBlamed = crashed?.line === line && crashed.deaths >= DEATHS_TO_BLAME;
      const isAlone = !isBlamed && hand === 1;
      if (isAlone) await untilApart(line, stop);
      if (stop.aborted || isLost) return 'stopped';
      if (isAlone) alone = createAlone(solitude, mark(line));
      out += 1;
      return isBlamed ? 'crashed' : 'send';
    },
    afterCommit: (writer) => void writer.close().then(after),
  };
}

/** `mark` notes that a line is alone in hand; false where its shard is not ours any more. */
function createAlone(solitude: Solitude, mark: () => Promise<boolean>): Alone {
  let pass: Pass | null = null;
  let isMarked = false;

  function leave(): void {
    if (pass !== null) solitude.leave(pass);
    pass = null;
  }

  return {
    leave,
    async enter(stop) {
      leave();
      pass = await solitude.enter(stop);
      if (pass === null || isMarked) return pass;
      try {
        // Once is enough: the mark stands until the line is answered, or the shard given back.
        isMarked = await mark();
      } finally {
        if (!isMarked) leave();
      }
      return pass;
    },
  };
}
