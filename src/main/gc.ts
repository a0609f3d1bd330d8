import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Settings } from '../../config/schema.ts';
import { createCollector, GC_KINDS } from '../../processors/collect.ts';
import type { CollectDeps, Collector, GcKind, GcReport } from '../../processors/collect.ts';
import { transient } from '../domain/errors.ts';
import { createLogger } from '../observability/log.ts';
import { clock } from './clock.ts';
import { untilStopped } from './signals.ts';
import { newProcessName, openSystem } from './system.ts';
import type { System } from './system.ts';

export interface GcOptions {
  dryRun?: true;
  /** Orphans go even where the records look incomplete. */
  confirm?: true;
  json?: true;
}

/** Longer than a process that died keeps others from collecting. */
const PATIENCE_MS = 35_000;
const LOOK_AGAIN_MS = 500;
const EXIT_INTERRUPTED = 130;

/** What collecting needs of a process. */
export function collectDeps({ settings, storage, patient, log }: System): CollectDeps {
  return {
    store: patient.store,
    storage,
    segmentKeepMs: settings.segmentKeep,
    jobRetentionMs: settings.jobRetention,
    fileRetentionMs: settings.fileRetention,
    orphanAgeMs: settings.orphanAge,
    everyMs: settings.gcInterval,
    newId: randomUUID,
    now: clock.now,
    log,
  };
}

/**
 * `sluice gc`: removes what is over and what crashes left in storage, as the sweeper does by itself, or says what would
 * go. Prints the report. Returns the exit code: 0 when all was done, 1 when some could not be, or was only reported.
 * Rejects with `gc.busy` (Transient) while another process collects.
 */
export async function gc(options: GcOptions, settings: Settings): Promise<number> {
  const level = settings.logLevel === 'info' ? 'error' : settings.logLevel;
  const log = createLogger({ level });
  const name = newProcessName('gc');
  const system = await openSystem({ settings, log, roles: [], name });
  const stop = new AbortController();
  void untilStopped().then(() => stop.abort(new Error('stopped')));
  try {
    const collector = createCollector(name, collectDeps(system));
    const report = await untilFree(collector, options, stop.signal);
    process.stdout.write(options.json === true ? `${asJson(report)}\n` : describeReport(report));
    return report.failures.length > 0 || report.doubt !== null ? 1 : 0;
  } catch (error) {
    if (!stop.signal.aborted) throw error;
    process.stderr.write('Stopped; what is left is collected the next time.\n');
    return EXIT_INTERRUPTED;
  } finally {
    await system.close();
  }
}

async function untilFree(
  collector: Collector,
  { dryRun = false, confirm = false }: { dryRun?: boolean; confirm?: boolean },
  signal: AbortSignal,
): Promise<GcReport> {
  const deadline = performance.now() + PATIENCE_MS;
  for (;;) {
    const report = await collector.run({ dryRun, confirm }, signal);
    if (report !== null) return report;
    if (performance.now() > deadline) {
      throw transient('gc.busy', 'Another process is collecting: try again when it is done.');
    }
    await sleep(LOOK_AGAIN_MS, undefined, { signal });
  }
}

const LABELS: Record<GcKind, string> = {
  segments: 'segments of jobs that are over',
  jobs: 'jobs over their retention',
  files: 'files over their retention',
  orphan_segments: 'segments of no job',
  orphan_files: 'files without a record',
  orphan_manifests: 'manifests of no job',
  orphan_parts: 'parts of no upload',
  abandoned_uploads: 'writes that never ended',
};

/** One line a kind of which there is something, then what is to be said of all. */
function describeReport({ dryRun, kinds, looked, doubt, failures }: GcReport): string {
  const found = GC_KINDS.filter((kind) => kinds[kind].count > 0).map((kind) => {
    const { count, bytes } = kinds[kind];
    const isOnlyReported = dryRun || (doubt !== null && isOfOrphans(kind));
    const what = isOnlyReported ? 'would remove' : 'removed     ';
    return `${what}  ${String(count).padStart(8)}  ${sizeOf(bytes).padStart(10)}  ${LABELS[kind]}`;
  });
  const lines = found.length === 0 ? ['Nothing is over, and nothing is left behind.'] : found;
  lines.push(`${looked} objects of the storage were compared with the records.`);
  if (doubt !== null) {
    lines.push(
      `Orphans are only reported: ${doubt} If Redis is the right one and whole, and no other deployment uses this storage, run sluice gc --confirm.`,
    );
  }
  return [...lines, ...failures.map((failure) => `Failed: ${failure}`), ''].join('\n');
}

function isOfOrphans(kind: GcKind): boolean {
  return kind.startsWith('orphan_') || kind === 'abandoned_uploads';
}

function sizeOf(bytes: number): string {
  if (bytes < 2 ** 20) return `${(bytes / 2 ** 10).toFixed(1)} KiB`;
  return bytes < 2 ** 30
    ? `${(bytes / 2 ** 20).toFixed(1)} MiB`
    : `${(bytes / 2 ** 30).toFixed(1)} GiB`;
}

function asJson({ dryRun, ...report }: GcReport): string {
  return JSON.stringify({ dry_run: dryRun, ...report });
}

/** Collects when it is due, and logs the same report. */
export async function collectRound(
  collector: Collector,
  signal: AbortSignal,
  log: System['log'],
): Promise<void> {
  let report: GcReport | null;
  try {
    report = await collector.round(signal);
  } catch (error) {
    if (signal.aborted) return;
    throw error;
  }
  if (report === null) return;
  const { doubt, ...rest } = report;
  log.info(rest, 'collected what is over');
  if (doubt !== null) {
    const { orphan_segments, orphan_files, orphan_parts } = rest.kinds;
    const fields = { reason: doubt, orphan_segments, orphan_files, orphan_parts };
    log.warn(fields, 'orphans in storage are only reported, see sluice gc');
  }
}
