import { segmentKey } from '../src/domain/file.ts';
import { isFinal } from '../src/domain/job.ts';
import type { JobRecord } from '../src/domain/job.ts';
import { jobPrefix } from '../src/domain/object-owner.ts';
import type { Storage } from '../src/storage/contract.ts';
import type { Store } from '../src/store/store.ts';
import { removeBelow } from './collect-step.ts';
import type { Mode, Removed } from './collect-step.ts';

export interface SegmentsDeps {
  store: {
    jobs: Pick<Store['jobs'], 'get'>;
    shards: Pick<Store['shards'], 'segments'>;
    collect: Pick<Store['collect'], 'countShards' | 'dropShards' | 'forgetKept'>;
  };
  storage: Pick<Storage, 'list' | 'head' | 'delete'>;
}

const SHARDS_AT_ONCE = 500;
const NOTHING: Removed = { count: 0, bytes: 0 };

/** Whether the answers of a final job are nowhere but in its segments: its files could not be written. */
export function isOnlyCopy({ lines, outputFile, errorFile }: JobRecord): boolean {
  return lines > 0 && outputFile === null && errorFile === null;
}

/**
 * Removes the segments of a job that is over or gone, and what Redis keeps of its shards; nothing of any other. Records
 * go first, so that none names what is gone, and the index entry last: killed anywhere, it is done again.
 */
export async function collectSegments(
  jobId: string,
  deps: SegmentsDeps,
  mode: Mode,
): Promise<Removed> {
  const { jobs, shards, collect } = deps.store;
  const job = await jobs.get(jobId);
  if (job !== null && !isFinal(job.state)) return NOTHING;
  const sizes = new Map<string, number>();
  for (const [id, { bytes }] of await shards.segments(jobId)) {
    sizes.set(segmentKey(jobId, id), bytes);
  }
  // Who asks the failed lines again leaves out those that were bad.
  const keepPlans = job?.options.validation === 'lenient' && job.shards > 0;
  if (!mode.dryRun && !(await dropShards(jobId, keepPlans, deps, mode))) return NOTHING;
  const removed = await removeBelow(jobPrefix(jobId), { ...deps, ...mode }, sizes);
  if (!mode.dryRun) await collect.forgetKept(jobId);
  return removed;
}

/** From the last to the first: what a crash leaves begins with the first again. False where the job is not over. */
export async function dropShards(
  jobId: string,
  keepPlans: boolean,
  { store: { collect } }: { store: { collect: SegmentsDeps['store']['collect'] } },
  { step }: Mode,
): Promise<boolean> {
  let left = await collect.countShards(jobId);
  do {
    const first = Math.max(0, left - SHARDS_AT_ONCE);
    if (!(await collect.dropShards(jobId, first, left - first, keepPlans))) return false;
    left = first;
    await step();
  } while (left > 0);
  return true;
}
