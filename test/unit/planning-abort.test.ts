import { Readable } from 'node:stream';
import { expect, test } from 'vitest';
import { planning } from '../../processors/planning.ts';
import { openJobWorld } from '../support/job-world.ts';

test('planning that is to stop does not wait for an input that stands still', async () => {
  const { job, deps } = openJobWorld('queued', null);
  const stop = new AbortController();
  const input = new Readable({ read: () => undefined });
  deps.storage.get = async () => input;
  deps.readPlan = async (source) => {
    stop.abort(new Error('the worker stops'));
    for await (const _ of source) expect.fail('nothing ever comes');
    throw new Error('it ended as if it were whole');
  };
  const lockLost = new AbortController().signal;
  const task = { id: job.id, wake: job.wake, signal: stop.signal, lockLost };
  await expect(planning(task, deps)).rejects.toThrow('aborted');
  expect(input.destroyed).toBe(true);
  expect(job.state).toBe('queued');
});
