import type { Clock } from './clock.ts';

/** A job's time in this process, while it holds shards of it. */
export interface Turn {
  /** Lines of held shards that were not sent yet. */
  unsent: number;
  /** Lines sent since `meteredAt`, and lines a millisecond before that. */
  sent: number;
  meteredAt: number;
  rate: number;
  readonly begunAt: number;
  /** Aborted when other jobs have waited long enough: what was not sent is given back. */
  readonly over: AbortController;
  /** Lines that may be in flight at this moment. */
  readonly places: () => number;
}

/** Which job's shards a process takes, so that each comes to its turn. */
export interface Turns {
  begin(jobId: string, places: () => number): Turn;
  end(jobId: string): void;
  /**
   * For how long this process wants no shard of a job, ms; 0: it takes one. So many lines of the job wait here that its
   * engines have no place for more; or so many jobs are in hand that one of them has to end its turn first.
   */
  asideMs(jobId: string): number;
}

/** Jobs that one process sends at the same time; beyond that they take turns. */
const MOST_JOBS = 32;
const TURN_MS = 1_000;
const SHORTEST_MS = 50;
const LONGEST_MS = 1_000;
/** With many jobs that wait, each looks again later: looking costs more than waiting. */
const PER_WAITER_MS = 5;
const METER_MS = 250;
/** Lines a millisecond until the first are counted. */
const FIRST_RATE = 5;

export function createTurns(clock: Clock): Turns {
  const turns = new Map<string, Turn>();
  /** Jobs whose turn is over → until when others go first. */
  const resting = new Map<string, number>();
  /** Jobs that found no seat → until when they were put aside. */
  const waiting = new Map<string, number>();

  function forgetPast(times: Map<string, number>): void {
    const now = clock.now();
    for (const [jobId, until] of times) if (until <= now) times.delete(jobId);
  }

  /** Where every seat is taken, the job that had its turn for longest gives its shards back; 0: there is a seat. */
  function seatMs(jobId: string): number {
    const seated = [...turns.values()].filter((turn) => !turn.over.signal.aborted);
    const [first] = seated;
    if (first === undefined || seated.length < MOST_JOBS) return 0;
    const left = first.begunAt + TURN_MS - clock.now();
    if (left <= 0) first.over.abort(new Error('other jobs wait for their turn'));
    forgetPast(waiting);
    const ms = Math.min(LONGEST_MS, Math.max(SHORTEST_MS, PER_WAITER_MS * waiting.size));
    waiting.set(jobId, clock.now() + ms);
    return ms;
  }

  return {
    begin(jobId, places) {
      const now = clock.now();
      const turn: Turn = {
        unsent: 0,
        sent: 0,
        meteredAt: now,
        rate: FIRST_RATE,
        begunAt: now,
        over: new AbortController(),
        places,
      };
      turns.set(jobId, turn);
      waiting.delete(jobId);
      return turn;
    },
    end(jobId) {
      const isOver = turns.get(jobId)?.over.signal.aborted === true;
      turns.delete(jobId);
      forgetPast(resting);
      if (isOver) resting.set(jobId, clock.now() + TURN_MS);
    },
    asideMs(jobId) {
      const turn = turns.get(jobId);
      if (turn === undefined) {
        const rest = (resting.get(jobId) ?? 0) - clock.now();
        return rest > 0 ? rest : seatMs(jobId);
      }
      if (turn.over.signal.aborted) return LONGEST_MS;
      if (turn.unsent < Math.max(1, turn.places())) return 0;
      // Back before the last of them is sent, so that no place stays empty.
      const drainMs = turn.unsent / sendRate(turn, clock.now());
      return Math.min(LONGEST_MS, Math.max(SHORTEST_MS, drainMs / 2));
    },
  };
}

/** Lines a millisecond, measured over the last moments. */
function sendRate(turn: Turn, now: number): number {
  const elapsed = now - turn.meteredAt;
  if (elapsed >= METER_MS) {
    turn.rate = turn.sent / elapsed;
    turn.sent = 0;
    turn.meteredAt = now;
  }
  return turn.rate;
}
