import { createHash } from 'node:crypto';
import type { Dispatcher, DispatchJob } from '../../dispatcher/dispatcher.ts';
import { describeError, invalidInput } from '../../domain/errors.ts';
import { DEFAULT_OPTIONS } from '../../domain/job.ts';
import type { Ledger } from '../../domain/kubernetes/ledger.ts';
import { indexOfShard } from '../../domain/kubernetes/run-record.ts';
import type { JobLimits } from '../../domain/rate-limit.ts';
import type { RunPlan, Seal } from '../../domain/kubernetes/run-record.ts';
import { DEFAULT_RETRY } from '../../domain/retry.ts';
import type { WorkerStop } from './exits.ts';
import { clock } from '../clock.ts';
import { soon } from '../soon.ts';
import { answerShards } from './answer.ts';
import { lookAtEngine, watchEngine } from './engine-wait.ts';
import { refreshLedger } from './load.ts';
import { seconds } from './report.ts';
import { createRunDispatcher } from './run-dispatcher.ts';
import { findSeal } from './seal.ts';
import type { Work } from './work.ts';

const REFRESH_MS = 10_000;
/** After the grace: to commit what came back. */
const COMMIT_MS = 10_000;
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** Why sending ends before every line has its answer. */
type End =
  | { why: 'deadline' }
  | { why: 'sealed' }
  | { why: 'trouble'; code: string; message: string }
  | { why: 'stop'; stop: WorkerStop | Error };

/**
 * Has the lines of this index answered until all are, the deadline comes, or the batch has to fail; returns what it
 * comes to, null where somebody else has said so. Rejects with a `WorkerStop` when the pod has to go, and with what no
 * retry mends; what was answered is committed in any case.
 */
export async function answerIndex(working: Work): Promise<Seal | null> {
  const { plan, report, deadline, handBack, settings } = working;
  const ledger = () => working.ledger ?? raise('the run has no ledger');
  if (plan === null) return raise('the run has no plan');
  const shards = orderOf(working, plan);
  const isWhole = () => shards.every((n) => ledger().leftOf(n) === 0);
  if (isWhole()) return sealOf(working, ledger(), { outcome: 'completed', errors: [] });
  if (clock.now() >= deadline) return sealOf(working, ledger(), { outcome: 'expired', errors: [] });

  const stop = new AbortController();
  const abort = new AbortController();
  let end: End | null = null;
  function finish(reason: End, graceMs: number): void {
    end ??= reason;
    stop.abort();
    clock.after(graceMs, () => abort.abort());
  }
  function onHandBack(): void {
    finish({ why: 'stop', stop: handBack.reason as WorkerStop }, settings.shutdownGrace);
    // A storage that takes nothing now must not keep the pod until it is killed.
    clock.after(settings.shutdownGrace + COMMIT_MS, () => void dispatcher?.close());
  }
  let dispatcher: Dispatcher | null = null;
  handBack.addEventListener('abort', onHandBack);
  if (handBack.aborted) onHandBack();
  const job = await dispatchJob(working, plan, ledger());
  dispatcher = openDispatcher(working, plan, ledger, finish);
  const cancelDeadline = atTime(deadline, () => finish({ why: 'deadline' }, 0));
  const watching = watchOthers(working, stop.signal, finish);
  report.set({
    state: 'in_progress',
    reason: '',
    in_progress_at: report.now.in_progress_at ?? seconds(clock.now()),
  });
  try {
    const answering = {
      dispatcher,
      job,
      plan,
      shards,
      writer: working.writer,
      ledger,
      log: working.log,
    };
    await answerShards(answering, { stop: stop.signal, abort: abort.signal });
  } finally {
    stop.abort();
    cancelDeadline();
    handBack.removeEventListener('abort', onHandBack);
    await watching;
    await soon(dispatcher.close(), COMMIT_MS);
  }
  return concludeEnd(working, end, isWhole(), ledger());
}

/** Timers end after 24 days. */
function atTime(at: number, task: () => void): () => void {
  let cancel = () => {};
  function wait(): void {
    const leftMs = at - clock.now();
    if (leftMs <= 0) task();
    else cancel = clock.after(Math.min(leftMs, LONGEST_TIMER_MS), wait);
  }
  wait();
  return () => cancel();
}

function raise(message: string): never {
  throw new Error(message);
}

function concludeEnd(
  working: Work,
  end: End | null,
  isWhole: boolean,
  ledger: Ledger,
): Seal | null {
  if (isWhole) return sealOf(working, ledger, { outcome: 'completed', errors: [] });
  switch (end?.why) {
    case 'deadline':
      return sealOf(working, ledger, { outcome: 'expired', errors: [] });
    case 'sealed':
      return null;
    case 'trouble': {
      const { code, message } = end;
      const errors = [{ code, message, line: null, param: null }];
      return sealOf(working, ledger, { outcome: 'failed', errors });
    }
    case 'stop':
      throw end.stop;
    case undefined:
      return raise('sending ended, and nobody knows why');
  }
}

function sealOf(
  { report }: Work,
  ledger: Ledger,
  { outcome, errors }: Pick<Seal, 'outcome' | 'errors'>,
): Seal {
  const began = report.now.in_progress_at;
  return {
    outcome,
    writers: ledger.writers(),
    usage: ledger.usage,
    inProgressAt: began === null ? null : began * 1_000,
    at: clock.now(),
    errors,
  };
}

/** The shards of this index. Pods that answer the same ones begin at different places, and meet as late as they can. */
function orderOf({ task, writer }: Work, { shards }: RunPlan): number[] {
  const own = shards.map(({ n }) => n).filter((n) => indexOfShard(n, task.indexes) === task.index);
  if (!task.isShared || own.length === 0) return own;
  const from = createHash('sha256').update(writer.name).digest().readUInt32BE(0) % own.length;
  return [...own.slice(from), ...own.slice(0, from)];
}

async function dispatchJob(working: Work, plan: RunPlan, ledger: Ledger): Promise<DispatchJob> {
  const { task, settings, handBack, log } = working;
  const { wish, batch, door } = task;
  const options = { ...DEFAULT_OPTIONS, ...wish.options };
  const { models } = plan;
  // It may have gone away since it was ready: then lines wait for it, and are sent to whatever comes back.
  const look = await lookAtEngine({ door, settings }, models, handBack);
  if (look.is === 'unfit') {
    throw invalidInput(
      'engine.unfit',
      `The engine in this pod does not fit the batch: ${look.reason}. See --served-model-name of its container.`,
    );
  }
  const served = look.is === 'healthy' && models.length > 0 ? look.models : models;
  const engines = [{ address: door.url, models: served }];
  const givenUp = models.filter((model) => !served.includes(model));
  if (givenUp.length > 0)
    log.warn({ givenUp }, 'the engine does not serve these models: their lines fail');
  return {
    id: batch.jobId,
    endpoint: batch.endpoint,
    pinnedModel: batch.pinnedModel,
    models,
    inputKey: plan.inputKey,
    maxConcurrency: wish.maxConcurrency ?? settings.maxConcurrency,
    adaptive: options.adaptive,
    rank: 0,
    isGuarded: options.onErrorRate !== 'continue',
    isFresh: ledger.completed + ledger.failed === 0,
    isHedged: false,
    retry: options.retry ?? DEFAULT_RETRY,
    answerTimeoutMs: options.answerTimeoutMs,
    limits: shareOf(options.limits, task.indexes),
    upstreamStream: options.upstreamStream,
    engines: () => engines,
    givenUp: () => givenUp,
  };
}

/** Pods of an Indexed Job know nothing of each other: each has its part of what the batch may ask. */
function shareOf({ requestsPerSecond, tokensPerMinute }: JobLimits, pods: number): JobLimits {
  return {
    requestsPerSecond: requestsPerSecond === null ? null : requestsPerSecond / pods,
    tokensPerMinute: tokensPerMinute === null ? null : tokensPerMinute / pods,
  };
}

function openDispatcher(
  working: Work,
  plan: RunPlan,
  ledger: () => Ledger,
  finish: (end: End, graceMs: number) => void,
): Dispatcher {
  const { task, report, log } = working;
  const { failAfterRequests } = task.spec;
  let answered = 0;
  return createRunDispatcher({
    ...working,
    plan,
    ledger,
    engine: task.door.url,
    onAnswered() {
      answered += 1;
      if (answered !== failAfterRequests) return;
      const reason = `opts.fail_after_n_requests asks for it, after ${answered} answers.`;
      finish({ why: 'stop', stop: { stop: 'software', reason } }, 0);
    },
    onTrouble(_jobId, { code, message }) {
      log.error({ code, reason: message }, 'requests fail for a reason that is not their own');
      finish({ why: 'trouble', code, message }, 0);
    },
    onEngineDown: (reason) => report.set({ reason: `Waiting for the engine: ${reason}` }),
    onRefused(reason) {
      const isOurs = report.now.reason.startsWith(REFUSED);
      if (reason !== null) report.set({ reason: `${REFUSED}${reason}` });
      else if (isOurs) report.set({ reason: '' });
    },
  });
}

const REFUSED = 'Waiting for the storage: ';

/** Looks at the engine, and at what other pods of the index do; never rejects. */
async function watchOthers(
  working: Work,
  signal: AbortSignal,
  finish: (end: End, graceMs: number) => void,
): Promise<void> {
  const { task, settings, log, report } = working;
  const onReason = (reason: string) => report.set({ reason });
  const engine = watchEngine({ door: task.door, settings, log, onReason }, signal).then((gone) => {
    if (gone !== null) finish({ why: 'stop', stop: gone }, 0);
  });
  await Promise.all([engine, followOthers(working, signal, finish)]);
}

async function followOthers(
  working: Work,
  signal: AbortSignal,
  finish: (end: End, graceMs: number) => void,
): Promise<void> {
  const { record, task, writer, log } = working;
  const { index } = task;
  const sleep = async (ms: number) => clock.sleep(ms, signal);
  for (;;) {
    await sleep(REFRESH_MS);
    if (signal.aborted) return;
    const { plan, ledger } = working;
    if (plan === null || ledger === null) continue;
    try {
      await refreshLedger(ledger, { index, own: writer.name }, { record, plan, log });
      if ((await findSeal(record, index, sleep)) !== null) {
        log.warn({}, 'another pod has finished the batch');
        finish({ why: 'sealed' }, 0);
        return;
      }
    } catch (error) {
      log.warn({ reason: describeError(error) }, 'what other pods do cannot be read from storage');
    }
  }
}
