import { parseShardEntity } from '../queues/catalog.ts';
import type { Processor } from '../queues/worker.ts';
import { permanent } from '../src/domain/errors.ts';
import { fileKey } from '../src/domain/file.ts';
import type { Deps } from './deps.ts';
import { addShards } from './settle.ts';
import type { Watch } from './watch.ts';

/** Takes a shard, has its lines asked and committed, and gives back what could not be finished. */
export const dispatch: Processor<Deps> = async ({ id, wake, signal, lockLost }, deps) => {
  const shard = parseShardEntity(id);
  if (shard === null) throw permanent('queue.bad_shard', `'${id}' names no shard`);
  const { jobId, n } = shard;
  const token = deps.newToken();
  const taken = await deps.store.shards.take(jobId, { n, wake }, token, deps.ahead());
  if (taken.outcome === 'not now') return 'done';
  await addShards(jobId, taken.waiting, deps);
  if (taken.outcome === 'stale') return 'done';
  let finished = false;
  try {
    const watch = await deps.watches.open(jobId);
    if (watch !== null) {
      try {
        const stop = AbortSignal.any([signal, watch.signal]);
        const abort = AbortSignal.any([lockLost, watch.signal, deps.graceOver]);
        const result = await deps.dispatcher.run({ ...taken, token }, toDispatch(watch), {
          stop,
          abort,
        });
        finished = result === 'done';
      } finally {
        watch.close();
      }
    }
  } finally {
    if (!finished) {
      const waiting = await deps.store.shards.give(jobId, n, token, deps.ahead());
      await addShards(jobId, waiting, deps);
    }
  }
  return 'done';
};

function toDispatch(watch: Watch) {
  const { id, endpoint, input, maxConcurrency } = watch.job;
  return {
    id,
    endpoint,
    inputKey: fileKey(input),
    maxConcurrency,
    addresses: watch.addresses,
  };
}
