/** How much may be asked; null: no limit. */
export interface RateLimits {
  requestsPerSecond: number | null;
  /** Tokens that engines read and write, as their `usage` counts them. */
  tokensPerMinute: number | null;
}

/** What the lines of one job may ask, all processes together. */
export type JobLimits = RateLimits;

export const NO_LIMITS: RateLimits = { requestsPerSecond: null, tokensPerMinute: null };

/** Units are drawn by as much as flows in this time, and a bucket that nobody waits for holds no more than that. */
export const BLOCK_MS = 100;

/**
 * While somebody waits, units that flow in are kept for whoever comes for them late, up to this: a busy process or a
 * slow network must not make the rate lower than the limit. Over a minute it is less than one per cent.
 */
export const CATCH_UP_MS = 500;

/** A token bucket as it was when it was last touched. */
export interface Bucket {
  /** Units in it; below zero after more was used than reserved. */
  level: number;
  /** When that was, ms. */
  at: number;
  /** When somebody who waits last got less than wanted, ms; 0: never. */
  hungryAt: number;
}

/** One touch: units come back (below zero: more was used than was drawn), and others, whole ones, are wanted. */
export interface Draw {
  want: number;
  back: number;
  /** Somebody waits for what is wanted, or it is drawn ahead, or whoever drew has come to rest. */
  need: 'awaited' | 'ahead' | 'none';
  /** What a bucket at rest holds, and the most units that are drawn at once; missing: a block. */
  most?: number;
}

/** What a draw gives: whole units, and when it is worth coming again for what it did not give. */
export interface Drawn {
  granted: number;
  waitMs: number;
}

/** The most units that are drawn at once. */
export function blockOf(perSecond: number): number {
  return Math.max(1, Math.ceil((perSecond * BLOCK_MS) / 1_000));
}

/** A bucket that was never used, or not for long. */
export function freshBucket(perSecond: number, now: number, block = blockOf(perSecond)): Bucket {
  return { level: block, at: now, hungryAt: 0 };
}

/**
 * The bucket at a later time. What comes back raises its level beyond what flows into it, for somebody who waits: where
 * nobody does, it is worth a block at most, so that rest is never followed by a burst.
 */
export function refill(
  { level, at, hungryAt }: Bucket,
  perSecond: number,
  now: number,
  block = blockOf(perSecond),
): Bucket {
  const raised = level + (Math.max(0, now - at) * perSecond) / 1_000;
  const isHungry = hungryAt > 0 && now - hungryAt <= CATCH_UP_MS;
  const kept = isHungry ? Math.max(level, block + (perSecond * CATCH_UP_MS) / 1_000) : block;
  return { level: Math.min(raised, kept), at: Math.max(at, now), hungryAt };
}

/** What one touch makes of a bucket. The script `limit-draw` computes the same. */
export function draw(
  bucket: Bucket,
  perSecond: number,
  { want, back, need, most: block = blockOf(perSecond) }: Draw,
  now: number,
): Drawn & { bucket: Bucket } {
  const { level, at, hungryAt } = refill(bucket, perSecond, now, block);
  const granted = Math.max(0, Math.min(want, block, Math.floor(level + back)));
  const left = level + back - granted;
  const missing = want - granted;
  const isHungry = need === 'awaited' && missing > 0;
  return {
    granted,
    waitMs: missing <= 0 ? 0 : waitFor(left, missing, perSecond, block),
    bucket: { level: left, at, hungryAt: isHungry ? at : need === 'none' ? 0 : hungryAt },
  };
}

/** Half a block is worth a journey: whoever came for each unit would come too often, for whole blocks too late. */
function waitFor(level: number, missing: number, perSecond: number, block: number): number {
  const worth = Math.min(missing, Math.max(1, Math.floor(block / 2)));
  return Math.max(0, Math.ceil(((worth - level) * 1_000) / perSecond));
}

/** How long a bucket can be forgotten after: it is full by then, as a fresh one is, and nobody is hungry. */
export function bucketLifeMs(
  { level }: Bucket,
  perSecond: number,
  block = blockOf(perSecond),
): number {
  const fullInMs = ((block - level) * 1_000) / perSecond;
  return Math.ceil(Math.max(0, fullInMs)) + MARGIN_MS;
}

const MARGIN_MS = 10_000;

/** Estimates and what was used in the end: how much of its estimate a line of a job really takes. */
export interface TokenRecord {
  estimated: number;
  used: number;
}

/** Answers that a first guess weighs as much as: those that come first are the short ones. */
const DOUBT = 20;
/** So many answers count; older ones fade. */
const MEMORY = 1_000;

/**
 * What to reserve for a line, from its estimate and from how earlier ones of the job turned out. Without that,
 * `max_tokens` that nobody uses up would hold the limit empty until the answers come.
 */
export function reservation({ estimated, used }: TokenRecord, estimate: number): number {
  const doubt = DOUBT * estimate;
  return Math.max(1, Math.ceil((estimate * (used + doubt)) / Math.max(1, estimated + doubt)));
}

/** The record after one more answer. */
export function learn(record: TokenRecord, estimate: number, used: number): TokenRecord {
  const kept = 1 - 1 / MEMORY;
  return { estimated: record.estimated * kept + estimate, used: record.used * kept + used };
}

/** What an engine, or a gateway before it, says about its own limits: the headers of OpenAI, as they came. */
export interface LimitHeaders {
  remainingRequests: string | undefined;
  remainingTokens: string | undefined;
  resetRequests: string | undefined;
  resetTokens: string | undefined;
}

/** An engine that wants to be left alone for longer is asked anyway: its word is a wish, the deadline a promise. */
const LONGEST_HOLD_MS = 600_000;

/**
 * How long no further request should go to whoever said this, in ms; 0: one may go at once. It is so for a 429 with
 * `Retry-After`, and where nothing is left of a limit until it is reset (`x-ratelimit-*`).
 */
export function holdMs(
  { status, retryAfterMs }: { status: number; retryAfterMs: number | null },
  headers: LimitHeaders | null,
): number {
  const refused = status === 429 ? (retryAfterMs ?? 0) : 0;
  const requests = untilReset(headers?.remainingRequests, headers?.resetRequests);
  const tokens = untilReset(headers?.remainingTokens, headers?.resetTokens);
  return Math.min(LONGEST_HOLD_MS, Math.max(refused, requests, tokens));
}

function untilReset(remaining: string | undefined, reset: string | undefined): number {
  if (remaining === undefined || !/^\s*-?\d+\s*$/.test(remaining) || Number(remaining) > 0)
    return 0;
  return parseReset(reset) ?? 0;
}

const RESET =
  /^(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?$/;
const UNITS_MS = [86_400_000, 3_600_000, 60_000, 1_000, 1];

/**
 * Milliseconds of an `x-ratelimit-reset-*` header: a duration as Go prints it (`1s`, `6m0s`, `20ms`, `1h2m3.5s`), or
 * plain seconds, which some gateways send; null when absent or unreadable.
 */
export function parseReset(text: string | undefined): number | null {
  const trimmed = text?.trim() ?? '';
  if (/^\d+(\.\d+)?$/.test(trimmed)) return Number(trimmed) * 1_000;
  const parts = RESET.exec(trimmed);
  if (parts === null || trimmed === '') return null;
  return UNITS_MS.reduce((sum, unit, index) => sum + Number(parts[index + 1] ?? 0) * unit, 0);
}
