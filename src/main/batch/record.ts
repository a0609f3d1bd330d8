import { buffer } from 'node:stream/consumers';
import type { Readable } from 'node:stream';
import { SluiceError } from '../../domain/errors.ts';
import {
  commitKey,
  commitsPrefix,
  lostKey,
  lostPrefix,
  planKey,
  runSegmentKey,
  sealKey,
  sealsPrefix,
  segmentName,
  writerKey,
  writersPrefix,
} from '../../domain/kubernetes/run-record.ts';
import type { Commit, RunPlan, RunWriter, Seal } from '../../domain/kubernetes/run-record.ts';
import { finalKey, progressKey, runPrefix } from '../../domain/worker-progress.ts';
import type { WorkerProgress } from '../../domain/worker-progress.ts';
import type { PutResult, Storage } from '../../storage/contract.ts';
import {
  formatCommit,
  formatPlan,
  formatSeal,
  formatWriter,
  parseCommit,
  parsePlan,
  parseSeal,
  parseWriter,
} from './record-forms.ts';

/** A seal, and what decides which of several counts. */
export interface FoundSeal {
  seal: Seal;
  /** Who wrote it. */
  writer: string;
  /** By the store's clock, ms. */
  writtenAt: number;
}

/** Where a run is kept: `data` has the answers, `meta` what is said of them. Often the same storage. */
export interface RunStorage {
  data: Storage;
  meta: Storage;
}

/** Reads and writes the record of one run. Rejects as the storage does. */
export interface RunRecord {
  readonly uid: string;
  /** Null before somebody has planned. */
  plan(): Promise<RunPlan | null>;
  putPlan(plan: Omit<RunPlan, 'sha256'>): Promise<RunPlan>;
  writers(index: number): Promise<(RunWriter & { at: number })[]>;
  putWriter(writer: RunWriter, more: { pod: string; at: number }): Promise<void>;
  /** How many commits a writer has: they are numbered without a gap. */
  countCommits(writer: string): Promise<number>;
  /** Null where there is none, or it is one of another plan. */
  commit(writer: string, sequence: number, plan: RunPlan): Promise<Commit | null>;
  putCommit(writer: string, commit: Commit, plan: RunPlan): Promise<void>;
  putSegment(writer: string, sequence: number, chunks: Buffer[]): Promise<PutResult>;
  /** Opens bytes of a segment by its name. */
  openSegment(name: string, range: { start: number; end: number }): Promise<Readable>;
  /** Null where it is gone. */
  segmentBytes(writer: string, sequence: number): Promise<number | null>;
  /** Names of segments that are lost. */
  lost(): Promise<Set<string>>;
  putLost(writer: string, sequence: number): Promise<void>;
  seals(index: number): Promise<FoundSeal[]>;
  putSeal(index: number, writer: string, seal: Seal): Promise<void>;
  /** What an index ended as; null: it has not. */
  final(index: number): Promise<WorkerProgress | null>;
  putFinal(progress: WorkerProgress): Promise<void>;
  putProgress(progress: WorkerProgress): Promise<void>;
  /** Removes answers and commits, which nobody needs once the files are there. */
  clear(): Promise<void>;
}

export function createRecord(uid: string, storages: RunStorage): RunRecord {
  return {
    uid,
    ...planAndWriters(uid, storages),
    ...answers(uid, storages),
    ...ends(uid, storages),
  };
}

async function names(storage: Storage, prefix: string): Promise<string[]> {
  const found: string[] = [];
  for await (const key of storage.list(prefix)) found.push(key.slice(prefix.length));
  return found;
}

function planAndWriters(uid: string, { meta }: RunStorage) {
  return {
    async plan() {
      const key = planKey(uid);
      const bytes = await readWhole(meta, key);
      return bytes === null ? null : parsePlan(bytes, key);
    },
    async putPlan(plan) {
      const bytes = formatPlan(plan);
      await meta.put(planKey(uid), [bytes]);
      return parsePlan(bytes, planKey(uid));
    },
    async writers(index) {
      const prefix = writersPrefix(uid, index);
      const found = await Promise.all(
        (await names(meta, prefix)).map(async (name) => {
          const bytes = await readWhole(meta, `${prefix}${name}`);
          return bytes === null ? null : parseWriter(bytes, `${prefix}${name}`);
        }),
      );
      return found.filter((writer) => writer !== null);
    },
    async putWriter(writer, more) {
      await meta.put(writerKey(uid, writer), [formatWriter(writer, more)]);
    },
  } satisfies Partial<RunRecord>;
}

function answers(uid: string, { data, meta }: RunStorage) {
  return {
    countCommits: async (writer) => (await names(meta, commitsPrefix(uid, writer))).length,
    async commit(writer, sequence, plan) {
      const key = commitKey(uid, writer, sequence);
      const bytes = await readWhole(meta, key);
      return bytes === null ? null : parseCommit(bytes, key, plan);
    },
    async putCommit(writer, commit, plan) {
      await meta.put(commitKey(uid, writer, commit.sequence), [formatCommit(plan, commit)]);
    },
    putSegment: async (writer, sequence, chunks) =>
      data.put(runSegmentKey(uid, segmentName(writer, sequence)), chunks),
    openSegment: async (name, range) => data.get(runSegmentKey(uid, name), range),
    async segmentBytes(writer, sequence) {
      const found = await data.head(runSegmentKey(uid, segmentName(writer, sequence)));
      return found?.bytes ?? null;
    },
    lost: async () => new Set(await names(meta, lostPrefix(uid))),
    async putLost(writer, sequence) {
      await meta.put(lostKey(uid, writer, sequence), [Buffer.from('lost\n')]);
    },
    async clear() {
      for (const storage of new Set([data, meta])) {
        for (const folder of ['commits/', 'segments/']) {
          const keys = storage.list(`${runPrefix(uid)}${folder}`);
          for await (const key of keys) await storage.delete(key);
        }
      }
    },
  } satisfies Partial<RunRecord>;
}

function ends(uid: string, { meta }: RunStorage) {
  return {
    async seals(index) {
      const prefix = sealsPrefix(uid, index);
      const found = await Promise.all(
        (await names(meta, prefix)).map(async (name) => readSeal(meta, `${prefix}${name}`, name)),
      );
      return found.filter((seal) => seal !== null);
    },
    async putSeal(index, writer, seal) {
      await meta.put(sealKey(uid, index, writer), [formatSeal(seal)]);
    },
    async final(index) {
      const bytes = await readWhole(meta, finalKey(uid, index));
      // Ours, whole or not at all, as every object of a storage.
      return bytes === null ? null : (JSON.parse(bytes.toString('utf8')) as WorkerProgress);
    },
    async putFinal(progress) {
      await meta.put(finalKey(uid, progress.index), [formatProgress(progress)]);
    },
    async putProgress(progress) {
      await meta.put(progressKey(uid, progress.index), [formatProgress(progress)]);
    },
  } satisfies Partial<RunRecord>;
}

function formatProgress(progress: WorkerProgress): Buffer {
  return Buffer.from(`${JSON.stringify(progress, null, 2)}\n`);
}

async function readSeal(meta: Storage, key: string, name: string): Promise<FoundSeal | null> {
  const [bytes, info] = await Promise.all([readWhole(meta, key), meta.head(key)]);
  if (bytes === null || info === null) return null;
  const writer = name.replace(/\.json$/, '');
  return { seal: parseSeal(bytes, key), writer, writtenAt: info.modifiedAt };
}

/** Null where there is no such object. */
async function readWhole(storage: Storage, key: string): Promise<Buffer | null> {
  try {
    return await buffer(await storage.get(key));
  } catch (error) {
    if (error instanceof SluiceError && error.kind === 'NotFound') return null;
    throw error;
  }
}
