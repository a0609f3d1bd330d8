import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { afterEach, beforeEach, expect, inject, test } from 'vitest';
import { parseShardEntity, shardEntity } from '../../queues/catalog.ts';
import { connectRedis } from '../../queues/connection.ts';
import { createQueues, queuePrefix } from '../../queues/queues.ts';
import type { Queues } from '../../queues/queues.ts';
import { startWorker } from '../../queues/worker.ts';
import type { QueueWorker, Task } from '../../queues/worker.ts';
import type { QueueName } from '../../src/domain/job.ts';
import { handBack } from '../../src/main/hand-back.ts';
import { createStore } from '../../src/store/store.ts';
import type { Store } from '../../src/store/store.ts';
import { jobInProgress, newJob } from '../support/store-back-ends.ts';
import { until } from '../support/until.ts';

let namespace = '';
let redis: ReturnType<typeof connectRedis>;
let queues: Queues;
let store: Store;
let over = new AbortController();
const running: QueueWorker[] = [];

beforeEach(() => {
  namespace = `test-${randomUUID()}`;
  redis = connectRedis(inject('redisUrl'), { patient: true, onError: () => undefined });
  queues = createQueues(redis, { namespace, onError: () => undefined });
  store = createStore({ redis, namespace });
  over = new AbortController();
});

afterEach(async () => {
  over.abort(new Error('the test is over'));
  await Promise.all(running.splice(0).map((worker) => worker.close()));
  await queues.close();
  redis.disconnect();
});

interface Hands {
  /** What was begun, in order. */
  begun: { id: string; wake: number; first: boolean }[];
  worker: QueueWorker;
}

/**
 * A process of that name, which begins whatever it gets, takes shards, and unless told so ends nothing. One that hangs
 * does not even hear that it has lost its lock, and takes nothing after that.
 */
function begin(name: string, queue: QueueName, { ends = false, hangs = false } = {}): Hands {
  const begun: Hands['begun'] = [];
  async function processor({ id, wake, first = false, signal }: Task): Promise<'done'> {
    const shard = parseShardEntity(id);
    if (shard !== null) {
      await store.shards.take(shard.jobId, { n: shard.n, wake }, `${name}-${id}`, 0);
    }
    begun.push({ id, wake, first });
    const end = hangs ? over.signal : signal;
    if (!ends && !end.aborted) await once(end, 'abort');
    return 'done';
  }
  const worker = startWorker({
    queue,
    connection: redis,
    namespace,
    name,
    processor,
    deps: {},
    stopping: over.signal,
    onAttempt: () => undefined,
    onError: () => undefined,
  });
  running.push(worker);
  return { begun, worker };
}

async function addShard(jobId: string, n: number, wake: number): Promise<void> {
  await queues.add({ queue: 'dispatch', entity: shardEntity(jobId, n), wake });
}

test('what a dead process had in hand waits again before all else, that in hand longest first', async () => {
  const { id } = await jobInProgress(store, { shards: 4 });
  await store.shards.open(id, 4);
  const dead = begin('dead', 'dispatch');
  for (const n of [0, 1]) {
    dead.worker.setConcurrency(n + 1);
    await addShard(id, n, 1);
    await until(() => dead.begun.length === n + 1);
  }
  const { begun: others } = begin('alive', 'dispatch');
  await addShard(id, 2, 1);
  await until(() => others.length === 1);
  await addShard(id, 3, 1);

  expect(await handBack('dead', { store, queues })).toBe(2);
  const pending = await store.shards.pending(id);
  const shards = pending.map(({ n, wake, held }) => ({ n, wake, held }));
  expect(shards.toSorted((a, b) => a.n - b.n)).toEqual([
    { n: 0, wake: 2, held: false },
    { n: 1, wake: 2, held: false },
    { n: 2, wake: 1, held: true },
    { n: 3, wake: 1, held: false },
  ]);
  expect(await handBack('dead', { store, queues }), 'once is enough').toBe(0);

  const next = begin('next', 'dispatch', { ends: true });
  await until(() => next.begun.length === 3);
  expect(next.begun).toEqual([
    { id: shardEntity(id, 0), wake: 2, first: true },
    { id: shardEntity(id, 1), wake: 2, first: true },
    { id: shardEntity(id, 3), wake: 1, first: false },
  ]);
});

test('so do jobs and provisions that it worked on', async () => {
  const { job } = await store.jobs.create(newJob());
  const id = 'prov_dead_0_0';
  const wish = { id, job: job.id, slot: 0, address: 'http://e' };
  await store.provisions.create({ ...wish, provider: 'static', owner: 'sluice' });
  const [planner, releaser] = [begin('dead', 'planning'), begin('dead', 'release')];
  for (const { worker } of [planner, releaser]) worker.setConcurrency(1);
  await queues.add({ queue: 'planning', entity: job.id, wake: job.wake });
  await queues.add({ queue: 'release', entity: id, wake: 1 });
  await until(() => planner.begun.length + releaser.begun.length === 2);

  expect(await handBack('dead', { store, queues })).toBe(2);
  const [next, other] = [begin('next', 'planning'), begin('next', 'release')];
  await until(() => next.begun.length + other.begun.length === 2);
  expect(next.begun).toMatchObject([{ id: job.id, wake: job.wake + 1 }]);
  expect(other.begun).toMatchObject([{ id, wake: 2 }]);
});

test('what another process took over from one that hung stays there when that one dies', async () => {
  const { id } = await jobInProgress(store, { shards: 1 });
  await store.shards.open(id, 1);
  const hung = begin('hung', 'dispatch', { hangs: true });
  await addShard(id, 0, 1);
  await until(() => hung.begun.length === 1);
  // As when its time runs out while it is stopped.
  const lock = `${queuePrefix(namespace, 'dispatch')}:dispatch:${shardEntity(id, 0)}.dispatch.1:lock`;
  expect(await redis.del(lock)).toBe(1);
  const taker = begin('taker', 'dispatch');
  await until(() => taker.begun.length === 1, { what: 'the takeover' });

  expect(await handBack('hung', { store, queues })).toBe(0);
  expect(await store.shards.pending(id)).toMatchObject([{ n: 0, wake: 1, held: true }]);
});
