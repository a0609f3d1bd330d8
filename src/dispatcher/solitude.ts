import type { Clock } from './clock.ts';
import { onAbort } from './on-abort.ts';
import type { Pass, Room } from './room.ts';

const LOOK_MS = 20;

/** Lets one line at a time be the only one that this process has in flight. */
export interface Solitude {
  /** Waits until nothing else is in flight, and keeps it so until `leave`. Null when stopped before. */
  enter(stop: AbortSignal): Promise<Pass | null>;
  leave(pass: Pass): void;
}

export function createSolitude(
  room: Pick<Room, 'setClosed'>,
  clock: Clock,
  inFlight: () => number,
): Solitude {
  const ends = new Map<Pass, () => void>();
  let last = Promise.resolve();

  function leave(pass: Pass): void {
    room.setClosed(pass, false);
    ends.get(pass)?.();
    ends.delete(pass);
  }

  return {
    leave,
    async enter(stop) {
      const before = last;
      const over = Promise.withResolvers<void>();
      last = over.promise;
      if (!(await isReached(before, stop))) {
        void before.then(over.resolve);
        return null;
      }
      const pass: Pass = { id: -1, engine: null };
      ends.set(pass, over.resolve);
      room.setClosed(pass, true);
      while (inFlight() > 0 && !stop.aborted) await clock.sleep(LOOK_MS, stop);
      if (!stop.aborted) return pass;
      leave(pass);
      return null;
    },
  };
}

/** False when it is stopped before. */
async function isReached(before: Promise<void>, stop: AbortSignal): Promise<boolean> {
  if (stop.aborted) return false;
  const stopped = Promise.withResolvers<false>();
  const forget = onAbort(stop, () => stopped.resolve(false));
  const found = await Promise.race([before.then(() => true), stopped.promise]);
  forget();
  return found && !stop.aborted;
}
