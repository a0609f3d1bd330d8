import type { AcceptedShard } from '../../../src/domain/segment.ts';
import { readShards } from './verify.ts';
import type { World } from './world.ts';
import { linesIn, maskOf, readJob } from './world.ts';

const MOST_LOSSES = 3;

/**
 * Storage loses some of what a sealed job has there, and the job's assembler strikes it out as the product does; it
 * may die in between. True when records changed, so that whoever assembles begins anew: a job that was completed has
 * lines to ask again, and is in progress.
 */
export async function loseParts(world: World): Promise<boolean> {
  if (world.losses < MOST_LOSSES && world.random.chance(0.4)) await forgetParts(world);
  const job = await readJob(world);
  let { version } = job;
  let changed = false;
  for (const shard of await readShards(world)) {
    const lost = shard.parts.filter((part) => storedLines(world, part) === null);
    if (lost.length === 0) continue;
    if (world.random.chance(0.1)) return true;
    const done = linesIn(shard.done);
    const there = shard.parts.flatMap((part) => storedLines(world, part) ?? []);
    const rest = maskOf(
      world.lines,
      there.filter((line) => done.has(line)),
    );
    const struck = { n: shard.plan.n, lost, rest };
    const next = await world.store.shards.strike({ id: world.jobId, version }, struck, 'Lost.');
    if (next === 'stale') throw new Error('nobody else strikes');
    version = next;
    changed = true;
    world.stats.struck += 1;
  }
  const isOpen = job.outcome === 'completed' && (changed || job.doneShards < job.shards);
  if (isOpen) await goBack(world);
  return changed || isOpen;
}

function storedLines({ storage }: World, part: AcceptedShard['parts'][number]): number[] | null {
  const stored = storage.get(part.segment)?.find(({ offset }) => offset === part.offset);
  return stored === undefined ? null : [...stored.answers.keys()];
}

async function forgetParts(world: World): Promise<void> {
  world.losses += 1;
  for (const [segment, parts] of world.storage) {
    world.storage.set(
      segment,
      parts.filter(() => !world.random.chance(0.2)),
    );
  }
}

async function goBack(world: World): Promise<void> {
  let at = await readJob(world);
  for (const state of ['resource_preparing', 'submitting', 'in_progress'] as const) {
    const moved = await world.store.jobs.move(at, state);
    if (moved === 'stale') throw new Error('nobody else moves this job');
    at = { ...at, state, version: moved.version };
  }
  world.sealed = false;
}
