import { MAX_MODELS } from '../domain/plan.ts';

/** One seat for each model that a job may name, and seat 0 for lines that name none. */
const SEATS = MAX_MODELS + 1;

/**
 * A line's number with the seat of its model in one whole number, which sorts as the line does: so a duplicate, which
 * is known only when all lines are read, brings its model along at no memory.
 */
export function withSeat(line: number, seat: number): number {
  return line * SEATS + seat;
}

export function lineOf(numberWithSeat: number): number {
  return Math.floor(numberWithSeat / SEATS);
}

export function seatOf(numberWithSeat: number): number {
  return numberWithSeat % SEATS;
}

/** The models that an input names, each with how many of its lines can be asked. */
export interface ModelSeats {
  /** The seat of a line's model; null where the job names as many others as it may. */
  take(model: string | null): number | null;
  /** A line that took this seat turned out to be one that cannot be asked. */
  leave(seat: number): void;
  /** Those that are named by a line that can be asked, in the order in which they came. */
  asked(): string[];
}

export function createModelSeats(): ModelSeats {
  const seats = new Map<string, number>();
  const lines = new Float64Array(SEATS);
  function count(seat: number, change: number): void {
    lines[seat] = (lines[seat] ?? 0) + change;
  }
  return {
    take(model) {
      if (model === null) return 0;
      const seat = seats.get(model) ?? seats.size + 1;
      if (seat === SEATS) return null;
      if (seat > seats.size) seats.set(model, seat);
      count(seat, 1);
      return seat;
    },
    leave: (seat) => count(seat, -1),
    asked: () => [...seats].filter(([, seat]) => (lines[seat] ?? 0) > 0).map(([model]) => model),
  };
}
