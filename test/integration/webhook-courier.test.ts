import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import * as v from 'valibot';
import { describe, expect, inject, test } from 'vitest';
import type { CourierDeps, WebhookAnswer } from '../../processors/webhooks.ts';
import { batchIdOf } from '../../src/domain/job.ts';
import type { JobRecord } from '../../src/domain/job.ts';
import { globalKeys } from '../../src/store/keys.ts';
import { createStore } from '../../src/store/store.ts';
import type { Store } from '../../src/store/store.ts';
import { startApi } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';
import { newJob } from '../support/store-back-ends.ts';
import { until } from '../support/until.ts';
import { endpointSchema, JOB_SECRET, makeCourier } from '../support/webhooks.ts';

interface Bench extends AsyncDisposable {
  redis: Redis;
  store: Store;
  keys: ReturnType<typeof globalKeys>;
}

function openStore(): Bench {
  const namespace = `test-${randomUUID()}`;
  const redis = new Redis(inject('redisUrl'));
  return {
    redis,
    store: createStore({ redis, namespace }),
    keys: globalKeys(namespace),
    async [Symbol.asyncDispose]() {
      await redis.quit();
    },
  };
}

const TAKEN: WebhookAnswer = { code: 200, error: '', response: '', ms: 1, retryAfterMs: null };
const MISSED = {
  event: 'evt_x',
  type: 'batch.completed',
  status: 'retrying' as const,
  code: 500,
  durationMs: 1,
  error: '',
  response: '',
};

/** Records an event of a job's own webhook, due at once. */
async function add({ webhooks }: Store, n: number, url: string): Promise<string> {
  const id = `evt_${n}.job_${n}`;
  const event = { event: `evt_${n}`, type: 'batch.completed', target: `job_${n}` };
  await webhooks.add({ id, ...event, url, body: '{}' });
  return id;
}

/** Takes all but what goes to silent hosts, and keeps which hosts were asked. */
function hostsAsked(): { asked: string[]; send: CourierDeps['send'] } {
  const asked: string[] = [];
  return {
    asked,
    async send(url, _headers, _body, signal) {
      const { hostname } = new URL(url);
      asked.push(hostname);
      if (!hostname.includes('silent')) return TAKEN;
      return new Promise((_resolve, reject) => {
        signal.addEventListener('abort', () => reject(new Error('cut')));
      });
    },
  };
}

describe('a delivery that is over', () => {
  test('is not revived by the late note of a process that lost its lease', async () => {
    await using bench = openStore();
    const { webhooks } = bench.store;
    const id = await add(bench.store, 1, 'http://a.test/');
    const delivery = await webhooks.delivery(id);
    if (delivery === null) throw new Error('there is none');
    expect(delivery.body).toBe('{}');
    await webhooks.note(delivery, 'a.test', { ...MISSED, status: 'delivered', code: 200 }, null);
    expect(await webhooks.note(delivery, 'a.test', MISSED, 0)).toBe(null);
    expect(await webhooks.due(5)).toEqual([]);
    expect(await webhooks.delivery(id)).toBe(null);
    expect((await webhooks.attempts('job_1')).map(({ status }) => status)).toEqual(['delivered']);
  });

  test('is sent to nobody, even where it stands in the queue', async () => {
    await using bench = openStore();
    const { webhooks } = bench.store;
    const id = await add(bench.store, 1, 'http://a.test/');
    await webhooks.drop(id, 'a.test');
    const queue = `${bench.keys.webhooks}:h:a.test`;
    await bench.redis.zadd(queue, 1, id);
    await bench.redis.zadd(`${bench.keys.webhooks}:hosts`, 1, 'a.test');
    const { asked, send } = hostsAsked();
    const courier = makeCourier(bench.store, { send });
    await courier.round();
    await until(async () => (await bench.redis.zcard(queue)) === 0);
    await courier.close();
    expect(asked).toEqual([]);
  });
});

describe('turns of hosts', () => {
  test('an idle receiver gets all that is due in one round', async () => {
    await using bench = openStore();
    for (let n = 0; n < 20; n += 1) await add(bench.store, n, 'http://a.test/');
    const { asked, send } = hostsAsked();
    const courier = makeCourier(bench.store, { send });
    await courier.round();
    await until(() => asked.length >= 20);
    await courier.close();
    expect(asked, 'each once').toHaveLength(20);
  });

  test('a host that does not take one is left alone until the next round', async () => {
    await using bench = openStore();
    for (let n = 0; n < 3; n += 1) await add(bench.store, n, 'http://a.test/');
    let sent = 0;
    const courier = makeCourier(bench.store, {
      waits: [60_000],
      async send() {
        sent += 1;
        return { ...TAKEN, code: 503 };
      },
    });
    for (let round = 1; round <= 3; round += 1) {
      await courier.round();
      const noted = async () =>
        (await Promise.all([0, 1, 2].map((n) => bench.store.webhooks.attempts(`job_${n}`)))).flat();
      await until(async () => (await noted()).length === round);
      await sleep(5); // what the same turn would send at once
      expect(sent).toBe(round);
    }
    await courier.close();
  });

  test('a host with much to be sent gives its place back after two seconds', async () => {
    await using bench = openStore();
    for (let n = 0; n < 6; n += 1) await add(bench.store, n, 'http://a.test/');
    const { asked, send } = hostsAsked();
    let now = Date.now();
    const slow: CourierDeps['send'] = (...args) => {
      now += 1_000;
      return send(...args);
    };
    const courier = makeCourier(bench.store, { send: slow, now: () => now });
    await courier.round();
    await until(() => asked.length >= 3);
    await sleep(30); // what the same turn would send at once
    expect(asked.length, 'the place is given back').toBe(3);
    await courier.round();
    await until(() => asked.length === 6);
    await courier.close();
  });

  test('ports of one machine share one place', async () => {
    await using bench = openStore();
    for (let n = 0; n < 40; n += 1) await add(bench.store, n, `http://silent.test:${8_000 + n}/`);
    await add(bench.store, 40, 'http://silent.test./');
    await add(bench.store, 41, 'http://[::1]:81/');
    const { asked, send } = hostsAsked();
    const courier = makeCourier(bench.store, { send });
    await courier.round();
    await until(() => asked.length === 2);
    await courier.close();
    expect(asked.toSorted()).toEqual(['[::1]', 'silent.test']);
  });

  test('a quarter of the places is kept for hosts whose delivery was not tried yet', async () => {
    await using bench = openStore();
    for (let n = 0; n < 70; n += 1) {
      const host = `silent-${n}.test`;
      const id = await add(bench.store, n, `http://${host}/`);
      await bench.store.webhooks.note({ id, target: `job_${n}` }, host, MISSED, 0);
    }
    await sleep(2); // another millisecond: the fresh one is last in line
    await add(bench.store, 70, 'http://fresh.test/');
    const { asked, send } = hostsAsked();
    const courier = makeCourier(bench.store, { send });
    await courier.round();
    await until(() => asked.includes('fresh.test'));
    await courier.round();
    await courier.close();
    expect(asked.filter((host) => host.includes('silent'))).toHaveLength(24);
  });

  test('a host goes behind the others after its attempt, whatever comes on top', async () => {
    await using bench = openStore();
    const { webhooks } = bench.store;
    const first = await add(bench.store, 1, 'http://a.test/');
    await add(bench.store, 2, 'http://a.test/');
    await sleep(2); // another millisecond: times are what orders hosts
    await add(bench.store, 3, 'http://b.test/');
    await sleep(2);
    const hosts = async () => (await webhooks.due(5)).map(({ host }) => host);
    expect(await hosts()).toEqual(['a.test', 'b.test']);
    const next = await webhooks.note({ id: first, target: 'job_1' }, 'a.test', MISSED, 60_000);
    expect(next).toBe('evt_2.job_2');
    expect(await hosts()).toEqual(['b.test', 'a.test']);
    await add(bench.store, 4, 'http://a.test/');
    expect(await hosts()).toEqual(['b.test', 'a.test']);
    const due = await webhooks.due(5);
    expect(due.every(({ isFresh }) => isFresh)).toBe(true);
  });
});

describe('Retry-After', () => {
  test.for([
    [503, 90_000],
    [429, 90_000],
    [500, 30],
  ] as const)('of a %i: the next attempt is %i ms later', async ([code, expected]) => {
    await using bench = openStore();
    await add(bench.store, 1, 'http://a.test/');
    const answer = { ...TAKEN, code, retryAfterMs: 90_000 };
    const courier = makeCourier(bench.store, {
      send: async () => answer,
      waits: [30, 3_600_000],
      giveUpMs: 600_000,
    });
    await courier.round();
    await courier.close();
    const [attempt] = await bench.store.webhooks.attempts('job_1');
    const waits = (attempt?.nextAt ?? 0) - (attempt?.at ?? 0);
    // Before Redis 7.2 the time goes on within a script.
    expect(Math.abs(waits - expected), `a wait of ${waits} ms`).toBeLessThan(10);
  });
});

describe('ends that cannot be told now', () => {
  test('hide no later one, and are put off', async () => {
    await using bench = openStore();
    const { store, redis, keys } = bench;
    for (let n = 0; n < 50; n += 1) await redis.zadd(keys.telling, 1 + n, `job_bad${n}`);
    const job = newJob({ id: `job_${randomUUID().replaceAll('-', '')}` });
    await store.jobs.create(job);
    await store.jobs.move({ id: job.id, state: 'queued', version: 1 }, 'cancelled', {
      outcome: 'cancelled',
      event: 'It ends.',
    });
    await store.jobs.forget(job.id);
    const read: string[] = [];
    const jobs = {
      async get(id: string): Promise<JobRecord | null> {
        read.push(id);
        if (id.startsWith('job_bad')) throw new Error('a bug');
        return store.jobs.get(id);
      },
    };
    const courier = makeCourier(
      { jobs, webhooks: store.webhooks },
      { tellAgainMs: 60_000, view: ({ id }) => ({ id: batchIdOf(id) }) },
    );
    for (let round = 0; round < 3; round += 1) await courier.round();
    await courier.close();
    expect(read).toContain(job.id);
    expect(read).toHaveLength(51);
    expect(await redis.zcard(keys.telling), 'none is forgotten').toBe(50);
  });
});

const created = v.looseObject({ id: v.string(), secret: v.string() });

async function post(url: string, body: object, key: string): Promise<unknown> {
  const headers = { 'content-type': 'application/json', 'idempotency-key': key };
  const answer = await fetch(url, { method: 'POST', headers, body: JSON.stringify(body) });
  return answer.json();
}

describe('a request that is repeated after its process died', () => {
  /** Reading fails the first time, so that a request breaks off after its write. */
  function breakingApi(): Promise<TestApi> {
    let reads = 0;
    return startApi(inject('redisUrl'), ({ store }) => ({
      store: {
        ...store,
        webhooks: {
          ...store.webhooks,
          async get(id) {
            reads += 1;
            if (reads === 1) throw new Error('killed');
            return store.webhooks.get(id);
          },
        },
      },
    }));
  }

  test('registers one webhook, and shows the secret that was stored first', async () => {
    await using api = await breakingApi();
    const wish = { url: 'https://example.com/hook', events: ['batch.failed'] };
    const url = `${api.url}/api/v1/webhooks`;
    expect(await post(url, wish, 'k')).toMatchObject({ error: {} });
    const [first] = await api.store.webhooks.list();
    const made = v.parse(created, await post(url, wish, 'k'));
    expect(made).toMatchObject({ id: first?.id, secret: first?.secret });
    const { secret: _secret, ...view } = made;
    expect(v.is(endpointSchema, view)).toBe(true);
    expect(await api.store.webhooks.list()).toHaveLength(1);
    const other = v.parse(created, await post(url, wish, 'another'));
    expect(other.id).not.toBe(made.id);
  });

  test('is refused with another body', async () => {
    await using api = await breakingApi();
    const url = `${api.url}/api/v1/webhooks`;
    await post(url, { url: 'https://example.com/hook' }, 'k');
    const answer = await post(url, { url: 'https://example.com/other' }, 'k');
    expect(answer).toMatchObject({ error: { code: 'idempotency_key_reused' } });
  });

  test('sends one test event', async () => {
    let adds = 0;
    await using api = await startApi(inject('redisUrl'), ({ store }) => ({
      store: {
        ...store,
        webhooks: {
          ...store.webhooks,
          async add(delivery) {
            await store.webhooks.add(delivery);
            adds += 1;
            if (adds === 1) throw new Error('killed');
          },
        },
      },
    }));
    const hook = await post(`${api.url}/api/v1/webhooks`, { url: 'https://example.com/' }, 'k');
    const { id } = v.parse(created, hook);
    const url = `${api.url}/api/v1/webhooks/${id}/test`;
    await post(url, {}, 't');
    const event = v.parse(v.looseObject({ id: v.string() }), await post(url, {}, 't'));
    expect(adds).toBe(2);
    const { webhooks } = api.store;
    const [due] = await webhooks.due(5);
    expect(due).toMatchObject({ host: 'example.com', id: `${event.id}.${id}` });
    expect(await webhooks.drop(due?.id ?? '', 'example.com'), 'there is no other').toBe(null);
  });
});

describe('a damaged endpoint', () => {
  const HOOK = { id: 'we_1', url: 'http://a.test/', events: ['batch.failed' as const] };

  test.for([
    ['secret', 'whsec_'],
    ['secret', ''],
    ['created_at', 'x'],
  ] as const)('%s %j: is told apart, gets nothing, and can be removed', async ([field, text]) => {
    await using bench = openStore();
    const { webhooks } = bench.store;
    await webhooks.register({ ...HOOK, secret: JOB_SECRET });
    await bench.redis.hset(`${bench.keys.webhooks}:e:we_1`, field, text);
    await expect(webhooks.get('we_1')).rejects.toMatchObject({ code: 'store.damaged_record' });
    const event = { event: 'evt_1', type: 'batch.failed', target: 'we_1', url: HOOK.url };
    await webhooks.add({ id: 'evt_1.we_1', ...event, body: '{}' });
    const { asked, send } = hostsAsked();
    const courier = makeCourier(bench.store, { send });
    await courier.round();
    await until(async () => (await webhooks.due(5)).length === 0);
    await courier.close();
    expect(asked).toEqual([]);
    expect(await webhooks.remove('we_1')).toBe(true);
    expect(await webhooks.remove('we_1')).toBe(false);
    expect(await bench.redis.zcard(`${bench.keys.webhooks}:endpoints`)).toBe(0);
  });

  test('is deleted through the API, once', async () => {
    await using api = await startApi(inject('redisUrl'), ({ store }) => ({
      store: {
        ...store,
        webhooks: { ...store.webhooks, get: () => Promise.reject(new Error('damaged')) },
      },
    }));
    await api.store.webhooks.register({ ...HOOK, secret: JOB_SECRET });
    const remove = () => fetch(`${api.url}/api/v1/webhooks/we_1`, { method: 'DELETE' });
    expect((await remove()).status).toBe(200);
    expect((await remove()).status).toBe(404);
    expect(await api.store.webhooks.list()).toEqual([]);
  });
});
