import { leasedSlots } from '../../domain/lease.ts';
import type { ResourceManager } from '../contract.ts';

/** Engines that run already: the caller's own, where the job names some, else those of `ENGINE_URLS`. */
export function createStaticManager(settings: { engineUrls: readonly string[] }): ResourceManager {
  return {
    provider: 'static',
    slots(job) {
      // A cluster that runs the whole job has its engine in it.
      if (job.options.resources?.form === 'job' && job.remote !== null) {
        return [{ slot: 0, address: job.remote.url }];
      }
      if (job.options.resources !== null) return leasedSlots(job.options.resources);
      // The service has the engines; what it is told of them is in the batch.
      if (job.remote !== null) return [{ slot: 0, address: job.remote.url }];
      const addresses = job.engines.length > 0 ? job.engines : settings.engineUrls;
      return addresses.map((address, slot) => ({ slot, address }));
    },
  };
}
