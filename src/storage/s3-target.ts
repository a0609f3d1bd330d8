import type { S3Credentials, S3Options } from './s3-client.ts';

/** A bucket as the settings name it. */
export interface S3Target {
  bucket: string;
  /** '' or ends in a slash. */
  prefix: string;
  /** Origin of the store; undefined: Amazon's own. */
  endpoint?: string | undefined;
  region?: string | undefined;
  /** `auto`: as the store is known to want it. */
  pathStyle: 'auto' | 'true' | 'false';
  partBytes?: number | undefined;
  /** Undefined: what the SDK finds. */
  credentials?: S3Credentials | undefined;
}

const AMAZON = /(^|\.)amazonaws\.com(\.cn)?$/;
/** Parts of one upload have to be of one size there, and the region is called auto. */
const R2 = /\.r2\.cloudflarestorage\.com$/;
/** Stores that take the bucket only as the beginning of the host name: Aliyun, Tencent, Huawei, Volcano Engine. */
const BUCKET_IN_HOST =
  /\.(aliyuncs\.com|myqcloud\.com|myhuaweicloud\.com|i?volces\.com|bytepluses\.com)$/;

/**
 * How a bucket is asked, by what is known of its store: Amazon and some others want its name in the host, most want it
 * in the path; CRCs are sent to nobody but Amazon, since most others refuse some of them.
 */
export function s3Options(target: S3Target): S3Options {
  const { bucket, prefix, endpoint, region, pathStyle, partBytes, credentials } = target;
  const host = endpoint === undefined ? 's3.amazonaws.com' : new URL(endpoint).hostname;
  const [isAws, isR2] = [AMAZON.test(host), R2.test(host)];
  const wantsHost = isAws || BUCKET_IN_HOST.test(host);
  return {
    bucket,
    prefix,
    endpoint,
    region: region ?? (isR2 ? 'auto' : 'us-east-1'),
    forcePathStyle: pathStyle === 'auto' ? !wantsHost : pathStyle === 'true',
    credentials,
    isAws,
    partBytes,
    equalParts: isR2,
  };
}
