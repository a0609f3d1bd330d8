import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, inject, test } from 'vitest';
import { createAdvance } from '../../queues/advance.ts';
import { deliveryId, parseShardEntity, shardEntity } from '../../queues/catalog.ts';
import { connectRedis, redisTarget } from '../../queues/connection.ts';
import { createQueues, queuePrefix } from '../../queues/queues.ts';
import type { Queues } from '../../queues/queues.ts';
import { startWorker } from '../../queues/worker.ts';
import type { Attempt, QueueWorker, Task, Verdict } from '../../queues/worker.ts';
import {
  invalidInput,
  notFound,
  permanent,
  SluiceError,
  transient,
} from '../../src/domain/errors.ts';
import { JOB, QUEUE_NAMES } from '../../src/domain/job.ts';
import type { JobRecord, JobState, QueueName } from '../../src/domain/job.ts';
import type { JobChange } from '../../src/store/jobs.ts';
import { createStore } from '../../src/store/store.ts';
import { startVllm } from '../simulators/vllm/simulator.ts';
import { newJob } from '../support/store-back-ends.ts';
import { until } from '../support/until.ts';
import { ask } from '../support/vllm-client.ts';

const VICTIM = fileURLToPath(new URL('../support/queue-victim.ts', import.meta.url));

let namespace = '';
let redis: ReturnType<typeof connectRedis>;
let queues: Queues;
let attempts: Attempt[] = [];
let errors: Error[] = [];
let stopping = new AbortController();
const running: QueueWorker[] = [];

beforeEach(() => {
  namespace = `test-${randomUUID()}`;
  redis = connectRedis(inject('redisUrl'), { patient: true, onError: () => undefined });
  queues = createQueues(redis, { namespace, onError: (error) => void errors.push(error) });
  attempts = [];
  errors = [];
  stopping = new AbortController();
});

afterEach(async () => {
  stopping.abort(new Error('the test is over'));
  await Promise.all(running.splice(0).map((worker) => worker.close()));
  await queues.close();
  redis.disconnect();
});

function work(processor: (task: Task) => Promise<Verdict>, queue: QueueName = 'planning') {
  const worker = startWorker({
    queue,
    connection: redis,
    namespace,
    processor,
    deps: {},
    stopping: stopping.signal,
    onAttempt: (attempt) => void attempts.push(attempt),
    onError: (error) => void errors.push(error),
  });
  running.push(worker);
  return worker;
}

function queueOf(name: QueueName) {
  const queue = queues.all.find((each) => each.name === name);
  if (queue === undefined) throw new Error(`no queue ${name}`);
  return queue;
}

/** Resolves when the signal is aborted, with its reason. */
async function aborted(signal: AbortSignal): Promise<unknown> {
  if (!signal.aborted) await once(signal, 'abort');
  return signal.reason;
}

const JOB_1 = { queue: 'planning', entity: 'job_1', wake: 1 } as const;

describe('a delivery', () => {
  test('is processed once, with what it carries, and then gone', async () => {
    const tasks: Task[] = [];
    work(async (task) => {
      tasks.push(task);
      return 'done';
    });
    await queues.add(JOB_1);
    await until(() => attempts.length > 0);
    expect(tasks).toMatchObject([{ id: 'job_1', wake: 1 }]);
    expect(attempts).toMatchObject([
      { queue: 'planning', id: 'job_1.planning.1', attempt: 1, result: 'done' },
    ]);
    await until(async () => !(await queues.isLive(JOB_1)));
    expect(await queueOf('planning').getJobCounts()).toMatchObject({ completed: 0, failed: 0 });
  });

  test('that is added twice is there once, and may be added again when it is over', async () => {
    await Promise.all([queues.add(JOB_1), queues.add(JOB_1), queues.add(JOB_1)]);
    expect(await queueOf('planning').getWaitingCount()).toBe(1);
    expect(await queues.isLive(JOB_1)).toBe(true);
    work(async () => 'done');
    await until(async () => !(await queues.isLive(JOB_1)));
    await queues.add(JOB_1);
    await until(() => attempts.length === 2);
    await until(async () => !(await queues.isLive(JOB_1)));
    expect(attempts.map(({ result }) => result)).toEqual(['done', 'done']);
  });

  test('that failed may be added again, too', async () => {
    work(async () => {
      throw permanent('test.never', 'it cannot work');
    });
    await queues.add(JOB_1);
    await until(async () => attempts.length === 1 && !(await queues.isLive(JOB_1)));
    await queues.add(JOB_1);
    await until(() => attempts.length === 2);
    expect(attempts.map(({ result }) => result)).toEqual(['fail', 'fail']);
  });

  test('whose payload is foreign fails once and never reaches a processor', async () => {
    let reached = false;
    work(async () => {
      reached = true;
      return 'done';
    });
    const queue = queueOf('planning');
    const foreign: unknown[] = [{ id: 5, wake: 1 }, { id: 'a' }, { id: 'a', wake: 1, more: 1 }, {}];
    for (const [n, data] of foreign.entries()) {
      await queue.add('planning', data as { id: string; wake: number }, { jobId: `foreign-${n}` }); // on purpose
    }
    await until(() => attempts.length === foreign.length);
    await queues.add(JOB_1);
    await until(() => reached);
    expect(attempts.slice(0, 4).map(({ result, attempt }) => [result, attempt])).toEqual(
      foreign.map(() => ['fail', 1]),
    );
    expect(String(attempts[0]?.error)).toContain('invalid planning payload');
    expect(await queue.getJobCounts()).toMatchObject({ failed: 0, delayed: 0, waiting: 0 });
  });

  test('to be looked at again comes back under its id, after its time, as often as it says', async () => {
    const times: number[] = [];
    work(async () => {
      times.push(Date.now());
      return times.length < 4 ? { againInMs: 150 } : 'done';
    });
    await queues.add(JOB_1);
    await until(() => attempts.length === 1);
    await until(() => queues.isLive(JOB_1));
    await until(() => attempts.length === 4);
    const waits = times.slice(1).map((time, n) => time - (times[n] ?? 0));
    for (const wait of waits) expect(wait).toBeGreaterThanOrEqual(148);
    expect(Math.max(...waits)).toBeLessThan(1_000);
    expect(attempts.map(({ result, id }) => [result, id])).toEqual([
      ['again', 'job_1.planning.1'],
      ['again', 'job_1.planning.1'],
      ['again', 'job_1.planning.1'],
      ['done', 'job_1.planning.1'],
    ]);
  });

  test('that was looked at often has not used up its patience: the first error waits 250 ms', async () => {
    const times: number[] = [];
    work(async () => {
      times.push(Date.now());
      if (times.length <= 6) return { againInMs: 1 };
      if (times.length === 7) throw transient('test.away', 'away');
      return 'done';
    });
    await queues.add(JOB_1);
    await until(() => attempts.length === 8);
    const wait = (times[7] ?? 0) - (times[6] ?? 0);
    expect(wait).toBeGreaterThanOrEqual(248);
    expect(wait).toBeLessThan(1_000);
  });
});

describe('errors', () => {
  const KINDS: [string, Error, string[]][] = [
    ['invalid input is not tried again', invalidInput('test.bad', 'bad'), ['fail']],
    ['what no retry mends is not', permanent('test.never', 'never'), ['fail']],
    ['what is not there ends quietly', notFound('test.gone', 'gone'), ['stop']],
    ['who was too late does', new SluiceError('Conflict', 'test.stale', 'stale'), ['stop']],
    ['what is away is tried again', transient('test.away', 'away'), ['retry', 'done']],
    ['no capacity, too', new SluiceError('NoCapacity', 'test.full', 'full'), ['retry', 'done']],
    ['an error of unknown make, too', new TypeError('x is not a function'), ['retry', 'done']],
  ];
  test.for(KINDS)('%s', async ([, error, results]) => {
    let tries = 0;
    work(async () => {
      tries += 1;
      if (tries === 1) throw error;
      return 'done';
    });
    await queues.add(JOB_1);
    await until(() => attempts.length === results.length);
    await until(async () => !(await queues.isLive(JOB_1)));
    expect(attempts.map(({ result }) => result)).toEqual(results);
    expect(attempts[0]?.error).toBe(error);
  });

  test('an error that says when is tried again then', async () => {
    const times: number[] = [];
    work(async () => {
      times.push(Date.now());
      if (times.length > 1) return 'done';
      throw transient('test.busy', 'busy', { retryAfterMs: 600 });
    });
    await queues.add(JOB_1);
    await until(() => times.length === 2);
    expect((times[1] ?? 0) - (times[0] ?? 0)).toBeGreaterThanOrEqual(598);
  });
});

describe('a lock', () => {
  test('that is lost aborts its task, down to the socket at the engine', async () => {
    await using engine = await startVllm({
      profile: 'zero',
      config: { log: 'full', latency_ms: 60_000 },
    });
    const reasons: unknown[] = [];
    work(async ({ signal, lockLost }) => {
      const asking = ask(engine.url, { model: 'sim-model', messages: [] }, { signal });
      await expect(asking).rejects.toThrow('lock lost');
      reasons.push(lockLost.aborted);
      return 'done';
    });
    await queues.add(JOB_1);
    await until(async () => (await engine.counts()).in_flight === 1);
    const lock = `${queuePrefix(namespace, 'planning')}:planning:${deliveryId(JOB_1)}:lock`;
    expect(await redis.del(lock)).toBe(1);
    await until(async () => (await engine.counts()).by_outcome['aborted'] === 1);
    await until(() => reasons.length === 1);
    expect(reasons).toEqual([true]);
  });

  test('a queue that is flushed aborts what is in hand, and goes on with what is added then', async () => {
    const ended: string[] = [];
    work(async ({ id, signal }) => {
      if (id === 'job_1') await aborted(signal);
      ended.push(id);
      return 'done';
    });
    await queues.add(JOB_1);
    await until(async () => (await queueOf('planning').getActiveCount()) === 1);
    const keys = await redis.keys(`${queuePrefix(namespace, 'planning')}:*`);
    expect(keys.length).toBeGreaterThan(2);
    await redis.del(keys);
    expect(await queues.isLive(JOB_1)).toBe(false);
    await until(() => ended.length === 1);
    await queues.add({ ...JOB_1, entity: 'job_2' });
    await until(() => ended.length === 2);
    expect(ended).toEqual(['job_1', 'job_2']);
  });

  test('of a process that was killed is taken over within 10 s, and put aside by nobody', async () => {
    const child = spawn(process.execPath, [VICTIM, inject('redisUrl'), namespace], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    try {
      await queues.add(JOB_1);
      const [said] = (await once(child.stdout, 'data')) as [Buffer];
      expect(String(said)).toContain('taken job_1');
      child.kill('SIGKILL');
      await once(child, 'exit');
      const killed = Date.now();
      const first: unknown[] = [];
      work(async (task) => {
        first.push(task.first);
        return 'done';
      });
      await until(() => attempts.length === 1, { timeoutMs: 15_000 });
      expect(Date.now() - killed).toBeLessThan(10_000);
      expect(attempts).toMatchObject([{ result: 'done', attempt: 1 }]);
      expect(first).toEqual([true]);
    } finally {
      child.kill('SIGKILL');
    }
  });
});

describe('a worker', () => {
  test('finds what is due within moments, also where nothing has told it', async () => {
    work(async () => 'done', 'dispatch');
    const shard = { queue: 'dispatch', entity: 'job_1-0', wake: 1 } as const;
    const queue = queueOf('dispatch');
    const id = deliveryId(shard);
    await queue.add('dispatch', { id: shard.entity, wake: 1 }, { jobId: id, delay: 3_600_000 });
    // It has taken the marker, and knows of nothing before that hour is over.
    const { marker, delayed } = queue.keys;
    await until(async () => (await redis.exists(marker ?? '')) === 0, { what: 'the marker taken' });
    await redis.zadd(delayed ?? '', 0, id);
    const begun = performance.now();
    await until(() => attempts.length > 0);
    expect(performance.now() - begun).toBeLessThan(4_000);
  });

  test('takes more at once when its concurrency is raised, while another delivery is in hand', async () => {
    const taken: string[] = [];
    const end = Promise.withResolvers<Verdict>();
    const worker = work(async ({ id }) => {
      taken.push(id);
      return end.promise;
    }, 'dispatch');
    for (const n of [0, 1, 2, 3]) {
      await queues.add({ queue: 'dispatch', entity: shardEntity('job_1', n), wake: 1 });
    }
    await until(() => taken.length === 1);
    for (const count of [2, 3]) {
      const begun = Date.now();
      worker.setConcurrency(count);
      await until(() => taken.length === count, { everyMs: 5 });
      expect(Date.now() - begun).toBeLessThan(5_000);
    }
    worker.setConcurrency(1);
    end.resolve('done');
    await until(() => attempts.length === 4);
    expect(taken).toEqual(['job_1-0', 'job_1-1', 'job_1-2', 'job_1-3']);
  });

  test('close takes nothing more, aborts what is in hand and waits for it', async () => {
    const order: string[] = [];
    const worker = work(async ({ signal, lockLost }) => {
      order.push(String(await aborted(signal)));
      await until(() => true, { everyMs: 20 });
      order.push(`lock lost: ${lockLost.aborted}`);
      return 'done';
    }, 'dispatch');
    await queues.add({ queue: 'dispatch', entity: 'job_1-0', wake: 1 });
    await queues.add({ queue: 'dispatch', entity: 'job_1-1', wake: 1 });
    await until(async () => (await queueOf('dispatch').getActiveCount()) === 1);
    stopping.abort(new Error('the process stops'));
    await worker.close();
    order.push('closed');
    expect(order).toEqual(['Error: the process stops', 'lock lost: false', 'closed']);
    expect(await queueOf('dispatch').getActiveCount()).toBe(0);
    expect(await queues.isLive({ queue: 'dispatch', entity: 'job_1-1', wake: 1 })).toBe(true);
  });
});

describe('advance', () => {
  test('of 50 racers one moves the job, and one delivery is there', async () => {
    const store = createStore({ redis, namespace });
    const { job } = await store.jobs.create(newJob());
    const advance = createAdvance<JobRecord, JobState, JobChange>(
      JOB,
      (record, to, change) => store.jobs.move(record, to, change),
      (delivery) => queues.add(delivery),
    );
    const running = await store.jobs.move(job, 'resource_preparing', {});
    if (running === 'stale') throw new Error('nobody else moves this job');
    const record = { ...job, ...running, state: 'resource_preparing' as const };
    const results = await Promise.all(
      Array.from({ length: 50 }, () => advance(record, 'cancelling', { outcome: 'cancelled' })),
    );
    const moved = results.filter((result) => result !== 'stale');
    expect(moved).toHaveLength(1);
    const after = await store.jobs.get(job.id);
    expect(after).toMatchObject({ state: 'cancelling', version: record.version + 1 });
    expect(moved[0]).toMatchObject({ version: after?.version, wake: after?.wake });
    expect(await queueOf('release').getJobCounts()).toMatchObject({ prioritized: 1, waiting: 0 });
    const delivery = { queue: 'release', entity: job.id, wake: after?.wake ?? 0 } as const;
    expect(await queues.isLive(delivery)).toBe(true);
  });
});

describe('names and order', () => {
  test('all keys of a queue have one hash tag, and each queue has its own', async () => {
    for (const queue of QUEUE_NAMES) await queues.add({ queue, entity: 'job_1', wake: 1 });
    const keys = await redis.keys(`*${namespace}*`);
    const tags = new Map<string, string>();
    for (const key of keys) {
      const [, tag = 'none', name = ''] = /^\{([^}]+)\}:([a-z]+)/.exec(key) ?? [];
      tags.set(tag, name);
    }
    expect(Object.fromEntries(tags)).toEqual(
      Object.fromEntries(QUEUE_NAMES.map((name) => [`${namespace}:${name}`, name])),
    );
  });

  test('a machine that waits to be given back goes before files that wait to be written', async () => {
    const taken: string[] = [];
    for (const entity of ['job_1', 'job_2', 'prov_1_0_0']) {
      await queues.add({ queue: 'release', entity, wake: 1 });
    }
    work(async ({ id }) => {
      taken.push(id);
      return 'done';
    }, 'release');
    await until(() => taken.length === 3);
    expect(taken[0]).toBe('prov_1_0_0');
  });

  test('a shard is named by job and number, and nothing else is a shard', () => {
    expect(parseShardEntity(shardEntity('job_aB1', 42))).toEqual({ jobId: 'job_aB1', n: 42 });
    for (const text of ['job_1', 'job_1-', 'job_1-x', 'prov_1-1', 'job_-1', 'job_1-1.dispatch']) {
      expect(parseShardEntity(text)).toBeNull();
    }
  });

  const URLS: [string, object][] = [
    ['redis://host', { host: 'host', port: 6379, db: 0 }],
    ['redis://:p%40ss@host:7000/3', { host: 'host', port: 7000, db: 3, password: 'p@ss' }],
    ['rediss://me:pw@[::1]:1/0', { host: '::1', port: 1, username: 'me', password: 'pw', tls: {} }],
    ['redis+unix:///run/a%20b.sock?db=2', { path: '/run/a b.sock', db: 2 }],
  ];
  test.for(URLS)('%s', ([url, target]) => {
    expect(redisTarget(url)).toMatchObject(target);
  });
});
