import type { ApiContext } from './routes.ts';

const HEADERS = ['x-aibrix-user-email', 'x-user-id'] as const;
const LONGEST = 255;

/** Who asks, as they or a gateway before us say; empty where nobody does. It is shown and filtered by, never trusted. */
export function requester(c: ApiContext): string {
  for (const name of HEADERS) {
    const given = c.req.header(name)?.trim() ?? '';
    if (given !== '') return given.slice(0, LONGEST);
  }
  return '';
}
