import { expect, test } from 'vitest';
import { permanent } from '../../src/domain/errors.ts';
import { startMetadataService } from '../simulators/metadata-service/server.ts';
import type { RunOptions } from '../simulators/metadata-service/batches.ts';
import { openRemoteWorld, requestLines } from '../support/remote-world.ts';
import type { RemoteWorld } from '../support/remote-world.ts';

const MINUTE = 60_000;

/** Where a job's lines went, by the numbers that its own ids give them. */
function places(world: RemoteWorld, id: string, kind: 'output' | 'error'): number[] {
  return world.written(id, kind).map((line) => Number(/_(\d+)","custom_id"/.exec(line)?.[1]));
}

async function finalizing(
  world: RemoteWorld,
  batches: Map<string, unknown>,
  run: (id: string) => void,
) {
  const id = await world.plan(requestLines(6));
  await world.steps(id, ({ state }) => state === 'in_progress');
  run([...batches.keys()][0] ?? '');
  await world.steps(id, ({ state }) => state === 'finalizing');
  return id;
}

test.for<[string, RunOptions]>([
  ['backwards', { arrange: (lines) => lines.toReversed() }],
  ['twice', { arrange: (lines) => lines.flatMap((line) => [line, line]) }],
])('results that come %s are written in the order of the input, each once', async ([, options]) => {
  await using service = await startMetadataService();
  await using world = openRemoteWorld({ url: service.url });
  const answers = (n: number) => (n === 4 ? null : n % 2 === 0 ? 'output' : 'error');
  const run = (batch: string) => service.run(batch, { ...options, answers });
  const id = await finalizing(world, service.batches, run);
  expect(await world.toEnd(id)).toMatchObject({ state: 'completed', completed: 2, failed: 4 });
  expect(places(world, id, 'output')).toEqual([0, 2]);
  expect(places(world, id, 'error')).toEqual([1, 3, 4, 5]);
  expect(world.written(id, 'error')[2]).toContain('This request was not answered.');
});

test('results that come short, or not at all, are copied again, and the job says why it waits', async () => {
  await using service = await startMetadataService();
  await using world = openRemoteWorld({ url: service.url });
  const id = await finalizing(world, service.batches, (batch) => service.run(batch));
  service.fail('content', { kind: 'cut' }, { kind: 'status', status: 503 });
  await world.step(id);
  expect((await world.job(id)).reason).toMatch(/cannot be written: .* bytes came/);
  await world.step(id);
  expect((await world.job(id)).reason).toContain('answers 503');
  expect(await world.toEnd(id)).toMatchObject({ state: 'completed', completed: 6, reason: '' });
  expect(places(world, id, 'output')).toEqual([0, 1, 2, 3, 4, 5]);
});

test('results of other requests end the job without files, after some tries', async () => {
  await using service = await startMetadataService();
  await using world = openRemoteWorld({ url: service.url });
  const arrange = (lines: string[]) => lines.map((line) => line.replaceAll('line-3', 'alien'));
  const id = await finalizing(world, service.batches, (batch) => service.run(batch, { arrange }));
  for (const at of [0, MINUTE, 2 * MINUTE]) {
    world.ahead = at;
    await world.step(id);
  }
  const job = await world.job(id);
  expect(job).toMatchObject({
    state: 'failed',
    outputFile: null,
    errors: [{ code: 'remote.foreign' }],
  });
  expect(job.errors[0]?.message).toContain("'alien'");
});

test('counts are those of the files, whatever the service said', async () => {
  await using service = await startMetadataService();
  await using world = openRemoteWorld({ url: service.url });
  const id = await finalizing(world, service.batches, (batch) => {
    service.run(batch, { answers: (n) => (n === 0 ? null : 'output') });
    const stored = service.batches.get(batch);
    if (stored !== undefined) stored.completed = 6;
  });
  expect((await world.job(id)).completed).toBe(6);
  expect(await world.toEnd(id)).toMatchObject({ lines: 6, completed: 5, failed: 1 });
});

test('of a job that was stopped while the service was away for long nothing is copied', async () => {
  await using service = await startMetadataService();
  await using world = openRemoteWorld({ url: service.url });
  const id = await world.plan(requestLines(6));
  await world.steps(id, ({ state }) => state === 'in_progress');
  await world.stop(id, 'cancelled');
  service.fail('batch', { kind: 'reset' }, { kind: 'reset' });
  await world.step(id);
  expect(await world.job(id)).toMatchObject({
    state: 'cancelling',
    reason: expect.stringMatching(/does not answer/),
  });
  world.ahead = 61 * MINUTE;
  expect(await world.toEnd(id)).toMatchObject({ state: 'cancelled', completed: 0, failed: 6 });
});

test('an input of the user’s that was changed ends the job, before it is sent and when results are copied', async () => {
  await using service = await startMetadataService({ auto: { afterMs: 0 } });
  await using world = openRemoteWorld({ url: service.url });
  const inputLocation = 's3://bucket/input.jsonl';
  const changed = permanent('storage.changed', 'another object lies there now');
  const { storage } = world.deps;
  const { get } = storage;

  const early = await world.plan(requestLines(2), { options: { inputLocation } });
  storage.get = () => Promise.reject(changed);
  storage.head = () => Promise.reject(changed);
  const ended = await world.toEnd(early);
  expect(ended).toMatchObject({ state: 'failed', errors: [{ code: 'input.changed' }] });
  expect(service.batches.size).toBe(0);

  storage.get = get;
  const late = await world.plan(requestLines(2), { options: { inputLocation } });
  await world.steps(late, ({ state }) => state === 'finalizing');
  storage.get = () => Promise.reject(changed);
  for (const at of [0, MINUTE, 2 * MINUTE]) {
    world.ahead = at;
    await world.step(late);
  }
  const { state, errors } = await world.job(late);
  expect({ state, code: errors[0]?.code }).toEqual({ state: 'failed', code: 'remote.no_input' });
  expect(errors[0]?.message).toContain(`at ${service.url}`);
});
