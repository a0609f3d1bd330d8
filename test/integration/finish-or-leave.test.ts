import { randomUUID } from 'node:crypto';
import { expect, test } from 'vitest';
import { finishOrLeave } from '../../processors/settle.ts';
import { createSweeper } from '../../processors/sweep.ts';
import { recordKey } from '../../src/store/keys.ts';
import { openRecordWorld } from '../support/record-world.ts';
import type { RecordWorld } from '../support/record-world.ts';
import { jobInProgress, partOf, SEGMENT } from '../support/store-back-ends.ts';

/** A job that nobody has moved on since its last line was committed; returns its id. */
async function answered({ store }: RecordWorld): Promise<string> {
  const { id } = await jobInProgress(store, { shards: 1, lines: 2 });
  await store.shards.open(id, 1);
  await store.shards.take(id, { n: 0, wake: 1 }, 't', 0);
  const { last } = await store.shards.commit(id, SEGMENT, [partOf(0, 't', 2, [0, 1])]);
  expect(last).toBe(true);
  return id;
}

test('a job whose record cannot be read when its last line is committed is left to the sweeper', async () => {
  using world = openRecordWorld();
  const id = await answered(world);
  const logged: object[] = [];
  world.deps.log = { ...world.deps.log, error: (fields) => void logged.push(fields) };
  await world.setField(recordKey(id), 'endpoint', 'none');
  // The commit counts: who made it must not hear of this, or would commit again for ever.
  await finishOrLeave(id, world.deps);
  expect(logged).toMatchObject([{ jobId: id, err: { code: 'store.damaged_record' } }]);

  await world.setField(recordKey(id), 'endpoint', '/v1/chat/completions');
  const { store } = world;
  const sweeper = createSweeper(randomUUID(), { ...world.deps, store, isLive: async () => true });
  await sweeper.sweep(AbortSignal.timeout(5_000));
  expect(await world.job(id)).toMatchObject({ state: 'finalizing', outcome: 'completed' });
});

test('a job that can be read is moved on at once', async () => {
  using world = openRecordWorld();
  const id = await answered(world);
  await finishOrLeave(id, world.deps);
  expect(await world.job(id)).toMatchObject({ state: 'finalizing', outcome: 'completed' });
});
