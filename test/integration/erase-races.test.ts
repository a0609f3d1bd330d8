import type { Command } from 'ioredis';
import { expect, test } from 'vitest';
import { continueErasures, eraseJob } from '../../processors/erase-job.ts';
import { createExpiry } from '../../processors/expiry.ts';
import { fileKey, outputFileId } from '../../src/domain/file.ts';
import { recordKey } from '../../src/store/keys.ts';
import type { ScriptName } from '../../src/store/scripts.ts';
import { DAY, openCollectWorld } from '../support/collect-world.ts';
import type { CollectWorld } from '../support/collect-world.ts';
import { newJob } from '../support/store-back-ends.ts';

/** Lets something happen right before a script of this name runs for the first time. */
function before({ redis }: CollectWorld, script: ScriptName, task: () => Promise<unknown>): void {
  const name = `sluice_${script}`;
  const command: unknown = Reflect.get(redis, name);
  Reflect.set(redis, name, async (...args: unknown[]): Promise<unknown> => {
    Reflect.set(redis, name, command);
    await task();
    return typeof command === 'function' ? Reflect.apply(command, redis, args) : null;
  });
}

/** A round by the clock of Redis, which is not moved on for it. */
function sweep({ deps }: CollectWorld, ahead = 0): Promise<boolean> {
  const now = () => Date.now() + ahead;
  return createExpiry('test', { ...deps, now, graceMs: 0 }).round();
}

test('DELETE takes the files of a job that its retention is just about to remove', async () => {
  await using world = await openCollectWorld();
  const id = await world.run();
  await world.finish(id);
  const { collect } = world.store;
  before(world, 'erase', () => collect.erase(id, { at: 1, withFiles: false, input: '' }));
  expect(await world.erase(id)).toBe('erased');
  const note = await collect.erasure(id);
  expect(note).toMatchObject({ withFiles: true, provisions: [`prov_${id}_0_0`] });
  expect(note?.at).toBeGreaterThan(1);
  // Whoever comes without that wish takes it from nobody.
  await collect.erase(id, { at: 2, withFiles: false, input: '' });
  expect(await collect.erasure(id)).toEqual(note);
  expect(await world.objects()).not.toContain(fileKey(outputFileId(id, 'output')));
  expect(await world.store.files.get(outputFileId(id, 'output'))).toBeNull();
});

test('an erasure that the sweeper meets before it has an effect is not forgotten', async () => {
  await using world = await openCollectWorld();
  const id = await world.run();
  await world.finish(id);
  const wish = { at: Date.now(), withFiles: true, input: '' };
  const index = `${world.namespace}:erasing`;
  before(world, 'erase', async () => {
    await sweep(world);
    expect(await world.redis.zscore(index, id)).not.toBeNull();
    // A process that was asleep for longer.
    await sweep(world, 120_000);
    expect(await world.redis.zscore(index, id)).toBeNull();
  });
  expect(await world.store.collect.erase(id, wish)).toBe('erased');
  expect(await world.redis.zscore(index, id)).not.toBeNull();
  await sweep(world, 120_000);
  expect(await world.store.provisions.ofJob(id)).toEqual([]);
});

test('an entry that was put off while the sweeper looked at it stays', async () => {
  await using world = await openCollectWorld();
  const { collect } = world.store;
  await collect.postponeErasure('job_a', 5_000);
  await collect.forgetErasure('job_a', 4_999);
  expect(await world.redis.zscore(`${world.namespace}:erasing`, 'job_a')).toBe('5000');
  await collect.forgetErasure('job_a', 5_000);
  expect(await world.redis.zcard(`${world.namespace}:erasing`)).toBe(0);
});

test('a file that is let expire, or deleted, while the sweeper runs is looked at again', async () => {
  await using world = await openCollectWorld();
  const [ending, going] = [await world.file('a\n'), await world.file('b\n')];
  const { files } = world.store;
  before(world, 'file-expire', () => sweep(world));
  await files.expire(ending, Date.now() - 1_000);
  expect(await files.due(9)).toEqual([ending]);
  before(world, 'remove', () => sweep(world));
  await files.delete(going);
  expect(await world.redis.zscore(`${world.namespace}:file-expiry`, going)).not.toBeNull();
  await world.expire();
  expect(await world.objects()).toEqual([]);
});

test('a file expires earlier than it was to, and never later', async () => {
  await using world = await openCollectWorld();
  const id = await world.file('a\n');
  const { files } = world.store;
  for (const [at, expected] of [
    [9e12, 9e12],
    [8e12, 8e12],
    [9e12, 8e12],
  ] as const) {
    await files.expire(id, at);
    expect((await files.get(id))?.expiresAt).toBe(expected);
  }
});

test('a job that is made over the input of one that is just being erased keeps it until it is over', async () => {
  await using world = await openCollectWorld();
  const id = await world.run();
  await world.finish(id);
  const { input } = await world.job(id);
  const { collect } = world.store;
  let made = '';
  const asking = {
    ...collect,
    async inputsOfOthers(...args: Parameters<typeof collect.inputsOfOthers>) {
      const used = await collect.inputsOfOthers(...args);
      if (made === '') made = (await world.store.jobs.create(newJob({ input }))).job.id;
      return used;
    },
  };
  expect(await world.erase(id, { store: { ...world.store, collect: asking } })).toBe('erased');
  // Nobody names it any more.
  expect((await world.store.files.get(input))?.expiresAt).toBeLessThanOrEqual(Date.now());
  world.ahead = DAY;
  await world.expire();
  expect(await world.objects()).toContain(fileKey(input));
  await world.store.jobs.move(await world.job(made), 'cancelled');
  await world.expire();
  expect(await world.objects()).toEqual([]);
});

test('a job whose record is damaged keeps no other from being erased, and no file from going', async () => {
  await using world = await openCollectWorld();
  const [over, broken] = [await world.run(), await world.run()];
  const { input } = await world.job(broken);
  await world.finish(over);
  await world.redis.hset(recordKey(broken), 'lines', 'many');
  await expect(world.store.jobs.get(broken)).rejects.toThrow('lines');
  const old = await world.file('old\n');
  await world.store.files.expire(old, Date.now() - 1_000);
  await world.store.files.expire(input, Date.now() - 1_000);
  expect(await world.erase(over)).toBe('erased');
  await world.expire();
  const left = await world.objects();
  expect(left.filter((key) => key.startsWith('files/'))).toEqual([fileKey(input)]);
});

test('a hundred files whose records are damaged do not keep others from going', async () => {
  await using world = await openCollectWorld();
  const { files } = world.store;
  for (let n = 0; n < 100; n += 1) await world.file('x', `file-stuck${n}`);
  const good = await world.file('y');
  for (let n = 0; n < 100; n += 1) {
    await files.expire(`file-stuck${n}`, 1);
    await world.redis.hset(recordKey(`file-stuck${n}`), 'bytes', 'many');
  }
  await files.expire(good, 2);
  await sweep(world);
  await sweep(world);
  expect(await world.objects()).not.toContain(fileKey(good));
  expect(await files.due(9)).toEqual([]);
});

test('one erasure that fails keeps no other waiting, and comes again later', async () => {
  await using world = await openCollectWorld();
  const ids = [await world.run(), await world.run()];
  for (const id of ids) {
    await world.finish(id);
    await eraseJob(id, { withFiles: true }, world.deps);
  }
  const [first = '', second = ''] = ids;
  const storage = { ...world.storage };
  storage.list = (prefix) => {
    if (prefix.includes(first)) throw new Error('it is locked');
    return world.storage.list(prefix);
  };
  await continueErasures({ ...world.deps, storage });
  expect((await world.objects()).filter((key) => key.includes(second))).toEqual([]);
  const at = await world.redis.zscore(`${world.namespace}:erasing`, first);
  expect(Number(at)).toBeGreaterThan(Date.now() + 30_000);
});

test('DELETE of one of 2,000 jobs asks Redis little, and the sweeper does the rest', async () => {
  await using world = await openCollectWorld();
  const id = await world.run();
  await world.finish(id);
  for (let n = 0; n < 2_000; n += 1) {
    const { job } = await world.store.jobs.create(newJob({ input: `file-${n}` }));
    await world.store.jobs.move(job, 'cancelled');
  }
  const { redis } = world;
  const send = redis.sendCommand.bind(redis);
  let commands = 0;
  redis.sendCommand = (command: Command) => {
    commands += 1;
    return send(command);
  };
  expect(await eraseJob(id, { withFiles: true }, world.deps)).toBe('erased');
  expect(commands).toBeLessThan(30);
  expect(await world.store.jobs.get(id)).toBeNull();
  expect(await world.store.files.get(outputFileId(id, 'output'))).toBeNull();
  await world.expire();
  await world.expire();
  expect(await world.objects()).toEqual([]);
});
