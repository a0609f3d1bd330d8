import type { Clock } from './clock.ts';
import type { EngineMetrics } from './engine-metrics.ts';
import { rejectWindow, startWindow, stepWindow } from './window.ts';
import type { WindowRules, WindowSample, WindowState } from './window.ts';

/** What one process saw at an engine since it last said so: sums, so that those of several processes add up. */
export interface EngineTally {
  elapsedMs: number;
  answered: number;
  outputTokens: number;
  /** Sums over the answers: of all, and of those that generated tokens. */
  latencyMs: number;
  generatingMs: number;
  rejected: number;
  timedOut: number;
  /** Lines in flight at its end. */
  inFlight: number;
  /** Lines waited for a place. */
  wasFull: boolean;
}

/** How a process stands among those that send to the same engine. */
export interface EngineShare {
  /** Those that send to it, this one included. */
  processes: number;
  /** How many of them came before this one; the first steers the window for all. */
  rank: number;
  /** Lines in flight that all together may have, as whoever leads said last; null: nobody has yet. */
  limit: number | null;
  /** What the others saw since the last call. */
  others: readonly EngineTally[];
}

/** Tells the others what this process saw, and what it decided where it leads (else null). */
export type ShareEngine = (
  address: string,
  tally: EngineTally,
  limit: number | null,
) => Promise<EngineShare>;

/** How many lines may be in flight at an engine: one window for all processes that send to it, divided among them. */
export interface EngineWindow {
  /** Lines in flight that this process may have; 0 where others have all. */
  readonly limit: number;
  /** This process's part of so many that all who send there may have together. */
  part(count: number): number;
  /** Processes that send there. */
  readonly processes: number;
  answered(latencyMs: number, outputTokens: number): void;
  /** The engine said that it has enough: 429 or 503. */
  rejected(): void;
  timedOut(): void;
  /** A line found no place. */
  wasFull(): void;
  close(): void;
}

interface WindowOptions {
  address: string;
  clock: Clock;
  /** By what the jobs at the engine want at this moment. */
  rules: () => WindowRules;
  inFlight: () => number;
  /** Lines of some job are to be sent there. */
  isUsed: () => boolean;
  /** Processes that may send there, until they have told each other that they do. */
  processes: () => number;
  /** Null where the engine has none. */
  readMetrics: () => Promise<EngineMetrics | null>;
  share: ShareEngine;
  /** More may be sent, or less. */
  onChange: () => void;
  onError: (error: unknown) => void;
}

const STEP_MS = 500;

function emptyTally(): EngineTally {
  return {
    elapsedMs: 0,
    answered: 0,
    outputTokens: 0,
    latencyMs: 0,
    generatingMs: 0,
    rejected: 0,
    timedOut: 0,
    inFlight: 0,
    wasFull: false,
  };
}

/** Steers the window of one engine twice a second while lines are sent there. */
export function createEngineWindow(options: WindowOptions): EngineWindow {
  const { clock, rules } = options;
  let tally = emptyTally();
  const steering = createSteering(options, () => {
    const taken = { ...tally, inFlight: options.inFlight() };
    tally = emptyTally();
    return taken;
  });
  let isClosed = false;
  let cancel = clock.after(0, () => void step());

  async function step(): Promise<void> {
    try {
      // A process whose part is none has to stay among those that wait for one.
      if (steering.isNew || options.isUsed()) await steering.step();
    } catch (error) {
      // Alone or with others, it goes on with what it knows; the next step is due in a moment.
      options.onError(error);
    }
    if (!isClosed) cancel = clock.after(STEP_MS, () => void step());
  }

  return {
    get limit() {
      return steering.part(steering.state.limit);
    },
    part: (count) => steering.part(count),
    get processes() {
      return steering.processes;
    },
    answered(latencyMs, outputTokens) {
      tally.answered += 1;
      tally.latencyMs += latencyMs;
      if (outputTokens === 0) return;
      tally.outputTokens += outputTokens;
      tally.generatingMs += latencyMs;
    },
    rejected() {
      tally.rejected += 1;
      // At once, because hundreds may follow before the next step.
      steering.state = rejectWindow(
        steering.state,
        options.inFlight() * steering.processes,
        rules(),
      );
    },
    timedOut() {
      tally.timedOut += 1;
    },
    wasFull() {
      tally.wasFull = true;
    },
    close() {
      isClosed = true;
      cancel();
    },
  };
}

interface Steering {
  state: WindowState;
  readonly processes: number;
  part(count: number): number;
  /** Nobody has told how it stands here yet. */
  readonly isNew: boolean;
  step(): Promise<void>;
}

function createSteering(
  { address, clock, rules, ...options }: WindowOptions,
  takeTally: () => EngineTally,
): Steering {
  let since = clock.now();
  let others: readonly EngineTally[] = [];
  let rank = 0;
  let isNew = true;
  let processes = options.processes();

  async function lead(own: EngineTally): Promise<number> {
    const metrics = await options.readMetrics();
    steering.state = stepWindow(steering.state, sampleOf([own, ...others], metrics), rules());
    return steering.state.limit;
  }

  /** Takes over what was learned where somebody else leads, or did before this process came. */
  function follow(limit: number | null, rankNow: number): void {
    if (limit === null || (rank === 0 && rankNow === 0 && !isNew)) return;
    steering.state = startWindow({ ...rules(), start: limit });
  }

  const steering: Steering = {
    state: startWindow(rules()),
    get processes() {
      return processes;
    },
    get isNew() {
      return isNew;
    },
    part(count) {
      // Until the others are known, what is left over is nobody's.
      const isAmongFirst = !isNew && rank < count % processes;
      return Math.floor(count / processes) + (isAmongFirst ? 1 : 0);
    },
    async step() {
      const now = clock.now();
      const own = { ...takeTally(), elapsedMs: now - since };
      since = now;
      // Without a job there is nothing to learn from.
      const mayLead = rank === 0 && !isNew && options.isUsed();
      const limit = mayLead ? await lead(own) : null;
      const share = await options.share(address, own, limit);
      ({ processes, others } = share);
      follow(share.limit, share.rank);
      ({ rank } = share);
      isNew = false;
      options.onChange();
    },
  };
  return steering;
}

function sampleOf(tallies: readonly EngineTally[], metrics: EngineMetrics | null): WindowSample {
  const sum = emptyTally();
  for (const each of tallies) {
    sum.elapsedMs = Math.max(sum.elapsedMs, each.elapsedMs);
    sum.answered += each.answered;
    sum.outputTokens += each.outputTokens;
    sum.latencyMs += each.latencyMs;
    sum.generatingMs += each.generatingMs;
    sum.rejected += each.rejected;
    sum.timedOut += each.timedOut;
    sum.inFlight += each.inFlight;
    sum.wasFull ||= each.wasFull;
  }
  const { elapsedMs, answered, outputTokens, rejected, timedOut, inFlight, wasFull } = sum;
  return {
    elapsedMs,
    answered,
    outputTokens,
    latencyPerTokenMs: outputTokens === 0 ? null : sum.generatingMs / outputTokens,
    meanLatencyMs: answered === 0 ? null : sum.latencyMs / answered,
    rejected,
    timedOut,
    wasFull,
    inFlight,
    metrics,
  };
}
