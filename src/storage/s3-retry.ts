import { setTimeout as sleep } from 'node:timers/promises';

export interface RetryOptions {
  /** How often it is tried in all. */
  attempts: number;
  signal?: AbortSignal | undefined;
}

/** Enough that a third of all requests may fail and an upload of a thousand parts still ends well. */
export const ATTEMPTS = 10;
const FIRST_MS = 100;
const LONGEST_MS = 10_000;
/** A store that says that it is asked too much is left alone for longer. */
const SLOW_DOWN_MS = 1_000;
/** No try begins later than this after the first. */
const GIVE_UP_MS = 60_000;

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
  /** Requests are signed by the store's clock from now on. */
  isClockMended: boolean;
}

function fieldOf(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null ? Reflect.get(value, name) : undefined;
}

function textOf(value: unknown): string | null {
  return typeof value === 'string' && value !== '' ? value : null;
}

/** Reads what SDK, store and system put into an error. */
export function failureOf(error: unknown): Failure {
  const metadata = fieldOf(error, '$metadata');
  const status = fieldOf(metadata, 'httpStatusCode');
  const headers = fieldOf(fieldOf(error, '$response'), 'headers');
  const system = textOf(fieldOf(error, 'code')) ?? textOf(fieldOf(fieldOf(error, 'cause'), 'code'));
  const name = textOf(fieldOf(error, 'name')) ?? 'Error';
  const ahead = Date.parse(textOf(fieldOf(headers, 'date')) ?? '') - Date.now();
  return {
    code: textOf(fieldOf(error, 'Code')) ?? (name === 'Error' ? (system ?? name) : name),
    status: typeof status === 'number' ? status : null,
    message: error instanceof Error ? error.message : String(error),
    region:
      textOf(fieldOf(headers, 'x-amz-bucket-region')) ?? textOf(fieldOf(error, 'Region')) ?? null,
    clockAheadMs: Number.isNaN(ahead) ? null : ahead,
    isClockMended: fieldOf(metadata, 'clockSkewCorrected') === true,
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
  /^(CredentialsProviderError|AbortError|CERT_|ERR_TLS|SELF_SIGNED|DEPTH_ZERO|UNABLE_TO_|EPROTO)/;

/** Whether the same request may succeed a moment later. */
function isWorthRetrying(failure: Failure): boolean {
  const { code, status, isClockMended } = failure;
  if (isClockMended || AGAIN.has(code)) return true;
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
  { attempts, signal }: RetryOptions,
): Promise<T> {
  const begun = Date.now();
  for (let n = 1; ; n += 1) {
    signal?.throwIfAborted();
    try {
      return await attempt(n);
    } catch (error) {
      signal?.throwIfAborted();
      const failure = failureOf(error);
      const isLast = n >= attempts || Date.now() - begun > GIVE_UP_MS;
      if (isLast || !isWorthRetrying(failure)) throw error;
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
