import { expect, test } from 'vitest';
import { NOTHING_TO_ASK, resumeJob } from '../../processors/pause.ts';
import { openRecordWorld } from '../support/record-world.ts';
import type { RecordWorld } from '../support/record-world.ts';
import { newJob } from '../support/store-back-ends.ts';

const PLAN = { shards: 1, models: [], problems: [], total: 0, unfit: null };

/** A job in `queued` whose input has only bad lines, and how often that was read; `meanwhile` runs during each read. */
async function openUnaskable(world: RecordWorld, meanwhile: (id: string) => Promise<unknown>) {
  const { job } = await world.store.jobs.create(newJob());
  const reads: string[] = [];
  world.deps.readPlan = async () => {
    reads.push(job.id);
    await meanwhile(job.id);
    return { ...PLAN, lines: 2, bad: 2 };
  };
  return { id: job.id, reads };
}

test('a paused job of bad lines only ends when it is resumed, and is not read over and over', async () => {
  using world = openRecordWorld();
  // Paused while its input is read: the planner that begins it knows nothing of it.
  const { id, reads } = await openUnaskable(world, (job) => world.store.jobs.pause(job, 'ann'));
  for (const _look of ['first', 'second', 'third']) {
    expect(await world.deliver('planning', id)).toHaveProperty('againInMs');
  }
  expect(reads).toHaveLength(1);
  expect(await world.job(id)).toMatchObject({ state: 'queued', reason: NOTHING_TO_ASK });

  world.deps.readPlan = async () => ({ ...PLAN, lines: 2, bad: 2 });
  const { wake } = await world.job(id);
  const added: object[] = [];
  const add = async (delivery: object) => void added.push(delivery);
  expect(await resumeJob(id, { ...world.deps, add })).toBe(true);
  expect(added).toEqual([{ queue: 'planning', entity: id, wake: wake + 1 }]);
  expect(await world.deliver('planning', id)).toBe('done');
  expect(await world.untilFinal(id)).toMatchObject({
    state: 'completed',
    failed: 2,
    reason: '',
    pausedAt: null,
  });
});

test('a job of bad lines only that nobody paused ends at once', async () => {
  using world = openRecordWorld();
  const { id } = await openUnaskable(world, async () => undefined);
  expect(await world.deliver('planning', id)).toBe('done');
  expect(await world.job(id)).toMatchObject({ state: 'finalizing', outcome: 'completed' });
});
