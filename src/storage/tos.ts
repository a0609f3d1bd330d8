import { permanent } from '../domain/errors.ts';
import type { S3Credentials, S3Options } from './s3-client.ts';
import type { SettingNames } from './s3-errors.ts';

/** A bucket of Volcano Engine TOS as the settings name it. */
export interface TosTarget {
  bucket: string;
  /** '' or ends in a slash. */
  prefix: string;
  /** Origin; undefined: the public one of the region. */
  endpoint?: string | undefined;
  /** Undefined: the one that the endpoint names. */
  region?: string | undefined;
  partBytes?: number | undefined;
  credentials: S3Credentials;
}

const NAMES: SettingNames = {
  bucket: 'TOS_BUCKET',
  endpoint: 'TOS_ENDPOINT',
  region: 'TOS_REGION',
  credentials: 'TOS_ACCESS_KEY and TOS_SECRET_KEY',
};

/** Hosts of TOS: `tos-cn-beijing.volces.com`, its twin for S3 `tos-s3-…`, inside the cloud `.ivolces.com`. */
const HOST = /^tos-(s3-)?([a-z0-9-]+?)\.(i?volces\.com|bytepluses\.com|ibytepluses\.com)$/;

/**
 * How a bucket of TOS is asked by the protocol of S3: at an endpoint of its own, the bucket in the host name, without
 * CRCs and trailers (https://www.volcengine.com/docs/6349, "compatibility with Amazon S3"). `note` is a sentence for
 * the log where the endpoint was replaced. `storage.wrong_region` (Permanent) where no region can be told.
 */
export function tosOptions(target: TosTarget): { options: S3Options; note: string | null } {
  const { bucket, prefix, partBytes, credentials } = target;
  const { endpoint, region, note } = placeOf(target);
  return {
    options: {
      bucket,
      prefix,
      endpoint,
      region,
      partBytes,
      credentials,
      forcePathStyle: false,
      isAws: false,
      names: NAMES,
    },
    note,
  };
}

function placeOf(target: TosTarget): { endpoint: string; region: string; note: string | null } {
  const { endpoint: given, region } = target;
  if (given === undefined) {
    if (region === undefined) throw unknownRegion();
    return { endpoint: `https://tos-s3-${region}.volces.com`, region, note: null };
  }
  const url = new URL(given);
  const [, s3, named, domain] = HOST.exec(url.hostname) ?? [];
  const known = region ?? named;
  if (known === undefined) throw unknownRegion();
  if (named === undefined || s3 !== undefined) {
    return { endpoint: given, region: known, note: null };
  }
  url.hostname = `tos-s3-${named}.${domain}`;
  const note = `TOS_ENDPOINT ${given} speaks TOS' own protocol: its twin for S3, ${url.origin}, is used`;
  return { endpoint: url.origin, region: known, note };
}

function unknownRegion(): Error {
  return permanent(
    'storage.wrong_region',
    'TOS_REGION is not set, and TOS_ENDPOINT names none: set it, such as cn-beijing.',
  );
}
