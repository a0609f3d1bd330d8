import { climb } from './window-climb.ts';
import { EMPTY_LOOK } from './window-look.ts';
import { start } from './window-start.ts';
import { AFRESH, clamp, NEAREST, settled } from './window-state.ts';
import type { WindowRules, WindowSample, WindowState } from './window-state.ts';

export type { WindowRules, WindowSample, WindowState } from './window-state.ts';

/*
 * How many lines may be in flight at an engine. Latency alone, which Vegas and Netflix's gradient limits go by, is no
 * guide here: continuous batching makes each line slower long before it makes the engine slower. So the limit follows
 * what the engine gets done: first it doubles while that pays (as BBR's start-up does), then the best limit is held and
 * its neighbours are tried, ever nearer (hill climbing within brackets, as thread pools do). Refusals cut it at once
 * (multiplicative decrease) and put a ceiling over it that rises slowly. Where the engine's metrics show lines that
 * wait in it, there is no room to try: it keeps what runs and a quarter more.
 */

const QUIET_MS = 5_000;
const LONGEST_QUIET_MS = 60_000;
const LIFT_EVERY_MS = 1_000;

/** A window of an engine of which nothing is known but `start`. */
export function startWindow(rules: WindowRules): WindowState {
  const limit = clamp(rules.start, rules, null);
  return {
    limit,
    phase: 'start',
    best: { limit, rate: null, running: null },
    arrival: null,
    probe: 0,
    next: 1,
    ...AFRESH,
    goal: null,
    settleMs: 0,
    look: EMPTY_LOOK,
    queued: 0,
    answered: 0,
    latencyMs: null,
    ceiling: null,
    refused: 0,
    floor: Math.ceil(limit / 2),
  };
}

/** One step, with what was seen since the last; about every 250 ms to 1 s. */
export function stepWindow(
  state: WindowState,
  sample: WindowSample,
  rules: WindowRules,
): WindowState {
  const seen = { ...note(state, sample), limit: clamp(state.limit, rules, state.ceiling) };
  const unhandled = Math.max(0, sample.rejected - state.refused) + sample.timedOut;
  if (unhandled > 0) return begin(cut(seen, sample, unhandled, rules));
  if (state.refused > 0) return begin(seen);
  const lifted = lift(seen, sample, rules);
  const step = lifted.phase === 'start' ? start : climb;
  return begin(step(lifted, sample, rules));
}

/**
 * The engine refused a line; `inFlight` lines, that one still among them, are in flight there: it holds one less. Call it
 * for each 429 and 503 as it comes, because until the next step hundreds may follow.
 */
export function rejectWindow(
  state: WindowState,
  inFlight: number,
  rules: WindowRules,
): WindowState {
  const lowest = Math.max(state.floor, rules.least);
  const limit = clamp(Math.max(lowest, Math.min(state.limit, inFlight - 1)), rules, null);
  return { ...refuse(state, Math.min(limit, state.limit), rules), refused: state.refused + 1 };
}

function begin(state: WindowState): WindowState {
  return { ...state, refused: 0, floor: Math.ceil(state.limit / 2) };
}

function note(state: WindowState, sample: WindowSample): WindowState {
  const { answered, meanLatencyMs } = sample;
  const answeredAll = state.answered + answered;
  if (answered === 0 || meanLatencyMs === null) return { ...state, answered: answeredAll };
  const share = Math.min(1, Math.max(0.1, answered / Math.max(1, state.limit)));
  const latencyMs =
    state.latencyMs === null
      ? meanLatencyMs
      : state.latencyMs + share * (meanLatencyMs - state.latencyMs);
  return { ...state, answered: answeredAll, latencyMs };
}

/** After refusals there is a new best limit, nothing is known of its rate, and a ceiling above it. */
function refuse(state: WindowState, limit: number, rules: WindowRules): WindowState {
  const { ceiling } = state;
  // Refusals in a row are one event; only those above a ceiling that had risen tell how often to try.
  const hadRisen = ceiling !== null && ceiling.lift > rules.additiveIncrease;
  const waitMs = hadRisen
    ? Math.min(LONGEST_QUIET_MS, ceiling.waitMs * 2)
    : (ceiling?.waitMs ?? QUIET_MS);
  const proven = ceiling === null || hadRisen ? state.best.limit : ceiling.proven;
  const best = { limit, rate: null, running: null };
  return {
    ...settled({ ...state, phase: 'climb', probe: 0, best }, limit),
    ceiling: { limit, proven, quietMs: 0, healthy: 0, waitMs, lift: rules.additiveIncrease },
  };
}

/** By the share of refusals, at most by half. */
function cut(
  state: WindowState,
  sample: WindowSample,
  failures: number,
  rules: WindowRules,
): WindowState {
  const share = failures / (failures + sample.answered);
  const factor = 1 - Math.min(0.5, Math.max(0.05, share));
  const limit = clamp(state.limit * factor, rules, null);
  return refuse(state, Math.min(limit, state.limit), rules);
}

/** A ceiling rises after a while, slowly first and then ever faster, until the engine refuses again. */
function lift(state: WindowState, sample: WindowSample, rules: WindowRules): WindowState {
  if (state.ceiling === null) return state;
  const ceiling = {
    ...state.ceiling,
    quietMs: state.ceiling.quietMs + sample.elapsedMs,
    healthy: state.ceiling.healthy + sample.answered,
  };
  const isDue = ceiling.quietMs >= ceiling.waitMs && ceiling.healthy >= rules.healthyWindow;
  // Beyond what was proven it keeps just so far ahead that a neighbour can be tried below it.
  const isReached =
    ceiling.limit < ceiling.proven
      ? state.best.limit >= ceiling.limit
      : state.best.limit * NEAREST >= ceiling.limit;
  if (!isDue || !sample.wasFull || !isReached) return { ...state, ceiling };
  const limit = clamp(ceiling.limit + ceiling.lift, rules, null);
  const risen = {
    ...ceiling,
    limit,
    healthy: 0,
    quietMs: Math.max(0, ceiling.waitMs - LIFT_EVERY_MS),
    lift: Math.min(limit, ceiling.lift * 2),
  };
  const next = { ...state, ceiling: limit >= rules.most ? null : risen };
  // Up to where it was before, it follows at once; beyond, it is for the search to find out what more lines bring.
  const following = clamp(Math.min(limit, ceiling.proven), rules, null);
  return following > state.best.limit ? moved(next, following) : next;
}

function moved(state: WindowState, limit: number): WindowState {
  return settled({ ...state, probe: 0, best: { limit, rate: null, running: null } }, limit);
}
