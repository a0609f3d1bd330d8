import { Roster } from './roster.ts';

/** Who has to know when a signal is aborted. */
export interface Abortable {
  aborted(): void;
}

const listening = new WeakMap<AbortSignal, Roster<Abortable>>();

/**
 * Whoever enters it is told once when the signal is aborted. A signal gets one listener however many there are to tell:
 * thousands of requests share one, and listeners of their own cost more than they do.
 */
export function whoFollows(signal: AbortSignal): Roster<Abortable> {
  return listening.get(signal) ?? listen(signal);
}

/** Runs `task` when the signal is aborted, unless the returned function is called before. */
export function onAbort(signal: AbortSignal, task: () => void): () => void {
  const following = whoFollows(signal);
  const seat = following.enter({ aborted: task });
  return () => following.leave(seat);
}

/**
 * Aborted as soon as one of the signals is; `release` when nobody needs it any more. AbortSignal.any makes one that looks
 * at all its sources each time it is asked whether it is aborted, and lines ask often.
 */
export function firstOf(...signals: AbortSignal[]): { signal: AbortSignal; release: () => void } {
  const first = new AbortController();
  const forget = signals.map((signal) => onAbort(signal, () => first.abort(signal.reason)));
  const aborted = signals.find((signal) => signal.aborted);
  if (aborted !== undefined) first.abort(aborted.reason);
  return {
    signal: first.signal,
    release() {
      for (const each of forget) each();
    },
  };
}

function listen(signal: AbortSignal): Roster<Abortable> {
  const following = new Roster<Abortable>();
  listening.set(signal, following);
  function abortAll(): void {
    for (const one of following.clear()) one.aborted();
  }
  signal.addEventListener('abort', abortAll, { once: true });
  return following;
}
