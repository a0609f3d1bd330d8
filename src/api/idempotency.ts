import { promisify } from 'node:util';
import { setTimeout as sleep } from 'node:timers/promises';
import { gunzip, gzip } from 'node:zlib';
import type { ContentfulStatusCode } from 'hono/utils/http-status';
import * as v from 'valibot';
import { invalidInput, SluiceError } from '../domain/errors.ts';
import { jobIdOf } from '../domain/job.ts';
import type { Idempotency, KeptAnswer } from '../store/idempotency.ts';
import { canonicalBody, readBody } from './body.ts';
import { isStreamed, printBody, watchBody } from './body-print.ts';
import { randomText, sha256 } from './ids.ts';
import type { ApiContext, Handler, Route } from './routes.ts';

export interface IdempotencyDeps {
  store: { idempotency: Idempotency };
  idempotency?: Partial<IdempotencyTimes>;
}

/** All in ms. */
export interface IdempotencyTimes {
  /** How long a request's answer is given again to those that repeat it. */
  keep: number;
  /** How long the key of a request stays taken whose process died. */
  lease: number;
  /** How long a repeat waits for the first one's answer. */
  wait: number;
  /** How long a create is remembered to which an SDK, without a key, may come back. */
  retries: number;
}

const TIMES: IdempotencyTimes = {
  keep: 24 * 3_600_000,
  lease: 10_000,
  wait: 5_000,
  // Ten minutes is also how long OpenAI's SDKs wait for a lost answer: the retry that follows must still be known.
  retries: 11 * 60_000,
};

const gzipped = promisify(gzip);
const gunzipped = promisify(gunzip);
/** Longer answers, compressed, are not kept: Redis holds them all for a day. */
const MAX_KEPT_BYTES = 64 * 1024;
const LOOK_AGAIN_MS = 50;

/** Creates that an SDK sends again by itself, without a key, when it heard no answer. */
const CREATES = new Set(['/v1/batches', '/api/v1/jobs', '/v1/uploads']);

/**
 * Lets each POST take an `Idempotency-Key`, after the IETF's draft-ietf-httpapi-idempotency-key-header: a repeat with
 * equal path and body gets the answer of the first, any other request under that key is refused. Only successes are
 * kept. Refusals and failures give the key back, so that a mended body, or a later try, may come under the same one.
 */
export function withIdempotency(deps: IdempotencyDeps, routes: readonly Route[]): Route[] {
  const times = { ...TIMES, ...deps.idempotency };
  return routes.map((route) => {
    const { post } = route;
    if (post === undefined) return route;
    return { ...route, post: (c) => once(c, { ...deps, times }, route.path, post) };
  });
}

interface Deps extends IdempotencyDeps {
  times: IdempotencyTimes;
}

async function once(c: ApiContext, deps: Deps, route: string, handler: Handler): Promise<Response> {
  const given = c.req.header('idempotency-key');
  if (given === undefined) {
    if (CREATES.has(route)) c.set('creationKey', await seedOf(c, deps));
    return handler(c);
  }
  // Without the caller in it, one could read another's answer by guessing a key.
  const key = sha256(JSON.stringify([caller(c), checkedKey(given)]));
  c.set('creationKey', key);
  const { incoming } = c.env;
  const asked = isStreamed(incoming) ? null : await printJson(c);
  const claimed = await claim(deps, key, printOf(c, asked));
  if ('holder' in claimed) {
    const held = { key, holder: claimed.holder };
    const bodyPrint = asked === null ? watchBody(incoming) : () => Promise.resolve(asked);
    return run(c, deps, held, handler, bodyPrint);
  }
  return replay(c, claimed.found, asked ?? (await printBody(incoming)));
}

function caller(c: ApiContext): string {
  return c.req.header('authorization') ?? '';
}

/** What of a request besides its body tells it from others: method, path and query. */
function place(c: ApiContext): string {
  const { url = '' } = c.env.incoming;
  const end = url.includes('?') ? url.indexOf('?') : url.length;
  const path = url.slice(0, end);
  // One slash at the end makes no other route.
  return `${path.endsWith('/') ? path.slice(0, -1) : path}${url.slice(end)}`;
}

function printOf(c: ApiContext, body: string | null): string {
  return `${sha256(place(c))}:${body ?? ''}`;
}

function checkedKey(key: string): string {
  if (/^[\x20-\x7e]{1,255}$/.test(key)) return key;
  throw invalidInput(
    'invalid_value',
    "Invalid 'Idempotency-Key': it must be 1 to 255 printable ASCII characters, such as a UUID.",
    { param: 'Idempotency-Key' },
  );
}

/** Equal JSON gives an equal print, in whatever order its keys come. What is no JSON the handler will refuse. */
async function printJson(c: ApiContext): Promise<string> {
  return sha256(canonicalBody(await readBody(c.env.incoming)));
}

/**
 * From what the created thing's id is derived where there is no key: at random, or for a request that an SDK marked
 * as a retry, as that of the last equal one. So both make the same, whichever comes first and wherever either breaks
 * off; and two creates that are merely equal make two.
 */
async function seedOf(c: ApiContext, { store, times }: Deps): Promise<string> {
  const print = sha256(JSON.stringify([caller(c), place(c), await printJson(c)]));
  const isRetry = Number(c.req.header('x-stainless-retry-count') ?? 0) > 0;
  return store.idempotency.seed(print, randomText(), isRetry, times.retries);
}

/** Takes the key, or waits for the answer of who has it. Throws when there is none soon, or for another request. */
async function claim({ store, times }: Deps, key: string, print: string) {
  const deadline = performance.now() + times.wait;
  for (;;) {
    const claimed = await store.idempotency.claim(key, print, times.lease);
    if ('holder' in claimed) return claimed;
    refuseOther(claimed.found.print, print);
    if (claimed.found.status !== null) return claimed;
    if (performance.now() > deadline) throw inProgress();
    await sleep(LOOK_AGAIN_MS);
  }
}

/** A body that streams has no print before its end: until then only the places are compared. */
function refuseOther(first: string, second: string): void {
  const [firstPlace, firstBody] = first.split(':');
  const [secondPlace, secondBody] = second.split(':');
  const isSame = firstBody === '' || secondBody === '' || firstBody === secondBody;
  if (firstPlace === secondPlace && isSame) return;
  const what = firstPlace === secondPlace ? 'request body' : 'path';
  throw invalidInput(
    'idempotency_key_reused',
    `This Idempotency-Key was used before with another ${what}. Send a new key with a new request; ` +
      'a key belongs to one request and its repeats.',
    { param: 'Idempotency-Key' },
  );
}

function inProgress(): SluiceError {
  return new SluiceError(
    'Conflict',
    'idempotency_in_progress',
    'The first request under this Idempotency-Key is still running. Send this one again in a second.',
    { param: 'Idempotency-Key', retryAfterMs: 1_000 },
  );
}

interface Held {
  key: string;
  holder: string;
}

async function run(
  c: ApiContext,
  deps: Deps,
  held: Held,
  handler: Handler,
  bodyPrint: () => Promise<string | null>,
): Promise<Response> {
  const { idempotency } = deps.store;
  const renewal = setInterval(() => {
    const renewed = idempotency.renew(held.key, held.holder, deps.times.lease);
    // A key that is lost lets a repeat run beside this request, as after a crash: jobs are derived from the key.
    renewed.catch((err: unknown) => c.var.log.warn({ err }, 'an idempotency key was not renewed'));
  }, deps.times.lease / 3).unref();
  let isKept = false;
  try {
    const response = await handler(c);
    if (!isKeepable(response)) return response;
    const bytes = Buffer.from(await response.arrayBuffer());
    isKept = await keep(c, deps, held, { response, bytes, body: await bodyPrint() });
    return new Response(bytes, { status: response.status, headers: response.headers });
  } finally {
    clearInterval(renewal);
    if (!isKept) await free(c, deps, held);
  }
}

/** All answers of success are small JSON; a stream of events is no answer to be kept. */
function isKeepable(response: Response): boolean {
  const type = response.headers.get('content-type') ?? '';
  return response.ok && /^application\/json\b/i.test(type);
}

/** Whether the key is still held by this answer, or by one that stands for it. */
async function keep(
  c: ApiContext,
  { store, times }: Deps,
  { key, holder }: Held,
  { response, bytes, body }: { response: Response; bytes: Buffer; body: string | null },
): Promise<boolean> {
  if (body === null) return false;
  const zipped = await gzipped(bytes);
  const kept = zipped.length > MAX_KEPT_BYTES ? Buffer.alloc(0) : zipped;
  const answer = { print: printOf(c, body), status: response.status, body: kept };
  try {
    const about = subjectsOf(bytes);
    return await store.idempotency.answer(key, holder, answer, times.keep, about);
  } catch (err) {
    // The request has had its effect, and its sender is to hear of it.
    c.var.log.warn({ err }, 'an answer was not kept under its idempotency key');
    return false;
  }
}

/** Ids of the job or files that an answer describes, with which it goes: it has words of theirs. */
function subjectsOf(bytes: Buffer): string[] {
  const answer: unknown = JSON.parse(bytes.toString());
  const { id, file, input_file_id: input, object } = v.parse(subjectSchema, answer);
  const subjects = [id, file?.id, object === 'batch.validation' ? input : undefined];
  return subjects.filter((each) => each !== undefined).map((each) => jobIdOf(each) ?? each);
}

const anyText = v.fallback(v.optional(v.string()), undefined);
const subjectSchema = v.fallback(
  v.object({
    id: anyText,
    object: anyText,
    input_file_id: anyText,
    file: v.fallback(v.optional(v.object({ id: anyText })), undefined),
  }),
  {},
);

async function free(c: ApiContext, deps: Deps, { key, holder }: Held): Promise<void> {
  try {
    await deps.store.idempotency.free(key, holder);
  } catch (err) {
    // The lease ends by itself; the client is to hear what its own request came to.
    c.var.log.warn({ err }, 'an idempotency key was not given back');
  }
}

async function replay(c: ApiContext, found: KeptAnswer, body: string | null): Promise<Response> {
  // A form that cannot be read is not the one that was answered.
  refuseOther(found.print, printOf(c, body ?? 'unreadable'));
  if (found.body.length === 0) {
    throw invalidInput(
      'idempotency_answer_not_kept',
      `This request was done before, under this Idempotency-Key, with status ${found.status}; its answer was too ` +
        'long to be kept. Read what it made or changed with GET.',
      { param: 'Idempotency-Key' },
    );
  }
  const text = await gunzipped(found.body);
  // It is the status of an answer that had a body.
  const status = (found.status ?? 200) as ContentfulStatusCode;
  return c.body(new Uint8Array(text), status, {
    'Content-Type': 'application/json',
    'Idempotent-Replayed': 'true',
  });
}
