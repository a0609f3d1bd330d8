import type { LineCounts, Manifest } from '../../domain/manifest.ts';
import { formatManifest } from '../../domain/manifest.ts';
import { addUsage, NO_USAGE } from '../../domain/kubernetes/run-record.ts';
import type { Seal } from '../../domain/kubernetes/run-record.ts';
import { usageView } from '../../domain/worker-progress.ts';
import type { WrittenObject } from '../../domain/worker-progress.ts';
import { batchIdOf } from '../../domain/job.ts';
import type { Logger } from '../../observability/log.ts';
import type { Storage } from '../../storage/contract.ts';
import { version } from '../version.ts';
import { manifestPlace, writeFiles } from './files.ts';
import type { RunBatch, WrittenFiles } from './files.ts';
import { loadLedger, loadSealed } from './load.ts';
import type { RunRecord } from './record.ts';
import { findSeal, sealIndex } from './seal.ts';

/** A batch whose files are there. */
export interface FinishedRun {
  outcome: Seal['outcome'];
  counts: { total: number; completed: number; failed: number };
  usage: Seal['usage'];
  errors: Seal['errors'];
  output: WrittenObject | null;
  error: WrittenObject | null;
  manifestKey: string;
  /** ms; null: no line was ever sent. */
  inProgressAt: number | null;
  finalizingAt: number;
}

export interface Finishing {
  record: RunRecord;
  batch: RunBatch;
  /** Reads the input and takes the files. */
  storage: Storage;
  maxLineBytes: number;
  /** When the Job started, ms. */
  startedAt: number;
  log: Pick<Logger, 'error'>;
  signal: AbortSignal;
  sleep(ms: number): Promise<void>;
}

/**
 * Assembles a run from what its seals count: output file, error file, manifest. May be repeated, and done by several at
 * once: they write the same bytes. Null where nobody has planned it, so that there is nothing to write. Rejects with
 * `segment.damaged` (Permanent) where storage has lost what was sealed.
 */
export async function finishRun(
  finishing: Finishing,
  seals: readonly Seal[],
): Promise<FinishedRun | null> {
  const { record, storage, log } = finishing;
  const plan = await record.plan();
  if (plan === null) return null;
  const ledger = await loadSealed({ record, plan, log }, seals);
  const outcome = worstOf(seals);
  const errors = seals.flatMap((seal) => seal.errors);
  const written = await writeFiles({ ...finishing, plan, ledger, outcome, errors });
  const manifestKey = manifestPlace(finishing.batch);
  const { counts, files } = written;
  const run: FinishedRun = {
    outcome,
    counts: {
      total: plan.lines,
      completed: counts.output,
      failed: counts.error + counts.undone,
    },
    usage: usageOf(seals),
    errors,
    ...files,
    manifestKey,
    inProgressAt: earliest(seals.map((seal) => seal.inProgressAt)),
    finalizingAt: Math.max(...seals.map((seal) => seal.at)),
  };
  const manifest = describe(
    run,
    written,
    { inputKey: plan.inputKey, bytes: plan.inputBytes },
    finishing,
  );
  await storage.put(manifestKey, [Buffer.from(formatManifest(manifest))]);
  return run;
}

/**
 * The seals of all indexes of a run, for whoever follows its Job: an index that has none, because its pods are gone for
 * good or the batch was cancelled, is sealed here with `outcome` and what was answered. Null where nobody has planned.
 */
export async function sealRun(
  { record, log, sleep }: Pick<Finishing, 'record' | 'log' | 'sleep'>,
  wish: {
    indexes: number;
    outcome: Seal['outcome'];
    errors: Seal['errors'];
    /** A name of its own for each call. */
    name: string;
    now: number;
  },
): Promise<Seal[] | null> {
  const plan = await record.plan();
  if (plan === null) return null;
  const { outcome, errors, name, now: at } = wish;
  const indexes = Array.from({ length: wish.indexes }, (_each, index) => index);
  return Promise.all(
    indexes.map(async (index) => {
      const found = await findSeal(record, index, sleep);
      if (found !== null) return found;
      // Written before what is answered is read: pods that begin later see it.
      await record.putWriter({ name, index, attempt: 0 }, { pod: name, at });
      const ledger = await loadLedger({ record, plan, log }, [index]);
      const seal = {
        outcome,
        writers: ledger.writers(),
        usage: ledger.usage,
        inProgressAt: null,
        at,
        errors,
      };
      return sealIndex(record, { index, writer: name, seal, isGone: () => false }, sleep);
    }),
  );
}

function usageOf(seals: readonly Seal[]): Seal['usage'] {
  let sum = NO_USAGE;
  for (const { usage } of seals) sum = addUsage(sum, usage);
  return sum;
}

/** What a batch comes to whose parts ended differently. */
function worstOf(seals: readonly Seal[]): Seal['outcome'] {
  const order = ['failed', 'cancelled', 'expired', 'completed'] as const;
  return order.find((outcome) => seals.some((seal) => seal.outcome === outcome)) ?? 'completed';
}

function earliest(times: readonly (number | null)[]): number | null {
  const known = times.filter((time) => time !== null);
  return known.length === 0 ? null : Math.min(...known);
}

function seconds(ms: number | null): number | null {
  return ms === null ? null : Math.floor(ms / 1_000);
}

function describe(
  run: FinishedRun,
  { tally }: WrittenFiles,
  input: { inputKey: string; bytes: number },
  { batch, startedAt }: Finishing,
): Manifest {
  const { counts } = run;
  const inputId = input.inputKey.replace(/^files\//, '').split('?', 1)[0] ?? '';
  return {
    object: 'batch.manifest',
    schema_version: 1,
    tool: { name: 'sluice', version: version() },
    job_id: batch.jobId,
    batch_id: batchIdOf(batch.jobId),
    status: run.outcome,
    endpoint: batch.endpoint,
    created_at: seconds(startedAt) ?? 0,
    started_at: seconds(run.inProgressAt),
    finished_at: seconds(run.finalizingAt),
    input: { file_id: inputId, filename: '', bytes: input.bytes, sha256: '', lines: counts.total },
    output: fileOf(run.output, batch, 'output'),
    error: fileOf(run.error, batch, 'error'),
    request_counts: counts,
    status_codes: [...tally.statuses]
      .toSorted(([a], [b]) => (a ?? Infinity) - (b ?? Infinity))
      .map(([status, lines]) => ({ status_code: status, ...lines })),
    models: [...tally.models].toSorted(byName).map(([model, lines]) => ({ model, ...lines })),
    engines: enginesOf(tally.engines, counts),
    usage: usageView(run.usage),
  };
}

function byName([a]: [string | null, LineCounts], [b]: [string | null, LineCounts]): number {
  if (a === null || b === null) return a === null ? 1 : -1;
  return a < b ? -1 : 1;
}

function fileOf(file: WrittenObject | null, { jobId }: RunBatch, kind: 'output' | 'error') {
  if (file === null) return null;
  const { file_id, bytes, sha256, lines } = file;
  return { file_id, filename: `${batchIdOf(jobId)}_${kind}.jsonl`, bytes, sha256, lines };
}

/** Each pod has its own engine at the same address, so that they count as one. */
function enginesOf(
  engines: ReadonlyMap<string, LineCounts>,
  { completed, failed }: FinishedRun['counts'],
): Manifest['engines'] {
  const sum = { completed: 0, failed: 0 };
  for (const each of engines.values()) {
    // A line that two pods have answered is in the files once.
    sum.completed = Math.min(completed, sum.completed + each.completed);
    sum.failed = Math.min(failed, sum.failed + each.failed);
  }
  const rest = { completed: completed - sum.completed, failed: failed - sum.failed };
  const answered = { engine: 'engine-1', provider: 'kubernetes', provision_ids: [], ...sum };
  const unanswered = { engine: null, provider: null, provision_ids: [], ...rest };
  return [answered, unanswered].filter((each) => each.completed + each.failed > 0);
}
