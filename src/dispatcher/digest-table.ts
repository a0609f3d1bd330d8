/** Words of a record: four of a 128-bit digest, then the line number's low and high half. */
export const RECORD_WORDS = 6;
const DIGEST_WORDS = 4;
const FEWEST_SLOTS = 64;

/** Distinct digests with the line that had each first: an open-addressing hash table over typed arrays. */
export interface DigestTable {
  /** The line that had this digest before, or null: then `records` from `at` is remembered. */
  seen(records: Uint32Array, at: number): number | null;
  clear(): void;
}

/** A word that is there: indexing alone would be typed as perhaps undefined. */
export function wordAt(words: Uint32Array, at: number): number {
  return words[at] ?? 0;
}

export function lineNumber(records: Uint32Array, at: number): number {
  return wordAt(records, at + DIGEST_WORDS) + wordAt(records, at + DIGEST_WORDS + 1) * 2 ** 32;
}

function sameDigest(a: Uint32Array, atA: number, b: Uint32Array, atB: number): boolean {
  for (let word = 0; word < DIGEST_WORDS; word += 1) {
    if (a[atA + word] !== b[atB + word]) return false;
  }
  return true;
}

/**
 * Where a digest is in the slots, or where it would be put. The first word chooses the partition of a spilled record,
 * so the second one spreads within a table.
 */
function findSlot(slots: Uint32Array, records: Uint32Array, at: number): number {
  const size = slots.length / RECORD_WORDS;
  let slot = wordAt(records, at + 1) % size;
  for (;;) {
    const start = slot * RECORD_WORDS;
    const isFree = lineNumber(slots, start) === 0;
    if (isFree || sameDigest(slots, start, records, at)) return start;
    slot = (slot + 1) % size;
  }
}

/** Line numbers are at least 1: a zero marks a free slot. */
export function createDigestTable(): DigestTable {
  let slots = new Uint32Array(FEWEST_SLOTS * RECORD_WORDS);
  let count = 0;
  function put(records: Uint32Array, at: number, start: number): void {
    for (let word = 0; word < RECORD_WORDS; word += 1)
      slots[start + word] = wordAt(records, at + word);
  }
  function grow(): void {
    const old = slots;
    slots = new Uint32Array(old.length * 2);
    for (let at = 0; at < old.length; at += RECORD_WORDS) {
      if (lineNumber(old, at) !== 0) put(old, at, findSlot(slots, old, at));
    }
  }
  return {
    seen(records, at) {
      const start = findSlot(slots, records, at);
      const first = lineNumber(slots, start);
      if (first !== 0) return first;
      put(records, at, start);
      count += 1;
      if (count * RECORD_WORDS * 1.5 > slots.length) grow();
      return null;
    },
    clear() {
      slots.fill(0);
      count = 0;
    },
  };
}
