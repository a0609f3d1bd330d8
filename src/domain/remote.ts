import type { JobError, Usage } from './job.ts';

/** States in which a batch of OpenAI's interface stays. */
export const REMOTE_ENDS = ['completed', 'failed', 'expired', 'cancelled'] as const;

/** How a batch ended at a remote service, and the ids of its files there; null: no line went there. */
export interface RemoteEnd {
  status: (typeof REMOTE_ENDS)[number];
  output: string | null;
  error: string | null;
}

/**
 * The batch by which a remote metadata service runs a job in this server's place. A job that has one is never sent from
 * here: its shards wait for nobody. Times are Redis time in ms.
 */
export interface RemoteBatch {
  /** Base URL of the service, without `/v1`. */
  url: string;
  /** Id of the job's input there; null: it is not known to be there. */
  file: string | null;
  /**
   * Since when a request that makes the next of these may be on its way, and a random name of who sends it: of two who
   * want to at once, one has its own on record. Null: none is.
   */
  asked: { at: number; by: string } | null;
  /** Its id there; null: it is not known. */
  batch: string | null;
  /** Null while it is not known to be over. */
  end: RemoteEnd | null;
}

/** What a look at a remote batch found. */
export interface RemoteLook {
  id: string;
  /** As the service says it. */
  status: string;
  end: RemoteEnd | null;
  completed: number;
  failed: number;
  /** Null until the service tells it. */
  usage: Usage | null;
  errors: JobError[];
  /** Why it waits, where the service says; '': for nothing. Missing: it does not say. */
  reason?: string;
}

/** Where the batch of a new job is to run. */
export function newRemoteBatch(url: string): RemoteBatch {
  return { url, file: null, asked: null, batch: null, end: null };
}
