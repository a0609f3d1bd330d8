import { PassThrough } from 'node:stream';
import type { Verdict } from '../queues/worker.ts';
import { permanent, shownError } from '../src/domain/errors.ts';
import { inputKey, outputFileId, outputKey, segmentKey } from '../src/domain/file.ts';
import type { FileRecord } from '../src/domain/file.ts';
import { batchIdOf, plannedRules } from '../src/domain/job.ts';
import type { JobError, JobRecord, Outcome } from '../src/domain/job.ts';
import { describeUnnamed, lacksInput, withoutInput } from './changed-input.ts';
import type { Deps } from './deps.ts';
import { whyHopeless } from './give-up.ts';
import { createTally, retractFiles, writeManifest } from './manifest.ts';
import { settle } from './settle.ts';
import { askAgain, strikeLost } from './strike.ts';

const FIRST_AGAIN_MS = 500;
const LONGEST_AGAIN_MS = 30_000;

/** What the error file says of a line that was never answered; of a failure, what the job failed for follows. */
const UNDONE = {
  completed: { code: 'batch_failed', message: 'This request was not answered.' },
  cancelled: {
    code: 'batch_cancelled',
    message: 'This request could not be executed before the batch was cancelled.',
  },
  expired: {
    code: 'batch_expired',
    message: 'This request could not be executed before the completion window expired.',
  },
  failed: { code: 'batch_failed', message: 'The batch failed before this request was executed.' },
  resource_failed: {
    code: 'batch_failed',
    message: 'The batch ended before this request was executed: no engine could be had.',
  },
  submit_failed: {
    code: 'batch_failed',
    message: 'The batch ended before this request was executed: no engine could serve all of it.',
  },
} as const satisfies Record<Outcome, { code: string; message: string }>;

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
      await writeFiles(at, signal, deps);
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

async function writeFiles(job: JobRecord, signal: AbortSignal, deps: Deps): Promise<void> {
  const outcome = job.outcome ?? 'completed';
  const written = await assembleFiles(job, outcome, signal, deps);
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
  const set = { failed, ...ids, errors: job.errors, reason: '' };
  const moved = await deps.advanceJob(job, outcome, { event, set });
  if (moved !== 'stale') await settle(job.id, deps);
}

/** The same whoever asks: what it says is on record since the job was stopped. */
async function describeUndone(job: JobRecord, outcome: Outcome, { store }: Deps) {
  const { code, message } = UNDONE[outcome];
  const [error] = job.errors;
  if (error === undefined) return { code, message };
  const provisions = await store.provisions.ofJob(job.id);
  // Where the machines are is no business of the file; the longest first, since one may be how another one begins.
  const addresses = provisions.map(({ address }) => address);
  let cause = error.message;
  for (const address of addresses.toSorted((a, b) => b.length - a.length)) {
    cause = cause.replaceAll(address, 'the engine');
  }
  return { code, message: `${message} ${cause.slice(0, 1).toUpperCase()}${cause.slice(1)}` };
}

async function assembleFiles(job: JobRecord, outcome: Outcome, signal: AbortSignal, deps: Deps) {
  const isUnnamed = lacksInput(job);
  const anyError = isUnnamed ? job.failed > 0 : job.lines > job.completed;
  const tally = createTally(job, deps);
  const output = await openSink(job, 'output', job.completed > 0, signal, deps);
  const error = await openSink(job, 'error', anyError, signal, deps);
  try {
    const counts = await deps.assemble(
      {
        shards: tally.watch(deps.store.shards.accepted(job.id, 0, job.shards)),
        openPart: ({ segment, offset, length }) =>
          deps.storage.get(segmentKey(job.id, segment), { start: offset, end: offset + length }),
        openInput: (range) => deps.storage.get(inputKey(job), range),
      },
      { output: output.sink, error: error.sink },
      {
        jobId: job.id,
        onLine: tally.onLine,
        undone: isUnnamed ? null : await describeUndone(job, outcome, deps),
        // A job that ran to its end had only bad lines where it has unanswered ones.
        ...(outcome === 'completed' ? { rules: plannedRules(job) } : {}),
      },
    );
    const [outputFile, errorFile] = await Promise.all([output.file, error.file]);
    return { ...counts, files: { output: outputFile, error: errorFile }, tally };
  } catch (failure) {
    // No file may still be written when the next try begins.
    await Promise.allSettled([output.file, error.file]);
    throw failure;
  }
}

/** One of a job's two files, written while it is assembled; its record is made once its bytes are durable. */
async function openSink(
  job: JobRecord,
  kind: 'output' | 'error',
  wanted: boolean,
  signal: AbortSignal,
  deps: Deps,
): Promise<{ sink: PassThrough; file: Promise<FileRecord | null> }> {
  const sink = new PassThrough({ highWaterMark: 1024 * 1024 });
  // It may break before or after somebody reads or writes it, and an error that nobody hears ends the process.
  sink.on('error', () => undefined);
  if (!wanted) {
    sink.resume();
    return { sink, file: Promise.resolve(null) };
  }
  const id = outputFileId(job.id, kind);
  async function store(): Promise<FileRecord> {
    const key = outputKey(job, kind);
    const { address, ...stored } = await deps.storage.put(key, sink, { signal });
    const filename = `${batchIdOf(job.id)}_${kind}.jsonl`;
    const seconds = job.options.outputExpiresAfter;
    const expiresAfterMs = seconds === null ? null : seconds * 1_000;
    const purpose = 'batch_output';
    const location = address === undefined ? {} : { location: address };
    const file = { id, ...stored, ...location, filename, purpose, expiresAfterMs } as const;
    const made = await deps.store.files.create(file);
    // Written a second time, it may be another version of the same bytes.
    if (made.location !== address) await deps.store.files.amend(id, location);
    return { ...made, ...stored, ...location };
  }
  const file = store();
  // The assembler ends with the same error, which is the one that is reported.
  file.catch((error: unknown) => sink.destroy(error instanceof Error ? error : undefined));
  return { sink, file };
}
