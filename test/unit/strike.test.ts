import { describe, expect, test } from 'vitest';
import type { Deps } from '../../processors/deps.ts';
import { permanent, transient } from '../../src/domain/errors.ts';
import type { LostParts } from '../../src/domain/segment.ts';
import { provisionId } from '../../src/domain/provision.ts';
import { ADDRESS, openJobWorld } from '../support/job-world.ts';
import type { JobWorld } from '../support/job-world.ts';

const LOST: LostParts = {
  n: 0,
  lost: [{ segment: 'seg', offset: 0, length: 10, crc: 7 }],
  rest: Buffer.alloc(3),
  reason: 'segment seg, bytes 0 to 10: is missing',
};

/** An assembler that ends as the product's does: the files are broken off with its error. */
function failing(error: Error): Deps['assemble'] {
  return async (_source, sinks) => {
    sinks.output.destroy(error);
    sinks.error.destroy(error);
    throw error;
  };
}

const withoutAnswers: Deps['assemble'] = async (_source, sinks) => {
  sinks.output.end();
  sinks.error.end();
  return { output: 0, error: 0, undone: 20 };
};

/** A job with 20 answers in one shard whose files cannot be written as they are. */
function damaged() {
  const world = openJobWorld('finalizing', 'released');
  const { job, deps } = world;
  Object.assign(job, { outcome: 'completed', completed: 20, doneShards: 1 });
  job.enteredAt = { in_progress: 1, finalizing: 2 };
  const notes: string[] = [];
  const created: object[] = [];
  deps.store.provisions.create = async (provision) => {
    created.push(provision);
    return 'created';
  };
  const calls: string[] = [];
  deps.store.jobs.note = async (_id, reason) => void notes.push(reason);
  deps.storage.head = async () => ({ bytes: 1, modifiedAt: 0 });
  deps.assemble = failing(permanent('segment.damaged', 'is missing'));
  deps.findLost = async function* findLost() {
    yield LOST;
  };
  deps.store.shards.strike = async ({ version }, { n }, message) => {
    if (version !== job.version) return 'stale';
    calls.push(`strike ${n}: ${message}`);
    Object.assign(job, { completed: 0, doneShards: 0, version: version + 1 });
    return job.version;
  };
  deps.store.shards.forgetSegments = async (_id, ids) =>
    void calls.push(`forget ${[...ids].join()}`);
  return { ...world, notes, calls, created };
}

function deliver({ deliver: run, job }: Pick<JobWorld, 'deliver' | 'job'>) {
  return run({ queue: 'release', entity: job.id, wake: job.wake });
}

describe('a job whose answers are lost when its files are written', () => {
  test('strikes them out first, and goes back when it is looked at again', async () => {
    const here = damaged();
    await deliver(here);
    const message = 'Answers are lost in storage: segment seg, bytes 0 to 10: is missing.';
    expect(here.calls).toEqual([`strike 0: ${message}`, 'forget seg']);
    expect(here.job.state, 'a process may die here').toBe('finalizing');
    await deliver(here);
    expect(here.moves).toEqual(['resource_preparing']);
    expect(here.calls).toHaveLength(2);
  });

  test.each([
    ['the settings name', [{ slot: 0, address: ADDRESS }]],
    ['the job had, where the settings name none', []],
  ])('is given the engines at once that %s', async (_name, slots) => {
    const here = damaged();
    here.deps.manager = { provider: 'static', slots: () => slots };
    await deliver(here);
    await deliver(here);
    const next = provisionId(here.job.id, 0, 1);
    expect(here.added).toContainEqual({ queue: 'provisioning', entity: next, wake: 1 });
    expect(here.created).toMatchObject([{ id: next, job: here.job.id, address: ADDRESS }]);
  });

  test('does not go back where its outcome is another one', async () => {
    const here = damaged();
    here.job.outcome = 'cancelled';
    await deliver(here);
    expect(here.calls).toHaveLength(2);
    here.deps.assemble = withoutAnswers;
    await deliver(here);
    expect(here.moves).toEqual(['cancelled']);
  });

  test('does not go back where all its lines are bad, so that none was ever asked', async () => {
    const here = damaged();
    Object.assign(here.job, { completed: 0, doneShards: 0, enteredAt: { finalizing: 2 } });
    here.deps.assemble = withoutAnswers;
    await deliver(here);
    expect(here.moves).toEqual(['completed']);
  });

  test('strikes nothing while storage cannot be read', async () => {
    const here = damaged();
    here.deps.findLost = async function* findLost() {
      yield* [];
      throw transient('storage.down', 'not now');
    };
    await deliver(here);
    expect(here.calls).toEqual([]);
    expect(here.job.state).toBe('finalizing');
    expect(here.notes).toEqual(['The output files cannot be written: not now (storage.down)']);
  });

  test('does not tell what a store says of itself', async () => {
    const here = damaged();
    const cause = new Error('arn:aws:iam::123456789012:user/ops is not authorized');
    here.deps.assemble = failing(transient('storage.denied', 'may not', { cause }));
    await deliver(here);
    expect(here.notes).toEqual(['The output files cannot be written: may not (storage.denied)']);
  });

  test('strikes nothing that can be read after all, and says why it stands', async () => {
    const here = damaged();
    here.deps.findLost = async function* findLost() {};
    await deliver(here);
    expect(here.calls).toEqual([]);
    expect(here.notes).toEqual([
      'The output files cannot be written: is missing (segment.damaged)',
    ]);
  });

  test('strikes nothing where the input is missing, too', async () => {
    const here = damaged();
    here.deps.storage.head = async () => null;
    await deliver(here);
    expect(here.calls).toEqual([]);
    expect(here.notes[0]).toMatch(/neither all answers nor the input file/);
  });

  test.for(['files/file-1', 's3://bucket/key'])(
    'strikes nothing of an input in a bucket where %s is missing',
    async (missing) => {
      const here = damaged();
      here.job.options = { ...here.job.options, inputLocation: 's3://bucket/key' };
      here.deps.storage.head = async (key) =>
        key === missing ? null : { bytes: 0, modifiedAt: 0 };
      await deliver(here);
      expect(here.calls).toEqual([]);
      expect(here.notes[0]).toMatch(/neither all answers nor the input file/);
      here.deps.storage.head = async () => ({ bytes: 0, modifiedAt: 0 });
      await deliver(here);
      expect(here.calls[0]).toMatch(/^strike/);
    },
  );

  test('looks for nothing after another failure, such as a full disk', async () => {
    const here = damaged();
    here.deps.assemble = failing(transient('storage.full', 'no room left'));
    await deliver(here);
    expect(here.calls).toEqual([]);
    expect(here.notes).toEqual(['The output files cannot be written: no room left (storage.full)']);
  });
});

describe('a job whose answers are lost, and whose input somebody has replaced', () => {
  const changed = permanent('storage.changed', 'another object lies there now');

  function replaced() {
    const here = damaged();
    const inputLocation = 's3://bucket/input.jsonl?etag=%22x%22';
    here.job.options = { ...here.job.options, inputLocation };
    here.deps.storage.head = async (key) => {
      if (key === inputLocation) throw changed;
      return { bytes: 0, modifiedAt: 0 };
    };
    return here;
  }

  test('strikes out what is lost', async () => {
    const here = replaced();
    await deliver(here);
    expect(here.notes).toEqual([]);
    expect(here.calls).toEqual([expect.stringContaining('strike 0'), 'forget seg']);
  });

  test('strikes it out where the input was missed first', async () => {
    const here = replaced();
    here.job.outcome = 'cancelled';
    const isDamaged = here.deps.assemble;
    let tries = 0;
    here.deps.assemble = (...args) => {
      tries += 1;
      return tries === 1 ? failing(changed)(...args) : isDamaged(...args);
    };
    await deliver(here);
    expect(here.notes).toEqual([]);
    expect(here.calls).toEqual([expect.stringContaining('strike 0'), 'forget seg']);
  });
});
