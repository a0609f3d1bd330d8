/**
 * Statuses worth asking again: the engine was busy, late or restarting. Anything else it says is the line's answer.
 */
const RETRIED = new Set([408, 409, 425, 429]);

export function isRetriedStatus(status: number): boolean {
  return RETRIED.has(status) || status >= 500;
}

/** Statuses by which an engine says that it has enough to do. */
export function isRejection(status: number): boolean {
  return status === 429 || status === 503;
}

/** Statuses by which what stands before an engine says that it waited too long; 524 is Cloudflare's. */
export function isLate(status: number): boolean {
  return status === 408 || status === 504 || status === 524;
}

export interface RetryPolicy {
  maxRetries: number;
  baseMs: number;
  capMs: number;
}

/** About four minutes in all, enough for an engine to drain its queue. */
export const DEFAULT_RETRY: RetryPolicy = { maxRetries: 10, baseMs: 250, capMs: 30_000 };

/** An engine that wants to be left alone for longer is asked anyway: its word is a wish, the deadline a promise. */
const LONGEST_RETRY_AFTER_MS = 600_000;

/**
 * Milliseconds to wait before attempt `attempt + 1`: exponential with jitter over the upper half, and at least what
 * `Retry-After` asked for. `random` is in [0, 1).
 */
export function retryDelay(
  policy: RetryPolicy,
  line: { attempt: number; retryAfterMs: number | null },
  random: number,
): number {
  const ceiling = Math.min(policy.capMs, policy.baseMs * 2 ** (line.attempt - 1));
  const asked = Math.min(line.retryAfterMs ?? 0, LONGEST_RETRY_AFTER_MS);
  return Math.max(ceiling * (0.5 + random / 2), asked);
}

/** Milliseconds of a `Retry-After` header (RFC 9110: seconds or a date); null when absent or unreadable. */
export function parseRetryAfter(header: string | undefined, now: number): number | null {
  if (header === undefined) return null;
  if (/^\d+(\.\d+)?$/.test(header.trim())) return Number(header) * 1_000;
  const date = Date.parse(header);
  return Number.isNaN(date) ? null : Math.max(0, date - now);
}
