import { SluiceError } from '../src/domain/errors.ts';
import type { JobRecord } from '../src/domain/job.ts';

/** Null also where the record cannot be read: its job cannot go on, and must not hold up what is done for all others. */
export async function readOrNull(
  jobs: { get(id: string): Promise<JobRecord | null> },
  id: string,
): Promise<JobRecord | null> {
  try {
    return await jobs.get(id);
  } catch (error) {
    if (error instanceof SluiceError && error.code === 'store.damaged_record') return null;
    throw error;
  }
}
