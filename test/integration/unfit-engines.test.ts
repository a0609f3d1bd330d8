import { describe, expect, test } from 'vitest';
import type { JobOptions } from '../../src/domain/job.ts';
import { provisionId } from '../../src/domain/provision.ts';
import type { Look } from '../../src/runtimes/contract.ts';
import { recordKey } from '../../src/store/keys.ts';
import { ADDRESS } from '../support/job-world.ts';
import { openRecordWorld } from '../support/record-world.ts';
import type { RecordWorld } from '../support/record-world.ts';
import { jobInProgress } from '../support/store-back-ends.ts';
import { until } from '../support/until.ts';

const UNFIT: Look = { is: 'unfit', reason: 'http://engine:8000 serves no model' };
const HOUR_MS = 3_600_000;

test('an engine that loads for long is not given up in the second in which it is unfit first', async () => {
  using world = openRecordWorld();
  const { id: jobId } = await jobInProgress(world.store, { shards: 1, lines: 10 });
  const engine = await world.fallBack(jobId);
  await world.setField(recordKey(engine), 'starting_at', Date.now() - HOUR_MS);
  world.deps.runtime = { look: async () => ({ is: 'down', reason: 'it does not answer' }) };
  expect(await world.deliver('submission', engine)).toHaveProperty('againInMs');

  world.deps.runtime = { look: async () => UNFIT };
  for (const _look of ['first', 'second']) {
    expect(await world.deliver('submission', engine)).toHaveProperty('againInMs');
  }
  expect(await world.job(jobId)).toMatchObject({ state: 'submitting', reason: UNFIT.reason });
});

test('an engine that is unfit for the same reason for half a minute fails the job', async () => {
  using world = openRecordWorld();
  const { id: jobId } = await jobInProgress(world.store, { shards: 1, lines: 10 });
  const engine = await world.fallBack(jobId);
  world.deps.runtime = { look: async () => UNFIT };
  await world.deliver('submission', engine);
  world.ahead = 25_000;
  expect(await world.deliver('submission', engine)).toHaveProperty('againInMs');

  world.ahead = 31_000;
  expect(await world.deliver('submission', engine)).toBe('done');
  expect(await world.untilFinal(jobId)).toMatchObject({
    state: 'submit_failed',
    completed: 0,
    failed: 10,
    errors: [{ code: 'engine_unfit', message: UNFIT.reason }],
    errorFile: expect.any(String),
  });
});

/** A job in progress that names two models, and the one engine that serves it. */
async function jobOfTwoModels(world: RecordWorld, options: Partial<JobOptions> = {}) {
  const { id: jobId } = await jobInProgress(world.store, { shards: 1, lines: 10 });
  await world.setField(recordKey(jobId), 'models', JSON.stringify(['a', 'b']));
  await world.setField(recordKey(jobId), 'options', JSON.stringify(options));
  return { jobId, provisionId: await world.fallBack(jobId) };
}

/** Another engine of the job, at an address of its own. */
async function addEngine({ store }: RecordWorld, jobId: string, address: string): Promise<string> {
  const id = provisionId(jobId, 1, 0);
  const slot = { slot: 1, provider: 'static', owner: 'sluice', address } as const;
  await store.provisions.create({ id, job: jobId, ...slot });
  return id;
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
  const { jobId, provisionId: engine } = await jobOfTwoModels(world);
  world.deps.runtime = serving('a', 'other');
  await world.deliver('submission', engine);
  expect(await world.job(jobId)).toMatchObject({ state: 'in_progress' });
  const provision = await world.store.provisions.get(engine);
  expect(provision).toMatchObject({ state: 'serving', models: ['a'] });

  for (const ahead of [0, 5_000, 25_000]) {
    world.ahead = ahead;
    expect(await world.deliver('submission', engine)).toHaveProperty('againInMs');
  }
  const message = "No engine serves 'b', which the input asks for; they serve 'a'.";
  expect(await world.job(jobId)).toMatchObject({ state: 'in_progress', reason: message });

  world.ahead = 31_000;
  await world.deliver('submission', engine);
  expect(await world.untilFinal(jobId)).toMatchObject({
    state: 'submit_failed',
    failed: 10,
    errors: [{ code: 'engine_unfit', message }],
  });
});

test('a model that an engine loads later is written down, and nothing is said any more', async () => {
  using world = openRecordWorld();
  const { jobId, provisionId: engine } = await jobOfTwoModels(world);
  world.deps.runtime = serving('a');
  await world.deliver('submission', engine);
  await world.deliver('submission', engine);
  expect(await world.job(jobId)).toHaveProperty('reason', expect.stringContaining("'b'"));

  world.ahead = 60_000;
  world.deps.runtime = serving('b', 'a');
  await world.deliver('submission', engine);
  const provision = await world.store.provisions.get(engine);
  expect(provision).toMatchObject({ state: 'serving', models: ['a', 'b'], reason: '' });
  expect(await world.job(jobId)).toMatchObject({ state: 'in_progress', reason: '' });
});

test('an engine that is down may serve the missing model yet', async () => {
  using world = openRecordWorld();
  const { jobId, provisionId: engine } = await jobOfTwoModels(world);
  world.deps.runtime = serving('a');
  await world.deliver('submission', engine);
  await addEngine(world, jobId, 'http://down:8000');
  const { look } = serving('a');
  world.deps.runtime = {
    look: async (address, models) =>
      address === 'http://down:8000' ? { is: 'down', reason: 'gone' } : look(address, models),
  };
  await world.deliver('submission', engine);
  world.ahead = 60_000;
  expect(await world.deliver('submission', engine)).toHaveProperty('againInMs');
  expect(await world.job(jobId)).toMatchObject({ state: 'in_progress' });

  world.deps.runtime = { look };
  await world.deliver('submission', engine);
  expect(await world.untilFinal(jobId)).toMatchObject({ state: 'submit_failed' });
});

describe('a lenient job', () => {
  const LENIENT = { validation: 'lenient' } as const;
  const message = "No engine serves 'b', which the input asks for; they serve 'a'.";

  /** One whose engine serves a, and was looked at until half a minute is over. */
  async function openWaiting(world: RecordWorld) {
    const opened = await jobOfTwoModels(world, LENIENT);
    world.deps.runtime = serving('a');
    for (const ahead of [0, 5_000, 25_000]) {
      world.ahead = ahead;
      await world.deliver('submission', opened.provisionId);
    }
    const { state, givenUp, reason } = await world.job(opened.jobId);
    expect({ state, givenUp, reason }).toEqual({
      state: 'in_progress',
      givenUp: [],
      reason: message,
    });
    world.ahead = 31_000;
    return opened;
  }

  test('gives up the model that no engine serves, tells who sends its lines, and runs on', async () => {
    using world = openRecordWorld();
    const { jobId, provisionId: engine } = await openWaiting(world);
    const told: string[] = [];
    const stops = await world.store.jobs.subscribeStops((id) => void told.push(id));
    try {
      for (const _look of ['first', 'second']) {
        expect(await world.deliver('submission', engine)).toHaveProperty('againInMs');
      }
      await until(() => told.length > 0, { what: 'the message to those who send' });
    } finally {
      await stops.close();
    }
    expect(told).toEqual([jobId]);
    expect(await world.job(jobId)).toMatchObject({
      state: 'in_progress',
      givenUp: ['b'],
      reason: '',
      errors: [],
    });
    expect(await world.store.jobs.giveUp(jobId, ['b'], 'again')).toBe(true);
    const events = (await world.store.jobs.events(jobId)).filter(({ kind }) => kind === 'given_up');
    expect(events.map((event) => event.message)).toEqual([
      `Requests for 'b' fail from now on. ${message}`,
    ]);
  });

  test('that is paused gives nothing up', async () => {
    using world = openRecordWorld();
    const { jobId, provisionId: engine } = await openWaiting(world);
    await world.store.jobs.pause(jobId, '');
    await world.deliver('submission', engine);
    expect(await world.store.jobs.giveUp(jobId, ['b'], '')).toBe(false);
    expect(await world.job(jobId)).toMatchObject({ state: 'in_progress', givenUp: [] });
    await world.store.jobs.resume(jobId);
    await world.deliver('submission', engine);
    expect(await world.job(jobId)).toMatchObject({ givenUp: ['b'] });
  });

  test('fails when no engine serves any model that is left', async () => {
    using world = openRecordWorld();
    const { jobId, provisionId: engine } = await openWaiting(world);
    await world.deliver('submission', engine);
    expect(await world.store.jobs.giveUp(jobId, ['a'], '')).toBe(false);
    world.deps.runtime = serving('b');
    await world.deliver('submission', engine);
    expect(await world.job(jobId)).toMatchObject({ state: 'submitting' });
    await world.deliver('submission', engine);
    world.ahead = 62_000;
    await world.deliver('submission', engine);
    expect(await world.untilFinal(jobId)).toMatchObject({
      state: 'submit_failed',
      failed: 10,
      errors: [{ code: 'engine_unfit' }],
    });
  });

  test('of which no engine serves any model fails from the start', async () => {
    using world = openRecordWorld();
    const { jobId, provisionId: engine } = await jobOfTwoModels(world, LENIENT);
    world.deps.runtime = serving('other');
    await world.deliver('submission', engine);
    world.ahead = 31_000;
    expect(await world.deliver('submission', engine)).toBe('done');
    expect(await world.untilFinal(jobId)).toMatchObject({ state: 'submit_failed', givenUp: [] });
  });
});

test('a job that another engine still serves waits for nothing, and says nothing', async () => {
  using world = openRecordWorld();
  const { id: jobId } = await jobInProgress(world.store, { shards: 1, lines: 10 });
  const engine = await world.fallBack(jobId);
  world.deps.runtime = { look: async () => ({ is: 'healthy', models: ['m'] }) };
  await world.deliver('submission', engine);
  const other = await addEngine(world, jobId, 'http://other:8000');
  world.deps.manager = {
    provider: 'static',
    slots: () => [
      { slot: 0, address: ADDRESS },
      { slot: 1, address: 'http://other:8000' },
    ],
  };
  await world.store.provisions.move({ id: other, state: 'intended', version: 1 }, 'starting');
  await world.deliver('submission', other);

  const gone: Look = { is: 'down', reason: 'it does not answer' };
  world.deps.runtime = { look: async () => gone };
  // Lost, and looked at again while it stays away.
  for (const _look of ['first', 'second']) await world.deliver('submission', other);
  expect(await world.store.provisions.get(other)).toMatchObject({
    state: 'starting',
    reason: gone.reason,
  });
  expect(await world.job(jobId)).toMatchObject({ state: 'in_progress', reason: '' });

  await world.deliver('submission', engine);
  expect(await world.job(jobId)).toMatchObject({ state: 'submitting', reason: gone.reason });
});
