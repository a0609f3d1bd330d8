import { createWriteStream } from 'node:fs';
import { mkdir, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { WriteStream } from 'node:fs';
import type { Settings } from '../../config/schema.ts';
import { assemble } from '../dispatcher/assemble.ts';
import type { AssemblySource } from '../dispatcher/contract.ts';
import { checkShard } from '../dispatcher/lost-parts.ts';
import { errorCode, invalidInput, notFound, SluiceError } from '../domain/errors.ts';
import { inputKey, segmentKey } from '../domain/file.ts';
import { batchIdOf, jobIdOf } from '../domain/job.ts';
import type { JobRecord } from '../domain/job.ts';
import { countBits } from '../domain/segment.ts';
import type { AcceptedShard, PartRange } from '../domain/segment.ts';
import { createLogger } from '../observability/log.ts';
import { untilStopped } from './signals.ts';
import { newProcessName, openSystem } from './system.ts';
import type { System } from './system.ts';

export interface ExportOptions {
  /** Folder for the two files. */
  to: string;
  force?: true;
  json?: true;
}

interface Exported {
  /** Path of each file; null: no line went there. */
  output: string | null;
  error: string | null;
  /** Lines in each. */
  completed: number;
  failed: number;
  /** Lines that were answered, and of which storage has no answer any more. */
  lost: number;
  /** Shards of which the record cannot be read; their answers are left out. */
  unreadable: number;
  /** What is wrong with the first of either. */
  reason: string;
}

/** What cannot be exported. */
interface Missing {
  lines: number;
  shards: number;
  reason: string;
}

const EXIT_INTERRUPTED = 130;

/**
 * `sluice jobs export`: writes what is stored of a job's answers into a local folder, in the order of its input, and
 * changes nothing of the job: for one whose files could not be written, or while it runs. Answers that are lost or
 * damaged are left out. Prints what it wrote. Returns the exit code: 0 where all that is recorded was there, else 1.
 */
export async function exportJob(
  id: string,
  options: ExportOptions,
  settings: Settings,
): Promise<number> {
  const jobId = id.startsWith('job_') ? id : jobIdOf(id);
  if (jobId === null) {
    throw invalidInput(
      'export.no_job',
      `'${id}' names no batch or job, such as batch_abc or job_abc.`,
    );
  }
  const level = settings.logLevel === 'info' ? 'error' : settings.logLevel;
  const log = createLogger({ level });
  const system = await openSystem({ settings, log, roles: [], name: newProcessName('export') });
  const stop = new AbortController();
  void untilStopped().then(() => stop.abort(new Error('stopped')));
  try {
    const job = await findJob(jobId, system);
    const written = await writeFiles(job, options, stop.signal, system);
    const text = options.json === true ? asJson(job, written) : describe(job, written);
    process.stdout.write(`${text}\n`);
    return written.lost + written.unreadable === 0 ? 0 : 1;
  } catch (error) {
    if (!stop.signal.aborted) throw error;
    process.stderr.write('Stopped; nothing was written.\n');
    return EXIT_INTERRUPTED;
  } finally {
    await system.close();
  }
}

/** A job of which answers are stored as they came. */
async function findJob(id: string, { patient: { store } }: System): Promise<JobRecord> {
  const job = await store.jobs.get(id);
  if (job === null) throw notFound('job_not_found', `There is no job '${id}' in this Redis.`);
  if ((await store.shards.segments(id)).size > 0) return job;
  const files = [job.outputFile, job.errorFile].filter((file) => file !== null);
  if (files.length > 0) {
    const paths = files.map((file) => `/v1/files/${file}/content`).join(' and ');
    throw invalidInput('export.no_segments', `Its answers are in its files: download ${paths}.`);
  }
  throw invalidInput('export.no_segments', `No answer of ${id} is stored (it is ${job.state}).`);
}

async function writeFiles(
  job: JobRecord,
  { to, force }: ExportOptions,
  signal: AbortSignal,
  system: System,
): Promise<Exported> {
  await mkdir(to, { recursive: true });
  const paths = {
    output: join(to, `${batchIdOf(job.id)}_output.jsonl`),
    error: join(to, `${batchIdOf(job.id)}_error.jsonl`),
  };
  if (force !== true) await refuseExisting(Object.values(paths));
  const missing: Missing = { lines: 0, shards: 0, reason: '' };
  const source = sourceOf(job, missing, signal, system);
  const counts = await assemble(
    { ...source, shards: withoutLost(source, missing) },
    { output: sinkOf(paths.output), error: sinkOf(paths.error) },
    { jobId: job.id, maxLineBytes: system.settings.maxLineBytes, undone: () => null },
  ).catch(async (error: unknown) => {
    for (const path of Object.values(paths)) await rm(partialOf(path), { force: true });
    throw error;
  });
  return {
    output: await keep(paths.output, counts.output),
    error: await keep(paths.error, counts.error),
    completed: counts.output,
    failed: counts.error,
    lost: missing.lines,
    unreadable: missing.shards,
    reason: missing.reason,
  };
}

async function refuseExisting(paths: readonly string[]): Promise<void> {
  for (const path of paths) {
    const found = await stat(path).catch((error: unknown) => {
      if (errorCode(error) !== 'ENOENT') throw error;
      return null;
    });
    if (found === null) continue;
    const mend = 'name another folder with --to, or write over it with --force';
    throw invalidInput('export.exists', `${path} is there already: ${mend}.`);
  }
}

function sourceOf(
  job: JobRecord,
  missing: Missing,
  signal: AbortSignal,
  { patient, storage }: System,
) {
  async function* shards(): AsyncGenerator<AcceptedShard> {
    for (let n = 0; n < job.shards; n += 1) {
      signal.throwIfAborted();
      try {
        yield* patient.store.shards.accepted(job.id, n, n + 1);
      } catch (error) {
        if (!(error instanceof SluiceError) || error.code !== 'store.damaged_record') throw error;
        missing.shards += 1;
        missing.reason ||= error.message;
      }
    }
  }
  return {
    shards: shards(),
    openPart: ({ segment, offset, length }: PartRange) =>
      storage.get(segmentKey(job.id, segment), { start: offset, end: offset + length }),
    openInput: (range: { start: number; end: number }) => storage.get(inputKey(job), range),
  };
}

/** The shards as they would be had only what is there been accepted; counts the lines that are missing for that. */
async function* withoutLost(
  source: Pick<AssemblySource, 'shards' | 'openPart'>,
  missing: Missing,
): AsyncGenerator<AcceptedShard> {
  for await (const shard of source.shards) {
    const { lost, rest, reason } = await checkShard(source, shard);
    const lines = countBits(shard.done) - countBits(rest);
    missing.lines += lines;
    if (lines > 0)
      missing.reason ||= reason || `no segment has all answers of shard ${shard.plan.n}`;
    const parts = shard.parts.filter((part) => !lost.some((each) => isSame(each, part)));
    yield { ...shard, done: rest, parts };
  }
}

function isSame(a: PartRange, b: PartRange): boolean {
  return a.segment === b.segment && a.offset === b.offset;
}

function partialOf(path: string): string {
  return `${path}.partial`;
}

function sinkOf(path: string): WriteStream {
  return createWriteStream(partialOf(path), { flush: true });
}

/** Gives a file that has lines its name, and removes one that has none. */
async function keep(path: string, lines: number): Promise<string | null> {
  if (lines === 0) {
    await rm(partialOf(path));
    return null;
  }
  await rename(partialOf(path), path);
  return path;
}

function describe(job: JobRecord, exported: Exported): string {
  const { output, error, completed, failed, lost, unreadable, reason } = exported;
  const lines = [`${completed} answers${output === null ? '' : ` in ${output}`}`];
  if (error !== null) lines.push(`${failed} errors in ${error}`);
  const open = job.lines - completed - failed - lost;
  if (open > 0) lines.push(`${open} of ${job.lines} requests without an answer`);
  if (lost > 0) lines.push(`${lost} answers lost`);
  if (unreadable > 0)
    lines.push(`${unreadable} of ${job.shards} shards left out, whose records cannot be read`);
  if (reason !== '') lines.push(`The first that is missing: ${reason}`);
  return lines.join('\n');
}

function asJson({ id, lines }: JobRecord, { reason, ...exported }: Exported): string {
  return JSON.stringify({ job_id: id, batch_id: batchIdOf(id), total: lines, ...exported, reason });
}
