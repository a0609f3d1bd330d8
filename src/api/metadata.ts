import * as v from 'valibot';

/** OpenAI's limits: 16 pairs, keys of 64 and values of 512 characters. */
const RULE =
  'an object of at most 16 pairs of strings, keys of at most 64 and values of at most 512 characters';

const record = v.record(v.string(), v.string('a string'), RULE);

const notAnObject = v.string(RULE);

/**
 * A record of strings as valibot has it, but an array is none, and it keeps every key: `v.record` drops `constructor`,
 * `prototype` and `__proto__` in silence, in fear of objects that are built by assignment, which ours are not.
 */
const pairs: typeof record = {
  ...record,
  '~run'(dataset, config) {
    const { value } = dataset;
    if (Array.isArray(value)) {
      const refused = notAnObject['~run']({ value }, config);
      if (!refused.typed) return refused;
    }
    const checked = record['~run'](dataset, config);
    if (!checked.typed || typeof value !== 'object' || value === null) return checked;
    const given = Object.entries(value);
    const strings = given.filter(isPair);
    if (strings.length === given.length) return { typed: true, value: Object.fromEntries(strings) };
    const refused = notAnObject['~run']({ value }, config);
    return refused.typed ? checked : refused;
  },
};

function isPair(pair: [string, unknown]): pair is [string, string] {
  return typeof pair[1] === 'string';
}

/** What users note on a job, for themselves. */
export const metadataSchema = v.pipe(
  pairs,
  v.check((given) => Object.keys(given).length <= 16, RULE),
  v.check(
    (given) =>
      Object.entries(given).every(([key, value]) => key.length <= 64 && value.length <= 512),
    RULE,
  ),
);
