/** Numbers that look random and are the same for the same seed. */
export interface Random {
  /** A whole number from 0 to `limit`, excluded. */
  below(limit: number): number;
  chance(probability: number): boolean;
  /** One of them; undefined of none. */
  pick<T>(from: readonly T[]): T | undefined;
  /** A name that no other call returns, or hardly. */
  name(): string;
}

/** Mulberry32. */
export function seededRandom(seed: number): Random {
  let state = seed | 0;
  function next(): number {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  }
  function below(limit: number): number {
    return Math.floor(next() * limit);
  }
  return {
    below,
    chance: (probability) => next() < probability,
    pick: (from) => from[below(from.length)],
    name: () => `${below(2 ** 31).toString(36)}${below(2 ** 31).toString(36)}`,
  };
}
