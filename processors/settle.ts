import { shardEntity } from '../queues/catalog.ts';
import { measureSpeed } from '../src/domain/cost.ts';
import { classNow, isPaused, stopTarget, wantsEngines } from '../src/domain/job.ts';
import type { JobClass, JobError, JobRecord, Outcome } from '../src/domain/job.ts';
import {
  currentAttempt,
  fillsSlot,
  isLeased,
  isReleased,
  leaseAddress,
  provisionId,
  rehomeSlot,
  settledStep,
  wanted,
} from '../src/domain/provision.ts';
import type { ProvisionRecord, Slot } from '../src/domain/provision.ts';
import { ownerOf } from './deps.ts';
import type { SettleDeps } from './deps.ts';

/** More steps than any path through the table has; a job that needs more is moved by others at the same time. */
const MOST_STEPS = 12;

const STEP_EVENT = {
  resource_preparing: 'Waiting for an engine.',
  submitting: 'An engine is reachable; waiting until it is healthy.',
  in_progress: 'The engine is healthy; requests are being sent.',
} as const;

/**
 * Brings a job to where its provisions allow it to be, and gives back every provision that it no longer wants.
 * Level-triggered: it may be called at any time, by anyone, twice at once; who loses a compare-and-set reads again.
 * `replace` also sees to it that every slot of the settings has a provision of its address; only the sweeper asks for
 * that, one at a time, since processes may differ in their settings for a while. `why` is what its history is to say
 * of a step back.
 */
export async function settle(
  jobId: string,
  deps: SettleDeps,
  { replace = false, why = '' }: { replace?: boolean; why?: string } = {},
): Promise<void> {
  for (let step = 0; step < MOST_STEPS; step += 1) {
    const job = await deps.store.jobs.get(jobId);
    if (job === null || job.state === 'queued') return;
    const provisions = await deps.store.provisions.ofJob(jobId);
    const slots = slotsOf(job, provisions, deps, replace);
    await releaseUnwanted(job, provisions, slots, deps);
    if (replace) await fillSlots(job, provisions, slots, deps);
    const live = provisions.filter((each) => wanted(job, each, slots) && !isReleased(each.state));
    const to = settledStep(
      job.state,
      live.map((each) => each.state),
    );
    if (to === null) return;
    const event = stepEvent(job, to, why);
    const moved = await deps.advanceJob(job, to, { event, set: { reason: '' } });
    if (moved === 'stale') continue;
    if (to === 'in_progress') await openShards(jobId, deps);
    else if (job.state === 'in_progress') await deps.store.jobs.publishStop(jobId);
  }
}

function stepEvent(job: JobRecord, to: keyof typeof STEP_EVENT, why: string): string {
  const isBack = to === 'resource_preparing' || job.state === 'in_progress';
  if (isBack && why !== '') return why;
  const batch = job.remote?.batch ?? null;
  if (job.remote === null || to === 'resource_preparing') return STEP_EVENT[to];
  if (job.options.resources?.form === 'job') return clusterEvent(batch);
  return batch === null
    ? 'The metadata service is asked to run the batch.'
    : `The metadata service runs it as batch ${batch}.`;
}

function clusterEvent(batch: string | null): string {
  if (batch === null) return 'Kubernetes is asked to run the batch.';
  return `Kubernetes runs it as Job ${batch.split('/').slice(0, 2).join('/')}.`;
}

/** What the job should have: by the settings where those count, else what it has. */
function slotsOf(
  job: JobRecord,
  provisions: readonly ProvisionRecord[],
  deps: SettleDeps,
  replace: boolean,
): readonly Slot[] {
  // What is leased costs money, so that a job that is held for long has it no longer.
  if (isHeldLong(job, deps)) return [];
  const configured = replace ? deps.manager.slots(job) : [];
  // A process without settings for engines has no opinion.
  if (configured.length > 0) return configured;
  return provisions.flatMap((each) => (isReleased(each.state) ? [] : [slotOf(each)]));
}

/** The slot that a provision is in; of a leased one any other machine will do. */
function slotOf(provision: ProvisionRecord): Slot {
  const { slot, address } = provision;
  return { slot, address: isLeased(provision) ? null : address };
}

function isHeldLong(job: JobRecord, { pauseReleaseMs, now }: SettleDeps): boolean {
  if (job.options.resources === null || job.pausedAt === null) return false;
  // What a remote service has begun goes on: no service can be told to wait.
  if (job.remote !== null && job.remote.batch !== null) return false;
  return now() - job.pausedAt > pauseReleaseMs;
}

async function releaseUnwanted(
  job: JobRecord,
  provisions: readonly ProvisionRecord[],
  slots: readonly Slot[],
  deps: SettleDeps,
): Promise<void> {
  const unwanted = provisions.filter(
    (each) => !isReleased(each.state) && !wanted(job, each, slots),
  );
  await Promise.all(unwanted.map((each) => deps.advanceProvision(each, 'releasing')));
}

/** Gives each slot that has no provision at its address one, unless the job wants none. May run twice at once. */
export async function fillSlots(
  job: JobRecord,
  provisions: readonly ProvisionRecord[],
  slots: readonly Slot[],
  deps: SettleDeps,
): Promise<void> {
  if (!wantsEngines(job.state) || isPaused(job)) return;
  const empty = slots.filter(
    (slot) => !provisions.some((each) => fillsSlot(each, slot) && !isReleased(each.state)),
  );
  await Promise.all(
    empty.map(async (slot) => {
      const attempts = provisions.filter((each) => each.slot === slot.slot).length;
      const entity = await recordProvision(job, slot, attempts, deps);
      await deps.add({ queue: 'provisioning', entity, wake: FIRST_WAKE });
    }),
  );
}

/**
 * Gives each slot of which every provision is released one anew, unless the job wants none. One that has an engine at
 * another address stays as it is: whether that is the right one, the sweeper decides. May run twice at once.
 */
export async function fillLeftSlots(
  job: JobRecord,
  provisions: readonly ProvisionRecord[],
  deps: SettleDeps,
): Promise<void> {
  await fillSlots(job, provisions, leftSlots(provisions, deps.manager.slots(job)), deps);
}

function leftSlots(provisions: readonly ProvisionRecord[], configured: readonly Slot[]): Slot[] {
  const held = new Set(provisions.flatMap(({ slot, state }) => (isReleased(state) ? [] : [slot])));
  const left = new Map<number, Slot | null>();
  for (const released of provisions) {
    if (!held.has(released.slot)) left.set(released.slot, rehomeSlot(slotOf(released), configured));
  }
  return [...left.values()].filter((slot) => slot !== null);
}

/** The wake that a provision is made with. */
export const FIRST_WAKE = 1;

/** Records that a slot is to have an engine, and returns the provision's id. May be repeated: the id is derived. */
export async function recordProvision(
  job: Pick<JobRecord, 'id' | 'engines' | 'options'>,
  { slot, address }: Slot,
  attempt: number,
  { store, manager }: Pick<SettleDeps, 'store' | 'manager'>,
): Promise<string> {
  const id = provisionId(job.id, slot, attempt);
  await store.provisions.create({
    id,
    job: job.id,
    slot,
    // Which one it is leased from is known with each attempt.
    provider: job.options.resources?.providers[0] ?? manager.provider,
    owner: ownerOf(job),
    address: address ?? leaseAddress(id),
  });
  return id;
}

/** Lets the next shards of a job wait in the dispatch queue. */
export async function openShards(
  jobId: string,
  deps: Pick<SettleDeps, 'store' | 'add' | 'ahead' | 'now'>,
): Promise<void> {
  const waiting = await deps.store.shards.open(jobId, deps.ahead());
  await addWaiting(jobId, waiting, deps);
}

/** Adds shards that wait in the class that their job has now. */
export async function addWaiting(
  jobId: string,
  waiting: readonly { n: number; wake: number }[],
  deps: Pick<SettleDeps, 'store' | 'add' | 'now'>,
): Promise<void> {
  if (waiting.length === 0) return;
  const job = await deps.store.jobs.get(jobId);
  await addShards(jobId, waiting, job === null ? 'normal' : classNow(job, deps.now()), deps);
}

/** Adds shards that wait; those that are there already stay as they are, so that every call mends a lost add. */
export async function addShards(
  jobId: string,
  waiting: readonly { n: number; wake: number }[],
  jobClass: JobClass,
  deps: Pick<SettleDeps, 'add'>,
): Promise<void> {
  await Promise.all(
    waiting.map(({ n, wake }) =>
      deps.add({ queue: 'dispatch', entity: shardEntity(jobId, n), wake, jobClass }),
    ),
  );
}

export interface Stop {
  outcome: Exclude<Outcome, 'completed'>;
  /** For the job's history. */
  event: string;
  reason?: string;
  errors?: JobError[];
  /** Only while this still is the job's deadline: it may have been moved since it was found to be over. */
  deadline?: number | undefined;
}

/**
 * The one way to stop a job: whoever first gives it an outcome decides. Returns the job as it is then, unchanged where
 * it was stopped or finished before, or null when there is none.
 */
export async function stopJob(
  jobId: string,
  stop: Stop,
  deps: SettleDeps,
): Promise<JobRecord | null> {
  const { outcome, event, deadline } = stop;
  let refused: JobRecord | null = null;
  for (;;) {
    const job = await deps.store.jobs.get(jobId);
    const target = job === null ? null : stopTarget(job, outcome);
    if (job === null || target === null) return job;
    if (deadline !== undefined && job.deadline !== deadline) return job;
    // By Redis' clock a deadline may not be over yet: it is found again, while asking on would only spin.
    if (isEarly(outcome, job, refused)) return job;
    refused = job;
    const moved = await deps.advanceJob(job, target, { outcome, event, set: whyStopped(stop) });
    if (moved === 'stale') continue;
    await deps.store.jobs.publishStop(jobId);
    if (job.state !== 'queued') await settle(jobId, deps);
    return deps.store.jobs.get(jobId);
  }
}

/** A reason is overwritten while the files are written; what a job failed for has to last. */
function whyStopped({ outcome, reason = '', errors }: Stop): {
  reason: string;
  errors?: JobError[];
} {
  if (errors !== undefined) return { reason, errors };
  const isFailure = outcome !== 'cancelled' && outcome !== 'expired';
  if (!isFailure || reason === '') return { reason };
  return { reason, errors: [{ code: outcome, message: reason, line: null, param: null }] };
}

/** Whether an expiry was refused of just this record. */
function isEarly(outcome: Outcome, job: JobRecord, before: JobRecord | null): boolean {
  if (outcome !== 'expired') return false;
  const keys = ['version', 'deadline', 'completed', 'failed'] as const;
  return keys.every((key) => job[key] === before?.[key]);
}

/**
 * Ends a job whose last line is answered: from here on its records stand still. Also one that fell back meanwhile,
 * since it has nothing left to ask of an engine.
 */
export async function finishJob(jobId: string, deps: SettleDeps): Promise<void> {
  const job = await deps.store.jobs.get(jobId);
  if (job === null || !isAnswered(job)) return;
  const event = 'Every request is answered; writing the output files.';
  const moved = await deps.advanceJob(job, 'finalizing', { outcome: 'completed', event });
  if (moved === 'stale') return;
  // What is paid for goes first.
  await settle(jobId, deps);
  await learnSpeed(job, deps);
}

/** Remembers how fast the machines of a job were, for the choice of machines and the estimates of later ones. */
async function learnSpeed(job: JobRecord, { store, now }: SettleDeps): Promise<void> {
  const { resources } = job.options;
  const begun = job.enteredAt.in_progress;
  if (resources === null || begun === undefined) return;
  const served = (await store.provisions.ofJob(job.id)).filter(
    ({ enteredAt }) => enteredAt.serving !== undefined,
  );
  const types = new Set(served.map((each) => currentAttempt(each)?.gpuType ?? ''));
  const [gpuType = ''] = types;
  // Of machines of several kinds nobody can say which did what.
  if (types.size !== 1 || gpuType === '') return;
  const speed = measureSpeed({
    lines: job.completed,
    inputTokens: job.usage.inputTokens,
    outputTokens: job.usage.outputTokens,
    servingMs: (now() - begun) * served.length,
  });
  if (speed !== null) await store.leases.learn(resources.templateId, gpuType, speed);
}

/**
 * The same for whoever has just committed the last line. A failure is only logged, since what was committed counts and
 * is not to be committed again for it: the sweeper ends the job.
 */
export async function finishOrLeave(jobId: string, deps: SettleDeps): Promise<void> {
  try {
    await finishJob(jobId, deps);
  } catch (error) {
    deps.log.error(
      { jobId, err: error },
      'an answered job could not be moved on, left to the sweeper',
    );
  }
}

/** Whether every line of a planned job that still wants engines is answered. */
export function isAnswered(job: JobRecord): boolean {
  return wantsEngines(job.state) && job.shards > 0 && job.doneShards >= job.shards;
}
