import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import type { Processor, Verdict } from '../queues/worker.ts';
import { isPaused, wantedModels, wantsEngines } from '../src/domain/job.ts';
import type { JobRecord } from '../src/domain/job.ts';
import {
  fillsSlot,
  isLeased,
  isOnCallersMachine,
  isReleased,
  missingModels,
  PROVISION,
  quoteModels,
} from '../src/domain/provision.ts';
import type { ProvisionRecord } from '../src/domain/provision.ts';
import type { Look } from '../src/runtimes/contract.ts';
import type { Deps, SettleDeps } from './deps.ts';
import { ensureCallersEngine, siteOfCallers } from './callers-machine.ts';
import { endIfLate } from './engine-run.ts';
import { endIfHostedLate, hostedEngines } from './hosted-engine.ts';
import { ensureLeasedEngine, siteOf } from './lease-engine.ts';
import { giveBackOthers } from './lease-give-back.ts';
import type { LeaseTask } from './lease-task.ts';
import { PAUSED_LOOK_MS } from './pause.ts';
import { readOrNull } from './read-or-null.ts';
import { followRemote, isRemote } from './remote.ts';
import { noteUnlessServed, say } from './say.ts';
import { settle, stopJob } from './settle.ts';

const LOOK_WHILE_STARTING_MS = 1_000;
/** A machine that is leased costs money while nobody notices that its engine is healthy. */
const LOOK_WHILE_PAID_MS = 500;
const LOOK_WHILE_SERVING_MS = 5_000;
/** One late answer does not make an engine lost: a second look decides. */
const SECOND_LOOK_MS = 500;
/** An engine that answers but lacks a model may still be loading an adapter; after this it is another engine. */
const UNFIT_GRACE_MS = 30_000;

/** Looks at an engine until it is healthy, and from then on whether it still is. Nobody else says that it is lost. */
export const submission: Processor<Deps> = async ({ id, wake, signal }, deps) => {
  const provision = await deps.store.provisions.get(id);
  if (provision === null || provision.wake !== wake) return 'done';
  if (PROVISION[provision.state].queue !== 'submission') return 'done';
  const job = await deps.store.jobs.get(provision.job);
  if (job === null || !wantsEngines(job.state)) {
    await settle(provision.job, deps);
    return 'done';
  }
  // An engine that serves is watched on: lines in flight may still be answered there.
  if (provision.state === 'starting' && isPaused(job)) return { againInMs: PAUSED_LOOK_MS };
  if (isRemote(job)) return followRemote(provision, job, signal, deps);
  const held = await ensureLeased(provision, job, signal, deps);
  if (held !== null) return held;
  const look = await lookAt(provision, job, signal, deps);
  if (provision.state === 'serving') return whileServing(provision, job, look, signal, deps);
  if (await isLate(provision, job, look, signal, deps)) return 'done';
  return whileStarting(provision, job, look, signal, deps);
};

/** Whether an engine that we started was not healthy for too long, and its job was ended for it. */
async function isLate(
  provision: ProvisionRecord,
  job: JobRecord,
  look: Look,
  signal: AbortSignal,
  deps: Deps,
): Promise<boolean> {
  const { resources } = job.options;
  const { leasing, machines } = deps;
  if (look.is === 'healthy' || !isLeased(provision)) return false;
  const task = leaseTask(provision, job, signal, deps);
  if (task !== null && hostedEngines(provision, leasing) !== null)
    return endIfHostedLate(task, deps);
  const leased = leasing === null ? null : siteOf(provision, leasing);
  const site = isOnCallersMachine(provision) ? siteOfCallers(provision) : leased;
  if (site === null || resources === null || machines === null) return false;
  const lastWords = async (offset: number) => (await machines.readLog(site, offset, signal)).text;
  return endIfLate({ provision, job, resources, lastWords }, deps);
}

/** What is to be done before an engine on a machine that was leased, or is the caller's, can be asked whether it is healthy; null: nothing. */
async function ensureLeased(
  provision: ProvisionRecord,
  job: JobRecord,
  signal: AbortSignal,
  deps: Deps,
): Promise<Verdict | null> {
  const { resources } = job.options;
  const { machines } = deps;
  if (!isLeased(provision) || provision.state === 'serving') return null;
  if (isOnCallersMachine(provision) && resources !== null && machines !== null) {
    return ensureCallersEngine({ provision, job, resources, machines, signal }, deps);
  }
  const task = leaseTask(provision, job, signal, deps);
  return task === null ? { againInMs: LOOK_WHILE_SERVING_MS } : ensureLeasedEngine(task, deps);
}

/** Null where nothing is leased, or this process has no settings for it. */
function leaseTask(
  provision: ProvisionRecord,
  job: JobRecord,
  signal: AbortSignal,
  { leasing }: Deps,
): LeaseTask | null {
  const { resources } = job.options;
  const isTheirs = isOnCallersMachine(provision);
  if (!isLeased(provision) || isTheirs || resources === null || leasing === null) return null;
  return { provision, job, resources, leasing, signal };
}

async function lookAt(
  provision: ProvisionRecord,
  job: JobRecord,
  signal: AbortSignal,
  deps: Deps,
): Promise<Look> {
  const models = wantedModels(job);
  const look = await deps.runtime.look(provision.address, models, signal);
  if (look.is === 'healthy' || provision.state === 'starting') return look;
  await sleep(SECOND_LOOK_MS, undefined, { signal });
  return deps.runtime.look(provision.address, models, signal);
}

async function whileStarting(
  provision: ProvisionRecord,
  job: JobRecord,
  look: Look,
  signal: AbortSignal,
  deps: Deps,
): Promise<Verdict> {
  if (look.is === 'healthy') {
    await keepModels(provision, job, look.models, deps);
    const moved = await deps.advanceProvision(provision, 'serving', { reason: '' });
    if (moved !== 'stale') await settle(provision.job, deps);
    return 'done';
  }
  if (isLoading(provision, look)) return { againInMs: LOOK_WHILE_PAID_MS };
  if (isWished(provision, job, deps)) await say({ provision, job }, look.reason, deps);
  const isUnfit = look.is === 'unfit' && isLongSo(provision, look, deps);
  if (isUnfit && (await isLastHope(provision, job, signal, deps))) {
    await stopUnfit(job, 'No engine can serve this batch.', look.reason, deps);
    return 'done';
  }
  return { againInMs: isLeased(provision) ? LOOK_WHILE_PAID_MS : LOOK_WHILE_STARTING_MS };
}

/** Counted from when this very reason was first seen: an engine that was down, or restarts, is unfit for a moment only. */
function isLongSo(
  { reason, reasonAt }: ProvisionRecord,
  look: { reason: string },
  { now }: Deps,
): boolean {
  if (reason !== look.reason || reasonAt === null) return false;
  return now() - reasonAt > UNFIT_GRACE_MS;
}

/** That an engine which is still loading does not answer is no news; what its machine says of it is told instead. */
function isLoading(provision: ProvisionRecord, look: Look): boolean {
  return isLeased(provision) && look.is === 'down' && provision.enteredAt.serving === undefined;
}

/** False for an engine of earlier settings, which the sweeper is about to replace: nobody wants to hear of it. */
function isWished(provision: ProvisionRecord, job: JobRecord, { manager }: Deps): boolean {
  const slots = manager.slots(job);
  return slots.length === 0 || slots.some((slot) => fillsSlot(provision, slot));
}

/** Whether every other engine of the job answers and is unfit, too; one that is still loading may be the right one. */
async function isLastHope(
  { id }: ProvisionRecord,
  job: JobRecord,
  signal: AbortSignal,
  deps: Deps,
): Promise<boolean> {
  const all = await deps.store.provisions.ofJob(job.id);
  const others = all.filter((each) => each.id !== id && !isReleased(each.state));
  return areUnfit(others, wantedModels(job), signal, deps);
}

async function areUnfit(
  provisions: readonly ProvisionRecord[],
  models: readonly string[],
  signal: AbortSignal,
  { runtime }: Deps,
): Promise<boolean> {
  const looks = await Promise.all(
    provisions.map(({ address }) => runtime.look(address, models, signal)),
  );
  return looks.every((look) => look.is === 'unfit');
}

async function stopUnfit(job: JobRecord, event: string, reason: string, deps: Deps): Promise<void> {
  const errors = [{ code: 'engine_unfit', message: reason, line: null, param: null }];
  await stopJob(job.id, { outcome: 'submit_failed', event, reason, errors }, deps);
}

/** Writes down which models an engine serves, where that is news: workers send it lines of no others. */
async function keepModels(
  { id, models }: ProvisionRecord,
  job: JobRecord,
  served: readonly string[],
  { store }: Deps,
): Promise<void> {
  if (!isDeepStrictEqual(models ?? job.models, served))
    await store.provisions.keep(id, { models: served });
}

/**
 * Gives up a model which none of a job's engines serves, once each of them answers and has not served it for a while:
 * its other lines may be answered, but these would wait until the deadline. It ends the job, unless that is lenient.
 */
async function awaitModels(
  provision: ProvisionRecord,
  job: JobRecord,
  signal: AbortSignal,
  deps: Deps,
): Promise<void> {
  if (job.models.length <= 1 || isPaused(job)) return;
  const models = wantedModels(job);
  const all = await deps.store.provisions.ofJob(job.id);
  const live = all.filter(({ state }) => !isReleased(state));
  const missing = missingModels(models, live);
  const reason = missing.length === 0 ? '' : describeMissing(models, missing);
  if (reason !== provision.reason) {
    await deps.store.provisions.note(provision.id, reason);
    await deps.store.jobs.note(job.id, reason);
    if (reason !== '') deps.log.warn({ jobId: job.id, reason }, 'model waited for');
    return;
  }
  const lackingFor = deps.now() - (provision.reasonAt ?? deps.now());
  if (missing.length === 0 || lackingFor <= UNFIT_GRACE_MS) return;
  if (!(await areUnfit(live, missing, signal, deps))) return;
  if (job.options.validation === 'lenient') await giveUp(job, missing, reason, deps);
  else await stopUnfit(job, 'No engine serves a model of this batch.', reason, deps);
}

/** Fails a job's lines that name one of these models; the others are asked on. */
async function giveUp(
  { id }: JobRecord,
  models: readonly string[],
  reason: string,
  { store, log }: Deps,
): Promise<void> {
  const event = `Requests for ${quoteModels(models)} fail from now on. ${reason}`;
  if (!(await store.jobs.giveUp(id, models, event))) return;
  log.warn({ jobId: id, models, reason }, 'model given up');
  // Whoever sends its lines reads it again at once.
  await store.jobs.publishStop(id);
}

function describeMissing(models: readonly string[], missing: readonly string[]): string {
  const served = models.filter((model) => !missing.includes(model));
  const what = quoteModels(missing);
  return `No engine serves ${what}, which the input asks for; they serve ${quoteModels(served)}.`;
}

async function whileServing(
  provision: ProvisionRecord,
  job: JobRecord,
  look: Look,
  signal: AbortSignal,
  deps: Deps,
): Promise<Verdict> {
  if (look.is === 'healthy') {
    await keepModels(provision, job, look.models, deps);
    await awaitModels(provision, job, signal, deps);
    const task = leaseTask(provision, job, signal, deps);
    // They count as paid for until they are found to be gone, and their job may only cost so much.
    if (task !== null) await giveBackOthers(task, deps);
    return { againInMs: LOOK_WHILE_SERVING_MS };
  }
  deps.log.warn(
    { jobId: provision.job, provisionId: provision.id, reason: look.reason },
    'engine lost',
  );
  // First of all, so that nobody takes it for one that has been loading, or without a line, since it was started.
  if (isLeased(provision)) await deps.store.provisions.keep(provision.id, { engineAt: deps.now() });
  const moved = await deps.advanceProvision(provision, 'starting', { reason: '' });
  const why = `The engine ${provision.address} was lost: ${look.reason}`;
  if (moved !== 'stale') await settle(provision.job, deps, { why });
  await noteUnlessServed(provision.job, look.reason, deps);
  return 'done';
}

/**
 * Has an engine that stopped answering looked at at once, for every job that it serves. Never rejects: where Redis is
 * away, the look that is due within seconds finds the engine, too.
 */
export async function wakeLooks(
  address: string,
  { store, add, log }: Pick<SettleDeps, 'store' | 'add' | 'log'>,
): Promise<void> {
  try {
    for await (const id of store.provisions.unreleased()) {
      const provision = await readOrNull(store.provisions, id);
      if (provision?.state !== 'serving' || provision.address !== address) continue;
      const wake = await store.provisions.wake(id, provision.wake);
      if (wake !== 'stale') await add({ queue: 'submission', entity: id, wake });
    }
  } catch (error) {
    log.warn({ address, err: error }, 'engine could not be looked at early');
  }
}
