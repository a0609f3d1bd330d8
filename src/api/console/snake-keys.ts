/**
 * The same value with its keys in snake_case, which takes clients that write camelCase as protojson allows.
 * What stands under a key in `verbatim` is the user's own and stays as it is.
 */
export function snakeKeys(value: unknown, verbatim: readonly string[]): unknown {
  if (Array.isArray(value)) return value.map((item) => snakeKeys(item, verbatim));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [
      key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
      verbatim.includes(key) ? inner : snakeKeys(inner, verbatim),
    ]),
  );
}
