import { expect, test } from 'vitest';
import { provisionId } from '../../src/domain/provision.ts';
import { openRecordWorld } from '../support/record-world.ts';
import { jobInProgress } from '../support/store-back-ends.ts';

test('the history says why a job fell back: what the look at its engine saw', async () => {
  using world = openRecordWorld();
  const { store, deps } = world;
  const { id } = await jobInProgress(store);
  const provision = provisionId(id, 0, 0);
  const address = 'http://engine:8000';
  const fields = { job: id, slot: 0, provider: 'static', owner: 'sluice', address } as const;
  await store.provisions.create({ id: provision, ...fields });
  for (const [from, to, version] of [
    ['intended', 'starting', 1],
    ['starting', 'serving', 2],
  ] as const) {
    await store.provisions.move({ id: provision, state: from, version }, to);
  }
  deps.runtime.look = async () => ({ is: 'down', reason: 'connect ECONNREFUSED' });
  await world.deliver('submission', provision);

  const last = (await store.jobs.events(id)).at(-1);
  expect(last).toMatchObject({
    kind: 'state',
    state: 'submitting',
    message: `The engine ${address} was lost: connect ECONNREFUSED`,
  });
});
