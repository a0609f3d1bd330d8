import type { Storage } from '../src/storage/contract.ts';

/** What was, or would be, removed of one kind. */
export interface Removed {
  count: number;
  bytes: number;
}

/** To be called between bounded pieces of work; throws when whoever collects is to stop. */
export type Step = () => Promise<void>;

const REMOVED_AT_ONCE = 16;

/** Runs a task for each item, some at once; the first error ends it after those that run. */
export async function inRuns<T>(
  items: AsyncIterable<T>,
  step: Step,
  task: (item: T) => Promise<void>,
): Promise<void> {
  let run: T[] = [];
  async function end(): Promise<void> {
    const results = await Promise.allSettled(run.map(task));
    run = [];
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }
  for await (const item of items) {
    run.push(item);
    if (run.length < REMOVED_AT_ONCE) continue;
    await end();
    await step();
  }
  await end();
}

/** Removes all objects below a prefix, or only counts them. `sizes` spares looks at objects of known bytes. */
export async function removeBelow(
  prefix: string,
  { storage, step, dryRun }: { storage: Pick<Storage, 'list' | 'head' | 'delete'> } & Mode,
  sizes: ReadonlyMap<string, number> = new Map(),
): Promise<Removed> {
  const removed = { count: 0, bytes: 0 };
  await inRuns(storage.list(prefix), step, async (key) => {
    const bytes = sizes.get(key) ?? (await storage.head(key))?.bytes ?? 0;
    if (!dryRun) await storage.delete(key);
    removed.count += 1;
    removed.bytes += bytes;
  });
  return removed;
}

export interface Mode {
  step: Step;
  /** Nothing is removed, only counted. */
  dryRun: boolean;
}
