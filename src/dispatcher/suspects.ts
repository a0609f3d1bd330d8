import type { Alone } from './careful.ts';
import { createCharges, createDeaths, isCharged, mostBeside } from './charges.ts';
import type { Charge, Charges, Deaths } from './charges.ts';
import type { Clock } from './clock.ts';
import type { Engine } from './engine.ts';
import { createQuarantine } from './quarantine.ts';
import type { Batch, Isolation, Quarantine } from './quarantine.ts';
import type { Room, Wish } from './room.ts';

/** One line on its way to an answer. */
export interface Suspect {
  /** Its attempt ended as if the engine had died of it. May take a moment, in which the place stays taken. */
  fell(engine: Engine): Promise<void>;
  /** It waits for something else than a place: meanwhile nothing is kept clear for it. */
  rest(): void;
  /** A place for the next attempt: one in isolation where it needs that. Null when stopped, or blamed. */
  take(stop: AbortSignal): Promise<Engine | null>;
  /** How many engines' deaths it is blamed for; 0: it is not. */
  readonly blame: number;
  /** Nothing more is sent of it; `isAnswered` clears it. */
  left(isAnswered: boolean): void;
}

/**
 * Finds the line that kills engines. Lines in flight at two deaths go on in quarantine: at an engine with nothing else
 * of this process beside them, half as many at a time as at their last death, until one that was alone is blamed.
 * Remembered by job and line, because shards are given back and taken again while an engine is replaced.
 */
export interface Suspects {
  /** `alone`: it has the whole process for itself, whether it is a suspect or not. */
  of(jobId: string, line: number, wish: Wish, alone: Alone | null): Suspect;
  /** Whether a line has to be sent in quarantine. */
  isCharged(jobId: string, line: number): boolean;
  /** An engine's breaker opened. */
  died(engine: Engine): void;
  close(): void;
}

interface SuspectsDeps {
  room: Room;
  clock: Clock;
  isolation: Isolation;
}

export function createSuspects({ room, clock, isolation }: SuspectsDeps): Suspects {
  const closed = new AbortController();
  const charges = createCharges(clock);
  const deaths = createDeaths(clock);
  const parts = {
    room,
    charges,
    deaths,
    quarantine: createQuarantine(room, clock, isolation, closed.signal),
  };
  return {
    of: (jobId, line, wish, alone) => new SuspectLine(parts, jobId, line, wish, alone),
    died: (engine) => deaths.died(engine),
    isCharged: (jobId, line) => isCharged(charges.find(jobId, line)),
    close: () => closed.abort(),
  };
}

interface Parts {
  room: Room;
  charges: Charges;
  deaths: Deaths;
  quarantine: Quarantine;
}

/** A class because there is one for each line: closures of its own would cost every line a microsecond. */
class SuspectLine implements Suspect {
  readonly #parts: Parts;
  readonly #jobId: string;
  readonly #line: number;
  readonly #wish: Wish;
  readonly #alone: Alone | null;
  #batch: Batch | null = null;

  constructor(parts: Parts, jobId: string, line: number, wish: Wish, alone: Alone | null) {
    this.#parts = parts;
    this.#jobId = jobId;
    this.#line = line;
    this.#wish = wish;
    this.#alone = alone;
  }

  get blame(): number {
    const charge = this.#charge;
    return charge?.isBlamed === true ? charge.deaths : 0;
  }

  async fell(engine: Engine): Promise<void> {
    const { charges, deaths } = this.#parts;
    // As it was let in: of several, the last may suffer for what one did that has left.
    const wasAlone = this.#batch?.size === 1 || (this.#alone !== null && isCharged(this.#charge));
    const isIsolated = this.#batch !== null || this.#alone !== null;
    // Few lines make few failures: waiting for as many as open the breaker would take them several attempts each.
    if (isIsolated && !engine.isOpen) await engine.doubt();
    deaths.fell(engine, charges.of(this.#jobId, this.#line), wasAlone);
  }

  rest(): void {
    if (this.#batch !== null) this.#parts.quarantine.leave(this.#batch, this.#wish);
    this.#batch = null;
    this.#alone?.leave();
    this.#wish.pass = null;
  }

  async take(stop: AbortSignal): Promise<Engine | null> {
    if (this.#batch !== null || this.#alone !== null) this.rest();
    const charge = this.#charge;
    if (charge?.isBlamed === true) return null;
    if (this.#alone !== null) return this.#takeAlone(this.#alone, stop);
    if (isCharged(charge)) return this.#takeApart(charge, stop);
    return this.#parts.room.take(this.#wish, stop);
  }

  /** In quarantine. */
  async #takeApart(charge: Charge, stop: AbortSignal): Promise<Engine | null> {
    const { room, quarantine } = this.#parts;
    const wish = this.#wish;
    for (;;) {
      const batch = await quarantine.enter({ wish, most: () => mostBeside(charge) }, stop);
      if (batch === null) return null;
      this.#batch = batch;
      wish.pass = batch;
      const engine = await room.take(wish, AbortSignal.any([stop, batch.over.signal]));
      if (engine !== null) return engine;
      this.rest();
    }
  }

  async #takeAlone(alone: Alone, stop: AbortSignal): Promise<Engine | null> {
    const { room } = this.#parts;
    const wish = this.#wish;
    for (;;) {
      wish.pass = await alone.enter(stop);
      if (wish.pass === null) return null;
      const engine = await takeNow(room, wish);
      if (engine !== null) return engine;
      // Nothing is in flight, so that it is for its engines that it waits: others, at other engines, need not.
      this.rest();
      const free = await room.take(wish, stop);
      if (free === null) return null;
      room.give(free, wish.tenant);
    }
  }

  left(isAnswered: boolean): void {
    // One that is alone stays so until its answer is committed: the mark on it stands as long.
    if (this.#batch !== null) this.rest();
    if (isAnswered) this.#parts.charges.forget(this.#jobId, this.#line);
  }

  get #charge(): Charge | undefined {
    return this.#parts.charges.find(this.#jobId, this.#line);
  }
}

/** A place if there is one at once. */
async function takeNow(room: Room, wish: Wish): Promise<Engine | null> {
  const now = new AbortController();
  const taking = room.take(wish, now.signal);
  now.abort();
  return taking;
}
