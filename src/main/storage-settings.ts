import { join } from 'node:path';
import type { Settings } from '../../config/schema.ts';
import { storageKind } from '../../config/storage.ts';
import type { StorageSettings } from '../storage/index.ts';
import type { S3Target } from '../storage/s3-target.ts';
import type { TosTarget } from '../storage/tos.ts';

/** The deployment's own storage. */
export function storageSettings(settings: Settings): StorageSettings {
  switch (storageKind(settings)) {
    case 'S3': {
      const { s3Bucket: bucket = '', s3Prefix: prefix } = settings;
      return { type: 'S3', ...s3Target(settings, bucket, prefix) };
    }
    case 'TOS': {
      const { tosBucket: bucket = '', tosPrefix: prefix } = settings;
      return { type: 'TOS', ...tosTarget(settings, bucket, prefix) };
    }
    case 'LOCAL':
      return { type: 'LOCAL', directory: join(settings.dataDir, 'storage') };
  }
}

/** A bucket at the S3 store of the settings, with its credentials. */
export function s3Target(settings: Settings, bucket: string, prefix: string): S3Target {
  const { s3Endpoint, s3Region, s3PathStyle, s3PartSize } = settings;
  const { awsAccessKeyId: id, awsSecretAccessKey: secret, awsSessionToken: token } = settings;
  const keys =
    id === undefined || secret === undefined
      ? undefined
      : {
          accessKeyId: id,
          secretAccessKey: secret,
          ...(token === undefined ? {} : { sessionToken: token }),
        };
  return {
    bucket,
    prefix,
    endpoint: s3Endpoint,
    region: s3Region,
    pathStyle: s3PathStyle,
    partBytes: s3PartSize,
    credentials: keys,
  };
}

/** A bucket at the TOS of the settings, with its credentials. */
export function tosTarget(settings: Settings, bucket: string, prefix: string): TosTarget {
  const { tosEndpoint, tosRegion, s3PartSize, tosAccessKey = '', tosSecretKey = '' } = settings;
  return {
    bucket,
    prefix,
    endpoint: tosEndpoint,
    region: tosRegion,
    partBytes: s3PartSize,
    credentials: { accessKeyId: tosAccessKey, secretAccessKey: tosSecretKey },
  };
}

/** Where files lie, for people. */
export function describeStorage(settings: StorageSettings): string {
  if (settings.type === 'LOCAL') return settings.directory;
  const { type, bucket, prefix, endpoint, region } = settings;
  const where = endpoint ?? region ?? '';
  return `${type === 'S3' ? 's3' : 'tos'}://${bucket}/${prefix}${where === '' ? '' : ` at ${where}`}`;
}
