import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { EXAMPLE_TEMPLATE } from '../../src/api/docs/examples.ts';
import type { SluiceError } from '../../src/domain/errors.ts';
import { DEFAULT_OPTIONS } from '../../src/domain/job.ts';
import type { JobResources } from '../../src/domain/lease.ts';
import { globalKeys, recordKey, shardKey } from '../../src/store/keys.ts';
import type { GlobalKeys } from '../../src/store/keys.ts';
import type { Client } from '../../src/store/scripts.ts';
import { createStore } from '../../src/store/store.ts';
import type { Store } from '../../src/store/store.ts';
import { BACK_ENDS, connectTo, newJob } from '../support/store-back-ends.ts';
import { until } from '../support/until.ts';

async function collect(ids: AsyncIterable<string>): Promise<string[]> {
  const all: string[] = [];
  for await (const id of ids) all.push(id);
  return all;
}

describe.each(BACK_ENDS)('records and indexes on %s', (kind) => {
  let redis: Client;
  let store: Store;
  let keys: GlobalKeys;
  let reported: SluiceError[];

  beforeAll(() => {
    redis = connectTo(kind);
  });
  afterAll(() => redis.disconnect());
  beforeEach(() => {
    const namespace = randomUUID();
    reported = [];
    store = createStore({ redis, namespace, onDamaged: (error) => reported.push(error) });
    keys = globalKeys(namespace);
  });

  /** Jobs whose ids are in the order of their creation, as entries of one millisecond are sorted by id. */
  async function createJobs(count: number): Promise<string[]> {
    const ids = Array.from({ length: count }, (_, i) => `${newJob().id}${i}`).toSorted();
    for (const id of ids) await store.jobs.create(newJob({ id }));
    return ids;
  }

  describe('jobs.create', () => {
    test('keeps the machines that are leased for it; an older record has none', async () => {
      const resources: JobResources = {
        spec: EXAMPLE_TEMPLATE.spec,
        servingName: 'm',
        templateId: 'tpl_1',
        replicas: 2,
        providers: ['lambdaCloud', 'runpod'],
        regions: ['us-west-1'],
        gpuTypes: ['H100'],
        interruptible: true,
        maxPricePerHour: 2.5,
        maxCostUsd: null,
        maxIdleMinutes: 0.5,
      };
      const options = { ...DEFAULT_OPTIONS, resources };
      const { job } = await store.jobs.create(newJob({ options }));
      expect((await store.jobs.get(job.id))?.options).toEqual(options);
      const { resources: _resources, ...older } = DEFAULT_OPTIONS;
      await redis.hset(recordKey(job.id), 'options', JSON.stringify(older));
      expect((await store.jobs.get(job.id))?.options).toEqual(DEFAULT_OPTIONS);
    });

    test('writes what was asked for, and its indexes', async () => {
      const asked = newJob({ windowMs: 5_000 });
      const { outcome, job } = await store.jobs.create(asked);
      expect(outcome).toBe('created');
      const { windowMs: _window, bodyHash: _hash, ...rest } = asked;
      expect(job).toMatchObject({ ...rest, state: 'queued', version: 1, wake: 1, outcome: null });
      expect(job).toMatchObject({ lines: 0, shards: 0, completed: 0, failed: 0, models: [] });
      expect(job.deadline).toBe(job.createdAt + 5_000);
      expect(job.enteredAt).toEqual({ queued: job.createdAt });
      expect(Math.abs(job.createdAt - Date.now())).toBeLessThan(5_000);
      expect(await store.jobs.get(job.id)).toEqual(job);
      expect(await collect(store.jobs.active())).toEqual([job.id]);
      const scores = [keys.jobs, keys.active, keys.deadlines].map((key) =>
        redis.zscore(key, job.id),
      );
      const created = String(job.createdAt);
      expect(await Promise.all(scores)).toEqual([created, created, String(job.deadline)]);
      const [event] = await store.jobs.events(job.id);
      expect(event).toMatchObject({ state: 'queued', message: 'Job accepted.' });
      expect(Math.abs((event?.at ?? 0) - job.createdAt)).toBeLessThan(1_000);
    });

    test('tells a request that comes again from another one under its id', async () => {
      const asked = newJob();
      const { job } = await store.jobs.create(asked);
      expect(await store.jobs.create(asked)).toEqual({ outcome: 'exists', job });
      const other = await store.jobs.create({ ...asked, name: 'x', bodyHash: 'other' });
      expect(other).toEqual({ outcome: 'other', job });
    });

    test('of many at once makes one', async () => {
      const asked = newJob();
      const replies = await Promise.all(Array.from({ length: 20 }, () => store.jobs.create(asked)));
      expect(replies.filter(({ outcome }) => outcome === 'created')).toHaveLength(1);
      expect(await store.jobs.events(asked.id)).toHaveLength(1);
    });

    test('does not bring a final job back into the indexes', async () => {
      const asked = newJob();
      const { job } = await store.jobs.create(asked);
      await store.jobs.move(job, 'failed');
      expect((await store.jobs.create(asked)).outcome).toBe('exists');
      expect(await collect(store.jobs.active())).toEqual([]);
    });

    test('makes an entry anew that a sweeper may take for a dangling one', async () => {
      const asked = newJob();
      const old = Date.now() - 45_000;
      await redis.zadd(keys.jobs, old, asked.id);
      await redis.zadd(keys.active, old, asked.id);
      const { job } = await store.jobs.create(asked);
      expect(job.createdAt).toBeGreaterThan(old + 40_000);
      expect(await store.jobs.age(asked.id)).toBeLessThan(5_000);
      expect(await redis.zscore(keys.jobs, asked.id)).toBe(String(job.createdAt));
    });
  });

  describe('jobs.move', () => {
    test('lets one of many win, and the others know', async () => {
      const { job } = await store.jobs.create(newJob());
      const racers = Array.from({ length: 30 }, () => store.jobs.move(job, 'resource_preparing'));
      const replies = await Promise.all(racers);
      expect(replies.filter((reply) => reply !== 'stale')).toEqual([{ version: 2, wake: 1 }]);
      expect(await store.jobs.events(job.id)).toHaveLength(2);
    });

    test('refuses another state, another version, and a job that is not there', async () => {
      const { job } = await store.jobs.create(newJob());
      expect(await store.jobs.move({ ...job, version: 2 }, 'failed')).toBe('stale');
      expect(await store.jobs.move({ ...job, state: 'submitting' }, 'failed')).toBe('stale');
      expect(await store.jobs.move({ ...job, id: 'job_none' }, 'failed')).toBe('stale');
      expect(await store.jobs.get('job_none')).toBeNull();
      expect(await store.jobs.get(job.id)).toEqual(job);
    });

    test('writes fields, times and history, and raises the wake only for a state with a queue', async () => {
      const { job } = await store.jobs.create(newJob());
      const { id } = job;
      const errors = [{ code: 'bad', message: 'no', line: 3, param: null }];
      const set = { models: ['a', 'b'], lines: 7, shards: 2, errors, reason: 'because' };
      const at2 = await store.jobs.move(job, 'resource_preparing', { set, event: 'Planned.' });
      expect(at2).toEqual({ version: 2, wake: 1 });
      const cancelled = { outcome: 'cancelled' } as const;
      const from = { id, state: 'resource_preparing', version: 2 } as const;
      expect(await store.jobs.move(from, 'cancelling', cancelled)).toEqual({ version: 3, wake: 2 });
      const read = await store.jobs.get(id);
      expect(read).toMatchObject({ ...set, state: 'cancelling', outcome: 'cancelled' });
      const entered = Object.keys(read?.enteredAt ?? {}).toSorted();
      expect(entered).toEqual(['cancelling', 'queued', 'resource_preparing']);
      const history = (await store.jobs.events(id)).map(({ state, message }) => [state, message]);
      expect(history).toEqual([
        ['queued', 'Job accepted.'],
        ['resource_preparing', 'Planned.'],
        ['cancelling', ''],
      ]);
    });

    test('keeps the first outcome and the first time; leaving finalizing backwards clears the outcome', async () => {
      const { job } = await store.jobs.create(newJob());
      const { id } = job;
      const path = ['resource_preparing', 'submitting', 'in_progress', 'cancelling'] as const;
      const outcomes = {
        cancelling: { outcome: 'expired' },
        finalizing: { outcome: 'completed' },
      } as const;
      let at: Parameters<typeof store.jobs.move>[0] = job;
      async function go(to: (typeof path)[number] | 'finalizing' | 'expired') {
        const change = to === 'cancelling' || to === 'finalizing' ? outcomes[to] : {};
        const moved = await store.jobs.move(at, to, change);
        if (moved === 'stale') throw new Error(`stale on the way to ${to}`);
        at = { id, state: to, version: moved.version };
      }
      for (const to of [...path, 'finalizing'] as const) await go(to);
      const sealed = await store.jobs.get(id);
      expect(sealed?.outcome).toBe('expired');
      await go('resource_preparing');
      const unsealed = await store.jobs.get(id);
      expect(unsealed?.outcome).toBeNull();
      expect(unsealed?.enteredAt.resource_preparing).toBe(sealed?.enteredAt.resource_preparing);
      expect(unsealed?.enteredAt, 'nor was it ever there').not.toHaveProperty('finalizing');
      for (const to of [...path.slice(1), 'finalizing', 'expired'] as const) await go(to);
      const final = await store.jobs.get(id);
      expect(final).toMatchObject({ state: 'expired', outcome: 'expired' });
      expect(await redis.zscore(keys.active, id)).toBeNull();
      expect(await redis.zscore(keys.deadlines, id)).toBeNull();
      expect(await redis.zscore(keys.jobs, id)).toBe(String(job.createdAt));
    });

    test('writes file ids and the count of failed lines, and takes an id away again', async () => {
      const { job } = await store.jobs.create(newJob());
      const set = { outputFile: 'file_o', errorFile: 'file_e', failed: 5 };
      const moved = await store.jobs.move(job, 'resource_preparing', { set });
      expect(await store.jobs.get(job.id)).toMatchObject(set);
      if (moved === 'stale') throw new Error('stale');
      const from = { id: job.id, state: 'resource_preparing', version: moved.version } as const;
      await store.jobs.move(from, 'cancelling', { set: { outputFile: null } });
      expect(await store.jobs.get(job.id)).toMatchObject({ ...set, outputFile: null });
    });
  });

  test('jobs.wake raises a wake once, jobs.note explains until the job is final', async () => {
    const { job } = await store.jobs.create(newJob());
    const raised = await Promise.all([1, 2, 3].map(() => store.jobs.wake(job.id, 1)));
    expect(raised.filter((wake) => wake !== 'stale')).toEqual([2]);
    expect(await store.jobs.wake('job_none', 0)).toBe('stale');
    await store.jobs.note(job.id, 'waits for an engine');
    await store.jobs.note('job_none', 'nobody');
    expect(await store.jobs.get('job_none')).toBeNull();
    await store.jobs.move(job, 'failed');
    await store.jobs.note(job.id, 'too late');
    expect(await store.jobs.get(job.id)).toMatchObject({
      wake: 2,
      version: 2,
      reason: 'waits for an engine',
    });
  });

  describe('jobs.page', () => {
    async function walk(limit: number): Promise<string[][]> {
      const pages: string[][] = [];
      let after: string | undefined;
      for (;;) {
        const page = await store.jobs.page(after === undefined ? { limit } : { after, limit });
        pages.push(page.jobs.map(({ id }) => id));
        if (!page.hasMore) return pages;
        after = page.jobs.at(-1)?.id;
      }
    }

    test('goes from new to old, by id within one millisecond', async () => {
      const ids = await createJobs(5);
      const at = Date.now();
      for (const [i, id] of ids.entries()) await redis.zadd(keys.jobs, i < 3 ? at : at + i, id);
      const [a = '', b = '', c = '', d = '', e = ''] = ids;
      const order = [e, d, ...[a, b, c].toSorted().toReversed()];
      expect(await walk(2)).toEqual([order.slice(0, 2), order.slice(2, 4), order.slice(4)]);
      expect(await walk(5)).toEqual([order]);
    });

    test('passes over entries without a record, and fills the page up', async () => {
      const ids = await createJobs(4);
      for (let i = 0; i < 250; i += 1)
        await redis.zadd(keys.jobs, Date.now() + 1_000, `job_gone${i}`);
      for (let i = 0; i < 250; i += 1) await redis.zadd(keys.jobs, 1_000, `job_old${i}`);
      const order = ids.toReversed();
      expect(await walk(3)).toEqual([order.slice(0, 3), order.slice(3)]);
      expect(await walk(4)).toEqual([order]);
    });

    test('leaves a damaged record out and reports it', async () => {
      const [a = '', b = '', c = ''] = await createJobs(3);
      await redis.hset(recordKey(b), 'lines', 'many');
      expect(await walk(2)).toEqual([[c, a]]);
      expect(reported[0]).toMatchObject({ kind: 'Permanent', code: 'store.damaged_record' });
      expect(reported[0]?.message).toContain(b);
      expect(reported[0]?.message).toContain('lines');
      await expect(store.jobs.get(b)).rejects.toMatchObject({ code: 'store.damaged_record' });
    });

    test('takes a span of time, and goes on behind a cursor within it', async () => {
      const ids = await createJobs(6);
      for (const [i, id] of ids.entries()) await redis.zadd(keys.jobs, 1_000 * (i + 1), id);
      const order = ids.toReversed();
      async function some(options: { from?: number; to?: number; after?: string; limit?: number }) {
        const page = await store.jobs.page({ limit: 10, ...options });
        return [page.jobs.map(({ id }) => id), page.hasMore, page.cursor];
      }
      expect(await some({ from: 2_000, to: 5_000 })).toEqual([order.slice(1, 5), false, order[4]]);
      expect(await some({ from: 2_001, to: 4_999 })).toEqual([order.slice(2, 4), false, order[3]]);
      const within = { from: 2_000, to: 5_000, limit: 2 };
      expect(await some(within)).toEqual([order.slice(1, 3), true, order[2]]);
      const after = order[2] ?? '';
      expect(await some({ ...within, after })).toEqual([order.slice(3, 5), false, order[4]]);
      expect(await some({ ...within, after: order[0] ?? '' })).toEqual([
        order.slice(1, 3),
        true,
        order[2],
      ]);
      expect(await some({ from: 7_000 })).toEqual([[], false, '']);
      expect(await some({ from: 5_000, to: 2_000 })).toEqual([[], false, '']);
    });

    test('is empty where there is none, and refuses a cursor that it does not know', async () => {
      expect(await store.jobs.page({ limit: 10 })).toMatchObject({ jobs: [], hasMore: false });
      const page = store.jobs.page({ limit: 10, after: 'job_none' });
      const refusal = { kind: 'InvalidInput', code: 'invalid_cursor', param: 'after' };
      await expect(page).rejects.toMatchObject(refusal);
    });
  });

  test('jobs.active sees each of many once, however many began in one millisecond', async () => {
    const ids = Array.from({ length: 450 }, (_, i) => `job_${String(i).padStart(3, '0')}`);
    for (const [i, id] of ids.entries())
      await redis.zadd(keys.active, i < 30 || i > 380 ? i : 30, id);
    expect(await collect(store.jobs.active())).toEqual(ids);
  });

  test('jobs.due names those whose deadline is over, longest over first', async () => {
    const late = await store.jobs.create(newJob({ windowMs: -2_000 }));
    const later = await store.jobs.create(newJob({ windowMs: -9_000 }));
    await store.jobs.create(newJob());
    expect(await store.jobs.due(10)).toEqual([later.job.id, late.job.id]);
    expect(await store.jobs.due(1)).toEqual([later.job.id]);
  });

  test('jobs.forget removes entries that dangle, and no others', async () => {
    const { job } = await store.jobs.create(newJob());
    await store.jobs.forget(job.id);
    expect(await collect(store.jobs.active())).toEqual([job.id]);
    await store.jobs.move(job, 'failed');
    await redis.zadd(keys.active, 1, job.id, 2, 'job_gone');
    await redis.zadd(keys.deadlines, 1, job.id, 2, 'job_gone');
    await redis.zadd(keys.jobs, 2, 'job_gone');
    expect(await store.jobs.age('job_gone')).toBeGreaterThan(60_000);
    for (const id of [job.id, 'job_gone']) await store.jobs.forget(id);
    expect(await collect(store.jobs.active())).toEqual([]);
    expect(await store.jobs.due(10)).toEqual([]);
    expect(await redis.zrange(keys.jobs, 0, '-1')).toEqual([job.id]);
    expect(await store.jobs.age('job_gone')).toBe(0);
  });

  test('stops reach every listener until it closes', async () => {
    const heard: string[] = [];
    const first = await store.jobs.subscribeStops((id) => heard.push(`1 ${id}`));
    const second = await store.jobs.subscribeStops((id) => heard.push(`2 ${id}`));
    await store.jobs.publishStop('job_a');
    await until(() => heard.length === 2, { what: 'both listeners' });
    await first.close();
    await store.jobs.publishStop('job_b');
    await until(() => heard.length === 3, { what: 'the listener that is left' });
    await second.close();
    expect(heard.toSorted()).toEqual(['1 job_a', '2 job_a', '2 job_b']);
  });

  describe('provisions', () => {
    const asked = { slot: 0, provider: 'static', owner: 'caller', address: 'http://e' } as const;

    test('are made once, and listed by slot and attempt', async () => {
      const job = `job_${randomUUID()}`;
      const ids = ['prov_x_1_0', 'prov_x_0_10', 'prov_x_0_9'].map((id) => id.replace('x', job));
      for (const [i, id] of ids.entries()) {
        const provision = { ...asked, id, job, slot: i === 0 ? 1 : 0 };
        expect(await store.provisions.create(provision)).toBe('created');
        expect(await store.provisions.create(provision)).toBe('exists');
      }
      const listed = await store.provisions.ofJob(job);
      expect(listed.map(({ id }) => id)).toEqual([ids[2], ids[1], ids[0]]);
      expect(listed[0]).toMatchObject({
        ...asked,
        state: 'intended',
        version: 1,
        wake: 1,
        reason: '',
      });
      expect(listed[0]?.enteredAt).toEqual({ intended: listed[0]?.createdAt });
      expect((await collect(store.provisions.unreleased())).toSorted()).toEqual(ids.toSorted());
      await redis.hset(recordKey(ids[1] ?? ''), 'owner', 'nobody');
      expect((await store.provisions.ofJob(job)).map(({ id }) => id)).toEqual([ids[2], ids[0]]);
      expect(reported).toHaveLength(1);
    });

    test('say which models their engine serves until they are released; unsaid it is all', async () => {
      const id = `prov_${randomUUID()}_0_2`;
      await store.provisions.create({ ...asked, id, job: 'job_s' });
      expect((await store.provisions.get(id))?.models).toBeNull();
      await store.provisions.keep(id, { models: ['a', 'ä "b"'] });
      await store.provisions.keep('prov_none', { models: ['a'] });
      expect((await store.provisions.get(id))?.models).toEqual(['a', 'ä "b"']);
      expect(await store.provisions.get('prov_none')).toBeNull();
      await store.provisions.move({ id, state: 'intended', version: 1 }, 'releasing');
      await store.provisions.move({ id, state: 'releasing', version: 2 }, 'released');
      await store.provisions.keep(id, { models: [] });
      expect((await store.provisions.get(id))?.models).toEqual(['a', 'ä "b"']);
    });

    test('move, wake and explain as jobs do, and leave the index when they are released', async () => {
      const id = `prov_${randomUUID()}_0_1`;
      await store.provisions.create({ ...asked, id, job: 'job_p' });
      const start = { id, state: 'intended', version: 1 } as const;
      const moved = await store.provisions.move(start, 'starting', { reason: 'starts' });
      expect(moved).toEqual({ version: 2, wake: 2 });
      expect(await store.provisions.move(start, 'releasing')).toBe('stale');
      expect(await store.provisions.wake(id, 2)).toBe(3);
      await store.provisions.note(id, 'refuses connections');
      expect((await store.provisions.get(id))?.reason).toBe('refuses connections');
      await store.provisions.forget(id);
      expect(await collect(store.provisions.unreleased())).toEqual([id]);
      expect(await store.provisions.age(id)).toBeLessThan(5_000);
      await store.provisions.move({ id, state: 'starting', version: 2 }, 'releasing');
      const released = await store.provisions.move(
        { id, state: 'releasing', version: 3 },
        'released',
      );
      expect(released).toEqual({ version: 4, wake: 4 });
      expect(await collect(store.provisions.unreleased())).toEqual([]);
      expect(await store.provisions.create({ ...asked, id, job: 'job_p' })).toBe('exists');
      expect(await collect(store.provisions.unreleased())).toEqual([]);
      await redis.zadd(keys.provisions, 1, 'prov_gone');
      await store.provisions.forget('prov_gone');
      expect(await collect(store.provisions.unreleased())).toEqual([]);
    });
  });

  describe('files', () => {
    const asked = { bytes: 3, sha256: 'ab', filename: 'in put.jsonl', purpose: 'batch' } as const;

    test('are made once, read and deleted', async () => {
      const id = `file_${randomUUID()}`;
      const file = await store.files.create({ ...asked, id });
      expect(file).toEqual({ ...asked, id, createdAt: file.createdAt });
      expect(await store.files.create({ ...asked, id, filename: 'other' })).toEqual(file);
      expect(await store.files.get(id)).toEqual(file);
      expect(await store.files.delete(id)).toBe(true);
      expect(await store.files.delete(id)).toBe(false);
      expect(await store.files.get(id)).toBeNull();
      expect(await store.files.page({ limit: 5, order: 'asc' })).toEqual({
        files: [],
        hasMore: false,
      });
    });

    test('are listed both ways, and by purpose', async () => {
      const ids: string[] = [];
      for (let i = 0; i < 7; i += 1) {
        const purpose = i % 3 === 0 ? 'batch_output' : 'batch';
        const file = await store.files.create({ ...asked, purpose, id: `file_${randomUUID()}` });
        await redis.zadd(keys.files, 1_000 + i, file.id);
        ids.push(file.id);
      }
      const idsOf = ({ files }: { files: { id: string }[] }) => files.map(({ id }) => id);
      const asc = await store.files.page({ limit: 4, order: 'asc' });
      expect([idsOf(asc), asc.hasMore]).toEqual([ids.slice(0, 4), true]);
      const rest = await store.files.page({ limit: 3, order: 'asc', after: ids[3] ?? '' });
      expect([idsOf(rest), rest.hasMore]).toEqual([ids.slice(4), false]);
      const outputs = { order: 'desc', purpose: 'batch_output' } as const;
      const two = await store.files.page({ ...outputs, limit: 2 });
      expect([idsOf(two), two.hasMore]).toEqual([[ids[6], ids[3]], true]);
      const last = await store.files.page({ ...outputs, limit: 2, after: ids[3] ?? '' });
      expect([idsOf(last), last.hasMore]).toEqual([[ids[0]], false]);
    });
  });

  test('nodes are live while they beat', async () => {
    const host = { pid: 7, host: 'h' };
    await store.nodes.beat({
      id: 'b',
      roles: ['worker'],
      queues: ['dispatch', 'release'],
      ...host,
    });
    await store.nodes.beat({ id: 'a', roles: ['api'], queues: ['dispatch'], ...host });
    await store.nodes.beat({ id: 'c', roles: ['worker'], queues: ['planning'], ...host });
    const old = Date.now() - 7_000;
    const worker = JSON.stringify({ roles: ['worker'], queues: ['dispatch'], ...host });
    await redis.hset(keys.nodes, 'old', `${old} ${worker}`, 'odd', `${Date.now()} {}`);
    const live = await store.nodes.live();
    expect(live.map(({ id }) => id)).toEqual(['a', 'b', 'c']);
    expect(live[1]).toMatchObject({ roles: ['worker'], queues: ['dispatch', 'release'], ...host });
    expect(reported[0]?.message).toContain('node odd');
    expect(await redis.hexists(keys.nodes, 'old')).toBe(0);
    expect(await store.nodes.dispatchers()).toBe(1);
    await store.nodes.leave('b');
    expect(await store.nodes.dispatchers()).toBe(0);
  });

  test('one process at a time has the sweep lease, until it yields or the lease is over', async () => {
    expect(await store.sweep.lease('a', 60_000)).toBe(true);
    expect(await store.sweep.lease('b', 60_000)).toBe(false);
    await store.sweep.yield('b');
    expect(await store.sweep.lease('a', 60_000)).toBe(true);
    await store.sweep.yield('a');
    expect(await store.sweep.lease('b', 40)).toBe(true);
    await until(() => store.sweep.lease('a', 60_000), { what: 'the end of the lease' });
  });

  test('records belong to the first storage that claims them', async () => {
    expect(await store.claimStorage('one')).toBe('one');
    expect(await store.claimStorage('two')).toBe('one');
  });

  test('a shard that cannot be read is an error with its name', async () => {
    const { job } = await store.jobs.create(newJob());
    await redis.hset(shardKey(job.id, 0), { first: 0, lines: 'x', offset: 0, bytes: 1 });
    const accepted = store.shards.accepted(job.id, 0, 1)[Symbol.asyncIterator]().next();
    await expect(accepted).rejects.toMatchObject({ code: 'store.damaged_record' });
    await expect(accepted).rejects.toThrow(/s:0.*lines/);
  });
});
