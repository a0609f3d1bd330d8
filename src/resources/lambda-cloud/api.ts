import * as v from 'valibot';
import {
  describeError,
  errorCode,
  invalidInput,
  permanent,
  SluiceError,
  transient,
} from '../../domain/errors.ts';
import { parseRetryAfter } from '../../domain/retry.ts';
import { askOnce } from '../ask-once.ts';

export const DEFAULT_BASE_URL = 'https://cloud.lambda.ai/api/v1';

/** By its own specification Lambda Cloud answers within seconds; a launch that takes longer may have been done. */
const TIMEOUT_MS = 30_000;
const LONGEST_TEXT = 500;

/** What came of a call. */
export type Outcome =
  | { is: 'data'; data: unknown; pageToken: string | null }
  /** `code` is '' where the answer is not in the API's form, as a gateway's is. */
  | { is: 'refusal'; status: number; code: string; text: string; retryAfterMs: number | null }
  /** A success that says nothing that the API would say. */
  | { is: 'nonsense'; text: string }
  /** There was no connection, so that nothing was sent. */
  | { is: 'unsent'; cause: unknown }
  /** It was sent, and there is no whole answer. */
  | { is: 'broken'; cause: unknown };

export interface ApiOptions {
  apiKey: string;
  baseUrl: string;
  timeoutMs?: number;
}

/** Asks once, without waiting for a turn; never rejects. `connectMs`: time for a connection, after which it is `unsent`. */
export type Ask = (
  method: 'GET' | 'POST',
  path: string,
  body?: object,
  connectMs?: number,
) => Promise<Outcome>;

const success = v.object({ data: v.unknown(), page_token: v.nullish(v.string(), null) });
const failure = v.object({
  error: v.object({ code: v.string(), message: v.string(), suggestion: v.nullish(v.string(), '') }),
});

export function createApi({ apiKey, baseUrl, timeoutMs = TIMEOUT_MS }: ApiOptions): Ask {
  // A default user agent is what gateways refuse first.
  const headers = {
    authorization: `Bearer ${apiKey}`,
    accept: 'application/json',
    'user-agent': 'sluice',
  };
  return async (method, path, body, connectMs) => {
    try {
      const answer = await askOnce({
        method,
        url: `${baseUrl}${path}`,
        headers: body === undefined ? headers : { ...headers, 'content-type': 'application/json' },
        body: body === undefined ? null : JSON.stringify(body),
        signal: AbortSignal.timeout(timeoutMs),
        ...(connectMs === undefined ? {} : { connectMs }),
      });
      const retryAfter = [answer.headers['retry-after']].flat()[0];
      return read(answer.status, answer.text, parseRetryAfter(retryAfter, Date.now()));
    } catch (cause) {
      return { is: isUnsent(cause) ? 'unsent' : 'broken', cause };
    }
  };
}

function read(status: number, text: string, retryAfterMs: number | null): Outcome {
  const json = readJson(text);
  if (status >= 200 && status < 300) {
    const parsed = v.safeParse(success, json);
    if (!parsed.success || parsed.output.data === undefined)
      return { is: 'nonsense', text: `status ${status} without data` };
    return { is: 'data', data: parsed.output.data, pageToken: parsed.output.page_token };
  }
  const parsed = v.safeParse(failure, json);
  if (!parsed.success) {
    const kind = text.trimStart().startsWith('<') ? 'a web page' : 'no error of the API';
    return { is: 'refusal', status, code: '', text: `status ${status} with ${kind}`, retryAfterMs };
  }
  const { code, message, suggestion } = parsed.output.error;
  const words = [message, suggestion].filter((part) => part !== '').join(' ');
  return { is: 'refusal', status, code, text: `${shorten(words)} (${code})`, retryAfterMs };
}

/** What is refused may be quoted, and user data holds a private key. */
function shorten(words: string): string {
  return words.replace(/-----BEGIN.*/s, '…').slice(0, LONGEST_TEXT);
}

function readJson(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined; // half an answer, or a gateway's page: no shape fits it
  }
}

const UNSENT = new Set(['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH', 'ENETUNREACH']);
UNSENT.add('UND_ERR_CONNECT_TIMEOUT');

/** Whether it failed before there was a connection; of several addresses, at each. */
function isUnsent(error: unknown): boolean {
  if (error instanceof AggregateError) return error.errors.every(isUnsent);
  return UNSENT.has(errorCode(error));
}

// --- What a refusal means ----------------------------------------------------------------------

/** Codes of Lambda Cloud's API 1.10. It says that messages may change, and are not to be relied on. */
const NO_SUCH_OBJECT = 'global/object-does-not-exist';

export function isNoSuchObject(outcome: Outcome): boolean {
  return outcome.is === 'refusal' && outcome.code === NO_SUCH_OBJECT;
}

/** Refusals of an account's key, whatever was asked. What a gateway says with the same status may pass. */
function accountError(what: string, outcome: Outcome): SluiceError | null {
  if (outcome.is !== 'refusal') return null;
  const { status, code, text } = outcome;
  if (status === 401 || code === 'global/invalid-api-key') {
    const mend = 'Check LAMBDA_CLOUD_API_KEY; keys are made at https://cloud.lambda.ai/api-keys.';
    return permanent('lease.unauthorized', `${what}: ${text}. ${mend}`);
  }
  if (status === 403 && code !== '') return permanent('lease.unauthorized', `${what}: ${text}.`);
  if (status !== 410 && code !== 'global/not-found') return null;
  const mend = `There is no such API here. Check LAMBDA_CLOUD_BASE_URL, by default ${DEFAULT_BASE_URL}.`;
  return permanent('lease.retired_api', `${what}: ${text}. ${mend}`);
}

/** What a call other than a launch failed with: asking again does no harm. */
export function callError(doing: string, outcome: Outcome): SluiceError {
  const what = `Lambda Cloud cannot be asked ${doing}`;
  const account = accountError(what, outcome);
  if (account !== null) return account;
  const { text, details } = said(outcome);
  return transient('lease.unavailable', `${what}: ${text}.`, details);
}

/** By which code a launch was certainly not done, and what that means. */
const LAUNCH_REFUSALS: Record<string, (what: string) => SluiceError> = {
  'instance-operations/launch/insufficient-capacity': (what) =>
    new SluiceError('NoCapacity', 'lease.no_capacity', what),
  'instance-operations/launch/file-system-in-wrong-region': (what) =>
    invalidInput('lease.region', what),
  'global/quota-exceeded': (what) =>
    permanent('lease.quota', `${what} Ask Lambda's support to raise it, or end other instances.`),
  'global/invalid-parameters': (what) => invalidInput('lease.refused', what),
  [NO_SUCH_OBJECT]: (what) => invalidInput('lease.refused', what),
};

/** Statuses by which a request was refused before anything was done with it. */
const REFUSED = new Set([400, 413, 422]);

/** What a launch failed with; `lease.unknown` unless it is certain that there is no machine. */
export function launchError(doing: string, outcome: Outcome): SluiceError {
  const what = `Lambda Cloud cannot launch ${doing}`;
  const account = accountError(what, outcome);
  if (account !== null) return account;
  const { text, details } = said(outcome);
  const message = `${what}: ${text}.`;
  if (outcome.is === 'unsent') return transient('lease.unavailable', message, details);
  if (outcome.is !== 'refusal') return transient('lease.unknown', message, details);
  const { status, code } = outcome;
  if (status === 429) return transient('lease.unavailable', message, details);
  const known = status < 500 ? LAUNCH_REFUSALS[code] : undefined;
  if (known !== undefined) return known(message);
  // `global/unknown` is seen where things are half done (SkyPilot #3410), and `provider/…` comes from further away.
  const isSure = REFUSED.has(status) && code !== '' && !/^global\/unknown|^provider\//.test(code);
  if (isSure) return invalidInput('lease.refused', message);
  return transient('lease.unknown', message, details);
}

function said(outcome: Outcome): { text: string; details: object } {
  switch (outcome.is) {
    case 'refusal': {
      const { text, retryAfterMs } = outcome;
      return { text, details: retryAfterMs === null ? {} : { retryAfterMs } };
    }
    case 'unsent':
    case 'broken':
      return { text: describeError(outcome.cause), details: { cause: outcome.cause } };
    case 'nonsense':
      return { text: outcome.text, details: {} };
    case 'data':
      return { text: 'an answer of another form than its specification has', details: {} };
  }
}
