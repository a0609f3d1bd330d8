/** Runs `sync` soon after it is kicked, once for many kicks, and at times that it asks for. */
export interface Loop {
  kick(): void;
  /** At the latest then; an earlier one stays. */
  at(ms: number): void;
  stop(): void;
}

export function createLoop(sync: () => void): Loop {
  let soon: NodeJS.Immediate | undefined;
  let timer: NodeJS.Timeout | undefined;
  let due = Number.POSITIVE_INFINITY;
  let stopped = false;

  function run(): void {
    soon = undefined;
    if (!stopped) sync();
  }

  return {
    kick() {
      if (!stopped) soon ??= setImmediate(run);
    },
    at(ms) {
      if (stopped || ms >= due) return;
      due = ms;
      clearTimeout(timer);
      timer = setTimeout(
        () => {
          due = Number.POSITIVE_INFINITY;
          run();
        },
        Math.min(Math.max(0, ms - Date.now()), 2 ** 31 - 1),
      );
    },
    stop() {
      stopped = true;
      clearImmediate(soon);
      clearTimeout(timer);
    },
  };
}
