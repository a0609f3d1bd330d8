import { invalidInput } from '../src/domain/errors.ts';
import { fileKey } from '../src/domain/file.ts';
import { batchIdOf } from '../src/domain/job.ts';
import type { JobRecord } from '../src/domain/job.ts';
import type { Deps } from './deps.ts';

/**
 * Writes the input of a job that asks another one's failed lines again, unless it is there: those lines of the first
 * one's input that its error file names. May be repeated; the file is whole or not there. Rejects with
 * `retry_source_gone` (InvalidInput) where the first job or its error file is gone.
 */
export async function writeRetryInput(
  job: JobRecord,
  signal: AbortSignal,
  deps: Pick<Deps, 'store' | 'storage' | 'selectLines'>,
): Promise<void> {
  const { store, storage } = deps;
  const { retryOf } = job.options;
  if (retryOf === null || (await store.files.get(job.input)) !== null) return;
  const first = await store.jobs.get(retryOf);
  if (first === null || first.errorFile === null) {
    throw invalidInput('retry_source_gone', `The job '${retryOf}' or its error file is gone.`);
  }
  const input = await storage.get(fileKey(first.input));
  try {
    const errors = await storage.get(fileKey(first.errorFile));
    try {
      const lines = deps.selectLines(input, errors);
      const stored = await storage.put(fileKey(job.input), lines, { signal });
      const filename = `${batchIdOf(job.id)}_retry.jsonl`;
      await store.files.create({ id: job.input, ...stored, filename, purpose: 'batch' });
    } finally {
      errors.destroy();
    }
  } finally {
    input.destroy();
  }
}
