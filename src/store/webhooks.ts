import * as v from 'valibot';
import { hostOf, WEBHOOK_EVENTS, webhookKey } from '../domain/webhook.ts';
import type {
  WebhookAttempt,
  WebhookDelivery,
  WebhookEndpoint,
  WebhookResult,
} from '../domain/webhook.ts';
import { recordKey, WEBHOOK_PARTS } from './keys.ts';
import { count, integer, jsonText, parseRecord, textOrNull } from './parse.ts';
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

export interface DueDelivery {
  /** The place by which deliveries wait for each other: a name or an address, whatever the port. */
  host: string;
  id: string;
  isFresh: boolean;
}

/** Targets of events, events on their way to them, and what became of each attempt. */
export interface Webhooks {
  /** Registers an endpoint; false when there are 100 already. The id decides: a repeat changes nothing. */
  register(endpoint: NewEndpoint): Promise<boolean>;
  get(id: string): Promise<WebhookEndpoint | null>;
  /** Oldest first; damaged ones are left out and reported. */
  list(): Promise<WebhookEndpoint[]>;
  /** Forgets an endpoint, damaged or not, and its attempts; what is on its way to it is dropped when it is due. False when there is none. */
  remove(id: string): Promise<boolean>;
  /** Keeps an endpoint, but sends nothing to it any more. */
  disable(id: string, reason: string): Promise<void>;
  /** The last 50 attempts at an endpoint, or at a job's own webhook, newest first. */
  attempts(target: string): Promise<WebhookAttempt[]>;

  /** Jobs that are over and whose end may not be recorded yet, longest over first. */
  untold(limit: number): Promise<string[]>;
  isTold(jobId: string): Promise<boolean>;
  /** To be called once the end is recorded for every target. May be repeated. */
  told(jobId: string): Promise<void>;
  /** Keeps a job from among the untold for so long: others come first. */
  putOff(jobId: string, ms: number): Promise<void>;

  /** Records an event for one target, due at once. The id decides: a repeat changes nothing. */
  add(delivery: NewDelivery): Promise<void>;
  /** What is due, one delivery a host, at so many hosts and at as many more whose delivery was not tried yet. */
  due(limit: number): Promise<DueDelivery[]>;
  /** Null when it is over. A damaged record is `store.damaged_record` (Permanent). */
  delivery(id: string): Promise<WebhookDelivery | null>;
  /**
   * Notes an attempt; `againInMs` null: there is none after it. A delivery that is over stays over. Returns the id of
   * the host's next one that is due, or null.
   */
  note(
    delivery: Pick<WebhookDelivery, 'id' | 'target'>,
    host: string,
    result: WebhookResult,
    againInMs: number | null,
  ): Promise<string | null>;
  /** Whether the end of a job is still to be told to anybody: recorded or not, neither delivered nor given up. */
  isTelling(jobId: string, event: string): Promise<boolean>;
  /** Forgets what was, or is to be, told of a job: deliveries to endpoints that are registered, and attempts at them. */
  erase(jobId: string, event: string): Promise<void>;
  /** Takes a delivery out without an attempt: it is over, or its target is gone. Returns as `note`. */
  drop(id: string, host: string): Promise<string | null>;

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
      return (await scripts.run('webhook-remove', base, newOp(), id)) === 1;
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

function createTelling(context: Context): Pick<Webhooks, 'untold' | 'isTold' | 'told' | 'putOff'> {
  const { redis, scripts, keys } = context;
  return {
    untold: async (limit) =>
      v.parse(v.array(v.string()), await scripts.run('due', keys.telling, limit)),
    isTold: async (jobId) => (await redis.hexists(recordKey(jobId), 'told_at')) === 1,
    async told(jobId) {
      await scripts.run('told', recordKey(jobId));
      await redis.zrem(keys.telling, jobId);
    },
    async putOff(jobId, ms) {
      await redis.zadd(keys.telling, 'XX', (await redisTime(context)) + ms, jobId);
    },
  };
}

function createDeliveries(
  context: Context,
): Pick<Webhooks, 'add' | 'due' | 'delivery' | 'note' | 'isTelling' | 'erase' | 'drop'> {
  const { redis, scripts, keys } = context;
  const base = keys.webhooks;
  async function noteAttempt(
    { id, target }: Pick<WebhookDelivery, 'id' | 'target'>,
    host: string,
    attempt: string,
    again: number | '',
  ): Promise<string | null> {
    const made = [id, host, target, attempt, again];
    const kept = [ATTEMPTS_KEPT, KEPT_SECONDS];
    const next = await scripts.run('webhook-attempt', base, newOp(), ...made, ...kept);
    return v.parse(textOrNull, next);
  }
  /** All that may be told of a job. */
  async function targetsOf(jobId: string): Promise<string[]> {
    return [jobId, ...(await redis.zrange(`${base}${WEBHOOK_PARTS.ENDPOINTS}`, '0', '-1'))];
  }
  return {
    async add({ id, ...delivery }) {
      const fields = Object.entries(delivery).flat();
      await scripts.run('webhook-add', base, id, placeOf(delivery.url), ...fields);
    },
    async due(limit) {
      const reply = v.parse(v.array(v.string()), await scripts.run('webhook-due', base, limit));
      const due = new Map<string, DueDelivery>();
      for (let i = 0; i < reply.length; i += 3) {
        const [host = '', id = '', fresh] = reply.slice(i, i + 3);
        due.set(host, { host, id, isFresh: fresh === '1' });
      }
      return [...due.values()];
    },
    async delivery(id) {
      const fields = await redis.hgetall(`${base}${WEBHOOK_PARTS.DELIVERY}${id}`);
      // What is over has no body any more.
      if (fields['body'] === undefined) return null;
      return parseDelivery(id, fields, await redisTime(context));
    },
    note: (delivery, host, result, againInMs) =>
      noteAttempt(delivery, host, JSON.stringify(result), againInMs ?? ''),
    async isTelling(jobId, event) {
      const told = await redis.hexists(recordKey(jobId), 'told_at');
      if (told === 0 && (await redis.zscore(keys.telling, jobId)) !== null) return true;
      const records = (await targetsOf(jobId)).map((target) => {
        return redis.hexists(`${base}${WEBHOOK_PARTS.DELIVERY}${event}.${target}`, 'body');
      });
      return (await Promise.all(records)).includes(1);
    },
    async erase(jobId, event) {
      const places = (await targetsOf(jobId)).map(async (target) => {
        const record = `${base}${WEBHOOK_PARTS.DELIVERY}${event}.${target}`;
        const url = await redis.hget(record, 'url');
        return [target, url === null ? '' : placeOf(url)];
      });
      await scripts.run('webhook-erase', base, event, ...(await Promise.all(places)).flat());
    },
    drop: (id, host) => noteAttempt({ id, target: '' }, host, '', ''),
  };
}

/** Ports of one machine share a place, as do a name and the same name with its last dot. */
function placeOf(url: string): string {
  return hostOf(url).replace(/\.$/, '');
}

/** What a record's times are compared with, ms. Not in a script: whether a wait is some ms longer matters to nobody. */
async function redisTime({ redis }: Context): Promise<number> {
  const [seconds, micros] = await redis.time();
  return Number(seconds) * 1_000 + Math.floor(Number(micros) / 1_000);
}

const endpointFields = v.object({
  url: v.string(),
  events: v.pipe(jsonText, v.array(v.picklist(WEBHOOK_EVENTS))),
  secret: v.pipe(
    v.string(),
    v.check((secret) => webhookKey(secret) !== null),
  ),
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
  body: v.string(),
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
