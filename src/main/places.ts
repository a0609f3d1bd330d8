import type { Settings } from '../../config/schema.ts';
import type { Storage } from '../storage/contract.ts';
import { openPlaces } from '../storage/places.ts';
import type { Opened } from '../storage/places.ts';
import { s3Target, tosTarget } from './storage-settings.ts';

/** The folders of ALLOWED_BUCKETS, reached as the settings say of our own buckets of the same kind. */
export function openAllowedPlaces(
  own: Storage,
  settings: Settings,
  onNote?: (note: string) => void,
): Opened {
  return openPlaces(own, {
    ...(onNote === undefined ? {} : { onNote }),
    allowed: settings.allowedBuckets,
    s3: (bucket) => s3Target(settings, bucket, ''),
    tos: (bucket) => tosTarget(settings, bucket, ''),
  });
}
