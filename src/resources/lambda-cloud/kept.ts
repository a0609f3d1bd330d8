/** Something of the account that changes seldom, asked for at most so often. */
export interface Kept<T> {
  /** What was found when it was last asked for, which all who ask at once share. What failed is not kept. */
  get(): Promise<T>;
  forget(): void;
}

export function createKept<T>(fetch: () => Promise<T>, keepMs: number, now: () => number): Kept<T> {
  let kept: { until: number; value: Promise<T> } | null = null;

  async function get(): Promise<T> {
    if (kept !== null && now() < kept.until) return kept.value;
    const value = fetch();
    // It is good for so long from when it came, and it may have to wait for its turn.
    const fresh = { until: Infinity, value };
    kept = fresh;
    try {
      await value;
      fresh.until = now() + keepMs;
    } catch (error) {
      if (kept === fresh) kept = null;
      throw error;
    }
    return value;
  }

  return {
    get,
    forget() {
      kept = null;
    },
  };
}
