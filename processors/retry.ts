import { invalidInput } from '../src/domain/errors.ts';
import type { SluiceError } from '../src/domain/errors.ts';
import { contentKey, fileKey, inputKey } from '../src/domain/file.ts';
import { batchIdOf } from '../src/domain/job.ts';
import type { JobRecord } from '../src/domain/job.ts';
import type { AcceptedShard } from '../src/domain/segment.ts';
import type { Deps } from './deps.ts';

type RetryDeps = Pick<Deps, 'store' | 'storage' | 'selectLines'>;

/**
 * Writes the input of a job that asks another one's failed lines again, unless it is there: those lines of the first
 * one's input that its error file names, but for those that cannot be asked. May be repeated; the file is whole or not
 * there. Rejects with `retry_source_gone` (InvalidInput) where the first job or its error file is gone, and with
 * `nothing_to_retry` (InvalidInput) where no line can be asked.
 */
export async function writeRetryInput(
  job: JobRecord,
  signal: AbortSignal,
  deps: RetryDeps,
): Promise<void> {
  const { retryOf } = job.options;
  if (retryOf === null) return;
  const written = await deps.store.files.get(job.input);
  const { bytes } = written ?? (await writeInput(job, retryOf, signal, deps));
  if (bytes === 0) throw nothingToRetry(retryOf);
}

async function writeInput(
  job: JobRecord,
  retryOf: string,
  signal: AbortSignal,
  { store, storage, selectLines }: RetryDeps,
): Promise<{ bytes: number }> {
  const first = await store.jobs.get(retryOf);
  const errorFile = first?.errorFile ? await store.files.get(first.errorFile) : null;
  if (first === null || errorFile === null) {
    throw invalidInput('retry_source_gone', `The job '${retryOf}' or its error file is gone.`);
  }
  const input = await storage.get(inputKey(first));
  try {
    const errors = await storage.get(contentKey(errorFile));
    try {
      const lines = selectLines(input, errors, markedShards(first, store));
      const stored = await storage.put(fileKey(job.input), lines, { signal });
      const filename = `${batchIdOf(job.id)}_retry.jsonl`;
      await store.files.create({ id: job.input, ...stored, filename, purpose: 'batch' });
      return stored;
    } finally {
      errors.destroy();
    }
  } finally {
    input.destroy();
  }
}

/** The shards of a job, if some of its lines may be marked as bad. */
async function* markedShards(
  job: JobRecord,
  { shards }: Pick<RetryDeps['store'], 'shards'>,
): AsyncGenerator<AcceptedShard> {
  if (job.options.validation === 'lenient') yield* shards.accepted(job.id, 0, job.shards);
}

function nothingToRetry(retryOf: string): SluiceError {
  const message = `No failed line of the job '${retryOf}' can be asked: each is no valid request, has the custom_id of an earlier line, or is too long. Its error file says what is wrong: mend these lines, upload them, and create a job over them.`;
  return invalidInput('nothing_to_retry', message);
}

/** What to say of a job of `lines` lines that asks failed ones again but left some of them out; else empty. */
export async function describeLeftOut(
  { options }: JobRecord,
  lines: number,
  { store }: Pick<Deps, 'store'>,
): Promise<string> {
  const first = options.retryOf === null ? null : await store.jobs.get(options.retryOf);
  // Each failed line has one line in the error file, and so what is not in the input was left out.
  const leftOut = first === null ? 0 : first.failed - lines;
  if (first === null || leftOut <= 0) return '';
  const count = leftOut === 1 ? '1 was' : `${leftOut} were`;
  return ` Of the ${first.failed} failed requests of ${first.id} ${count} left out: not valid, a duplicate or too long, as its error file says.`;
}
