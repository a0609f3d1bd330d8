import { shownError, SluiceError } from '../src/domain/errors.ts';
import type { JobError, JobRecord } from '../src/domain/job.ts';
import type { Deps } from './deps.ts';

/** How long a job waits for storage that is away until it ends without its files. */
export const FINALIZE_GIVE_UP_MS = 7 * 86_400_000;

/** Less may be a reading that went wrong once, or a store that is only just back. */
const LEAST_TRIES = 3;
const LEAST_MS = 60_000;

/** Longer than any two tries of a job are apart, while its files still are to be written by this process. */
const FORGET_MS = 3_600_000;

/** How often in a row jobs' files could not be written for the same reason, as far as one process knows. */
export interface FailedTries {
  /** Counts a failed try at `now` (ms), and says how many there were and since when. Another reason begins anew. */
  count(jobId: string, reason: string, now: number): { tries: number; since: number };
  forget(jobId: string): void;
}

export function createFailedTries(): FailedTries {
  const failed = new Map<string, { reason: string; tries: number; since: number; last: number }>();
  return {
    count(jobId, reason, now) {
      // Others may have ended a job that failed here.
      for (const [id, { last }] of failed) if (now - last > FORGET_MS) failed.delete(id);
      const before = failed.get(jobId);
      const { tries, since } = before?.reason === reason ? before : { tries: 0, since: now };
      const entry = { reason, tries: tries + 1, since, last: now };
      failed.set(jobId, entry);
      return entry;
    },
    forget(jobId) {
      failed.delete(jobId);
    },
  };
}

/**
 * What a job is to fail for whose files could not be written because of `error`, or null while it may wait: records
 * or answers that are damaged are damaged at the third look, too, while a store that is away may come back for days.
 */
export function whyHopeless(
  job: JobRecord,
  error: unknown,
  { failedTries, now }: Pick<Deps, 'failedTries' | 'now'>,
): JobError | null {
  const at = now();
  const lasting = isPermanent(error) && !isMendable(error);
  const { tries, since } = failedTries.count(job.id, lasting ? error.code : 'storage', at);
  if (tries < LEAST_TRIES || at - since < LEAST_MS) return null;
  const waited = at - (job.enteredAt.finalizing ?? at);
  if (!lasting && waited < FINALIZE_GIVE_UP_MS) return null;
  const code = isPermanent(error) ? error.code : 'storage.unavailable';
  const why = isPermanent(error) ? error.message : shownError(error);
  const message =
    `The output files cannot be written: ${why.replace(/\.$/, '')}. What is stored of its answers is kept: ` +
    `sluice jobs export ${job.id} writes it to a local folder, POST /api/v1/jobs/${job.id}/clone asks all requests again.`;
  return { code, message, line: null, param: null };
}

function isPermanent(error: unknown): error is SluiceError {
  return error instanceof SluiceError && error.kind === 'Permanent';
}

/** A folder can be given back its rights, and an input be put back where it was: people need time for that. */
function isMendable({ code }: SluiceError): boolean {
  return code.startsWith('storage.') || code === 'input.changed';
}
