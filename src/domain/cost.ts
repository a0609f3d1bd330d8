import type { Estimate } from './estimate.ts';

/**
 * Money is counted in whole millionths of a dollar, so that sums are exact and nothing drifts; prices come in as dollars
 * an hour, and costs go out as dollars in whole cents.
 */
export type MicroUsd = number;

const MICRO = 1_000_000;
const CENT = 10_000;
const HOUR_SECONDS = 3_600;

export function toMicroUsd(usd: number): MicroUsd {
  return Math.round(usd * MICRO);
}

/** For people and for the wire: rounded to the cent, once and last. */
export function toUsd(micro: MicroUsd): number {
  return Math.round(micro / CENT) / 100;
}

/**
 * What each provider bills in, seconds; begun ones count whole. RunPod bills by the second, Lambda Cloud by the minute
 * (their price lists); of any other the dearer is assumed.
 */
const UNIT_SECONDS: Readonly<Record<string, number>> = { runpod: 1, lambdaCloud: 60 };
const OTHER_UNIT_SECONDS = 60;

/** Seconds that a provider bills for so many milliseconds of a machine. */
export function billedSeconds(provider: string, ms: number): number {
  const unit = Object.hasOwn(UNIT_SECONDS, provider) ? UNIT_SECONDS[provider] : undefined;
  const size = unit ?? OTHER_UNIT_SECONDS;
  return Math.ceil(Math.max(0, ms) / (size * 1_000)) * size;
}

/** One machine as it is paid for: an attempt of a provision. Times are ms since 1970. */
export interface Rental {
  provider: string;
  /** US dollars an hour for all of it; null: nobody knows. */
  pricePerHour: number | null;
  /** When it was created by the provider's word, else when it was asked for; null: there never was one. */
  from: number | null;
  /** When the provider said that it is gone; null: it costs still. */
  until: number | null;
}

function isPaid({ from, until }: Rental): boolean {
  return from !== null && until === null;
}

/** What a machine has cost by `now`; null where its price is not known. */
export function rentalCost(rental: Rental, now: number): MicroUsd | null {
  const { provider, pricePerHour, from, until } = rental;
  if (from === null) return 0;
  if (pricePerHour === null) return null;
  return priceOf(pricePerHour, billedSeconds(provider, (until ?? now) - from));
}

function priceOf(pricePerHour: number, seconds: number): MicroUsd {
  return Math.round((toMicroUsd(pricePerHour) * seconds) / HOUR_SECONDS);
}

export interface JobCost {
  /** Of all machines whose price is known. */
  cost: MicroUsd;
  /** Of those that are still paid for. */
  perHour: MicroUsd;
  /** Machines whose price is not known, and that `cost` therefore leaves out. */
  unpriced: number;
  /** No machine is paid for any more: the cost stands. */
  isFinal: boolean;
}

/** What the machines of a job have cost by `now`: so far, or in the end where all are gone. */
export function jobCost(rentals: readonly Rental[], now: number): JobCost {
  const found: JobCost = { cost: 0, perHour: 0, unpriced: 0, isFinal: true };
  for (const rental of rentals) {
    const cost = rentalCost(rental, now);
    if (cost === null) found.unpriced += 1;
    else found.cost += cost;
    if (!isPaid(rental)) continue;
    found.isFinal = false;
    found.perHour += toMicroUsd(rental.pricePerHour ?? 0);
  }
  return found;
}

/** An engine reads a prompt about this many times as fast as it writes an answer. */
const READ_SPEEDUP = 10;

/** Tokens as work: one that is written is one, one that is read a part of it. All speeds here are in such a second. */
export function workTokens(tokens: { inputTokens: number; outputTokens: number }): number {
  return tokens.outputTokens + tokens.inputTokens / READ_SPEEDUP;
}

/** What jobs of a template did on a kind of GPU. */
export interface MeasuredSpeed {
  /** Of work, a machine, while it had as many lines as it takes. */
  tokensPerSecond: number;
  outputTokensPerLine: number;
}

/** The speed that a machine showed; null where it did too little to say. */
export function measureSpeed(done: {
  lines: number;
  inputTokens: number;
  outputTokens: number;
  /** From the first request to the last answer. */
  servingMs: number;
}): MeasuredSpeed | null {
  const work = workTokens(done);
  if (done.lines <= 0 || done.servingMs <= 0 || work <= 0) return null;
  return {
    tokensPerSecond: (work * 1_000) / done.servingMs,
    outputTokensPerLine: done.outputTokens / done.lines,
  };
}

/** For a template that was never measured: what a model of some ten billion parameters does on one GPU of today. */
const ASSUMED_TOKENS_PER_SECOND = 1_500;
/** For a line that sets no limit, where no answers were ever seen. */
const ASSUMED_OUTPUT_TOKENS = 500;

export interface EstimateRequest {
  lines: number;
  /** Of the whole input. */
  tokens: Estimate;
  /** Null: this template was never run on that kind of GPU. */
  measured: MeasuredSpeed | null;
  /** GPUs of one machine. */
  gpuCount: number;
  machines: number;
  provider: string;
  pricePerHour: number | null;
  /** From the request for a machine to its first answer. */
  startMs: number;
}

export interface CostEstimate {
  /** `assumed`: by a rule of thumb, which may be off by several times. */
  basis: 'measured' | 'assumed';
  outputTokens: number;
  /** From the request for machines to their release. */
  seconds: number;
  /** Of all machines; null where the price is not known. */
  cost: MicroUsd | null;
}

/** What a job is likely to take and to cost on machines of one kind. */
export function estimateCost(request: EstimateRequest): CostEstimate {
  const { measured, machines, gpuCount, provider, pricePerHour } = request;
  const outputTokens = expectedOutput(request);
  const work = workTokens({ inputTokens: request.tokens.inputTokens, outputTokens });
  const speed = measured?.tokensPerSecond ?? ASSUMED_TOKENS_PER_SECOND * Math.max(1, gpuCount);
  const runMs = (work * 1_000) / (speed * Math.max(1, machines));
  const ms = request.startMs + runMs;
  return {
    basis: measured === null ? 'assumed' : 'measured',
    outputTokens,
    seconds: Math.ceil(ms / 1_000),
    cost:
      pricePerHour === null ? null : machines * priceOf(pricePerHour, billedSeconds(provider, ms)),
  };
}

/** As long as answers were before, but no longer than lines allow where they say. */
function expectedOutput({ lines, tokens, measured }: EstimateRequest): number {
  const free = measured?.outputTokensPerLine ?? ASSUMED_OUTPUT_TOKENS;
  const most = tokens.maxOutputTokens + tokens.unlimited * free;
  return Math.ceil(measured === null ? most : Math.min(most, lines * free));
}

export interface SpendLimits {
  /** US dollars that the machines of a job may cost in all; null: any. */
  maxCostUsd: number | null;
  /** How long machines may be paid for without a line to answer; null: any time. */
  maxIdleMinutes: number | null;
}

export interface Spending {
  rentals: readonly Rental[];
  /** Since when no line was sent to any of its machines; null: some have work. */
  idleSince: number | null;
}

export interface Overspent {
  limit: 'max_cost_usd' | 'max_idle_minutes';
  /** For people. */
  message: string;
}

/** As long as it may take from a decision to stop until nothing is billed any more: that is paid for, too. */
export const RELEASE_MS = 60_000;

/**
 * Whether a job has to stop, and why: its machines are to be given back, and what was answered is kept. A machine is
 * counted as if it were paid for until `releaseMs` from now, so that the limit holds when it is gone. With a limit to
 * the cost, a machine of unknown price is too much: nobody could say when to stop.
 */
export function overspent(
  limits: SpendLimits,
  { rentals, idleSince }: Spending,
  now: number,
  releaseMs = RELEASE_MS,
): Overspent | null {
  const { maxCostUsd, maxIdleMinutes } = limits;
  if (maxCostUsd !== null) {
    const { cost, unpriced } = jobCost(rentals, now + releaseMs);
    const limit = 'max_cost_usd';
    const most = `max_cost_usd is ${dollars(toMicroUsd(maxCostUsd))}`;
    const kept = 'its machines are given back, and what was answered is kept';
    if (cost > toMicroUsd(maxCostUsd)) {
      const soFar = jobCost(rentals, now).cost;
      const message = `The job has cost ${dollars(soFar)}, ${dollars(cost)} until all is given back, and ${most}: ${kept}.`;
      return { limit, message };
    }
    if (unpriced > 0) {
      const message = `Nobody knows the price of ${unpriced} of its machines, and ${most}: ${kept}.`;
      return { limit, message };
    }
  }
  if (maxIdleMinutes === null || idleSince === null || !rentals.some(isPaid)) return null;
  if (now - idleSince < maxIdleMinutes * 60_000) return null;
  const message = `Its machines had no line to answer for ${maxIdleMinutes} minutes (max_idle_minutes), and are given back.`;
  return { limit: 'max_idle_minutes', message };
}

/**
 * Whether one more machine may be leased: it, and all that are paid for, must be affordable for `leastMs`, in which it
 * starts and does something of use.
 */
export function canAfford(
  { maxCostUsd }: Pick<SpendLimits, 'maxCostUsd'>,
  rentals: readonly Rental[],
  offer: Pick<Rental, 'provider' | 'pricePerHour'>,
  now: number,
  leastMs: number,
): boolean {
  if (maxCostUsd === null) return true;
  const all = [...rentals, { ...offer, from: now, until: null }];
  const { cost, unpriced } = jobCost(all, now + leastMs);
  return unpriced === 0 && cost <= toMicroUsd(maxCostUsd);
}

function dollars(micro: MicroUsd): string {
  return `$${toUsd(micro).toFixed(2)}`;
}
