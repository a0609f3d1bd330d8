/**
 * Statuses worth asking again: the engine was busy, late or restarting. Anything else it says is the line's answer.
 */
const RETRIED = new Set([408, 409, 425, 429]);

export function isRetriedStatus(status: number): boolean {
  return RETRIED.has(status) || status >= 500;
}

export interface RetryPolicy {
  maxRetries: number;
  baseMs: number;
  capMs: number;
}

/** About four minutes in all, enough for an engine to drain its queue. */
export const DEFAULT_RETRY: RetryPolicy = { maxRetries: 10, baseMs: 250, capMs: 30_000 };

/**
 * Milliseconds to wait before attempt `attempt + 1`, or null when the line has had its share: exponential with full
 * jitter above half, `Retry-After` obeyed as a lower bound, never past the deadline.
 * `random` is in [0, 1); times in ms.
 */
export function retryDelay(
  policy: RetryPolicy,
  line: { attempt: number; retryAfterMs: number | null; now: number; deadline: number },
  random: number,
): number | null {
  if (line.attempt > policy.maxRetries) return null;
  const ceiling = Math.min(policy.capMs, policy.baseMs * 2 ** (line.attempt - 1));
  const delay = Math.max(ceiling * (0.5 + random / 2), line.retryAfterMs ?? 0);
  return line.now + delay < line.deadline ? delay : null;
}

/** Milliseconds of a `Retry-After` header (RFC 9110: seconds or a date); null when absent or unreadable. */
export function parseRetryAfter(header: string | undefined, now: number): number | null {
  if (header === undefined) return null;
  if (/^\d+(\.\d+)?$/.test(header.trim())) return Number(header) * 1_000;
  const date = Date.parse(header);
  return Number.isNaN(date) ? null : Math.max(0, date - now);
}
