import { expect, test } from 'vitest';
import { stopJob } from '../../processors/settle.ts';
import { openRecordWorld } from '../support/record-world.ts';
import { jobInProgress, partOf, SEGMENT } from '../support/store-back-ends.ts';

test('answers that are committed while a job is being stopped are counted once', async () => {
  using world = openRecordWorld();
  const { store } = world;
  const { id } = await jobInProgress(store, { shards: 1, lines: 10 });
  const [shard] = await store.shards.open(id, 1);
  if (shard === undefined) throw new Error('the job has a shard');
  await store.shards.take(id, shard, 'token', 1);

  // Between the read and the move: a commit does not raise the version that the move compares.
  let committed = false;
  const jobs: typeof store.jobs = {
    ...store.jobs,
    async get(jobId) {
      const job = await store.jobs.get(jobId);
      if (!committed) {
        committed = true;
        await store.shards.commit(id, SEGMENT, [partOf(0, 'token', 10, [0, 1, 2, 3])]);
      }
      return job;
    },
  };
  const deps = { ...world.deps, store: { ...store, jobs } };
  await stopJob(id, { outcome: 'submit_failed', event: 'No engine can serve this batch.' }, deps);

  // Whoever is still held is waited for so long and no longer.
  world.ahead = 10_000;
  const job = await world.untilFinal(id);
  expect(job).toMatchObject({ state: 'submit_failed', lines: 10, completed: 4, failed: 6 });
  expect(job.outputFile, 'what was answered is handed out').not.toBeNull();
});
