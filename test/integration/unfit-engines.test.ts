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

/** A job in progress that names two models, and the one engine that serves it. */
async function jobOfTwoModels(world: ReturnType<typeof openRecordWorld>) {
  const { id: jobId } = await jobInProgress(world.store, { shards: 1, lines: 10 });
  await world.setField(recordKey(jobId), 'models', JSON.stringify(['a', 'b']));
  return { jobId, provisionId: await world.fallBack(jobId) };
}

/** Looks as an engine has them that serves these models. */
function serving(...served: string[]) {
  return {
    async look(_address: string, models: readonly string[]): Promise<Look> {
      const fit = models.filter((model) => served.includes(model));
      if (fit.length > 0) return { is: 'healthy', models: fit };
      return { is: 'unfit', reason: `serves ${served.join()}` };
    },
  };
}

test('a job starts with an engine of one of its models, and waits half a minute for the other', async () => {
  using world = openRecordWorld();
  const { jobId, provisionId } = await jobOfTwoModels(world);
  world.deps.runtime = serving('a', 'other');
  await world.deliver('submission', provisionId);
  expect(await world.job(jobId)).toMatchObject({ state: 'in_progress' });
  const provision = await world.store.provisions.get(provisionId);
  expect(provision).toMatchObject({ state: 'serving', models: ['a'] });

  for (const ahead of [0, 5_000, 25_000]) {
    world.ahead = ahead;
    expect(await world.deliver('submission', provisionId)).toHaveProperty('againInMs');
  }
  const message = "No engine serves 'b', which the input asks for; they serve 'a'.";
  expect(await world.job(jobId)).toMatchObject({ state: 'in_progress', reason: message });

  world.ahead = 31_000;
  await world.deliver('submission', provisionId);
  expect(await world.job(jobId)).toMatchObject({
    state: 'submit_failed',
    failed: 10,
    errors: [{ code: 'engine_unfit', message }],
  });
});

test('a model that an engine loads later is written down, and nothing is said any more', async () => {
  using world = openRecordWorld();
  const { jobId, provisionId } = await jobOfTwoModels(world);
  world.deps.runtime = serving('a');
  await world.deliver('submission', provisionId);
  await world.deliver('submission', provisionId);
  expect(await world.job(jobId)).toHaveProperty('reason', expect.stringContaining("'b'"));

  world.ahead = 60_000;
  world.deps.runtime = serving('b', 'a');
  await world.deliver('submission', provisionId);
  const provision = await world.store.provisions.get(provisionId);
  expect(provision).toMatchObject({ state: 'serving', models: ['a', 'b'], reason: '' });
  expect(await world.job(jobId)).toMatchObject({ state: 'in_progress', reason: '' });
});

test('an engine that is down may serve the missing model yet', async () => {
  using world = openRecordWorld();
  const { jobId, provisionId } = await jobOfTwoModels(world);
  world.deps.runtime = serving('a');
  await world.deliver('submission', provisionId);
  await world.store.provisions.create({
    id: provisionId.replace(/_0_0$/, '_1_0'),
    job: jobId,
    slot: 1,
    provider: 'static',
    owner: 'sluice',
    address: 'http://down:8000',
  });
  const { look } = serving('a');
  world.deps.runtime = {
    look: async (address, models) =>
      address === 'http://down:8000' ? { is: 'down', reason: 'gone' } : look(address, models),
  };
  await world.deliver('submission', provisionId);
  world.ahead = 60_000;
  expect(await world.deliver('submission', provisionId)).toHaveProperty('againInMs');
  expect(await world.job(jobId)).toMatchObject({ state: 'in_progress' });

  world.deps.runtime = { look };
  await world.deliver('submission', provisionId);
  expect(await world.job(jobId)).toMatchObject({ state: 'submit_failed' });
});
