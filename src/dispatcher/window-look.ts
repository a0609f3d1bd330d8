import type { WindowSample } from './window-state.ts';

/** What was seen of an engine while its limit stood still: sums over samples. */
export interface Look {
  readonly ms: number;
  readonly samples: number;
  /** Lines in flight times ms. */
  readonly inFlightMs: number;
  readonly answered: number;
  /** Sum over the answers. */
  readonly latencyMs: number;
  readonly tokens: number;
  /** Sum of the latencies of those answers that have tokens. */
  readonly generatingMs: number;
  /** What the engine itself says that it generated, in how many samples, and the most per ms in one of them. */
  readonly engineTokens: number;
  readonly engineSamples: number;
  readonly enginePeak: number;
  readonly preemptions: number;
  /** Lines running in the engine times ms. */
  readonly runningMs: number;
}

/** How much an engine gets done. Only rates of one unit can be compared. */
export interface Rate {
  readonly unit: 'engine tokens' | 'tokens' | 'answers';
  readonly perSecond: number;
}

export const EMPTY_LOOK: Look = {
  ms: 0,
  samples: 0,
  inFlightMs: 0,
  answered: 0,
  latencyMs: 0,
  tokens: 0,
  generatingMs: 0,
  engineTokens: 0,
  engineSamples: 0,
  enginePeak: 0,
  preemptions: 0,
  runningMs: 0,
};

/** The look with one more sample. */
export function addSample(look: Look, sample: WindowSample): Look {
  const { elapsedMs: ms, answered, outputTokens, metrics } = sample;
  const engineTokens = metrics?.generationTokens ?? 0;
  return {
    ms: look.ms + ms,
    samples: look.samples + 1,
    inFlightMs: look.inFlightMs + sample.inFlight * ms,
    answered: look.answered + answered,
    latencyMs: look.latencyMs + answered * (sample.meanLatencyMs ?? 0),
    tokens: look.tokens + outputTokens,
    generatingMs: look.generatingMs + outputTokens * (sample.latencyPerTokenMs ?? 0),
    engineTokens: look.engineTokens + engineTokens,
    engineSamples: look.engineSamples + (engineTokens > 0 ? 1 : 0),
    enginePeak: Math.max(look.enginePeak, engineTokens / Math.max(1, ms)),
    preemptions: look.preemptions + (metrics?.preemptions ?? 0),
    runningMs: look.runningMs + (metrics?.running ?? 0) * ms,
  };
}

/** An engine that counts tokens only when an answer is whole counts them in lumps: that says nothing about a moment. */
function isSmooth({ engineTokens, engineSamples, samples, ms, enginePeak }: Look): boolean {
  return engineSamples >= 0.8 * samples && enginePeak * ms <= 3 * engineTokens;
}

/**
 * What the engine gets done, null where nothing says. The engine's own counter shows it at once. Else it follows from
 * Little's law, lines in flight over latency: latency per token is nearly the same for short and long answers, so this
 * stays exact where lengths differ a hundredfold and a count of the tokens that happened to arrive would be noise, and
 * where answers come in waves.
 */
export function rateOf(look: Look): Rate | null {
  if (look.ms <= 0) return null;
  if (look.engineTokens > 0 && isSmooth(look)) {
    return { unit: 'engine tokens', perSecond: (look.engineTokens / look.ms) * 1_000 };
  }
  const inFlight = (look.inFlightMs / look.ms) * 1_000;
  if (look.generatingMs > 0) {
    return { unit: 'tokens', perSecond: (inFlight * look.tokens) / look.generatingMs };
  }
  if (look.latencyMs > 0) {
    return { unit: 'answers', perSecond: (inFlight * look.answered) / look.latencyMs };
  }
  return null;
}

/** The same from what arrived: coarse, but right at once after the limit grew, where latencies still tell of before. */
export function arrivalRate(look: Look): Rate | null {
  if (look.ms <= 0 || look.answered === 0) return null;
  return look.tokens > 0
    ? { unit: 'tokens', perSecond: (look.tokens / look.ms) * 1_000 }
    : { unit: 'answers', perSecond: (look.answered / look.ms) * 1_000 };
}

/** How many times `a` is `b`; null where that cannot be said. */
export function gain(a: Rate | null, b: Rate | null): number | null {
  if (a === null || b === null || a.unit !== b.unit || b.perSecond <= 0) return null;
  return a.perSecond / b.perSecond;
}
