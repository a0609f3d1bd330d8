import type { Verdict } from '../queues/worker.ts';
import { shownError, SluiceError } from '../src/domain/errors.ts';
import type { LeaseAttempt, MachineLogin } from '../src/domain/lease.ts';
import { currentAttempt } from '../src/domain/provision.ts';
import type { ProvisionRecord } from '../src/domain/provision.ts';
import type { EngineState, MachineSite } from '../src/runtimes/contract.ts';
import type { Deps } from './deps.ts';
import type { Leasing } from './leasing.ts';
import { findMachine, isSameLogin, say, seen } from './lease-task.ts';
import type { LeaseTask } from './lease-task.ts';
import { fillLeftSlots, settle, stopJob } from './settle.ts';

const LOOK_MS = 500;
const TRY_AGAIN_MS = 1_000;
/** A machine that its provider shows as running is given up after so long without a way to it. */
const UNREACHABLE_MS = 3 * 60_000;
/** An engine that served and ended by itself is started again so often on the same machine. */
const MOST_CRASHES = 3;
/** More machines than this for one slot are no bad luck. */
const MOST_MACHINES = 5;
/** While an engine loads, what it says is told so often. */
const TELL_MS = 10_000;
const TOLD_LINES = 3;
const LAST_WORDS_LINES = 20;

/** The machine of a provision as one logs in to it; null where that is not known. */
export function siteOf(
  provision: ProvisionRecord,
  leasing: Pick<Leasing, 'publicUrl'>,
): MachineSite | null {
  const attempt = currentAttempt(provision);
  if (attempt === null || provision.login === null) return null;
  const { provider, hostKey } = attempt;
  const publicUrl = leasing.publicUrl(attempt);
  return {
    provider,
    login: provision.login,
    hostKey,
    ...(publicUrl === null ? {} : { publicUrl }),
  };
}

/**
 * Sees to it that the machine of a provision runs the job's engine. Null where it does, and can be asked whether it is
 * healthy; else what is to be done next, which may be nothing where the machine is lost or the job is over.
 */
export async function ensureEngine(task: LeaseTask, deps: Deps): Promise<Verdict | null> {
  const { provision } = task;
  const attempt = currentAttempt(provision);
  const site = siteOf(provision, task.leasing);
  if (attempt === null || site === null) {
    return replaceMachine(task, 'It has no machine on record.', deps);
  }
  let state: EngineState;
  try {
    state = await runEngine(task, site, deps);
  } catch (error) {
    task.signal.throwIfAborted();
    if (!(error instanceof SluiceError)) throw error;
    if (error.kind === 'Transient') return unreachable(task, attempt, shownError(error), deps);
    if (error.kind !== 'InvalidInput') return replaceMachine(task, shownError(error), deps);
    await endJob(task, error.code, shownError(error), deps);
    return 'done';
  }
  await keepReached(provision, deps);
  if (state.is === 'exited') return crashed(task, site, state, deps);
  if (provision.enteredAt.serving === undefined) await tellLog(task, site, deps);
  return isTooLate(task, deps) ? tooLate(task, site, deps) : null;
}

async function keepReached(
  { id, engineAt, unreachableSince }: ProvisionRecord,
  { store, now }: Deps,
): Promise<void> {
  if (unreachableSince === null && engineAt !== null) return;
  await store.provisions.keep(id, { unreachableSince: null, engineAt: engineAt ?? now() });
}

async function runEngine(
  { provision, resources, leasing, signal }: LeaseTask,
  site: MachineSite,
  deps: Deps,
): Promise<EngineState> {
  const { machines } = leasing;
  if (provision.engineAt !== null) {
    const state = await machines.look(site, signal);
    if (state.is !== 'absent') return state;
  }
  deps.log.info({ provisionId: provision.id, host: site.login.host }, 'engine started');
  return machines.start(site, resources, signal);
}

/** The machine may be gone, or be at another address; or the way to it is cut for a while. */
async function unreachable(
  task: LeaseTask,
  attempt: LeaseAttempt,
  reason: string,
  deps: Deps,
): Promise<Verdict> {
  const { provision, leasing } = task;
  const since = provision.unreachableSince ?? deps.now();
  if (provision.unreachableSince === null) {
    await deps.store.provisions.keep(provision.id, { unreachableSince: since });
  }
  await say(task, reason, deps);
  const manager = leasing.manager(attempt.provider);
  if (manager !== null) {
    const machine = await findMachine(task, attempt, manager);
    // What is stopping was taken away, and is paid for without coming back.
    if (machine === null || machine.state === 'gone' || machine.state === 'stopping') {
      const why = machine?.reason ? ` (${machine.reason})` : '';
      return replaceMachine(task, `The machine ${attempt.machine} is gone${why}.`, deps);
    }
    await deps.store.provisions.attempt(provision.id, attempt.n, seen(machine));
    await follow(task, attempt, machine.ssh, deps);
  }
  if (deps.now() - since > UNREACHABLE_MS) {
    return replaceMachine(task, `It could not be reached for 3 minutes: ${reason}`, deps);
  }
  return { againInMs: TRY_AGAIN_MS };
}

/** A machine may get another address while it runs: all who have a way to it ask for it anew. */
async function follow(
  { provision }: LeaseTask,
  attempt: LeaseAttempt,
  login: MachineLogin | null,
  deps: Deps,
): Promise<void> {
  if (login === null || isSameLogin(login, provision.login)) return;
  await deps.store.provisions.keep(provision.id, { login });
  deps.log.warn(
    { provisionId: provision.id, machine: attempt.machine, host: login.host, port: login.port },
    'machine has another address',
  );
}

/** Gives a machine back that is of no use any more, and has its slot get another one. */
async function replaceMachine(task: LeaseTask, reason: string, deps: Deps): Promise<Verdict> {
  const { provision, job } = task;
  const all = await deps.store.provisions.ofJob(job.id);
  const lost = all.filter((each) => each.slot === provision.slot && each.reason !== '');
  if (lost.length >= MOST_MACHINES) {
    const message = `${MOST_MACHINES} machines came to nothing one after the other. The last one: ${reason}`;
    await endJob(task, 'machines_lost', message, deps, 'resource_failed');
    return 'done';
  }
  deps.log.warn({ jobId: job.id, provisionId: provision.id, reason }, 'machine lost');
  const moved = await deps.advanceProvision(provision, 'releasing', { reason });
  if (moved === 'stale') return 'done';
  await settle(job.id, deps, { why: `A machine was lost: ${reason}` });
  const now = await deps.store.jobs.get(job.id);
  if (now !== null) await fillLeftSlots(now, await deps.store.provisions.ofJob(job.id), deps);
  return 'done';
}

/** An engine that ended: started again where it served before, else the end of the job, with its last words. */
async function crashed(
  task: LeaseTask,
  site: MachineSite,
  { code, lastWords }: Extract<EngineState, { is: 'exited' }>,
  deps: Deps,
): Promise<Verdict> {
  const { provision, resources, leasing, signal } = task;
  const words = lastLines(lastWords, LAST_WORDS_LINES);
  const what = `The engine ended with code ${code ?? 'unknown'}`;
  await deps.store.jobs.tell(task.job.id, `${what}. Its last words:\n${words}`);
  const hasServed = provision.enteredAt.serving !== undefined;
  if (hasServed && provision.crashes < MOST_CRASHES) {
    await leasing.machines.stop(site, signal);
    await leasing.machines.start(site, resources, signal);
    await deps.store.provisions.keep(provision.id, {
      crashes: provision.crashes + 1,
      engineAt: deps.now(),
      logOffset: 0,
    });
    await say(task, `${what}, and was started again: ${lastLines(lastWords, 1)}`, deps);
    return { againInMs: LOOK_MS };
  }
  if (hasServed) return replaceMachine(task, `${what} ${MOST_CRASHES + 1} times.`, deps);
  await endJob(
    task,
    'engine_crashed',
    `${what} while it started. ${MEND} Last words:\n${words}`,
    deps,
  );
  return 'done';
}

const MEND =
  'Mend the deployment template (model_source, engine.serve_args, engine_args, accelerator) by what it says.';

/** Ends a job whose engine cannot serve it; where others serve it, only this machine goes. */
async function endJob(
  task: LeaseTask,
  code: string,
  message: string,
  deps: Deps,
  outcome: 'submit_failed' | 'resource_failed' = 'submit_failed',
): Promise<void> {
  const { provision, job } = task;
  await say(task, message, deps);
  const all = await deps.store.provisions.ofJob(job.id);
  const isServed = all.some(({ id, state }) => id !== provision.id && state === 'serving');
  if (isServed) {
    await deps.advanceProvision(provision, 'releasing', { reason: message });
    return;
  }
  const errors = [{ code, message, line: null, param: null }];
  const event = 'The engine of this job cannot be used.';
  await stopJob(job.id, { outcome, event, reason: message, errors }, deps);
}

function isTooLate({ provision, resources }: LeaseTask, deps: Deps): boolean {
  const { engineAt } = provision;
  const limit = resources.spec.engine.ready_timeout_seconds * 1_000;
  return engineAt !== null && provision.state === 'starting' && deps.now() - engineAt > limit;
}

async function tooLate(task: LeaseTask, site: MachineSite, deps: Deps): Promise<Verdict> {
  const { provision, resources, leasing, signal } = task;
  const { text } = await leasing.machines.readLog(site, provision.logOffset, signal);
  const limit = resources.spec.engine.ready_timeout_seconds;
  const message = `The engine was not healthy ${limit} s after its start (engine.ready_timeout_seconds). Last words:\n${lastLines(text, LAST_WORDS_LINES)}`;
  await endJob(task, 'engine_not_ready', message, deps);
  return 'done';
}

/** Tells in the job's history what a loading engine says, a few lines at a time. */
async function tellLog(task: LeaseTask, site: MachineSite, deps: Deps): Promise<void> {
  const { provision, job, leasing, signal } = task;
  const since = deps.now() - (provision.reasonAt ?? 0);
  if (provision.engineAt === null || since < TELL_MS) return;
  const { text, next } = await leasing.machines.readLog(site, provision.logOffset, signal);
  const words = lastLines(text, TOLD_LINES);
  if (words === '') return;
  await deps.store.provisions.keep(provision.id, { logOffset: next });
  await deps.store.jobs.tell(job.id, words);
  await say(task, `The engine is starting: ${lastLines(words, 1)}`, deps);
}

/** The last lines that say something, each of bounded length. */
function lastLines(text: string, count: number): string {
  const lines = text.split('\n').filter((line) => line.trim() !== '');
  return lines
    .slice(-count)
    .map((line) => line.slice(0, 300))
    .join('\n');
}
