import * as v from 'valibot';

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
