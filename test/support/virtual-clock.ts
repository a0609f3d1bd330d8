import type { Clock } from '../../src/dispatcher/clock.ts';
import { onAbort } from '../../src/dispatcher/on-abort.ts';

/** A clock that stands still until a test moves it. */
export interface VirtualClock extends Clock {
  /** Runs what is due in the next `ms`, in order, each with all that follows from it at once. */
  advance(ms: number): Promise<void>;
  /** Lets all promises that are settled run their continuations. */
  settle(): Promise<void>;
  /** Timers that have not run and were not called off. */
  readonly pending: number;
}

interface Timer {
  at: number;
  seq: number;
  task: () => void;
}

/** Continuations follow on each other this often at most between two timers. */
const DEEPEST = 20;

export function createVirtualClock(start = 1_700_000_000_000): VirtualClock {
  const timers = new Set<Timer>();
  let now = start;
  let seq = 0;
  let drawn = 0;

  function after(ms: number, task: () => void): () => void {
    seq += 1;
    const timer = { at: now + Math.max(0, ms), seq, task };
    timers.add(timer);
    return () => timers.delete(timer);
  }

  function next(until: number): Timer | null {
    let first: Timer | null = null;
    for (const timer of timers) {
      if (timer.at > until) continue;
      const isEarlier =
        first === null || timer.at < first.at || (timer.at === first.at && timer.seq < first.seq);
      if (isEarlier) first = timer;
    }
    return first;
  }

  async function settle(): Promise<void> {
    for (let depth = 0; depth < DEEPEST; depth += 1) await Promise.resolve();
  }

  return {
    now: () => now,
    // Irrational steps: no two who wait stay in step.
    random: () => (drawn = (drawn + 0.618_033_988_75) % 1),
    after,
    async sleep(ms, signal) {
      if (signal.aborted) return;
      await new Promise<void>((resolve) => {
        const cancel = after(ms, end);
        const forgetSignal = onAbort(signal, end);
        function end(): void {
          cancel();
          forgetSignal();
          resolve();
        }
      });
    },
    async advance(ms) {
      const until = now + ms;
      await settle();
      for (let timer = next(until); timer !== null; timer = next(until)) {
        timers.delete(timer);
        now = Math.max(now, timer.at);
        timer.task();
        await settle();
      }
      now = until;
    },
    settle,
    get pending() {
      return timers.size;
    },
  };
}
