/** Header fields of an answer, lower case. */
export type Headers = Readonly<Record<string, string | string[] | undefined>>;

function header(headers: Headers, name: string): string {
  const value = headers[name];
  return (Array.isArray(value) ? value.join(', ') : value) ?? '';
}

/** `Retry-After` as RFC 9110 has it, seconds or a date, in ms from `now`; null where there is none. */
function retryAfter(headers: Headers, now: number): number | null {
  const value = header(headers, 'retry-after').trim();
  if (/^\d+(\.\d+)?$/.test(value)) return Math.ceil(Number(value) * 1000);
  const date = value === '' ? Number.NaN : Date.parse(value);
  return Number.isNaN(date) ? null : Math.max(0, date - now);
}

/** ms until every full window of `RateLimit: "minute";r=0;t=12, "hour";r=2800;t=1812` opens; null where none is full. */
function windowsFull(headers: Headers): number | null {
  let wait: number | null = null;
  for (const window of header(headers, 'ratelimit').split(',')) {
    const left = /;\s*r=(\d+)/.exec(window)?.[1];
    const seconds = /;\s*t=(\d+)/.exec(window)?.[1];
    if (left === undefined || seconds === undefined || Number(left) > 0) continue;
    wait = Math.max(wait ?? 0, Number(seconds) * 1000);
  }
  return wait;
}

/** So many requests of an account in each so many seconds. */
interface Quota {
  requests: number;
  seconds: number;
}

/** Shares of a minute's and of a longer window's quota: what flows in evenly, and with what goes at once besides. */
const OF_MINUTE = { evenly: 0.6, most: 0.8 };
const OF_LONGER = { evenly: 0.95, most: 0.975 };

/**
 * How often to ask where windows are whole and quotas are the account's: every window has room for all but giving back,
 * which must not wait and has what is left of it.
 *
 * @param quotas at least one
 */
export function paceFor(quotas: readonly Quota[]) {
  const windows = quotas.map((quota) => ({
    ...quota,
    share: quota.seconds <= 60 ? OF_MINUTE : OF_LONGER,
  }));
  const rates = windows.map(({ requests, seconds, share }) => (share.evenly * requests) / seconds);
  const callsPerSecond = Math.min(...rates);
  const rooms = windows.map(
    ({ requests, seconds, share }) => share.most * requests - seconds * callsPerSecond,
  );
  return { callsPerSecond, callsAtOnce: Math.max(1, Math.floor(Math.min(...rooms))) };
}

/** The account's quotas by `RateLimit-Policy: "minute";q=60;w=60, "hour";q=3000;w=3600`; null where there are none. */
export function quotasTold(headers: Headers): Quota[] | null {
  const quotas: Quota[] = [];
  for (const window of header(headers, 'ratelimit-policy').split(',')) {
    const requests = Number(/;\s*q=(\d+)/.exec(window)?.[1] ?? 0);
    const seconds = Number(/;\s*w=(\d+)/.exec(window)?.[1] ?? 0);
    if (requests > 0 && seconds > 0) quotas.push({ requests, seconds });
  }
  return quotas.length === 0 ? null : quotas;
}

/** How long the provider wants to be left alone after this answer, ms; null where it does not say. */
export function restAsked(status: number, headers: Headers, now: number): number | null {
  const told = status === 429 || status === 503 ? retryAfter(headers, now) : null;
  return told ?? windowsFull(headers);
}
