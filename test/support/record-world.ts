import { randomUUID } from 'node:crypto';
import type { Deps, SettleDeps } from '../../processors/deps.ts';
import { processors } from '../../processors/index.ts';
import { createAdvance } from '../../queues/advance.ts';
import type { Verdict } from '../../queues/worker.ts';
import { isFinal, JOB } from '../../src/domain/job.ts';
import type { JobRecord, JobState, QueueName } from '../../src/domain/job.ts';
import { PROVISION, provisionId } from '../../src/domain/provision.ts';
import type { ProvisionRecord, ProvisionState } from '../../src/domain/provision.ts';
import type { JobChange } from '../../src/store/jobs.ts';
import type { ProvisionChange } from '../../src/store/provisions.ts';
import { createStore } from '../../src/store/store.ts';
import type { Store } from '../../src/store/store.ts';
import { ADDRESS, openJobWorld } from './job-world.ts';
import { connectTo } from './store-back-ends.ts';

const NEVER = new AbortController().signal;
const MOST_STEPS = 20;

/** The product's moves and processors over records in a real Redis; a test delivers by hand and has no BullMQ. */
export interface RecordWorld extends Disposable {
  redis: ReturnType<typeof connectTo>;
  store: Store;
  /** A test may give parts of it its own. */
  deps: Deps;
  /** Milliseconds by which the process believes to be later than it is. */
  ahead: number;
  /** Writes a field of a record past the store. */
  setField(key: string, field: string, value: string | number): Promise<void>;
  /** Takes a job in progress back to `submitting`, with a provision that is `starting`; returns the provision's id. */
  fallBack(jobId: string): Promise<string>;
  job(id: string): Promise<JobRecord>;
  /** Delivers a record to the processor of a queue, under the wake that it has. */
  deliver(queue: QueueName, id: string): Promise<Verdict>;
  /** Delivers a job to release until it is final. */
  untilFinal(jobId: string): Promise<JobRecord>;
}

/** Opens one in a namespace of its own. */
export function openRecordWorld(): RecordWorld {
  const redis = connectTo('redis');
  const store = createStore({ redis, namespace: randomUUID() });
  const world: RecordWorld = {
    redis,
    store,
    deps: { ...openJobWorld('in_progress', null).deps, ...moves(store) },
    ahead: 0,
    async setField(key, field, value) {
      await redis.hset(key, field, value);
    },
    fallBack: (jobId) => fallBack(world, jobId),
    async job(id) {
      const job = await store.jobs.get(id);
      if (job === null) throw new Error(`there is no ${id}`);
      return job;
    },
    async deliver(queue, id) {
      const record = id.startsWith('prov_') ? await store.provisions.get(id) : await world.job(id);
      const task = { id, wake: record?.wake ?? 0, signal: NEVER, lockLost: NEVER };
      return processors[queue](task, world.deps);
    },
    async untilFinal(jobId) {
      for (let step = 0; step < MOST_STEPS; step += 1) {
        const job = await world.job(jobId);
        if (isFinal(job.state)) return job;
        await world.deliver('release', jobId);
      }
      throw new Error(`${jobId} does not end: ${JSON.stringify(await world.job(jobId))}`);
    },
    [Symbol.dispose]: () => redis.disconnect(),
  };
  world.deps.now = () => Date.now() + world.ahead;
  world.deps.assemble = async (_source, sinks, { jobId }) => {
    const { lines, completed, failed } = await world.job(jobId);
    sinks.output.end(completed > 0 ? 'answers' : '');
    sinks.error.end(lines > completed ? 'errors' : '');
    return { output: completed, error: failed, undone: lines - completed - failed };
  };
  return world;
}

function moves(store: Store): SettleDeps & Pick<Deps, 'store'> {
  async function add(): Promise<void> {}
  return {
    store,
    add,
    advanceJob: createAdvance<JobRecord, JobState, JobChange>(
      JOB,
      (job, to, change) => store.jobs.move(job, to, change),
      add,
    ),
    advanceProvision: createAdvance<ProvisionRecord, ProvisionState, ProvisionChange>(
      PROVISION,
      (provision, to, change) => store.provisions.move(provision, to, change),
      add,
    ),
    manager: { provider: 'static', slots: () => [{ slot: 0, address: ADDRESS }] },
    pauseReleaseMs: 60_000,
    ahead: () => 1,
    now: Date.now,
    log: { debug() {}, info() {}, warn() {}, error() {} },
  };
}

async function fallBack({ store, job }: RecordWorld, jobId: string): Promise<string> {
  const id = provisionId(jobId, 0, 0);
  const slot = { slot: 0, provider: 'static', owner: 'sluice', address: ADDRESS } as const;
  await store.provisions.create({ id, job: jobId, ...slot });
  await store.provisions.move({ id, state: 'intended', version: 1 }, 'starting');
  const moved = await store.jobs.move(await job(jobId), 'submitting');
  if (moved === 'stale') throw new Error('nobody else moves this job');
  return id;
}
