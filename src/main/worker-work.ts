import { describeError } from '../domain/errors.ts';
import { createLogger } from '../observability/log.ts';
import { openSystem } from './system.ts';
import type { System } from './system.ts';
import { startWorkers } from './worker.ts';
import type { RunningWorker } from './worker.ts';
import { REPORT } from './worker-messages.ts';
import type { Go, WorkerMessage, WorkOrder } from './worker-messages.ts';

const LOAD_EVERY_MS = 250;
const REPORT_EVERY_MS = 2_000;
/** Longer than the supervisor waits: it ends a process that has no supervisor any more. */
const LAST_RESORT_MS = 10_000;

/**
 * Gets ready as ordered, works when it is told to, and resolves when everything in hand was committed or given back
 * after SIGTERM or the supervisor's end. Before `onWork` that end is the caller's to answer. Ends the process with
 * code 1 when it cannot start.
 */
export async function work(inbox: AsyncIterator<unknown>, onWork: () => void): Promise<void> {
  const { settings, logLevel, namespace, name } = await next<WorkOrder>(inbox);
  const log = createLogger({ level: logLevel });
  try {
    const system = await openSystem({ settings, log, namespace, roles: ['worker'], name });
    log.info({ name }, 'worker process is ready');
    const { number } = await next<Go>(inbox);
    await inbox.return?.();
    log.setBindings({ worker: number });
    const worker = await startWorkers(system);
    const told = untilTold();
    onWork();
    const telling = startTelling(system, worker);
    await tell({ type: 'up' });
    log.info({ name }, 'worker process is up');
    await stop(await told, { system, worker, telling });
  } catch (error) {
    log.fatal({ err: error, reason: describeError(error) }, 'worker process failed');
    process.exit(1);
  }
}

/** The supervisor's next message: of the same commit, so it is what both have agreed on. */
async function next<Message>(inbox: AsyncIterator<unknown>): Promise<Message> {
  const { value } = await inbox.next();
  const [message] = value as [Message];
  return message;
}

/** Resolves with why it is to stop. */
function untilTold(): Promise<string> {
  return new Promise((resolve) => {
    process.on('SIGTERM', () => resolve('SIGTERM'));
    process.once('disconnect', () => resolve('the supervisor is gone'));
    if (!process.connected) resolve('the supervisor is gone');
  });
}

interface Work {
  system: System;
  worker: RunningWorker;
  telling: { end(): Promise<void> };
}

async function stop(why: string, { system, worker, telling }: Work): Promise<void> {
  const { log, settings } = system;
  log.info({ why }, 'worker process stops');
  const lastResort = setTimeout(() => {
    log.error({}, 'stopping took too long');
    process.exit(1);
  }, settings.shutdownGrace + LAST_RESORT_MS);
  await worker.close();
  await system.close();
  await telling.end();
  clearTimeout(lastResort);
}

/** Tells the supervisor what there is to do and what was counted, now and then and when it asks. */
function startTelling({ metrics }: System, worker: RunningWorker): Work['telling'] {
  let told = '';
  async function report(): Promise<void> {
    await tell({ type: 'report', metrics: await metrics.snapshot() });
  }
  const loads = setInterval(() => {
    const { load } = worker;
    const now = JSON.stringify(load());
    if (now !== told) void tell({ type: 'load', load: load() });
    told = now;
  }, LOAD_EVERY_MS);
  const reports = setInterval(() => void report(), REPORT_EVERY_MS);
  process.on('message', (message) => {
    if (message === REPORT) void report();
  });
  return {
    async end() {
      clearInterval(loads);
      clearInterval(reports);
      await report();
    },
  };
}

/** Resolves when the message is on its way; without a supervisor nobody wants to know. */
function tell(message: WorkerMessage): Promise<void> {
  return new Promise((resolve) => {
    if (!process.connected || process.send === undefined) resolve();
    // An error says that the supervisor has just gone, and so does `disconnect`.
    else process.send(message, undefined, undefined, () => resolve());
  });
}
