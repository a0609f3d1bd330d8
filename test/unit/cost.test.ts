import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  billedSeconds,
  canAfford,
  estimateCost,
  jobCost,
  measureSpeed,
  overspent,
  RELEASE_MS,
  rentalCost,
  toMicroUsd,
  toUsd,
  workTokens,
} from '../../src/domain/cost.ts';
import type { EstimateRequest, Rental } from '../../src/domain/cost.ts';
import { billedSeconds as simulated } from '../simulators/cloud/ledger.ts';

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const NONE = { maxCostUsd: null, maxIdleMinutes: null };

function rental(changes: Partial<Rental> = {}): Rental {
  return { provider: 'runpod', pricePerHour: 3.6, from: 0, until: null, ...changes };
}

describe('what a machine costs', () => {
  test.each([
    ['runpod', 0, 0],
    ['runpod', 1, 1],
    ['runpod', 1_000, 1],
    ['runpod', 61_001, 62],
    ['lambdaCloud', 1, 60],
    ['lambdaCloud', 60_000, 60],
    ['lambdaCloud', 60_001, 120],
    ['constructor', 1, 60],
    ['runpod', -5, 0],
  ])('%s bills %i ms as %i s', (provider, ms, seconds) => {
    expect(billedSeconds(provider, ms)).toBe(seconds);
  });

  test('as the simulated providers bill it', () => {
    const span = fc.integer({ min: -10, max: 10 * HOUR });
    fc.assert(
      fc.property(span, (ms) => {
        expect(billedSeconds('runpod', ms)).toBe(simulated(ms, 'second'));
        expect(billedSeconds('lambdaCloud', ms)).toBe(simulated(ms, 'minute'));
      }),
    );
  });

  test('until it is gone, nothing where there never was one, and unknown without a price', () => {
    expect(rentalCost(rental(), HOUR)).toBe(toMicroUsd(3.6));
    expect(rentalCost(rental({ until: 1_000 }), HOUR)).toBe(1_000);
    expect(rentalCost(rental({ provider: 'lambdaCloud', until: 1_000 }), HOUR)).toBe(60_000);
    expect(rentalCost(rental({ from: null, pricePerHour: null }), HOUR)).toBe(0);
    expect(rentalCost(rental({ pricePerHour: null }), HOUR)).toBeNull();
  });

  test('a job is the sum of its machines, so far and in the end', () => {
    const gone = rental({ until: HOUR });
    const other = rental({ provider: 'lambdaCloud', pricePerHour: 0.6, from: HOUR });
    const secret = rental({ pricePerHour: null, until: 5 });
    expect(jobCost([gone, other, secret], HOUR + 1)).toEqual({
      cost: toMicroUsd(3.61),
      perHour: toMicroUsd(0.6),
      unpriced: 1,
      isFinal: false,
    });
    expect(jobCost([gone], 9 * HOUR)).toMatchObject({ cost: toMicroUsd(3.6), isFinal: true });
    expect(jobCost([], 0)).toEqual({ cost: 0, perHour: 0, unpriced: 0, isFinal: true });
  });

  test('nothing drifts: a million cents are ten thousand dollars, and a thousand machines what one is', () => {
    let sum = 0;
    for (let i = 0; i < 1_000_000; i += 1) sum += toMicroUsd(0.01);
    expect(toUsd(sum)).toBe(10_000);
    const one = rental({ pricePerHour: 0.1, until: 1_234_567 });
    const cost = rentalCost(one, 0) ?? Number.NaN;
    expect(
      jobCost(
        Array.from({ length: 1_000 }, () => one),
        0,
      ).cost,
    ).toBe(1_000 * cost);
    expect(toUsd(toMicroUsd(1.005))).toBe(1.01);
  });

  const rentals = fc.array(
    fc.record({
      provider: fc.constantFrom('runpod', 'lambdaCloud', 'other'),
      pricePerHour: fc.integer({ min: 0, max: 4_000 }).map((cents) => cents / 100),
      from: fc.option(fc.integer({ min: 0, max: 10 * HOUR })),
      until: fc.constant(null),
    }),
    { maxLength: 8 },
  );
  const time = fc.integer({ min: 0, max: 1_000 * HOUR });

  test('costs are whole, never negative and never fall', () => {
    fc.assert(
      fc.property(rentals, time, time, (all, one, other) => {
        const [early, late] = [Math.min(one, other), Math.max(one, other)];
        const costs = [early, late].map((now) => jobCost(all, now).cost);
        expect(costs.every((cost) => Number.isSafeInteger(cost) && cost >= 0)).toBe(true);
        expect(costs[0]).toBeLessThanOrEqual(costs[1] ?? -1);
      }),
    );
  });

  test('whoever looks each second, and is done within the time for it, stays within the maximum', () => {
    const few = rentals.map((all) => all.slice(0, 3).map((each) => ({ ...each, from: 0 })));
    const limit = fc.integer({ min: 1, max: 500 }).map((cents) => cents / 100);
    fc.assert(
      fc.property(few, limit, fc.integer({ min: 0, max: RELEASE_MS }), (all, maxCostUsd, later) => {
        const limits = { maxCostUsd, maxIdleMinutes: null };
        const isOver = (now: number) =>
          overspent(limits, { rentals: all, idleSince: null }, now) !== null;
        fc.pre(!isOver(0));
        let now = 0;
        while (!isOver(now) && now < HOUR) now += 1_000;
        // What was decided at the look before would still have been in time.
        const until = now - 1_000 + later;
        const ended = all.map((each) => ({ ...each, until: Math.max(0, until) }));
        expect(jobCost(ended, until).cost).toBeLessThanOrEqual(toMicroUsd(maxCostUsd));
        expect(isOver(now) ? isOver(now + HOUR) : true).toBe(true);
      }),
      { numRuns: 50 },
    );
  });
});

describe('when a job has to stop', () => {
  const limits = { ...NONE, maxCostUsd: 3.6 };

  test('at its maximum, with the time that giving back takes', () => {
    const spending = { rentals: [rental()], idleSince: null };
    expect(overspent(limits, spending, HOUR - RELEASE_MS)).toBeNull();
    expect(overspent(limits, spending, HOUR - RELEASE_MS + 1)).toEqual({
      limit: 'max_cost_usd',
      message:
        'The job has cost $3.54, $3.60 until all is given back, and max_cost_usd is $3.60: ' +
        'its machines are given back, and what was answered is kept.',
    });
    expect(overspent(NONE, spending, 99 * HOUR)).toBeNull();
    expect(overspent(limits, spending, HOUR, 0)).toBeNull();
  });

  test('at a machine of which nobody knows the price, if there is a maximum', () => {
    const spending = { rentals: [rental({ pricePerHour: null })], idleSince: null };
    expect(overspent(limits, spending, 1)?.message).toMatch(/Nobody knows the price of 1/);
    expect(overspent(NONE, spending, 1)).toBeNull();
  });

  test('when its machines had nothing to do for too long, as long as they are paid for', () => {
    const idle = { ...NONE, maxIdleMinutes: 5 };
    const spending = { rentals: [rental()], idleSince: HOUR };
    expect(overspent(idle, spending, HOUR + 5 * MINUTE - 1)).toBeNull();
    expect(overspent(idle, spending, HOUR + 5 * MINUTE)?.limit).toBe('max_idle_minutes');
    expect(overspent(idle, { ...spending, idleSince: null }, 9 * HOUR)).toBeNull();
    const gone = { rentals: [rental({ until: HOUR })], idleSince: HOUR };
    expect(overspent(idle, gone, 9 * HOUR)).toBeNull();
    expect(overspent({ ...NONE, maxIdleMinutes: 0 }, spending, HOUR)).not.toBeNull();
  });

  test('one more machine only where its start can be paid, too', () => {
    const offer = { provider: 'runpod', pricePerHour: 3.6 };
    const afford = (rentals: Rental[], maxCostUsd: number | null) =>
      canAfford({ maxCostUsd }, rentals, offer, HOUR, 10 * MINUTE);
    expect(afford([], 0.6)).toBe(true);
    expect(afford([], 0.59)).toBe(false);
    // The one that runs costs those ten minutes as well.
    expect(afford([rental()], 3.6 + 1.2)).toBe(true);
    expect(afford([rental()], 3.6 + 1.19)).toBe(false);
    expect(afford([], null)).toBe(true);
    const secret = { provider: 'runpod', pricePerHour: null };
    expect(canAfford({ maxCostUsd: 9 }, [], secret, 0, 0)).toBe(false);
    expect(canAfford({ maxCostUsd: null }, [], secret, 0, 0)).toBe(true);
  });
});

describe('what a job is likely to cost', () => {
  const request: EstimateRequest = {
    lines: 1_000,
    tokens: { inputTokens: 1_000_000, maxOutputTokens: 200_000, unlimited: 0 },
    measured: { tokensPerSecond: 1_000, outputTokensPerLine: 100 },
    gpuCount: 1,
    machines: 1,
    provider: 'runpod',
    pricePerHour: 3.6,
    startMs: 300_000,
  };

  test('by what was measured: 100 tokens a line, a prompt at a tenth', () => {
    expect(estimateCost(request)).toEqual({
      basis: 'measured',
      outputTokens: 100_000,
      seconds: 500,
      cost: toMicroUsd(0.5),
    });
  });

  test('lines are not taken for longer than they allow', () => {
    const long = { tokensPerSecond: 1_000, outputTokensPerLine: 900 };
    expect(estimateCost({ ...request, measured: long }).outputTokens).toBe(200_000);
  });

  test('by a rule of thumb where nothing was measured, and says so', () => {
    const tokens = { inputTokens: 0, maxOutputTokens: 100_000, unlimited: 100 };
    const found = estimateCost({ ...request, measured: null, tokens });
    expect(found).toMatchObject({ basis: 'assumed', outputTokens: 150_000, seconds: 400 });
    expect(estimateCost({ ...request, measured: null, tokens, gpuCount: 4 }).seconds).toBe(325);
  });

  test('two machines take half the time, and each its start', () => {
    const found = estimateCost({ ...request, machines: 2 });
    expect(found).toMatchObject({ seconds: 400, cost: toMicroUsd(0.8) });
  });

  test('by the minute where the provider bills so, and no price without one', () => {
    const lambda = estimateCost({ ...request, provider: 'lambdaCloud' });
    expect(lambda.cost).toBe(toMicroUsd(0.54));
    expect(estimateCost({ ...request, pricePerHour: null }).cost).toBeNull();
  });

  test('a measured speed gives back the time that it was measured in', () => {
    const count = fc.integer({ min: 1, max: 1_000_000 });
    fc.assert(
      fc.property(count, count, count, fc.integer({ min: 1_000, max: HOUR }), (...given) => {
        const [lines, inputTokens, outputTokens, servingMs] = given;
        const measured = measureSpeed({ lines, inputTokens, outputTokens, servingMs });
        const tokens = { inputTokens, maxOutputTokens: outputTokens, unlimited: 0 };
        const { seconds } = estimateCost({ ...request, lines, tokens, measured, startMs: 0 });
        const rounded = workTokens({ inputTokens, outputTokens: outputTokens + 1 });
        const slack = (rounded / workTokens({ inputTokens, outputTokens })) * 1.001;
        expect(seconds).toBeGreaterThanOrEqual(Math.floor(servingMs / 1_001));
        expect(seconds).toBeLessThanOrEqual(Math.ceil((servingMs / 1_000) * slack) + 1);
      }),
    );
    const nothing = { inputTokens: 1, outputTokens: 1, servingMs: 1 };
    expect(measureSpeed({ ...nothing, lines: 0 })).toBeNull();
    expect(measureSpeed({ ...nothing, lines: 1, servingMs: 0 })).toBeNull();
  });
});
