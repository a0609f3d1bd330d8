import type { Readable } from 'node:stream';
import type { JobRecord } from '../../domain/job.ts';
import type { ProvisionRecord } from '../../domain/provision.ts';
import type { RemoteLook } from '../../domain/remote.ts';

/** What a batch is made with, in the words of the wire. */
export interface RemoteOrder {
  input_file_id: string;
  endpoint: string;
  completion_window: string;
  metadata: Record<string, string>;
  /** The extension that the service takes beside OpenAI's fields; what is not wished for is left out. */
  aibrix: Record<string, unknown>;
}

/** A file that is sent while it is read. */
export interface RemoteInput {
  name: string;
  content: AsyncIterable<Uint8Array>;
  /** Its length; null where that is not known before it was read. */
  bytes: number | null;
  /** Where it lies in this server's own storage as it is; missing: it does not. */
  key?: string;
}

/**
 * A metadata service that runs batches in this server's place: `/v1/files` and `/v1/batches` of another host.
 * Every method rejects with one of these, and with the signal's reason when aborted:
 * - `remote.unsent` (Transient): no connection was had, so that the service knows nothing of it
 * - `remote.busy` (Transient): it said 425 or 429, and has done nothing
 * - `remote.unclear` (Transient): it said 408 or 5xx, or nothing, or no whole answer: what was asked may be done or not
 * - `remote.refused` (InvalidInput): any other answer that is none; `status` is the one it gave
 */
export interface RemoteService {
  /** Base URL, without `/v1`. */
  readonly url: string;
  /** How long after a request without a clear answer what it asked for may still turn up, ms. */
  readonly unclearMs: number;
  /**
   * What a job's batch is made with: on the machine of its provision where that is leased, else on the job's own
   * engines or those of this server, else, where there are none, on whatever the service has.
   */
  order(job: JobRecord, provision: ProvisionRecord, file: string): RemoteOrder;
  /** The newest file of this name and length; null where there is none among the newest ones. */
  findInput(
    input: Pick<RemoteInput, 'name' | 'bytes'>,
    signal: AbortSignal,
  ): Promise<string | null>;
  /** Sends an input and returns its id. May be repeated: another file of the same content does no harm. */
  upload(input: RemoteInput, signal: AbortSignal): Promise<string>;
  /**
   * Makes a batch. Not to be repeated after `remote.unclear` before `findBatch` was asked. `key` goes along as
   * `Idempotency-Key`, which not every service heeds.
   */
  create(order: RemoteOrder, key: string, signal: AbortSignal): Promise<RemoteLook>;
  /** The batch that carries this job's id in its metadata, not older than `since` (ms); null: there is none. */
  findBatch(jobId: string, since: number, signal: AbortSignal): Promise<RemoteLook | null>;
  /** Null where the service knows no such batch. */
  look(batch: string, signal: AbortSignal): Promise<RemoteLook | null>;
  /** Asks it to stop. One that cannot be stopped any more, or is stopping, is left as it is. */
  cancel(batch: string, signal: AbortSignal): Promise<void>;
  /**
   * Opens a file's content from its start. The stream ends with `remote.unclear` where it is cut, also where it is
   * shorter than the service says that the file is.
   */
  open(file: string, signal: AbortSignal): Promise<Readable>;
  /** Has a batch wait, or go on. Missing: what a service has begun goes on. */
  hold?(batch: string, isHeld: boolean, signal: AbortSignal): Promise<void>;
  /** Gives back what a batch that is over still has there; false: it is on its way. Missing: it has nothing. */
  release?(batch: string, job: JobRecord, signal: AbortSignal): Promise<boolean>;
  /** Lets go of its connections. */
  close(): Promise<void>;
}

/** The key of a batch's metadata that says whose it is. */
export const JOB_KEY = 'sluice.job_id';
