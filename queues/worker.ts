import { DelayedError, UnrecoverableError, Worker } from 'bullmq';
import type { Job } from 'bullmq';
import * as v from 'valibot';
import type { Redis } from 'ioredis';
import { describeError, queueAction, SluiceError } from '../src/domain/errors.ts';
import type { QueueName } from '../src/domain/job.ts';
import { LOCK, payload, QUEUES } from './catalog.ts';
import type { Payload } from './catalog.ts';
import { queuePrefix } from './queues.ts';

/** What a processor is given: a record's id, the wake it was scheduled under, and when to let go. */
export interface Task extends Payload {
  /** Aborted when the lock is lost or the process stops. */
  signal: AbortSignal;
  /** Aborted when the lock is lost: somebody else may work on the same record now. */
  lockLost: AbortSignal;
  /** Whoever had it died, or it was added before all that wait: nobody is to put it aside. */
  first?: boolean;
}

/** `done`, or to be looked at again in so many ms under the same wake. */
export type Verdict = 'done' | { againInMs: number };

export type Processor<Deps> = (task: Task, deps: Deps) => Promise<Verdict>;

/** One attempt of a processor, as it is logged and counted. */
export interface Attempt {
  queue: QueueName;
  id: string;
  attempt: number;
  ms: number;
  result: 'done' | 'again' | 'retry' | 'stop' | 'fail';
  error?: unknown;
}

export interface QueueWorker {
  readonly queue: QueueName;
  /** How many deliveries may be worked on at once; raising it fetches at once. */
  setConcurrency(count: number): void;
  /** Stops fetching, lets go of what is in hand by its signal, and resolves when nothing is. */
  close(): Promise<void>;
}

interface WorkerOptions<Deps> {
  queue: QueueName;
  connection: Redis;
  namespace: string;
  /** Of this process: with one, each delivery says who works on it. */
  name?: string;
  processor: Processor<Deps>;
  deps: Deps;
  /** Deliveries worked on at once; the queue's own number unless given. */
  concurrency?: number;
  /** Aborts every task in hand: the process stops. */
  stopping: AbortSignal;
  onAttempt: (attempt: Attempt) => void;
  onError: (error: Error) => void;
}

const NEVER = new AbortController().signal;

/**
 * BullMQ's worker forgets now and then when the next delayed delivery is due: who hears of that last (the end of one
 * delivery, a look at the queue, another process) may know nothing of it, and the marker that told it is gone. Then it
 * would look again after 5 s, or 10; this one does so sooner.
 */
class PromptWorker extends Worker<Payload> {
  override get maximumBlockTimeout(): number {
    return this.opts.drainDelay ?? super.maximumBlockTimeout;
  }
}
const FIRST_RETRY_MS = 250;
const LONGEST_RETRY_MS = 30_000;

function backoff(attemptsMade: number): number {
  return Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** Math.min(attemptsMade - 1, 16));
}

/** The one adapter to BullMQ: a delivery is parsed, processed, and ended, delayed or retried by what came of it. */
export function startWorker<Deps>(options: WorkerOptions<Deps>): QueueWorker {
  const { queue, connection, namespace, name, onError } = options;
  // Three parameters and no default: BullMQ makes an abort signal only for a function of that length.
  const worker = new PromptWorker(
    queue,
    async (job, token, signal) => work(options, job, token, signal),
    {
      connection,
      ...(name === undefined ? {} : { name }),
      prefix: queuePrefix(namespace, queue),
      concurrency: options.concurrency ?? QUEUES[queue].concurrency,
      drainDelay: QUEUES[queue].longestBlindSeconds,
      lockDuration: LOCK.durationMs,
      lockRenewTime: LOCK.renewMs,
      stalledInterval: LOCK.stalledCheckMs,
      // The default of 1 would fail a job whose worker died twice.
      maxStalledCount: 1_000_000,
      runRetryDelay: 500,
      settings: { backoffStrategy: backoff },
    },
  );
  worker.on('error', onError);
  // A lost lock aborts nothing by itself.
  worker.on('lockRenewalFailed', (ids) => {
    for (const id of ids) worker.cancelJob(id, 'lock lost');
  });
  return {
    queue,
    setConcurrency(count) {
      const raised = count > worker.concurrency;
      worker.concurrency = count;
      if (!raised) return;
      // A raised limit is otherwise only seen when a delivery in hand ends.
      void worker.pause(true).then(() => worker.resume(), onError);
    },
    async close() {
      await worker.close();
    },
  };
}

async function work<Deps>(
  { queue, processor, deps, stopping, onAttempt }: WorkerOptions<Deps>,
  job: Job<Payload>,
  token: string | undefined,
  signal: AbortSignal | undefined,
): Promise<void> {
  const begun = performance.now();
  function report(result: Attempt['result'], error?: unknown): void {
    const ms = performance.now() - begun;
    const attempt = job.attemptsMade + 1;
    onAttempt({
      queue,
      id: String(job.id),
      attempt,
      ms,
      result,
      ...(error === undefined ? {} : { error }),
    });
  }
  const parsed = v.safeParse(payload, job.data);
  if (!parsed.success) {
    const reason = `invalid ${queue} payload: ${v.summarize(parsed.issues)}`;
    report('fail', new Error(reason));
    throw new UnrecoverableError(reason);
  }
  const lockLost = signal ?? NEVER;
  let verdict: Verdict;
  try {
    const either = AbortSignal.any([stopping, lockLost]);
    // Whoever had it died: a supervisor handed it back, or its lock ran out.
    const first = job.opts.lifo === true || job.stalledCounter > 0;
    verdict = await processor({ ...parsed.output, signal: either, lockLost, first }, deps);
  } catch (error) {
    const action = queueAction(error);
    report(action, error);
    if (action === 'stop') return;
    if (action === 'fail') throw new UnrecoverableError(describeError(error));
    const wait = error instanceof SluiceError ? error.retryAfterMs : null;
    if (wait === null) throw error;
    return again(job, token, wait);
  }
  report(verdict === 'done' ? 'done' : 'again');
  if (verdict !== 'done') await again(job, token, verdict.againInMs);
}

async function again(job: Job, token: string | undefined, ms: number): Promise<never> {
  await job.moveToDelayed(Date.now() + ms, token);
  throw new DelayedError();
}
