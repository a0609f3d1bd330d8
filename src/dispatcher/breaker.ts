import type { Clock } from './clock.ts';

/** So many broken connections in a row, with no answer between them, are the engine's fault and not a line's. */
const FAILURES_TO_OPEN = 5;
const PROBE_EVERY_MS = 1_000;

/** Stops what can only fail: open after a run of failures, closed again by a probe that succeeds. */
export interface Breaker {
  readonly isOpen: boolean;
  succeeded(): void;
  failed(reason: string): void;
  /** Looks at once instead of waiting for more failures, and opens where nobody answers. */
  doubt(reason: string): Promise<void>;
  /** Ends probing for good. */
  close(): void;
}

export function createBreaker(options: {
  clock: Clock;
  probe: () => Promise<boolean>;
  onOpen: (reason: string) => void;
  onClose: () => void;
}): Breaker {
  const stop = new AbortController();
  let failures = 0;
  let open = false;

  async function probeUntilUp(): Promise<void> {
    while (open && !stop.signal.aborted) {
      await options.clock.sleep(PROBE_EVERY_MS, stop.signal);
      if (stop.signal.aborted || !(await options.probe())) continue;
      open = false;
      failures = 0;
      options.onClose();
    }
  }

  function openNow(reason: string): void {
    open = true;
    options.onOpen(reason);
    void probeUntilUp();
  }

  return {
    get isOpen() {
      return open;
    },
    succeeded() {
      failures = 0;
    },
    failed(reason) {
      failures += 1;
      if (!open && failures >= FAILURES_TO_OPEN) openNow(reason);
    },
    async doubt(reason) {
      if (open || stop.signal.aborted || (await options.probe())) return;
      if (!open && !stop.signal.aborted) openNow(reason);
    },
    close() {
      stop.abort();
    },
  };
}
