import type { JobRecord } from '../src/domain/job.ts';
import { rehomeSlot, releaseStep } from '../src/domain/provision.ts';
import type { ProvisionRecord, ReleaseChoice } from '../src/domain/provision.ts';
import type { SettleDeps } from './deps.ts';
import { fillSlots, settle, stopJob } from './settle.ts';

const ENDED = 'Cancelled on request: the engine that it used was released.';
const REHOMED = 'Its engine was released on request; waiting for another one.';

/**
 * Gives a provision back because somebody asks for it. Resolves to the provision as it is then; to `ask` where an
 * unfinished job uses it and no `choice` says what is to become of that; null when there is none. May be called again
 * after a crash anywhere: whoever has released it already finds nothing to do, and what the job still lacks then the
 * sweeper gives it.
 */
export async function releaseByHand(
  id: string,
  choice: ReleaseChoice | null,
  deps: SettleDeps,
): Promise<ProvisionRecord | 'ask' | null> {
  for (;;) {
    const provision = await deps.store.provisions.get(id);
    if (provision === null) return null;
    const job = await deps.store.jobs.get(provision.job);
    const step = releaseStep(job?.state ?? null, provision.state, choice);
    if (step === 'nothing') {
      // Its machine may be kept for the next job, which is not wished any more.
      await deps.store.provisions.decideDestroy(id);
      return provision;
    }
    if (step === 'ask') return 'ask';
    if (step === 'end') {
      await stopJob(provision.job, { outcome: 'cancelled', event: ENDED }, deps);
      // It gives back all that it had: the next look finds this one released, or releases it.
      continue;
    }
    const moved = await deps.advanceProvision(provision, 'releasing');
    if (moved === 'stale') continue;
    if (step === 'rehome' && job !== null) await rehome(job, provision, deps);
    return (await deps.store.provisions.get(id)) ?? moved;
  }
}

/**
 * Moves the job to where it stands without the released one, then gives it another in its place at once: first the
 * move, whose reason the job's history keeps.
 */
async function rehome(job: JobRecord, released: ProvisionRecord, deps: SettleDeps): Promise<void> {
  await settle(job.id, deps, { why: REHOMED });
  const place = rehomeSlot(released, deps.manager.slots(job));
  const now = await deps.store.jobs.get(job.id);
  if (place === null || now === null) return;
  await fillSlots(now, await deps.store.provisions.ofJob(job.id), [place], deps);
}
