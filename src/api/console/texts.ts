import * as v from 'valibot';

/**
 * Fields of the Console's messages as protojson reads them: what is missing, null or the empty value of its type was
 * not given.
 */

/** A text; empty when it was not given. */
export function textField(most: number) {
  const rule = `a text of at most ${most} characters`;
  return v.nullish(v.pipe(v.string(rule), v.maxLength(most, rule)), '');
}

/** A text that has to be there. */
export function requiredText(most: number) {
  const rule = `a text of 1 to ${most} characters`;
  return v.pipe(v.string(rule), v.minLength(1, rule), v.maxLength(most, rule));
}

/** A list of texts; empty when it was not given. */
export function textList(count: number, most: number) {
  const rule = `a list of at most ${count} texts of at most ${most} characters`;
  return v.nullish(
    v.pipe(
      v.array(v.pipe(v.string(rule), v.maxLength(most, rule)), rule),
      v.maxLength(count, rule),
    ),
    [],
  );
}

export function flagField() {
  return v.nullish(v.boolean('true or false'), false);
}

/** A whole number; `byDefault` when it is 0 or was not given. */
export function wholeField(min: number, max: number, byDefault: number) {
  const rule = `a whole number from ${min} to ${max}`;
  return v.pipe(
    v.nullish(v.number(rule), byDefault),
    v.transform((value) => (value === 0 ? byDefault : value)),
    v.check((value) => Number.isInteger(value), rule),
    v.check((value) => value === byDefault || (value >= min && value <= max), rule),
  );
}

/** One of some words; `byDefault` when it is empty or was not given. */
export function wordField<const Words extends readonly string[], const Default extends string>(
  words: Words,
  byDefault: Default,
) {
  const rule = `one of ${words.join(', ')}`;
  return v.pipe(
    v.nullish(v.string(rule), ''),
    v.transform((word) => word || byDefault),
    v.picklist([...words, byDefault] as [...Words, Default], rule),
  );
}
