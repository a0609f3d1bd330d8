import { BLOCK_MS, blockOf, CATCH_UP_MS } from '../domain/rate-limit.ts';
import type { Draw, Drawn } from '../domain/rate-limit.ts';
import type { Clock } from './clock.ts';

/** Draws units of a shared bucket. It may take as long as the store is away; the same `op` again draws nothing anew. */
export type DrawUnits = (
  name: string,
  op: string,
  perSecond: number,
  units: Draw,
) => Promise<Pick<Drawn, 'granted' | 'waitMs'>>;

export interface TapOptions {
  name: string;
  perSecond: number;
  clock: Clock;
  draw: DrawUnits;
  newOp: () => string;
  /** There is more in hand. */
  onUnits: () => void;
  onError: (error: unknown) => void;
}

/** Draws on their way at once: with a store that is far away the rate would else be one block a journey. */
const MOST_FLIGHTS = 16;
const RETRY_MS = 1_000;
/** Another process may give units back long before they would have flown in. */
const LONGEST_WAIT_MS = 1_000;

/**
 * What this process has in hand of one shared bucket. Draws blocks ahead of those who need them while somebody does,
 * further the longer a draw takes, so that the way to the store does not lower the rate; gives back what nobody needs.
 */
export class Tap {
  readonly #options: TapOptions;
  readonly #block: number;
  #units = 0;
  #waiting = 0;
  /** Units that were asked for and are on their way. */
  #coming = 0;
  #flights = 0;
  #journeyMs = 0;
  #usedAt = -Infinity;
  /** The shared bucket may hold units back for this process. */
  #wasAtWork = false;
  /** Before that a draw would find the bucket empty. */
  #notBefore = 0;
  /** When the next step is due, and how to call it off. */
  #due = Infinity;
  #cancel: (() => void) | null = null;
  #isClosed = false;

  constructor(options: TapOptions) {
    this.#options = options;
    this.#block = blockOf(options.perSecond);
  }

  /** Units in hand; below zero after more was used than reserved. */
  get units(): number {
    return this.#units;
  }

  /** Units that those who wait need, all together. */
  get awaited(): number {
    return this.#waiting;
  }

  /** Nobody has wanted anything for a while, and nothing is in hand or on its way. */
  get isIdle(): boolean {
    return this.#units === 0 && this.#flights === 0 && !this.#isActive();
  }

  /** Takes units that are in hand. */
  take(units: number): void {
    this.#units -= units;
    this.#usedAt = this.#options.clock.now();
    this.#plan();
  }

  /** Takes back what was not used; below zero: more was used than taken. */
  give(units: number): void {
    this.#units += units;
    this.#plan();
  }

  /** Somebody begins to wait for so many units, or (below zero) waits no more. */
  wait(units: number): void {
    this.#waiting += units;
    this.#plan();
  }

  close(): void {
    this.#isClosed = true;
    this.#cancel?.();
  }

  #isActive(): boolean {
    return this.#waiting > 0 || this.#options.clock.now() - this.#usedAt < BLOCK_MS;
  }

  /** Units that should be in hand. */
  #target(): number {
    if (!this.#isActive()) return 0;
    const onTheWay = Math.floor((this.#journeyMs * this.#options.perSecond) / 1_000);
    return this.#waiting + this.#block + onTheWay;
  }

  /** Units worth a draw now: for whoever waits each, ahead of need not less than half a block. */
  #missing(): number {
    const want = Math.ceil(this.#target() - this.#units - this.#coming);
    const isUrgent = this.#waiting > this.#units + this.#coming;
    return want >= (isUrgent ? 1 : Math.max(1, this.#block / 2)) ? want : 0;
  }

  #plan(): void {
    if (this.#isClosed) return;
    const { clock } = this.#options;
    const now = clock.now();
    let next = Infinity;
    if (this.#missing() > 0 && this.#flights < MOST_FLIGHTS) next = Math.max(now, this.#notBefore);
    else if (this.#units !== 0 || this.#wasAtWork || this.#isActive()) next = now + BLOCK_MS;
    if (next >= this.#due) return;
    this.#cancel?.();
    this.#cancel = null;
    this.#due = next;
    if (next <= now) this.#step();
    else this.#cancel = clock.after(next - now, () => this.#step());
  }

  #step(): void {
    this.#due = Infinity;
    // A debt is everybody's: the shared bucket has to know of it.
    const back = this.#units < 0 ? this.#units : Math.max(0, this.#units - this.#target());
    this.#units -= back;
    const mayDraw = this.#options.clock.now() >= this.#notBefore && this.#flights < MOST_FLIGHTS;
    const want = mayDraw ? this.#missing() : 0;
    const comesToRest = !this.#isActive() && this.#wasAtWork;
    if (want > 0 || back !== 0 || comesToRest) void this.#fly(want, back);
    this.#plan();
  }

  async #fly(want: number, back: number): Promise<void> {
    const { clock, newOp, onUnits } = this.#options;
    const begun = clock.now();
    const coming = Math.min(want, this.#block);
    const need = this.#waiting > 0 ? 'awaited' : this.#isActive() ? 'ahead' : 'none';
    this.#wasAtWork = need !== 'none';
    this.#coming += coming;
    this.#flights += 1;
    if (want > 0) this.#notBefore = begun + BLOCK_MS / 2;
    const { granted, waitMs } = await this.#draw(newOp(), { want, back, need });
    const now = clock.now();
    this.#journeyMs = Math.min(CATCH_UP_MS, Math.max(now - begun, this.#journeyMs * 0.8));
    this.#units += granted;
    this.#coming -= coming;
    this.#flights -= 1;
    // Processes that came in step would be served in the same order each time.
    const jitterMs = (clock.random() * BLOCK_MS) / 4;
    if (want > 0) this.#notBefore = now + (waitMs && Math.min(waitMs, LONGEST_WAIT_MS) + jitterMs);
    else if (back > 0) this.#notBefore = now;
    if (granted > 0) onUnits();
    this.#plan();
  }

  /** Under one op until it is answered: nobody knows whether a draw that failed was made. */
  async #draw(op: string, load: Draw): Promise<Pick<Drawn, 'granted' | 'waitMs'>> {
    const { name, perSecond, clock, draw, onError } = this.#options;
    for (;;) {
      try {
        return await draw(name, op, perSecond, load);
      } catch (error) {
        onError(error);
        if (this.#isClosed) return { granted: 0, waitMs: 0 };
        await new Promise<void>((resolve) => {
          clock.after(RETRY_MS, resolve);
        });
      }
    }
  }
}
