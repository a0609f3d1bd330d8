import type { ApiContext } from './routes.ts';

/** The header `Range`, which is defined for GET only. */
export function askedRange(c: ApiContext): string | undefined {
  return c.req.method === 'GET' ? c.req.header('range') : undefined;
}

/** Whether the client takes its answer compressed; who asks for a range of bytes means the plain ones. */
export function acceptsGzip(c: ApiContext): boolean {
  // Any `Range` header, also one that is answered with the whole, is of plain bytes.
  if (askedRange(c) !== undefined) return false;
  const weights = new Map<string, number>();
  for (const item of (c.req.header('accept-encoding') ?? '').toLowerCase().split(',')) {
    const [coding = '', ...parameters] = item.split(';').map((part) => part.trim());
    const q = parameters.find((parameter) => parameter.startsWith('q='));
    weights.set(coding, q === undefined ? 1 : Number(q.slice(2)));
  }
  return (weights.get('gzip') ?? weights.get('x-gzip') ?? weights.get('*') ?? 0) > 0;
}
