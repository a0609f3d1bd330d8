import { randomUUID } from 'node:crypto';
import { expect, test } from 'vitest';
import { claimCensus } from '../../processors/collect-census.ts';
import { fileKey, manifestKey, outputFileId } from '../../src/domain/file.ts';
import { CENSUS_KEY } from '../../src/domain/object-owner.ts';
import { recordKey } from '../../src/store/keys.ts';
import { DAY, openCollectWorld } from '../support/collect-world.ts';
import type { CollectWorld } from '../support/collect-world.ts';
import { connectTo } from '../support/store-back-ends.ts';

async function withOrphans(world: CollectWorld, count: number): Promise<void> {
  for (let n = 0; n < count; n += 1) {
    await world.storage.put(`files/file-orphan${n}`, [Buffer.from('x')]);
  }
  world.ahead = 2 * DAY;
}

async function censusOf({ storage }: CollectWorld): Promise<Record<string, unknown>> {
  const stream = await storage.get(CENSUS_KEY);
  return JSON.parse(Buffer.concat(await stream.toArray()).toString());
}

test('the first round of records that were never counted removes nothing, nor does a later one, until a person confirms', async () => {
  await using world = await openCollectWorld({ isNew: true });
  await withOrphans(world, 3);
  expect((await world.collect()).doubt).toContain('never collected');
  // Enough that the records do name comes; that says nothing of what they do not name.
  for (let n = 0; n < 20; n += 1) await world.file('new\n');
  expect((await world.collect()).doubt).toContain('never collected');
  expect(await world.objects()).toHaveLength(23);
  expect((await world.collect({ confirm: true })).doubt).toBeNull();
  expect(await world.objects()).toHaveLength(20);
  await world.storage.put('files/file-later', [Buffer.from('x')]);
  expect((await world.collect()).doubt).toBeNull();
  expect(await world.objects()).toHaveLength(20);
});

test('a first round that finds nothing begins to count', async () => {
  await using world = await openCollectWorld({ isNew: true });
  await world.file('new\n');
  expect((await world.collect()).doubt).toBeNull();
  await withOrphans(world, 2);
  expect((await world.collect()).doubt).toBeNull();
  expect(await world.objects()).toHaveLength(1);
});

test('a doubt stays when what is new outweighs it, and when either side loses it', async () => {
  await using world = await openCollectWorld();
  await withOrphans(world, 60);
  expect((await world.collect()).doubt).toContain('incomplete');
  for (let n = 0; n < 80; n += 1) await world.file('new\n');
  const census = `${world.namespace}:census`;
  expect((await world.collect()).doubt).toContain('incomplete');
  await world.redis.hdel(census, 'doubt');
  expect((await world.collect()).doubt).toContain('incomplete');
  const { id, round } = await censusOf(world);
  await world.storage.put(CENSUS_KEY, [Buffer.from(JSON.stringify({ id, round }))]);
  expect((await world.collect()).doubt).toContain('incomplete');
  expect(await world.objects()).toHaveLength(140);
});

test('a dry run notes no doubt', async () => {
  await using world = await openCollectWorld();
  await withOrphans(world, 60);
  expect((await world.collect({ dryRun: true })).doubt).toContain('incomplete');
  expect(await world.redis.hget(`${world.namespace}:census`, 'doubt')).toBeNull();
  expect(await censusOf(world)).not.toHaveProperty('doubt');
});

test('objects whose records are lost stay while an index has their ids, until a person confirms', async () => {
  await using world = await openCollectWorld();
  const id = await world.run();
  await world.finish(id);
  const file = await world.file('lost\n');
  await world.redis.del(recordKey(id), recordKey(file));
  for (const kind of ['output', 'error'] as const) {
    await world.redis.del(recordKey(outputFileId(id, kind)));
  }
  world.ahead = 2 * DAY;
  const before = await world.objects();
  const forever = { segmentKeepMs: 99 * DAY };
  expect((await world.collect({}, forever)).kinds).toMatchObject({
    orphan_files: { count: 0 },
    orphan_manifests: { count: 0 },
  });
  expect(await world.objects()).toEqual(before);
  await world.collect({ confirm: true }, forever);
  const left = await world.objects();
  for (const key of [fileKey(file), fileKey(outputFileId(id, 'output')), manifestKey(id)]) {
    expect(left).not.toContain(key);
  }
});

test('of two deployments in one bucket neither removes what the other wrote', async () => {
  await using first = await openCollectWorld();
  await using second = await openCollectWorld({
    redis: connectTo('cluster'),
    given: first.storage,
    isNew: true,
  });
  const theirs = await second.file('of the second\n');
  const ours = await first.file('of the first\n');
  expect(await claimCensus(second.deps)).toContain('share a bucket');
  const given: string[] = [];
  const storage = { ...first.storage };
  storage.abandoned = async function* abandoned() {
    yield await Promise.resolve({ key: fileKey('file-a'), uploadId: 'u', startedAt: 1 });
  };
  storage.abandon = async ({ uploadId }) => void given.push(uploadId);
  for (const world of [first, second]) {
    world.ahead = 2 * DAY;
    const report = await world.collect({}, { storage });
    expect(report.doubt).toContain('share a bucket');
    expect(report.kinds).toMatchObject({
      orphan_files: { count: 1 },
      abandoned_uploads: { count: 1 },
    });
  }
  expect(await first.objects()).toEqual([fileKey(ours), fileKey(theirs)].toSorted());
  expect(given).toEqual([]);
  // Whoever says that the storage is theirs alone stops the other one.
  await first.file('again\n');
  expect((await second.collect({ dryRun: true })).doubt).toContain('share a bucket');
  await first.collect({ confirm: true });
  expect((await second.collect()).doubt).toContain('share a bucket');
  expect((await first.collect()).doubt).toContain('share a bucket');
});

test('processes of one deployment that start at once give their storage one id', async () => {
  await using world = await openCollectWorld({ isNew: true });
  const claims = Array.from({ length: 8 }, () => claimCensus({ ...world.deps, newId: randomUUID }));
  expect(await Promise.all(claims)).toEqual(Array(8).fill(null));
  const id = await world.redis.hget(`${world.namespace}:census`, 'id');
  expect(await censusOf(world)).toEqual({ id, round: 0 });
});

test('a Redis that comes back empty, before anything was ever collected, removes nothing', async () => {
  await using world = await openCollectWorld({ isNew: true });
  await claimCensus(world.deps);
  await world.file('old\n');
  const keys = await world.keys(world.namespace);
  for (const key of keys) if (!key.endsWith(':storage')) await world.redis.del(key);
  for (const key of await world.keys('file-')) {
    if ((await world.objects()).some((object) => key.includes(object.slice('files/'.length))))
      await world.redis.del(key);
  }
  expect(await claimCensus(world.deps)).toContain('lost its data');
  world.ahead = 2 * DAY;
  for (let n = 0; n < 20; n += 1) await world.file('new\n');
  expect((await world.collect()).doubt).toContain('lost its data');
  expect(await world.objects()).toHaveLength(21);
});
