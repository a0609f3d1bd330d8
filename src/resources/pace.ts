import { createHash, randomUUID } from 'node:crypto';
import type { Bucket, Draw, Drawn } from '../domain/rate-limit.ts';
import type { CallPurpose, Pace } from './lease-contract.ts';

/**
 * Draws units of a token bucket that all processes share. Units that come back may be below zero: the level then goes
 * below zero, too, and whoever draws has to wait until it is above again.
 */
export type DrawUnits = (
  name: string,
  op: string,
  perSecond: number,
  units: Draw,
) => Promise<Drawn & { bucket: Pick<Bucket, 'level'> }>;

/** How often a credential may be used. */
export interface PaceLimits {
  callsPerSecond: number;
  /** Calls that go at once after a rest, where the provider counts by the minute or longer; missing: one. */
  callsAtOnce?: number;
  /** Creates, each of which is a call besides; null: as often as other calls. */
  createsPerSecond: number | null;
  /** Releases, where the provider counts by the minute or longer and so bears some at once; missing: as other calls. */
  releasesPerSecond?: number;
}

export interface PaceOptions {
  /** Name of the credential's buckets, as `bucketName` makes it. */
  name: string;
  /** As they are known now; whether releases have a rate of their own must not change. */
  limits: () => PaceLimits;
  draw: DrawUnits;
  /** ms that never go backwards. */
  now?: () => number;
  /** Runs a task later; the function that it gives calls it off. */
  after?: (ms: number, task: () => void) => () => void;
}

/** Names a credential without giving it away. */
export function bucketName(provider: string, credential: string): string {
  const print = createHash('sha256').update(credential).digest('hex').slice(0, 16);
  return `provider:${provider}:${print}`;
}

const RANK: Record<CallPurpose, number> = { release: 0, look: 1, create: 2, catalog: 3 };

const BEFORE_LOOKS = (RANK.release + RANK.look) / 2;

/**
 * Who was refused comes again when the next unit has flowed in, and so much later a rank: of processes that wait, the
 * one with the more pressing purpose, or that was refused more often, is there first.
 */
const LAG_MS = 20;

/**
 * Looks come without end where many machines boot: who has waited so long a rank goes with them, in order of arrival.
 */
const AGED_MS = 3_000;

interface Waiter {
  purpose: CallPurpose;
  since: number;
  /** How often it was first in line and found the bucket empty. */
  refusals: number;
  resolve: () => void;
  reject: (error: unknown) => void;
}

/**
 * Holds calls back until the credential may be used for them. In this process a release goes before a look, that
 * before a create, and that before the catalog; of one purpose the first goes first. A create or a catalog that has
 * waited for some seconds counts as a look.
 *
 * A bucket knows no purposes, so a release does not draw what is in it: it takes the next unit that will flow in,
 * leaving the level below zero, and waits for that. Other purposes, in whichever process, find the bucket empty until
 * then: a release waits for other releases only. With a rate of their own, releases have a bucket of their own.
 *
 * Rejects with the signal's reason, or with what `draw` failed with, for all who wait then.
 */
export function createPace(options: PaceOptions): Pace {
  const line = new Line(options);
  const { releasesPerSecond } = options.limits();
  if (releasesPerSecond === undefined) return async (purpose, signal) => line.wait(purpose, signal);
  const limits = { callsPerSecond: releasesPerSecond, createsPerSecond: null };
  const name = `${options.name}:releases`;
  const releases = new Line({ ...options, name, limits: () => limits });
  return async (purpose, signal) => (purpose === 'release' ? releases : line).wait(purpose, signal);
}

/** Those who wait in this process, and what draws for them: one draw at a time, for the first. */
class Line {
  readonly #options: PaceOptions;
  readonly #now: () => number;
  readonly #waiting: Waiter[] = [];
  /** Before that there is no unit for a create. */
  #createsFrom = -Infinity;
  #isDrawing = false;
  /** What went last. */
  #last: CallPurpose | null = null;
  /** What is paused for, and how to end it; null: no pause, or one that nobody may end. */
  #pause: { rank: number; end: () => void } | null = null;

  constructor(options: PaceOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  async wait(purpose: CallPurpose, signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<undefined>();
    const waiter: Waiter = {
      purpose,
      since: this.#now(),
      refusals: 0,
      resolve: () => resolve(undefined),
      reject,
    };
    const leave = (): void => {
      this.#remove(waiter);
      reject(signal?.reason);
      this.#pause?.end();
    };
    signal?.addEventListener('abort', leave, { once: true });
    this.#waiting.push(waiter);
    if (this.#pause !== null && RANK[purpose] < this.#pause.rank) this.#pause.end();
    if (!this.#isDrawing) void this.#serveAll();
    try {
      await promise;
    } finally {
      signal?.removeEventListener('abort', leave);
    }
  }

  async #serveAll(): Promise<void> {
    this.#isDrawing = true;
    try {
      while (this.#waiting.length > 0) {
        const first = this.#first();
        if (first === undefined) await this.#rest(this.#createsFrom - this.#now(), Infinity);
        else if (first.purpose === 'release') await this.#reserve();
        else await this.#take(first);
      }
    } catch (error) {
      for (const waiter of this.#waiting.splice(0)) waiter.reject(error);
    } finally {
      this.#isDrawing = false;
    }
  }

  /** Takes the unit that flows in next and waits for it. */
  async #reserve(): Promise<void> {
    const { callsPerSecond } = this.#options.limits();
    const { bucket } = await this.#drawCalls({ want: 0, back: -1, need: 'ahead' });
    // Even if whoever wanted it leaves: what is given back now could be drawn beside the units of later releases.
    await this.#sleep((-bucket.level * 1_000) / callsPerSecond);
    await this.#hand();
  }

  /** Takes a unit if there is one, and else waits until there may be. */
  async #take(first: Waiter): Promise<void> {
    const { granted, waitMs } = await this.#drawCalls({ want: 1, back: 0, need: 'ahead' });
    if (granted === 0) {
      await this.#rest(waitMs + lagOf(first), RANK[first.purpose]);
      return;
    }
    const isUsed = await this.#hand();
    if (!isUsed) await this.#drawCalls({ want: 0, back: 1, need: 'none' });
  }

  /** Gives a call's unit to the first who can use it now; false where nobody can. */
  async #hand(): Promise<boolean> {
    for (let first = this.#first(); first !== undefined; first = this.#first()) {
      // A create's own unit is drawn last, because all creates keep their distance from when it was.
      if (first.purpose === 'create' && !(await this.#drawCreate(first))) continue;
      if (!this.#remove(first)) continue; // it left meanwhile
      this.#last = first.purpose;
      first.resolve();
      return true;
    }
    return false;
  }

  #remove(waiter: Waiter): boolean {
    const at = this.#waiting.indexOf(waiter);
    if (at !== -1) this.#waiting.splice(at, 1);
    return at !== -1;
  }

  async #drawCreate(first: Waiter): Promise<boolean> {
    const { name, limits, draw } = this.#options;
    const { createsPerSecond: rate } = limits();
    if (rate === null) return true;
    const units: Draw = { want: 1, back: 0, need: 'ahead' };
    const { granted, waitMs } = await draw(`${name}:creates`, randomUUID(), rate, units);
    if (granted === 0) this.#createsFrom = this.#now() + waitMs + lagOf(first);
    return granted > 0;
  }

  async #drawCalls(units: Draw): ReturnType<DrawUnits> {
    const { name, limits, draw } = this.#options;
    const { callsPerSecond, callsAtOnce = 1 } = limits();
    const most = Math.max(1, callsAtOnce);
    return draw(`${name}:calls`, randomUUID(), callsPerSecond, { ...units, most });
  }

  /** After a look a create goes first: it bears to wait for seconds only, and looks come without end. */
  #rankOf(purpose: CallPurpose): number {
    return purpose === 'create' && this.#last === 'look' ? BEFORE_LOOKS : RANK[purpose];
  }

  /** The next one, by purpose and then by turn; undefined where only creates wait and have to. */
  #first(): Waiter | undefined {
    const now = this.#now();
    let found: { waiter: Waiter; rank: number } | undefined;
    for (const waiter of this.#waiting) {
      if (waiter.purpose === 'create' && now < this.#createsFrom) continue;
      const own = this.#rankOf(waiter.purpose);
      const isAged = now - waiter.since >= AGED_MS * (own - RANK.look);
      const rank = isAged ? Math.min(own, RANK.look) : own;
      if (found === undefined || rank < found.rank) found = { waiter, rank };
    }
    return found?.waiter;
  }

  /** Waits, but no longer than until somebody comes who goes before that rank, or somebody leaves. */
  async #rest(ms: number, rank: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<undefined>();
    const end = (): void => resolve(undefined);
    const cancel = this.#after(ms, end);
    this.#pause = { rank, end };
    await promise;
    this.#pause = null;
    cancel();
  }

  async #sleep(ms: number): Promise<void> {
    if (ms <= 0) return;
    const { promise, resolve } = Promise.withResolvers<undefined>();
    this.#after(ms, () => resolve(undefined));
    await promise;
  }

  #after(ms: number, task: () => void): () => void {
    const { after } = this.#options;
    if (after !== undefined) return after(ms, task);
    const timer = setTimeout(task, Math.max(0, Math.ceil(ms)));
    return () => clearTimeout(timer);
  }
}

function lagOf(waiter: Waiter): number {
  const lag = (LAG_MS * RANK[waiter.purpose]) / (1 + waiter.refusals);
  waiter.refusals += 1;
  return lag;
}
