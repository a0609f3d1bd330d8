import { isChangedObject, SluiceError, transient } from '../src/domain/errors.ts';
import { fileKey, inputKey, segmentKey } from '../src/domain/file.ts';
import type { JobRecord } from '../src/domain/job.ts';
import type { LostParts } from '../src/domain/segment.ts';
import type { Deps } from './deps.ts';
import { fillLeftSlots, settle } from './settle.ts';

/**
 * After a job's files could not be assembled: takes back what was counted of answers that storage has lost or
 * changed. True when anything was, or somebody else is at it: the job has to be read again. False where nothing is
 * lost, so that the failure has another reason.
 */
export async function strikeLost(
  job: JobRecord,
  failure: unknown,
  signal: AbortSignal,
  deps: Deps,
): Promise<boolean> {
  if (!(failure instanceof SluiceError) || failure.code !== 'segment.damaged') return false;
  const lost = deps.findLost({
    shards: deps.store.shards.accepted(job.id, 0, job.shards),
    openPart: ({ segment, offset, length }) =>
      deps.storage.get(segmentKey(job.id, segment), { start: offset, end: offset + length }),
  });
  const segments = new Set<string>();
  let at: Pick<JobRecord, 'id' | 'version'> = job;
  for await (const shard of lost) {
    signal.throwIfAborted();
    const isFirst = segments.size === 0;
    if (isFirst) await requireInput(job, deps);
    const version = await deps.store.shards.strike(at, shard, isFirst ? describe(shard) : '');
    if (version === 'stale') return true;
    at = { id: job.id, version };
    for (const { segment } of shard.lost) segments.add(segment);
    const fields = { jobId: job.id, shard: shard.n, parts: shard.lost.length };
    deps.log.warn({ ...fields, reason: shard.reason }, 'answers are lost in storage');
  }
  await forgetUnused(job, segments, deps);
  return segments.size > 0;
}

function describe({ reason }: LostParts): string {
  return `Answers are lost in storage: ${reason}.`;
}

/** A store without the input is hardly the one that the job ran with, and what is lost could not be asked again. */
async function requireInput(job: JobRecord, deps: Deps): Promise<void> {
  // Of one in a bucket of the user's, our own storage has an empty object.
  for (const key of new Set([fileKey(job.input), inputKey(job)])) {
    if (await isThere(key, deps)) continue;
    throw transient('storage.lacks_input', 'Storage has neither all answers nor the input file.');
  }
}

/** One that somebody has replaced was looked for where it was. */
async function isThere(key: string, { storage }: Deps): Promise<boolean> {
  try {
    return (await storage.head(key)) !== null;
  } catch (error) {
    if (isChangedObject(error)) return true;
    throw error;
  }
}

/** What is left of a segment of which only some bytes are wrong stays where it is. */
async function forgetUnused(job: JobRecord, segments: Set<string>, deps: Deps): Promise<void> {
  if (segments.size === 0) return;
  for await (const { parts } of deps.store.shards.accepted(job.id, 0, job.shards)) {
    for (const { segment } of parts) segments.delete(segment);
  }
  await deps.store.shards.forgetSegments(job.id, segments);
}

/**
 * Sends a job back for engines whose lost answers were struck out, so that only those are asked again; false where it
 * has nothing to ask. One that was stopped asks nothing any more: what it lost counts as never answered.
 */
export async function askAgain(job: JobRecord, deps: Deps): Promise<boolean> {
  if (job.outcome !== 'completed' || job.doneShards >= job.shards) return false;
  // Its answers are where its batch is.
  if (job.remote !== null) return false;
  // All its lines are bad: none was ever to be asked.
  if (job.enteredAt.in_progress === undefined) return false;
  const lines = job.lines - job.completed - job.failed;
  const event = `${lines} requests whose answers are lost are asked again.`;
  const moved = await deps.advanceJob(job, 'resource_preparing', { event, set: { reason: '' } });
  if (moved === 'stale') return true;
  // Its engines were given back when it was answered, and a sweeper without settings for engines leases none.
  await fillLeftSlots(moved, await deps.store.provisions.ofJob(job.id), deps);
  await settle(job.id, deps);
  return true;
}
