import type { Verdict } from '../queues/worker.ts';
import { shownError, SluiceError } from '../src/domain/errors.ts';
import { isPaused, wantsEngines } from '../src/domain/job.ts';
import { isOfUse } from '../src/domain/lease.ts';
import type { LeaseAttempt, MachineLogin } from '../src/domain/lease.ts';
import { currentAttempt, machineProvider } from '../src/domain/provision.ts';
import type { LeaseManager, Machine } from '../src/resources/lease-contract.ts';
import type { Deps } from './deps.ts';
import { begin, failJob, hasOneComing, SEND_MS } from './lease-ask.ts';
import { whileUnplaced, whyUnplaced } from './hosted-engine.ts';
import { giveBackOthers, giveUpAttempt } from './lease-give-back.ts';
import { adopted, findBooting, isSameLogin, LOOK_MS, seen } from './lease-task.ts';
import type { LeaseTask } from './lease-task.ts';
import { PAUSED_LOOK_MS } from './pause.ts';
import { say } from './say.ts';
import { settle } from './settle.ts';

/** What a create may take, after which nobody waits for its answer any more. */
const ANSWER_MS = 60_000;
/** So long the name of a create is looked for, of which nobody knows what became, and in so many whole lists. */
const LOOK_FOR_MS = 60_000;
const LOOK_FOR_LISTS = 3;
/** While a machine is tried by a way that is known, its provider is asked so seldom whether it is still there. */
const KNOWN_LOOK_MS = 30_000;
const TRY_AGAIN_MS = 500;
const NO_SETTINGS_MS = 5_000;
/** A host that gave a machine of no use is given to others for so long. */
const SHUN_MS = 60 * 60_000;
/** Each is paid for: so many that could not be used are no bad luck, but a key or a template that fits none. */
const MOST_USELESS = 10;
/** Of the disk that a machine has, its file system and image take some; weights have to find room on what is left. */
const FREE_OF_DISK = 0.8;
/** Where a cache keeps the weights, there must be room for logs. */
const LOGS_GB = 1;
/** Where others serve the job, one more is tried after so long. */
const USELESS_AGAIN_MS = 60_000;

/** Has a machine for a provision: asks for one, finds again what may have been asked for, and waits until it is reached. */
export async function leaseMachine(task: LeaseTask, deps: Deps): Promise<Verdict> {
  const { provision, job } = task;
  if (!wantsEngines(job.state)) {
    await settle(job.id, deps);
    return 'done';
  }
  await giveBackOthers(task, deps);
  const attempt = currentAttempt(provision);
  if (attempt === null || !hasOneComing(provision)) {
    return isPaused(job) ? whileHeld(task, deps) : begin(task, deps);
  }
  if (attempt.machine === null) return lookFor(task, attempt, deps);
  if (provision.state === 'creating') return adopt(task, deps);
  return boot(task, attempt, deps);
}

/** CAPACITY_WAIT begins again when its job goes on. */
async function whileHeld({ provision }: LeaseTask, { store, now }: Deps): Promise<Verdict> {
  const { id, waitingSince } = provision;
  if (waitingSince !== null) await store.provisions.keep(id, { waitingSince: now() });
  return { againInMs: PAUSED_LOOK_MS };
}

/** A create was on its way when whoever sent it died, or nobody knows what became of it: its name is looked for. */
async function lookFor(task: LeaseTask, attempt: LeaseAttempt, deps: Deps): Promise<Verdict> {
  const { provision, leasing } = task;
  const age = deps.now() - attempt.askedAt;
  if (attempt.state === 'asked' && age < SEND_MS + LOOK_MS) return { againInMs: TRY_AGAIN_MS };
  const { at, machines } = await leasing.inventory(attempt.provider, LOOK_MS);
  const machine = machines.find((each) => each.name === attempt.name && isOfUse(each));
  if (machine !== undefined) {
    await adopted(task, attempt, machine, deps);
    return 'done';
  }
  // Whoever asked may still be waiting for the answer.
  if (attempt.state === 'asked' && age < SEND_MS + ANSWER_MS) return { againInMs: LOOK_MS };
  const news = notFound(attempt, at, deps.now());
  await deps.store.provisions.attempt(provision.id, attempt.n, news);
  return { againInMs: news.state === 'none' ? 0 : LOOK_MS };
}

/** What a whole list in which it is missing makes of an attempt. What turns up later is found by its name all the same. */
function notFound(attempt: LeaseAttempt, at: number, now: number) {
  const since = attempt.missingSince ?? at;
  const lists = attempt.missing + (at > (attempt.missingAt ?? 0) ? 1 : 0);
  if (lists > LOOK_FOR_LISTS && at - since >= LOOK_FOR_MS) {
    return { state: 'none', missing: lists, endedAt: now } as const;
  }
  return { state: 'unknown', missing: lists, missingSince: since, missingAt: at } as const;
}

/** Its machine is on record, and whoever wrote that died before the next step. */
async function adopt({ provision }: LeaseTask, deps: Deps): Promise<Verdict> {
  await deps.advanceProvision(provision, 'booting', { waitingSince: null });
  return 'done';
}

/** Waits until a machine can be logged in to and has what it was leased for. */
async function boot(task: LeaseTask, attempt: LeaseAttempt, deps: Deps): Promise<Verdict> {
  const manager = task.leasing.manager(attempt.provider);
  if (manager === null) return { againInMs: NO_SETTINGS_MS };
  const { login } = task.provision;
  if (login === null) return lookForLogin(task, attempt, manager, deps);
  // A way that is known is tried first: calls of the provider are scarce, and every second is paid for.
  const problem = await whyNotReached(task, attempt, login, deps);
  if (problem === null) return reached(task, attempt, deps);
  if (problem.isFinal) {
    await deps.store.leases.shun(hostOf(attempt.provider, login), SHUN_MS);
    return nextAttempt(task, attempt, problem.reason, deps);
  }
  await say(task, problem.reason, deps);
  return lookForLogin(task, attempt, manager, deps);
}

/** What its provider shows of a machine that was not reached yet. */
async function lookForLogin(
  task: LeaseTask,
  attempt: LeaseAttempt,
  manager: LeaseManager,
  deps: Deps,
): Promise<Verdict> {
  const { provision } = task;
  const { listLagMs, bootDeadlineMs } = manager.capabilities;
  const maxAgeMs = provision.login === null ? LOOK_MS : KNOWN_LOOK_MS;
  const machine = await findBooting(task, attempt, manager, maxAgeMs);
  const age = deps.now() - attempt.askedAt;
  // What was just created may be missing in lists, and be unknown by its id, for a while.
  if (machine === null && age < listLagMs) return { againInMs: LOOK_MS };
  if (machine === null || !isOfUse(machine)) {
    return nextAttempt(task, attempt, whyEnding(attempt, machine), deps);
  }
  if (manager.engines !== undefined) return place(task, attempt, machine, manager, deps);
  if (age > bootDeadlineMs) {
    const reason = provision.reason || `It was not reached in ${bootDeadlineMs / 60_000} minutes.`;
    return nextAttempt(task, attempt, reason, deps);
  }
  if (machine.ssh === null) {
    const why = machine.reason === '' ? '' : ` (${machine.reason})`;
    await say(
      task,
      `${attempt.provider} machine ${machine.id} has no public address yet${why}.`,
      deps,
    );
    return { againInMs: LOOK_MS };
  }
  if (isSameLogin(machine.ssh, provision.login)) return { againInMs: TRY_AGAIN_MS };
  await deps.store.provisions.attempt(provision.id, attempt.n, seen(machine));
  await deps.store.provisions.keep(provision.id, { login: machine.ssh });
  return { againInMs: 0 };
}

/** Waits until a machine that comes with its engine has a place; where others may have one sooner, they are asked. */
async function place(
  task: LeaseTask,
  attempt: LeaseAttempt,
  machine: Machine,
  { capabilities: { bootDeadlineMs } }: LeaseManager,
  deps: Deps,
): Promise<Verdict> {
  const { provision, resources } = task;
  const is = await whileUnplaced(task, machine, deps);
  if (is === 'reached') {
    await deps.store.provisions.attempt(provision.id, attempt.n, seen(machine));
    return reached(task, attempt, deps);
  }
  if (is === 'full') {
    const message = whyUnplaced(task, machine);
    await giveUpAttempt(task, attempt, message, deps);
    // Where others serve the job, it is waited for anew.
    await deps.store.provisions.keep(provision.id, { waitingSince: deps.now() });
    return failJob(task, 'NoCapacity', message, deps);
  }
  const isElsewhere = resources.providers.length > 1 || resources.gpuTypes.length > 1;
  if (isElsewhere && deps.now() - attempt.askedAt > bootDeadlineMs) {
    return nextAttempt(task, attempt, machine.reason || 'No node took it.', deps);
  }
  return { againInMs: LOOK_MS };
}

function whyEnding({ machine: id }: LeaseAttempt, machine: Machine | null): string {
  const why = machine?.reason ? `: ${machine.reason}` : '';
  return `The machine ${id} was gone before it could be used${why}.`;
}

async function reached(
  { provision }: LeaseTask,
  attempt: LeaseAttempt,
  deps: Deps,
): Promise<Verdict> {
  const news = { reachedAt: deps.now(), error: '' };
  await deps.store.provisions.attempt(provision.id, attempt.n, news);
  const change = { reason: '', waitingSince: null };
  const moved = await deps.advanceProvision(provision, 'starting', change);
  if (moved !== 'stale') await settle(provision.job, deps);
  return 'done';
}

interface Problem {
  reason: string;
  /** Waiting is no use. */
  isFinal: boolean;
}

async function whyNotReached(
  { resources, leasing, signal }: LeaseTask,
  { provider: leasedFrom, machine, hostKey }: LeaseAttempt,
  login: MachineLogin,
  deps: Deps,
): Promise<Problem | null> {
  const provider = machineProvider(leasedFrom);
  const { machines } = leasing;
  if (provider === null || machines === null) {
    return {
      reason: `This process cannot log in to ${login.host}: set AIBRIX_BATCH_SSH_KEY_FILE.`,
      isFinal: false,
    };
  }
  if (await deps.store.leases.isShunned(hostOf(provider, login))) {
    return { reason: `${login.host} gave a machine of no use before.`, isFinal: true };
  }
  const site = { provider, login, hostKey };
  const { count: gpuCount, vram_gb: vramGb } = resources.spec.accelerator;
  const isCached = leasing.modelCache(provider) !== null;
  const diskGb = isCached ? LOGS_GB : Math.floor(leasing.diskGb(resources) * FREE_OF_DISK);
  const need = { gpuCount, vramGb, diskGb };
  try {
    const unfit = await machines.check(site, need, signal);
    if (unfit === null) return null;
    return { reason: `The machine ${machine} is of no use: ${unfit}.`, isFinal: true };
  } catch (error) {
    signal.throwIfAborted();
    if (!(error instanceof SluiceError)) throw error;
    return { reason: shownError(error), isFinal: error.kind !== 'Transient' };
  }
}

function hostOf(provider: string, { host }: MachineLogin): string {
  return `${provider} ${host}`;
}

/** Gives up the current attempt, and begins the next one at once. */
async function nextAttempt(
  task: LeaseTask,
  attempt: LeaseAttempt,
  reason: string,
  deps: Deps,
): Promise<Verdict> {
  deps.log.warn(
    { provisionId: task.provision.id, machine: attempt.machine, reason },
    'machine given up',
  );
  await giveUpAttempt(task, attempt, reason, deps);
  const useless = task.provision.attempts.filter(
    ({ machine, reachedAt }) => machine !== null && reachedAt === null,
  ).length;
  if (useless < MOST_USELESS) return { againInMs: 0 };
  const message = `${useless} machines were of no use one after the other. The last one: ${reason}`;
  const verdict = await failJob(task, 'machines_lost', message, deps);
  return verdict === 'done' ? 'done' : { againInMs: USELESS_AGAIN_MS };
}
