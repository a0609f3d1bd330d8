import { expect, test } from 'vitest';
import type { Deps } from '../../processors/deps.ts';
import { FINALIZE_GIVE_UP_MS } from '../../processors/give-up.ts';
import { assemble } from '../../src/dispatcher/assemble.ts';
import { findLost } from '../../src/dispatcher/lost-parts.ts';
import { notFound, permanent, transient } from '../../src/domain/errors.ts';
import type { Outcome } from '../../src/domain/job.ts';
import { recordKey, shardKey } from '../../src/store/keys.ts';
import { openRecordWorld } from '../support/record-world.ts';
import type { RecordWorld } from '../support/record-world.ts';
import { jobInProgress, partOf, SEGMENT } from '../support/store-back-ends.ts';

const LINES = 10;
const SECOND = 1_000;

/** A sealed job of one shard, of which lines are answered; returns its id. */
async function finalizing(
  { store }: RecordWorld,
  answered = LINES,
  outcome: Outcome = 'completed',
): Promise<string> {
  const { id, version } = await jobInProgress(store, { shards: 1, lines: LINES });
  await store.shards.open(id, 1);
  await store.shards.take(id, { n: 0, wake: 1 }, 't', 0);
  const lines = [...Array(answered).keys()];
  await store.shards.commit(id, SEGMENT, [partOf(0, 't', LINES, lines)]);
  await store.jobs.move({ id, state: 'in_progress', version }, 'finalizing', { outcome });
  return id;
}

/** Delivers the job at these times after now, ms, and returns its state after each. */
async function tryAt(world: RecordWorld, id: string, times: readonly number[]): Promise<string[]> {
  const states: string[] = [];
  for (const time of times) {
    world.ahead = time;
    await world.deliver('release', id);
    states.push((await world.job(id)).state);
  }
  return states;
}

/** As the product's assembler ends: the files are broken off with its error. */
function failing(error: Error): Deps['assemble'] {
  return async (_source, sinks) => {
    sinks.output.destroy(error);
    sinks.error.destroy(error);
    throw error;
  };
}

const DAMAGED = permanent('store.damaged_record', 'cannot be read');
const AWAY = transient('storage.unavailable', 'no route');

/** The product's own assembly, over a store that has the input, and no segment. */
function loseSegments({ deps }: RecordWorld): void {
  Object.assign(deps, { assemble, findLost });
  deps.storage.head = async () => ({ bytes: 1, modifiedAt: 0 });
  deps.storage.get = async (key) => {
    throw notFound('storage.not_found', `there is no ${key}`);
  };
}

test('a job whose lost answers cannot be told from its others is failed, and says why', async () => {
  using world = openRecordWorld();
  const id = await finalizing(world);
  // As a version committed it that did not record how much a part counts.
  await world.setField(shardKey(id, 0), 'parts', ';seg-1 0 10 7');
  loseSegments(world);

  const states = await tryAt(world, id, [0, 500, 30 * SECOND, 59 * SECOND]);
  expect(new Set(states)).toEqual(new Set(['finalizing']));
  expect((await world.job(id)).reason).toMatch(/^The output files cannot be written: /);
  expect(await tryAt(world, id, [61 * SECOND])).toEqual(['failed']);
  const job = await world.job(id);
  expect(job).toMatchObject({
    outcome: 'failed',
    completed: LINES,
    failed: 0,
    outputFile: null,
    errorFile: null,
    reason: '',
  });
  expect(job.errors).toEqual([
    {
      code: 'store.damaged_record',
      message: expect.stringMatching(
        `field parts cannot be read. What is stored of its answers is kept: sluice jobs export ${id} writes`,
      ),
      line: null,
      param: null,
    },
  ]);
  const segments = await world.store.shards.segments(id);
  expect([...segments.keys()], 'what is there of it is kept').toEqual([SEGMENT.id]);
  expect((await world.store.jobs.events(id)).at(-1)).toMatchObject({
    state: 'failed',
    message: 'The output files are given up.',
  });
});

test('a job whose counts differ from its answers, of which none is lost, is failed', async () => {
  using world = openRecordWorld();
  const id = await finalizing(world, 4, 'cancelled');
  world.deps.assemble = async (_source, sinks) => {
    sinks.output.end();
    sinks.error.end();
    return { output: 3, error: 0, undone: 7 };
  };
  world.deps.findLost = async function* findNone() {};

  const states = await tryAt(world, id, [0, 30 * SECOND, 61 * SECOND]);
  expect(states).toEqual(['finalizing', 'finalizing', 'failed']);
  const job = await world.job(id);
  expect(job).toMatchObject({ outcome: 'failed', completed: 4, failed: 6, outputFile: null });
  expect(job.errors[0]).toMatchObject({
    code: 'segment.damaged',
    message: expect.stringContaining('3 and 0 answers found, 4 and 0 counted. What is stored'),
  });
});

test('one failure before a long silence is not enough to give up', async () => {
  using world = openRecordWorld();
  const id = await finalizing(world);
  world.deps.assemble = failing(DAMAGED);
  const states = await tryAt(world, id, [0, 90 * SECOND]);
  expect(states).toEqual(['finalizing', 'finalizing']);
  // Another reason is not yet known to last.
  world.deps.assemble = failing(AWAY);
  expect(await tryAt(world, id, [100 * SECOND])).toEqual(['finalizing']);
  world.deps.assemble = failing(DAMAGED);
  expect(await tryAt(world, id, [130 * SECOND, 160 * SECOND])).toEqual([
    'finalizing',
    'finalizing',
  ]);
  expect(await tryAt(world, id, [191 * SECOND])).toEqual(['failed']);
});

test.each([
  ['storage is away', AWAY, 'storage.unavailable'],
  ['an unknown error', new Error('socket hang up'), 'storage.unavailable'],
  ['a folder has no rights', permanent('storage.not_writable', 'no'), 'storage.not_writable'],
  ['the input was deleted', permanent('input.changed', 'gone'), 'input.changed'],
] as const)('while %s a job waits for days, and then is failed', async (_name, error, code) => {
  using world = openRecordWorld();
  const id = await finalizing(world);
  world.deps.assemble = failing(error);
  const early = [0, SECOND, 61 * SECOND, FINALIZE_GIVE_UP_MS - 7_200 * SECOND];
  const states = await tryAt(world, id, early);
  expect(new Set(states)).toEqual(new Set(['finalizing']));
  // A server that was off for a week tries a few times, too.
  const late = [1, 30, 62].map((seconds) => FINALIZE_GIVE_UP_MS + seconds * SECOND);
  expect(await tryAt(world, id, late)).toEqual(['finalizing', 'finalizing', 'failed']);
  const job = await world.job(id);
  expect(job).toMatchObject({ outcome: 'failed', completed: LINES, failed: 0, outputFile: null });
  expect(job.errors).toMatchObject([{ code }]);
});

test('storage that is back within the days loses nothing', async () => {
  using world = openRecordWorld();
  const id = await finalizing(world);
  const { assemble: works } = world.deps;
  world.deps.assemble = failing(AWAY);
  await tryAt(world, id, [0, 30 * SECOND, FINALIZE_GIVE_UP_MS - SECOND]);
  world.deps.assemble = works;
  expect(await tryAt(world, id, [FINALIZE_GIVE_UP_MS + SECOND])).toEqual(['completed']);
  expect(await world.job(id)).toMatchObject({ outcome: 'completed', errors: [] });
});

test('who gives a job up that was changed meanwhile is late, and looks again', async () => {
  using world = openRecordWorld();
  const id = await finalizing(world);
  let changes = false;
  world.deps.assemble = async (...assembly) => {
    const { version } = await world.job(id);
    // As another assembler does it that strikes lost answers out.
    if (changes) await world.setField(recordKey(id), 'version', version + 1);
    return failing(DAMAGED)(...assembly);
  };
  await tryAt(world, id, [0, 30 * SECOND]);
  changes = true;
  world.ahead = 61 * SECOND;
  expect(await world.deliver('release', id)).toEqual({ againInMs: 500 });
  expect(await world.job(id)).toMatchObject({ state: 'finalizing', outcome: 'completed' });
  changes = false;
  expect(await tryAt(world, id, [62 * SECOND])).toEqual(['failed']);
});
