import { Readable } from 'node:stream';
import { expect, test } from 'vitest';
import type { Deps } from '../../processors/deps.ts';
import { awaitInputs } from '../../processors/inputs.ts';
import type { Verdict } from '../../queues/worker.ts';
import { transient } from '../../src/domain/errors.ts';
import { NO_LIMITS } from '../../src/domain/rate-limit.ts';
import { DEFAULT_RETRY } from '../../src/domain/retry.ts';
import { openJobWorld } from '../support/job-world.ts';

const NEVER = new AbortController().signal;
const PLAN = { n: 0, first: 0, lines: 10, offset: 100, bytes: 50 };

/** A guarded processor that only runs the shard it is given, over an input that a test takes away. */
function openInputs() {
  const { deps, job } = openJobWorld('in_progress', 'serving');
  const input = { bytes: 1_000, reads: 0, get: async () => undefined as void };
  const runs: string[] = [];
  let now = 0;
  async function read(end: number): Promise<Readable> {
    await input.get();
    if (input.bytes === 0) throw transient('input.missing', 'The input file is not in storage.');
    return Readable.from(input.bytes >= end ? [Buffer.from('}')] : []);
  }
  const shard = {
    plan: PLAN,
    token: 't',
    done: Buffer.alloc(2),
    bad: null,
    left: 10,
    takes: 1,
    crashed: null,
  };
  const guarded = awaitInputs(async ({ id, signal }, { dispatcher }) => {
    const jobId = id.split('-')[0] ?? '';
    const place = { adaptive: null, rank: 1, retry: DEFAULT_RETRY, engines: () => [] };
    const watched = { isGuarded: false, isFresh: true, isHedged: false };
    const known = { ...place, ...watched, givenUp: () => [] };
    const attempt = { answerTimeoutMs: null, limits: NO_LIMITS, upstreamStream: 'auto' } as const;
    const more = { pinnedModel: null, ...known, ...attempt };
    const dispatch = { ...job, ...more, id: jobId, inputKey: 'files/x' };
    await dispatcher.run(shard, dispatch, { stop: signal, abort: signal });
    return 'done';
  });
  const world: Deps = {
    ...deps,
    now: () => now,
    storage: {
      ...deps.storage,
      async get(_key, range) {
        input.reads += 1;
        return read(range?.end ?? 0);
      },
    },
    dispatcher: {
      asideMs: () => 0,
      async run(_shard, { id }) {
        runs.push(id);
        if (id !== job.id) return 'done';
        await read(0);
        const isShort = input.bytes < PLAN.offset + PLAN.bytes;
        if (isShort) throw transient('input.short', 'The input file is shorter than it was.');
        return 'done';
      },
    },
  };
  return {
    job,
    input,
    runs,
    pass: (ms: number) => (now += ms),
    deliver: (n: number, jobId = job.id): Promise<Verdict> =>
      guarded({ id: `${jobId}-${n}`, wake: 1, signal: NEVER, lockLost: NEVER }, world),
  };
}

test('while an input is away one shard is tried, and one look after the other, ever later', async () => {
  const { input, runs, deliver, pass } = openInputs();
  input.bytes = 0;
  await expect(deliver(0)).rejects.toThrow('not in storage');
  for (const waitMs of [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]) {
    for (const n of [0, 1, 2]) expect(await deliver(n)).toEqual({ againInMs: waitMs });
    pass(waitMs);
  }
  expect({ runs: runs.length, reads: input.reads }).toEqual({ runs: 1, reads: 6 });
  expect(await deliver(7, 'job_2'), 'another job').toBe('done');

  input.bytes = 1_000;
  for (const n of [0, 1, 2]) expect(await deliver(n)).toBe('done');
  expect(input.reads, 'one look that found it').toBe(7);
});

test('an input that cannot be read though a look found it is looked for ever later, too', async () => {
  const { input, deliver, pass } = openInputs();
  input.bytes = 0;
  await expect(deliver(0)).rejects.toThrow('not in storage');
  for (const waitMs of [1_000, 2_000, 4_000]) {
    pass(waitMs);
    let reads = 0;
    // The look finds what the shard's own read then misses.
    input.get = async () => {
      input.bytes = reads === 0 ? 1_000 : 0;
      reads += 1;
    };
    await expect(deliver(0)).rejects.toThrow('not in storage');
    expect(await deliver(1)).toEqual({ againInMs: waitMs * 2 });
  }
  pass(8_000);
  input.get = async () => undefined;
  input.bytes = 1_000;
  expect(await deliver(0)).toBe('done');
  input.bytes = 0;
  await expect(deliver(0)).rejects.toThrow('not in storage');
  expect(await deliver(1), 'anew after a shard that worked').toEqual({ againInMs: 1_000 });
});

test('an input that became shorter puts its job off until it has its length again', async () => {
  const { input, deliver, pass } = openInputs();
  input.bytes = PLAN.offset + PLAN.bytes - 1;
  await expect(deliver(0)).rejects.toThrow('shorter than it was');
  pass(1_000);
  expect(await deliver(0)).toEqual({ againInMs: 2_000 });
  pass(2_000);
  input.bytes = PLAN.offset + PLAN.bytes;
  expect(await deliver(0)).toBe('done');
});

test('storage that hangs keeps no delivery for long, and is asked once', async () => {
  const { input, runs, deliver, pass } = openInputs();
  input.bytes = 0;
  await expect(deliver(0)).rejects.toThrow('not in storage');
  input.bytes = 1_000;
  const { promise, resolve } = Promise.withResolvers<void>();
  input.get = () => promise;
  for (const n of [0, 1, 2, 3]) {
    pass(1_000);
    expect(await deliver(n)).toEqual({ againInMs: 1_000 });
  }
  expect({ runs: runs.length, reads: input.reads }).toEqual({ runs: 1, reads: 1 });
  resolve();
  await promise;
  pass(1_000);
  await expect.poll(() => deliver(0)).toBe('done');
});

test('shards of a job that is in progress no longer reach the processor, which lets them go', async () => {
  const { input, job, runs, deliver, pass } = openInputs();
  input.bytes = 0;
  await expect(deliver(0)).rejects.toThrow('not in storage');
  job.state = 'cancelling';
  pass(1_000);
  await expect(deliver(0)).rejects.toThrow('not in storage');
  expect(runs).toHaveLength(2);
});
