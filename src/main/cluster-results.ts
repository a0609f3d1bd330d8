import { randomUUID } from 'node:crypto';
import { buffer } from 'node:stream/consumers';
import { SluiceError } from '../domain/errors.ts';
import type { Endpoint } from '../domain/job.ts';
import type { Seal } from '../domain/kubernetes/run-record.ts';
import type { RemoteEnd } from '../domain/remote.ts';
import { jobIdOfUid, progressKey, runPrefix } from '../domain/worker-progress.ts';
import type { WorkerProgress } from '../domain/worker-progress.ts';
import type { Logger } from '../observability/log.ts';
import type { Storage } from '../storage/contract.ts';
import { finishRun, sealRun } from './batch/finish.ts';
import { createRecord } from './batch/record.ts';
import type { RunRecord } from './batch/record.ts';
import { clock } from './clock.ts';

/** What the workers of a Job have said in storage, an entry an index. */
export interface RunLook {
  /** Newest word of each index; null: it has said nothing yet. */
  words: (WorkerProgress | null)[];
  /** Each of them is over. */
  isOver: boolean;
}

export interface RunEnding {
  uid: string;
  indexes: number;
  outcome: Seal['outcome'];
  errors: Seal['errors'];
  endpoint: Endpoint;
  /** ms. */
  startedAt: number;
}

/** The records of runs that pods of Jobs keep in storage. */
export interface RunResults {
  look(uid: string, indexes: number): Promise<RunLook>;
  /** What a run comes to: its indexes are sealed as they are, and its files written, once by this process. */
  finish(ending: RunEnding, signal: AbortSignal): Promise<RemoteEnd>;
  /** Notes that a run was stopped on purpose, whatever becomes of its Job. */
  markCancelled(uid: string): Promise<void>;
  isCancelled(uid: string): Promise<boolean>;
  /** Removes all of it, and the files of its own that it wrote. */
  remove(uid: string, files: readonly (string | null)[]): Promise<void>;
}

interface ResultsGround {
  storage: Storage;
  maxLineBytes: number;
  log: Logger;
}

export function createRunResults(ground: ResultsGround): RunResults {
  const { storage } = ground;
  const finishing = new Map<string, Promise<RemoteEnd>>();
  const recordOf = (uid: string) => createRecord(uid, { data: storage, meta: storage });
  const cancelKey = (uid: string) => `${runPrefix(uid)}cancelled`;

  async function wordOf(record: RunRecord, index: number) {
    const last = await record.final(index);
    if (last !== null) return { word: last, isOver: true };
    return { word: await readProgress(storage, record.uid, index), isOver: false };
  }

  return {
    async look(uid, indexes) {
      const record = recordOf(uid);
      const all = Array.from({ length: indexes }, async (_each, index) => wordOf(record, index));
      const found = await Promise.all(all);
      return {
        words: found.map(({ word }) => word),
        isOver: found.every(({ isOver }) => isOver),
      };
    },
    async finish(ending, signal) {
      const running = finishing.get(ending.uid) ?? endRun(ending, ground, signal);
      finishing.set(ending.uid, running);
      try {
        return await running;
      } finally {
        finishing.delete(ending.uid);
      }
    },
    async markCancelled(uid) {
      await storage.put(cancelKey(uid), [Buffer.from('cancelled\n')]);
    },
    isCancelled: async (uid) => (await storage.head(cancelKey(uid))) !== null,
    async remove(uid, files) {
      for (const key of files) if (key !== null) await storage.delete(key);
      for await (const key of storage.list(runPrefix(uid))) await storage.delete(key);
    },
  };
}

async function endRun(
  { uid, indexes, outcome, errors, endpoint, startedAt }: RunEnding,
  { storage, maxLineBytes, log }: ResultsGround,
  signal: AbortSignal,
): Promise<RemoteEnd> {
  const record = createRecord(uid, { data: storage, meta: storage });
  const sleep = async (ms: number) => clock.sleep(ms, signal);
  const wish = { indexes, outcome, errors, name: `follower.${randomUUID()}`, now: clock.now() };
  const seals = await sealRun({ record, log, sleep }, wish);
  if (seals === null) return { status: outcome, output: null, error: null };
  const batch = {
    jobId: jobIdOfUid(uid),
    endpoint,
    pinnedModel: null,
    outputFileId: null,
    errorFileId: null,
    outputPrefix: null,
  };
  const finishing = { record, batch, storage, maxLineBytes, startedAt, log, signal, sleep };
  const run = await finishRun(finishing, seals);
  return {
    status: run?.outcome ?? outcome,
    output: run?.output?.key ?? null,
    error: run?.error?.key ?? null,
  };
}

async function readProgress(
  storage: Storage,
  uid: string,
  index: number,
): Promise<WorkerProgress | null> {
  try {
    const bytes = await buffer(await storage.get(progressKey(uid, index)));
    // Ours, whole or not at all, as every object of a storage.
    return JSON.parse(bytes.toString('utf8')) as WorkerProgress;
  } catch (error) {
    if (error instanceof SluiceError && error.kind === 'NotFound') return null;
    throw error;
  }
}
