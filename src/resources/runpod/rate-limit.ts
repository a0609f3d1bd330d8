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

/** How long the provider wants to be left alone after this answer, ms; null where it does not say. */
export function restAsked(status: number, headers: Headers, now: number): number | null {
  const told = status === 429 || status === 503 ? retryAfter(headers, now) : null;
  return told ?? windowsFull(headers);
}
