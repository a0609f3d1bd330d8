import * as v from 'valibot';
import { readBody, readJson } from '../body.ts';
import type { ApiContext } from '../routes.ts';
import { snakeKeys } from './snake-keys.ts';

const NAME_RULE = 'a text of at most 512 characters';
/** The name that a job is asked to have. */
export const jobNameSchema = v.pipe(v.string(NAME_RULE), v.maxLength(512, NAME_RULE));

/** A completion window. By protojson's habit an empty text is one that was not given, which is null here. */
export const windowSchema = v.pipe(
  v.nullish(v.string('a text such as 24h'), ''),
  v.transform((text) => (text === '' ? null : text)),
);

/**
 * The query of a list: both cases, what is given several times as one list, and, by protojson's habit, without those
 * that are empty.
 */
export function listQuery(c: ApiContext): unknown {
  const query = Object.entries(c.req.queries()).map(([name, values]) => [name, values.join(',')]);
  return snakeKeys(Object.fromEntries(query.filter(([, value]) => value !== '')), []);
}

/** The body of a request that needs none. */
export async function optionalJson(c: ApiContext): Promise<unknown> {
  if ((await readBody(c.env.incoming)).length === 0) return {};
  return snakeKeys(await readJson(c.env.incoming), ['metadata']);
}
