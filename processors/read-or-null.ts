import { SluiceError } from '../src/domain/errors.ts';

/** Null also where the record cannot be read: what it is of cannot go on, and must not hold up what is done for all others. */
export async function readOrNull<T>(
  records: { get(id: string): Promise<T | null> },
  id: string,
): Promise<T | null> {
  try {
    return await records.get(id);
  } catch (error) {
    if (error instanceof SluiceError && error.code === 'store.damaged_record') return null;
    throw error;
  }
}
