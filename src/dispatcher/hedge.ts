import type { Clock } from './clock.ts';
import { onAbort } from './on-abort.ts';
import type { Engine } from './engine.ts';
import type { Room, Wish } from './room.ts';

/** When a job's last lines are worth asking a second time elsewhere. */
export interface Hedging {
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
export function createHedging(isTail: () => boolean): Hedging {
  let mean: number | null = null;
  return {
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

const LOOK_MS = 250;

/**
 * Asks one line, and where it straggles asks it once more at another engine that has a place: the first answer that
 * stands counts, and the other request is cut. Where none stands, it is the first request's that counts.
 */
export async function withHedge<T>(
  { first, wish, abort }: { first: Engine; wish: Wish; abort: AbortSignal },
  { room, clock, hedging }: HedgeDeps,
  send: (engine: Engine, abort: AbortSignal) => Promise<T>,
  stands: (found: T) => boolean,
): Promise<T> {
  const [cutFirst, cutSecond, over] = [
    new AbortController(),
    new AbortController(),
    new AbortController(),
  ];
  const forget = onAbort(abort, () => {
    cutFirst.abort(abort.reason);
    cutSecond.abort(abort.reason);
  });
  const begun = clock.now();
  const primary = send(first, cutFirst.signal).finally(() => over.abort());
  const second = straggle(begun, { clock, hedging }, over.signal).then(async (isLate) => {
    const engine = isLate ? room.tryTakeFresh({ ...wish, avoid: first }) : null;
    if (engine === null) return null;
    try {
      return { found: await send(engine, cutSecond.signal) };
    } finally {
      room.give(engine, wish.tenant);
    }
  });
  try {
    const won = await Promise.any([
      primary.then((found) => orReject(found, stands)),
      second.then((answer) => orReject(answer?.found, stands)),
    ]).catch(async () => primary);
    cutFirst.abort(new Error('another request was faster'));
    cutSecond.abort(new Error('another request was faster'));
    await Promise.allSettled([primary, second]);
    return won;
  } finally {
    forget();
  }
}

function orReject<T>(found: T | undefined, stands: (found: T) => boolean): T {
  if (found === undefined || !stands(found)) throw new Error('no answer that stands');
  return found;
}

/** True once the line straggles; false when it is over before. */
async function straggle(
  begun: number,
  { clock, hedging }: Pick<HedgeDeps, 'clock' | 'hedging'>,
  over: AbortSignal,
): Promise<boolean> {
  while (!over.aborted) {
    const after = hedging.afterMs();
    const left = after === null ? LOOK_MS : after - (clock.now() - begun);
    if (left <= 0) return true;
    await clock.sleep(Math.min(left, LOOK_MS), over);
  }
  return false;
}
