import type { Verdict } from '../queues/worker.ts';
import { describeError, shownError, SluiceError } from '../src/domain/errors.ts';
import { wantsEngines } from '../src/domain/job.ts';
import { isReleased, machineProvider } from '../src/domain/provision.ts';
import type { ProvisionRecord } from '../src/domain/provision.ts';
import type { MachineRuntime, MachineSite } from '../src/runtimes/contract.ts';
import type { Deps } from './deps.ts';
import { endJob, ensureEngine, keepUnreachable } from './engine-run.ts';
import type { EngineTask } from './engine-run.ts';
import { isSameLogin } from './lease-task.ts';
import { readOrNull } from './read-or-null.ts';
import { say } from './say.ts';
import { settle } from './settle.ts';

const TRY_AGAIN_MS = 1_000;
const FIRST_WAIT_MS = 2_000;
const LONGEST_WAIT_MS = 30_000;
const NO_KEY_MS = 10_000;
/** So long an engine is tried to be stopped whose machine cannot be reached; it is up to the machine's owner then. */
const STOP_MS = 10 * 60_000;

/** What an engine on a machine of the caller's is worked on with. */
type CallersTask = Pick<EngineTask, 'provision' | 'job' | 'resources' | 'machines' | 'signal'>;

/** The machine of the caller's that a provision is on; null before its host key is known. */
export function siteOfCallers({ provider, login, hostKey }: ProvisionRecord): MachineSite | null {
  const kind = machineProvider(provider);
  if (kind === null || login === null || hostKey === null) return null;
  return { provider: kind, login, hostKey, isCallers: true };
}

/**
 * Provisioning's part: the machine is there. What is found out is its host key, where the caller did not name that: the
 * first one that it shows is on record before anything is asked of it, and it has to keep it.
 */
export async function meetMachine(task: CallersTask, deps: Deps): Promise<Verdict> {
  const { provision, job, resources, machines, signal } = task;
  const { machine } = resources;
  if (machine === undefined || !wantsEngines(job.state)) {
    await settle(job.id, deps);
    return 'done';
  }
  const { login } = machine;
  let hostKey = machine.hostKey ?? (await knownKey(provision, deps));
  try {
    hostKey ??= await machines.readHostKey(login, signal);
  } catch (error) {
    signal.throwIfAborted();
    if (!(error instanceof SluiceError)) throw error;
    if (error.kind === 'Transient') return unreachable(task, shownError(error), deps);
    return fail(task, shownError(error), error.code, deps);
  }
  const moved = await deps.advanceProvision(provision, 'starting', { login, hostKey, reason: '' });
  if (moved !== 'stale') await settle(job.id, deps);
  return 'done';
}

/** What an earlier provision of the same job found out: a job has one machine. */
async function knownKey({ job }: ProvisionRecord, { store }: Deps): Promise<string | null> {
  const all = await store.provisions.ofJob(job);
  return all.find(({ hostKey }) => hostKey !== null)?.hostKey ?? null;
}

/**
 * Submission's part, as `ensureEngine`. Jobs of one template may share the engine of a machine; those of another one wait
 * until that is over, since a machine has one engine of ours.
 */
export async function ensureCallersEngine(task: CallersTask, deps: Deps): Promise<Verdict | null> {
  const { provision } = task;
  const site = siteOfCallers(provision);
  if (site === null) return fail(task, 'Its host key is not on record.', 'ssh.host_key', deps);
  if (provision.engineAt === null) {
    const held = await claimMachine(task, site, deps);
    if (held !== null) return held;
  }
  const verdict = await ensureEngine(
    {
      ...task,
      site,
      unreachable: async (reason) => unreachable(task, reason, deps),
      lost: async (reason, code) => lost(task, reason, code, deps),
    },
    deps,
  );
  await undoLateStart(task, site, deps);
  return verdict;
}

/** The job may have ended meanwhile, and whoever stopped its engine have come before the start. */
async function undoLateStart(
  { provision: { id }, machines, signal }: CallersTask,
  site: MachineSite,
  deps: Deps,
): Promise<void> {
  const now = await deps.store.provisions.get(id);
  if (now === null || now.claimedAt === null || !isReleased(now.state)) return;
  if ((await useOfOthers(now, deps)) !== 'unused') return;
  const problem = await whyNotStopped(machines, site, signal);
  if (problem !== null) deps.log.error({ provisionId: id, reason: problem.reason }, 'engine left');
}

/**
 * Makes sure that a machine is of use, and that nobody is about to stop the engine there. That it is claimed is on record
 * before the others are looked at, as these leave first and look then: one of the two sees the other.
 */
async function claimMachine(
  task: CallersTask,
  site: MachineSite,
  deps: Deps,
): Promise<Verdict | null> {
  const { provision, resources, machines, signal } = task;
  const { count: gpuCount, vram_gb: vramGb } = resources.spec.accelerator;
  try {
    const unfit = await machines.check(site, { gpuCount, vramGb, diskGb: 1 }, signal);
    if (unfit !== null) {
      return await fail(task, `The machine is of no use: ${unfit}.`, 'machine_unfit', deps);
    }
  } catch (error) {
    signal.throwIfAborted();
    if (!(error instanceof SluiceError)) throw error;
    if (error.kind === 'Transient') return unreachable(task, shownError(error), deps);
    return lost(task, shownError(error), error.code, deps);
  }
  if (await isBeingLeft(provision, deps)) return waitForTurn(task, BEING_LEFT, deps);
  await deps.store.provisions.keep(provision.id, { claimedAt: deps.now() });
  if (await isBeingLeft(provision, deps)) return waitForTurn(task, BEING_LEFT, deps);
  return null;
}

const BEING_LEFT = 'The engine of a job before it is being stopped on that machine.';

async function isBeingLeft(provision: ProvisionRecord, deps: Deps): Promise<boolean> {
  const others = await onSameMachine(provision, deps);
  return others.some(({ state }) => state === 'releasing');
}

/** Whoever leaves must not take it for one that uses its engine. */
async function waitForTurn(task: CallersTask, reason: string, deps: Deps): Promise<Verdict> {
  await deps.store.provisions.keep(task.provision.id, { claimedAt: null });
  await say(task, reason, deps);
  return { againInMs: TRY_AGAIN_MS };
}

/** The other provisions that may have their engine on the same machine. */
async function onSameMachine(provision: ProvisionRecord, deps: Deps): Promise<ProvisionRecord[]> {
  const found: ProvisionRecord[] = [];
  for await (const id of deps.store.provisions.unreleased()) {
    const other = id === provision.id ? null : await readOrNull(deps.store.provisions, id);
    if (other === null || other.state === 'released' || other.claimedAt === null) continue;
    const login = provision.login && { ...provision.login, user: other.login?.user ?? '' };
    if (login !== null && isSameLogin(login, other.login)) found.push(other);
  }
  return found;
}

/** The machine is its owner's to bring back, and the job's deadline ends the waiting. */
async function unreachable(
  { provision, job }: CallersTask,
  reason: string,
  deps: Deps,
): Promise<Verdict> {
  const since = await keepUnreachable(provision, deps);
  await say({ provision, job }, `The machine that you named is waited for: ${reason}`, deps);
  return { againInMs: within(deps.now() - since) };
}

async function lost(task: CallersTask, reason: string, code: string, deps: Deps): Promise<Verdict> {
  const { provision } = task;
  if (code === 'engine.other_command') {
    const others = await onSameMachine(provision, deps);
    if (others.length > 0) return waitForTurn(task, OTHER_TEMPLATE, deps);
    // Somebody else has started it, and it is not ours to stop.
    await deps.store.provisions.keep(provision.id, { claimedAt: null });
  }
  const mend = code === 'ssh.host_key_changed' ? ` ${NEW_KEY}` : '';
  return fail(task, reason + mend, code, deps);
}

const OTHER_TEMPLATE = 'Another job has an engine of another template on that machine.';
const NEW_KEY =
  'Where it was made anew, create the job again, with its new key in host_key or with none.';

async function fail(
  task: CallersTask,
  message: string,
  code: string,
  deps: Deps,
): Promise<Verdict> {
  await endJob(task, code, message, deps);
  return 'done';
}

/**
 * Release's part: the engine that was started there is stopped, unless other jobs use it, and the machine is left alone.
 */
export async function leaveMachine(
  provision: ProvisionRecord,
  signal: AbortSignal,
  deps: Deps,
): Promise<Verdict> {
  const site = siteOfCallers(provision);
  const isOurs = site !== null && provision.claimedAt !== null;
  const use = isOurs ? await useOfOthers(provision, deps) : 'used';
  if (use === 'open' && ageOf(provision, deps) < STOP_MS) return { againInMs: TRY_AGAIN_MS };
  if (!isOurs || use !== 'unused') {
    await deps.advanceProvision(provision, 'released');
    return 'done';
  }
  return stopEngine(provision, site, signal, deps);
}

async function stopEngine(
  provision: ProvisionRecord,
  site: MachineSite,
  signal: AbortSignal,
  deps: Deps,
): Promise<Verdict> {
  const problem = await whyNotStopped(deps.machines, site, signal);
  if (problem === null) {
    await deps.advanceProvision(provision, 'released', { reason: '' });
    return 'done';
  }
  const age = ageOf(provision, deps);
  if (problem.isFinal || age > STOP_MS) {
    const reason = `The engine may still run on ${site.login.host}: ${problem.reason}`;
    deps.log.error({ provisionId: provision.id, jobId: provision.job, reason }, 'engine left');
    await deps.advanceProvision(provision, 'released', { reason });
    return 'done';
  }
  if (provision.reason !== problem.reason) {
    await deps.store.provisions.note(provision.id, problem.reason);
  }
  return { againInMs: deps.machines === null ? NO_KEY_MS : within(age) };
}

/** Whether another job uses the same engine, and is to stop it. `open`: one has claimed it, and finds out within moments. */
async function useOfOthers(
  provision: ProvisionRecord,
  deps: Deps,
): Promise<'used' | 'open' | 'unused'> {
  const all = await onSameMachine(provision, deps);
  const others = all.filter(({ state }) => state !== 'releasing');
  if (others.some(({ engineAt }) => engineAt !== null)) return 'used';
  return others.length > 0 ? 'open' : 'unused';
}

/** Since when it is to be released, ms. */
function ageOf({ enteredAt }: ProvisionRecord, { now }: Deps): number {
  const at = now();
  return at - (enteredAt.releasing ?? at);
}

async function whyNotStopped(
  machines: MachineRuntime | null,
  site: MachineSite,
  signal: AbortSignal,
): Promise<{ reason: string; isFinal: boolean } | null> {
  if (machines === null) {
    return { reason: 'AIBRIX_BATCH_SSH_KEY_FILE is not set in this process.', isFinal: false };
  }
  try {
    await machines.stop(site, signal);
    return null;
  } catch (error) {
    signal.throwIfAborted();
    const isFinal = error instanceof SluiceError && error.kind !== 'Transient';
    return { reason: describeError(error), isFinal };
  }
}

/** Waits grow with what was waited already. */
function within(ms: number): number {
  return Math.min(Math.max(FIRST_WAIT_MS, ms / 4), LONGEST_WAIT_MS);
}
