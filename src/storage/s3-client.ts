import { S3Client } from '@aws-sdk/client-s3';
import type { S3ClientConfig } from '@aws-sdk/client-s3';
import { S3_NAMES, storeError } from './s3-errors.ts';
import type { SettingNames } from './s3-errors.ts';
import { ATTEMPTS, retried } from './s3-retry.ts';

export interface S3Options {
  bucket: string;
  /** Begins all keys: '', or ends in a slash. */
  prefix: string;
  /** URL of the store; undefined: Amazon's own. */
  endpoint?: string | undefined;
  region: string;
  /** Whether the bucket is the first part of the path (`/bucket/key`), and not of the host name. */
  forcePathStyle: boolean;
  /** Undefined: what the SDK finds (environment, profile, web identity, instance role). */
  credentials?: S3Credentials | undefined;
  /** Amazon's own, which checks CRCs; other stores are never sent one, because many refuse it. */
  isAws: boolean;
  /** Takes other keys than ours: any text but '' that is no longer than 1,024 bytes. */
  anyKey?: boolean | undefined;
  /** Of the first thousand parts, and of all where parts have to be equal. At least 5 MiB; 9 MiB unless given. */
  partBytes?: number | undefined;
  /** The store takes no parts of different sizes (Cloudflare R2), so that no object is longer than 10,000 parts. */
  equalParts?: boolean | undefined;
  /** What the settings are called in messages. */
  names?: SettingNames | undefined;
  /** How often a request is sent in all where it fails for a reason that may pass. */
  attempts?: number | undefined;
  /** A connection on which nothing moves for so long is given up, ms. */
  idleMs?: number | undefined;
}

export interface S3Credentials {
  accessKeyId: string;
  secretAccessKey: string;
  sessionToken?: string;
}

/** What the SDK is given with each command. */
export interface SendOptions {
  abortSignal?: AbortSignal;
  /** How long the head of the answer may take, ms. */
  requestTimeout?: number;
}

export interface CallOptions {
  signal?: AbortSignal | undefined;
  /** The signal ends the tries, but lets a request that was sent run to its end. */
  letRun?: boolean;
  /** Runs `attempt` no more often than this. */
  attempts?: number;
  /** No try begins later than this after the first, ms; a minute unless given. */
  giveUpMs?: number;
  /**
   * How long one try may take in all, ms, however lively its connection is; three times `idleMs` unless given. Infinity
   * for those that send bytes; a body that is received does not count.
   */
  limitMs?: number;
}

/** One bucket of one store. */
export interface S3Bucket {
  readonly client: S3Client;
  /** For completing an upload: a server may put thousands of parts together, and has a time limit of its own. */
  readonly patient: S3Client;
  readonly options: Readonly<S3Options>;
  readonly idleMs: number;
  /** The key in the bucket. */
  full(key: string): string;
  /**
   * Runs an operation (`PutObject`), again where that may help. Rejects with the signal's reason, or with the SDK's error
   * as it is; `fail` makes one of ours of that.
   */
  call<T>(attempt: (send: SendOptions, n: number) => Promise<T>, options?: CallOptions): Promise<T>;
  /** The error of an operation as one of ours, which says what to mend. */
  fail(operation: string, cause: unknown): Error;
}

const CONNECT_MS = 5_000;
const IDLE_MS = 20_000;
/** A store that gives a byte now and then is not waited for much longer than one that gives none. */
const LIMIT_TIMES = 3;
export const COMPLETE_IDLE_MS = 600_000;

/** A reader may wait for another one of many: it must get its connection, so that only readers bound their number. */
const AGENT = { keepAlive: true, maxSockets: Infinity };
const AGENTS = { httpAgent: AGENT, httpsAgent: AGENT };

/** Opens a bucket; nothing is sent yet. */
export function openBucket(options: S3Options): S3Bucket {
  const { bucket, prefix, endpoint, region, forcePathStyle, credentials, isAws } = options;
  const { names = S3_NAMES, idleMs = IDLE_MS } = options;
  function createClient(keys: S3ClientConfig['credentials'], patience: number): S3Client {
    return new S3Client({
      region,
      forcePathStyle,
      ...(endpoint === undefined ? {} : { endpoint }),
      ...(keys === undefined ? {} : { credentials: keys }),
      requestChecksumCalculation: isAws ? 'WHEN_SUPPORTED' : 'WHEN_REQUIRED',
      // Who reads a whole object has its digest; a range has no checksum, and some stores answer nonsense to the wish.
      responseChecksumValidation: 'WHEN_REQUIRED',
      // Tried again here, where a signal, the rest of a stream and the time that is left are known.
      maxAttempts: 1,
      // For it, the SDK makes a connection of its own for each part, and waits up to 6 s where a store says nothing.
      expectContinueHeader: false,
      requestHandler: {
        connectionTimeout: CONNECT_MS,
        socketTimeout: patience,
        throwOnRequestTimeout: true,
        ...AGENTS,
      },
    });
  }
  const client = createClient(credentials, idleMs);
  const where = { bucket, endpoint, region, forcePathStyle, names };
  return {
    client,
    patient: createClient(client.config.credentials, COMPLETE_IDLE_MS),
    options,
    idleMs,
    full: (key) => `${prefix}${key}`,
    call(attempt, { signal, letRun = false, limitMs = LIMIT_TIMES * idleMs, ...more } = {}) {
      const { attempts = options.attempts ?? ATTEMPTS, giveUpMs } = more;
      const cut = letRun ? undefined : signal;
      const run = (n: number) => limited((send) => attempt(send, n), cut, limitMs);
      return retried(run, { attempts, signal, giveUpMs });
    },
    fail: (operation, cause) => storeError(operation, cause, where),
  };
}

/** Cuts an attempt off after a time, which is worth another try, or by a signal, which is not. */
async function limited<T>(
  attempt: (send: SendOptions) => Promise<T>,
  signal: AbortSignal | undefined,
  limitMs: number,
): Promise<T> {
  if (limitMs === Infinity) return attempt(signal === undefined ? {} : { abortSignal: signal });
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(), limitMs);
  const all = signal === undefined ? limit.signal : AbortSignal.any([signal, limit.signal]);
  try {
    return await attempt({ abortSignal: all });
  } catch (error) {
    if (!limit.signal.aborted) throw error;
    const late = new Error(`no whole answer within ${limitMs} ms`, { cause: error });
    throw Object.assign(late, { name: 'TimeoutError' });
  } finally {
    clearTimeout(timer);
  }
}
