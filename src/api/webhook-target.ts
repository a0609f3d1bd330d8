import * as v from 'valibot';
import { invalidInput } from '../domain/errors.ts';
import { hostOf, isPrivateHost, webhookUrl } from '../domain/webhook.ts';
import { exactObject } from './body.ts';

/** What this server allows of webhooks. */
export interface WebhookRules {
  /** Whether WEBHOOK_SECRET is set, with which the events of jobs' own webhooks are signed. */
  signsJobs: boolean;
  /** Whether targets may lie in private networks. */
  allowPrivate: boolean;
}

const URL_RULE =
  'an absolute http or https URL of at most 2048 characters, without credentials or fragment';

export const webhookUrlSchema = v.pipe(
  v.string(URL_RULE),
  v.transform(webhookUrl),
  v.string(URL_RULE),
);

/** `webhook` of a job that is created: where its end is told. */
export const webhookSchema = v.nullish(exactObject({ url: webhookUrlSchema }));

/**
 * URL of a new job's own webhook, or null where it has none. Refused, with the mend, when this server could not sign
 * or would not send. `param` is the field's name in this interface.
 */
export function jobWebhook(
  { webhooks }: { webhooks: WebhookRules },
  webhook: { url: string } | null | undefined,
  param: string,
): string | null {
  if (!webhook) return null;
  if (!webhooks.signsJobs) {
    throw invalidInput(
      'webhook_not_configured',
      'This server cannot sign the webhook of a job: start it with WEBHOOK_SECRET=whsec_…, or register an endpoint, ' +
        'which gets a secret of its own, with POST /api/v1/webhooks.',
      { param },
    );
  }
  requireReachable(webhooks, webhook.url, `${param}.url`);
  return webhook.url;
}

/** Refuses what is known already to be refused when it is sent: private addresses and names of this machine. */
export function requireReachable(rules: WebhookRules, url: string, param: string): void {
  const host = hostOf(url);
  if (rules.allowPrivate || !isPrivateHost(host)) return;
  throw invalidInput(
    'webhook_private_address',
    `Invalid '${param}': ${host.slice(0, 100)} is an address of a private network, to which this server sends nothing. ` +
      'Use a public one, or start the server with WEBHOOK_ALLOW_PRIVATE=true.',
    { param },
  );
}
