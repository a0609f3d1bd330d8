import { parseShardEntity } from '../queues/catalog.ts';
import type { Processor, Task } from '../queues/worker.ts';
import type { TakenShard } from '../src/dispatcher/dispatcher.ts';
import { describeError, permanent } from '../src/domain/errors.ts';
import { fileKey } from '../src/domain/file.ts';
import { plannedRules } from '../src/domain/job.ts';
import { DEFAULT_RETRY } from '../src/domain/retry.ts';
import type { Deps } from './deps.ts';
import { addShards } from './settle.ts';
import type { Watch } from './watch.ts';

/** Long enough to be cheap, short against the lines that this process still has to send. */
const STEP_ASIDE_MS = 1_000;

/** Takes a shard, has its lines asked and committed, and gives back what could not be finished. */
export const dispatch: Processor<Deps> = async ({ id, wake, signal, lockLost }, deps) => {
  const shard = parseShardEntity(id);
  if (shard === null) throw permanent('queue.bad_shard', `'${id}' names no shard`);
  const { jobId, n } = shard;
  // This process has enough of the job; whoever waits behind it may be for other engines.
  if (deps.dispatcher.isFull(jobId)) return { againInMs: STEP_ASIDE_MS };
  const token = deps.newToken();
  const taken = await deps.store.shards.take(jobId, { n, wake }, token, deps.ahead());
  if (taken.outcome === 'not now') return 'done';
  await addShards(jobId, taken.waiting, deps);
  if (taken.outcome === 'stale') return 'done';
  let result: Awaited<ReturnType<typeof send>>;
  try {
    result = await send({ ...taken, token }, jobId, { signal, lockLost }, deps);
  } catch (error) {
    // The shard stays held, and is taken again under the same wake, later each time: given back it would come at once.
    if (!signal.aborted) {
      await deps.store.jobs.note(jobId, describeError(error));
      throw error;
    }
    result = 'stopped';
  }
  if (result !== 'done') {
    const waiting = await deps.store.shards.give(jobId, n, token, deps.ahead());
    await addShards(jobId, waiting, deps);
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
    const result = await deps.dispatcher.run(shard, toDispatch(watch), { stop, abort });
    // Whatever kept it from being sent is over.
    if (result === 'done' && watch.job.reason !== '') await deps.store.jobs.note(jobId, '');
    return result;
  } finally {
    over.abort();
    watch.close();
  }
}

function toDispatch(watch: Watch) {
  const { id, input, maxConcurrency, options } = watch.job;
  return {
    id,
    ...plannedRules(watch.job),
    inputKey: fileKey(input),
    maxConcurrency,
    retry: options.retry ?? DEFAULT_RETRY,
    engines: watch.engines,
  };
}
