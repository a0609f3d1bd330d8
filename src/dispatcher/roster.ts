/** A place in a roster, for leaving it. */
export interface Seat<T> {
  readonly who: T;
  /** Where it stands now; -1: nowhere. */
  at: number;
}

/**
 * Members that come and go thousands of times a second, in no order. A Set would do, but for V8: at every so many
 * changes it moves to a new table, and an old one holds all that was in it, and the next one, until the whole heap is
 * looked through. Each member would outlive its use by that, with all that hangs on it.
 */
export class Roster<T> {
  readonly #seats: Seat<T>[] = [];

  get size(): number {
    return this.#seats.length;
  }

  enter(who: T): Seat<T> {
    const seat = { who, at: this.#seats.length };
    this.#seats.push(seat);
    return seat;
  }

  /** Does nothing for one that has left. */
  leave(seat: Seat<T>): void {
    if (seat.at === -1) return;
    const last = this.#seats.pop();
    if (last !== undefined && last !== seat) {
      this.#seats[seat.at] = last;
      last.at = seat.at;
    }
    seat.at = -1;
  }

  /** Calls `tell` for each of those that are in now; whoever leaves meanwhile, or enters, may or may not be told. */
  each(tell: (who: T) => void): void {
    for (let at = this.#seats.length - 1; at >= 0; at -= 1) {
      const seat = this.#seats[at];
      if (seat !== undefined) tell(seat.who);
    }
  }

  /** Empties it, and returns who was in. */
  clear(): T[] {
    const seats = this.#seats.splice(0);
    for (const seat of seats) seat.at = -1;
    return seats.map(({ who }) => who);
  }
}
