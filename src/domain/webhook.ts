import { isPublicAddress } from './net-guard.ts';
import type { Outcome } from './job.ts';

/** Events as OpenAI names them: one for each way in which a batch ends. */
export const WEBHOOK_EVENTS = [
  'batch.completed',
  'batch.failed',
  'batch.expired',
  'batch.cancelled',
] as const;
export type WebhookEvent = (typeof WEBHOOK_EVENTS)[number];

/** Sent on request only, to see whether an endpoint takes what it gets. */
export const TEST_EVENT = 'webhook.test';

const EVENT_OF = {
  completed: 'batch.completed',
  failed: 'batch.failed',
  expired: 'batch.expired',
  cancelled: 'batch.cancelled',
  resource_failed: 'batch.failed',
  submit_failed: 'batch.failed',
} as const satisfies Record<Outcome, WebhookEvent>;

/** The event that tells how a job ended. */
export function webhookEventOf(outcome: Outcome): WebhookEvent {
  return EVENT_OF[outcome];
}

/** Id of the event that tells of a job's end: what is sent twice is known by it. */
export function eventIdOf(jobId: string): string {
  return `evt_${jobId.slice('job_'.length)}`;
}

/** A registered target of events. */
export interface WebhookEndpoint {
  id: string;
  url: string;
  events: WebhookEvent[];
  /** `whsec_` and the key in base64. */
  secret: string;
  /** Why nothing is sent to it any more; empty while it is active. */
  disabled: string;
  createdAt: number;
}

/** An event on its way to one target. */
export interface WebhookDelivery {
  id: string;
  /** The `webhook-id` of the message: the same in every attempt. */
  event: string;
  type: string;
  /** Id of the endpoint, or of the job whose own webhook it is. */
  target: string;
  url: string;
  body: string;
  /** Attempts so far. */
  attempts: number;
  /** Since it was recorded, ms. */
  ageMs: number;
}

/** What became of one attempt. */
export interface WebhookResult {
  event: string;
  type: string;
  status: 'delivered' | 'retrying' | 'failed';
  /** HTTP status; null where there was no answer. */
  code: number | null;
  durationMs: number;
  /** Why there was no answer; empty where there was one. */
  error: string;
  /** How the answer's body began. */
  response: string;
}

export interface WebhookAttempt extends WebhookResult {
  /** From 1. */
  attempt: number;
  at: number;
  /** When it is tried again; null when it is not. */
  nextAt: number | null;
}

const [SECOND, MINUTE, HOUR] = [1_000, 60_000, 3_600_000] as const;

/** Waits between attempts, ms; the last one is repeated. Long enough that a receiver may be mended meanwhile. */
export const RETRY_AFTER_MS: readonly number[] = [
  5 * SECOND,
  30 * SECOND,
  2 * MINUTE,
  10 * MINUTE,
  HOUR,
  3 * HOUR,
  6 * HOUR,
];

/** By how much a wait varies, so that what failed together does not come again together. */
const JITTER = 0.2;

/**
 * Ms until the next attempt after so many failed ones, or null when it would come later than `giveUpMs` after the
 * event was recorded. `random` is from 0 to 1. `askedMs` is what the target asked for (`Retry-After`): it makes a wait
 * longer, but neither longer than the longest wait nor than there is time.
 */
export function nextAttemptMs(
  {
    attempts,
    ageMs,
    askedMs = 0,
  }: Pick<WebhookDelivery, 'attempts' | 'ageMs'> & { askedMs?: number },
  giveUpMs: number,
  random: number,
  waits: readonly number[] = RETRY_AFTER_MS,
): number | null {
  const wait = waits[Math.min(attempts, waits.length) - 1] ?? 0;
  const ms = Math.round(wait * (1 - JITTER + 2 * JITTER * random));
  if (ageMs + ms > giveUpMs) return null;
  return Math.max(ms, Math.min(askedMs, giveUpMs - ageMs, waits.at(-1) ?? 0));
}

/** What a signature covers, as Standard Webhooks says. `timestamp` is in seconds. */
export function signedContent(id: string, timestamp: number, body: string): string {
  return `${id}.${timestamp}.${body}`;
}

const SECRET = /^whsec_((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)$/;
/** Key lengths that Standard Webhooks allows, bytes. */
const [SHORTEST_KEY, LONGEST_KEY] = [24, 64] as const;

/** Key of a secret in base64, or null for anything that is no secret of a webhook. */
export function webhookKey(secret: string): string | null {
  const key = SECRET.exec(secret)?.[1];
  if (key === undefined) return null;
  const bytes = (key.length / 4) * 3 - (key.length - key.replace(/=+$/, '').length);
  return bytes >= SHORTEST_KEY && bytes <= LONGEST_KEY ? key : null;
}

const LONGEST_URL = 2_048;

/** URL of a webhook in its normal form; null for anything but http(s), and for what has credentials or a fragment. */
export function webhookUrl(text: string): string | null {
  const url = text.length > LONGEST_URL ? null : URL.parse(text);
  if (url === null || !/^https?:$/.test(url.protocol)) return null;
  if (url.username !== '' || url.password !== '' || text.includes('#')) return null;
  return url.href;
}

/** Host of a URL as a resolver takes it: an IPv6 address without its brackets. */
export function hostOf(url: string): string {
  return new URL(url).hostname.replace(/^\[(.*)\]$/, '$1');
}

/** True for a host that leads into this machine or a private network whatever a resolver says. */
export function isPrivateHost(host: string): boolean {
  const name = host.replace(/\.$/, '');
  if (name === 'localhost' || name.endsWith('.localhost')) return true;
  return isPublicAddress(host) === false;
}
