import { setTimeout as sleep } from 'node:timers/promises';
import * as v from 'valibot';
import { describe, expect, inject, test } from 'vitest';
import { batchIdOf, OUTCOMES } from '../../src/domain/job.ts';
import type { JobRecord, Outcome } from '../../src/domain/job.ts';
import { webhookEventOf } from '../../src/domain/webhook.ts';
import { createWebhookSender } from '../../src/main/webhook-sender.ts';
import { damaged } from '../../src/store/scripts.ts';
import { postJson, startApi, uploadInput } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';
import { until } from '../support/until.ts';
import {
  deliveries,
  endpointSchema,
  eventSchema,
  get,
  isSigned,
  JOB_SECRET,
  register,
  startCourier,
  startReceiver,
} from '../support/webhooks.ts';
import type { Receiver } from '../support/webhooks.ts';

function openApi(): Promise<TestApi> {
  return startApi(inject('redisUrl'), () => ({
    webhooks: { signsJobs: true, allowPrivate: true },
  }));
}

async function createJob(api: TestApi, more: object = {}): Promise<JobRecord> {
  const answer = await postJson(api, '/v1/batches', {
    input_file_id: await uploadInput(api),
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    ...more,
  });
  expect(answer).toMatchObject({ status: 200 });
  const { id } = v.parse(v.looseObject({ id: v.string() }), answer.body);
  const job = await api.store.jobs.get(id.replace('batch_', 'job_'));
  if (job === null) throw new Error(`there is no ${id}`);
  return job;
}

async function end(api: TestApi, job: JobRecord, outcome: Outcome): Promise<void> {
  expect(await api.store.jobs.move(job, outcome, { outcome, event: 'It ends.' })).not.toBe('stale');
}

describe('events', () => {
  test('each end of a job is told with the batch, signed with the secret of the endpoint', async () => {
    await using api = await openApi();
    await using receiver = await startReceiver();
    await using _courier = startCourier(api);
    const { id, secret } = await register(api, receiver.url);
    for (const outcome of OUTCOMES) {
      const job = await createJob(api, { metadata: { outcome } });
      await end(api, job, outcome);
      const message = await until(() =>
        receiver.messages.find(({ event }) => event.data.id === batchIdOf(job.id)),
      );
      expect(message.event.type).toBe(webhookEventOf(outcome));
      expect(message.id).toBe(message.event.id);
      expect(isSigned(message, secret), 'signature and time').toBe(true);
      expect(message.body, 'compact').toBe(JSON.stringify(message.event));
      const batch = await get(api, `/v1/batches/${batchIdOf(job.id)}`);
      expect(message.event.data).toEqual(batch.body);
    }
    await until(async () => (await deliveries(api, `/api/v1/webhooks/${id}`)).length === 6);
    expect(receiver.messages).toHaveLength(OUTCOMES.length);
  });

  test('an endpoint gets only the events that it asked for, and none from before its time', async () => {
    await using api = await openApi();
    await using all = await startReceiver();
    await using some = await startReceiver();
    await using late = await startReceiver();
    await register(api, all.url);
    await register(api, some.url, ['batch.failed', 'batch.expired']);
    const [first, second] = [await createJob(api), await createJob(api)];
    await end(api, first, 'completed');
    await end(api, second, 'failed');
    await sleep(2); // an end of the same millisecond would be told
    await register(api, late.url);
    await using _courier = startCourier(api);
    await until(() => all.messages.length === 2 && some.messages.length === 1);
    expect(some.messages[0]?.event.type).toBe('batch.failed');
    await end(api, await createJob(api), 'cancelled');
    await until(() => all.messages.length === 3 && late.messages.length === 1);
    expect(late.messages[0]?.event.type).toBe('batch.cancelled');
    expect(some.messages).toHaveLength(1);
  });

  test('500 twice, then 200: three attempts with one id, and the list of deliveries tells them', async () => {
    await using api = await openApi();
    await using receiver = await startReceiver((count) => (count <= 2 ? 500 : 200));
    await using _courier = startCourier(api);
    const { id, secret } = await register(api, receiver.url);
    await end(api, await createJob(api), 'completed');
    const attempts = await until(async () => {
      const found = await deliveries(api, `/api/v1/webhooks/${id}`);
      return found.length === 3 && found;
    });
    expect(new Set(receiver.messages.map((message) => message.id)).size).toBe(1);
    expect(new Set(receiver.messages.map(({ body }) => body)).size).toBe(1);
    expect(receiver.messages.every((message) => isSigned(message, secret))).toBe(true);
    expect(attempts.map(({ attempt, status, code }) => [attempt, status, code])).toEqual([
      [3, 'delivered', 200],
      [2, 'retrying', 500],
      [1, 'retrying', 500],
    ]);
    expect(attempts[0]).toMatchObject({ response: 'code 200', error: '', next_at: null });
    expect(attempts[1]?.next_at).toBeTypeOf('number');
    expect(attempts.every(({ event_id: event }) => event === receiver.messages[0]?.id)).toBe(true);
  });

  test('a redirect is a failure, which is tried again at its own address only', async () => {
    await using api = await openApi();
    await using receiver = await startReceiver((count) => (count === 1 ? 307 : 200));
    await using _courier = startCourier(api);
    const { id } = await register(api, receiver.url);
    await end(api, await createJob(api), 'completed');
    const attempts = await until(async () => {
      const found = await deliveries(api, `/api/v1/webhooks/${id}`);
      return found.length === 2 && found;
    });
    expect(attempts.map(({ code }) => code)).toEqual([200, 307]);
  });

  test('what is not taken in time is given up', async () => {
    await using api = await openApi();
    await using receiver = await startReceiver(() => 503);
    await using _courier = startCourier(api, { giveUpMs: 100, waits: [80] });
    const { id } = await register(api, receiver.url);
    await end(api, await createJob(api), 'completed');
    const attempts = await until(async () => {
      const found = await deliveries(api, `/api/v1/webhooks/${id}`);
      return found[0]?.status === 'failed' && found;
    });
    expect(attempts.map(({ status }) => status)).toEqual(['failed', 'retrying']);
    expect(await api.store.webhooks.due(5)).toEqual([]);
  });

  test('410 disables an endpoint: nothing more is sent to it, and a test is refused', async () => {
    await using api = await openApi();
    await using gone = await startReceiver(() => 410);
    await using witness = await startReceiver();
    await using _courier = startCourier(api);
    const { id } = await register(api, gone.url);
    await register(api, witness.url);
    await end(api, await createJob(api), 'completed');
    await until(async () => {
      const { body } = await get(api, `/api/v1/webhooks/${id}`);
      return v.parse(endpointSchema, body).status === 'disabled';
    });
    await end(api, await createJob(api), 'completed');
    await until(() => witness.messages.length === 2);
    const refused = await postJson(api, `/api/v1/webhooks/${id}/test`, {});
    expect(refused).toMatchObject({ status: 400, body: { error: { code: 'webhook_disabled' } } });
    expect(gone.messages).toHaveLength(1);
  });
});

describe("a job's own webhook", () => {
  test.for([
    ['/v1/batches', 'aibrix.webhook', 'input_file_id'],
    ['/api/v1/jobs', 'webhook', 'inputDataset'],
  ] as const)('%s: %s is told, signed with WEBHOOK_SECRET', async ([path, param, input]) => {
    await using api = await openApi();
    await using receiver = await startReceiver((count) => (count === 1 ? 502 : 204));
    await using _courier = startCourier(api);
    const webhook = { url: receiver.url };
    const answer = await postJson(api, path, {
      [input]: await uploadInput(api),
      endpoint: '/v1/chat/completions',
      completion_window: '24h',
      ...(param === 'webhook' ? { webhook } : { aibrix: { webhook } }),
    });
    const { id } = v.parse(v.looseObject({ id: v.string() }), answer.body);
    const jobId = id.replace('batch_', 'job_');
    await postJson(api, `/api/v1/jobs/${jobId}/cancel`, {});
    await until(() => receiver.messages.length === 2);
    const [message] = receiver.messages;
    expect(message?.event).toMatchObject({
      type: 'batch.cancelled',
      data: { id: jobId.replace('job_', 'batch_'), status: 'cancelled' },
    });
    expect(receiver.messages.every((each) => isSigned(each, JOB_SECRET))).toBe(true);
    const attempts = await until(async () => {
      const found = await deliveries(api, `/api/v1/jobs/${jobId}`);
      return found.length === 2 && found;
    });
    expect(attempts.map(({ code, status }) => [code, status])).toEqual([
      [204, 'delivered'],
      [502, 'retrying'],
    ]);
  });

  test('waits for a process that has WEBHOOK_SECRET', async () => {
    await using api = await openApi();
    await using receiver = await startReceiver();
    const job = await createJob(api, { aibrix: { webhook: { url: receiver.url } } });
    await end(api, job, 'completed');
    {
      await using _courier = startCourier(api, { jobSecret: undefined });
      const [attempt] = await until(async () => {
        const found = await deliveries(api, `/api/v1/jobs/${job.id}`);
        return found.length > 0 && found;
      });
      expect(attempt).toMatchObject({ status: 'retrying', code: null });
      expect(attempt?.error).toContain('WEBHOOK_SECRET');
    }
    await using _courier = startCourier(api);
    await until(() => receiver.messages.length === 1);
    expect(receiver.messages.every((each) => isSigned(each, JOB_SECRET))).toBe(true);
  });

  const REFUSED = [
    ['not a URL', 'nowhere', 'invalid_value', 'aibrix.webhook.url'],
    ['another scheme', 'ftp://example.com/', 'invalid_value', 'aibrix.webhook.url'],
    ['credentials', 'https://user:word@example.com/', 'invalid_value', 'aibrix.webhook.url'],
    ['loopback', 'http://127.0.0.1/', 'webhook_private_address', 'aibrix.webhook.url'],
    [
      'a name of this machine',
      'http://localhost:1/',
      'webhook_private_address',
      'aibrix.webhook.url',
    ],
    [
      'metadata of a cloud',
      'http://169.254.169.254/',
      'webhook_private_address',
      'aibrix.webhook.url',
    ],
    ['IPv6 loopback', 'http://[::1]/', 'webhook_private_address', 'aibrix.webhook.url'],
  ] as const;
  test.for(REFUSED)('%s is refused: %s', async ([, url, code, param]) => {
    await using api = await startApi(inject('redisUrl'));
    const wish = { input_file_id: await uploadInput(api), endpoint: '/v1/embeddings' };
    const aibrix = { webhook: { url } };
    const answer = await postJson(api, '/v1/batches', {
      ...wish,
      completion_window: '24h',
      aibrix,
    });
    expect(answer).toMatchObject({ status: 400, body: { error: { code, param } } });
  });

  test('is refused with the mend where WEBHOOK_SECRET is not set', async () => {
    const rules = { signsJobs: false, allowPrivate: true };
    await using api = await startApi(inject('redisUrl'), () => ({ webhooks: rules }));
    const wish = { input_dataset: await uploadInput(api), endpoint: '/v1/embeddings' };
    const webhook = { url: 'https://example.com/' };
    const answer = await postJson(api, '/api/v1/jobs', { ...wish, webhook });
    expect(answer).toMatchObject({
      status: 400,
      body: { error: { code: 'webhook_not_configured', param: 'webhook' } },
    });
    expect(JSON.stringify(answer.body)).toContain('WEBHOOK_SECRET=whsec_');
  });
});

describe('registered endpoints', () => {
  test('the secret is shown once; get, list and delete', async () => {
    await using api = await openApi();
    const { id, secret } = await register(api, 'https://example.com/hook', ['batch.failed']);
    const shown = await get(api, `/api/v1/webhooks/${id}`);
    expect(v.parse(endpointSchema, shown.body)).toMatchObject({
      url: 'https://example.com/hook',
      events: ['batch.failed'],
      status: 'active',
    });
    const listed = await get(api, '/api/v1/webhooks/');
    expect(listed.body).toEqual({ webhooks: [shown.body] });
    expect(JSON.stringify([shown, listed, api.logs])).not.toContain(secret);
    const deleted = await fetch(`${api.url}/api/v1/webhooks/${id}`, { method: 'DELETE' });
    expect(await deleted.json()).toEqual({ id, object: 'webhook', deleted: true });
    expect(await get(api, `/api/v1/webhooks/${id}`)).toMatchObject({ status: 404 });
    expect((await get(api, '/api/v1/webhooks')).body).toEqual({ webhooks: [] });
  });

  test.for([
    [{}, 'missing_required_parameter', 'url'],
    [{ url: 'mailto:a@b' }, 'invalid_value', 'url'],
    [{ url: 'http://10.0.0.1/' }, 'webhook_private_address', 'url'],
    [{ url: 'https://example.com', events: [] }, 'invalid_value', 'events'],
    [{ url: 'https://example.com', events: ['batch.done'] }, 'invalid_value', 'events.0'],
    [{ url: 'https://example.com', events: 'all' }, 'invalid_type', 'events'],
  ] as const)('%j is refused', async ([body, code, param]) => {
    await using api = await startApi(inject('redisUrl'));
    const answer = await postJson(api, '/api/v1/webhooks', body);
    expect(answer).toMatchObject({ status: 400, body: { error: { code, param } } });
  });

  test('there are 100 at most', async () => {
    await using api = await openApi();
    const endpoint = { url: 'https://example.com/', events: ['batch.failed' as const] };
    for (let n = 0; n < 100; n += 1) {
      await api.store.webhooks.register({ id: `we_${n}`, ...endpoint, secret: JOB_SECRET });
    }
    const answer = await postJson(api, '/api/v1/webhooks', { url: endpoint.url });
    expect(answer).toMatchObject({ status: 400, body: { error: { code: 'too_many_webhooks' } } });
  });

  test.for(['we_none', 'we_', '../x', 'job_1'])('%s is not found', async (id) => {
    await using api = await openApi();
    for (const path of ['', '/deliveries']) {
      const answer = await get(api, `/api/v1/webhooks/${encodeURIComponent(id)}${path}`);
      expect(answer).toMatchObject({ status: 404, body: { error: { code: 'webhook_not_found' } } });
    }
    expect(await get(api, '/api/v1/jobs/job_none/deliveries')).toMatchObject({ status: 404 });
  });

  test('a test event is sent once, whatever it is answered', async () => {
    await using api = await openApi();
    await using receiver = await startReceiver(() => 500);
    await using _courier = startCourier(api);
    const { id, secret } = await register(api, receiver.url, ['batch.failed']);
    const answer = await postJson(api, `/api/v1/webhooks/${id}/test`, {});
    expect(v.parse(eventSchema, answer.body)).toMatchObject({ type: 'webhook.test', data: { id } });
    const [attempt] = await until(async () => {
      const found = await deliveries(api, `/api/v1/webhooks/${id}`);
      return found.length > 0 && found;
    });
    expect(attempt).toMatchObject({ status: 'failed', code: 500, next_at: null });
    expect(receiver.messages.map(({ event }) => event)).toEqual([answer.body]);
    expect(receiver.messages.every((message) => isSigned(message, secret))).toBe(true);
  });

  test('the last 50 attempts are kept', async () => {
    await using api = await openApi();
    await using receiver = await startReceiver((count) => (count <= 60 ? 500 : 200));
    await using _courier = startCourier(api, { waits: [1] });
    const { id } = await register(api, receiver.url);
    await end(api, await createJob(api), 'completed');
    const attempts = await until(async () => {
      const found = await deliveries(api, `/api/v1/webhooks/${id}`);
      return found[0]?.status === 'delivered' && found;
    });
    expect(attempts.map(({ attempt }) => attempt)).toEqual(
      Array.from({ length: 50 }, (_, i) => 61 - i),
    );
  });

  test('what is on its way to an endpoint that is deleted is dropped', async () => {
    await using api = await openApi();
    await using receiver = await startReceiver(() => 500);
    const { id } = await register(api, receiver.url);
    await end(api, await createJob(api), 'completed');
    {
      await using _courier = startCourier(api, { waits: [300] });
      await until(() => receiver.messages.length === 1);
    }
    await fetch(`${api.url}/api/v1/webhooks/${id}`, { method: 'DELETE' });
    await using _courier = startCourier(api);
    await until(() => dropped(api, `${idOf(receiver)}.${id}`));
    expect(receiver.messages).toHaveLength(1);
  });
});

function idOf(receiver: Receiver): string {
  return receiver.messages[0]?.id ?? '';
}

/** Whether nothing more becomes of a delivery that was recorded. */
async function dropped(api: TestApi, id: string): Promise<boolean> {
  return (await api.store.webhooks.delivery(id)) === null;
}

describe('whatever happens between', () => {
  test('a crash between two targets loses none and doubles none', async () => {
    await using api = await openApi();
    await using first = await startReceiver();
    await using second = await startReceiver();
    await register(api, first.url);
    await register(api, second.url);
    const job = await createJob(api);
    await end(api, job, 'completed');
    const { webhooks } = api.store;
    let added = 0;
    const dying = {
      ...webhooks,
      async add(delivery: Parameters<typeof webhooks.add>[0]) {
        added += 1;
        if (added === 2) throw new Error('killed');
        await webhooks.add(delivery);
      },
    };
    let read = 0;
    const jobs = {
      async get(id: string) {
        read += 1;
        return api.store.jobs.get(id);
      },
    };
    await using _courier = startCourier(api, { store: { jobs, webhooks: dying } });
    await until(() => first.messages.length > 0 && second.messages.length > 0);
    await until(async () => (await webhooks.untold(5)).length === 0);
    expect([added, read]).toEqual([4, 2]);
    // A repeat of the request that created the job enters it among the untold once more.
    await api.store.jobs.forget(job.id);
    expect(await webhooks.untold(5)).toEqual([job.id]);
    await until(async () => (await webhooks.untold(5)).length === 0);
    await until(async () => (await webhooks.due(5)).length === 0);
    expect([first.messages.length, second.messages.length, read]).toEqual([1, 1, 2]);
  });

  test('an attempt that is cut by a stop is made again with the same id', async () => {
    await using api = await openApi();
    await using receiver = await startReceiver((count) => (count === 1 ? null : 200));
    await register(api, receiver.url);
    await end(api, await createJob(api), 'completed');
    const courier = startCourier(api);
    await until(() => receiver.messages.length === 1);
    const begun = performance.now();
    await courier.close();
    expect(performance.now() - begun, 'ms until a silent target is let go').toBeLessThan(5_000);
    await using _next = startCourier(api);
    await until(() => receiver.messages.length === 2);
    expect(receiver.messages[1]?.id).toBe(receiver.messages[0]?.id);
  });

  test('a silent host holds up nobody else, and has one request at a time', async () => {
    await using api = await openApi();
    await using silent = await startReceiver(() => null);
    await using other = await startReceiver();
    await register(api, silent.url);
    await register(api, other.url);
    for (let n = 0; n < 12; n += 1) await end(api, await createJob(api), 'completed');
    await using _courier = startCourier(api, {
      send: createWebhookSender({ allowPrivate: true, timeoutMs: 100 }),
      waits: [60_000],
    });
    await until(() => other.messages.length === 12, { timeoutMs: 5_000 });
    await until(() => silent.messages.length >= 3);
    expect(silent.most).toBe(1);
    expect(other.most).toBe(1);
  });

  test('of two processes one sends', async () => {
    await using api = await openApi();
    await using receiver = await startReceiver(() => null);
    const { id } = await register(api, receiver.url);
    const send = createWebhookSender({ allowPrivate: true, timeoutMs: 300 });
    const options = { send, waits: [60_000] };
    await using _one = startCourier(api, options);
    await using _two = startCourier(api, options);
    await end(api, await createJob(api), 'completed');
    // Whoever has no lease looks dozens of times while the first attempt is on its way.
    await until(async () => (await deliveries(api, `/api/v1/webhooks/${id}`)).length > 0);
    expect(receiver.messages).toHaveLength(1);
  });

  test('a damaged job is told to nobody, and hides no other', async () => {
    await using api = await openApi();
    await using receiver = await startReceiver();
    await register(api, receiver.url);
    const [broken, whole] = [await createJob(api), await createJob(api)];
    await end(api, broken, 'completed');
    await end(api, whole, 'completed');
    const { jobs, webhooks } = api.store;
    const reading = {
      async get(id: string) {
        if (id === broken.id) throw damaged(id, 'state');
        return jobs.get(id);
      },
    };
    await using _courier = startCourier(api, { store: { jobs: reading, webhooks } });
    await until(() => receiver.messages.length === 1);
    expect(receiver.messages[0]?.event.data.id).toBe(batchIdOf(whole.id));
    await until(async () => (await webhooks.untold(5)).length === 0);
  });
});
