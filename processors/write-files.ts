import { once } from 'node:events';
import { PassThrough } from 'node:stream';
import type { AssemblyOptions, Undone } from '../src/dispatcher/assemble.ts';
import { inputKey, outputFileId, outputKey, segmentKey } from '../src/domain/file.ts';
import type { FileRecord } from '../src/domain/file.ts';
import { batchIdOf, plannedRules } from '../src/domain/job.ts';
import type { JobRecord, Outcome } from '../src/domain/job.ts';
import type { AcceptedShard } from '../src/domain/segment.ts';
import { lacksInput } from './changed-input.ts';
import type { Deps } from './deps.ts';
import { createTally } from './manifest.ts';
import type { Tally, WrittenFiles } from './manifest.ts';

/** What the error file says of a line that was never answered; of a failure, what the job failed for follows. */
export const UNDONE = {
  completed: { code: 'batch_failed', message: 'This request was not answered.' },
  cancelled: {
    code: 'batch_cancelled',
    message: 'This request could not be executed before the batch was cancelled.',
  },
  expired: {
    code: 'batch_expired',
    message: 'This request could not be executed before the completion window expired.',
  },
  failed: { code: 'batch_failed', message: 'The batch failed before this request was executed.' },
  resource_failed: {
    code: 'batch_failed',
    message: 'The batch ended before this request was executed: no engine could be had.',
  },
  submit_failed: {
    code: 'batch_failed',
    message: 'The batch ended before this request was executed: no engine could serve all of it.',
  },
} as const satisfies Record<Outcome, { code: string; message: string }>;

/**
 * What the error file of a job says of lines that were never answered; null where nothing can name them. The same
 * whoever asks: all that it says is on record since the job was stopped.
 */
export async function undoneOf(
  job: JobRecord,
  outcome: Outcome,
  { store }: Pick<Deps, 'store'>,
): Promise<Undone | null> {
  if (lacksInput(job)) return null;
  const { code, message } = UNDONE[outcome];
  // A job that ran to its end had only bad lines where it has unanswered ones.
  const rules = outcome === 'completed' ? { rules: plannedRules(job) } : {};
  const [error] = job.errors;
  if (error === undefined) return { code, message, ...rules };
  const provisions = await store.provisions.ofJob(job.id);
  // Where the machines are is no business of the file; the longest first, since one may be how another one begins.
  const addresses = provisions.map(({ address }) => address);
  let cause = error.message;
  for (const address of addresses.toSorted((a, b) => b.length - a.length)) {
    cause = cause.replaceAll(address, 'the engine');
  }
  const why = `${cause.slice(0, 1).toUpperCase()}${cause.slice(1)}`;
  return { code, message: `${message} ${why}`, ...rules };
}

/** A job's two files as they were written, and how many lines went where. */
export interface Written {
  output: number;
  error: number;
  undone: number;
  files: WrittenFiles;
  tally: Tally;
}

/** Assembles both files from the job's shards, as these come, and stores them. Where it rejects, no file is written any more. */
export async function writeFiles(
  job: JobRecord,
  shards: AsyncIterable<AcceptedShard>,
  {
    undone,
    signal,
    aheadBytes,
  }: Pick<AssemblyOptions, 'undone' | 'aheadBytes'> & { signal: AbortSignal },
  deps: Deps,
): Promise<Written> {
  const tally = createTally(job, deps);
  const output = openSink(job, 'output', signal, deps);
  const error = openSink(job, 'error', signal, deps);
  try {
    const counts = await deps.assemble(
      {
        shards: tally.watch(shards),
        openPart: ({ segment, offset, length }) =>
          deps.storage.get(segmentKey(job.id, segment), { start: offset, end: offset + length }),
        openInput: (range) => deps.storage.get(inputKey(job), range),
      },
      { output: output.sink, error: error.sink },
      {
        jobId: job.id,
        onLine: tally.onLine,
        undone,
        ...(aheadBytes === undefined ? {} : { aheadBytes }),
      },
    );
    const [outputFile, errorFile] = await Promise.all([output.file, error.file]);
    return { ...counts, files: { output: outputFile, error: errorFile }, tally };
  } catch (failure) {
    // No file may still be written when the next try begins.
    const reason = failure instanceof Error ? failure : new Error(String(failure));
    for (const { sink } of [output, error]) sink.destroy(reason);
    await Promise.allSettled([output.file, error.file]);
    throw failure;
  }
}

/** One of a job's two files, stored while it is assembled if it has a line; its record is made once its bytes are durable. */
function openSink(
  job: JobRecord,
  kind: 'output' | 'error',
  signal: AbortSignal,
  deps: Deps,
): { sink: PassThrough; file: Promise<FileRecord | null> } {
  const sink = new PassThrough({ highWaterMark: 1024 * 1024 });
  // It may break before or after somebody reads or writes it, and an error that nobody hears ends the process.
  sink.on('error', () => undefined);
  const id = outputFileId(job.id, kind);
  async function store(): Promise<FileRecord | null> {
    await once(sink, 'readable');
    if (sink.readableLength === 0) {
      sink.resume();
      return null;
    }
    const key = outputKey(job, kind);
    const { address, ...stored } = await deps.storage.put(key, sink, { signal });
    const filename = `${batchIdOf(job.id)}_${kind}.jsonl`;
    const seconds = job.options.outputExpiresAfter;
    const expiresAfterMs = seconds === null ? null : seconds * 1_000;
    const purpose = 'batch_output';
    const location = address === undefined ? {} : { location: address };
    const file = { id, ...stored, ...location, filename, purpose, expiresAfterMs } as const;
    const made = await deps.store.files.create(file);
    // Written a second time, it may be another version of the same bytes.
    if (made.location !== address) await deps.store.files.amend(id, location);
    return { ...made, ...stored, ...location };
  }
  const file = store();
  // The assembler ends with the same error, which is the one that is reported.
  file.catch((error: unknown) => sink.destroy(error instanceof Error ? error : undefined));
  return { sink, file };
}
