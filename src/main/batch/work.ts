import type { Settings } from '../../../config/schema.ts';
import { isDamage } from '../../dispatcher/segments.ts';
import { describeError, SluiceError } from '../../domain/errors.ts';
import type { Ledger } from '../../domain/kubernetes/ledger.ts';
import { indexOfShard } from '../../domain/kubernetes/run-record.ts';
import type { RunPlan, RunWriter, Seal } from '../../domain/kubernetes/run-record.ts';
import { usageView } from '../../domain/worker-progress.ts';
import type { WorkerExit, WorkerProgress } from '../../domain/worker-progress.ts';
import type { Logger } from '../../observability/log.ts';
import { clock } from '../clock.ts';
import { answerIndex } from './answer-index.ts';
import { awaitEngine } from './engine-wait.ts';
import { codeOfExit, exitOf, isWorkerStop } from './exits.ts';
import { finishRun } from './finish.ts';
import type { FinishedRun } from './finish.ts';
import { findInput, makePlan } from './input.ts';
import type { KubernetesJob } from './kubernetes-job.ts';
import { loadLedger, loadSealed } from './load.ts';
import { enter, openRun } from './open-run.ts';
import type { OpenRun } from './open-run.ts';
import { seconds, startReport } from './report.ts';
import type { Report } from './report.ts';
import { findSeal, sealIndex } from './seal.ts';
import { strikeLost } from './strike.ts';
import { deadlineOf } from './task.ts';
import type { WorkerTask } from './task.ts';

export interface WorkDeps {
  settings: Settings;
  log: Logger;
  /** Aborted with a `WorkerStop` when the pod has to go. */
  handBack: AbortSignal;
}

/** A worker in the midst of its task. */
export interface Work extends WorkDeps, OpenRun {
  task: WorkerTask;
  writer: RunWriter;
  startedAt: number;
  deadline: number;
  report: Report;
  plan: RunPlan | null;
  ledger: Ledger | null;
}

/** Storage may be away while files are written: they are tried again for so long. */
const FINISH_PATIENCE_MS = 15 * 60_000;
const LONGEST_AGAIN_MS = 30_000;
/** Segments that are found to be lost are asked again; a storage that loses them over and over is of no use. */
const MOST_STRIKES = 3;

/** Does what the task says, and tells storage how it ended. Rejects with what `exitOf` knows. */
export async function work(
  task: WorkerTask,
  job: KubernetesJob | null,
  deps: WorkDeps,
): Promise<WorkerExit> {
  const { settings, log } = deps;
  const run = await openRun(settings, task.job.uid, log);
  const over = await run.record.final(task.index);
  if (over !== null) {
    log.info({ state: over.state }, 'the batch is over already');
    return exitOfState(over.state);
  }
  const { writer, firstAt } = await enter(run.record, task);
  const startedAt = task.startedAt ?? firstAt;
  const deadline = deadlineOf(task, job, startedAt);
  log.info(
    { writer: writer.name, attempt: writer.attempt, deadline: new Date(deadline).toISOString() },
    'batch begins',
  );
  const report: Report = startReport(
    run.record,
    task,
    { attempt: writer.attempt, startedAt, deadline },
    { log, refresh: () => countsOf(working) },
  );
  const working: Work = {
    ...deps,
    ...run,
    task,
    writer,
    startedAt,
    deadline,
    report,
    plan: null,
    ledger: null,
  };
  try {
    return await toTheEnd(working);
  } catch (error) {
    const exit = exitOf(error);
    const reason = isWorkerStop(error) ? error.reason : describeError(error);
    report.set({ state: 'interrupted', reason, exit_code: codeOfExit(exit) });
    await report.flush();
    throw error;
  } finally {
    report.close();
  }
}

function exitOfState(state: WorkerProgress['state']): WorkerExit {
  return state === 'failed' ? 'failed' : 'over';
}

function countsOf({ ledger, plan, task }: Work): Partial<WorkerProgress> {
  if (ledger === null || plan === null) return {};
  const { completed, failed } = ledger;
  const own = plan.shards.filter(({ n }) => indexOfShard(n, task.indexes) === task.index);
  const total = own.reduce((sum, { lines }) => sum + lines, 0);
  return { request_counts: { total, completed, failed }, usage: usageView(ledger.usage) };
}

async function toTheEnd(working: Work): Promise<WorkerExit> {
  const { record, task, handBack, report } = working;
  const sleep = sleeper(handBack);
  const before = await findSeal(record, task.index, sleep);
  if (before !== null) return conclude(working, before);
  const errors = await prepare(working);
  if (errors !== null) return refuse(working, errors);
  for (let strikes = 0; ; strikes += 1) {
    const end = await answerIndex(working);
    report.set({ state: 'finalizing', reason: '', finalizing_at: seconds(clock.now()) });
    void report.flush();
    try {
      const over = await record.final(task.index);
      if (over !== null) return leave(working, over);
      const seal = end ?? (await findSeal(record, task.index, sleep));
      if (seal === null) throw new Error('somebody sealed the batch, and the seal is gone');
      return await conclude(working, await sealOwn(working, seal, sleep));
    } catch (error) {
      const over = handBack.aborted ? null : await record.final(task.index);
      if (over !== null) return leave(working, over);
      if (!isDamage(error) || strikes >= MOST_STRIKES) throw error;
      await strikeLost(working, error);
    }
  }
}

/** Another pod was faster: what this one has stored is of no use to anybody. */
async function leave({ record, report, log }: Work, over: WorkerProgress): Promise<WorkerExit> {
  log.info({ state: over.state, by: over.pod.name }, 'another pod has finished the batch');
  report.close();
  await tidy(record, log);
  return exitOfState(over.state);
}

async function tidy(record: Work['record'], log: Logger): Promise<void> {
  try {
    await record.clear();
  } catch (error) {
    // What is left costs room and nothing else.
    log.warn({ reason: describeError(error) }, 'segments could not be removed from storage');
  }
}

function sleeper(signal: AbortSignal) {
  return async (ms: number): Promise<void> => {
    await clock.sleep(ms, signal);
    signal.throwIfAborted();
  };
}

async function sealOwn(
  { record, task, writer }: Work,
  seal: Seal,
  sleep: (ms: number) => Promise<void>,
): Promise<Seal> {
  const { index, pod } = task;
  // Containers of a pod run one after the other: those before this one are dead.
  const isGone = (name: string) => name.startsWith(`${pod.uid}.`);
  return sealIndex(record, { index, writer: writer.name, seal, isGone }, sleep);
}

/** Has the plan, what is answered and the engine ready; the problems of an input that is not valid. */
async function prepare(working: Work): Promise<WorkerProgress['errors'] | null> {
  const { task, settings, log, handBack, report, deadline, record } = working;
  const failed = new AbortController();
  const untilDeadline = AbortSignal.timeout(
    Math.max(0, Math.min(deadline - clock.now(), 2 ** 31 - 1)),
  );
  const signal = AbortSignal.any([handBack, failed.signal, untilDeadline]);
  const onReason = (reason: string) => {
    report.set(reason === '' ? { reason } : { state: 'waiting', reason });
  };
  const engine = awaitEngine({ door: task.door, settings, log, onReason }, signal);
  // It may end before anybody waits for it.
  engine.catch(() => undefined);
  try {
    const planned = await planOrFind(working, handBack);
    if ('errors' in planned) return planned.errors;
    working.plan = planned.plan;
    working.ledger = await loadLedger({ record, plan: planned.plan, log }, [task.index]);
    const { completed, failed: refused } = working.ledger;
    log.info({ lines: planned.plan.lines, answered: completed + refused }, 'input is read');
    if (isWhole(working.ledger, task)) return null;
    await engine;
    return null;
  } catch (error) {
    handBack.throwIfAborted();
    // Then there is nothing to wait for any more: what is answered is written.
    if (untilDeadline.aborted && working.ledger !== null) return null;
    throw error;
  } finally {
    failed.abort(new Error('not needed any more'));
  }
}

/** Whether nothing is left to ask, so that no engine is needed. */
function isWhole(ledger: Ledger, { index, indexes }: WorkerTask): boolean {
  return ledger.plan.shards
    .filter(({ n }) => indexOfShard(n, indexes) === index)
    .every(({ n }) => ledger.leftOf(n) === 0);
}

async function planOrFind(
  { record, storage, places, task, settings }: Work,
  signal: AbortSignal,
): Promise<{ plan: RunPlan } | { errors: WorkerProgress['errors'] }> {
  const found = await record.plan();
  if (found !== null) return { plan: found };
  const { spec, wish } = task;
  const input = await findInput(spec.inputFileId, { storage, places });
  const { pinnedModel, isLenient } = wish;
  const made = await makePlan(
    { input, endpoint: spec.endpoint, pinnedModel, isLenient, signal },
    { ...settings, storage },
  );
  if ('errors' in made) return made;
  return { plan: await record.putPlan(made.plan) };
}

/** The batch fails for what its input is: nothing was asked. */
async function refuse(working: Work, errors: WorkerProgress['errors']): Promise<WorkerExit> {
  const { report, log } = working;
  const [first] = errors;
  const where = first?.line == null ? '' : ` in line ${first.line}`;
  const reason = `The input file is not valid: ${first?.message ?? ''}${where}`;
  log.error({ reason, errors: errors.slice(0, 10) }, 'batch failed');
  await end(working, { state: 'failed', reason, errors });
  report.close();
  return 'failed';
}

/** Writes down what the index ended as. */
async function end({ report, record }: Work, change: Partial<WorkerProgress>): Promise<void> {
  report.close();
  report.set({ ...change, finished_at: seconds(clock.now()) });
  const last = { ...report.now, updated_at: seconds(clock.now()) };
  await record.putFinal(last);
  await report.flush();
}

/** What is sealed is written: by this worker where it has the whole batch, by whoever follows the Job otherwise. */
async function conclude(working: Work, seal: Seal): Promise<WorkerExit> {
  const { task, log, record } = working;
  const { errors } = seal;
  // Nobody but a control plane cancels, and then it has the files in hand.
  if (seal.outcome === 'cancelled') return 'over';
  const state = seal.outcome;
  if (task.isIndexed) {
    const usage = usageView(seal.usage);
    const counts = await sealedCounts(working, seal);
    await end(working, { state, errors: [...errors], usage, reason: '', ...counts });
    log.info({ state, index: task.index }, 'index is over');
    return exitOfState(state);
  }
  const run = await finishPatiently(working, seal);
  if (run === null) throw new Error('the batch is sealed, and has no plan');
  const { counts, output, error, manifestKey } = run;
  await end(working, {
    state,
    reason: errors[0]?.message ?? '',
    request_counts: counts,
    usage: usageView(run.usage),
    errors: [...errors],
    output,
    error,
    manifest_key: manifestKey,
    in_progress_at: run.inProgressAt === null ? null : seconds(run.inProgressAt),
    finalizing_at: seconds(run.finalizingAt),
  });
  log.info({ state, counts, output: output?.key, error: error?.key }, 'batch is over');
  await tidy(record, log);
  return exitOfState(state);
}

/** What an index comes to: lines that were never asked count as failed, as in any batch that is over. */
async function sealedCounts(working: Work, seal: Seal): Promise<Partial<WorkerProgress>> {
  const { record, log } = working;
  working.plan ??= await record.plan();
  const { plan } = working;
  if (plan === null) return {};
  working.ledger = await loadSealed({ record, plan, log }, [seal]);
  const { request_counts: counts } = countsOf(working);
  if (!counts) return {};
  return { request_counts: { ...counts, failed: counts.total - counts.completed } };
}

async function finishPatiently(working: Work, seal: Seal): Promise<FinishedRun | null> {
  const { handBack, log, settings, report } = working;
  const begun = clock.now();
  for (let waitMs = 500; ; waitMs = Math.min(waitMs * 2, LONGEST_AGAIN_MS)) {
    try {
      const signal = handBack;
      const sleep = sleeper(handBack);
      const { maxLineBytes } = settings;
      const { task, startedAt, storage, record } = working;
      const { batch } = task;
      const parts = { record, batch, storage, startedAt, log, maxLineBytes, signal, sleep };
      return await finishRun(parts, [seal]);
    } catch (error) {
      handBack.throwIfAborted();
      const isPassing = !(error instanceof SluiceError) || error.kind === 'Transient';
      if (!isPassing || clock.now() - begun > FINISH_PATIENCE_MS) throw error;
      const reason = `The output files cannot be written: ${describeError(error)}`;
      report.set({ reason });
      log.error(
        { reason, againInMs: waitMs },
        'output files cannot be written to storage, trying again',
      );
    }
    await sleeper(handBack)(waitMs);
  }
}
