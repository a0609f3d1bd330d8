import type { Verdict } from '../queues/worker.ts';
import { describeError, shownError, SluiceError } from '../src/domain/errors.ts';
import type { ErrorKind } from '../src/domain/errors.ts';
import { isOver, machineName, newAttempt } from '../src/domain/lease.ts';
import type { LeaseAttempt } from '../src/domain/lease.ts';
import { currentAttempt, isReleased } from '../src/domain/provision.ts';
import type { ProvisionRecord } from '../src/domain/provision.ts';
import type { Machine, MachineWish } from '../src/resources/lease-contract.ts';
import type { Deps } from './deps.ts';
import { candidates, nextCandidate } from './lease-offers.ts';
import type { Candidate } from './lease-offers.ts';
import { poolOf } from './lease-pool.ts';
import { adopted } from './lease-task.ts';
import type { LeaseTask } from './lease-task.ts';
import { readOrNull } from './read-or-null.ts';
import { say } from './say.ts';
import { stopJob } from './settle.ts';

/** A create leaves within this of its record, or not at all. */
export const SEND_MS = 5_000;
const WAIT_FOR_CAPACITY_MS = 5_000;
const WAIT_FOR_SEAT_MS = 1_000;
/** So long a new provision waits for a machine that is kept warm, which looks whether it is wanted every half second. */
const OFFERED_MS = 3_000;
const OFFERED_LOOK_MS = 200;
/** What was refused is asked for again after so long: what catalogs say of capacity flickers; what was not sent may be. */
const ASK_AGAIN_MS: Record<ErrorKind, number> = {
  NoCapacity: 20_000,
  Transient: 1_000,
  InvalidInput: 60_000,
  Permanent: 60_000,
  NotFound: 60_000,
  Conflict: 60_000,
};

/** Longer than a second, which is all that names of one attempt differ by. */
const SOONEST_AGAIN_MS = 1_001;

/** Asks for a machine, one candidate after the other, or says why there is none. */
export async function begin(task: LeaseTask, deps: Deps): Promise<Verdict> {
  const { provision, resources, leasing } = task;
  const pool = poolOf(resources);
  if (await isOffered(task, pool, deps)) return { againInMs: OFFERED_LOOK_MS };
  if (!(await deps.store.leases.sit(provision.id, leasing.maxLeases))) {
    await deps.store.leases.want(pool, provision.id);
    if (leasing.keepWarmMs > 0) await makeRoom(pool, deps);
    await say(
      task,
      `All ${leasing.maxLeases} machines that may be leased (MAX_LEASES) are in use.`,
      deps,
    );
    return { againInMs: WAIT_FOR_SEAT_MS };
  }
  try {
    return await askInTurn(task, deps);
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error;
    return refused(task, error, deps);
  }
}

async function askInTurn(task: LeaseTask, deps: Deps): Promise<Verdict> {
  const { provision, resources, leasing } = task;
  const found = await candidates(resources, leasing, deps.store);
  let last: SluiceError | null = null;
  for (;;) {
    const all = await deps.store.provisions.ofJob(provision.job);
    const fresh = all.find(({ id }) => id === provision.id) ?? provision;
    // Another delivery of it may have begun the next attempt meanwhile.
    if (hasOneComing(fresh)) return 'done';
    const now = { ...task, provision: fresh };
    const next = nextCandidate(found, fresh, all, resources, deps.now());
    if (next === null) return refused(now, last, deps);
    const refusal = await ask(now, next, deps);
    if (refusal === 'over') return 'done';
    // One that may pass is waited for, whatever the others said.
    if (last === null || isPassing(refusal)) last = refusal;
  }
}

/** Whether somebody has a machine for it on the way, or it has one: that one looks after it, and nobody asks for another. */
export function hasOneComing(provision: ProvisionRecord): boolean {
  const attempt = currentAttempt(provision);
  return attempt !== null && !isOver(attempt) && attempt.state !== 'leaving';
}

function isPassing({ kind }: SluiceError): boolean {
  return kind === 'NoCapacity' || kind === 'Transient';
}

/** Whether a machine of the kind is kept warm, and may come over within a moment. */
async function isOffered({ provision }: LeaseTask, pool: string, deps: Deps): Promise<boolean> {
  if (provision.current > 0 || deps.now() - provision.createdAt > OFFERED_MS) return false;
  const { leases, provisions } = deps.store;
  for (const id of await leases.kept(pool)) {
    const keeper = await readOrNull(provisions, id);
    if (keeper?.state === 'releasing' && !keeper.isDestroying && keeper.handedTo === null) {
      await leases.want(pool, provision.id);
      return true;
    }
    // Whoever gave it away or back died before it could say so.
    await leases.cool(pool, id);
  }
  return false;
}

/**
 * Has one of the machines given back that are kept warm: they have seats, and are for nobody yet, while somebody waits
 * for one of another kind. Those of the same kind come over by themselves.
 */
async function makeRoom(
  pool: string,
  { store: { leases, provisions }, now, log }: Deps,
): Promise<void> {
  const seated: ProvisionRecord[] = [];
  for (const id of await leases.seated()) {
    const each = await readOrNull(provisions, id);
    if (each?.state === 'releasing' && each.handedTo === null) seated.push(each);
  }
  // There will be room in a moment.
  if (seated.some(({ isDestroying }) => isDestroying)) return;
  const same = await leases.kept(pool);
  // Somebody may be about to take over what is given up this very moment.
  const idle = seated.find(
    ({ id, enteredAt: { releasing = Infinity } }) =>
      !same.includes(id) && now() - releasing >= OFFERED_MS,
  );
  if (idle === undefined || !(await provisions.decideDestroy(idle.id))) return;
  log.info({ provisionId: idle.id }, 'machine kept warm no longer: another job waits for one');
}

/** What no candidate can be had for: waited for, or the end of the job. */
async function refused(task: LeaseTask, error: SluiceError | null, deps: Deps): Promise<Verdict> {
  if (error === null || isPassing(error)) return waitForCapacity(task, error, deps);
  return failJob(task, codeOf(error), shownError(error), deps);
}

/** The codes that the Console knows. */
const CODES: Readonly<Record<string, string>> = {
  'lease.no_gpu_type': 'NoGpuType',
  'lease.no_capacity': 'NoCapacity',
};

export function codeOf({ code }: SluiceError): string {
  return CODES[code] ?? code;
}

async function waitForCapacity(
  task: LeaseTask,
  error: SluiceError | null,
  deps: Deps,
): Promise<Verdict> {
  const { provision, resources, leasing } = task;
  const now = deps.now();
  const since = provision.waitingSince ?? now;
  const why = error === null ? lastError(provision) : shownError(error);
  await deps.store.leases.want(poolOf(resources), provision.id);
  if (provision.waitingSince === null) {
    await deps.store.provisions.keep(provision.id, { waitingSince: now });
  }
  if (now - since >= leasing.capacityWaitMs) {
    const message = `No machine could be had for ${Math.round(leasing.capacityWaitMs / 1_000)} s (CAPACITY_WAIT). ${why}`;
    return failJob(task, 'NoCapacity', message, deps);
  }
  await say(task, why, deps);
  const left = since + leasing.capacityWaitMs - now;
  return {
    againInMs: Math.max(100, Math.min(WAIT_FOR_CAPACITY_MS, left, soonest(provision, now))),
  };
}

/** ms until an offer may be asked for again. */
function soonest({ attempts }: ProvisionRecord, now: number): number {
  const times = attempts.flatMap(({ notBefore }) =>
    notBefore === null || notBefore <= now ? [] : [notBefore - now],
  );
  return Math.min(Infinity, ...times);
}

function lastError({ attempts }: ProvisionRecord): string {
  const failed = attempts.findLast(({ error }) => error !== '');
  return failed?.error ?? 'No machine that is within the limits of this job can be had now.';
}

/** Ends a job that can have no machine. Where it has others it goes on without this one, which is tried for on. */
export async function failJob(
  task: LeaseTask,
  code: string,
  message: string,
  deps: Deps,
): Promise<Verdict> {
  const { provision, job } = task;
  const all = await deps.store.provisions.ofJob(job.id);
  await say(task, message, deps);
  if (all.some((each) => each.id !== provision.id && mayServe(each))) {
    return { againInMs: WAIT_FOR_CAPACITY_MS };
  }
  const errors = [{ code, message, line: null, param: null }];
  const event = 'No machine can be had for this job.';
  await stopJob(job.id, { outcome: 'resource_failed', event, reason: message, errors }, deps);
  return 'done';
}

/** Whether a provision has a machine, or is about to; if it comes to nothing, it ends the job itself. */
function mayServe(provision: ProvisionRecord): boolean {
  if (isReleased(provision.state) || provision.state === 'intended') return false;
  return hasOneComing(provision);
}

/**
 * Puts an attempt on record and asks for its machine at once. Returns why it was refused, so that the next candidate may
 * be asked for; `over` where that is not, or no longer, this delivery's to do.
 */
async function ask(
  task: LeaseTask,
  candidate: Candidate,
  deps: Deps,
): Promise<SluiceError | 'over'> {
  const { provision, resources, leasing } = task;
  const { provider } = candidate;
  const manager = leasing.manager(provider);
  if (manager === null) return 'over';
  const key = leasing.newHostKey();
  const attempt = attemptAt(task, candidate, key.publicKey, deps);
  const change = { attempt, provider, login: null, reason: '', isFresh: true } as const;
  const creating = await deps.advanceProvision(provision, 'creating', change);
  if (creating === 'stale') return 'over';
  await deps.store.leases.unwant(poolOf(resources), provision.id);
  const others = provision.attempts.filter(({ n }) => n !== attempt.n);
  const now = { ...creating, current: attempt.n, attempts: [...others, attempt] };
  let machine: Machine;
  try {
    machine = await manager.create(wishFor(task, attempt, key.privateKey));
  } catch (error) {
    return notCreated({ ...task, provision: now }, attempt, error, deps);
  }
  await adopted({ ...task, provision: now }, attempt, machine, deps);
  return 'over';
}

function attemptAt(
  { provision, resources, leasing }: LeaseTask,
  { provider, offer }: Candidate,
  hostKey: string,
  { store, now }: Deps,
): LeaseAttempt {
  const askedAt = now();
  const n = numberFor(provision, provider, offer.id);
  return newAttempt({
    n,
    name: machineName(leasing.stamp, store.provisions.keyOf(provision.id), n, askedAt),
    provider,
    offer: offer.id,
    gpuType: offer.type,
    gpuCount: offer.count ?? resources.spec.accelerator.count,
    pricePerHour: offer.pricePerHour,
    region: '',
    hostKey,
    askedAt,
  });
}

function wishFor(
  { resources, leasing }: LeaseTask,
  { name, offer, gpuCount, provider, askedAt }: LeaseAttempt,
  hostKey: string,
): MachineWish {
  const { regions, interruptible, maxPricePerHour } = resources;
  return {
    name,
    offer,
    gpuCount,
    regions,
    interruptible,
    maxPricePerHour,
    image: leasing.imageFor(provider, resources),
    diskGb: leasing.diskGb(resources),
    authorizedKey: leasing.authorizedKey,
    hostKey,
    modelCache: leasing.modelCache(provider),
    engine: { spec: resources.spec, servingName: resources.servingName },
    ...(resources.namespace === undefined ? {} : { namespace: resources.namespace }),
    sendBefore: askedAt + SEND_MS,
    // The time in it makes it so; and with a search besides, many that wait for their turns would never have two of them.
    isFresh: true,
  };
}

/** An attempt that certainly came to nothing is tried again under its number: a wait for capacity may last for days. */
function numberFor(provision: ProvisionRecord, provider: string, offer: string): number {
  const empty = provision.attempts.find(
    (each) =>
      each.state === 'none' &&
      each.machine === null &&
      each.missing === 0 &&
      each.provider === provider &&
      each.offer === offer,
  );
  return empty?.n ?? Math.max(0, ...provision.attempts.map(({ n }) => n)) + 1;
}

/** What becomes of an attempt whose create failed: the next candidate's turn, or a search. */
async function notCreated(
  { provision }: LeaseTask,
  attempt: LeaseAttempt,
  error: unknown,
  deps: Deps,
): Promise<SluiceError | 'over'> {
  const message = describeError(error);
  if (!(error instanceof SluiceError) || error.code === 'lease.unknown') {
    // The delivery that came with `creating` looks for it.
    const news = { state: 'unknown', error: message } as const;
    await deps.store.provisions.attempt(provision.id, attempt.n, news);
    if (!(error instanceof SluiceError)) throw error;
    return 'over';
  }
  const now = deps.now();
  await deps.store.provisions.attempt(provision.id, attempt.n, {
    state: 'none',
    error: shownError(error),
    endedAt: now,
    // A provider that says "at once" would be asked without end.
    notBefore: now + Math.max(error.retryAfterMs ?? ASK_AGAIN_MS[error.kind], SOONEST_AGAIN_MS),
  });
  deps.log.info(
    { provisionId: provision.id, offer: attempt.offer, reason: message },
    'machine refused',
  );
  return error;
}
