import { EMPTY_LOOK } from './window-look.ts';
import type { Look, Rate } from './window-look.ts';

/** Within what a window moves, and how fast. */
export interface WindowRules {
  /** The limit never leaves these two. */
  readonly least: number;
  readonly most: number;
  readonly start: number;
  /** Lines by which the limit grows again after the engine refused some; twice as many at each further step. */
  readonly additiveIncrease: number;
  /** Answers that must have come before the limit grows, where only answers tell how the engine is. */
  readonly healthyWindow: number;
}

/** What happened at an engine since the last sample, over all processes that send to it. */
export interface WindowSample {
  readonly elapsedMs: number;
  readonly answered: number;
  /** Of those answers. */
  readonly outputTokens: number;
  /** Their latencies over their tokens, and over their number. */
  readonly latencyPerTokenMs: number | null;
  readonly meanLatencyMs: number | null;
  /** 429 and 503. */
  readonly rejected: number;
  readonly timedOut: number;
  /** The window, not a lack of lines, was the limit. */
  readonly wasFull: boolean;
  /** At this moment. */
  readonly inFlight: number;
  /** What vLLM's `/metrics` says; null where there is none. */
  readonly metrics: {
    readonly running: number;
    readonly waiting: number;
    /** 0 to 1. */
    readonly kvUse: number;
    /** Since the last sample. */
    readonly preemptions: number;
    /** Tokens generated since the last sample. */
    readonly generationTokens: number;
  } | null;
}

/** A limit at which the engine refused lines. */
export interface Ceiling {
  readonly limit: number;
  /** The limit before the first of the refusals. */
  readonly proven: number;
  /** Without a refusal so long, and so many answers came meanwhile. */
  readonly quietMs: number;
  readonly healthy: number;
  /** How long it must be quiet before the ceiling is lifted, and by how much. */
  readonly waitMs: number;
  readonly lift: number;
}

export interface Best {
  readonly limit: number;
  readonly rate: Rate | null;
  /** Lines that ran there while others waited in the engine: more in flight would only wait. Null: none waited. */
  readonly running: number | null;
}

export interface WindowState {
  /** Lines that may be in flight at the engine: whole, from `least` to `most`. */
  readonly limit: number;
  /** `start` doubles while that pays; `climb` holds the best limit known and tries its neighbours. */
  readonly phase: 'start' | 'climb';
  readonly best: Best;
  /** At the start, what arrived in the round before. */
  readonly arrival: Rate | null;
  /** 0: the limit is the best one; else a neighbour of it is tried, that way. */
  readonly probe: -1 | 0 | 1;
  readonly next: -1 | 1;
  /** The nearest limits below and above the best one that are known to be worse; null: none is. */
  readonly low: number | null;
  readonly high: number | null;
  /** How far away a neighbour is tried where none is known, as a ratio. */
  readonly stride: number;
  /** Until neighbours are tried again, and how long that was last. */
  readonly restMs: number;
  readonly pauseMs: number;
  /** The neighbour that the limit is on its way to, in small steps; null: it is there. */
  readonly goal: number | null;
  /** Until what is seen belongs to this limit. */
  readonly settleMs: number;
  readonly look: Look;
  /** Samples in a row in which the engine had more waiting than it needs. */
  readonly queued: number;
  /** Answers at all. */
  readonly answered: number;
  /** Smoothed; null before the first answer. */
  readonly latencyMs: number | null;
  readonly ceiling: Ceiling | null;
  /** Refusals since the last sample that `rejectWindow` has acted on, and how low they may bring the limit. */
  readonly refused: number;
  readonly floor: number;
}

/** Nearer than this, as a ratio, no neighbour is tried. */
export const NEAREST = 1.08;
const FIRST_STRIDE = 1.5;
export const REST_MS = 15_000;
/** What is known of an engine of which nothing is. */
export const AFRESH = {
  low: null,
  high: null,
  stride: FIRST_STRIDE,
  restMs: 0,
  pauseMs: REST_MS,
} as const;

export function clamp(
  limit: number,
  { least, most }: WindowRules,
  ceiling: Ceiling | null,
): number {
  const highest = Math.min(most, ceiling?.limit ?? most);
  return Math.max(1, least, Math.min(highest, Math.floor(limit)));
}

/** What is seen next belongs to the old limit still: half a latency where the engine counts for itself, else a whole. */
export function settled(state: WindowState, limit: number): WindowState {
  const latency = state.latencyMs ?? 0;
  const isCounted = state.look.engineTokens > 0 || state.best.rate?.unit === 'engine tokens';
  const settleMs = isCounted ? within(latency / 4, 500, 1_500) : within(1.5 * latency, 500, 6_000);
  return { ...state, limit, goal: null, settleMs, look: EMPTY_LOOK, queued: 0 };
}

/** Of the limit, by how much it grows in a step where the engine has refused lines before. */
const CAREFULLY = 1 / 128;

/**
 * A step towards a higher limit. Where the engine has refused lines before, it may be just below what it takes: a jump
 * would have everything above that refused, a small step only what is in it.
 */
export function nearer(state: WindowState, goal: number, rules: WindowRules): WindowState {
  const step = Math.max(rules.additiveIncrease, Math.ceil(state.limit * CAREFULLY));
  const limit = state.ceiling === null ? goal : Math.min(goal, state.limit + step);
  const next = settled(state, limit);
  return limit < goal ? { ...next, goal } : next;
}

export function within(value: number, low: number, high: number): number {
  return Math.min(high, Math.max(low, value));
}

/** What may wait in the engine so that none of its seats is empty while an answer is on its way to us. */
function spare(running: number): number {
  return Math.max(8, Math.ceil(running / 4));
}

/** By half at most: how many run is a moment's picture. */
export function trimmedTo(running: number, limit: number): number {
  return Math.min(limit, Math.max(running + spare(running), Math.ceil(limit / 2)));
}

export function isQueued({ metrics }: WindowSample): boolean {
  return metrics !== null && metrics.waiting > spare(metrics.running);
}

export function enterClimb(
  state: WindowState,
  limit: number,
  next: -1 | 1,
  rules: WindowRules,
): WindowState {
  const whole = clamp(limit, rules, state.ceiling);
  const best =
    whole === state.best.limit ? state.best : { limit: whole, rate: null, running: null };
  return settled({ ...state, phase: 'climb', probe: 0, best, next }, whole);
}
