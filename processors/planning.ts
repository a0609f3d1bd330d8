import { addAbortSignal } from 'node:stream';
import type { Processor, Verdict } from '../queues/worker.ts';
import type { ReadPlan } from '../src/dispatcher/read-plan.ts';
import { shownError, SluiceError } from '../src/domain/errors.ts';
import { inputKey } from '../src/domain/file.ts';
import { isPaused, JOB } from '../src/domain/job.ts';
import type { JobError, JobRecord } from '../src/domain/job.ts';
import { reportProblems } from '../src/domain/plan.ts';
import type { JobChange } from '../src/store/jobs.ts';
import { hashed, inputError, noteOutside } from './changed-input.ts';
import type { Deps } from './deps.ts';
import { codeOf } from './lease-ask.ts';
import { candidates } from './lease-offers.ts';
import { NOTHING_TO_ASK, PAUSED_LOOK_MS } from './pause.ts';
import { remoteFor, whyNotRemote } from './remote.ts';
import { describeLeftOut, writeRetryInput } from './retry.ts';
import { FIRST_WAKE, recordProvision, stopJob } from './settle.ts';

const NO_ENGINE = 'No engine to run it: set ENGINE_URLS, or name one in aibrix.runtime.';

/** Validates a job's whole input in one streaming pass, cuts it into shards, and records the engines that it gets. */
export const planning: Processor<Deps> = async ({ id, wake, signal }, deps): Promise<Verdict> => {
  const job = await deps.store.jobs.get(id);
  if (job === null || JOB[job.state].queue !== 'planning' || job.wake !== wake) return 'done';
  // It was read, and found to have nothing to ask: to read it each time would be work for nothing.
  if (isPaused(job) && job.reason === NOTHING_TO_ASK) return { againInMs: PAUSED_LOOK_MS };
  const remote = remoteFor(job, deps);
  const slots = deps.manager.slots({ ...job, remote });
  const reason = slots.length === 0 ? NO_ENGINE : whyNotRemote(job, deps);
  if (await isNeverRun(job, reason, deps)) return 'done';
  const plan = await read(job, signal, deps);
  if (plan === null) return 'done';
  const { lines, shards, models, bad } = plan;
  const counted = { lines, shards, models };
  const set = remote === null ? counted : { ...counted, remote };
  const event = describePlan(plan) + (await describeLeftOut(job, lines, deps));
  if (bad === lines) return finishUnasked(job, { outcome: 'completed', event, set: counted }, deps);
  const provisions = await Promise.all(slots.map((slot) => recordProvision(job, slot, 0, deps)));
  const moved = await deps.advanceJob(job, 'resource_preparing', { event, set });
  if (moved === 'stale') return 'done';
  // Not before the job has moved: what serves a provision asks whether its job wants it.
  await Promise.all(
    provisions.map((entity) => deps.add({ queue: 'provisioning', entity, wake: FIRST_WAKE })),
  );
  return 'done';
};

/** Ends a job that cannot be run, for this reason or because no machine can be leased for it. */
async function isNeverRun(job: JobRecord, reason: string | null, deps: Deps): Promise<boolean> {
  if (reason === null) return isNeverLeased(job, deps);
  await stopJob(job.id, { outcome: 'resource_failed', event: reason, reason }, deps);
  return true;
}

/** Ends a job for which no machine can ever be leased before its input is read. What only time can tell is left open. */
async function isNeverLeased({ id, options }: JobRecord, deps: Deps): Promise<boolean> {
  const { leasing } = deps;
  if (options.resources === null || leasing === null) return false;
  if (options.resources.machine !== undefined) return false;
  try {
    await candidates(options.resources, leasing, deps.store);
    return false;
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error;
    if (error.kind === 'NoCapacity' || error.kind === 'Transient') return false;
    const reason = shownError(error);
    const errors = [{ code: codeOf(error), message: reason, line: null, param: error.param }];
    const event = 'No machine can be had for this job.';
    await stopJob(id, { outcome: 'resource_failed', event, reason, errors }, deps);
    return true;
  }
}

/** Nothing is leased for lines that no engine can be asked. Paused, the job waits: it ends when it is resumed. */
async function finishUnasked(job: JobRecord, change: JobChange, deps: Deps): Promise<Verdict> {
  if ((await deps.advanceJob(job, 'finalizing', change)) !== 'stale') return 'done';
  const now = await deps.store.jobs.get(job.id);
  if (now?.state !== 'queued') return 'done';
  await deps.store.jobs.note(job.id, NOTHING_TO_ASK);
  return { againInMs: PAUSED_LOOK_MS };
}

function describePlan({ lines, shards, bad }: ReadPlan): string {
  if (bad === 0) return `The input is valid: ${lines} requests in ${shards} shards.`;
  return (
    `The input has ${lines} requests in ${shards} shards; ${bad} of them are bad and go to the ` +
    'error file.'
  );
}

/** The plan, or null where the job was stopped for what its input is. Storage that is away is tried again. */
async function read(job: JobRecord, signal: AbortSignal, deps: Deps): Promise<ReadPlan | null> {
  const { endpoint, cut, options } = job;
  const isLenient = options.validation === 'lenient';
  try {
    await writeRetryInput(job, signal, deps);
    // A body may stand still for long, and nobody is to wait for it who is to stop.
    const stream = addAbortSignal(signal, await deps.storage.get(inputKey(job)));
    const { source, digest } = options.inputLocation === null ? { source: stream } : hashed(stream);
    const plan = await deps.readPlan(source, {
      endpoint,
      pinnedModel: options.pinnedModel,
      cut,
      onShards: (shards) => deps.store.shards.write(job.id, shards),
      onBadLines: isLenient ? (shards) => deps.store.shards.markBad(job.id, shards) : null,
      signal,
    });
    const errors = isLenient ? unfit(plan) : reportProblems(plan.problems, plan.total);
    if (errors.length === 0) {
      if (digest !== undefined) await noteOutside(job, digest(), deps);
      return plan;
    }
    const event = describeProblem(errors);
    await stopJob(job.id, { outcome: 'failed', event, errors }, deps);
    return null;
  } catch (error) {
    if (!(error instanceof SluiceError) || error.kind === 'Transient') throw error;
    const isEmpty = error.code === 'nothing_to_retry';
    const param = isEmpty ? null : 'input_file_id';
    const errors = [{ ...inputError(error), param }];
    const event = isEmpty ? 'There is nothing to ask again.' : 'The input file cannot be read.';
    deps.log.warn({ jobId: job.id, err: error }, 'the input of a job cannot be read');
    await stopJob(job.id, { outcome: 'failed', event, reason: shownError(error), errors }, deps);
    return null;
  }
}

/** What no bad line can be blamed for. */
function unfit({ unfit: problem }: ReadPlan): JobError[] {
  return problem === null ? [] : [problem];
}

function describeProblem([first]: readonly JobError[]): string {
  const where = first?.line === null ? '' : ` in line ${first?.line}`;
  return `The input file is not valid: ${first?.code}${where}.`;
}
