import type { ResourceManager } from '../contract.ts';

/** Engines that run already: the caller's own, where the job names some, else those of `ENGINE_URLS`. */
export function createStaticManager(settings: { engineUrls: readonly string[] }): ResourceManager {
  return {
    provider: 'static',
    slots(job) {
      const addresses = job.engines.length > 0 ? job.engines : settings.engineUrls;
      return addresses.map((address, slot) => ({ slot, address }));
    },
  };
}
