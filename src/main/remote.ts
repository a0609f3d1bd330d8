import { join } from 'node:path';
import type { Settings } from '../../config/schema.ts';
import type { Deps } from '../../processors/deps.ts';
import { assembleRemote } from '../dispatcher/assemble-remote.ts';
import { sortRemote } from '../dispatcher/sort-remote.ts';
import type { RemoteService } from '../runtimes/remote/contract.ts';
import { createRemoteService } from '../runtimes/remote/index.ts';

/** The metadata service of the settings; null where jobs run here. */
export function openRemote(settings: Settings): RemoteService | null {
  const { metadataServiceUrl: url, metadataServiceApiKey: apiKey } = settings;
  if (url === undefined) return null;
  const { engineUrls, connectTimeout } = settings;
  return createRemoteService({ url, apiKey, engineUrls, connectTimeout });
}

/** Writes a job's files of a remote batch's; those that are not in order go through a scratch file first. */
export function assembleRemotely({
  dataDir,
  ...limits
}: Pick<Settings, 'dataDir' | 'maxLineBytes' | 'maxResponseBytes'>): Deps['assembleRemote'] {
  const { maxLineBytes, maxResponseBytes } = limits;
  return async (results, sinks, { inOrder, ...options }) => {
    const assembly = { ...options, maxLineBytes, maxResponseBytes };
    if (inOrder) return assembleRemote(results, sinks, assembly);
    const directory = join(dataDir, 'tmp');
    const sorted = await sortRemote(results, { directory, maxLineBytes, maxResponseBytes });
    try {
      return await assembleRemote(sorted, sinks, assembly);
    } finally {
      await sorted.close();
    }
  };
}
