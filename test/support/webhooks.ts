import { createHmac, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import * as v from 'valibot';
import { expect } from 'vitest';
import { createCourier } from '../../processors/webhooks.ts';
import type { Courier, CourierDeps } from '../../processors/webhooks.ts';
import { batchView } from '../../src/api/views.ts';
import { webhookKey } from '../../src/domain/webhook.ts';
import type { WebhookEvent } from '../../src/domain/webhook.ts';
import { createWebhookSender } from '../../src/main/webhook-sender.ts';
import { postJson } from './api.ts';
import type { TestApi } from './api.ts';

export const JOB_SECRET = `whsec_${Buffer.from('the secret of this server').toString('base64')}`;

export const eventSchema = v.strictObject({
  id: v.pipe(v.string(), v.regex(/^evt_[A-Za-z0-9]{24}$/)),
  object: v.literal('event'),
  type: v.string(),
  created_at: v.number(),
  data: v.looseObject({ id: v.string() }),
});

export const endpointSchema = v.strictObject({
  id: v.pipe(v.string(), v.regex(/^we_[A-Za-z0-9]{24}$/)),
  object: v.literal('webhook'),
  url: v.string(),
  events: v.array(v.string()),
  status: v.picklist(['active', 'disabled']),
  disabled_reason: v.string(),
  created_at: v.number(),
});
const secretSchema = v.pipe(v.string(), v.regex(/^whsec_[A-Za-z0-9+/]{43}=$/));

const deliveriesSchema = v.strictObject({
  deliveries: v.array(
    v.strictObject({
      event_id: v.string(),
      type: v.string(),
      attempt: v.number(),
      status: v.picklist(['delivered', 'retrying', 'failed']),
      code: v.nullable(v.number()),
      duration_ms: v.number(),
      error: v.string(),
      response: v.string(),
      at: v.number(),
      next_at: v.nullable(v.number()),
    }),
  ),
});

export interface Message {
  id: string;
  timestamp: number;
  signature: string;
  body: string;
  event: v.InferOutput<typeof eventSchema>;
}

export interface Receiver extends AsyncDisposable {
  url: string;
  messages: Message[];
  /** Most requests that were open at once. */
  most: number;
}

/** A real server that keeps what it gets; `answer` says with which code, null: never. */
export async function startReceiver(
  answer: (count: number) => number | null = () => 200,
): Promise<Receiver> {
  let open = 0;
  const receiver: Receiver = {
    url: '',
    messages: [],
    most: 0,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
  async function take(request: IncomingMessage, response: ServerResponse): Promise<void> {
    open += 1;
    receiver.most = Math.max(receiver.most, open);
    response.once('close', () => (open -= 1));
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = Buffer.concat(chunks).toString();
    const event = v.parse(eventSchema, JSON.parse(body));
    const { headers } = request;
    receiver.messages.push({
      id: String(headers['webhook-id']),
      timestamp: Number(headers['webhook-timestamp']),
      signature: String(headers['webhook-signature']),
      body,
      event,
    });
    const code = answer(receiver.messages.length);
    if (code !== null) response.writeHead(code, { location: receiver.url }).end(`code ${code}`);
  }
  const server = createServer((request, response) => void take(request, response));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  receiver.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook`;
  return receiver;
}

export function isSigned({ id, timestamp, signature, body }: Message, secret: string): boolean {
  const key = Buffer.from(webhookKey(secret) ?? '', 'base64');
  const digest = createHmac('sha256', key).update(`${id}.${timestamp}.${body}`).digest('base64');
  return signature === `v1,${digest}` && Math.abs(Date.now() / 1_000 - timestamp) < 10;
}

export interface RunningCourier extends AsyncDisposable {
  close(): Promise<void>;
}

/** A courier with short waits that goes its rounds only when it is told to. */
export function makeCourier(store: CourierDeps['store'], own: Partial<CourierDeps> = {}): Courier {
  return createCourier(randomUUID(), {
    store,
    send: createWebhookSender({ allowPrivate: true }),
    view: batchView,
    jobSecret: JOB_SECRET,
    giveUpMs: 60_000,
    waits: [30],
    tellAgainMs: 30,
    now: () => Date.now(),
    random: () => 0.5,
    log: { debug() {}, info() {}, warn() {}, error() {} },
    ...own,
  });
}

/** What the sweeper's process runs, with short waits. */
export function startCourier(api: TestApi, own: Partial<CourierDeps> = {}): RunningCourier {
  let stopped = false;
  const courier = makeCourier(api.store, own);
  async function run(): Promise<void> {
    while (!stopped) {
      await courier.round().catch(() => false); // as the sweeper goes on after a round that failed
      await sleep(10);
    }
  }
  const running = run();
  async function close(): Promise<void> {
    if (stopped) return;
    stopped = true;
    await Promise.all([running, courier.close()]);
  }
  return { close, [Symbol.asyncDispose]: close };
}

export async function register(
  api: TestApi,
  url: string,
  events?: WebhookEvent[],
): Promise<{ id: string; secret: string }> {
  const answer = await postJson(api, '/api/v1/webhooks', { url, ...(events ? { events } : {}) });
  expect(answer.status).toBe(200);
  const { secret, ...endpoint } = v.parse(v.looseObject({ secret: secretSchema }), answer.body);
  return { id: v.parse(endpointSchema, endpoint).id, secret };
}

export async function get(api: TestApi, path: string): Promise<{ status: number; body: unknown }> {
  const response = await fetch(`${api.url}${path}`);
  return { status: response.status, body: await response.json() };
}

export async function deliveries(api: TestApi, path: string) {
  const { body } = await get(api, `${path}/deliveries`);
  return v.parse(deliveriesSchema, body).deliveries;
}
