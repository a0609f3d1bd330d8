import { createHash } from 'node:crypto';
import type { JobResources } from '../src/domain/lease.ts';

/**
 * Names the machines that can stand for each other: of one template as it was, with the same secrets, and leased under
 * the same limits. A machine goes over to a job of its own pool only.
 */
export function poolOf(resources: JobResources): string {
  const { spec, servingName, templateId } = resources;
  const { providers, regions, gpuTypes, interruptible, maxPricePerHour } = resources;
  const { namespace } = resources;
  const where = namespace === undefined ? [] : [namespace];
  const parts = [spec, servingName, templateId, providers, regions, gpuTypes, ...where];
  const text = JSON.stringify([...parts, interruptible, maxPricePerHour]);
  return createHash('sha256').update(text).digest('hex').slice(0, 32);
}
