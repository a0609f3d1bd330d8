import { randomUUID } from 'node:crypto';
import { expect, test } from 'vitest';
import { finishJob } from '../../processors/settle.ts';
import { createSweeper } from '../../processors/sweep.ts';
import { openRecordWorld } from '../support/record-world.ts';
import type { RecordWorld } from '../support/record-world.ts';
import { jobInProgress, partOf, SEGMENT } from '../support/store-back-ends.ts';

const LINES = 10;

/** A job without an engine: it went while the last answers were on their way to storage. */
async function openAnswered({ store, fallBack }: RecordWorld): Promise<string> {
  const { id: jobId } = await jobInProgress(store, { shards: 1, lines: LINES });
  const [shard] = await store.shards.open(jobId, 1);
  if (shard === undefined) throw new Error('the job has a shard');
  await store.shards.take(jobId, shard, 'token', 1);
  await fallBack(jobId);
  const all = Array.from({ length: LINES }, (_, line) => line);
  const part = partOf(0, 'token', LINES, all);
  expect(await store.shards.commit(jobId, SEGMENT, [part])).toMatchObject({
    parts: [{ outcome: 'committed', left: 0 }],
  });
  return jobId;
}

const FINISHED = { state: 'finalizing', outcome: 'completed' };
const COMPLETED = { state: 'completed', completed: LINES, failed: 0 };

test('whoever commits the last line of a job without an engine finishes it', async () => {
  using world = openRecordWorld();
  const jobId = await openAnswered(world);
  await finishJob(jobId, world.deps);
  expect(await world.job(jobId)).toMatchObject(FINISHED);
  expect(await world.untilFinal(jobId)).toMatchObject(COMPLETED);
});

test('the sweeper finishes a job without an engine whose last line is committed', async () => {
  using world = openRecordWorld();
  const jobId = await openAnswered(world);
  const { store, deps } = world;
  const swept = { ...deps, store, isLive: async () => true };
  const sweeper = createSweeper(randomUUID(), swept);
  // It may bring the job forward by one step at a time.
  for (const _turn of ['first', 'second']) await sweeper.sweep(new AbortController().signal);
  expect(await world.job(jobId)).toMatchObject(FINISHED);
  expect(await world.untilFinal(jobId)).toMatchObject(COMPLETED);
});
