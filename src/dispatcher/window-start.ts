import { addSample, arrivalRate, EMPTY_LOOK, gain, rateOf } from './window-look.ts';
import type { Rate } from './window-look.ts';
import { clamp, enterClimb, isQueued, trimmedTo, within } from './window-state.ts';
import type { Best, WindowRules, WindowSample, WindowState } from './window-state.ts';

/** Where neither metrics nor answers tell anything yet, the limit grows no further than this. */
const MOST_BLIND = 64;
const DOUBLING_MS = 500;
/** The growth of the rate that a doubled limit must bring to be doubled again. */
const WORTH_DOUBLING = 1.1;
/** An engine whose own count says nothing for so long has all that it can do. */
const LONGEST_LEVEL_MS = 5_000;
const SMALLEST_GROWTH = 1.25;
/** Below this share of the round before, a round need not be over to be the last. */
const ROUND_WORSE = 0.9;
const UNKNOWN: Best = { limit: 0, rate: null, running: null };

/** One step of the start: ends in the climb, from the best limit so far. */
export function start(state: WindowState, sample: WindowSample, rules: WindowRules): WindowState {
  if (!sample.wasFull) return { ...state, look: EMPTY_LOOK };
  const queued = isQueued(sample) ? state.queued + 1 : 0;
  const { metrics } = sample;
  if (metrics !== null && queued >= 2) return full({ ...state, queued }, sample, rules);
  if (queued > 0) return { ...state, queued };
  const isOver = state.limit >= rules.most || (metrics !== null && metrics.preemptions > 0);
  return isOver ? enterClimb(state, state.limit, -1, rules) : look(state, sample, rules);
}

/** By the engine's own count; else by answers; else by nothing. */
function look(state: WindowState, sample: WindowSample, rules: WindowRules): WindowState {
  const { metrics } = sample;
  // Even a sample in which it generated nothing: a step of an engine that has too much takes seconds.
  if (metrics !== null && (metrics.running > 0 || metrics.generationTokens > 0)) {
    return level(state, sample, rules);
  }
  const seen = { ...state, look: addSample(state.look, sample) };
  return state.answered === 0 ? blind(seen, sample, rules) : round(seen, sample, rules);
}

/** The engine has all the lines that it takes and some more. */
function full(state: WindowState, sample: WindowSample, rules: WindowRules): WindowState {
  const running = sample.metrics?.running ?? 0;
  return enterClimb(state, trimmedTo(running, state.limit), -1, rules);
}

/** Before the first answer there is nothing to judge by but that the engine admits all it gets. */
function blind(state: WindowState, sample: WindowSample, rules: WindowRules): WindowState {
  const factor = 2 ** (Math.min(sample.elapsedMs, DOUBLING_MS) / DOUBLING_MS);
  const most = sample.metrics === null ? MOST_BLIND : rules.most;
  const limit = clamp(Math.max(state.limit, Math.min(most, state.limit * factor)), rules, null);
  return { ...state, limit };
}

/** The engine counts its tokens as it generates them: each limit is looked at for a moment, then doubled. */
function level(state: WindowState, sample: WindowSample, rules: WindowRules): WindowState {
  if (state.settleMs > 0) return { ...state, settleMs: state.settleMs - sample.elapsedMs };
  const look = addSample(state.look, sample);
  if (look.ms < DOUBLING_MS * 0.8) return { ...state, look };
  const rate = rateOf(look);
  if (rate?.unit !== 'engine tokens') {
    return look.ms < LONGEST_LEVEL_MS
      ? { ...state, look }
      : enterClimb(state, state.limit, -1, rules);
  }
  const grown = gain(rate, state.best.rate);
  if (grown === null || grown >= worth(state)) return grow({ ...state, look }, rate, grown, rules);
  // One bad moment may be a burst of prompts: look longer before the start is over.
  if (look.ms < 3 * DOUBLING_MS) return { ...state, look };
  const { limit, best } = state;
  const known =
    grown > 1
      ? { ...state, look, best: { limit, rate, running: null }, low: best.limit }
      : { ...state, look, high: limit };
  return enterClimb(known, known.best.limit, 1, rules);
}

/** The less the last growth brought, the smaller the next: a thrashing engine takes long to empty again. */
function factorAfter(grown: number | null): number {
  return grown === null ? 2 : within(grown, SMALLEST_GROWTH, 2);
}

/** What growing from the limit before to this one must have brought. */
function worth({ limit, best }: WindowState): number {
  return 1 + (WORTH_DOUBLING - 1) * Math.log2(Math.max(1, limit / best.limit));
}

function grow(
  state: WindowState,
  rate: Rate | null,
  grown: number | null,
  rules: WindowRules,
): WindowState {
  const limit = clamp(Math.ceil(state.limit * factorAfter(grown)), rules, state.ceiling);
  const best = { limit: state.limit, rate, running: null };
  return { ...state, limit, best, look: EMPTY_LOOK, settleMs: DOUBLING_MS / 4 };
}

/** Only answers tell: the limit grows by one with each, so it doubles with each round of them, while rounds get richer. */
function round(state: WindowState, sample: WindowSample, rules: WindowRules): WindowState {
  const { look } = state;
  const { limit: begun } = state.best;
  const rate = rateOf(look);
  const arrival = arrivalRate(look);
  const richer = lower(gain(rate, state.best.rate), gain(arrival, state.arrival));
  const isOver = look.answered >= Math.max(begun, rules.healthyWindow);
  const isWorse = richer < ROUND_WORSE && look.answered >= begun / 4;
  const limit = clamp(state.limit + sample.answered, rules, state.ceiling);
  if (!isOver && !isWorse) {
    const isRicher = richer >= WORTH_DOUBLING || look.answered < begun / 4;
    return isRicher
      ? { ...state, limit: Math.min(limit, Math.max(state.limit, 2 * begun)) }
      : state;
  }
  if (richer < WORTH_DOUBLING) {
    // What was measured before was measured while the limit grew to this one.
    const at = richer > 1 ? begun : Math.ceil(begun / Math.SQRT2);
    return enterClimb({ ...state, best: UNKNOWN }, at, richer > 1 ? 1 : -1, rules);
  }
  return { ...state, limit, best: { limit, rate, running: null }, arrival, look: EMPTY_LOOK };
}

/** The one is late, the other coarse; where neither is known, nothing speaks against growing. */
function lower(a: number | null, b: number | null): number {
  return Math.min(a ?? Infinity, b ?? Infinity);
}
