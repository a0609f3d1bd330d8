import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { rejectWindow, startWindow, stepWindow } from '../../src/dispatcher/window.ts';
import type { WindowRules, WindowSample, WindowState } from '../../src/dispatcher/window.ts';
import { bestFixed, runAdaptive, runFixed } from '../support/window-engine.ts';
import type { EngineModel } from '../support/window-engine.ts';

const RULES: WindowRules = {
  least: 1,
  most: 1_024,
  start: 32,
  additiveIncrease: 1,
  healthyWindow: 8,
};

/** About an 8 B model on one H100. */
const PLAIN: EngineModel = {
  maxSeqs: 256,
  stepMs: (running) => 6.6 + running / 18.5,
  promptTokens: 100,
  prefillPerSecond: 45_000,
  kvTokens: Infinity,
  maxQueued: () => Infinity,
  tokens: (random) => Math.round(128 * (0.5 + random())),
  hasMetrics: true,
  slowness: () => 1,
};

/** Beyond `at` each line more costs all others so much that less is done. */
function thrash(at: number, power: number): (running: number) => number {
  return (running) => (10 + running * 0.1) * (running > at ? (running / at) ** power : 1);
}

/** Logarithmically uniform, so that all lengths of the range are as common. */
function spread(from: number, to: number): (random: () => number) => number {
  return (random) => Math.round(from * (to / from) ** random());
}

const BLIND = { hasMetrics: false };
/** Every answer takes a second, however many there are. */
const ONE_SECOND = { stepMs: () => 20, tokens: () => 50, prefillPerSecond: 1e9, maxSeqs: 1e6 };

const ENGINES: Record<string, EngineModel> = {
  'fills its seats': PLAIN,
  'fills its seats, answers equally long': { ...PLAIN, tokens: () => 128 },
  'fills its seats, no metrics': { ...PLAIN, ...BLIND },
  'has eight seats': { ...PLAIN, maxSeqs: 8, stepMs: (n) => 50 + 2.5 * n, prefillPerSecond: 2_000 },
  'is best at 48': { ...PLAIN, stepMs: thrash(48, 1.5), maxSeqs: 512 },
  'is best at 48, no metrics': {
    ...PLAIN,
    ...BLIND,
    stepMs: thrash(48, 1.5),
    maxSeqs: 512,
    tokens: (random) => Math.round(64 * (0.5 + random())),
  },
  'is best at 300, and soon bad': { ...PLAIN, stepMs: thrash(300, 2.5), maxSeqs: 1_024 },
  'has a small KV cache': {
    ...PLAIN,
    kvTokens: 15_000,
    prefillPerSecond: 5_000,
    tokens: (random) => Math.round(300 * (0.5 + random())),
  },
  'spreads lengths over two decades': { ...PLAIN, tokens: spread(5, 500) },
  'spreads lengths over two decades, no metrics': { ...PLAIN, ...BLIND, tokens: spread(5, 500) },
  'spreads lengths, is best at 64': {
    ...PLAIN,
    tokens: spread(5, 500),
    stepMs: thrash(64, 1.5),
    maxSeqs: 512,
  },
  'generates thousands of tokens': {
    ...PLAIN,
    tokens: spread(50, 3_000),
    stepMs: (running) => 15 + running / 20,
    maxSeqs: 200,
  },
  'takes a second for any number': { ...PLAIN, ...BLIND, ...ONE_SECOND },
  'refuses all above 40': {
    ...PLAIN,
    ...BLIND,
    stepMs: () => 16,
    tokens: () => 60,
    maxQueued: () => 40,
  },
  'refuses all above 600': {
    ...PLAIN,
    ...BLIND,
    stepMs: () => 16,
    tokens: () => 60,
    prefillPerSecond: 1e9,
    maxQueued: () => 600,
  },
};

describe('against the best limit that stands still', () => {
  test.for(Object.entries(ENGINES))('an engine that %s', ([, model]) => {
    const best = bestFixed(model, { fromMs: 20_000, toMs: 50_000 });
    for (const seed of [1, 2, 3]) {
      const found = runAdaptive(model, RULES, { seed, fromMs: 60_000, toMs: 120_000 });
      expect(found.perSecond / best.perSecond).toBeGreaterThan(0.95);
      expect(found.rejectedShare).toBeLessThan(0.01);
    }
  });
});

describe('speed of reaction', () => {
  test.for([true, false])(
    '1,024 are in flight within 5 s of the start (metrics: %s)',
    (hasMetrics) => {
      const model = { ...PLAIN, ...ONE_SECOND, hasMetrics };
      const { limits } = runAdaptive(model, RULES, { fromMs: 0, toMs: 5_000 });
      expect(limits.at(-1)).toBe(1_024);
    },
  );

  test.for(['fills its seats', 'fills its seats, no metrics', 'is best at 48'])(
    'four times slower for 20 s, then quick again: it loses nothing before or after (%s)',
    (name) => {
      const slowed = {
        ...(ENGINES[name] ?? PLAIN),
        slowness: (at: number) => (at > 60_000 && at < 80_000 ? 4 : 1),
      };
      const best = bestFixed({ ...slowed, slowness: () => 1 }, { fromMs: 20_000, toMs: 50_000 });
      const during = runAdaptive(slowed, RULES, { fromMs: 65_000, toMs: 80_000 });
      const after = runAdaptive(slowed, RULES, { fromMs: 90_000, toMs: 120_000 });
      expect((4 * during.perSecond) / best.perSecond).toBeGreaterThan(0.85);
      expect(after.perSecond / best.perSecond).toBeGreaterThan(0.95);
    },
  );

  test('an engine that refuses everything for 20 s is full again 20 s later', () => {
    const model = {
      ...PLAIN,
      maxQueued: (at: number) => (at > 20_000 && at < 40_000 ? 0 : Infinity),
    };
    const { perSecond, limits } = runAdaptive(model, RULES, { fromMs: 60_000, toMs: 90_000 });
    expect(Math.min(...limits.slice(60, 80))).toBeLessThan(4);
    expect(perSecond / runFixed(model, 320, { fromMs: 60_000, toMs: 90_000 })).toBeGreaterThan(
      0.95,
    );
  });

  test('a job that ends the queue in the engine keeps only a quarter more there than run', () => {
    const { limits } = runAdaptive(PLAIN, RULES, { fromMs: 0, toMs: 60_000 });
    expect(limits.at(-1)).toBeLessThanOrEqual(320);
    expect(limits.at(-1)).toBeGreaterThanOrEqual(256);
  });
});

const metricsOfAnything = fc.record({
  running: fc.nat(5_000),
  waiting: fc.nat(5_000),
  kvUse: fc.double({ min: 0, max: 1, noNaN: true }),
  preemptions: fc.nat(100),
  generationTokens: fc.nat(100_000),
});

const anySample: fc.Arbitrary<WindowSample> = fc.record({
  elapsedMs: fc.nat(2_000),
  answered: fc.nat(5_000),
  outputTokens: fc.nat(100_000),
  latencyPerTokenMs: fc.option(fc.double({ min: 0, max: 1e6, noNaN: true })),
  meanLatencyMs: fc.option(fc.double({ min: 0, max: 1e7, noNaN: true })),
  rejected: fc.oneof(fc.constant(0), fc.nat(1_000)),
  timedOut: fc.oneof(fc.constant(0), fc.nat(10)),
  wasFull: fc.boolean(),
  inFlight: fc.nat(5_000),
  metrics: fc.option(metricsOfAnything),
});

const anyRules: fc.Arbitrary<WindowRules> = fc
  .record({
    least: fc.integer({ min: 1, max: 100 }),
    more: fc.nat(2_000),
    start: fc.integer({ min: 1, max: 4_000 }),
    additiveIncrease: fc.integer({ min: 1, max: 100 }),
    healthyWindow: fc.integer({ min: 1, max: 100 }),
  })
  .map(({ least, more, ...rest }) => ({ ...rest, least, most: least + more }));

function after(samples: readonly WindowSample[], rules: WindowRules): WindowState {
  let state = startWindow(rules);
  for (const sample of samples) state = stepWindow(state, sample, rules);
  return state;
}

describe('whatever happens', () => {
  test('the limit is whole and within its rules, also when those change', () => {
    fc.assert(
      fc.property(
        anyRules,
        fc.array(fc.tuple(anySample, fc.option(anyRules), fc.nat(5_000)), { maxLength: 60 }),
        (first, steps) => {
          let rules = first;
          let state = startWindow(rules);
          for (const [sample, others, inFlight] of steps) {
            rules = others ?? rules;
            state = rejectWindow(stepWindow(state, sample, rules), inFlight, rules);
            expect(Number.isInteger(state.limit)).toBe(true);
            expect(state.limit).toBeGreaterThanOrEqual(rules.least);
            expect(state.limit).toBeLessThanOrEqual(rules.most);
          }
        },
      ),
    );
  });

  test('more refusals never lead to a larger limit, and any to no larger one than before', () => {
    fc.assert(
      fc.property(
        anyRules,
        fc.array(anySample, { maxLength: 30 }),
        anySample,
        fc.integer({ min: 1, max: 500 }),
        fc.integer({ min: 1, max: 500 }),
        (rules, samples, last, some, more) => {
          const state = after(samples, rules);
          const few = stepWindow(state, { ...last, rejected: some }, rules).limit;
          const many = stepWindow(state, { ...last, rejected: some + more }, rules).limit;
          expect(few).toBeLessThanOrEqual(state.limit);
          expect(many).toBeLessThanOrEqual(few);
        },
      ),
    );
  });

  test('a burst of refusals within one step at most halves the limit', () => {
    fc.assert(
      fc.property(
        fc.array(anySample, { maxLength: 30 }),
        fc.array(fc.nat(2_000), { minLength: 1, maxLength: 300 }),
        (samples, refusals) => {
          const before = after(samples, RULES);
          let state = before;
          for (const inFlight of refusals) {
            const next = rejectWindow(state, inFlight, RULES);
            expect(next.limit).toBeLessThanOrEqual(state.limit);
            state = next;
          }
          expect(state.limit).toBeGreaterThanOrEqual(Math.floor(before.limit / 2));
        },
      ),
    );
  });
});

const HEALTHY: WindowSample = {
  elapsedMs: 500,
  answered: 4,
  outputTokens: 400,
  latencyPerTokenMs: 10,
  meanLatencyMs: 1_000,
  rejected: 0,
  timedOut: 0,
  wasFull: true,
  inFlight: 20,
  metrics: null,
};

/** Limits after a refusal of the 21st in flight, at each step in which only answers come. */
function limitsAfterRefusal(rules: WindowRules, steps: number): number[] {
  let state = rejectWindow(startWindow(rules), 21, rules);
  return Array.from({ length: steps }, () => {
    state = stepWindow(state, HEALTHY, rules);
    return state.limit;
  });
}

describe('what a job may set', () => {
  test('adaptive_additive_increase: so many lines more are tried after a refusal', () => {
    const grown = (additiveIncrease: number): number | undefined =>
      limitsAfterRefusal({ ...RULES, additiveIncrease }, 30).find((limit) => limit > 20);
    expect(grown(1)).toBe(21);
    expect(grown(7)).toBe(27);
  });

  test('adaptive_healthy_window: so many answers come before', () => {
    const steps = (healthyWindow: number): number =>
      limitsAfterRefusal({ ...RULES, healthyWindow }, 100).findIndex((limit) => limit > 20);
    expect(steps(8)).toBeLessThan(15);
    expect(steps(200)).toBeGreaterThanOrEqual(48);
  });
});
