import type { Verdict } from '../queues/worker.ts';
import { overspent } from '../src/domain/cost.ts';
import { isPaused, wantsEngines } from '../src/domain/job.ts';
import { isOver, parseMachineName } from '../src/domain/lease.ts';
import type { JobResources, LeaseAttempt } from '../src/domain/lease.ts';
import { currentAttempt } from '../src/domain/provision.ts';
import type { ProvisionRecord } from '../src/domain/provision.ts';
import { rentalsOf } from '../src/domain/rentals.ts';
import type { Deps } from './deps.ts';
import { giveBack } from './lease-give-back.ts';
import { poolOf } from './lease-pool.ts';
import type { Leasing } from './leasing.ts';
import { readOrNull } from './read-or-null.ts';
import { settle } from './settle.ts';

const FIRST_LOOK_MS = 2_000;
const LONGEST_LOOK_MS = 30_000;
const WARM_LOOK_MS = 500;
const NO_SETTINGS_MS = 10_000;
/** A machine that is still there after so long is somebody's to look at. */
const ALERT_MS = 5 * 60_000;

interface Release {
  provision: ProvisionRecord;
  leasing: Leasing;
}

/**
 * Gives a leased machine back, and looks until its provider shows that it is gone; or has it go over to a job that waits
 * for one of its kind. What becomes of it is decided once, by one compare-and-set.
 */
export async function releaseMachine(provision: ProvisionRecord, deps: Deps): Promise<Verdict> {
  const { leasing } = deps;
  if (provision.attempts.every(isOver) && provision.handedTo === null) {
    await deps.advanceProvision(provision, 'released');
    return 'done';
  }
  if (leasing === null) {
    deps.log.error(
      { provisionId: provision.id, provider: provision.provider },
      'a machine cannot be given back: this process has no settings for its provider',
    );
    return { againInMs: NO_SETTINGS_MS };
  }
  const release = { provision, leasing };
  if (!provision.isDestroying) {
    const handed = await handOver(release, deps);
    if (handed === 'handed') {
      return giveBackAll(release, ({ n }) => n !== provision.current, deps);
    }
    if (handed === 'kept') return { againInMs: WARM_LOOK_MS };
    if (!(await deps.store.provisions.decideDestroy(provision.id))) return { againInMs: 0 };
  }
  return giveBackAll(release, () => true, deps);
}

/** One step towards a provision that is released: nothing of what it asked for is there, but what went over. */
async function giveBackAll(
  release: Release,
  isOwn: (attempt: LeaseAttempt) => boolean,
  deps: Deps,
): Promise<Verdict> {
  const { provision } = release;
  const open = provision.attempts.filter((attempt) => isOwn(attempt) && !isOver(attempt));
  const over = await Promise.all(open.map(async (attempt) => giveBack(release, attempt, deps)));
  if (over.every((each) => each)) {
    await deps.advanceProvision(provision, 'released');
    return 'done';
  }
  const age = deps.now() - (provision.enteredAt.releasing ?? deps.now());
  if (age > ALERT_MS) await alert(provision, open, deps);
  return { againInMs: Math.min(LONGEST_LOOK_MS, Math.max(FIRST_LOOK_MS, age / 2)) };
}

async function alert(
  provision: ProvisionRecord,
  open: readonly LeaseAttempt[],
  { store, log }: Deps,
): Promise<void> {
  const machines = open.flatMap(({ provider, machine }) =>
    machine === null ? [] : [`${provider} ${machine}`],
  );
  if (machines.length === 0) return;
  const reason = `Still not given back after 5 minutes: ${machines.join(', ')}. Look at the provider's console.`;
  log.error(
    { provisionId: provision.id, jobId: provision.job, machines },
    'machine not given back',
  );
  if (provision.reason !== reason) await store.provisions.note(provision.id, reason);
}

/** `none`: nobody takes the machine over. `kept`: nobody does yet, and it is kept for a while. */
async function handOver(release: Release, deps: Deps): Promise<'handed' | 'kept' | 'none'> {
  const { provision, leasing } = release;
  const attempt = currentAttempt(provision);
  if (attempt === null) return 'none';
  const { handedTo } = provision;
  if (attempt.state === 'handed') return 'handed';
  if (handedTo !== null && (await handTo(release, attempt, handedTo, deps))) return 'handed';
  const job = await readOrNull(deps.store.jobs, provision.job);
  const resources = job?.options.resources ?? null;
  if (resources === null || !isGood(provision, attempt)) return 'none';
  const pool = poolOf(resources);
  if (await findTaker(release, attempt, pool, deps)) return 'handed';
  if (await isWorthKeeping(provision, resources, leasing, deps)) {
    await deps.store.leases.warm(pool, provision.id);
    return 'kept';
  }
  await deps.store.leases.cool(pool, provision.id);
  return 'none';
}

/** Whether a machine that nobody wants now is kept on: not for longer than is wished, nor past what its job may spend. */
async function isWorthKeeping(
  provision: ProvisionRecord,
  resources: JobResources,
  { keepWarmMs }: Leasing,
  { store, now }: Deps,
): Promise<boolean> {
  const idleSince = provision.enteredAt.releasing ?? 0;
  if (now() - idleSince >= keepWarmMs) return false;
  const rentals = rentalsOf(await store.provisions.ofJob(provision.job));
  return overspent(resources, { rentals, idleSince }, now()) === null;
}

/** Its machine and engine did what they were leased for, up to the end. */
function isGood({ enteredAt, reason }: ProvisionRecord, { state }: LeaseAttempt): boolean {
  return state === 'there' && enteredAt.serving !== undefined && reason === '';
}

/** Whether one of those that wait for such a machine has taken it. Who cannot take it waits for none any more. */
async function findTaker(
  release: Release,
  attempt: LeaseAttempt,
  pool: string,
  deps: Deps,
): Promise<boolean> {
  const { leases } = deps.store;
  for (const taker of await leases.wanting(pool)) {
    // One whose record is damaged must not keep this machine from being given to others, or back.
    const isRead = (await readOrNull(deps.store.provisions, taker)) !== null;
    const isTaken = isRead && (await handTo(release, attempt, taker, deps));
    await leases.unwant(pool, taker);
    if (!isTaken) continue;
    await leases.cool(pool, release.provision.id);
    return true;
  }
  return false;
}

/**
 * Gives a machine to another provision: what is read of that one, then written here that the machine goes there, then
 * moved there, if it still is what was read. Whoever dies between is followed by the next look. False: it did not take
 * the machine, and cannot any more.
 */
async function handTo(
  release: Release,
  attempt: LeaseAttempt,
  takerId: string,
  deps: Deps,
): Promise<boolean> {
  const { provision } = release;
  const { provisions } = deps.store;
  const taker = await provisions.get(takerId);
  if (taker === null) {
    await provisions.hand(provision.id, 'undo', takerId);
    await provisions.hand(provision.id, 'back', takerId);
    return false;
  }
  if (!hasMachine(taker, attempt)) {
    const isOpen =
      (await isWaiting(taker, deps)) && (await provisions.hand(provision.id, 'to', takerId));
    const isTaken = isOpen && (await take(provision, attempt, taker, deps));
    if (!isTaken && !(await hasTaken(provision, attempt, takerId, deps))) return false;
  }
  await finishHanding(release, attempt, taker, deps);
  return true;
}

function hasMachine({ attempts }: ProvisionRecord, { machine }: LeaseAttempt): boolean {
  return attempts.some((each) => each.machine === machine);
}

async function take(
  provision: ProvisionRecord,
  attempt: LeaseAttempt,
  taker: ProvisionRecord,
  deps: Deps,
): Promise<boolean> {
  const n = Math.max(0, ...taker.attempts.map((each) => each.n)) + 1;
  const now = deps.now();
  const moved = await deps.advanceProvision(taker, 'starting', {
    attempt: { ...attempt, n, askedAt: now, reachedAt: now, endedAt: null, error: '' },
    provider: attempt.provider,
    login: provision.login,
    waitingSince: null,
    reason: '',
    isFresh: true,
  });
  return moved !== 'stale';
}

/**
 * Whether the other one took the machine, by this look or by another at the same time, and if not, that it never can:
 * first nobody may begin to hand it over, then nobody who began before may end it.
 */
async function hasTaken(
  provision: ProvisionRecord,
  attempt: LeaseAttempt,
  takerId: string,
  { store: { provisions } }: Deps,
): Promise<boolean> {
  await provisions.hand(provision.id, 'undo', takerId);
  await provisions.bump(takerId);
  const taker = await provisions.get(takerId);
  if (taker !== null && hasMachine(taker, attempt)) {
    await provisions.hand(provision.id, 'redo', takerId);
    return true;
  }
  await provisions.hand(provision.id, 'back', takerId);
  return false;
}

async function finishHanding(
  { provision, leasing }: Release,
  attempt: LeaseAttempt,
  taker: ProvisionRecord,
  deps: Deps,
): Promise<void> {
  const { provisions, leases } = deps.store;
  const key = parseMachineName(attempt.name, leasing.stamp)?.key;
  // Before this one is released: whoever finds the machine by its name must find who has it.
  if (key !== undefined) await provisions.pointKey(key, taker.id);
  await leases.sit(taker.id, leasing.maxLeases, provision.id);
  await provisions.attempt(provision.id, attempt.n, { state: 'handed', endedAt: deps.now() });
  deps.log.info(
    { provisionId: provision.id, machine: attempt.machine, to: taker.id },
    'machine handed over',
  );
  await settle(taker.job, deps);
}

/** Whether a provision waits for a machine, and has asked for none of which it does not know what became. */
async function isWaiting(provision: ProvisionRecord, { store }: Deps): Promise<boolean> {
  const attempt = currentAttempt(provision);
  const isAsking = attempt !== null && attempt.state !== 'none';
  const isOpen = provision.state === 'intended' || (provision.state === 'creating' && !isAsking);
  const job = isOpen ? await readOrNull(store.jobs, provision.job) : null;
  return job !== null && wantsEngines(job.state) && !isPaused(job);
}
