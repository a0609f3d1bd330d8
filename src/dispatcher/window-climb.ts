import { addSample, arrivalRate, EMPTY_LOOK, gain, rateOf } from './window-look.ts';
import type { Rate } from './window-look.ts';
import {
  AFRESH,
  clamp,
  isQueued,
  NEAREST,
  nearer,
  REST_MS,
  settled,
  trimmedTo,
  within,
} from './window-state.ts';
import type { WindowRules, WindowSample, WindowState } from './window-state.ts';

/** After a rest, neighbours are tried at this distance. */
const SMALL_STRIDE = 1.12;
/** A neighbour must be better by this share: less is noise. */
const WORTH_MOVING = 1.012;
/** A rate that moved so far from what it was is another engine: what was known of neighbours is void. */
const OTHER_WEATHER = 1.3;
/** Most often it is best where it was. */
const OTHER_STRIDE = 1.2;
/** A neighbour so bad is left before its look is over; worse still, before that begins. */
const HOPELESS = 0.8;
const CLIFF = 0.4;
const HOPELESS_MS = 1_000;
const LONGEST_REST_MS = 60_000;

/** One step of holding the best limit known and trying its neighbours. */
export function climb(state: WindowState, sample: WindowSample, rules: WindowRules): WindowState {
  if (!sample.wasFull) return { ...state, look: EMPTY_LOOK };
  const queued = isQueued(sample) ? state.queued + 1 : 0;
  const next = { ...state, look: addSample(state.look, sample), queued };
  if (state.settleMs > 0) return settle(next, sample, rules);
  if (!isEnough(next) && !isMuchWorse(next, HOPELESS)) return next;
  const rate = rateOf(next.look);
  if (rate === null) return { ...next, look: EMPTY_LOOK };
  return state.probe === 0 ? hold(next, rate, rules) : judge(next, rate, rules);
}

function settle(state: WindowState, sample: WindowSample, rules: WindowRules): WindowState {
  if (state.probe > 0 && isMuchWorse(state, CLIFF)) return giveUp(state, rules);
  if (state.goal !== null) return nearer(state, state.goal, rules);
  // More are in flight than the limit now allows: what is seen is still what so many do.
  const isDrained = sample.inFlight <= state.limit * 1.05 + 1;
  const settleMs = state.settleMs - (isDrained ? sample.elapsedMs : 0);
  return { ...state, settleMs, look: settleMs > 0 ? state.look : EMPTY_LOOK };
}

/** A neighbour that is so much worse is left at once: all that is in flight suffers from it. */
function isMuchWorse({ look, probe, best, queued }: WindowState, share: number): boolean {
  if (probe === 0 || queued > 0 || look.ms < HOPELESS_MS) return false;
  const rate = best.rate?.unit === 'engine tokens' ? rateOf(look) : arrivalRate(look);
  const better = gain(rate, best.rate);
  return better !== null && better < share;
}

function isEnough({ look, latencyMs, limit }: WindowState): boolean {
  const latency = latencyMs ?? 0;
  if (rateOf(look)?.unit === 'engine tokens') return look.ms >= within(latency, 1_000, 4_000);
  return (
    look.ms >= within(latency, 1_000, 6_000) &&
    (look.answered >= Math.max(30, Math.min(limit, 200)) || look.ms >= 20_000)
  );
}

/** A look at the best limit, to which neighbours are compared. */
function hold(state: WindowState, rate: Rate, rules: WindowRules): WindowState {
  const before = state.best.rate;
  const change = gain(rate, before);
  if (change !== null && (change > OTHER_WEATHER || change < 1 / OTHER_WEATHER)) {
    // This look may hold some of both: the next one counts.
    const best = { ...state.best, rate: null };
    return { ...state, ...AFRESH, stride: OTHER_STRIDE, best, look: EMPTY_LOOK };
  }
  const perSecond =
    change === null || before === null ? rate.perSecond : (rate.perSecond + before.perSecond) / 2;
  const best = { limit: state.limit, rate: { ...rate, perSecond }, running: runningIn(state) };
  const restMs = Math.max(0, state.restMs - state.look.ms);
  const known = trim({ ...state, best, restMs, look: EMPTY_LOOK }, rules);
  if (restMs > 0) return known;
  return tryNeighbour(state.look.preemptions > 0 ? { ...known, next: -1 } : known, rules);
}

/** How many ran at this limit, if more than enough waited besides. */
function runningIn({ look, queued }: WindowState): number | null {
  return queued >= 2 && look.ms > 0 ? Math.round(look.runningMs / look.ms) : null;
}

/** Lines that only wait in the engine make it no faster, and those of others wait behind them. */
function trim(state: WindowState, rules: WindowRules): WindowState {
  const { running } = state.best;
  if (running === null) return state;
  const limit = clamp(trimmedTo(running, state.limit), rules, state.ceiling);
  if (limit >= state.limit) return state;
  return { ...state, limit, best: { ...state.best, limit } };
}

/**
 * The next limit to try: beyond the best one where nothing worse is known that way, else halfway to it. Where both
 * neighbours are near and worse, the best one is held for a while, and then they are tried anew.
 */
function tryNeighbour(state: WindowState, rules: WindowRules): WindowState {
  for (const way of [state.next, state.next > 0 ? -1 : 1] as const) {
    const limit = neighbour(state, way, rules);
    if (limit === null) continue;
    const trying = { ...state, probe: way };
    return way > 0 ? nearer(trying, limit, rules) : settled(trying, limit);
  }
  const restMs = Math.min(LONGEST_REST_MS, state.pauseMs * 2);
  const held = { ...state, restMs, pauseMs: restMs, low: null, high: null, stride: SMALL_STRIDE };
  return state.limit === state.best.limit
    ? { ...held, probe: 0, look: EMPTY_LOOK }
    : settled({ ...held, probe: 0 }, state.best.limit);
}

function neighbour(
  { best, low, high, stride, ceiling }: WindowState,
  way: -1 | 1,
  rules: WindowRules,
): number | null {
  if (way > 0) {
    if (best.running !== null) return null;
    const beyond = high === null ? best.limit * stride : Math.sqrt(best.limit * high);
    const limit = clamp(Math.max(best.limit + 1, Math.round(beyond)), rules, ceiling);
    return isApart(limit, best.limit, stride) && limit !== high ? limit : null;
  }
  // What only waits in the engine is no part of what it does: less of it would show nothing.
  const from = Math.min(best.limit, best.running ?? best.limit);
  const beyond = low === null ? from / stride : Math.sqrt(from * low);
  const limit = clamp(Math.min(from - 1, Math.round(beyond)), rules, ceiling);
  return isApart(from, limit, stride) && limit !== low ? limit : null;
}

/** Nearer than this, two limits cannot be told apart. */
function isApart(larger: number, smaller: number, stride: number): boolean {
  return larger > smaller && larger / smaller >= Math.min(stride, NEAREST) * 0.98;
}

function judge(state: WindowState, rate: Rate, rules: WindowRules): WindowState {
  const { best, limit, probe } = state;
  const better = gain(rate, best.rate);
  const way = probe > 0 ? 1 : -1;
  // More than in proportion cannot come from the limit: the engine has changed.
  const isOther = better !== null && way > 0 && better > (limit / best.limit) * OTHER_WEATHER;
  if (better === null || isOther) {
    const forgot = {
      ...state,
      ...AFRESH,
      probe: 0,
      best: { ...best, rate: null, running: null },
    } as const;
    return settled(forgot, best.limit);
  }
  if (better < WORTH_MOVING) return giveUp(state, rules);
  const known = {
    ...state,
    best: { limit, rate, running: runningIn(state) },
    next: way,
    low: way > 0 ? best.limit : state.low,
    high: way < 0 ? best.limit : state.high,
    pauseMs: REST_MS,
    stride:
      better > Math.sqrt(limit / best.limit) ? Math.min(2, state.stride * 1.15) : state.stride,
  } as const;
  return tryNeighbour(known, rules);
}

/** The neighbour is no better: it bounds where to look from now on. */
function giveUp(state: WindowState, rules: WindowRules): WindowState {
  const { limit } = state;
  const bounded =
    state.probe > 0
      ? ({ ...state, next: -1, high: limit } as const)
      : ({ ...state, next: 1, low: limit } as const);
  return tryNeighbour(bounded, rules);
}
