import * as v from 'valibot';
import { invalidInput } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';

/** The refusal of a list's `after` that names no `what`, such as a job. */
export function unknownCursor(what: string, after: string): SluiceError {
  const message = `There is no ${what} '${after.slice(0, 100)}' to go on after: send the last_id of the page before, or leave 'after' out.`;
  return invalidInput('invalid_cursor', message, { param: 'after' });
}

/** `limit` of a list: an integer of a query string within 1 and `max`. */
export function limitSchema(max: number, byDefault: number) {
  const rule = `an integer from 1 to ${max}`;
  return v.optional(
    v.pipe(
      v.string(rule),
      v.regex(/^\d{1,9}$/, rule),
      v.transform(Number),
      v.minValue(1, rule),
      v.maxValue(max, rule),
    ),
    String(byDefault),
  );
}
