import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import type { Load } from '../dispatcher/dispatcher.ts';
import { describeError } from '../domain/errors.ts';
import type { Snapshot } from '../observability/metrics.ts';
import { soon } from './soon.ts';
import { REPORT } from './worker-messages.ts';
import type { Go, WorkerMessage, WorkOrder } from './worker-messages.ts';

const ENTRY = join(import.meta.dirname, 'worker-child.ts');
/** A scrape waits no longer for a process that is busy, and shows what it said last. */
const REPORT_WITHIN_MS = 500;
/** What a process said last arrives this late after its end at the latest. */
const LAST_WORDS_MS = 1_000;

/** How a process ended. */
export interface WorkerEnd {
  code: number | null;
  signal: NodeJS.Signals | null;
  /** Why it could not even be started. */
  error?: string;
}

/** One worker process, as its supervisor sees it. Until it is told to go it stands by, loaded and connected. */
export interface WorkerProcess {
  name: string;
  /** Undefined when it could not be started. */
  pid: number | undefined;
  /** Whether it has ended. */
  readonly isOver: boolean;
  /** Lets it work; once. */
  go(go: Go): void;
  /** Whether it has ever worked. */
  readonly wasUp: boolean;
  /** Resolves when it works, or has ended before. */
  up: Promise<unknown>;
  ended: Promise<WorkerEnd>;
  /** Resolves a moment after its end, when its last report is here. */
  silent: Promise<unknown>;
  /** What it has in hand. */
  load(): Load;
  /** What it counted: now if it answers at once, else as it said last. */
  report(): Promise<Snapshot>;
  kill(signal: NodeJS.Signals): void;
}

export const NO_LOAD: Load = { unsent: 0, inFlight: 0, uncommitted: 0, budgetUsed: 0 };

/**
 * Starts a process with the same Node and flags as this one. Never throws: where none can be started (no memory, no
 * file descriptor, Node is being replaced), what is returned has ended already, and says why.
 */
export function startWorkerProcess(
  order: WorkOrder,
  { execPath = process.execPath } = {},
): WorkerProcess {
  let child: ChildProcess;
  try {
    child = fork(ENTRY, {
      execPath,
      execArgv: process.execArgv,
      serialization: 'advanced',
      // stdout belongs to the results of `sluice run`.
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    });
  } catch (error) {
    return stillborn(order.name, Promise.resolve(noStart(error)));
  }
  if (child.pid !== undefined) return follow(child, order);
  const error = new Promise<unknown>((resolve) => child.on('error', resolve));
  // Node may have made the channel before it failed, or not.
  if (child.connected) child.disconnect();
  return stillborn(order.name, error.then(noStart));
}

function noStart(error: unknown): WorkerEnd {
  return { code: null, signal: null, error: describeError(error) };
}

function stillborn(name: string, ended: Promise<WorkerEnd>): WorkerProcess {
  return {
    name,
    pid: undefined,
    isOver: true,
    wasUp: false,
    go: () => undefined,
    up: ended,
    ended,
    silent: ended,
    load: () => NO_LOAD,
    report: () => Promise.resolve([]),
    kill: () => undefined,
  };
}

function follow(child: ChildProcess, order: WorkOrder): WorkerProcess {
  let [works, wasUp, isOver] = [false, false, false];
  const ended = untilEnded(child).finally(() => (isOver = true));
  const up = Promise.withResolvers<void>();
  let load = NO_LOAD;
  let metrics: Snapshot = [];
  let reported = Promise.withResolvers<void>();
  child.on('message', (message) => {
    const told = message as WorkerMessage; // our own program's, of the same commit
    if (told.type === 'up') {
      wasUp = true;
      up.resolve();
    } else if (told.type === 'load') ({ load } = told);
    else {
      ({ metrics } = told);
      reported.resolve();
      reported = Promise.withResolvers<void>();
    }
  });
  const disconnected = new Promise<void>((resolve) => child.once('disconnect', resolve));
  send(child, order);
  return {
    name: order.name,
    pid: child.pid,
    get isOver() {
      return isOver;
    },
    get wasUp() {
      return wasUp;
    },
    go(go) {
      works = true;
      send(child, go);
    },
    up: Promise.race([up.promise, ended]),
    ended,
    silent: ended.then(() => soon(disconnected, LAST_WORDS_MS)),
    load: () => load,
    async report() {
      if (works && child.connected) {
        const answer = reported.promise;
        send(child, REPORT);
        await soon(Promise.race([answer, ended]), REPORT_WITHIN_MS);
      }
      return metrics;
    },
    kill: (signal) => void child.kill(signal),
  };
}

function send(child: ChildProcess, message: WorkOrder | Go | typeof REPORT): void {
  // Whether it was told decides nothing: one that cannot be has ended, and that is seen.
  child.send(message, () => undefined);
}

function untilEnded(child: ChildProcess): Promise<WorkerEnd> {
  return new Promise((resolve) => {
    child.once('exit', (code, signal) => resolve({ code, signal }));
    // A signal or a message that did not reach it: it has ended, and that is seen.
    child.on('error', () => undefined);
  });
}
