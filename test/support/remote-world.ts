import { randomUUID } from 'node:crypto';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import type { Deps } from '../../processors/deps.ts';
import { stopJob } from '../../processors/settle.ts';
import { assemble } from '../../src/dispatcher/assemble.ts';
import { goodLines } from '../../src/dispatcher/remote-input.ts';
import { notFound } from '../../src/domain/errors.ts';
import { fileKey, outputFileId } from '../../src/domain/file.ts';
import { DEFAULT_OPTIONS, isFinal, parseCompletionWindow } from '../../src/domain/job.ts';
import type { JobOptions, JobRecord } from '../../src/domain/job.ts';
import { SHARD_CUT } from '../../src/domain/plan.ts';
import { isReleased, PROVISION } from '../../src/domain/provision.ts';
import type { ProvisionRecord } from '../../src/domain/provision.ts';
import { planInput } from '../../src/main/plan-input.ts';
import { assembleRemotely } from '../../src/main/remote.ts';
import { createStaticManager } from '../../src/resources/static/index.ts';
import { createRemoteService } from '../../src/runtimes/remote/index.ts';
import { openRecordWorld } from './record-world.ts';
import type { RecordWorld } from './record-world.ts';
import { until } from './until.ts';

const LIMITS = { maxBatchLines: 1_000, maxLineBytes: 100_000, maxResponseBytes: 100_000 };

export interface RemoteWorldOptions {
  url: string;
  engineUrls?: readonly string[];
  apiKey?: string;
  unclearMs?: number;
  answerTimeout?: number;
}

/** The product's processors over records in a real Redis, with a remote service over HTTP; a test delivers by hand. */
export interface RemoteWorld extends RecordWorld, AsyncDisposable {
  /** Records a job over these lines, and delivers it to planning; returns its id. */
  plan(lines: readonly string[], change?: Partial<NewWish>): Promise<string>;
  /** The provision that the job has now. */
  provision(jobId: string): Promise<ProvisionRecord>;
  /** Delivers what the job waits for, once. */
  step(jobId: string): Promise<void>;
  /** Steps until this holds of the job. */
  steps(jobId: string, holds: (job: JobRecord) => boolean): Promise<JobRecord>;
  /** Steps to the end. */
  toEnd(jobId: string): Promise<JobRecord>;
  /** Sets the outcome of a job, as its user or the sweeper does. */
  stop(jobId: string, outcome: 'cancelled' | 'expired'): Promise<void>;
  /** A file that the job wrote, as lines; none where there is no file. */
  written(jobId: string, kind: 'output' | 'error'): string[];
}

interface NewWish {
  options: Partial<JobOptions>;
  engines: string[];
  name: string;
  maxConcurrency: number;
}

export function requestLines(count: number): string[] {
  return Array.from({ length: count }, (_, n) =>
    JSON.stringify({
      custom_id: `line-${n}`,
      method: 'POST',
      url: '/v1/chat/completions',
      body: { model: 'm', messages: [] },
    }),
  );
}

export function openRemoteWorld(options: RemoteWorldOptions): RemoteWorld {
  const { url, engineUrls = [], apiKey, unclearMs = 60_000, answerTimeout = 1_500 } = options;
  const base = openRecordWorld();
  const objects = new Map<string, Buffer>();
  const remote = createRemoteService({
    url,
    apiKey,
    engineUrls,
    connectTimeout: 1_000,
    unclearMs,
    answerTimeout,
    fileTimeout: 2_000,
  });
  const dataDir = join(tmpdir(), 'sluice-remote-world');
  const maxLineBytes = LIMITS.maxLineBytes;
  Object.assign(base.deps, {
    newToken: randomUUID,
    remote,
    storage: mapStorage(objects),
    manager: createStaticManager({ engineUrls }),
    readPlan: planInput.bind(null, { ...LIMITS, dataDir }),
    goodLines: (input: Readable, shards: Parameters<typeof goodLines>[1]) =>
      goodLines(input, shards, maxLineBytes),
    assemble: (...[source, sinks, wish]: Parameters<Deps['assemble']>) =>
      assemble(source, sinks, { ...wish, maxLineBytes }),
    assembleRemote: assembleRemotely({ ...LIMITS, dataDir }),
  });
  const world: RemoteWorld = Object.assign(base, {
    async plan(lines: readonly string[], change: Partial<NewWish> = {}) {
      const input = `file-${randomUUID().replaceAll('-', '')}`;
      const bytes = Buffer.from(lines.map((line) => `${line}\n`).join(''));
      objects.set(change.options?.inputLocation ?? fileKey(input), bytes);
      const file = { id: input, bytes: bytes.length, sha256: '', filename: 'input.jsonl' };
      await base.store.files.create({ ...file, purpose: 'batch', expiresAfterMs: null });
      const id = `job_${randomUUID().replaceAll('-', '')}`;
      await base.store.jobs.create({
        id,
        name: 'a batch',
        endpoint: '/v1/chat/completions',
        input,
        completionWindow: '24h',
        windowMs: parseCompletionWindow('24h'),
        metadata: {},
        maxConcurrency: 8,
        engines: [],
        cut: SHARD_CUT,
        bodyHash: 'x',
        ...change,
        options: { ...DEFAULT_OPTIONS, ...change.options },
      });
      await base.deliver('planning', id);
      return id;
    },
    async provision(jobId: string) {
      const all = await base.store.provisions.ofJob(jobId);
      const live = all.find(({ state }) => !isReleased(state)) ?? all.at(-1);
      if (live === undefined) throw new Error(`${jobId} has no provision`);
      return live;
    },
    async step(jobId: string) {
      const { state } = await base.job(jobId);
      if (isFinal(state)) return;
      if (state === 'cancelling' || state === 'finalizing') {
        await base.deliver('release', jobId);
        return;
      }
      const { id, state: at } = await world.provision(jobId);
      const { queue } = PROVISION[at];
      if (queue !== null) await base.deliver(queue, id);
    },
    steps: (jobId: string, holds: (job: JobRecord) => boolean) =>
      until(
        async () => {
          const job = await base.job(jobId);
          if (holds(job)) return job;
          await world.step(jobId);
          return undefined;
        },
        { timeoutMs: 10_000, what: `the state of ${jobId}` },
      ),
    toEnd: (jobId: string) => world.steps(jobId, ({ state }) => isFinal(state)),
    async stop(jobId: string, outcome: 'cancelled' | 'expired') {
      await stopJob(jobId, { outcome, event: 'Stopped.' }, base.deps);
    },
    written(jobId: string, kind: 'output' | 'error') {
      const bytes = objects.get(fileKey(outputFileId(jobId, kind)));
      return bytes === undefined ? [] : bytes.toString('utf8').trimEnd().split('\n');
    },
    async [Symbol.asyncDispose]() {
      await remote.close();
      base[Symbol.dispose]();
    },
  });
  return world;
}

function mapStorage(objects: Map<string, Buffer>) {
  return {
    async put(key: string, source: AsyncIterable<Uint8Array> | Iterable<Uint8Array>) {
      const chunks: Uint8Array[] = [];
      for await (const chunk of source) chunks.push(chunk);
      const bytes = Buffer.concat(chunks);
      objects.set(key, bytes);
      return { bytes: bytes.length, sha256: '' };
    },
    async get(key: string, { start = 0, end = Infinity } = {}) {
      const bytes = objects.get(key);
      if (bytes === undefined) throw notFound('storage.not_found', `there is no ${key}`);
      return Readable.from([bytes.subarray(start, end)], { objectMode: false });
    },
    async head(key: string) {
      const bytes = objects.get(key);
      return bytes === undefined ? null : { bytes: bytes.length, modifiedAt: 0 };
    },
    async delete(key: string) {
      objects.delete(key);
    },
  };
}
