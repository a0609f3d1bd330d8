import { expect, test } from 'vitest';
import type { Look } from '../../src/runtimes/contract.ts';
import { recordKey } from '../../src/store/keys.ts';
import { openRecordWorld } from '../support/record-world.ts';
import { jobInProgress } from '../support/store-back-ends.ts';

const UNFIT: Look = { is: 'unfit', reason: 'http://engine:8000 serves no model' };
const HOUR_MS = 3_600_000;

test('an engine that loads for long is not given up in the second in which it is unfit first', async () => {
  using world = openRecordWorld();
  const { id: jobId } = await jobInProgress(world.store, { shards: 1, lines: 10 });
  const provisionId = await world.fallBack(jobId);
  await world.setField(recordKey(provisionId), 'starting_at', Date.now() - HOUR_MS);
  world.deps.runtime = { look: async () => ({ is: 'down', reason: 'it does not answer' }) };
  expect(await world.deliver('submission', provisionId)).toHaveProperty('againInMs');

  world.deps.runtime = { look: async () => UNFIT };
  for (const _look of ['first', 'second']) {
    expect(await world.deliver('submission', provisionId)).toHaveProperty('againInMs');
  }
  expect(await world.job(jobId)).toMatchObject({ state: 'submitting', reason: UNFIT.reason });
});

test('an engine that is unfit for the same reason for half a minute fails the job', async () => {
  using world = openRecordWorld();
  const { id: jobId } = await jobInProgress(world.store, { shards: 1, lines: 10 });
  const provisionId = await world.fallBack(jobId);
  world.deps.runtime = { look: async () => UNFIT };
  await world.deliver('submission', provisionId);
  world.ahead = 25_000;
  expect(await world.deliver('submission', provisionId)).toHaveProperty('againInMs');

  world.ahead = 31_000;
  expect(await world.deliver('submission', provisionId)).toBe('done');
  expect(await world.job(jobId)).toMatchObject({
    state: 'submit_failed',
    completed: 0,
    failed: 10,
    errors: [{ code: 'engine_unfit', message: UNFIT.reason }],
  });
});
