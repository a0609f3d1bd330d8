import { onAbort } from './on-abort.ts';

/**
 * The bytes that one process holds: lines in hand, answers being read, open segments. It is a brake, not a wall:
 * new lines wait while it is used up; an answer on its way may go over it by itself, long ones one at a time.
 */
export interface Budget {
  readonly used: number;
  readonly limit: number;
  add(bytes: number): void;
  remove(bytes: number): void;
  isOver(): boolean;
  /** Resolves when there is room again, or when the signal is aborted. */
  room(signal: AbortSignal): Promise<void>;
  /** Lets one long answer at a time go on while the budget is used up, else all; call the result when it is read. */
  turn(): Promise<() => void>;
}

export function createBudget(limit: number, onOver: () => void): Budget {
  let used = 0;
  const waiting = new Set<() => void>();
  let lastTurn = Promise.resolve();

  function wakeAll(): void {
    const woken = [...waiting];
    waiting.clear();
    for (const wake of woken) wake();
  }

  return {
    limit,
    get used() {
      return used;
    },
    add(bytes) {
      const wasOver = used >= limit;
      used += bytes;
      if (!wasOver && used >= limit) onOver();
    },
    remove(bytes) {
      used -= bytes;
      if (used < limit && waiting.size > 0) wakeAll();
    },
    isOver() {
      return used >= limit;
    },
    async room(signal) {
      while (used >= limit && !signal.aborted) {
        await new Promise<void>((resolve) => {
          const forgetSignal = onAbort(signal, resolve);
          waiting.add(() => {
            forgetSignal();
            resolve();
          });
        });
      }
    },
    async turn() {
      const before = lastTurn;
      const { promise, resolve } = Promise.withResolvers<void>();
      lastTurn = promise;
      await before;
      return resolve;
    },
  };
}
