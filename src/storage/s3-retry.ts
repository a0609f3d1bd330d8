import { setTimeout as sleep } from 'node:timers/promises';

export interface RetryOptions {
  /** How often it is tried in all. */
  attempts: number;
  signal?: AbortSignal | undefined;
  /** No try begins later than this after the first, ms. */
  giveUpMs?: number | undefined;
}

/** Enough that a third of all requests may fail and an upload of a thousand parts still ends well. */
export const ATTEMPTS = 10;
const FIRST_MS = 100;
const LONGEST_MS = 10_000;
/** A store that says that it is asked too much is left alone for longer. */
const SLOW_DOWN_MS = 1_000;
/** For so long it is tried again, where the caller does not say otherwise. */
export const GIVE_UP_MS = 60_000;

/** What a store or the way to it answered, as far as an SDK error tells it. */
export interface Failure {
  /** The code of the store (`NoSuchKey`), or of the system (`ECONNRESET`). */
  code: string;
  /** Null where there was no answer. */
  status: number | null;
  message: string;
  /** Where a bucket is, if it is not where it was looked for. */
  region: string | null;
  /** What the store's clock is ahead of ours, ms, if it said so when it refused a signature. */
  clockAheadMs: number | null;
  /** It may have been refused for its date, and requests are signed by the store's clock from now on. */
  isClockMended: boolean;
}

function fieldOf(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null ? Reflect.get(value, name) : undefined;
}

function textOf(value: unknown): string | null {
  return typeof value === 'string' && value !== '' ? value : null;
}

/** What the SDK and Node call errors of which the system's code says more. */
const VAGUE = new Set(['Error', 'AggregateError', 'TimeoutError', 'TypeError']);
/** The SDK tells only by its words that no connection came about in time. */
const NO_CONNECTION = /did not establish a connection/;

function codeOf(error: unknown, message: string): string {
  const name = textOf(fieldOf(error, 'name')) ?? 'Error';
  const system = textOf(fieldOf(error, 'code')) ?? textOf(fieldOf(fieldOf(error, 'cause'), 'code'));
  const said = textOf(fieldOf(error, 'Code'));
  if (said !== null) return said;
  if (!VAGUE.has(name)) return name;
  return system ?? (NO_CONNECTION.test(message) ? 'ETIMEDOUT' : name);
}

/** Refusals that a signature of another time may mend; an answer to HEAD has no body that could tell. */
const SKEWED = new Set(['RequestTimeTooSkewed', 'RequestExpired']);
const UNTOLD = new Set(['Unknown', 'UnknownError', 'Forbidden', '403']);

/** Reads what SDK, store and system put into an error. */
export function failureOf(error: unknown): Failure {
  const metadata = fieldOf(error, '$metadata');
  const status = fieldOf(metadata, 'httpStatusCode');
  const headers = fieldOf(fieldOf(error, '$response'), 'headers');
  const message = error instanceof Error ? error.message : String(error);
  const code = codeOf(error, message);
  const isSkewed = SKEWED.has(code) || (status === 403 && UNTOLD.has(code));
  const ahead = Date.parse(textOf(fieldOf(headers, 'date')) ?? '') - Date.now();
  return {
    code,
    status: typeof status === 'number' ? status : null,
    message,
    region:
      textOf(fieldOf(headers, 'x-amz-bucket-region')) ?? textOf(fieldOf(error, 'Region')) ?? null,
    clockAheadMs: Number.isNaN(ahead) ? null : ahead,
    isClockMended: isSkewed && fieldOf(metadata, 'clockSkewCorrected') === true,
  };
}

const BUSY = new Set([
  'SlowDown',
  'SlowDownRead',
  'SlowDownWrite',
  'Throttling',
  'RequestLimitExceeded',
]);
/** Refusals of a request that arrived in pieces, or at the wrong moment. */
const AGAIN = new Set([
  ...BUSY,
  'RequestTimeout',
  'IncompleteBody',
  'BadDigest',
  'XAmzContentSHA256Mismatch',
  'OperationAborted',
  'ConditionalRequestConflict',
  // Gateways to folders, where a delete of the last neighbour takes the folder along.
  'ExistingObjectIsDirectory',
]);
/** What no repeat mends although nobody answered: no credentials, a certificate that is not trusted. */
const NEVER =
  /^(CredentialsProviderError|TokenProviderError|AbortError|CERT_|ERR_TLS|SELF_SIGNED|DEPTH_ZERO|UNABLE_TO_|EPROTO)/;

/** Whether the same request may succeed a moment later. */
function isWorthRetrying(failure: Failure): boolean {
  const { code, status } = failure;
  if (AGAIN.has(code)) return true;
  // No answer, or one that broke off: SDK errors of a body that cannot be parsed carry the status of its head.
  if (status === null || status < 300) return !NEVER.test(code);
  return status === 408 || status === 429 || (status >= 500 && status !== 501 && status !== 505);
}

/**
 * Runs `attempt` until it succeeds, fails for good, or was tried so often or so long that the caller has to decide;
 * between tries it waits exponentially longer, with full jitter. Rejects with the last error as it is, or with the
 * signal's reason.
 */
export async function retried<T>(
  attempt: (n: number) => Promise<T>,
  { attempts, signal, giveUpMs = GIVE_UP_MS }: RetryOptions,
): Promise<T> {
  const begun = Date.now();
  let mended = false;
  for (let n = 1; ; n += 1) {
    signal?.throwIfAborted();
    try {
      return await attempt(n);
    } catch (error) {
      signal?.throwIfAborted();
      const failure = failureOf(error);
      const isLast = n >= attempts || Date.now() - begun > giveUpMs;
      // Where the clock is off, the SDK says so of each answer: what is refused again is refused for another reason.
      const isMended: boolean = failure.isClockMended && !mended;
      if (isLast || !(isMended || isWorthRetrying(failure))) throw error;
      mended ||= isMended;
      await pause(n, failure, signal);
    }
  }
}

/** Waits before the try after the `n`th. */
export async function pause(
  n: number,
  { code, status }: Pick<Failure, 'code' | 'status'>,
  signal: AbortSignal | undefined,
): Promise<void> {
  const isBusy = BUSY.has(code) || status === 429;
  const most = Math.min(LONGEST_MS, (isBusy ? SLOW_DOWN_MS : FIRST_MS) * 2 ** (n - 1));
  try {
    await sleep(Math.random() * most, undefined, signal === undefined ? {} : { signal });
  } catch (error) {
    // the sleeper's own error hides who woke it, and why
    signal?.throwIfAborted();
    throw error;
  }
}
