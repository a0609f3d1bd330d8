import { describeError, SluiceError, transient } from '../../domain/errors.ts';
import type { Dispatcher, DispatchJob, RunSignals } from '../../dispatcher/dispatcher.ts';
import type { Ledger } from '../../domain/kubernetes/ledger.ts';
import type { RunPlan, RunWriter } from '../../domain/kubernetes/run-record.ts';
import type { Logger } from '../../observability/log.ts';
import { clock } from '../clock.ts';

/** Shards in hand at once; lines are few of them. */
const MOST_HELD = 256;
const FIRST_AGAIN_MS = 500;
const LONGEST_AGAIN_MS = 30_000;
/** Failures one after the other, with no shard answered between them, that storage may be away for: about a quarter of an hour. */
const MOST_FAILURES = 40;

export interface Answering {
  dispatcher: Pick<Dispatcher, 'run' | 'asideMs'>;
  job: DispatchJob;
  plan: RunPlan;
  /** The shards that are this process's to answer, in the order in which it takes them. */
  shards: readonly number[];
  writer: RunWriter;
  /** It may be another one after storage has lost something. */
  ledger(): Ledger;
  log: Logger;
}

/**
 * Has every line of these shards answered. Resolves when all are, or `signals.stop` came and what was answered is
 * committed. Input or storage that is away is tried again; rejects with what no retry mends.
 */
export async function answerShards(
  answering: Answering,
  signals: RunSignals,
): Promise<'whole' | 'stopped'> {
  const { dispatcher, job, log } = answering;
  const failed = new AbortController();
  const stop = AbortSignal.any([signals.stop, failed.signal]);
  const abort = AbortSignal.any([signals.abort, failed.signal]);
  const queue = createQueue(answering);
  const running = new Map<number, Promise<void>>();
  const bell = createBell(stop);
  let failures = 0;

  async function run(n: number): Promise<void> {
    try {
      const result = await dispatcher.run(take(n, answering), job, { stop, abort });
      if (result === 'done') failures = 0;
    } catch (error) {
      if (stop.aborted) return;
      failures += 1;
      if (isHopeless(error) || failures > MOST_FAILURES) {
        failed.abort(error);
        return;
      }
      const waitMs = Math.min(FIRST_AGAIN_MS * 2 ** failures, LONGEST_AGAIN_MS);
      log.warn({ shard: n, reason: describeError(error), waitMs }, 'a shard is tried again');
      queue.rest(n, clock.now() + waitMs);
    }
  }

  while (!stop.aborted) {
    const isFull = running.size >= MOST_HELD;
    const waitMs = isFull ? LONGEST_AGAIN_MS : dispatcher.asideMs(job.id);
    const n = waitMs > 0 ? null : queue.next((each) => running.has(each));
    if (n === null && running.size === 0 && queue.isEmpty()) return 'whole';
    if (n === null) {
      await bell.wait(Math.max(waitMs, SHORTEST_MS));
      continue;
    }
    running.set(
      n,
      run(n).finally(() => {
        running.delete(n);
        bell.wake();
      }),
    );
  }
  await Promise.all(running.values());
  if (failed.signal.aborted) throw failed.signal.reason;
  return 'stopped';
}

const SHORTEST_MS = 20;

/** Waits until `wake` is called, the time is up, or the signal comes. */
function createBell(stop: AbortSignal) {
  let over = new AbortController();
  return {
    wake(): void {
      over.abort();
    },
    async wait(ms: number): Promise<void> {
      if (over.signal.aborted) over = new AbortController();
      await clock.sleep(ms, AbortSignal.any([stop, over.signal]));
    },
  };
}

function take(n: number, { plan, ledger, writer }: Answering) {
  const shard = plan.shards[n];
  if (shard === undefined) throw new Error(`the plan has no shard ${n}`);
  const now = ledger();
  return {
    plan: shard,
    token: writer.name,
    done: now.doneOf(n),
    bad: plan.bad.get(n) ?? null,
    left: now.leftOf(n),
    takes: 1,
    crashed: null,
  };
}

/** Which shard is next: those that have lines without an answer, in order, and tried again those that failed. */
function createQueue({ shards, ledger }: Answering) {
  const resting = new Map<number, number>();
  let from = 0;

  function isOpen(n: number): boolean {
    return ledger().leftOf(n) > 0;
  }

  return {
    rest(n: number, until: number): void {
      resting.set(n, until);
    },
    next(isHeld: (n: number) => boolean): number | null {
      while (from < shards.length && !isOpen(shards[from] ?? 0)) from += 1;
      for (let at = from; at < shards.length; at += 1) {
        const n = shards[at] ?? 0;
        if (isHeld(n) || !isOpen(n) || (resting.get(n) ?? 0) > clock.now()) continue;
        return n;
      }
      return null;
    },
    isEmpty(): boolean {
      while (from < shards.length && !isOpen(shards[from] ?? 0)) from += 1;
      return !shards.slice(from).some(isOpen);
    },
  };
}

/** An input that is another one now stays so; a store that refuses us may be mended. */
function isHopeless(error: unknown): boolean {
  return (
    error instanceof SluiceError &&
    error.kind === 'Permanent' &&
    /^(?:input\.|storage\.changed)/.test(error.code)
  );
}

/** An input that is away may come back, as a bucket does. */
export function missingInput(): SluiceError {
  return transient('input.missing', 'The input file is not in storage.');
}
