import { randomBytes } from 'node:crypto';
import * as v from 'valibot';
import { invalidInput, notFound } from '../../domain/errors.ts';
import type { SluiceError } from '../../domain/errors.ts';
import type { JobRecord } from '../../domain/job.ts';
import { TEST_EVENT, WEBHOOK_EVENTS } from '../../domain/webhook.ts';
import type { WebhookAttempt, WebhookEndpoint } from '../../domain/webhook.ts';
import type { Webhooks } from '../../store/webhooks.ts';
import { exactObject, parse, readJson } from '../body.ts';
import { jobNotFound } from '../find-job.ts';
import { derivedText, isJobId, randomText } from '../ids.ts';
import { pathId } from '../routes.ts';
import type { ApiContext, Route } from '../routes.ts';
import { unixSeconds } from '../views.ts';
import { requireReachable, webhookUrlSchema } from '../webhook-target.ts';
import type { WebhookRules } from '../webhook-target.ts';
import { snakeKeys } from './snake-keys.ts';

export interface WebhooksDeps {
  store: {
    jobs: { get(id: string): Promise<JobRecord | null> };
    webhooks: Pick<Webhooks, 'register' | 'get' | 'list' | 'remove' | 'attempts' | 'add'>;
  };
  webhooks: WebhookRules;
}

/** Endpoints that are told how batches end, and what became of telling them. */
export function webhookRoutes(deps: WebhooksDeps): Route[] {
  return [
    { path: '/api/v1/webhooks', get: (c) => list(c, deps), post: (c) => create(c, deps) },
    {
      path: '/api/v1/webhooks/:id',
      async get(c) {
        return c.json(webhookView(await findWebhook(deps, pathId(c))));
      },
      delete: (c) => remove(c, deps),
    },
    { path: '/api/v1/webhooks/:id/test', post: (c) => test(c, deps) },
    {
      path: '/api/v1/webhooks/:id/deliveries',
      async get(c) {
        const { id } = await findWebhook(deps, pathId(c));
        return c.json(deliveriesView(await deps.store.webhooks.attempts(id)));
      },
    },
    { path: '/api/v1/jobs/:id/deliveries', get: (c) => ofJob(c, deps) },
  ];
}

const EVENTS_RULE = `a list of one or more of ${WEBHOOK_EVENTS.join(', ')}`;

export const createSchema = exactObject({
  url: webhookUrlSchema,
  events: v.nullish(
    v.pipe(
      v.array(v.picklist(WEBHOOK_EVENTS, `one of ${WEBHOOK_EVENTS.join(', ')}`), EVENTS_RULE),
      v.minLength(1, EVENTS_RULE),
    ),
    [...WEBHOOK_EVENTS],
  ),
});

/** Of the lengths that Standard Webhooks allows, one that no computer guesses. */
const KEY_BYTES = 32;

async function create(c: ApiContext, deps: WebhooksDeps): Promise<Response> {
  const { url, events } = parse(createSchema, snakeKeys(await readJson(c.env.incoming), []));
  requireReachable(deps.webhooks, url, 'url');
  const id = `we_${freshText(c, 'webhook')}`;
  const wish = { url, events: [...new Set(events)] };
  const isThere = await deps.store.webhooks.register({
    id,
    ...wish,
    secret: `whsec_${randomBytes(KEY_BYTES).toString('base64')}`,
  });
  if (!isThere) {
    throw invalidInput(
      'too_many_webhooks',
      'There are 100 webhooks already: delete one with DELETE /api/v1/webhooks/{id} first.',
    );
  }
  // The same request may have registered it before, and died before its answer was kept.
  const made = await findWebhook(deps, id);
  if (made.url !== url || made.events.join() !== wish.events.join()) throw keyReused();
  return c.json({ ...webhookView(made), secret: made.secret });
}

/** The end of a new id. Under one key it is always the same, but another one for each thing that is made. */
function freshText(c: ApiContext, what: string): string {
  const { creationKey } = c.var;
  return creationKey === undefined ? randomText() : derivedText(`${creationKey} ${what}`);
}

function keyReused(): SluiceError {
  return invalidInput(
    'idempotency_key_reused',
    'This Idempotency-Key was used before with another request body: send a new key with a new request.',
    { param: 'Idempotency-Key' },
  );
}

async function list(c: ApiContext, deps: WebhooksDeps): Promise<Response> {
  const webhooks = await deps.store.webhooks.list();
  return c.json({ webhooks: webhooks.map(webhookView) });
}

async function remove(c: ApiContext, deps: WebhooksDeps): Promise<Response> {
  const id = pathId(c);
  // Without reading it, so that a damaged one can be deleted, too.
  if (!isWebhookId(id) || !(await deps.store.webhooks.remove(id))) throw webhookNotFound(id);
  return c.json({ id, object: 'webhook', deleted: true });
}

/** Goes the way that every event goes, so that it shows what the others will meet; it is tried once. */
async function test(c: ApiContext, deps: WebhooksDeps): Promise<Response> {
  const { id: target, url, disabled } = await findWebhook(deps, pathId(c));
  if (disabled !== '') {
    throw invalidInput(
      'webhook_disabled',
      `Webhook '${target}' is disabled: ${disabled} Delete it and create it anew.`,
      { param: 'id' },
    );
  }
  const event = `evt_${freshText(c, 'test')}`;
  const at = unixSeconds(Date.now());
  const sent = {
    id: event,
    object: 'event',
    type: TEST_EVENT,
    created_at: at,
    data: { id: target },
  };
  const body = JSON.stringify(sent);
  await deps.store.webhooks.add({
    id: `${event}.${target}`,
    event,
    type: TEST_EVENT,
    target,
    url,
    body,
  });
  return c.json(sent);
}

/** A job's own webhook, which was named when it was created. */
async function ofJob(c: ApiContext, deps: WebhooksDeps): Promise<Response> {
  const id = pathId(c);
  const job = isJobId(id) ? await deps.store.jobs.get(id) : null;
  if (job === null) throw jobNotFound(id);
  return c.json(deliveriesView(await deps.store.webhooks.attempts(id)));
}

async function findWebhook(deps: WebhooksDeps, id: string): Promise<WebhookEndpoint> {
  const found = isWebhookId(id) ? await deps.store.webhooks.get(id) : null;
  if (found === null) throw webhookNotFound(id);
  return found;
}

/** Only such ids become part of a key in the store. */
function isWebhookId(text: string): boolean {
  return /^we_[A-Za-z0-9]{1,100}$/.test(text);
}

function webhookNotFound(id: string): SluiceError {
  const message = `There is no webhook '${id.slice(0, 100)}': GET /api/v1/webhooks lists all.`;
  return notFound('webhook_not_found', message, { param: 'id' });
}

/** Without the secret, which is shown once, to whoever creates it. */
export function webhookView({ id, url, events, disabled, createdAt }: WebhookEndpoint) {
  return {
    id,
    object: 'webhook',
    url,
    events,
    status: disabled === '' ? 'active' : 'disabled',
    disabled_reason: disabled,
    created_at: unixSeconds(createdAt),
  };
}

export function deliveriesView(attempts: readonly WebhookAttempt[]) {
  return {
    deliveries: attempts.map((each) => ({
      event_id: each.event,
      type: each.type,
      attempt: each.attempt,
      status: each.status,
      code: each.code,
      duration_ms: each.durationMs,
      error: each.error,
      response: each.response,
      at: unixSeconds(each.at),
      next_at: each.nextAt === null ? null : unixSeconds(each.nextAt),
    })),
  };
}
