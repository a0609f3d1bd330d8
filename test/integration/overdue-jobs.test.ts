import { randomUUID } from 'node:crypto';
import { expect, test } from 'vitest';
import { createSweeper } from '../../processors/sweep.ts';
import { openRecordWorld } from '../support/record-world.ts';
import { newJob } from '../support/store-back-ends.ts';

test('overdue jobs that are on their way out do not hide one that is still to be stopped', async () => {
  using world = openRecordWorld();
  const { store } = world;
  for (let n = 0; n < 50; n += 1) {
    const { job } = await store.jobs.create(newJob({ windowMs: -60_000 }));
    const state = n % 2 === 0 ? 'cancelling' : 'finalizing';
    await store.jobs.move(job, state, { outcome: 'expired' });
  }
  const { job } = await store.jobs.create(newJob({ windowMs: -1_000 }));

  const sweeper = createSweeper(randomUUID(), { ...world.deps, store, isLive: async () => true });
  for (const _turn of ['first', 'second', 'third']) await sweeper.expire();
  expect((await world.job(job.id)).state).toBe('expired');
});
