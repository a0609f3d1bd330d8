import type { Processor, Verdict } from '../queues/worker.ts';
import { isPaused } from '../src/domain/job.ts';
import type { JobRecord } from '../src/domain/job.ts';
import { isLeased, PROVISION } from '../src/domain/provision.ts';
import type { ProvisionRecord } from '../src/domain/provision.ts';
import type { Deps } from './deps.ts';
import { leaseMachine } from './lease-machine.ts';
import { PAUSED_LOOK_MS } from './pause.ts';
import { settle } from './settle.ts';

/** Brings a provision to where an engine can be started on it. A static one is there already. */
export const provisioning: Processor<Deps> = async ({ id, wake, signal }, deps) => {
  const provision = await deps.store.provisions.get(id);
  if (provision === null || provision.wake !== wake) return 'done';
  if (PROVISION[provision.state].queue !== 'provisioning') return 'done';
  const job = await deps.store.jobs.get(provision.job);
  // Whoever has a machine on its way looks after it.
  if (job !== null && isPaused(job) && provision.current === 0)
    return { againInMs: PAUSED_LOOK_MS };
  if (isLeased(provision)) return lease(provision, job, signal, deps);
  const moved = await deps.advanceProvision(provision, 'starting');
  if (moved !== 'stale') await settle(provision.job, deps);
  return 'done';
};

const NO_SETTINGS_MS = 5_000;

async function lease(
  provision: ProvisionRecord,
  job: JobRecord | null,
  signal: AbortSignal,
  deps: Deps,
): Promise<Verdict> {
  const { leasing } = deps;
  const resources = job?.options.resources ?? null;
  if (job === null || resources === null) {
    // Its job was erased: nothing is to be leased for it any more.
    await deps.advanceProvision(provision, 'releasing');
    return 'done';
  }
  if (leasing === null) {
    const reason = `This process has no settings for ${resources.providers.join(', ')}: set PROVISIONER and their credentials.`;
    await deps.store.provisions.note(provision.id, reason);
    return { againInMs: NO_SETTINGS_MS };
  }
  return leaseMachine({ provision, job, resources, leasing, signal }, deps);
}
