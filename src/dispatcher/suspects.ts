import { createCharges, createDeaths, isCharged, mostBeside } from './charges.ts';
import type { Charges, Deaths } from './charges.ts';
import type { Clock } from './clock.ts';
import type { Engine } from './engine.ts';
import { createQuarantine } from './quarantine.ts';
import type { Batch, Quarantine } from './quarantine.ts';
import type { Room, Wish } from './room.ts';

/** One line on its way to an answer. */
export interface Suspect {
  /** Its attempt ended as if the engine had died of it. May take a moment, in which the place stays taken. */
  fell(engine: Engine): Promise<void>;
  /** A place for the next attempt: a suspect's is in quarantine. Null when stopped, or blamed. */
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
  of(jobId: string, line: number, wish: Wish): Suspect;
  /** Whether a line has to be sent in quarantine. */
  isCharged(jobId: string, line: number): boolean;
  /** An engine's breaker opened. */
  died(engine: Engine): void;
  close(): void;
}

export function createSuspects({ room, clock }: { room: Room; clock: Clock }): Suspects {
  const closed = new AbortController();
  const charges = createCharges(clock);
  const deaths = createDeaths(clock);
  const parts = { room, charges, deaths, quarantine: createQuarantine(room, clock, closed.signal) };
  return {
    of: (jobId, line, wish) => new SuspectLine(parts, jobId, line, wish),
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
  #batch: Batch | null = null;

  constructor(parts: Parts, jobId: string, line: number, wish: Wish) {
    this.#parts = parts;
    this.#jobId = jobId;
    this.#line = line;
    this.#wish = wish;
  }

  get blame(): number {
    const charge = this.#parts.charges.find(this.#jobId, this.#line);
    return charge?.isBlamed === true ? charge.deaths : 0;
  }

  async fell(engine: Engine): Promise<void> {
    const { charges, deaths } = this.#parts;
    const wasAlone = this.#batch?.inside === 1;
    // Few lines make few failures: waiting for as many as open the breaker would take them several attempts each.
    if (this.#batch !== null && !engine.isOpen) await engine.doubt();
    deaths.fell(engine, charges.of(this.#jobId, this.#line), wasAlone);
  }

  async take(stop: AbortSignal): Promise<Engine | null> {
    const { room, charges, quarantine } = this.#parts;
    this.#leave();
    const wish = this.#wish;
    const charge = charges.find(this.#jobId, this.#line);
    // One that has the whole process for itself is isolated enough.
    const isFree = !isCharged(charge) || (wish.pass ?? null) !== null;
    if (isFree) return room.take(wish, stop);
    if (charge.isBlamed) return null;
    const batch = await quarantine.enter({ wish, most: () => mostBeside(charge) }, stop);
    if (batch === null) return null;
    this.#batch = batch;
    wish.pass = batch;
    return room.take(wish, stop);
  }

  left(isAnswered: boolean): void {
    this.#leave();
    if (isAnswered) this.#parts.charges.forget(this.#jobId, this.#line);
  }

  #leave(): void {
    if (this.#batch === null) return;
    this.#parts.quarantine.leave(this.#batch);
    this.#batch = null;
    this.#wish.pass = null;
  }
}
