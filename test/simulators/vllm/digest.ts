import { hash } from 'node:crypto';

/** Lower-case hex SHA-256 of a body: the name by which answers, log and counters know a request. */
export function sha256(body: Buffer | string): string {
  return hash('sha256', body, 'hex');
}

/** A number in [0, 1) taken from a digest, so that what looks random is the same for the same body. */
export function fraction(digest: string, from = 24): number {
  return Number.parseInt(digest.slice(from, from + 8), 16) / 0x1_0000_0000;
}

/** Seeded random numbers in [0, 1) (mulberry32): a run with the same seed draws the same faults. */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 0x1_0000_0000;
  };
}
