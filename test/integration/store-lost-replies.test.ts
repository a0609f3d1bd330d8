import { createHash } from 'node:crypto';
import { Cluster, Redis } from 'ioredis';
import { expect, test } from 'vitest';
import type { JobRecord } from '../../src/domain/job.ts';
import { SCRIPTS } from '../../src/store/scripts.ts';
import type { Client } from '../../src/store/scripts.ts';
import { createStore } from '../../src/store/store.ts';
import type { Store } from '../../src/store/store.ts';
import { startCluster, startRedis } from '../support/redis.ts';
import type { ClusterNode } from '../support/redis.ts';
import { newJob, partOf, SEGMENT } from '../support/store-back-ends.ts';
import { startSwallowingProxy } from '../support/swallowing-proxy.ts';
import type { SwallowingProxy } from '../support/swallowing-proxy.ts';
import { until } from '../support/until.ts';

/** Calls a method and notes its answer, and what it answers when its replies are lost. */
type Call = (name: string, method: () => unknown) => Promise<void>;

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

/** Every method of the store, in an order in which each finds what it needs. */
async function callAll(
  { jobs, shards, provisions, files, nodes, sweep, claimStorage }: Store,
  call: Call,
) {
  const id = 'job_lost';
  const at = (state: JobRecord['state'], version: number) => ({ id, state, version });
  await call('create', () => jobs.create(newJob({ id, windowMs: -1_000 })));
  await call('get', () => jobs.get(id));
  const plans = [0, 1, 2].map((n) => ({ n, first: 4 * n, lines: 4, offset: 9 * n, bytes: 9 }));
  await call('write', () => shards.write(id, plans));
  const set = { lines: 12, shards: 3, models: ['m'] };
  await call('move', () => jobs.move(at('queued', 1), 'resource_preparing', { set, event: 'x' }));
  await call('move', () => jobs.move(at('resource_preparing', 2), 'submitting'));
  await call('move', () => jobs.move(at('submitting', 3), 'in_progress'));
  await call('stale move', () => jobs.move(at('submitting', 3), 'failed'));
  await call('wake', () => jobs.wake(id, 1));
  await call('stale wake', () => jobs.wake(id, 1));
  await call('note', () => jobs.note(id, 'because'));
  await call('open', () => shards.open(id, 2));
  await call('take', () => shards.take(id, { n: 0, wake: 1 }, 't0', 2));
  await call('take', () => shards.take(id, { n: 1, wake: 1 }, 't1', 2));
  await call('stale take', () => shards.take(id, { n: 1, wake: 7 }, 't2', 2));
  await call('commit', () =>
    shards.commit(id, SEGMENT, [
      partOf(0, 't0', 4, [0, 1, 2, 3]),
      partOf(1, 't1', 4, [1], { offset: 10 }),
      partOf(2, 'nobody', 4, [1], { offset: 20 }),
    ]),
  );
  await call('commit of done lines', () => {
    return shards.commit(id, { ...SEGMENT, id: 'seg-2' }, [partOf(1, 't1', 4, [1, 2])]);
  });
  await call('pending', async () =>
    (await shards.pending(id)).map(({ n, wake, held }) => [n, wake, held]),
  );
  await call('held', () => shards.held(id));
  await call('rewake', () => shards.rewake(id, { n: 2, wake: 1 }));
  await call('stale rewake', () => shards.rewake(id, { n: 2, wake: 1 }));
  await call('give', async () => {
    // Two that began to wait in one millisecond are in the order of their numbers, else of their times.
    return (await shards.give(id, 1, 't1', 2)).toSorted((a, b) => a.n - b.n);
  });
  await call('take', () => shards.take(id, { n: 1, wake: 2 }, 't3', 2));
  await call('fall back', () => jobs.move(at('in_progress', 4), 'submitting'));
  await call('take not now', () => shards.take(id, { n: 1, wake: 2 }, 't3', 2));
  await call('accepted', () => collect(shards.accepted(id, 0, 3)));
  await call('segments', () => shards.segments(id));
  await call('due', () => jobs.due(5));
  await call('page', () => jobs.page({ limit: 5 }));
  await call('active', () => collect(jobs.active()));
  await call('age', async () => (await jobs.age(id)) >= 0);
  await call('cancel', () =>
    jobs.move(at('submitting', 5), 'cancelling', { outcome: 'cancelled' }),
  );
  await call('seal', () => jobs.move(at('cancelling', 6), 'finalizing'));
  await call('sealed commit', () => {
    return shards.commit(id, { ...SEGMENT, id: 'seg-3' }, [partOf(1, 't3', 4, [2])]);
  });
  await call('end', () => jobs.move(at('finalizing', 7), 'cancelled', { set: { failed: 7 } }));
  await call('forget', () => jobs.forget(id));
  await call('publishStop', () => jobs.publishStop(id));
  await call('events', () => jobs.events(id));
  await call('get', () => jobs.get(id));

  const provision = { id: 'prov_lost_0_1', job: id, slot: 0, address: 'http://e' };
  const kinds = { provider: 'static', owner: 'caller' } as const;
  const in1 = { id: provision.id, state: 'intended', version: 1 } as const;
  const in2 = { id: provision.id, state: 'releasing', version: 2 } as const;
  await call('provision', () => provisions.create({ ...provision, ...kinds }));
  await call('provision wake', () => provisions.wake(provision.id, 1));
  await call('provision move', () => provisions.move(in1, 'releasing', { reason: 'x' }));
  await call('provision note', () => provisions.note(provision.id, 'y'));
  await call('unreleased', () => collect(provisions.unreleased()));
  await call('provision move', () => provisions.move(in2, 'released'));
  await call('ofJob', () => provisions.ofJob(id));
  await call('provision forget', () => provisions.forget(provision.id));

  const file = { id: 'file_lost', bytes: 1, sha256: 'ab', filename: 'f' };
  await call('file', () => files.create({ ...file, purpose: 'batch' }));
  await call('files', () => files.page({ limit: 5, order: 'asc' }));
  await call('file delete', () => files.delete(file.id));
  await call('file delete of none', () => files.delete(file.id));

  const node = { id: 'node', roles: ['worker'], queues: ['dispatch'], pid: 1, host: 'h' };
  await call('beat', () => nodes.beat(node));
  await call('live', () => nodes.live());
  await call('dispatchers', () => nodes.dispatchers());
  await call('leave', () => nodes.leave(node.id));
  await call('lease', () => sweep.lease('a', 60_000));
  await call('lease of another', () => sweep.lease('b', 60_000));
  await call('yield', () => sweep.yield('a'));
  await call('lease', () => sweep.lease('b', 60_000));
  await call('claimStorage', () => claimStorage('one'));
  await call('claimStorage', () => claimStorage('two'));
}

/** Times differ from run to run; all else may not. */
function withoutTimes(answer: unknown): string {
  return JSON.stringify(answer instanceof Map ? [...answer] : (answer ?? null)).replaceAll(
    /\b1\d{12}(-\d+)?\b/g,
    'T',
  );
}

const NAMES = new Map(
  [...SCRIPTS].map(([name, lua]) => [createHash('sha1').update(lua).digest('hex'), name]),
);

interface Answers {
  plain: [string, string][];
  lossy: [string, string][];
  /** Scripts of which no reply was lost. */
  missed: string[];
}

/** The answers of all methods, and those when the reply of each of their commands is lost once. */
async function answersOf(
  client: Client,
  lossy: Client,
  proxies: SwallowingProxy[],
): Promise<Answers> {
  const answers: Answers = { plain: [], lossy: [], missed: [] };
  await callAll(createStore({ redis: client }), async (name, method) => {
    answers.plain.push([name, withoutTimes(await method())]);
  });
  for (const node of client instanceof Cluster ? client.nodes('master') : [client]) {
    await node.flushall();
  }
  const swallowed = new Set<string>();
  await callAll(createStore({ redis: lossy }), async (name, method) => {
    for (const proxy of proxies) proxy.swallowEach();
    answers.lossy.push([name, withoutTimes(await method())]);
    const seen = proxies.flatMap((proxy) => [...proxy.swallowed]);
    if (seen.length === 0) throw new Error(`${name} lost no reply`);
    for (const command of seen) swallowed.add(NAMES.get(command) ?? command);
  });
  answers.missed = [...SCRIPTS.keys()].filter((name) => !swallowed.has(name));
  return answers;
}

test('a method whose replies are lost answers as it would have at first', async () => {
  await using server = await startRedis();
  const proxy = await startSwallowingProxy(server);
  const client = new Redis(server.url);
  const lossy = new Redis({ host: proxy.host, port: proxy.port, retryStrategy: () => 5 });
  try {
    const answers = await answersOf(client, lossy, [proxy]);
    expect(answers.lossy).toEqual(answers.plain);
    expect(answers.missed).toEqual([]);
  } finally {
    client.disconnect();
    lossy.disconnect();
    await proxy.close();
  }
}, 30_000);

/** Lets the nodes of a cluster send clients to the proxies, and waits until all know. */
async function announce(nodes: ClusterNode[], proxies: SwallowingProxy[]): Promise<void> {
  const clients = nodes.map(({ host, port }) => new Redis({ host, port }));
  for (const [i, client] of clients.entries()) {
    await client.config('SET', 'cluster-announce-port', proxies[i]?.port ?? 0);
  }
  for (const client of clients) {
    await until(async () => {
      const slots = JSON.stringify(await client.cluster('SLOTS'));
      return proxies.every(({ port }) => slots.includes(String(port)));
    });
    client.disconnect();
  }
}

test('so it does on a cluster', async () => {
  await using cluster = await startCluster();
  const proxies = await Promise.all(cluster.nodes.map(startSwallowingProxy));
  await announce(cluster.nodes, proxies);
  const client = new Cluster(cluster.nodes);
  const lossy = new Cluster(proxies, { retryDelayOnFailover: 5, clusterRetryStrategy: () => 5 });
  try {
    const answers = await answersOf(client, lossy, proxies);
    expect(answers.lossy).toEqual(answers.plain);
    expect(answers.missed).toEqual([]);
  } finally {
    client.disconnect();
    lossy.disconnect();
    for (const proxy of proxies) await proxy.close();
  }
}, 60_000);
