import { permanent, SluiceError, transient } from '../domain/errors.ts';
import { failureOf } from './s3-retry.ts';
import type { Failure } from './s3-retry.ts';

/** What the settings of a store are called, for messages that say what to mend. */
export interface SettingNames {
  bucket: string;
  endpoint: string;
  region: string;
  credentials: string;
}

export const S3_NAMES: SettingNames = {
  bucket: 'S3_BUCKET',
  endpoint: 'S3_ENDPOINT',
  region: 'S3_REGION',
  credentials: 'AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY',
};

/** Where a store is and how it is asked, for messages. */
export interface Whereabouts {
  bucket: string;
  /** Undefined: Amazon's own. */
  endpoint?: string | undefined;
  region: string;
  forcePathStyle: boolean;
  names: SettingNames;
}

interface Mend {
  code: string;
  /** A sentence, what is wrong and what to do. */
  text: string;
}

const UNKNOWN_KEYS =
  /^(InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|ExpiredToken|TokenRefreshRequired|InvalidSecurity|AuthFailure|XAdminUserNotFound)/;
const NO_KEYS = /^(CredentialsProviderError|TokenProviderError)/;
const ELSEWHERE =
  /^(PermanentRedirect|TemporaryRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraintException|IncorrectEndpoint)$/;
const FULL =
  /^(QuotaExceeded|ServiceQuotaExceeded|InsufficientStorage|XMinioStorageFull|NoSpaceLeft|InsufficientCapacity)/i;
const NOBODY = /^(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|EHOSTUNREACH|ENETUNREACH|ETIMEDOUT)$/;
const UNTRUSTED = /^(CERT_|ERR_TLS|SELF_SIGNED|DEPTH_ZERO|UNABLE_TO_|EPROTO)/;

/**
 * The failure of an operation (`PutObject`) as one of our errors. All are Transient except what can never be stored:
 * rights, keys and buckets are mended by people while jobs wait.
 */
export function storeError(operation: string, cause: unknown, where: Whereabouts): SluiceError {
  if (cause instanceof SluiceError) return cause;
  const failure = failureOf(cause);
  const { code, text } = mendOf(operation, failure, where);
  const message = `${placeOf(where)}: ${text} (${operation}: ${saidBy(failure)})`;
  const make = code === 'storage.too_large' ? permanent : transient;
  return make(code, message, { cause });
}

function placeOf({ bucket, endpoint, region }: Whereabouts): string {
  return `bucket '${bucket}' at ${endpoint ?? `Amazon S3 in ${region}`}`;
}

/** What was said, for who looks it up; the store's own words follow from the cause. */
function saidBy({ code, status }: Failure): string {
  return status === null ? code : `${status} ${code}`;
}

function mendOf(operation: string, failure: Failure, where: Whereabouts): Mend {
  const { code, status } = failure;
  const { names } = where;
  if (NO_KEYS.test(code)) {
    return {
      code: 'storage.credentials',
      text: `no credentials are found. Set ${names.credentials}, or whatever else the AWS SDK looks for (profile, role).`,
    };
  }
  if (UNKNOWN_KEYS.test(code))
    return { code: 'storage.credentials', text: refusedKeys(code, names) };
  if (code === 'RequestTimeTooSkewed' || code === 'RequestExpired')
    return { code: 'storage.clock_skew', text: skewed(failure) };
  // An answer to HEAD has no body that could tell; Amazon names the region in a header of each.
  const isMoved = failure.region !== null && failure.region !== where.region && status === 400;
  if (ELSEWHERE.test(code) || status === 301 || status === 307 || isMoved) {
    return { code: 'storage.wrong_region', text: elsewhere(failure, where) };
  }
  if (code === 'NoSuchBucket') {
    return {
      code: 'storage.no_bucket',
      text: `there is no such bucket. Create it, or mend ${names.bucket}, or ${names.endpoint} if it is elsewhere.`,
    };
  }
  return mendOfRest(operation, failure, where);
}

function mendOfRest(operation: string, { code, status }: Failure, { names }: Whereabouts): Mend {
  if (code === 'EntityTooLarge') {
    return { code: 'storage.too_large', text: 'the object is larger than the store takes.' };
  }
  if (FULL.test(code) || status === 507) {
    return {
      code: 'storage.full',
      text: 'there is no room left. Delete objects or raise the quota; writing goes on by itself.',
    };
  }
  if (status === 401 || status === 403) {
    return {
      code: 'storage.denied',
      text:
        `${names.credentials} may not do this. Allow s3:${rightFor(operation)} on the bucket (Sluice needs s3:GetObject, ` +
        's3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload and s3:ListBucket).',
    };
  }
  if (UNTRUSTED.test(code)) {
    return {
      code: 'storage.unreachable',
      text: `no trusted connection. Check http:// or https:// in ${names.endpoint}, or give its certificate in NODE_EXTRA_CA_CERTS.`,
    };
  }
  if (status === null && NOBODY.test(code)) {
    return {
      code: 'storage.unreachable',
      text: `nobody answers. Start the store, or mend ${names.endpoint} or ${names.region}.`,
    };
  }
  if (status === null && code === 'TimeoutError') {
    return {
      code: 'storage.unavailable',
      text: `the store takes too long to answer. See whether it is overloaded, or mend ${names.endpoint}.`,
    };
  }
  return { code: 'storage.unavailable', text: 'the store does not do what it was asked for.' };
}

function refusedKeys(code: string, names: SettingNames): string {
  if (code.startsWith('SignatureDoesNotMatch')) {
    return `the secret key is wrong. Mend ${names.credentials}.`;
  }
  if (/Expired|Refresh/.test(code))
    return `the credentials have expired. Renew ${names.credentials}.`;
  return `the access key is unknown there. Mend ${names.credentials}, or ${names.endpoint} if they belong to another store.`;
}

function skewed({ clockAheadMs }: Failure): string {
  if (clockAheadMs === null)
    return "this machine's clock is wrong. Set it (timedatectl set-ntp true).";
  const minutes = Math.round(Math.abs(clockAheadMs) / 60_000);
  const side = clockAheadMs > 0 ? 'behind' : 'ahead of';
  return `this machine's clock is ${minutes} min ${side} the store's. Set it (timedatectl set-ntp true).`;
}

function elsewhere({ region }: Failure, { names, region: asked }: Whereabouts): string {
  const known = region === null ? 'the one of the bucket' : region;
  return `the bucket is not in region ${asked}. Set ${names.region} to ${known}, and ${names.endpoint} to match if it is set.`;
}

/** The right of IAM's that an operation needs, where it is not called the same. */
function rightFor(operation: string): string {
  const other: Record<string, string> = {
    HeadObject: 'GetObject',
    HeadBucket: 'ListBucket',
    ListObjectsV2: 'ListBucket',
    ListMultipartUploads: 'ListBucketMultipartUploads',
    ListObjectVersions: 'ListBucketVersions',
    CopyObject: 'PutObject',
    UploadPartCopy: 'PutObject',
    CreateMultipartUpload: 'PutObject',
    UploadPart: 'PutObject',
    CompleteMultipartUpload: 'PutObject',
  };
  return other[operation] ?? operation;
}
