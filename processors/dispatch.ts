import { parseShardEntity } from '../queues/catalog.ts';
import type { Processor, Task } from '../queues/worker.ts';
import type { TakenShard } from '../src/dispatcher/dispatcher.ts';
import { shownError, permanent } from '../src/domain/errors.ts';
import { inputKey } from '../src/domain/file.ts';
import { classNow, JOB_CLASSES, plannedRules } from '../src/domain/job.ts';
import { DEFAULT_RETRY } from '../src/domain/retry.ts';
import { stopIfChanged } from './changed-input.ts';
import type { Deps } from './deps.ts';
import { addWaiting } from './settle.ts';
import type { Watch } from './watch.ts';

/** Takes a shard, has its lines asked and committed, and gives back what could not be finished. */
export const dispatch: Processor<Deps> = async (task, deps) => {
  const { id, wake, signal, lockLost } = task;
  const shard = parseShardEntity(id);
  if (shard === null) throw permanent('queue.bad_shard', `'${id}' names no shard`);
  const { jobId, n } = shard;
  // This process may have enough of the job; whoever waits behind it may be another, or for other engines. Lines that a
  // process had when it died are asked again before.
  const asideMs = task.first === true ? 0 : deps.dispatcher.asideMs(jobId);
  if (asideMs > 0) return { againInMs: asideMs };
  const token = deps.newToken();
  const { crashApartMs } = deps;
  const taken = await deps.store.shards.take(jobId, { n, wake }, token, deps.ahead(), crashApartMs);
  if (taken.outcome === 'not now') return 'done';
  await addWaiting(jobId, taken.waiting, deps);
  if (taken.outcome === 'stale') return 'done';
  let result: Awaited<ReturnType<typeof send>>;
  try {
    const { crashed } = taken;
    const sinceMs = crashed === null ? 0 : Math.max(0, deps.now() - crashed.at);
    const held = { ...taken, token, crashed: crashed && { ...crashed, sinceMs } };
    result = await send(held, jobId, { signal, lockLost }, deps);
  } catch (error) {
    // The shard stays held, and is taken again under the same wake, later each time: given back it would come at once.
    if (!signal.aborted && !(await stopIfChanged(jobId, error, deps))) {
      await deps.store.jobs.note(jobId, shownError(error));
      throw error;
    }
    result = 'stopped';
  }
  if (result !== 'done') {
    const waiting = await deps.store.shards.give(jobId, n, token, deps.ahead());
    await addWaiting(jobId, waiting, deps);
  }
  return 'done';
};

async function send(
  shard: TakenShard,
  jobId: string,
  { signal, lockLost }: Pick<Task, 'signal' | 'lockLost'>,
  deps: Deps,
): Promise<'done' | 'lost' | 'stopped'> {
  const watch = await deps.watches.open(jobId);
  if (watch === null) return 'stopped';
  // Ends what listens to the signals of this shard: theirs live as long as the process.
  const over = new AbortController();
  try {
    const stop = AbortSignal.any([signal, watch.signal, watch.paused, over.signal]);
    const abort = AbortSignal.any([lockLost, watch.signal, deps.graceOver, over.signal]);
    const result = await deps.dispatcher.run(shard, toDispatch(watch, deps.now()), { stop, abort });
    // Whatever kept it from being sent is over.
    if (result === 'done' && watch.job.reason !== '') await deps.store.jobs.note(jobId, '');
    return result;
  } finally {
    over.abort();
    watch.close();
  }
}

function toDispatch(watch: Watch, now: number) {
  const { id, maxConcurrency, options } = watch.job;
  return {
    id,
    ...plannedRules(watch.job),
    inputKey: inputKey(watch.job),
    maxConcurrency,
    adaptive: options.adaptive,
    rank: JOB_CLASSES.indexOf(classNow(watch.job, now)),
    isGuarded: options.onErrorRate !== 'continue',
    isFresh: watch.job.completed + watch.job.failed === 0,
    isHedged: options.hedging,
    retry: options.retry ?? DEFAULT_RETRY,
    answerTimeoutMs: options.answerTimeoutMs,
    limits: options.limits,
    upstreamStream: options.upstreamStream,
    engines: watch.engines,
    givenUp: watch.givenUp,
  };
}
