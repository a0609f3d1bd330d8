/** Longer names are nobody's typos, and comparing them takes time. */
const LONGEST = 64;

/** The known name that somebody most likely meant by this one; null where none is near. */
export function nearest(name: string, known: readonly string[]): string | null {
  if (name.length > LONGEST) return null;
  // A third of its letters may be wrong: of short names less, or any would be near.
  let most = Math.floor(name.length / 3);
  let found: string | null = null;
  for (const candidate of known) {
    const away = distance(name, candidate);
    if (away > most) continue;
    found = candidate;
    most = away - 1;
  }
  return found;
}

/** How many letters have to be added, left out or changed to make one of the other (Levenshtein). */
function distance(from: string, to: string): number {
  let row = Array.from({ length: to.length + 1 }, (_, n) => n);
  for (let i = 0; i < from.length; i += 1) {
    const next = [i + 1];
    for (let j = 0; j < to.length; j += 1) {
      const changed = (row[j] ?? 0) + (from[i] === to[j] ? 0 : 1);
      next.push(Math.min(changed, (row[j + 1] ?? 0) + 1, (next[j] ?? 0) + 1));
    }
    row = next;
  }
  return row.at(-1) ?? 0;
}
