import { once } from 'node:events';
import { PassThrough } from 'node:stream';
import { createTally } from '../../../processors/manifest.ts';
import type { Tally } from '../../../processors/manifest.ts';
import { UNDONE } from '../../../processors/write-files.ts';
import { assemble } from '../../dispatcher/assemble.ts';
import type { AssemblyCounts, Undone } from '../../dispatcher/assemble.ts';
import { scanModel } from '../../dispatcher/json-scan.ts';
import { fileKey, outputFileId } from '../../domain/file.ts';
import { batchIdOf } from '../../domain/job.ts';
import type { Endpoint } from '../../domain/job.ts';
import type { Ledger } from '../../domain/kubernetes/ledger.ts';
import type { RunPlan, Seal } from '../../domain/kubernetes/run-record.ts';
import type { WrittenObject } from '../../domain/worker-progress.ts';
import type { PutResult, Storage } from '../../storage/contract.ts';
import type { RunRecord } from './record.ts';

type Kind = 'output' | 'error';

/** What is known of a batch beside its lines. */
export interface RunBatch {
  /** `job_…`: its files and lines carry it. */
  jobId: string;
  endpoint: Endpoint;
  pinnedModel: string | null;
  /** Ids of its files; null: derived from the job's. */
  outputFileId: string | null;
  errorFileId: string | null;
  /** URL of a folder in a bucket of the user's that the files are written to; null: into storage. */
  outputPrefix: string | null;
}

export interface WrittenFiles {
  counts: AssemblyCounts;
  tally: Tally;
  files: Record<Kind, WrittenObject | null>;
}

function fileIdOf(batch: RunBatch, kind: Kind): string {
  const asked = kind === 'output' ? batch.outputFileId : batch.errorFileId;
  return asked ?? outputFileId(batch.jobId, kind);
}

function placeOf(batch: RunBatch, kind: Kind): string {
  if (batch.outputPrefix === null) return fileKey(fileIdOf(batch, kind));
  return `${batch.outputPrefix}${batchIdOf(batch.jobId)}_${kind}.jsonl`;
}

/** The manifest lies beside the output file, whether or not there is one. */
export function manifestPlace(batch: RunBatch): string {
  if (batch.outputPrefix === null) return `${fileKey(fileIdOf(batch, 'output'))}.manifest.json`;
  return `${batch.outputPrefix}${batchIdOf(batch.jobId)}_manifest.json`;
}

/** What the error file says of lines that were never answered. */
function undoneOf(
  batch: RunBatch,
  plan: RunPlan,
  outcome: Seal['outcome'],
  errors: Seal['errors'],
) {
  const { code, message } = UNDONE[outcome];
  const { endpoint, pinnedModel } = batch;
  const rules = { rules: { endpoint, pinnedModel, models: plan.models } };
  const [error] = errors;
  const why = error === undefined ? '' : ` ${error.message}`;
  // Of a batch that ran to its end only bad lines are unanswered.
  return { code, message: `${message}${why}`, ...(outcome === 'completed' ? rules : {}) };
}

export interface Writing {
  batch: RunBatch;
  plan: RunPlan;
  ledger: Ledger;
  record: RunRecord;
  /** Reads the input and takes the files. */
  storage: Storage;
  maxLineBytes: number;
  outcome: Seal['outcome'];
  errors: Seal['errors'];
  signal: AbortSignal;
}

/** Writes both files, each line once and in input order; whoever does it from the same seals writes the same bytes. */
export async function writeFiles(writing: Writing): Promise<WrittenFiles> {
  const { batch, plan, ledger, record, storage, maxLineBytes, outcome, errors } = writing;
  const undone: Undone = undoneOf(batch, plan, outcome, errors);
  const tally = createTally(plan, { scanModel });
  async function* shards() {
    for (const { n } of plan.shards) yield ledger.accepted(n);
  }
  const output = openSink('output', writing);
  const error = openSink('error', writing);
  try {
    const counts = await assemble(
      {
        shards: tally.watch(shards()),
        openPart: async ({ segment, offset, length }) =>
          record.openSegment(segment, { start: offset, end: offset + length }),
        openInput: async (range) => storage.get(plan.inputKey, range),
      },
      { output: output.sink, error: error.sink },
      { jobId: batch.jobId, maxLineBytes, undone: () => undone, onLine: tally.onLine },
    );
    const [outputFile, errorFile] = await Promise.all([output.stored, error.stored]);
    const files = {
      output: describe('output', outputFile, counts.output, batch),
      error: describe('error', errorFile, counts.error + counts.undone, batch),
    };
    return { counts, tally, files };
  } catch (failure) {
    // No file may still be written when the next try begins.
    const reason = failure instanceof Error ? failure : new Error(String(failure));
    for (const { sink } of [output, error]) sink.destroy(reason);
    await Promise.allSettled([output.stored, error.stored]);
    throw failure;
  }
}

function describe(
  kind: Kind,
  stored: PutResult | null,
  lines: number,
  batch: RunBatch,
): WrittenObject | null {
  if (stored === null) return null;
  const { bytes, sha256, address } = stored;
  const key = address ?? placeOf(batch, kind);
  return { file_id: fileIdOf(batch, kind), key, bytes, sha256, lines };
}

/** One of the two files, stored while it is assembled if it has a line. */
function openSink(kind: Kind, { batch, storage, signal }: Writing) {
  const sink = new PassThrough({ highWaterMark: 1024 * 1024 });
  // It may break before or after somebody reads or writes it, and an error that nobody hears ends the process.
  sink.on('error', () => undefined);
  async function store(): Promise<PutResult | null> {
    await once(sink, 'readable', { signal });
    if (sink.readableLength > 0) return storage.put(placeOf(batch, kind), sink, { signal });
    sink.resume();
    return null;
  }
  const stored = store();
  // The assembler ends with the same error, which is the one that is reported.
  stored.catch((error: unknown) => sink.destroy(error instanceof Error ? error : undefined));
  return { sink, stored };
}
