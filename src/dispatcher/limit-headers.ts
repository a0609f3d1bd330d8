import type { IncomingHttpHeaders } from 'node:http';
import type { LimitHeaders } from '../domain/rate-limit.ts';

/** What an answer says about the limits of who gave it; null, as for most engines: nothing. */
export function limitHeaders(headers: IncomingHttpHeaders): LimitHeaders | null {
  const remainingRequests = single(headers['x-ratelimit-remaining-requests']);
  const remainingTokens = single(headers['x-ratelimit-remaining-tokens']);
  if (remainingRequests === undefined && remainingTokens === undefined) return null;
  return {
    remainingRequests,
    remainingTokens,
    resetRequests: single(headers['x-ratelimit-reset-requests']),
    resetTokens: single(headers['x-ratelimit-reset-tokens']),
  };
}

function single(header: string | string[] | undefined): string | undefined {
  return Array.isArray(header) ? header[0] : header;
}
