import { createHmac } from 'node:crypto';
import { describeError, permanent, SluiceError } from '../src/domain/errors.ts';
import { isFinal } from '../src/domain/job.ts';
import type { JobRecord } from '../src/domain/job.ts';
import {
  eventIdOf,
  nextAttemptMs,
  RETRY_AFTER_MS,
  signedContent,
  TEST_EVENT,
  webhookEventOf,
  webhookKey,
} from '../src/domain/webhook.ts';
import type { WebhookDelivery, WebhookEndpoint, WebhookResult } from '../src/domain/webhook.ts';
import type { Store } from '../src/store/store.ts';
import type { DueDelivery } from '../src/store/webhooks.ts';
import type { Log } from './deps.ts';

/** What came back from a target: `code` is null where nothing did, and then `error` says why. */
export interface WebhookAnswer {
  code: number | null;
  error: string;
  response: string;
  ms: number;
  /** What the target asked to be left alone for, ms. */
  retryAfterMs: number | null;
}

export interface CourierDeps {
  store: { jobs: Pick<Store['jobs'], 'get'>; webhooks: Store['webhooks'] };
  /** Posts a body; rejects only when `signal` aborts. */
  send(
    url: string,
    headers: Record<string, string>,
    body: string,
    signal: AbortSignal,
  ): Promise<WebhookAnswer>;
  /** What an event says of a job. */
  view(job: JobRecord): object;
  /** Signs what goes to a job's own webhook; undefined: this process has none. */
  jobSecret: string | undefined;
  giveUpMs: number;
  /** Waits between attempts, ms. */
  waits?: readonly number[];
  /** Until an end is told again that could not be told, ms. */
  tellAgainMs?: number;
  now(): number;
  random(): number;
  log: Log;
}

/** Tells webhooks how jobs ended; of all processes that do, one at a time. */
export interface Courier {
  /** Records what is to be told and begins to send what is due, without waiting for targets; false without the lease. */
  round(): Promise<boolean>;
  /** Cuts what is being sent, which whoever has the lease next sends again. */
  close(): Promise<void>;
}

/** Renewed by every round. Two that send the same for a moment do no harm: receivers know a message by its id. */
const LEASE_MS = 10_000;
const TOLD_AT_ONCE = 50;
const SENT_AT_ONCE = 32;
/** Of these places so many are kept from deliveries that failed before: dead hosts may be many, and each takes long. */
const KEPT_FOR_FRESH = SENT_AT_ONCE / 4;
/** After this a host with more to be sent gives its place back, to whoever waits longest. */
const TURN_MS = 2_000;
const TELL_AGAIN_MS = 30_000;

interface Place {
  isFresh: boolean;
  sending: Promise<void>;
}

export function createCourier(holder: string, deps: CourierDeps): Courier {
  const { webhooks } = deps.store;
  const stop = new AbortController();
  /** One at a time, so that a dead or slow host costs one place, however much is on its way to however many of its ports. */
  const busy = new Map<string, Place>();
  function hasRoom({ host, isFresh }: DueDelivery): boolean {
    if (busy.has(host) || busy.size >= SENT_AT_ONCE) return false;
    const tried = [...busy.values()].filter((place) => !place.isFresh).length;
    return isFresh || tried < SENT_AT_ONCE - KEPT_FOR_FRESH;
  }
  return {
    async round() {
      if (!(await webhooks.lease(holder, LEASE_MS))) return false;
      await tellEnds(deps);
      // Busy hosts stay among the due ones until their attempt is noted.
      const due = await webhooks.due(SENT_AT_ONCE + busy.size);
      if (stop.signal.aborted) return true;
      for (const delivery of due) {
        if (!hasRoom(delivery)) continue;
        const { host, id, isFresh } = delivery;
        const sending = takeTurn(host, id, stop.signal, deps).finally(() => busy.delete(host));
        busy.set(host, { isFresh, sending });
      }
      return true;
    },
    async close() {
      stop.abort(new Error('the process stops'));
      await Promise.all([...busy.values()].map(({ sending }) => sending));
      await webhooks.yield(holder);
    },
  };
}

/**
 * Records the ends of jobs for all who want to know. A job stays among those to be told until that is done, and what
 * is recorded is named after the job and the target: so a crash between loses nothing and doubles nothing.
 */
async function tellEnds(deps: CourierDeps): Promise<void> {
  const { webhooks } = deps.store;
  const ids = await webhooks.untold(TOLD_AT_ONCE);
  if (ids.length === 0) return;
  const endpoints = await webhooks.list();
  await Promise.all(
    ids.map(async (id) => {
      try {
        await tellEnd(id, endpoints, deps);
      } catch (error) {
        deps.log.error({ jobId: id, err: error }, 'the end of a job could not be told');
        // A record that cannot be read today cannot be read tomorrow. Whatever else it is must not hide other ends.
        if (isHopeless(error)) await webhooks.told(id);
        else await webhooks.putOff(id, deps.tellAgainMs ?? TELL_AGAIN_MS);
      }
    }),
  );
}

async function tellEnd(
  jobId: string,
  endpoints: readonly WebhookEndpoint[],
  { store: { jobs, webhooks }, view }: CourierDeps,
): Promise<void> {
  const job = (await webhooks.isTold(jobId)) ? null : await jobs.get(jobId);
  if (job !== null && isFinal(job.state)) {
    const type = webhookEventOf(job.state);
    const endedAt = job.enteredAt[job.state] ?? job.createdAt;
    const event = eventIdOf(jobId);
    const body = eventBody(event, type, endedAt, view(job));
    const targets = endpoints
      // Whoever registers today is not told of yesterday, which a sweeper that was away still has to tell.
      .filter(({ disabled, events, createdAt }) => {
        return disabled === '' && events.includes(type) && createdAt <= endedAt;
      })
      .map(({ id, url }) => ({ target: id, url }));
    const { webhook } = job.options;
    if (webhook !== null) targets.push({ target: jobId, url: webhook });
    for (const { target, url } of targets) {
      await webhooks.add({ id: `${event}.${target}`, event, type, target, url, body });
    }
  }
  await webhooks.told(jobId);
}

/** An event as OpenAI's webhooks have it, compact. `at` is in ms. */
function eventBody(id: string, type: string, at: number, data: object): string {
  return JSON.stringify({ id, object: 'event', type, created_at: Math.floor(at / 1_000), data });
}

/** Sends what is due at a host, one after the other, until one is not taken, nothing is due or its turn is over. Never rejects. */
async function takeTurn(
  host: string,
  first: string,
  signal: AbortSignal,
  deps: CourierDeps,
): Promise<void> {
  const end = deps.now() + TURN_MS;
  let next: string | null = first;
  while (next !== null) {
    const id: string = next;
    next = await deliver(host, id, signal, deps).catch((error: unknown) =>
      onFailure(host, id, error, deps),
    );
    if (signal.aborted || deps.now() > end) return;
  }
}

/** Returns the id of the host's next delivery, if one is due and the host took this one: a host in trouble is not pressed. */
async function deliver(
  host: string,
  id: string,
  signal: AbortSignal,
  deps: CourierDeps,
): Promise<string | null> {
  const { webhooks } = deps.store;
  const delivery = await webhooks.delivery(id);
  const endpoint =
    delivery === null || isOwn(delivery) ? null : await webhooks.get(delivery.target);
  if (delivery === null || !isWanted(delivery, endpoint)) {
    return webhooks.drop(id, host);
  }
  const secret = endpoint?.secret ?? deps.jobSecret;
  const answer = await send(delivery, secret, signal, deps);
  // Whether it arrived, nobody knows: it is sent again, under the same id.
  if (answer === null) return null;
  const { result, againInMs } = judge(delivery, answer, deps);
  if (answer.code === GONE && endpoint !== null) {
    await webhooks.disable(endpoint.id, 'It answered 410 Gone.');
  }
  const next = await webhooks.note(delivery, host, result, againInMs);
  const { event, target, attempts } = delivery;
  const { status, code, durationMs, error } = result;
  const fields = { event, target, host, attempt: attempts + 1, status, code, durationMs, error };
  if (status !== 'delivered') {
    deps.log.warn(fields, 'a webhook was not taken');
    return null;
  }
  deps.log.info(fields, 'a webhook was sent');
  return next;
}

/** False once an endpoint was deleted or disabled. */
function isWanted(delivery: WebhookDelivery, endpoint: WebhookEndpoint | null): boolean {
  return isOwn(delivery) || endpoint?.disabled === '';
}

/** A job's own webhook, not one that was registered. */
function isOwn({ target }: WebhookDelivery): boolean {
  return target.startsWith('job_');
}

const GONE = 410;
/** Answers whose `Retry-After` speaks of the next attempt: Too Many Requests and Service Unavailable. */
const BUSY = new Set<number | null>([429, 503]);

function judge(
  delivery: WebhookDelivery,
  answer: WebhookAnswer,
  { giveUpMs, random, waits = RETRY_AFTER_MS }: CourierDeps,
): { result: WebhookResult; againInMs: number | null } {
  const { code, error, response, ms, retryAfterMs } = answer;
  const isTaken = code !== null && code >= 200 && code < 300;
  const attempts = delivery.attempts + 1;
  const isLast = isTaken || code === GONE || delivery.type === TEST_EVENT;
  const askedMs = BUSY.has(code) ? (retryAfterMs ?? 0) : 0;
  const againInMs = isLast
    ? null
    : nextAttemptMs({ attempts, ageMs: delivery.ageMs, askedMs }, giveUpMs, random(), waits);
  const missed = againInMs === null ? 'failed' : 'retrying';
  const { event, type } = delivery;
  const status = isTaken ? 'delivered' : missed;
  return {
    result: { event, type, status, code, durationMs: Math.round(ms), error, response },
    againInMs,
  };
}

const NO_ANSWER = { code: null, response: '', ms: 0, retryAfterMs: null } as const;

/** Null when it was cut. The time of a signature is the attempt's, so that receivers may refuse old ones. */
async function send(
  { event, url, body }: WebhookDelivery,
  secret: string | undefined,
  signal: AbortSignal,
  deps: CourierDeps,
): Promise<WebhookAnswer | null> {
  if (secret === undefined) {
    const error = 'WEBHOOK_SECRET is not set in the process that sends webhooks.';
    return { ...NO_ANSWER, error };
  }
  const timestamp = Math.floor(deps.now() / 1_000);
  const headers = {
    'content-type': 'application/json',
    'user-agent': 'Sluice-Webhooks',
    'webhook-id': event,
    'webhook-timestamp': String(timestamp),
    'webhook-signature': signWebhook(secret, event, timestamp, body),
  };
  try {
    return await deps.send(url, headers, body, signal);
  } catch (error) {
    if (signal.aborted) return null;
    return { ...NO_ANSWER, error: describeError(error) };
  }
}

/**
 * Value of `webhook-signature`, as Standard Webhooks says. `timestamp` is in seconds. Throws `webhook.bad_secret`
 * (Permanent) for what is no secret: anybody could sign with an empty key.
 */
export function signWebhook(secret: string, id: string, timestamp: number, body: string): string {
  const key = webhookKey(secret);
  if (key === null) throw permanent('webhook.bad_secret', 'the secret of a webhook is damaged');
  const digest = createHmac('sha256', Buffer.from(key, 'base64')).update(
    signedContent(id, timestamp, body),
  );
  return `v1,${digest.digest('base64')}`;
}

/** What threw is Redis' trouble, which passes, or a damaged record, which does not. Either way the turn is over. */
async function onFailure(
  host: string,
  id: string,
  error: unknown,
  deps: CourierDeps,
): Promise<null> {
  deps.log.error({ delivery: id, err: error }, 'a webhook could not be sent');
  if (!isHopeless(error)) return null;
  await deps.store.webhooks
    .drop(id, host)
    .catch((cause: unknown) => deps.log.error({ delivery: id, err: cause }, 'it is tried again'));
  return null;
}

function isHopeless(error: unknown): boolean {
  return error instanceof SluiceError && error.kind === 'Permanent';
}
