import type { LookupAddress } from 'node:dns';
import type { LookupFunction } from 'node:net';
import { Client } from 'undici';
import type { CourierDeps, WebhookAnswer } from '../../processors/webhooks.ts';
import { describeError, permanent, toError } from '../domain/errors.ts';
import type { SluiceError } from '../domain/errors.ts';
import { isPublicAddress } from '../domain/net-guard.ts';
import { parseRetryAfter } from '../domain/retry.ts';
import { hostOf } from '../domain/webhook.ts';
import { clock } from './clock.ts';
import { boundResolve, resolveName } from './resolve-name.ts';
import type { Resolve } from './resolve-name.ts';

/** What a receiver has for an answer; one that works longer should answer first. */
const ATTEMPT_MS = 10_000;
const MOST_RESPONSE_BYTES = 64 * 1024;
/** Of an answer's body this much is kept for whoever looks for a reason. */
const KEPT_CHARS = 1_000;

type IsPublic = (address: string) => boolean | null;

interface SenderOptions {
  /** Whether targets may lie in this machine's own networks. */
  allowPrivate: boolean;
  resolve?: Resolve;
  /** Which addresses are public; null for what is none. */
  isPublic?: IsPublic;
  timeoutMs?: number;
}

/**
 * Posts to targets that users named. A name is resolved once an attempt, each of its addresses is checked, and the
 * connection goes to these very addresses: a name that leads elsewhere a moment later leads nowhere. Redirects are
 * answers like any other.
 */
export function createWebhookSender(options: SenderOptions): CourierDeps['send'] {
  const { resolve = resolveName, timeoutMs = ATTEMPT_MS } = options;
  const isPublic = options.allowPrivate ? () => true : (options.isPublic ?? isPublicAddress);
  const bounded = boundResolve(resolve);
  return async function send(url, headers, body, signal) {
    const begun = performance.now();
    const ended = AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]);
    const answer = { code: null, error: '', response: '', retryAfterMs: null };
    try {
      // A socket to a literal address asks no lookup. A name is neither public nor private.
      if (isPublic(hostOf(url)) === false) throw refusal();
      // Aborted with the attempt, since a connection is not let go of before its look-up ends.
      const lookup = checkedLookup((name) => bounded(name, ended), isPublic);
      return finish({ ...answer, ...(await post(url, headers, body, ended, lookup)) }, begun);
    } catch (error) {
      signal.throwIfAborted();
      const late = `No answer within ${timeoutMs / 1_000} s.`;
      return finish({ ...answer, error: ended.aborted ? late : describeError(error) }, begun);
    }
  };
}

function finish(answer: Omit<WebhookAnswer, 'ms'>, begun: number): WebhookAnswer {
  return { ...answer, ms: performance.now() - begun };
}

function refusal(): SluiceError {
  return permanent(
    'webhook.private_address',
    'The target leads to a private network, where this server sends nothing unless WEBHOOK_ALLOW_PRIVATE=true.',
  );
}

function checkedLookup(resolve: Resolve, isPublic: IsPublic): LookupFunction {
  async function find(name: string): Promise<[LookupAddress, ...LookupAddress[]]> {
    const [first, ...rest] = await resolve(name);
    if (first === undefined) throw permanent('webhook.no_address', 'The target has no address.');
    const found: [LookupAddress, ...LookupAddress[]] = [first, ...rest];
    // One that is not known to be public refuses the name: which of several a connection takes is a race.
    if (found.some(({ address }) => isPublic(address) !== true)) throw refusal();
    return found;
  }
  async function answer(
    name: string,
    all: boolean | undefined,
    callback: Parameters<LookupFunction>[2],
  ): Promise<void> {
    let found: [LookupAddress, ...LookupAddress[]];
    try {
      found = await find(name);
    } catch (error) {
      callback(toError(error), '');
      return;
    }
    if (all) callback(null, found);
    else callback(null, found[0].address, found[0].family);
  }
  return function lookup(name, { all }, callback) {
    void answer(name, all, callback);
  };
}

async function post(
  url: string,
  headers: Record<string, string>,
  body: string,
  signal: AbortSignal,
  lookup: LookupFunction,
): Promise<Pick<WebhookAnswer, 'code' | 'response' | 'retryAfterMs'>> {
  const { origin, pathname, search } = new URL(url);
  const client = new Client(origin, { connect: { lookup, timeout: ATTEMPT_MS }, allowH2: false });
  try {
    const path = `${pathname}${search}`;
    const answer = await client.request({ method: 'POST', path, headers, body, signal });
    const asked = [answer.headers['retry-after']].flat()[0];
    return {
      code: answer.statusCode,
      response: await readStart(answer.body),
      retryAfterMs: parseRetryAfter(asked, clock.now()),
    };
  } finally {
    await client.destroy();
  }
}

/** How a body begins. Its code has come, so that a body which breaks off changes nothing. */
async function readStart(body: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const chunk of body) {
      chunks.push(chunk);
      bytes += chunk.length;
      if (bytes >= MOST_RESPONSE_BYTES) break;
    }
  } catch {
    // Broken off or out of time: what has come is what there is.
  }
  return Buffer.concat(chunks).toString().slice(0, KEPT_CHARS);
}
