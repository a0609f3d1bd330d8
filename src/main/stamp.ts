import { createHash } from 'node:crypto';
import type { Storage } from '../storage/contract.ts';

/** What the names of all machines of a deployment begin with: its storage is what no other has. */
export async function stampOf(storage: Pick<Storage, 'identity'>): Promise<string> {
  const print = createHash('sha256')
    .update(await storage.identity())
    .digest('hex');
  return `sl-${print.slice(0, 8)}`;
}
