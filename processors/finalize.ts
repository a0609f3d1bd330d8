import type { Verdict } from '../queues/worker.ts';
import type { Undone } from '../src/dispatcher/assemble.ts';
import { permanent, shownError } from '../src/domain/errors.ts';
import type { JobError, JobRecord } from '../src/domain/job.ts';
import { describeUnnamed, lacksInput, withoutInput } from './changed-input.ts';
import type { Deps } from './deps.ts';
import { whyHopeless } from './give-up.ts';
import { retractFiles, writeManifest } from './manifest.ts';
import { isRemote } from './remote.ts';
import { copyFiles, hasResults } from './remote-files.ts';
import { settle } from './settle.ts';
import { askAgain, strikeLost } from './strike.ts';
import { undoneOf, writeFiles } from './write-files.ts';
import type { Written } from './write-files.ts';

const FIRST_AGAIN_MS = 500;
const LONGEST_AGAIN_MS = 30_000;

/**
 * Writes the output and error files of a job whose records stand still, and moves it to its outcome. Tries again while
 * there is hope, and says so: nothing is paid for meanwhile. What storage has lost for good is asked again; a job whose
 * files can never be written is failed.
 */
export async function finalize(job: JobRecord, signal: AbortSignal, deps: Deps): Promise<Verdict> {
  try {
    const verdict = (await askAgain(job, deps)) ? 'done' : await writeOrStrike(job, signal, deps);
    deps.failedTries.forget(job.id);
    return verdict;
  } catch (error) {
    signal.throwIfAborted();
    const hopeless = whyHopeless(job, error, deps);
    if (hopeless !== null) return endWithoutFiles(job, hopeless, deps);
    const reason = `The output files cannot be written: ${shownError(error)}`;
    await deps.store.jobs.note(job.id, reason);
    deps.log.error({ jobId: job.id, err: error }, 'output files cannot be written, trying again');
    const waited = deps.now() - (job.enteredAt.finalizing ?? 0);
    return { againInMs: Math.min(Math.max(waited, FIRST_AGAIN_MS), LONGEST_AGAIN_MS) };
  }
}

/** Its segments stay where they are. Lines without an answer count as failed, as in any job that is over. */
async function endWithoutFiles(job: JobRecord, error: JobError, deps: Deps): Promise<Verdict> {
  const event = 'The output files are given up.';
  const errors = [error, ...job.errors];
  const failed = job.lines - job.completed;
  const set = { failed, outputFile: null, errorFile: null, errors, reason: '' };
  const moved = await deps.advanceJob(job, 'failed', { event, set });
  // Some of it may have been struck out before the rest could not be: what is left is read again.
  if (moved === 'stale') return { againInMs: FIRST_AGAIN_MS };
  deps.failedTries.forget(job.id);
  deps.log.error(
    { jobId: job.id, code: error.code },
    'output files are given up, the job is failed',
  );
  await settle(job.id, deps);
  try {
    // Some of it may have been written before the rest, or the job's end, could not be.
    await retractFiles({ ...job, failed }, deps);
  } catch (err) {
    deps.log.warn(
      { jobId: job.id, err },
      'what was written of given-up files could not be removed',
    );
  }
  return 'done';
}

async function writeOrStrike(job: JobRecord, signal: AbortSignal, deps: Deps): Promise<Verdict> {
  for (let at = job; ;) {
    try {
      await writeAndEnd(at, signal, deps);
      return 'done';
    } catch (error) {
      signal.throwIfAborted();
      if (await strikeLost(at, error, signal, deps)) return { againInMs: 0 };
      const rest = await withoutInput(at, error, deps);
      if (rest === null) throw error;
      at = rest;
    }
  }
}

async function writeAndEnd(seen: JobRecord, signal: AbortSignal, deps: Deps): Promise<void> {
  const outcome = seen.outcome ?? 'completed';
  const undone = await undoneOf(seen, outcome, deps);
  const written =
    (await deps.early.finish(seen, undone)) ?? (await writeAll(seen, undone, signal, deps));
  // Of a remote batch only its files count; what it said of itself while it ran is for people.
  const { output: completed, error: answered } = isRemote(seen) ? written : countsOf(seen);
  const job = { ...seen, completed, failed: answered };
  if (written.output !== job.completed || written.error !== job.failed) {
    const found = `${written.output} and ${written.error} answers found`;
    const message = `${found}, ${job.completed} and ${job.failed} counted`;
    throw permanent('segment.damaged', message);
  }
  const failed = written.error + written.undone;
  const unnamed = lacksInput(job) ? written.undone : 0;
  const event = `${written.output} requests answered, ${failed} failed.${describeUnnamed(unnamed)}`;
  const { files, tally } = written;
  await writeManifest(job, outcome, { files, tally, failed, unnamed }, deps);
  const ids = { outputFile: files.output?.id ?? null, errorFile: files.error?.id ?? null };
  const set = { completed, failed, ...ids, errors: job.errors, reason: '' };
  const moved = await deps.advanceJob(job, outcome, { event, set });
  if (moved !== 'stale') await settle(job.id, deps);
}

function writeAll(
  job: JobRecord,
  undone: Undone | null,
  signal: AbortSignal,
  deps: Deps,
): Promise<Written> {
  // Where there is nothing to copy, no line is answered.
  if (isRemote(job) && hasResults(job)) return copyFiles(job, undone, signal, deps);
  const shards = deps.store.shards.accepted(job.id, 0, job.shards);
  return writeFiles(job, shards, { undone: () => undone, signal }, deps);
}

function countsOf({ completed, failed }: JobRecord) {
  return { output: completed, error: failed };
}
