import { DatabaseSync } from 'node:sqlite';

/**
 * A lock that the kernel takes back when this process dies, however that happens: SQLite's on an empty database. Null
 * while another process has it. A pid file or a socket that is taken over when stale cannot be had without a race.
 */
export function tryLock(path: string): { release(): void } | null {
  const database = new DatabaseSync(path, { timeout: 0 });
  try {
    database.exec('BEGIN EXCLUSIVE');
    return { release: () => database.close() };
  } catch (error) {
    database.close();
    const busy = error instanceof Error && error.message.includes('locked');
    if (busy) return null;
    throw error;
  }
}
