/** Time and chance, as arguments: tests give their own, main gives the real ones. */
export interface Clock {
  /** ms since 1970. */
  now(): number;
  /** In [0, 1). */
  random(): number;
  /** Resolves after so many ms, or at once when the signal is aborted; it never rejects. */
  sleep(ms: number, signal: AbortSignal): Promise<void>;
  /** Runs `task` after so many ms unless the returned function is called before. */
  after(ms: number, task: () => void): () => void;
}
