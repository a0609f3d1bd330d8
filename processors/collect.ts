import { describeError, SluiceError, transient } from '../src/domain/errors.ts';
import { isFinal } from '../src/domain/job.ts';
import type { JobRecord } from '../src/domain/job.ts';
import { eventIdOf } from '../src/domain/webhook.ts';
import type { Storage } from '../src/storage/contract.ts';
import type { Store } from '../src/store/store.ts';
import { collectAbandoned, collectOrphans, ORPHAN_KINDS } from './collect-orphans.ts';
import type { OrphanMode } from './collect-orphans.ts';
import { collectSegments, isOnlyCopy } from './collect-segments.ts';
import type { Mode, Removed } from './collect-step.ts';
import type { Log } from './deps.ts';
import { eraseJob } from './erase-job.ts';
import { neededFiles } from './expiry.ts';

/** What is collected, in this order. */
export const GC_KINDS = [
  'segments',
  'jobs',
  'files',
  'orphan_segments',
  'orphan_files',
  'orphan_manifests',
  'orphan_parts',
  'abandoned_uploads',
] as const;
export type GcKind = (typeof GC_KINDS)[number];

/** What was, or would be, removed. A file is said to expire: its bytes go a minute later. */
export interface GcReport {
  dryRun: boolean;
  kinds: Record<GcKind, Removed>;
  /** Objects of the storage that were compared with the records. */
  looked: number;
  /** Why orphans were only counted; null where they were removed, or nothing was to be. */
  doubt: string | null;
  /** What could not be done, as sentences, the first few; the rest was. */
  failures: string[];
  ms: number;
}

export interface CollectDeps {
  store: Store;
  storage: Storage;
  /** How long segments stay when their job is over, ms. */
  segmentKeepMs: number;
  /** How long records of jobs that are over stay, ms, and files that have no end of their own; null: for ever. */
  jobRetentionMs: number | null;
  fileRetentionMs: number | null;
  orphanAgeMs: number;
  /** How far apart rounds begin, ms. */
  everyMs: number;
  newId(): string;
  now(): number;
  log: Log;
}

export interface Collector {
  /** Collects if that is due and this process sweeps and may; null where it did not. */
  round(signal: AbortSignal): Promise<GcReport | null>;
  /** Collects now; null while another process does. With `confirm` orphans go even where the records look wrong. */
  run(wish: { dryRun: boolean; confirm: boolean }, signal: AbortSignal): Promise<GcReport | null>;
}

const LEASE_MS = 30_000;
const SWEEP_LEASE_MS = 10_000;
const RENEW_AFTER_MS = 5_000;
const MOST_FAILURES = 20;
const LEASE_LOST = 'gc.lease_lost';

/** Removes what is over and what crashes left, one process at a time, in steps between which it can be stopped. */
export function createCollector(holder: string, deps: CollectDeps): Collector {
  const { collect, sweep } = deps.store;
  async function run(
    wish: { dryRun: boolean; confirm: boolean },
    signal: AbortSignal,
  ): Promise<GcReport | null> {
    if (!(await collect.lease(holder, LEASE_MS))) return null;
    try {
      return await collectAll({ ...wish, step: stepper(holder, signal, deps) }, signal, deps);
    } finally {
      await collect.yield(holder);
    }
  }
  return {
    run,
    async round(signal) {
      if (!(await sweep.lease(holder, SWEEP_LEASE_MS))) return null;
      const at = await collect.collectedAt();
      if (at !== null && deps.now() - at < deps.everyMs) return null;
      await collect.markCollected();
      // A server that was just set up has nothing to collect.
      return at === null ? null : run({ dryRun: false, confirm: false }, signal);
    },
  };
}

/** Throws when the process is to stop, or another one has begun to collect. */
function stepper(holder: string, signal: AbortSignal, { store, now }: CollectDeps) {
  let renewedAt = now();
  return async function step(): Promise<void> {
    signal.throwIfAborted();
    if (now() - renewedAt < RENEW_AFTER_MS) return;
    renewedAt = now();
    if (await store.collect.lease(holder, LEASE_MS)) return;
    throw transient(LEASE_LOST, 'Another process collects.');
  };
}

async function collectAll(
  mode: Mode & { confirm: boolean },
  signal: AbortSignal,
  deps: CollectDeps,
): Promise<GcReport> {
  const begun = deps.now();
  const none = GC_KINDS.map((kind) => [kind, { count: 0, bytes: 0 }]);
  const report: GcReport = {
    dryRun: mode.dryRun,
    kinds: Object.fromEntries(none) as GcReport['kinds'], // of all kinds, just above
    looked: 0,
    doubt: null,
    failures: [],
    ms: 0,
  };
  let isSure = false;
  function onFailure(key: string, error: unknown): void {
    fail(key, error, report, signal, deps);
  }
  async function each(
    what: string,
    ids: AsyncIterable<string>,
    task: (id: string) => Promise<void>,
  ): Promise<void> {
    for await (const id of ids) {
      await mode.step();
      await orReport(`${what} of ${id}`, report, signal, deps, () => task(id));
    }
  }
  const stages = {
    segments: () => collectAllSegments(report, { ...mode, each }, deps),
    jobs: () => collectJobs(report, { ...mode, each }, deps),
    files: () => collectFiles(report, { ...mode, each }, deps),
    orphans: async () => {
      await orphans(report, { ...mode, onFailure }, deps);
      isSure = report.doubt === null;
    },
    abandoned_uploads: async () => {
      // They may be those of another deployment, which is about to end them.
      const dryRun = mode.dryRun || !isSure;
      report.kinds.abandoned_uploads = await collectAbandoned(deps, { ...mode, dryRun });
    },
  };
  for (const [stage, run] of Object.entries(stages)) {
    await orReport(stage, report, signal, deps, run);
  }
  report.ms = deps.now() - begun;
  return report;
}

/** Whatever is wrong with one, the others are due as well. */
async function orReport(
  what: string,
  report: GcReport,
  signal: AbortSignal,
  deps: CollectDeps,
  task: () => Promise<void>,
): Promise<void> {
  try {
    await task();
  } catch (error) {
    fail(what, error, report, signal, deps);
  }
}

/** Throws where nobody is to go on: the process stops, or another one does what is left. */
function fail(
  what: string,
  err: unknown,
  { failures }: GcReport,
  signal: AbortSignal,
  { log }: CollectDeps,
): void {
  signal.throwIfAborted();
  if (err instanceof SluiceError && err.code === LEASE_LOST) throw err;
  if (failures.length >= MOST_FAILURES) return;
  failures.push(`${what}: ${describeError(err)}`);
  log.error({ what, err }, 'what is over could not be collected');
}

function add(report: GcReport, kind: GcKind, { count, bytes }: Removed): void {
  report.kinds[kind].count += count;
  report.kinds[kind].bytes += bytes;
}

interface EachMode extends Mode {
  /** One that fails is reported, and stops none behind it. */
  each(
    what: string,
    ids: AsyncIterable<string>,
    task: (id: string) => Promise<void>,
  ): Promise<void>;
}

async function collectAllSegments(
  report: GcReport,
  mode: EachMode,
  deps: CollectDeps,
): Promise<void> {
  const until = deps.now() - deps.segmentKeepMs;
  await mode.each('segments', deps.store.collect.keeping(until), async (id) => {
    const job = await deps.store.jobs.get(id);
    if (job !== null && !isOver(job, until)) return;
    // Somebody may still want what is nowhere else: it goes with the job.
    const isOnly = job !== null && isOnlyCopy(job);
    if (isOnly && (await deps.store.shards.segments(id)).size > 0) return;
    add(report, 'segments', await collectSegments(id, deps, mode));
  });
}

/** A Redis that lost its tail may have an end in its indexes that its record knows nothing of. */
function isOver({ state, enteredAt }: JobRecord, until: number): boolean {
  return isFinal(state) && (enteredAt[state] ?? 0) <= until;
}

async function collectJobs(report: GcReport, mode: EachMode, deps: CollectDeps): Promise<void> {
  if (deps.jobRetentionMs === null) return;
  const until = deps.now() - deps.jobRetentionMs;
  await mode.each('record', deps.store.collect.ended(until), async (id) => {
    const job = await deps.store.jobs.get(id);
    if (job !== null && !isOver(job, until)) return;
    // With the job would go what is still to be told of its end.
    if (job !== null && (await deps.store.webhooks.isTelling(id, eventIdOf(id)))) return;
    if (!mode.dryRun) {
      const outcome = await eraseJob(id, { withFiles: false }, deps, mode);
      if (outcome === 'gone') await deps.store.collect.leaveIndexes(id);
      if (outcome !== 'erased') return;
    }
    add(report, 'jobs', { count: 1, bytes: 0 });
  });
}

async function collectFiles(report: GcReport, mode: EachMode, deps: CollectDeps): Promise<void> {
  if (deps.fileRetentionMs === null) return;
  const { files, collect } = deps.store;
  const inUse = await neededFiles(deps);
  const until = deps.now() - deps.fileRetentionMs;
  await mode.each('record', collect.filesUntil(until), async (id) => {
    const file = await files.get(id);
    if (file === null || file.expiresAt !== undefined || inUse.has(id)) return;
    if (!mode.dryRun) await files.expire(id, deps.now());
    add(report, 'files', { count: 1, bytes: file.bytes });
  });
}

const ORPHAN_KIND = {
  segment: 'orphan_segments',
  file: 'orphan_files',
  manifest: 'orphan_manifests',
  part: 'orphan_parts',
} as const satisfies Record<(typeof ORPHAN_KINDS)[number], GcKind>;

async function orphans(report: GcReport, mode: OrphanMode, deps: CollectDeps): Promise<void> {
  const { found, looked, doubt } = await collectOrphans(deps, mode);
  for (const kind of ORPHAN_KINDS) add(report, ORPHAN_KIND[kind], found[kind]);
  report.looked = looked;
  report.doubt = doubt;
}
