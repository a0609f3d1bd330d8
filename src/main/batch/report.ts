import { describeError } from '../../domain/errors.ts';
import { usageView } from '../../domain/worker-progress.ts';
import type { WorkerProgress } from '../../domain/worker-progress.ts';
import { NO_USAGE } from '../../domain/kubernetes/run-record.ts';
import type { Logger } from '../../observability/log.ts';
import { clock } from '../clock.ts';
import type { RunRecord } from './record.ts';
import type { WorkerTask } from './task.ts';

const EVERY_MS = 2_000;

/** Says in storage how far the worker is. */
export interface Report {
  readonly now: WorkerProgress;
  set(change: Partial<WorkerProgress>): void;
  /** Writes what it is now; a storage that is away is not waited for. */
  flush(): Promise<void>;
  /** From now on it says what it is told, and counts nothing more by itself. */
  close(): void;
}

export function seconds(ms: number): number {
  return Math.floor(ms / 1_000);
}

/** What the document says before anything was done. */
function blank(
  { job, pod, spec, batch, index, indexes }: WorkerTask,
  { attempt, startedAt, deadline }: Begun,
): WorkerProgress {
  return {
    object: 'batch.worker_progress',
    schema_version: 1,
    job_uid: job.uid,
    job_name: job.name,
    job_namespace: job.namespace,
    job_id: batch.jobId,
    session_id: spec.sessionId,
    metadata: spec.metadata,
    index,
    indexes,
    pod: { ...pod, attempt },
    state: 'validating',
    reason: '',
    exit_code: null,
    request_counts: null,
    usage: usageView(NO_USAGE),
    errors: [],
    output: null,
    error: null,
    manifest_key: null,
    started_at: seconds(startedAt),
    deadline: seconds(deadline),
    in_progress_at: null,
    finalizing_at: null,
    finished_at: null,
    updated_at: seconds(clock.now()),
  };
}

interface Begun {
  attempt: number;
  /** ms. */
  startedAt: number;
  deadline: number;
}

/**
 * Writes the progress document every two seconds where something changed, and at once where its state did. Words for
 * whoever looks on: whether they arrive decides nothing.
 */
export function startReport(
  record: RunRecord,
  task: WorkerTask,
  begun: Begun,
  { log, refresh }: { log: Logger; refresh(): Partial<WorkerProgress> },
): Report {
  const now = blank(task, begun);
  let written = '';
  let isClosed = false;
  let writing: Promise<void> = Promise.resolve();

  async function write(progress: WorkerProgress): Promise<void> {
    try {
      await record.putProgress(progress);
    } catch (error) {
      // It is written again in a moment, then with what is newer.
      written = '';
      log.warn({ reason: describeError(error) }, 'progress cannot be written to storage');
    }
  }

  async function flush(): Promise<void> {
    if (!isClosed) Object.assign(now, refresh());
    const { updated_at: _at, ...rest } = now;
    const text = JSON.stringify(rest);
    if (text !== written) {
      written = text;
      now.updated_at = seconds(clock.now());
      const progress = { ...now };
      writing = writing.then(async () => write(progress));
    }
    await writing;
  }

  const timer = setInterval(() => void flush(), EVERY_MS);
  return {
    now,
    set(change) {
      const isNews = change.state !== undefined && change.state !== now.state;
      Object.assign(now, change);
      // Who looks on is to see at once that it waits.
      if (isNews) void flush();
    },
    flush,
    close() {
      isClosed = true;
      clearInterval(timer);
    },
  };
}
