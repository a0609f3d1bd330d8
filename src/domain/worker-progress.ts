import type { JobError, Usage } from './job.ts';

/**
 * How far a batch worker is:
 * - `validating`: it reads annotations and input
 * - `waiting`: for the engine in its pod; `reason` says for what
 * - `in_progress`: lines are sent
 * - `finalizing`: every line has its answer, the files are written
 * - `interrupted`: this pod ended before the batch did, and another one goes on; `reason` and `exit_code` say why
 * - `completed`, `expired`, `failed`: the batch, or the part of it that is this index's, is over
 */
export const WORKER_STATES = [
  'validating',
  'waiting',
  'in_progress',
  'finalizing',
  'interrupted',
  'completed',
  'expired',
  'failed',
] as const;
export type WorkerState = (typeof WORKER_STATES)[number];

/** A file that a worker has written into storage. */
export interface WrittenObject {
  /** Its id, as annotations give it or derived from the Job's uid. */
  file_id: string;
  /** Key in storage, or the URL of an object in a bucket of the user's. */
  key: string;
  bytes: number;
  /** Hex. */
  sha256: string;
  lines: number;
}

/**
 * What a batch worker says of itself, as an object in storage that it writes anew every few seconds. Times are unix
 * seconds; null: not yet.
 */
export interface WorkerProgress {
  object: 'batch.worker_progress';
  schema_version: 1;
  /** The Job's uid, which is the name of the whole record in storage. */
  job_uid: string;
  job_name: string;
  job_namespace: string;
  /** `job_…`: the id that the files and their lines carry. */
  job_id: string;
  session_id: string | null;
  metadata: Record<string, string>;
  /** Completion index of an Indexed Job, 0 of any other; and among how many the shards are divided. */
  index: number;
  indexes: number;
  /** The pod that wrote this, and how many have begun with this index, it included. */
  pod: { uid: string; name: string; attempt: number };
  state: WorkerState;
  /** Why it stands where it stands, for people; empty when there is nothing to say. */
  reason: string;
  /** What an interrupted worker ended with; null: it has not ended. */
  exit_code: number | null;
  /** Lines of this index. Null until the input is read. Once it is over, `failed` has those that were never asked, too. */
  request_counts: { total: number; completed: number; failed: number } | null;
  usage: {
    input_tokens: number;
    cached_tokens: number;
    output_tokens: number;
    reasoning_tokens: number;
    total_tokens: number;
  };
  /** Why a batch failed, and what is wrong with its input. */
  errors: JobError[];
  /** Of a Job that is not Indexed, once it is over; null where no line went there. Of an index it is always null. */
  output: WrittenObject | null;
  error: WrittenObject | null;
  /** Key of the manifest; null as above. */
  manifest_key: string | null;
  /** When the Job started, when this batch has to be over, and when its first line was sent. */
  started_at: number;
  deadline: number;
  in_progress_at: number | null;
  /** When the last answer was in. */
  finalizing_at: number | null;
  finished_at: number | null;
  updated_at: number;
}

/** Everything that workers of a Job keep in storage lies below it; ends in a slash. */
export function runPrefix(jobUid: string): string {
  return `kubernetes/${jobUid}/`;
}

/**
 * Where an index says how far it is. It is written over and over, and by two pods where two are alive; what an index
 * ended as stands for good under `finalKey`, so look there first.
 */
export function progressKey(jobUid: string, index: number): string {
  return `${runPrefix(jobUid)}progress/${index}.json`;
}

/** Where the last document of an index lies, once its part of the batch is over: a `WorkerProgress`, too. */
export function finalKey(jobUid: string, index: number): string {
  return `${runPrefix(jobUid)}final/${index}.json`;
}

/** The id of the job whose files a worker writes, where nobody gave one: of the Job's uid. */
export function jobIdOfUid(jobUid: string): string {
  return `job_${jobUid.replaceAll(/[^A-Za-z0-9]/g, '')}`;
}

/**
 * What a worker process ends with, after sysexits.h. `retry: false`: the same pod would end alike, so that a
 * `podFailurePolicy` may fail the Job at once.
 */
export const WORKER_EXITS = {
  /** The batch, or this index's part of it, is over: completed, or expired with what was answered. */
  over: { code: 0, retry: false },
  /** Settings or annotations are wrong, or the engine serves other models than the input asks for. */
  usage: { code: 64, retry: false },
  /** The batch failed: its input is not valid, or its lines fail for a reason that no retry mends. */
  failed: { code: 65, retry: false },
  /** The input is not there. */
  noInput: { code: 66, retry: false },
  /** The engine did not come in time, or went away for as long; or the API server did. */
  unavailable: { code: 69, retry: true },
  /** A bug of ours, or `opts.fail_after_n_requests`. */
  software: { code: 70, retry: true },
  /** Storage refuses us, or has lost what was written. */
  storage: { code: 74, retry: true },
  /** Handed back after SIGTERM: another pod goes on. */
  handedBack: { code: 75, retry: true },
  /** The API server does not let us read the Job, or does not know it. */
  denied: { code: 77, retry: false },
} as const satisfies Record<string, { code: number; retry: boolean }>;
export type WorkerExit = keyof typeof WORKER_EXITS;

/** Token usage in the words of the document. */
export function usageView(usage: Usage): WorkerProgress['usage'] {
  const { inputTokens, cachedTokens, outputTokens, reasoningTokens } = usage;
  return {
    input_tokens: inputTokens,
    cached_tokens: cachedTokens,
    output_tokens: outputTokens,
    reasoning_tokens: reasoningTokens,
    total_tokens: inputTokens + outputTokens,
  };
}
