import type { Verdict } from '../queues/worker.ts';
import { shownError, SluiceError } from '../src/domain/errors.ts';
import type { LeaseAttempt } from '../src/domain/lease.ts';
import { currentAttempt } from '../src/domain/provision.ts';
import type { ProvisionRecord } from '../src/domain/provision.ts';
import type { HostedEngines, HostedLook, Machine } from '../src/resources/lease-contract.ts';
import type { Deps } from './deps.ts';
import { endIfLate, endJob, keepReached, keepUnreachable, lastLines } from './engine-run.ts';
import type { Leasing } from './leasing.ts';
import type { LeaseTask } from './lease-task.ts';
import { say } from './say.ts';

const LAST_WORDS_LINES = 20;
const LOOK_MS = 500;
/** One that served, and ended by itself more often than this on its machine, is tried on another. */
const MOST_RESTARTS = 4;
const MEND =
  'Mend the deployment template (engine.image, model_source, engine.serve_args, engine_args, accelerator) by what it says.';

/** The engine of a provision that its provider runs itself; null: its machine is logged in to, or it has none. */
export function hostedEngines(
  provision: Pick<ProvisionRecord, 'attempts' | 'current'>,
  leasing: Pick<Leasing, 'manager'> | null,
): { engines: HostedEngines; machine: string; attempt: LeaseAttempt } | null {
  const attempt = currentAttempt(provision);
  if (attempt === null || attempt.machine === null || leasing === null) return null;
  const engines = leasing.manager(attempt.provider)?.engines;
  return engines === undefined ? null : { engines, machine: attempt.machine, attempt };
}

/** Says why an engine is waited for: once as an event of the job's history for each reason, and as the reason itself. */
async function tellReason(
  { provision, job }: Pick<LeaseTask, 'provision' | 'job'>,
  reason: string,
  deps: Deps,
): Promise<void> {
  if (reason !== '' && reason !== provision.reason) await deps.store.jobs.tell(job.id, reason);
  await say({ provision, job }, reason, deps);
}

/**
 * How a machine boots that comes with its engine: a place is found for it. `reached`: it has one. Else since when it waits
 * is on record, and `full` says that nobody is to wait any longer.
 */
export async function whileUnplaced(
  task: LeaseTask,
  machine: Machine,
  deps: Deps,
): Promise<'reached' | 'waiting' | 'full'> {
  const { provision, leasing } = task;
  if (machine.state === 'running') return 'reached';
  const now = deps.now();
  const since = provision.waitingSince ?? now;
  if (provision.waitingSince === null) {
    await deps.store.provisions.keep(provision.id, { waitingSince: since });
  }
  await tellReason(task, machine.reason, deps);
  return now - since >= leasing.capacityWaitMs ? 'full' : 'waiting';
}

/** Why a machine got no place in all that time. */
export function whyUnplaced({ leasing }: LeaseTask, { id, reason }: Machine): string {
  const seconds = Math.round(leasing.capacityWaitMs / 1_000);
  const why = reason === '' ? '' : ` ${reason}`;
  return `No node took the engine ${id} for ${seconds} s (CAPACITY_WAIT).${why}`;
}

interface HostedTask extends LeaseTask {
  /** What is done where the machine is of no use to this job any more. */
  lost(reason: string): Promise<Verdict>;
}

/**
 * Looks how far an engine is that its provider runs. Null where it may be asked whether it is healthy; else what is to be
 * done next.
 */
export async function ensureHostedEngine(
  task: HostedTask,
  { engines, machine }: { engines: HostedEngines; machine: string },
  deps: Deps,
): Promise<Verdict | null> {
  const { provision } = task;
  let look: HostedLook | null;
  try {
    look = await engines.look(machine);
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error;
    // Nobody can say what runs there; the engine itself may answer all the same.
    await keepUnreachable(provision, deps);
    await tellReason(task, shownError(error), deps);
    return null;
  }
  if (look === null) return task.lost(`The engine ${machine} is gone.`);
  await keepReached(provision, provision.engineAt === null, deps);
  if (look.isHopeless) {
    await endJob(task, 'engine_not_started', `${look.reason}. ${MEND}`, deps);
    return 'done';
  }
  if (look.end !== null && look.is !== 'leaving') {
    const verdict = await afterCrash(task, look, look.end, { engines, machine }, deps);
    if (verdict !== null) return verdict;
  }
  if (look.reason !== '') await tellReason(task, look.reason, deps);
  if (look.is === 'running') return null;
  // An engine that does not run need not be asked to be late.
  return (await endIfHostedLate(task, deps)) ? 'done' : { againInMs: LOOK_MS };
}

/** One that ended before it ever served only repeats it; another one is started again by its provider. */
async function afterCrash(
  task: HostedTask,
  look: HostedLook,
  end: string,
  { engines, machine }: { engines: HostedEngines; machine: string },
  deps: Deps,
): Promise<Verdict | null> {
  const { provision, job } = task;
  const hasServed = provision.enteredAt.serving !== undefined;
  if (!hasServed) {
    const words = await wordsOf(engines, machine);
    const what = `The engine ended while it started: ${end}`;
    await deps.store.jobs.tell(job.id, `${what}. Its last words:\n${words}`);
    await endJob(task, 'engine_crashed', `${what}. ${MEND} Last words:\n${words}`, deps);
    return 'done';
  }
  if (look.restarts <= provision.crashes) return null;
  await deps.store.provisions.keep(provision.id, { crashes: look.restarts });
  if (look.restarts > MOST_RESTARTS) {
    return task.lost(`The engine ended by itself ${look.restarts} times, the last time: ${end}.`);
  }
  const words = await wordsOf(engines, machine);
  await deps.store.jobs.tell(
    job.id,
    `The engine was started again: ${end}. Its last words:\n${words}`,
  );
  return null;
}

/** They are for people, and what becomes of the job does not hang on them. */
async function wordsOf(engines: HostedEngines, machine: string): Promise<string> {
  try {
    return lastLines(await engines.lastWords(machine, LAST_WORDS_LINES), LAST_WORDS_LINES);
  } catch (error) {
    return `(its log cannot be read: ${shownError(error)})`;
  }
}

/** The same as `endIfLate`, of an engine that its provider runs; false where it does not. */
export async function endIfHostedLate(task: LeaseTask, deps: Deps): Promise<boolean> {
  const hosted = hostedEngines(task.provision, task.leasing);
  if (hosted === null) return false;
  const lastWords = () => wordsOf(hosted.engines, hosted.machine);
  return endIfLate({ ...task, lastWords }, deps);
}
