/** Lets only so many at once do something, in the order in which they ask. */
export interface Turns {
  /** Resolves when it is one's turn; whoever was given one calls `give`, once. */
  take(): Promise<void>;
  give(): void;
}

export function createTurns(limit: number): Turns {
  const waiting: (() => void)[] = [];
  let free = limit;
  return {
    async take() {
      if (free > 0) {
        free -= 1;
        return;
      }
      const { promise, resolve } = Promise.withResolvers<undefined>();
      waiting.push(() => resolve(undefined));
      await promise;
    },
    give() {
      const next = waiting.shift();
      if (next === undefined) free += 1;
      else next();
    },
  };
}
