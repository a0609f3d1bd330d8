import type { Processor } from '../queues/worker.ts';
import { isPaused } from '../src/domain/job.ts';
import { PROVISION } from '../src/domain/provision.ts';
import type { Deps } from './deps.ts';
import { PAUSED_LOOK_MS } from './pause.ts';
import { settle } from './settle.ts';

/** Brings a provision to where an engine can be started on it. A static one is there already. */
export const provisioning: Processor<Deps> = async ({ id, wake }, deps) => {
  const provision = await deps.store.provisions.get(id);
  if (provision === null || provision.wake !== wake) return 'done';
  if (PROVISION[provision.state].queue !== 'provisioning') return 'done';
  const job = await deps.store.jobs.get(provision.job);
  if (job !== null && isPaused(job)) return { againInMs: PAUSED_LOOK_MS };
  const moved = await deps.advanceProvision(provision, 'starting');
  if (moved !== 'stale') await settle(provision.job, deps);
  return 'done';
};
