import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { Watches } from '../../processors/watch.ts';
import type { JobRecord } from '../../src/domain/job.ts';
import type { Store } from '../../src/store/store.ts';
import { ADDRESS, openJobWorld } from '../support/job-world.ts';
import { until } from '../support/until.ts';

/** Watches over one record; Redis' clock is `aheadMs` before that of this host. */
function openWatches({ aheadMs = 0, deadline = Date.now() + 60_000, onEngines = () => {} } = {}) {
  const { deps, job, provision } = openJobWorld('in_progress', 'serving');
  job.deadline = deadline;
  let read = async (): Promise<JobRecord> => ({ ...job });
  const jobs = new Proxy<Store['jobs']>(deps.store.jobs, {
    get: (target, name) => (name === 'get' ? () => read() : Reflect.get(target, name)),
  });
  const warnings: string[] = [];
  const watches = new Watches({
    store: { ...deps.store, jobs },
    now: () => Date.now() + aheadMs,
    onEngines,
    log: { warn: (_fields, message) => void warnings.push(message) },
  });
  async function open() {
    const watch = await watches.open(job.id);
    if (watch === null) throw new Error('the job is in progress');
    return watch;
  }
  return {
    job,
    provision,
    watches,
    warnings,
    open,
    replaceRead: (other: typeof read) => (read = other),
  };
}

describe('a deadline', () => {
  test('ends the watch of a job when it is over', async () => {
    const watch = await openWatches({ deadline: Date.now() + 50 }).open();
    expect(watch.signal.aborted).toBe(false);
    await until(() => watch.signal.aborted, { timeoutMs: 1_000, what: 'the end of the watch' });
  });

  test('that is over leaves nothing to watch, whatever the record says', async () => {
    const { watches, job } = openWatches({ deadline: Date.now() - 1 });
    expect(await watches.open(job.id)).toBeNull();
    job.deadline = Date.now() + 60_000;
    const watch = await watches.open(job.id);
    expect(watch?.signal.aborted, 'it was extended').toBe(false);
    watch?.close();
  });

  test("is over by Redis' clock, not by this host's", async () => {
    const late = openWatches({ aheadMs: 30_000, deadline: Date.now() + 25_000 });
    expect(await late.watches.open(late.job.id)).toBeNull();
    const early = openWatches({ aheadMs: -30_000, deadline: Date.now() - 25_000 });
    (await early.open()).close();
  });

  test('that is moved into the past ends the watch as soon as it is read', async () => {
    const { watches, job, open } = openWatches();
    const watch = await open();
    job.deadline = Date.now() - 1;
    // An end goes before a pause: who is gone cannot hold what is in flight.
    job.pausedAt = 1;
    watches.poke(job.id);
    await until(() => watch.signal.aborted, { timeoutMs: 1_000, what: 'the end of the watch' });
    expect(watch.signal.reason).toMatchObject({ message: 'the deadline is over' });
    expect(watch.paused.aborted).toBe(false);
    watch.close();
  });

  test('that lies further away than a timer reaches does not end the watch at once', async () => {
    const { open } = openWatches({ deadline: Date.now() + 300 * 86_400_000 });
    const watch = await open();
    await sleep(20);
    expect(watch.signal.aborted).toBe(false);
    watch.close();
  });
});

describe('a pause', () => {
  test('ends the sending, not what is in flight; a later watch is another one', async () => {
    const { job, watches, open } = openWatches();
    const watch = await open();
    job.pausedAt = 1;
    watches.poke(job.id);
    await until(() => watch.paused.aborted, { timeoutMs: 1_000, what: 'the pause' });
    expect(watch.signal.aborted).toBe(false);
    expect(await watches.open(job.id), 'nothing of it is sent').toBeNull();

    job.pausedAt = null;
    const after = await open();
    expect(after.paused.aborted).toBe(false);
    watch.close();
    expect(watch.signal.aborted).toBe(true);
    expect(after.signal.aborted, 'the end of the old one is not that of the new one').toBe(false);
    after.close();
  });

  test('leaves it possible to cut what is in flight', async () => {
    const { job, watches, open } = openWatches();
    const watch = await open();
    job.pausedAt = 1;
    watches.poke(job.id);
    await until(() => watch.paused.aborted, { timeoutMs: 1_000, what: 'the pause' });
    job.state = 'cancelling';
    watches.poke(job.id);
    await until(() => watch.signal.aborted, { timeoutMs: 1_000, what: 'the end' });
    expect(watch.signal.reason).toMatchObject({ message: expect.stringContaining('in progress') });
    watch.close();
  });
});

test('a deadline that is moved while lines are sent is the one that counts', async () => {
  const { job, watches, open } = openWatches({ deadline: Date.now() + 150 });
  const watch = await open();
  job.deadline += 60_000;
  watches.poke(job.id);
  await sleep(300);
  expect(watch.signal.aborted).toBe(false);
  job.deadline = Date.now() + 20;
  watches.poke(job.id);
  await until(() => watch.signal.aborted, { timeoutMs: 1_000, what: 'the deadline' });
  watch.close();
});

test('the engines of a job are one array until one comes, goes, or serves other models', async () => {
  const { job, provision, watches, open } = openWatches();
  const watch = await open();
  const before = watch.engines();
  expect(before).toEqual([{ address: ADDRESS, models: null }]);
  watches.poke(job.id);
  await sleep(20);
  expect(watch.engines()).toBe(before);
  provision.models = ['a'];
  watches.poke(job.id);
  await until(() => watch.engines() !== before, { timeoutMs: 1_000, what: 'other models' });
  expect(watch.engines()).toEqual([{ address: ADDRESS, models: ['a'] }]);
  watch.close();
});

test('models that are given up are known to whoever is told that the job was read again', async () => {
  const seen: string[][] = [];
  const { job, watches, open } = openWatches({
    onEngines: () => void seen.push([...(watch?.givenUp() ?? [])]),
  });
  const watch = await open();
  expect(watch.givenUp()).toEqual([]);
  job.givenUp = ['b'];
  watches.poke(job.id);
  await until(() => seen.length > 0, { timeoutMs: 1_000, what: 'the second read' });
  expect(seen).toEqual([['b']]);
  watch.close();
});

test('a stop that is heard while the job cannot be read does no harm', async () => {
  const { watches, job, open, replaceRead } = openWatches();
  const unhandled: unknown[] = [];
  function remember(reason: unknown): void {
    unhandled.push(reason);
  }
  // The test runner listens, too, and would fail the run instead of this test.
  const others = process.listeners('unhandledRejection');
  process.removeAllListeners('unhandledRejection').on('unhandledRejection', remember);
  try {
    const { promise, reject } = Promise.withResolvers<JobRecord>();
    replaceRead(() => promise);
    const opening = watches.open(job.id);
    watches.poke(job.id);
    reject(new Error('Command aborted due to connection close'));
    await expect(opening).rejects.toThrow('connection close');
    // Node tells of unhandled rejections once the microtasks are done.
    await sleep(1);
    expect(unhandled).toEqual([]);

    replaceRead(async () => ({ ...job }));
    const watch = await open();
    expect(watch.signal.aborted).toBe(false);
    watch.close();
  } finally {
    process.off('unhandledRejection', remember);
    for (const listener of others) process.on('unhandledRejection', listener);
  }
});
