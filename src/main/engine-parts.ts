import type { Settings } from '../../config/schema.ts';
import type { EngineParts } from '../runtimes/ssh/engine-order.ts';
import { tosOptions } from '../storage/tos.ts';
import { createSecretReader } from './engine-secrets.ts';
import { tosTarget } from './storage-settings.ts';

/** What engines on leased machines are given by the settings: secrets, and where object storage is. */
export function engineParts(settings: Settings): Pick<EngineParts, 'secret' | 'objectStore'> {
  const { s3Endpoint, s3Region, tosEndpoint, tosRegion } = settings;
  return {
    secret: createSecretReader(settings.engineSecretsDir),
    objectStore(type) {
      if (type === 's3' && s3Endpoint !== undefined) {
        return { endpoint: s3Endpoint, region: s3Region ?? 'us-east-1' };
      }
      if (type !== 'tos' || (tosEndpoint ?? tosRegion) === undefined) return null;
      const { endpoint = '', region } = tosOptions(tosTarget(settings, '', '')).options;
      return { endpoint, region };
    },
  };
}
