import { createHash } from 'node:crypto';
import { Readable } from 'node:stream';
import { isChangedObject, shownError, SluiceError } from '../src/domain/errors.ts';
import type { JobError, JobRecord } from '../src/domain/job.ts';
import { fileKey, inputKey } from '../src/domain/file.ts';
import type { Deps } from './deps.ts';
import { stopJob } from './settle.ts';

/** The code of a job's error. */
const CHANGED = 'input.changed';

/** What a job fails for that could not read its input. */
export function inputError(error: SluiceError): Omit<JobError, 'param'> {
  if (isChangedObject(error)) return { code: CHANGED, message: error.message, line: null };
  return { code: error.code, message: shownError(error), line: null };
}

/** What became of the input of a job that lies in a bucket of the user's; null where it is what it was, or gone. */
async function findChange(job: JobRecord, deps: Pick<Deps, 'storage'>): Promise<JobError | null> {
  if (job.options.inputLocation === null) return null;
  try {
    await deps.storage.head(inputKey(job));
    return null;
  } catch (error) {
    if (!(error instanceof SluiceError) || !isChangedObject(error)) throw error;
    return { ...inputError(error), param: 'input_file_id' };
  }
}

/**
 * Fails a job where a read of its input shows that somebody has written another object in its place: lines of two
 * versions must never be mixed, and the first one is gone for good. False where the error says something else.
 */
export async function stopIfChanged(jobId: string, error: unknown, deps: Deps): Promise<boolean> {
  if (!isChangedObject(error)) return false;
  const job = await deps.store.jobs.get(jobId);
  const change = job === null ? null : await findChange(job, deps);
  if (change === null) return false;
  const event = 'The input was changed while the job was running.';
  await stopJob(jobId, { outcome: 'failed', event, errors: [change] }, deps);
  return true;
}

/** Whether the lines of a job that were never asked cannot be named any more. */
export function lacksInput({ errors, options }: JobRecord): boolean {
  return options.inputLocation !== null && errors.some(({ code }) => code === CHANGED);
}

/**
 * After a job's files could not be assembled: the job to assemble without its input, because somebody has written
 * another object in its place. Null where the failure has another reason; one that was deleted may come back.
 */
export async function withoutInput(
  job: JobRecord,
  failure: unknown,
  deps: Pick<Deps, 'storage'>,
): Promise<JobRecord | null> {
  if (!isChangedObject(failure) || lacksInput(job)) return null;
  const change = await findChange(job, deps);
  if (change === null) return null;
  const outcome = job.outcome === 'completed' ? 'failed' : job.outcome;
  return { ...job, outcome, errors: [...job.errors, change] };
}

/** What to say of lines that are in neither file; empty where there are none. */
export function describeUnnamed(lines: number): string {
  if (lines === 0) return '';
  return ` ${lines} of them were not asked and are in no file: the input that names them was changed.`;
}

/**
 * Keeps what is known of an input in a bucket of the user's once it was read. The empty object in its place in our own
 * storage is what tells, when answers are missing there, whether they are lost or the whole storage is another one.
 */
export async function noteOutside(
  { input }: JobRecord,
  sha256: string,
  { store, storage }: Pick<Deps, 'store' | 'storage'>,
): Promise<void> {
  await storage.put(fileKey(input), []);
  await store.files.amend(input, { sha256 });
}

/** The bytes of a source as they come; `digest` is theirs once all are read. */
export function hashed(source: Readable): { source: Readable; digest(): string } {
  const hash = createHash('sha256');
  async function* chunks(): AsyncGenerator<Buffer> {
    for await (const chunk of source as AsyncIterable<Buffer>) {
      hash.update(chunk);
      yield chunk;
    }
  }
  return {
    source: Readable.from(chunks(), { objectMode: false }),
    digest: () => hash.digest('hex'),
  };
}
