import { once } from 'node:events';
import { createServer } from 'node:http';
import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Redis } from 'ioredis';
import OpenAI from 'openai';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { globalKeys, WEBHOOK_PARTS } from '../../src/store/keys.ts';
import { makeInput, openaiClient, submit, untilFinal, upload } from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

let engine: VllmProcess;
beforeAll(async () => {
  engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
});
afterAll(async () => {
  await engine.close();
  requireNothingLeft();
});

const SECRET = `whsec_${Buffer.from('the secret of this server').toString('base64')}`;
/** Nobody sends anything there, since jobs of these tests are cancelled before they begin. */
const NO_ENGINE = 'http://127.0.0.1:9';
const LOCAL = { WEBHOOK_SECRET: SECRET, WEBHOOK_ALLOW_PRIVATE: 'true' };

interface Receiver extends AsyncDisposable {
  url: string;
  messages: { headers: IncomingHttpHeaders; body: string }[];
}

/** Answers with these codes in turn, the last one again and again; null: never. */
async function startReceiver(...codes: (number | null)[]): Promise<Receiver> {
  const messages: Receiver['messages'] = [];
  async function take(request: IncomingMessage, response: ServerResponse): Promise<void> {
    let body = '';
    for await (const chunk of request.setEncoding('utf8')) body += chunk;
    messages.push({ headers: request.headers, body });
    const code = codes.length === 0 ? 200 : codes[Math.min(messages.length, codes.length) - 1];
    if (typeof code === 'number') response.writeHead(code).end();
  }
  const server = createServer((request, response) => void take(request, response));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    messages,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

/** Verifies a message as its receiver does, with the official SDK. */
async function unwrap({ headers, body }: Receiver['messages'][number], secret: string) {
  const { webhooks } = new OpenAI({ apiKey: 'none', webhookSecret: secret });
  return webhooks.unwrap(body, headers);
}

async function post(url: string, body: object): Promise<Record<string, unknown>> {
  const headers = { 'content-type': 'application/json' };
  const answer = await fetch(url, { method: 'POST', headers, body: JSON.stringify(body) });
  return (await answer.json()) as Record<string, unknown>; // answers of this API are objects
}

/** A batch that is cancelled at once; returns its id. */
async function cancelledBatch(url: string, webhook?: string): Promise<string> {
  const batch = await post(`${url}/v1/batches`, {
    input_file_id: await upload(url, makeInput(1).text),
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    ...(webhook === undefined ? {} : { aibrix: { webhook: { url: webhook } } }),
  });
  const { status } = await openaiClient(url).batches.cancel(String(batch['id']));
  expect(status).toBe('cancelled');
  return String(batch['id']);
}

test('a batch tells its own webhook and a registered one that it is completed', async () => {
  await using redis = await startRedis();
  await using folder = await makeFolder();
  await using own = await startReceiver();
  await using registered = await startReceiver();
  await using sluice = await startSluice({
    dataDir: folder.path,
    redisUrl: redis.url,
    engines: [engine.url],
    env: LOCAL,
  });
  const { secret } = await post(`${sluice.url}/api/v1/webhooks`, { url: registered.url });
  const job = await post(`${sluice.url}/api/v1/jobs`, {
    input_dataset: await upload(sluice.url, makeInput(20).text),
    endpoint: '/v1/chat/completions',
    webhook: { url: own.url },
  });
  await until(() => own.messages.length === 1 && registered.messages.length === 1, {
    timeoutMs: 30_000,
    what: 'two messages',
  });
  const batch = await untilFinal(sluice.url, String(job['id']).replace('job_', 'batch_'));
  for (const [{ messages }, key] of [
    [own, SECRET],
    [registered, String(secret)],
  ] as const) {
    const [message] = messages;
    if (message === undefined) throw new Error('no message');
    expect(await unwrap(message, key)).toMatchObject({ type: 'batch.completed', data: batch });
  }
  expect(batch.request_counts).toEqual({ total: 20, completed: 20, failed: 0 });
});

test('a sweeper that is killed before it told anybody, and before it was retried: nothing is lost', async () => {
  await using redis = await startRedis();
  await using folder = await makeFolder();
  await using receiver = await startReceiver(500, 200);
  const shared = { dataDir: folder.path, redisUrl: redis.url, engines: [NO_ENGINE], env: LOCAL };
  await using api = await startSluice({ ...shared, roles: ['api'] });
  const batchId = await cancelledBatch(api.url, receiver.url);
  const jobId = batchId.replace('batch_', 'job_');

  // As a crash between the last move and all that follows leaves it.
  const client = new Redis(redis.url);
  const { telling, active, webhooks } = globalKeys('sluice');
  expect(await client.zrange(telling, '0', '-1')).toEqual([jobId]);
  await client.zrem(telling, jobId);
  await client.zadd(active, Date.now(), jobId);
  expect(receiver.messages).toEqual([]);

  {
    await using sweeper = await startSluice({ ...shared, roles: ['sweeper'] });
    await until(() => receiver.messages.length === 1, {
      what: 'the first attempt',
      timeoutMs: 60_000,
    });
    await sweeper.kill();
  }
  // The lease of the dead is over after ten seconds: as if that were now.
  expect(await client.del(`${webhooks}${WEBHOOK_PARTS.LEASE}`)).toBe(1);
  client.disconnect();
  await using _sweeper = await startSluice({ ...shared, roles: ['sweeper'] });
  // The next attempt is due after five seconds.
  await until(() => receiver.messages.length === 2, { timeoutMs: 60_000, what: 'the second' });
  const [first, second] = receiver.messages;
  if (first === undefined || second === undefined) throw new Error('no message');
  expect(second.headers['webhook-id']).toBe(first.headers['webhook-id']);
  expect(await unwrap(second, SECRET)).toMatchObject({
    type: 'batch.cancelled',
    data: { id: batchId, status: 'cancelled' },
  });
});

test('a target that never answers keeps no process from stopping, and gets its event after the restart', async () => {
  await using folder = await makeFolder();
  await using receiver = await startReceiver(null, 200);
  const roles = ['api', 'sweeper'];
  const options = { dataDir: folder.path, engines: [NO_ENGINE], env: LOCAL, roles };
  await using sluice = await startSluice(options);
  await cancelledBatch(sluice.url, receiver.url);
  await until(() => receiver.messages.length === 1, { what: 'an attempt', timeoutMs: 60_000 });
  const end = await sluice.stop();
  expect(end).toMatchObject({ code: 0 });
  // The attempt alone would have its ten seconds.
  expect(end.ms, 'ms from SIGTERM to the end').toBeLessThan(9_000);

  // Its Redis was its own, and ended with it.
  await folder.untilUnused();
  await using _again = await startSluice(options);
  await until(() => receiver.messages.length === 2, {
    what: 'another attempt',
    timeoutMs: 60_000,
  });
  const [first, second] = receiver.messages;
  expect(second?.headers['webhook-id']).toBe(first?.headers['webhook-id']);
  expect(second?.body).toBe(first?.body);
});

test('WEBHOOK_ALLOW_PRIVATE: without it nothing is sent to this machine, by whatever name', async () => {
  await using redis = await startRedis();
  await using folder = await makeFolder();
  await using receiver = await startReceiver();
  const shared = { dataDir: folder.path, redisUrl: redis.url, engines: [NO_ENGINE] };
  await using api = await startSluice({ ...shared, roles: ['api'], env: LOCAL });
  // This process would not have taken such a target, and does not send to one that another took.
  const env = { WEBHOOK_SECRET: SECRET };
  await using sweeper = await startSluice({ ...shared, roles: ['sweeper'], env });
  const named = receiver.url.replace('127.0.0.1', 'localhost');
  for (const url of [receiver.url, named]) {
    await cancelledBatch(api.url, url);
    await until(
      () =>
        sweeper
          .logs()
          .some(
            ({ msg, host, error }) =>
              msg === 'a webhook was not taken' &&
              host === new URL(url).hostname &&
              String(error).includes('private network'),
          ),
      { timeoutMs: 60_000 },
    );
  }
  expect(receiver.messages).toEqual([]);
});

test('WEBHOOK_GIVE_UP: with 0s there is one attempt. WEBHOOK_SECRET: a job needs it', async () => {
  await using redis = await startRedis();
  await using folder = await makeFolder();
  await using receiver = await startReceiver(500);
  await using sluice = await startSluice({
    dataDir: folder.path,
    redisUrl: redis.url,
    engines: [engine.url],
    env: { WEBHOOK_GIVE_UP: '0s', WEBHOOK_ALLOW_PRIVATE: 'true' },
  });
  const { id } = await post(`${sluice.url}/api/v1/webhooks`, { url: receiver.url });
  await untilFinal(sluice.url, await submit(sluice.url, makeInput(1)));
  const [only] = await until(
    async () => {
      const answer = await fetch(`${sluice.url}/api/v1/webhooks/${String(id)}/deliveries`);
      const { deliveries } = (await answer.json()) as { deliveries: object[] };
      return deliveries.length > 0 && deliveries;
    },
    { timeoutMs: 60_000 },
  );
  expect(only).toMatchObject({ status: 'failed', code: 500, attempt: 1, next_at: null });
  const refused = await post(`${sluice.url}/api/v1/jobs`, {
    input_dataset: await upload(sluice.url, makeInput(1).text),
    endpoint: '/v1/chat/completions',
    webhook: { url: receiver.url },
  });
  expect(refused).toMatchObject({ error: { code: 'webhook_not_configured' } });
  expect(receiver.messages).toHaveLength(1);
});
