import type { ApiContext } from './routes.ts';

/**
 * Whether the client has what bears this strong ETag already (If-None-Match, RFC 9110): compared as weak tags are, since
 * it may have it compressed. What has no ETag is never known.
 */
export function isKnown(c: ApiContext, etag: string | null): boolean {
  if (etag === null) return false;
  const known = c.req.header('if-none-match')?.split(',') ?? [];
  const tags = new Set(known.map((tag) => tag.trim().replace(/^W\//, '')));
  return tags.has('*') || tags.has(etag);
}
