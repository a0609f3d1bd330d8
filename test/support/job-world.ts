import { Readable } from 'node:stream';
import { processors } from '../../processors/index.ts';
import type { Deps } from '../../processors/deps.ts';
import { createFailedTries } from '../../processors/give-up.ts';
import { createAdvance } from '../../queues/advance.ts';
import type { Delivery } from '../../queues/catalog.ts';
import { queueAction } from '../../src/domain/errors.ts';
import { isFinal, isOpen, JOB } from '../../src/domain/job.ts';
import type { JobRecord, JobState, QueueName } from '../../src/domain/job.ts';
import { NO_LEASE, PROVISION } from '../../src/domain/provision.ts';
import type { ProvisionRecord, ProvisionState } from '../../src/domain/provision.ts';
import type { JobChange } from '../../src/store/jobs.ts';
import type { Lease } from '../../src/store/lease.ts';
import type { Store } from '../../src/store/store.ts';
import { DEFAULT_OPTIONS } from '../../src/domain/job.ts';

const NEVER = new AbortController().signal;
export const ADDRESS = 'http://engine:8000';

export interface Killed {
  /** The process dies between work and record, or between record and delivery. */
  at: 'apply' | 'add' | null;
}

class Death extends Error {}

/** An object with these parts only: whoever touches another one is told. */
function only<T extends object>(parts: Partial<T>): T {
  return new Proxy(parts, {
    get(target, name) {
      if (!(name in target)) throw new Error(`nobody should touch ${String(name)} here`);
      return Reflect.get(target, name) as unknown;
    },
  }) as T; // the proxy refuses what is missing
}

function newJob(state: JobState): JobRecord {
  const isStopped = state === 'cancelling' || state === 'finalizing';
  return {
    id: 'job_1',
    state,
    version: 5,
    wake: 3,
    outcome: isFinal(state) ? state : isStopped ? 'cancelled' : null,
    name: '',
    endpoint: '/v1/chat/completions',
    input: 'file-1',
    completionWindow: '24h',
    deadline: 100_000,
    metadata: {},
    maxConcurrency: 8,
    engines: [],
    options: DEFAULT_OPTIONS,
    remote: null,
    cut: { lines: 100, bytes: 1_000 },
    models: ['m'],
    lines: 20,
    shards: 1,
    doneShards: 0,
    completed: state === 'queued' ? 0 : 1,
    failed: 0,
    usage: { inputTokens: 0, cachedTokens: 0, outputTokens: 0, reasoningTokens: 0 },
    outputFile: null,
    errorFile: null,
    errors: [],
    reason: '',
    pausedAt: null,
    pausedBy: '',
    givenUp: [],
    createdAt: 0,
    enteredAt: {},
  };
}

function newProvision(state: ProvisionState): ProvisionRecord {
  return {
    id: 'prov_1_0_0',
    job: 'job_1',
    slot: 0,
    state,
    version: 2,
    wake: 2,
    provider: 'static',
    owner: 'sluice',
    address: ADDRESS,
    models: null,
    ...NO_LEASE,
    reason: '',
    reasonAt: null,
    createdAt: 0,
    enteredAt: {},
  };
}

/** One job with one provision (null: none yet), kept here instead of in Redis, under the product's own processors. */
export function openJobWorld(state: JobState, provisionState: ProvisionState | null) {
  const killed: Killed = { at: null };
  const added: Delivery[] = [];
  const moves: string[] = [];
  let healthy = true;
  const job = newJob(state);
  const provision = newProvision(provisionState ?? 'released');

  async function add(delivery: Delivery): Promise<void> {
    if (killed.at === 'add' && moves.length > 0) throw new Death('killed after apply');
    added.push(delivery);
  }
  function move<R extends { state: string; version: number; wake: number }>(
    record: R,
    seen: { version: number },
    to: R['state'],
    queue: QueueName | null,
  ): { version: number; wake: number } | 'stale' {
    if (killed.at === 'apply') throw new Death('killed before apply');
    if (record.version !== seen.version) return 'stale';
    moves.push(to);
    record.state = to;
    record.version += 1;
    if (queue !== null) record.wake += 1;
    return { version: record.version, wake: record.wake };
  }
  const deps = only<Deps>({
    store: {
      jobs: only<Store['jobs']>({
        get: async () => ({ ...job }),
        note: async () => undefined,
        publishStop: async () => undefined,
        async pause(_id, by) {
          if (!isOpen(job.state)) return false;
          job.pausedAt = 1;
          job.pausedBy = by;
          return true;
        },
        async resume() {
          if (!isOpen(job.state)) return false;
          job.pausedAt = null;
          return true;
        },
      }),
      shards: only<Store['shards']>({
        open: async () => [],
        held: async () => 0,
        async *accepted() {},
      }),
      provisions: only<Store['provisions']>({
        get: async () => ({ ...provision }),
        ofJob: async () => (provisionState === null ? [] : [{ ...provision }]),
        create: async () => 'created' as const,
        note: async () => undefined,
        async wake(_id, wake) {
          if (provision.wake !== wake) return 'stale';
          provision.wake += 1;
          return provision.wake;
        },
      }),
      files: only<Store['files']>({
        create: async (file) => ({ ...file, createdAt: 0 }),
        get: async () => null,
      }),
      leases: only<Store['leases']>({}),
      writer: () => only<Lease>({ isHeld: async () => false }),
    },
    storage: only<Deps['storage']>({
      get: async () => Readable.from([]),
      head: async () => null,
      async put(_key, source) {
        for await (const _chunk of source);
        return { bytes: 0, sha256: '' };
      },
    }),
    runtime: {
      look: async () =>
        healthy ? { is: 'healthy', models: ['m'] } : { is: 'down', reason: 'gone' },
    },
    manager: { provider: 'static', slots: () => [{ slot: 0, address: ADDRESS }] },
    leasing: null,
    machines: null,
    pauseReleaseMs: 60_000,
    readPlan: async () => ({
      lines: 20,
      shards: 1,
      models: ['m'],
      bad: 0,
      problems: [],
      total: 0,
      unfit: null,
    }),
    async assemble(_source, sinks) {
      sinks.output.end('an answer');
      sinks.error.end('another');
      return { output: job.completed, error: 0, undone: 19 };
    },
    advanceJob: createAdvance<JobRecord, JobState, JobChange>(
      JOB,
      async (seen, to) => move(job, seen, to, JOB[to].queue),
      add,
    ),
    advanceProvision: createAdvance<ProvisionRecord, ProvisionState, { reason?: string }>(
      PROVISION,
      async (seen, to) => move(provision, seen, to, PROVISION[to].queue),
      add,
    ),
    add,
    ahead: () => 2,
    now: () => 10_000,
    failedTries: createFailedTries(),
    early: { finish: async () => null },
    version: '1.2.3',
    scanModel: () => null,
    remote: null,
    log: { debug() {}, info() {}, warn() {}, error() {} },
  });

  async function deliver({ queue, entity, wake }: Delivery): Promise<void> {
    const task = { id: entity, wake, signal: NEVER, lockLost: NEVER };
    await processors[queue](task, deps).catch((error: unknown) => {
      // What is transient is tried again: the record has to stand where it stood.
      if (!(error instanceof Death) && queueAction(error) !== 'retry') throw error;
    });
  }
  return {
    job,
    provision,
    deps,
    added,
    moves,
    killed,
    deliver,
    fail() {
      healthy = false;
    },
  };
}

export type JobWorld = ReturnType<typeof openJobWorld>;
