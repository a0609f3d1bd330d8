import type { Processor, Verdict } from '../queues/worker.ts';
import { isPaused } from '../src/domain/job.ts';
import type { JobRecord } from '../src/domain/job.ts';
import { isLeased, isOnCallersMachine, PROVISION } from '../src/domain/provision.ts';
import type { ProvisionRecord } from '../src/domain/provision.ts';
import { meetMachine } from './callers-machine.ts';
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
  if (isLeased(provision)) return lease(provision, job, signal, deps);
  if (job !== null && isPaused(job)) return { againInMs: PAUSED_LOOK_MS };
  const moved = await deps.advanceProvision(provision, 'starting');
  if (moved !== 'stale') await settle(provision.job, deps);
  return 'done';
};

const NO_SETTINGS_MS = 5_000;
const NO_KEY = 'This process cannot log in to machines: set AIBRIX_BATCH_SSH_KEY_FILE.';

async function lease(
  provision: ProvisionRecord,
  job: JobRecord | null,
  signal: AbortSignal,
  deps: Deps,
): Promise<Verdict> {
  const { leasing, machines } = deps;
  const resources = job?.options.resources ?? null;
  if (job === null || resources === null) {
    // Its job was erased: nothing is to be leased for it any more.
    await deps.advanceProvision(provision, 'releasing');
    return 'done';
  }
  if (isOnCallersMachine(provision)) {
    if (machines !== null) {
      return meetMachine({ provision, job, resources, machines, signal }, deps);
    }
    await deps.store.provisions.note(provision.id, NO_KEY);
    return { againInMs: NO_SETTINGS_MS };
  }
  if (leasing === null) {
    const reason = `This process has no settings for ${resources.providers.join(', ')}: set PROVISIONER and their credentials.`;
    await deps.store.provisions.note(provision.id, reason);
    return { againInMs: NO_SETTINGS_MS };
  }
  return leaseMachine({ provision, job, resources, leasing, signal }, deps);
}
