import type { GpuWish } from './choose-offer.ts';
import type { JobResources } from './lease.ts';

/** What a job asks of the catalog, one wish for each GPU that will do, in order of preference. */
export function gpuWishes(resources: JobResources): GpuWish[] {
  const { accelerator } = resources.spec;
  const types = resources.gpuTypes.length > 0 ? resources.gpuTypes : [accelerator.type];
  return types.map((gpuType) => ({
    gpuType,
    count: accelerator.count,
    vramGb: accelerator.vram_gb,
    interconnect: accelerator.interconnect,
    regions: resources.regions,
    interruptible: resources.interruptible,
    maxPricePerHour: resources.maxPricePerHour,
    needsPrice: resources.maxCostUsd !== null,
    providers: resources.providers,
  }));
}
