import { bodyAt, responseAt, statusAt } from '../src/domain/answer-line.ts';
import { formatManifest } from '../src/domain/manifest.ts';
import type { LineCounts, Manifest, ManifestFile } from '../src/domain/manifest.ts';
import { fileKey, manifestKey, outputFileId, outputKey } from '../src/domain/file.ts';
import type { FileRecord } from '../src/domain/file.ts';
import { batchIdOf } from '../src/domain/job.ts';
import type { JobRecord, Outcome } from '../src/domain/job.ts';
import type { ProvisionRecord } from '../src/domain/provision.ts';
import type { AcceptedShard } from '../src/domain/segment.ts';
import type { Deps } from './deps.ts';

type Kind = 'output' | 'error';
type Counts<Key> = Map<Key, LineCounts>;

/** What is counted of a job's lines while its files are written. */
export interface Tally {
  /** Hears of each line as it is written. */
  onLine(kind: Kind, line: Buffer): void;
  /** The same shards; what their parts say of engines is counted as they pass. */
  watch(shards: AsyncIterable<AcceptedShard>): AsyncIterable<AcceptedShard>;
  statuses: Counts<number | null>;
  models: Counts<string | null>;
  engines: Counts<string>;
}

/**
 * Of lines it looks at single bytes only, since each is read where all of a job's answers go by; of those of a job with
 * several models it scans the answer.
 */
export function createTally(
  job: Pick<JobRecord, 'models'>,
  { scanModel }: Pick<Deps, 'scanModel'>,
): Tally {
  const statuses: Tally['statuses'] = new Map();
  const models: Tally['models'] = new Map();
  const engines: Tally['engines'] = new Map();
  const modelOf = modelReader(job.models, scanModel);
  return {
    statuses,
    models,
    engines,
    onLine(kind, line) {
      const response = responseAt(line);
      count(statuses, statusAt(line, response), kind);
      count(models, modelOf(line, response), kind);
    },
    async *watch(shards) {
      for await (const shard of shards) {
        for (const { engines: by = [] } of shard.parts) {
          for (const { engine, ok, failed } of by) {
            count(engines, engine, 'output', ok);
            count(engines, engine, 'error', failed);
          }
        }
        yield shard;
      }
    },
  };
}

function count<Key>(counts: Counts<Key>, key: Key, kind: Kind, by = 1): void {
  let entry = counts.get(key);
  if (entry === undefined) {
    entry = { completed: 0, failed: 0 };
    counts.set(key, entry);
  }
  entry[kind === 'output' ? 'completed' : 'failed'] += by;
}

type ModelOf = (line: Buffer, response: number) => string | null;

/** Which of a job's models a line is of, by what the engine said; of a job with one, every line is of that. */
function modelReader(models: readonly string[], scanModel: Deps['scanModel']): ModelOf {
  const [only = null] = models;
  if (models.length <= 1) return () => only;
  const names = new Set(models);
  return (line, response) => {
    const body = bodyAt(line, response);
    const model = body === null ? null : scanModel(body);
    return model !== null && names.has(model) ? model : null;
  };
}

/** A job's two files as they were stored; null: no line went there. */
export type WrittenFiles = Record<Kind, FileRecord | null>;

/**
 * Stores the manifest of a job whose files are stored: in our storage, and beside the files where these lie in a bucket
 * of the user's. May be repeated.
 */
export async function writeManifest(
  job: JobRecord,
  outcome: Outcome,
  written: { files: WrittenFiles; tally: Tally; failed: number; unnamed: number },
  deps: Deps,
): Promise<void> {
  const { store, storage, version } = deps;
  const input = await store.files.get(job.input);
  // Only a job that is over can lose its input: somebody was faster, and knew more than can be told now.
  if (input === null && (await storage.head(manifestKey(job.id))) !== null) return;
  const provisions = await store.provisions.ofJob(job.id);
  const manifest = describe(job, { ...written, outcome, input, provisions, version });
  const bytes = Buffer.from(formatManifest(manifest));
  const beside = besideKey(job);
  const keys = beside === null ? [] : [beside];
  for (const key of [...keys, manifestKey(job.id)]) await storage.put(key, [bytes]);
}

/**
 * Takes back what was written of a job whose files were given up after all. Of a bucket of the user's nothing is ever
 * deleted: there the manifest says how the job ended.
 */
export async function retractFiles(job: JobRecord, deps: Deps): Promise<void> {
  const { store, storage, version } = deps;
  await storage.delete(manifestKey(job.id));
  for (const kind of ['output', 'error'] as const) {
    const id = outputFileId(job.id, kind);
    // An entry without a file would make the sweeper look for nothing.
    if ((await store.files.get(id)) === null) continue;
    await store.files.delete(id);
    await storage.delete(fileKey(id));
    await store.files.forget(id);
  }
  const beside = besideKey(job);
  if (beside === null || (await storage.head(beside)) === null) return;
  const input = await store.files.get(job.input);
  const provisions = await store.provisions.ofJob(job.id);
  const known = { files: { output: null, error: null }, tally: createTally(job, deps), unnamed: 0 };
  const { failed } = job;
  const manifest = describe(job, {
    ...known,
    failed,
    outcome: 'failed',
    input,
    provisions,
    version,
  });
  await storage.put(beside, [Buffer.from(formatManifest(manifest))]);
}

/** Where it lies beside the files in a bucket of the user's; null where these lie in our storage. */
function besideKey(job: JobRecord): string | null {
  if (job.options.outputPrefix === null) return null;
  return outputKey(job, 'output').replace(/output\.jsonl$/, 'manifest.json');
}

interface Known {
  files: WrittenFiles;
  tally: Tally;
  /** Lines without an answer that is one, as the job counts them. */
  failed: number;
  /** Those of them that the error file does not have. */
  unnamed: number;
  outcome: Outcome;
  input: FileRecord | null;
  provisions: readonly ProvisionRecord[];
  version: string;
}

function describe(job: JobRecord, known: Known): Manifest {
  const { files, tally, failed, input } = known;
  const { completed, lines } = job;
  const { inputTokens, cachedTokens, outputTokens, reasoningTokens } = job.usage;
  return {
    object: 'batch.manifest',
    schema_version: 1,
    tool: { name: 'sluice', version: known.version },
    job_id: job.id,
    batch_id: batchIdOf(job.id),
    status: known.outcome,
    endpoint: job.endpoint,
    created_at: seconds(job.createdAt) ?? 0,
    started_at: seconds(job.enteredAt.in_progress),
    finished_at: seconds(job.enteredAt.finalizing),
    input: {
      file_id: job.input,
      ...(input === null ? { filename: '', bytes: 0, sha256: '' } : bytesOf(input)),
      lines,
    },
    output: fileOf(files.output, completed),
    error: fileOf(files.error, failed - known.unnamed),
    request_counts: { total: lines, completed, failed },
    status_codes: [...tally.statuses]
      .toSorted(([a], [b]) => (a ?? Infinity) - (b ?? Infinity))
      .map(([status, counts]) => ({ status_code: status, ...counts })),
    models: sorted(tally.models).map(([model, counts]) => ({ model, ...counts })),
    engines: enginesOf(job, known),
    usage: {
      input_tokens: inputTokens,
      cached_tokens: cachedTokens,
      output_tokens: outputTokens,
      reasoning_tokens: reasoningTokens,
      total_tokens: inputTokens + outputTokens,
    },
  };
}

function seconds(ms: number | undefined): number | null {
  return ms === undefined ? null : Math.floor(ms / 1_000);
}

function bytesOf({ filename, bytes, sha256 }: FileRecord) {
  return { filename, bytes, sha256 };
}

function fileOf(file: FileRecord | null, lines: number): ManifestFile | null {
  return file === null ? null : { file_id: file.id, ...bytesOf(file), lines };
}

/** By name, what has none last: not by the order in which lines came, or the place where somebody lives. */
function sorted<Key extends string | null>(counts: Counts<Key>): [Key, LineCounts][] {
  return [...counts].toSorted(([a], [b]) => {
    if (a === null || b === null) return a === null ? 1 : -1;
    return a < b ? -1 : 1;
  });
}

function enginesOf(job: JobRecord, { tally, provisions, failed }: Known): Manifest['engines'] {
  const engines = tally.engines.size > 0 ? tally.engines : onlyEngine(tally, provisions);
  const rest = { completed: job.completed, failed };
  const named = addressesOf(engines, provisions).flatMap((address, place) => {
    const counts = engines.get(address);
    if (counts === undefined) return [];
    rest.completed -= counts.completed;
    rest.failed -= counts.failed;
    const own = provisions.filter((provision) => provision.address === address);
    const ids = own.map(({ id }) => id).toSorted();
    const provider = own[0]?.provider ?? null;
    return [{ engine: `engine-${place + 1}`, provider, provision_ids: ids, ...counts }];
  });
  if (rest.completed + rest.failed === 0) return named;
  return [...named, { engine: null, provider: null, provision_ids: [], ...rest }];
}

/**
 * Addresses of engines in the order in which the job first had them, by which they are named: where machines are is no
 * business of a file that may be read by anybody.
 */
function addressesOf(
  engines: Counts<string>,
  provisions: readonly Pick<ProvisionRecord, 'id' | 'address' | 'createdAt'>[],
): string[] {
  const inOrder = provisions.toSorted(
    (a, b) => a.createdAt - b.createdAt || (a.id < b.id ? -1 : 1),
  );
  const known = inOrder.map(({ address }) => address);
  return [...new Set([...known, ...[...engines.keys()].toSorted()])];
}

/** Of answers that do not say whose they are: a job that only ever had one engine was answered by that. */
function onlyEngine(
  { statuses }: Tally,
  provisions: readonly Pick<ProvisionRecord, 'address'>[],
): Counts<string> {
  const [address, ...others] = new Set(provisions.map((provision) => provision.address));
  const engines: Counts<string> = new Map();
  if (address === undefined || others.length > 0) return engines;
  for (const [status, { completed, failed }] of statuses) {
    if (status === null) continue;
    count(engines, address, 'output', completed);
    count(engines, address, 'error', failed);
  }
  return engines;
}
