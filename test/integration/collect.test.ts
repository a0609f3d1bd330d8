import { setImmediate as nextTurn } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { expect, inject, test } from 'vitest';
import { createCollector } from '../../processors/collect.ts';
import type { CollectDeps } from '../../processors/collect.ts';
import { fileKey, manifestKey, outputFileId, segmentKey } from '../../src/domain/file.ts';
import { DEFAULT_OPTIONS } from '../../src/domain/job.ts';
import { CENSUS_KEY } from '../../src/domain/object-owner.ts';
import { recordKey } from '../../src/store/keys.ts';
import { createStore } from '../../src/store/store.ts';
import { DAY, HOUR, openCollectWorld } from '../support/collect-world.ts';
import type { CollectWorld } from '../support/collect-world.ts';
import { mortalRedis, mortalStorage } from '../support/mortal.ts';
import { newJob } from '../support/store-back-ends.ts';

async function segmentsOf(world: CollectWorld, jobId: string): Promise<string[]> {
  return (await world.objects()).filter((key) => key.startsWith(`jobs/${jobId}/`));
}

test('SEGMENT_KEEP after the end of a job its segments and shards go; record, history and files stay', async () => {
  await using world = await openCollectWorld();
  const [over, running] = [await world.run(), await world.run()];
  await world.finish(over);
  const before = await world.objects();
  world.ahead = DAY - HOUR;
  await world.collect();
  expect(await world.objects()).toEqual(before);
  world.ahead = DAY + HOUR;
  expect((await world.collect()).kinds.segments).toEqual({ count: 1, bytes: 10 });
  expect(await segmentsOf(world, over)).toEqual([]);
  expect(await world.keys(`${recordKey(over)}:`)).toEqual([
    `${recordKey(over)}:events`,
    `${recordKey(over)}:provisions`,
  ]);
  expect((await world.job(over)).state).toBe('completed');
  expect((await world.store.jobs.events(over)).length).toBeGreaterThan(3);
  const files = (await world.objects()).filter((key) => key.startsWith('files/'));
  expect(files).toEqual(before.filter((key) => key.startsWith('files/')));
  expect(await segmentsOf(world, running)).toHaveLength(1);
  expect(await world.store.shards.segments(running)).toHaveProperty('size', 1);
  // Nothing of it is looked at again.
  expect((await world.collect()).kinds.segments).toEqual({ count: 0, bytes: 0 });
});

test('a job whose files could not be written keeps its segments until its record goes', async () => {
  await using world = await openCollectWorld();
  const id = await world.run();
  await world.finish(id, 'failed', { withoutFiles: true });
  world.ahead = 90 * DAY;
  await world.collect();
  expect(await segmentsOf(world, id)).toHaveLength(1);
  expect(await world.store.shards.segments(id)).toHaveProperty('size', 1);
  await world.collect({}, { jobRetentionMs: 30 * DAY });
  expect(await segmentsOf(world, id)).toEqual([]);
});

test('of a lenient job stays which lines were bad, since a retry leaves them out', async () => {
  await using world = await openCollectWorld();
  const id = await world.run({ validation: 'lenient' });
  await world.finish(id);
  world.ahead = 2 * DAY;
  await world.collect();
  const shards = [];
  for await (const { bad, parts } of world.store.shards.accepted(id, 0, 3)) {
    shards.push([bad, parts.length]);
  }
  expect(shards).toEqual([
    [null, 0],
    [Buffer.from([1]), 0],
    [null, 0],
  ]);
});

test('shards that a failed planning left, of which the record does not know, go as well', async () => {
  await using world = await openCollectWorld();
  const id = await world.run();
  const plans = Array.from({ length: 1_203 }, (_, n) => ({
    n,
    first: n,
    lines: 1,
    offset: n,
    bytes: 1,
  }));
  await world.store.shards.write(id, plans);
  await world.finish(id);
  expect(await world.store.collect.countShards(id)).toBe(1_203);
  world.ahead = 2 * DAY;
  await world.collect();
  expect(await world.keys(`${recordKey(id)}:s:`)).toEqual([]);
});

test('JOB_RETENTION after its end a job goes with all its records, and its files stay', async () => {
  await using world = await openCollectWorld();
  const [over, running] = [await world.run(), await world.run()];
  await world.finish(over);
  world.ahead = 31 * DAY;
  await world.collect();
  expect((await world.job(over)).state).toBe('completed');
  const report = await world.collect({}, { jobRetentionMs: 30 * DAY });
  expect(report.kinds.jobs.count).toBe(1);
  expect(await world.store.jobs.get(over)).toBeNull();
  expect((await world.store.jobs.page({ limit: 9 })).jobs.map(({ id }) => id)).toEqual([running]);
  expect(await world.store.provisions.ofJob(over)).toEqual([]);
  expect(await world.keys(over)).toEqual(
    [
      recordKey(outputFileId(over, 'output')),
      `${recordKey(over)}:erased`,
      `${recordKey(`prov_${over}_0_0`)}:erased`,
    ]
      .filter((key) => key.includes(over))
      .toSorted(),
  );
  expect(await world.store.files.get(outputFileId(over, 'output'))).not.toBeNull();
  expect(await world.objects()).toContain(fileKey(outputFileId(over, 'output')));
  expect(await world.objects()).not.toContain(manifestKey(over));
  expect((await world.job(running)).state).toBe('in_progress');
});

test('FILE_RETENTION ends files that have no end of their own, but none that a job needs', async () => {
  await using world = await openCollectWorld();
  const old = await world.file('old\n');
  const running = await world.run();
  const { input } = await world.job(running);
  world.ahead = 8 * DAY;
  await world.collect();
  expect((await world.store.files.get(old))?.expiresAt).toBeUndefined();
  const report = await world.collect({}, { fileRetentionMs: 7 * DAY });
  expect(report.kinds.files).toEqual({ count: 1, bytes: 4 });
  expect((await world.store.files.get(old))?.expiresAt).toBeLessThanOrEqual(Date.now() + 8 * DAY);
  await world.store.files.postpone(old, 0);
  await world.expire();
  expect(await world.store.files.get(old)).toBeNull();
  expect((await world.objects()).filter((key) => key.startsWith('files/'))).toEqual([
    fileKey(input),
  ]);
  // Once its job is over and its time is, too, the input goes.
  await world.finish(running);
  await world.collect({}, { fileRetentionMs: 7 * DAY });
  await world.store.files.postpone(input, 0);
  await world.expire();
  expect(await world.store.files.get(input)).toBeNull();
});

test('ORPHAN_AGE after it was written an object that no record names goes, none that could still be named', async () => {
  await using world = await openCollectWorld();
  const running = await world.run();
  const done = await world.run();
  await world.finish(done);
  const uncommitted = segmentKey(running, 'put-but-not-committed');
  const writing = fileKey(outputFileId(running, 'output'));
  const orphans = [
    segmentKey('job_gone', 's'),
    fileKey('file-gone'),
    manifestKey('job_gone'),
    'uploads/upload_gone/part_1',
  ];
  const foreign = ['files/readme.txt', 'elsewhere/thing'];
  for (const key of [uncommitted, writing, ...orphans, ...foreign]) {
    await world.storage.put(key, [Buffer.from('12345')]);
  }
  const before = await world.objects();
  world.ahead = DAY - HOUR;
  await world.collect();
  expect(await world.objects()).toEqual(before);
  world.ahead = DAY + HOUR;
  const forever = { segmentKeepMs: 99 * DAY };
  const seen = await world.collect({ dryRun: true }, forever);
  expect(await world.objects()).toEqual(before);
  const { kinds, doubt, looked } = await world.collect({}, forever);
  expect({ ...kinds, doubt }).toMatchObject({
    orphan_segments: { count: 1, bytes: 5 },
    orphan_files: { count: 1, bytes: 5 },
    orphan_manifests: { count: 1, bytes: 5 },
    orphan_parts: { count: 1, bytes: 5 },
    doubt: null,
  });
  expect(seen).toMatchObject({ dryRun: true, kinds, looked });
  expect(await world.objects()).toEqual(before.filter((key) => !orphans.includes(key)));
});

test('an object that is recorded between the two looks stays', async () => {
  await using world = await openCollectWorld();
  await world.storage.put('files/file-late', [Buffer.from('x')]);
  world.ahead = 2 * DAY;
  const storage = { ...world.storage };
  storage.head = async (key) => {
    const info = await world.storage.head(key);
    const named = { filename: 'f', purpose: 'batch', bytes: 1, sha256: '' } as const;
    if (key === 'files/file-late') await world.store.files.create({ id: 'file-late', ...named });
    return info;
  };
  expect((await world.collect({}, { storage })).kinds.orphan_files.count).toBe(0);
  expect(await world.objects()).toEqual(['files/file-late']);
});

test('what a part that is being joined, and a completed upload without its file yet, need stays', async () => {
  await using world = await openCollectWorld();
  const { uploads } = world.store;
  const wish = { filename: 'f', purpose: 'batch', mimeType: 'text/plain', bytes: 1 } as const;
  await uploads.create({ ...wish, id: 'upload_a', expiresAfterMs: null, bodyHash: 'b' });
  await uploads.begin('upload_a', 'file-joined', 60_000);
  const keys = ['files/file-joined', 'uploads/upload_a/part_1'];
  for (const key of keys) await world.storage.put(key, [Buffer.from('x')]);
  world.ahead = 2 * DAY;
  await world.collect();
  expect(await world.objects()).toEqual(keys);
});

async function withOrphans(world: CollectWorld, count: number): Promise<void> {
  for (let n = 0; n < count; n += 1) {
    await world.storage.put(`files/file-orphan${n}`, [Buffer.from('x')]);
  }
  world.ahead = 2 * DAY;
}

test('records that name hardly anything of what is there only report, until a person confirms', async () => {
  await using world = await openCollectWorld();
  await withOrphans(world, 60);
  const report = await world.collect();
  expect(report.kinds.orphan_files.count).toBe(60);
  expect(report.doubt).toContain('incomplete');
  expect(await world.objects()).toHaveLength(60);
  expect((await world.collect({ confirm: true })).doubt).toBeNull();
  expect(await world.objects()).toEqual([]);
});

test('a Redis that lost its data, lost some, or is another one, never makes the storage be swept', async () => {
  await using world = await openCollectWorld();
  await world.collect();
  await withOrphans(world, 3);
  const census = `${world.namespace}:census`;
  const known = await world.redis.hgetall(census);
  expect(known['round']).toBe('2');
  const [object] = await world.storage
    .get(CENSUS_KEY)
    .then((stream) => stream.toArray() as Promise<Buffer[]>);
  expect(JSON.parse(String(object))).toEqual({ id: known['id'], round: 2 });

  await world.redis.hset(census, 'round', 1);
  expect((await world.collect()).doubt).toContain('has lost some');
  await world.redis.del(census);
  expect((await world.collect()).doubt).toContain('lost its data');
  await world.redis.hset(census, { id: 'another', round: 9 });
  expect((await world.collect()).doubt).toContain('another one');
  const bound = `${world.namespace}:storage`;
  const identity = (await world.redis.get(bound)) ?? '';
  await world.redis.del(bound);
  expect((await world.collect()).doubt).toContain('do not know of this one');
  expect(await world.objects()).toHaveLength(3);
  // A person says that these records are right, and then they are those that count.
  await world.redis.set(bound, identity);
  expect((await world.collect({ confirm: true })).doubt).toBeNull();
  expect(await world.objects()).toEqual([]);
  expect((await world.collect()).doubt).toBeNull();
});

test('one process at a time collects, a round comes when it is due, and a stop ends it at once', async () => {
  await using world = await openCollectWorld();
  const never = new AbortController().signal;
  const [a, b] = [createCollector('a', world.deps), createCollector('b', world.deps)];
  const wish = { dryRun: false, confirm: false };
  await world.store.collect.lease('a', 60_000);
  expect(await b.run(wish, never)).toBeNull();
  expect(await a.run(wish, never)).not.toBeNull();
  expect(await b.run(wish, never)).not.toBeNull();

  await world.store.sweep.lease('a', 60_000);
  // A new server waits for a whole interval first.
  expect(await a.round(never)).toBeNull();
  expect(await a.round(never)).toBeNull();
  world.ahead = 2 * HOUR;
  expect(await b.round(never)).toBeNull();
  expect(await a.round(never)).not.toBeNull();

  const stop = new AbortController();
  for (let n = 0; n < 40; n += 1) await world.storage.put(`files/file-${n}`, [Buffer.from('x')]);
  let looked = 0;
  const storage = { ...world.storage };
  storage.head = async (key) => {
    looked += 1;
    stop.abort(new Error('the process stops'));
    return world.storage.head(key);
  };
  const stopped = createCollector('a', { ...world.deps, storage }).run(wish, stop.signal);
  await expect(stopped).rejects.toThrow('the process stops');
  expect(looked).toBeLessThan(20);
  expect(await b.run(wish, never)).not.toBeNull();
});

test('a stage that fails is reported, and the others are done', async () => {
  await using world = await openCollectWorld();
  const id = await world.run();
  await world.finish(id);
  world.ahead = 2 * DAY;
  const storage = { ...world.storage };
  storage.identity = () => Promise.reject(new Error('the bucket is away'));
  const report = await world.collect({}, { storage });
  expect(report.failures).toEqual(['orphans: the bucket is away']);
  expect(report.kinds.segments.count).toBe(1);
});

test('an abandoned write is given up, and only counted in a dry run', async () => {
  await using world = await openCollectWorld();
  const given: string[] = [];
  const storage = { ...world.storage };
  storage.abandoned = async function* abandoned(age) {
    await nextTurn();
    expect(age).toBe(DAY);
    for (const key of ['files/file-a', 'jobs/job_a/segments/s', 'backup.tar']) {
      yield { key, uploadId: `of ${key}`, startedAt: 1 };
    }
  };
  storage.abandon = async ({ uploadId }) => void given.push(uploadId);
  const counted = await world.collect({ dryRun: true }, { storage });
  expect(given).toEqual([]);
  const report = await world.collect({}, { storage });
  expect(given).toEqual(['of files/file-a', 'of jobs/job_a/segments/s']);
  expect([counted, report].map(({ kinds }) => kinds.abandoned_uploads.count)).toEqual([2, 2]);
});

test('a segment that comes when the others of its job are gone goes as well', async () => {
  await using world = await openCollectWorld();
  const id = await world.run();
  await world.finish(id);
  world.ahead = 2 * DAY;
  await world.collect();
  await world.storage.put(segmentKey(id, 'late'), [Buffer.from('x')]);
  await world.collect();
  expect(await segmentsOf(world, id)).toHaveLength(1);
  world.ahead = 4 * DAY;
  await world.collect();
  expect(await segmentsOf(world, id)).toEqual([]);
});

test('nothing of an unfinished job goes, even where an index says that it is over', async () => {
  await using world = await openCollectWorld();
  const id = await world.run();
  for (const index of ['keeping', 'ended']) {
    await world.redis.zadd(`${world.namespace}:${index}`, 1, id);
  }
  const before = await world.objects();
  expect(await world.store.collect.dropShards(id, 0, 3, false)).toBe(false);
  const none = { segmentKeepMs: 0, jobRetentionMs: 0, fileRetentionMs: 0 };
  await world.collect({}, none);
  expect(await world.erase(id)).toBe('running');
  expect(await world.objects()).toEqual(before);
  expect(await world.store.collect.countShards(id)).toBe(3);
  // Its time begins anew when it ends.
  await world.finish(id);
  await world.collect({}, { jobRetentionMs: DAY });
  expect(await segmentsOf(world, id)).toHaveLength(1);
});

test('killed at any command, collecting and erasing go on where they stopped', async () => {
  await using world = await openCollectWorld();
  const id = await world.run();
  const plans = Array.from({ length: 1_203 }, (_, n) => ({
    n,
    first: n,
    lines: 1,
    offset: n,
    bytes: 1,
  }));
  await world.store.shards.write(id, plans);
  await world.finish(id);
  const works = [
    (change: Partial<CollectDeps>) => world.collect({}, { ...change, segmentKeepMs: 0 }),
    (change: Partial<CollectDeps>) => world.erase(id, change),
  ];
  for (const work of works) {
    let isDone = false;
    for (let left = 1; !isDone; left += 1) {
      const redis = new Redis(inject('redisUrl'));
      await redis.ping();
      const life = { left };
      mortalRedis(redis, life);
      const store = createStore({ redis, namespace: world.namespace });
      await work({ store, storage: mortalStorage(world.storage, life) }).catch(() => undefined);
      redis.disconnect();
      isDone = life.left > 0;
    }
    expect(await world.keys(`${recordKey(id)}:s:`)).toEqual([]);
    expect(await segmentsOf(world, id)).toEqual([]);
  }
  await world.expire();
  expect(await world.objects()).toEqual([]);
});

test('what a process writes that does not know that its job was erased goes in a later pass', async () => {
  await using world = await openCollectWorld();
  const id = await world.run();
  await world.finish(id);
  expect(await world.erase(id)).toBe('erased');
  await world.expire();
  expect(await world.objects()).toEqual([]);
  const output = outputFileId(id, 'output');
  for (const key of [segmentKey(id, 'late'), fileKey(output), manifestKey(id)]) {
    await world.storage.put(key, [Buffer.from('x')]);
  }
  const named = { filename: 'f', purpose: 'batch_output', bytes: 1, sha256: '' } as const;
  await world.store.files.create({ id: output, ...named });
  await world.store.shards.write(id, [{ n: 0, first: 0, lines: 1, offset: 0, bytes: 1 }]);
  await world.expire();
  expect(await world.objects()).toHaveLength(3);
  world.ahead = 61_000;
  await world.expire();
  expect(await world.objects()).toEqual([]);
  expect(await world.store.files.get(output)).toBeNull();
  expect(await world.keys(`${recordKey(id)}:s:`)).toEqual([]);
  world.ahead = 2 * DAY;
  await world.expire();
  expect(await world.redis.zcard(`${world.namespace}:erasing`)).toBe(0);
});

test('the record of a machine of an erased job stays until it is released', async () => {
  await using world = await openCollectWorld();
  const id = await world.run();
  const machine = { id: `prov_${id}_1_0`, job: id, slot: 1, address: 'http://f' } as const;
  await world.store.provisions.create({ ...machine, provider: 'static', owner: 'sluice' });
  await world.finish(id);
  const unreleased = `prov_${id}_2_0`;
  const place = {
    job: id,
    slot: 2,
    address: 'http://g',
    provider: 'static',
    owner: 'sluice',
  } as const;
  await world.store.provisions.create({ id: unreleased, ...place });
  expect(await world.erase(id)).toBe('erased');
  world.ahead = 2 * DAY;
  await world.expire();
  const record = await world.store.provisions.get(unreleased);
  expect(record?.state).toBe('intended');
  expect(await world.store.provisions.get(machine.id)).toBeNull();
  const moved = await world.store.provisions.move(
    { id: unreleased, state: 'intended', version: 1 },
    'releasing',
  );
  if (moved === 'stale') throw new Error('nobody else moves it');
  const releasing = { id: unreleased, state: 'releasing', version: moved.version } as const;
  await world.store.provisions.move(releasing, 'released');
  world.ahead += 31_000;
  await world.expire();
  expect(await world.store.provisions.get(unreleased)).toBeNull();
  expect(await world.redis.zcard(`${world.namespace}:erasing`)).toBe(0);
});

test('a job whose failed lines another is about to read is not erased before', async () => {
  await using world = await openCollectWorld();
  const first = await world.run();
  await world.finish(first);
  const options = { ...DEFAULT_OPTIONS, retryOf: first };
  const { job } = await world.store.jobs.create(newJob({ input: 'file-later', options }));
  expect(await world.erase(first)).toEqual({ usedBy: job.id });
  world.ahead = 9 * DAY;
  await world.collect({}, { jobRetentionMs: DAY });
  expect((await world.job(first)).state).toBe('completed');
  await world.store.jobs.move(job, 'cancelled');
  expect(await world.erase(first)).toBe('erased');
});

test('when an output file expires, the answers go that its job still keeps beside it', async () => {
  await using world = await openCollectWorld();
  const [id, other] = [await world.run(), await world.run()];
  await world.finish(id);
  await world.finish(other);
  const output = outputFileId(id, 'output');
  await world.store.files.expire(output, Date.now() - 1);
  await world.expire();
  expect(await world.store.files.get(output)).toBeNull();
  const left = (await world.objects()).filter((key) => key.includes(id.slice('job_'.length)));
  expect(left).toEqual([fileKey(outputFileId(id, 'error')), manifestKey(id)]);
  expect(await world.keys(`${recordKey(id)}:s:`)).toEqual([]);
  expect(await segmentsOf(world, other)).toHaveLength(1);
  expect((await world.job(id)).state).toBe('completed');
});

test('a file of a job whose other one could not be written takes no answers with it', async () => {
  await using world = await openCollectWorld();
  const id = await world.run();
  const output = await world.file('an answer\n', outputFileId(id, 'output'));
  await world.finish(id, 'failed', { withoutFiles: true });
  await world.store.files.expire(output, Date.now() - 1);
  await world.expire();
  expect(await world.store.files.get(output)).toBeNull();
  expect(await segmentsOf(world, id)).toHaveLength(1);
});

test('a job without files that nobody answered a line of keeps no shards', async () => {
  await using world = await openCollectWorld();
  const { job } = await world.store.jobs.create(newJob());
  await world.store.shards.write(job.id, [{ n: 0, first: 0, lines: 1, offset: 0, bytes: 1 }]);
  const moved = await world.store.jobs.move(job, 'finalizing', { set: { lines: 1, shards: 1 } });
  if (moved === 'stale') throw new Error('nobody else moves this job');
  await world.store.jobs.move(
    { id: job.id, state: 'finalizing', version: moved.version },
    'failed',
  );
  world.ahead = 2 * DAY;
  await world.collect();
  expect(await world.store.collect.countShards(job.id)).toBe(0);
});
