import type { Verdict } from '../queues/worker.ts';
import { shownError, SluiceError } from '../src/domain/errors.ts';
import type { ProvisionRecord } from '../src/domain/provision.ts';
import type { EngineState, MachineRuntime, MachineSite } from '../src/runtimes/contract.ts';
import type { Deps } from './deps.ts';
import type { LeaseTask } from './lease-task.ts';
import { say } from './say.ts';
import { stopJob } from './settle.ts';

const LOOK_MS = 500;
/** An engine that served and ended by itself is started again so often on the same machine. */
const MOST_CRASHES = 3;
/** While an engine loads, what it says is told so often. */
const TELL_MS = 10_000;
const TOLD_LINES = 3;
const LAST_WORDS_LINES = 20;

/** What an engine is run with on a machine, whoever that belongs to. */
export interface EngineTask extends Omit<LeaseTask, 'leasing'> {
  site: MachineSite;
  machines: MachineRuntime;
  /** What is done where the machine cannot be reached now. */
  unreachable(reason: string): Promise<Verdict>;
  /** What is done where the machine is of no use to this job any more; `code` is that of the error. */
  lost(reason: string, code: string): Promise<Verdict>;
}

/**
 * Sees to it that the machine of a provision runs the job's engine. Null where it does, and can be asked whether it is
 * healthy; else what is to be done next, which may be nothing where the machine is lost or the job is over.
 */
export async function ensureEngine(task: EngineTask, deps: Deps): Promise<Verdict | null> {
  let run: { state: EngineState; isStarted: boolean };
  try {
    run = await runEngine(task, deps);
  } catch (error) {
    task.signal.throwIfAborted();
    if (!(error instanceof SluiceError)) throw error;
    if (error.kind === 'Transient') return task.unreachable(shownError(error));
    if (error.kind !== 'InvalidInput') return task.lost(shownError(error), error.code);
    await endJob(task, error.code, shownError(error), deps);
    return 'done';
  }
  const { state, isStarted } = run;
  await keepReached(task.provision, isStarted, deps);
  if (state.is === 'exited') return crashed(task, state, deps);
  if (task.provision.enteredAt.serving === undefined) await tellLog(task, deps);
  return null;
}

/** Writes down since when a machine cannot be reached, and resolves to it, ms. */
export async function keepUnreachable(
  { id, unreachableSince }: ProvisionRecord,
  { store, now }: Pick<Deps, 'store' | 'now'>,
): Promise<number> {
  const since = unreachableSince ?? now();
  if (unreachableSince === null) await store.provisions.keep(id, { unreachableSince: since });
  return since;
}

/** Writes down that the machine is reached, and from when on its engine has to come up: time without a way to it is no time. */
export async function keepReached(
  { id, engineAt, unreachableSince }: ProvisionRecord,
  isStarted: boolean,
  { store, now }: Deps,
): Promise<void> {
  const at = now();
  const away = unreachableSince === null ? 0 : at - unreachableSince;
  const since = isStarted || engineAt === null ? at : engineAt + away;
  if (since !== engineAt || unreachableSince !== null) {
    const found = { unreachableSince: null, engineAt: since };
    await store.provisions.keep(id, isStarted ? { ...found, logOffset: 0 } : found);
  }
}

async function runEngine(
  { provision, resources, site, machines, signal }: EngineTask,
  deps: Deps,
): Promise<{ state: EngineState; isStarted: boolean }> {
  if (provision.engineAt !== null) {
    const state = await machines.look(site, signal);
    if (state.is !== 'absent') return { state, isStarted: false };
  }
  deps.log.info({ provisionId: provision.id, host: site.login.host }, 'engine started');
  return { state: await machines.start(site, resources, signal), isStarted: true };
}

/** An engine that ended: started again where it served before, else the end of the job, with its last words. */
async function crashed(
  task: EngineTask,
  { code, lastWords }: Extract<EngineState, { is: 'exited' }>,
  deps: Deps,
): Promise<Verdict> {
  const { provision, resources, site, machines, signal } = task;
  const words = lastLines(lastWords, LAST_WORDS_LINES);
  const what = `The engine ended with code ${code ?? 'unknown'}`;
  await deps.store.jobs.tell(task.job.id, `${what}. Its last words:\n${words}`);
  const hasServed = provision.enteredAt.serving !== undefined;
  if (hasServed && provision.crashes < MOST_CRASHES) {
    await machines.stop(site, signal);
    await machines.start(site, resources, signal);
    await deps.store.provisions.keep(provision.id, {
      crashes: provision.crashes + 1,
      engineAt: deps.now(),
      logOffset: 0,
    });
    await say(task, `${what}, and was started again: ${lastLines(lastWords, 1)}`, deps);
    return { againInMs: LOOK_MS };
  }
  if (hasServed) return task.lost(`${what} ${MOST_CRASHES + 1} times.`, 'engine_crashed');
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
export async function endJob(
  task: Pick<EngineTask, 'provision' | 'job'>,
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

/**
 * Ends the job of an engine that was just found not to be healthy, where it is so for too long; true where it did. Not
 * asked before: one that became healthy while nobody looked is not late.
 */
export async function endIfLate(
  task: Pick<EngineTask, 'provision' | 'job' | 'resources'> & {
    lastWords(offset: number): Promise<string>;
  },
  deps: Deps,
): Promise<boolean> {
  const { resources } = task;
  // Its time may have been put off since it was read.
  const provision = await deps.store.provisions.get(task.provision.id);
  const limit = resources.spec.engine.ready_timeout_seconds;
  const engineAt = provision?.engineAt ?? null;
  if (provision === null || engineAt === null || deps.now() - engineAt <= limit * 1_000) {
    return false;
  }
  const text = await task.lastWords(provision.logOffset);
  const since = provision.enteredAt.serving === undefined ? 'its start' : 'it was lost';
  const message = `The engine was not healthy ${limit} s after ${since} (engine.ready_timeout_seconds). Last words:\n${lastLines(text, LAST_WORDS_LINES)}`;
  await endJob(task, 'engine_not_ready', message, deps);
  return true;
}

/** Tells in the job's history what a loading engine says, a few lines at a time. */
async function tellLog(task: EngineTask, deps: Deps): Promise<void> {
  const { provision, job, site, machines, signal } = task;
  const since = deps.now() - (provision.reasonAt ?? 0);
  if (provision.engineAt === null || since < TELL_MS) return;
  const { text, next } = await machines.readLog(site, provision.logOffset, signal);
  const words = lastLines(text, TOLD_LINES);
  if (words === '') return;
  await deps.store.provisions.keep(provision.id, { logOffset: next });
  await deps.store.jobs.tell(job.id, words);
  await say(task, `The engine is starting: ${lastLines(words, 1)}`, deps);
}

/** The last lines that say something, each of bounded length. */
export function lastLines(text: string, count: number): string {
  const lines = text.split('\n').filter((line) => line.trim() !== '');
  return lines
    .slice(-count)
    .map((line) => line.slice(0, 300))
    .join('\n');
}
