import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { setTimeout as sleep } from 'node:timers/promises';
import { randomUUID } from 'node:crypto';
import { expect, inject, test } from 'vitest';
import type { Deps } from '../../processors/deps.ts';
import { processors } from '../../processors/index.ts';
import { openShards } from '../../processors/settle.ts';
import { Watches } from '../../processors/watch.ts';
import { connectRedis } from '../../queues/connection.ts';
import { createQueues } from '../../queues/queues.ts';
import { startWorker } from '../../queues/worker.ts';
import { onAbort } from '../../src/dispatcher/on-abort.ts';
import { openRecordWorld } from '../support/record-world.ts';
import { jobInProgress } from '../support/store-back-ends.ts';
import { until } from '../support/until.ts';

const SHARDS = 200;
const NEVER = new AbortController().signal;

async function collectGarbage(): Promise<void> {
  setFlagsFromString('--expose-gc');
  const gc: unknown = runInNewContext('gc');
  if (typeof gc !== 'function') throw new Error('no garbage collector to call');
  for (let turn = 0; turn < 5; turn += 1) {
    // What a WeakRef showed stays alive until the turn is over.
    await sleep(1);
    gc();
  }
}

test('a process that runs for long keeps nothing of the shards that it has finished', async () => {
  using world = openRecordWorld();
  const { id } = await jobInProgress(world.store, { shards: SHARDS, lines: 1 });
  const connection = connectRedis(inject('redisUrl'), { patient: true, onError() {} });
  const namespace = randomUUID();
  const queues = createQueues(connection, { namespace, onError() {} });
  const { log } = world.deps;
  const watches = new Watches({ store: world.store, now: Date.now, onEngines() {}, log });
  const stopping = new AbortController();
  const signals: WeakRef<AbortSignal>[] = [];
  const errors: unknown[] = [];
  let ran = 0;
  function add(delivery: Parameters<Deps['add']>[0]): Promise<void> {
    return queues.add(delivery);
  }
  const deps: Deps = {
    ...world.deps,
    add,
    watches,
    newToken: randomUUID,
    graceOver: NEVER,
    dispatcher: {
      asideMs: () => 0,
      // As the real one does: it waits on both, and no longer.
      async run(_shard, _job, { stop, abort }) {
        for (const signal of [stop, abort]) {
          onAbort(signal, () => undefined)();
          signals.push(new WeakRef(signal));
        }
        ran += 1;
        return 'done';
      },
    },
  };
  // Others work on the same job all the time.
  const watch = await watches.open(id);
  const worker = startWorker({
    queue: 'dispatch',
    connection,
    namespace,
    processor: processors.dispatch,
    deps,
    stopping: stopping.signal,
    onAttempt: ({ error }) => void (error === undefined || errors.push(error)),
    onError: (error) => void errors.push(error),
  });
  try {
    await openShards(id, deps);
    await until(() => ran === SHARDS || errors.length > 0, { what: `${SHARDS} shards` });
    expect(errors).toEqual([]);
    await collectGarbage();
    const alive = signals.filter((signal) => signal.deref() !== undefined);
    // The process keeps signals of its own, but not one for each shard.
    expect(alive.length).toBeLessThan(SHARDS / 10);
  } finally {
    watch?.close();
    stopping.abort();
    await worker.close();
    await queues.close();
    connection.disconnect();
  }
});
