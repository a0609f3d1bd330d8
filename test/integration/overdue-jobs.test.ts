import { randomUUID } from 'node:crypto';
import { expect, test } from 'vitest';
import { createSweeper } from '../../processors/sweep.ts';
import { recordKey } from '../../src/store/keys.ts';
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

test('a deadline that was moved counts, also where the index has not heard of it', async () => {
  using world = openRecordWorld();
  const { store } = world;
  const { job } = await store.jobs.create(newJob({ windowMs: -1_000 }));
  // As an extension that died between the record and the index leaves it.
  await world.setField(recordKey(job.id), 'deadline', job.deadline + 3_600_000);

  const sweeper = createSweeper(randomUUID(), { ...world.deps, store, isLive: async () => true });
  await sweeper.expire();
  expect((await world.job(job.id)).state).toBe('queued');
  expect(await store.jobs.due(10), 'the index is right now').not.toContain(job.id);

  const other = await store.jobs.create(newJob({ windowMs: -1_000 }));
  expect(await store.jobs.extend(other.job, '1h', 3_600_000)).toBe(true);
  await sweeper.expire();
  expect((await world.job(other.job.id)).state).toBe('queued');
});
