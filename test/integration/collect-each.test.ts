import { expect, test } from 'vitest';
import { createCollector } from '../../processors/collect.ts';
import { eventIdOf } from '../../src/domain/webhook.ts';
import { recordKey } from '../../src/store/keys.ts';
import { DAY, openCollectWorld } from '../support/collect-world.ts';
import type { CollectWorld } from '../support/collect-world.ts';

async function finished(world: CollectWorld): Promise<string> {
  const id = await world.run();
  await world.finish(id);
  return id;
}

test('a job or a file whose record is damaged keeps none behind it from being collected', async () => {
  await using world = await openCollectWorld();
  const [broken, good] = [await finished(world), await finished(world)];
  const [badFile, goodFile] = [await world.file('a\n'), await world.file('b\n')];
  await world.redis.hset(recordKey(broken), 'lines', 'many');
  await world.redis.hset(recordKey(badFile), 'bytes', 'many');
  for (const [index, first] of [
    ['keeping', broken],
    ['ended', broken],
    ['files', badFile],
  ] as const) {
    await world.redis.zadd(`${world.namespace}:${index}`, 1, first);
  }
  world.ahead = 9 * DAY;
  const report = await world.collect({}, { jobRetentionMs: DAY, fileRetentionMs: DAY });
  expect(report.kinds.segments.count).toBe(1);
  expect(report.kinds.jobs.count).toBe(1);
  expect(await world.store.jobs.get(good)).toBeNull();
  expect((await world.store.files.get(goodFile))?.expiresAt).toBeDefined();
  expect(report.failures).toEqual([
    expect.stringContaining(`segments of ${broken}: `),
    expect.stringContaining(`record of ${broken}: `),
    expect.stringContaining(`record of ${badFile}: `),
  ]);
});

test('an object that cannot be looked at is reported, the others go, and a report stays short', async () => {
  await using world = await openCollectWorld();
  for (let n = 0; n < 30; n += 1) {
    await world.storage.put(`files/file-locked${n}`, [Buffer.from('x')]);
  }
  await world.storage.put('files/file-zebra', [Buffer.from('x')]);
  world.ahead = 2 * DAY;
  const storage = { ...world.storage };
  storage.head = async (key) => {
    if (key.includes('locked')) throw new Error('it is locked');
    return world.storage.head(key);
  };
  const report = await world.collect({}, { storage });
  expect(report.kinds.orphan_files.count).toBe(1);
  expect(await world.objects()).not.toContain('files/file-zebra');
  expect(report.failures).toHaveLength(20);
  expect(report.failures[0]).toMatch(/^files\/file-locked\d+: it is locked$/);
});

test('a collector that has lost its lease, or is to stop, ends at once', async () => {
  await using world = await openCollectWorld();
  const ids = [await finished(world), await finished(world), await finished(world)];
  world.ahead = 2 * DAY;
  let now = Date.now() + world.ahead;
  const storage = { ...world.storage };
  let looked = 0;
  storage.list = (prefix) => {
    looked += 1;
    // So long that another process took the lease.
    now += 6_000;
    void world.store.collect.yield('a');
    void world.store.collect.lease('b', 60_000);
    return world.storage.list(prefix);
  };
  const slow = createCollector('a', { ...world.deps, storage, now: () => now });
  const wish = { dryRun: false, confirm: false };
  const lost = slow.run(wish, new AbortController().signal);
  await expect(lost).rejects.toMatchObject({ code: 'gc.lease_lost' });
  expect(looked).toBe(1);
  await world.store.collect.yield('b');

  const stop = new AbortController();
  const stopping = { ...world.storage };
  stopping.list = (prefix) => {
    stop.abort(new Error('the process stops'));
    return world.storage.list(prefix);
  };
  const stopped = createCollector('a', { ...world.deps, storage: stopping });
  await expect(stopped.run(wish, stop.signal)).rejects.toThrow('the process stops');
  const objects = await world.objects();
  const left = ids.filter((id) => objects.some((key) => key.startsWith(`jobs/${id}/`)));
  expect(left).toHaveLength(1);
});

test('JOB_RETENTION leaves a job whose end is still to be told, until it is delivered or given up', async () => {
  await using world = await openCollectWorld();
  const { webhooks } = world.store;
  const url = 'http://hook.test/';
  const id = await world.run();
  await world.finish(id);
  const event = eventIdOf(id);
  world.ahead = 9 * DAY;
  const change = { jobRetentionMs: DAY };
  async function isThere(): Promise<boolean> {
    const { kinds } = await world.collect({}, change);
    const job = await world.store.jobs.get(id);
    expect(kinds.jobs.count).toBe(job === null ? 1 : 0);
    return job !== null;
  }
  // Nobody has recorded yet for whom it is.
  await world.redis.hdel(recordKey(id), 'told_at');
  await world.redis.zadd(`${world.namespace}:telling`, 1, id);
  expect(await isThere()).toBe(true);
  const endpoint = { id: 'wh_a', url, events: [], secret: `whsec_${'a'.repeat(32)}` };
  await webhooks.register(endpoint);
  for (const target of [endpoint.id, id]) {
    const type = 'batch.completed';
    await webhooks.add({ id: `${event}.${target}`, event, type, target, url, body: '{}' });
  }
  await webhooks.told(id);
  expect(await isThere()).toBe(true);
  const result = {
    event,
    type: 'batch.completed',
    code: 500,
    durationMs: 1,
    error: '',
    response: '',
  };
  const own = { id: `${event}.${id}`, target: id };
  await webhooks.note(own, 'hook.test', { ...result, status: 'retrying' }, 60_000);
  await webhooks.note(
    { id: `${event}.${endpoint.id}`, target: endpoint.id },
    'hook.test',
    { ...result, status: 'delivered', code: 200 },
    null,
  );
  expect(await isThere()).toBe(true);
  await webhooks.note(own, 'hook.test', { ...result, status: 'failed' }, null);
  expect(await isThere()).toBe(false);
});
