import { draw, freshBucket } from '../../domain/rate-limit.ts';
import type { Bucket } from '../../domain/rate-limit.ts';
import type { DispatcherDeps } from '../../dispatcher/dispatcher.ts';

/**
 * Rate limits of a process that shares them with nobody. Pods of an Indexed Job have an engine each, so that an engine's
 * limit is a pod's, too; a batch's own limit is divided among them.
 */
export function createBuckets(now: () => number): DispatcherDeps['limits']['draw'] {
  const buckets = new Map<string, Bucket>();
  return async (name, _op, perSecond, units) => {
    const at = now();
    const drawn = draw(buckets.get(name) ?? freshBucket(perSecond, at), perSecond, units, at);
    buckets.set(name, drawn.bucket);
    return drawn;
  };
}
