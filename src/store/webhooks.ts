import * as v from 'valibot';
import { WEBHOOK_EVENTS } from '../domain/webhook.ts';
import type {
  WebhookAttempt,
  WebhookDelivery,
  WebhookEndpoint,
  WebhookResult,
} from '../domain/webhook.ts';
import { recordKey, WEBHOOK_PARTS } from './keys.ts';
import { count, integer, jsonText, parseRecord } from './parse.ts';
import type { Fields } from './parse.ts';
import { orReport } from './records.ts';
import type { Context } from './records.ts';
import { newOp } from './scripts.ts';

/** Each event is told to each of them, so their number is bounded. */
const MOST_ENDPOINTS = 100;
const ATTEMPTS_KEPT = 50;
/** What is over is kept so long for whoever looks for a reason. */
const KEPT_SECONDS = 7 * 86_400;

export type NewEndpoint = Omit<WebhookEndpoint, 'disabled' | 'createdAt'>;
export type NewDelivery = Omit<WebhookDelivery, 'attempts' | 'ageMs'>;

/** Targets of events, events on their way to them, and what became of each attempt. */
export interface Webhooks {
  /** Registers an endpoint; false when there are 100 already. */
  register(endpoint: NewEndpoint): Promise<boolean>;
  get(id: string): Promise<WebhookEndpoint | null>;
  /** Oldest first; damaged ones are left out and reported. */
  list(): Promise<WebhookEndpoint[]>;
  /** Forgets an endpoint and its attempts; what is on its way to it is dropped when it is due. */
  remove(id: string): Promise<void>;
  /** Keeps an endpoint, but sends nothing to it any more. */
  disable(id: string, reason: string): Promise<void>;
  /** The last 50 attempts at an endpoint, or at a job's own webhook, newest first. */
  attempts(target: string): Promise<WebhookAttempt[]>;

  /** Jobs that are over and whose end may not be recorded yet, longest over first. */
  untold(limit: number): Promise<string[]>;
  isTold(jobId: string): Promise<boolean>;
  /** To be called once the end is recorded for every target. May be repeated. */
  told(jobId: string): Promise<void>;

  /** Records an event for one target, due at once. The id decides: a repeat changes nothing. */
  add(delivery: NewDelivery): Promise<void>;
  /** What is due, one delivery a host. */
  due(limit: number): Promise<{ host: string; id: string }[]>;
  /** A damaged record is `store.damaged_record` (Permanent). */
  delivery(id: string): Promise<WebhookDelivery | null>;
  /** Notes an attempt; `againInMs` null: there is none after it. */
  note(
    delivery: Pick<WebhookDelivery, 'id' | 'target'>,
    host: string,
    result: WebhookResult,
    againInMs: number | null,
  ): Promise<void>;
  /** Takes a delivery out without an attempt: its target is gone. */
  drop(id: string, host: string): Promise<void>;

  /** The lease under which one process at a time sends: as the sweeper's. */
  lease(holder: string, ms: number): Promise<boolean>;
  yield(holder: string): Promise<void>;
}

export function createWebhooks(context: Context): Webhooks {
  const { scripts, keys } = context;
  const leaseKey = `${keys.webhooks}${WEBHOOK_PARTS.LEASE}`;
  return {
    ...createEndpoints(context),
    ...createTelling(context),
    ...createDeliveries(context),
    lease: async (holder, ms) => (await scripts.run('lease', leaseKey, holder, ms)) === 1,
    async yield(holder) {
      await scripts.run('yield', leaseKey, holder);
    },
  };
}

function createEndpoints(
  context: Context,
): Pick<Webhooks, 'register' | 'get' | 'list' | 'remove' | 'disable' | 'attempts'> {
  const { redis, scripts, keys } = context;
  const base = keys.webhooks;
  const index = `${base}${WEBHOOK_PARTS.ENDPOINTS}`;
  function endpointKey(id: string): string {
    return `${base}${WEBHOOK_PARTS.ENDPOINT}${id}`;
  }
  function attemptsKey(target: string): string {
    return `${base}${WEBHOOK_PARTS.ATTEMPTS}${target}`;
  }
  async function get(id: string): Promise<WebhookEndpoint | null> {
    const fields = await redis.hgetall(endpointKey(id));
    return Object.keys(fields).length === 0 ? null : parseEndpoint(id, fields);
  }
  return {
    async register({ id, ...endpoint }) {
      const fields = { ...endpoint, events: JSON.stringify(endpoint.events) };
      const pairs = Object.entries(fields).flat();
      return (await scripts.run('webhook-register', base, id, MOST_ENDPOINTS, ...pairs)) === 1;
    },
    get,
    async list() {
      const ids = await redis.zrange(index, '0', '-1');
      const all = await Promise.all(ids.map((id) => redis.hgetall(endpointKey(id))));
      const found = ids.map((id, i) => {
        const fields = all[i] ?? {};
        if (Object.keys(fields).length === 0) return null;
        return orReport(context, () => parseEndpoint(id, fields));
      });
      return found.filter((endpoint) => endpoint !== null);
    },
    async remove(id) {
      await redis.del(endpointKey(id), attemptsKey(id));
      await redis.zrem(index, id);
    },
    async disable(id, reason) {
      await scripts.run('webhook-disable', base, id, reason);
    },
    async attempts(target) {
      const lines = await redis.lrange(attemptsKey(target), 0, -1);
      const parsed = lines.map((line) => orReport(context, () => parseAttempt(target, line)));
      return parsed.filter((attempt) => attempt !== null);
    },
  };
}

function createTelling({
  redis,
  scripts,
  keys,
}: Context): Pick<Webhooks, 'untold' | 'isTold' | 'told'> {
  return {
    untold: (limit) => redis.zrange(keys.telling, '0', String(limit - 1)),
    isTold: async (jobId) => (await redis.hexists(recordKey(jobId), 'told_at')) === 1,
    async told(jobId) {
      await scripts.run('told', recordKey(jobId));
      await redis.zrem(keys.telling, jobId);
    },
  };
}

function createDeliveries(
  context: Context,
): Pick<Webhooks, 'add' | 'due' | 'delivery' | 'note' | 'drop'> {
  const { redis, scripts, keys } = context;
  const base = keys.webhooks;
  async function settle(
    { id, target }: Pick<WebhookDelivery, 'id' | 'target'>,
    host: string,
    attempt: string,
    again: number | '',
  ): Promise<void> {
    const kept = [ATTEMPTS_KEPT, KEPT_SECONDS];
    await scripts.run('webhook-attempt', base, newOp(), id, host, target, attempt, again, ...kept);
  }
  return {
    async add({ id, ...delivery }) {
      const { host } = new URL(delivery.url);
      await scripts.run('webhook-add', base, id, host, ...Object.entries(delivery).flat());
    },
    async due(limit) {
      const reply = v.parse(v.array(v.string()), await scripts.run('webhook-due', base, limit));
      const pairs = reply.length / 2;
      return Array.from({ length: pairs }, (_, i) => ({
        host: reply[2 * i] ?? '',
        id: reply[2 * i + 1] ?? '',
      }));
    },
    async delivery(id) {
      const fields = await redis.hgetall(`${base}${WEBHOOK_PARTS.DELIVERY}${id}`);
      if (Object.keys(fields).length === 0) return null;
      return parseDelivery(id, fields, await redisTime(context));
    },
    note: (delivery, host, result, againInMs) =>
      settle(delivery, host, JSON.stringify(result), againInMs ?? ''),
    drop: (id, host) => settle({ id, target: '' }, host, '', ''),
  };
}

/** What a record's times are compared with, ms. Not in a script: whether a wait is some ms longer matters to nobody. */
async function redisTime({ redis }: Context): Promise<number> {
  const [seconds, micros] = await redis.time();
  return Number(seconds) * 1_000 + Math.floor(Number(micros) / 1_000);
}

const endpointFields = v.object({
  url: v.string(),
  events: v.pipe(jsonText, v.array(v.picklist(WEBHOOK_EVENTS))),
  secret: v.string(),
  disabled: v.optional(v.string(), ''),
  created_at: integer,
});

function parseEndpoint(id: string, fields: Fields): WebhookEndpoint {
  const { created_at: createdAt, ...endpoint } = parseRecord(id, endpointFields, fields);
  return { id, ...endpoint, createdAt };
}

const deliveryFields = v.object({
  event: v.string(),
  type: v.string(),
  target: v.string(),
  url: v.string(),
  body: v.optional(v.string(), ''),
  attempts: count,
  created_at: integer,
});

function parseDelivery(id: string, fields: Fields, now: number): WebhookDelivery {
  const { created_at: at, ...delivery } = parseRecord(id, deliveryFields, fields);
  return { id, ...delivery, ageMs: Math.max(0, now - at) };
}

const attemptFields = v.object({
  at: integer,
  attempt: integer,
  nextAt: integer,
  result: v.pipe(
    jsonText,
    v.object({
      event: v.string(),
      type: v.string(),
      status: v.picklist(['delivered', 'retrying', 'failed']),
      code: v.nullable(v.number()),
      durationMs: v.number(),
      error: v.string(),
      response: v.string(),
    }),
  ),
});

function parseAttempt(target: string, line: string): WebhookAttempt {
  const [at, attempt, nextAt, ...rest] = line.split(' ');
  const fields = { at, attempt, nextAt, result: rest.join(' ') };
  const { result, ...times } = parseRecord(`attempts of ${target}`, attemptFields, fields);
  return { ...result, ...times, nextAt: times.nextAt === 0 ? null : times.nextAt };
}
