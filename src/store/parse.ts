import * as v from 'valibot';
import type { SluiceError } from '../domain/errors.ts';
import { damaged } from './scripts.ts';

/** Hash fields are text; a whole number is one that survives as a JavaScript number. */
export const integer = v.pipe(v.string(), v.regex(/^-?\d+$/), v.transform(Number), v.safeInteger());

/** A count that is not written before it is above 0. */
export const count = v.optional(integer, '0');

/** Text that may be missing or empty, which both mean null. */
export const textOrNull = v.pipe(
  v.optional(v.string(), ''),
  v.transform((text) => (text === '' ? null : text)),
);

/** Fails as an issue, not with a throw, where the text is no JSON. */
export const jsonText = v.pipe(v.string(), v.parseJson());

/** Numbers and Buffers of script replies. */
export const replyNumber = v.union([
  v.pipe(v.number(), v.safeInteger()),
  integer,
  v.pipe(v.instance(Buffer), v.transform(String), integer),
]);

export type Fields = Record<string, string>;

/** Parses the fields of record `id`; throws `store.damaged_record` with the field that is not what it should be. */
export function parseRecord<const Schema extends v.GenericSchema>(
  id: string,
  schema: Schema,
  fields: unknown,
): v.InferOutput<Schema> {
  const parsed = v.safeParse(schema, fields, { abortEarly: true });
  if (parsed.success) return parsed.output;
  const [issue] = parsed.issues;
  throw damaged(id, v.getDotPath(issue) ?? '(all)');
}

/** When each state was first entered, of the fields `<state>_at`. */
export function parseEntered<State extends string>(
  id: string,
  states: readonly State[],
  fields: Fields,
): Partial<Record<State, number>> {
  const entered: Partial<Record<State, number>> = {};
  for (const state of states) {
    const at = fields[`${state}_at`];
    if (at !== undefined) entered[state] = parseRecord(`${id} ${state}_at`, integer, at);
  }
  return entered;
}

/** Told of each record that a list leaves out because it cannot be read. */
export type OnDamaged = (error: SluiceError) => void;
