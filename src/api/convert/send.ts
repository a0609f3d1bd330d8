import type { Readable } from 'node:stream';
import { invalidInput, SluiceError } from '../../domain/errors.ts';
import { contentKey, inputKey, isExpired, writerOf } from '../../domain/file.ts';
import type { FileRecord } from '../../domain/file.ts';
import type { JobRecord } from '../../domain/job.ts';
import type { Storage } from '../../storage/contract.ts';
import type { Files } from '../../store/files.ts';
import type { Jobs } from '../../store/jobs.ts';
import { contentDisposition } from '../disposition.ts';
import { acceptsGzip } from '../encoding.ts';
import { isKnown } from '../etag.ts';
import type { ApiContext } from '../routes.ts';
import { cutWhenUnread, streamBody } from '../stream-body.ts';
import { convert, gzipped, takeSlot } from './convert.ts';
import type { ConversionSlots } from './convert.ts';
import { convertedName, convertedType, isRewritten } from './query.ts';
import type { Conversion } from './query.ts';

export interface ConvertDeps {
  store: { files: Pick<Files, 'get'>; jobs: Pick<Jobs, 'get'> };
  storage: Pick<Storage, 'get'>;
  slots: ConversionSlots;
}

/** Part of the ETag: to be raised when the same file is converted into other bytes. */
const VERSION = 1;
/** Whoever takes nothing for so long must not keep others from converting. */
const STALLED_MS = 60_000;

/**
 * A file in another form. Its length is not known before its end and no byte has a fixed place, so that there are no
 * ranges; an error in the middle cuts the connection.
 */
export async function sendConverted(
  c: ApiContext,
  file: FileRecord,
  conversion: Conversion,
  deps: ConvertDeps,
): Promise<Response> {
  const job = isRewritten(conversion) ? await writerFor(file, conversion, deps) : null;
  const { format, isMerged, isGzip, escapesFormulas } = conversion;
  const form = [format, isMerged, isGzip, escapesFormulas, VERSION].join('.');
  const etag = `"${file.sha256}.${form}"`;
  const headers = { ...headersOf(c, file.filename, conversion), ETag: `W/${etag}` };
  if (isKnown(c, etag)) return c.body(null, 304, { ETag: `W/${etag}`, Vary: 'Accept-Encoding' });
  if (c.req.method === 'HEAD') {
    // That the input is gone is told here, too.
    if (isMerged && job !== null) (await openInput(job, deps)).destroy();
    return c.body(null, 200, headers);
  }
  const open = () => deps.storage.get(contentKey(file));
  return sendBody(c, { job, open, conversion, headers }, deps);
}

/** The same of lines that are being made while they are read. */
export async function sendConvertedStream(
  c: ApiContext,
  job: JobRecord,
  open: () => Readable,
  wish: { filename: string; conversion: Conversion; headers: Record<string, string> },
  deps: ConvertDeps,
): Promise<Response> {
  const { filename, conversion } = wish;
  const headers = { ...headersOf(c, filename, conversion), ...wish.headers };
  if (c.req.method === 'HEAD') return c.body(null, 200, headers);
  return sendBody(c, { job, open, conversion, headers }, deps);
}

/** What is converted: lines, and the job whose input stands beside them where they are merged. */
interface Source {
  job: JobRecord | null;
  open: () => Readable | Promise<Readable>;
  conversion: Conversion;
  headers: Record<string, string>;
}

async function sendBody(
  c: ApiContext,
  { job, open, conversion, headers }: Source,
  deps: ConvertDeps,
): Promise<Response> {
  const free = takeSlot(deps.slots);
  let input: Readable | null = null;
  try {
    if (conversion.isMerged && job !== null) input = await openInput(job, deps);
    return bodyOf(c, convert({ answers: await open(), input }, conversion, free), headers);
  } catch (error) {
    input?.destroy();
    free();
    throw error;
  }
}

function headersOf(
  c: ApiContext,
  filename: string,
  conversion: Conversion,
): Record<string, string> {
  const isCoded = conversion.format !== 'parquet' && !conversion.isGzip && acceptsGzip(c);
  return {
    'Content-Type': convertedType(conversion),
    'X-Content-Type-Options': 'nosniff',
    'Content-Disposition': contentDisposition(convertedName(filename, conversion)),
    'Accept-Ranges': 'none',
    Vary: 'Accept-Encoding',
    ...(isCoded ? { 'Content-Encoding': 'gzip' } : {}),
  };
}

function bodyOf(c: ApiContext, converted: Readable, headers: Record<string, string>): Response {
  cutWhenUnread(c.env.outgoing, STALLED_MS);
  const source = headers['Content-Encoding'] === undefined ? converted : gzipped(converted);
  const body = streamBody(c, source, (err) =>
    c.var.log.error({ err, path: c.req.path }, 'converting a download failed'),
  );
  return c.body(body, 200, headers);
}

/** The job that wrote the file; only what a job wrote has lines that are known. */
async function writerFor(
  file: FileRecord,
  { format, isMerged }: Conversion,
  { store }: ConvertDeps,
): Promise<JobRecord | null> {
  const jobId = file.purpose === 'batch_output' ? writerOf(file.id) : null;
  if (jobId === null) {
    const param = format === 'jsonl' ? 'merge' : 'format';
    const asked = format === 'jsonl' ? 'merge=input' : `format=${format}`;
    const message = `Only output and error files of batches can be had with ${asked}: the file '${file.id}' (purpose ${file.purpose}) comes as it is, with format=jsonl.`;
    throw invalidInput('invalid_value', message, { param });
  }
  if (!isMerged) return null;
  const job = await store.jobs.get(jobId);
  if (job !== null) return job;
  throw inputGone(
    'The batch that wrote this file was deleted, and its input is not known any more',
  );
}

/** Opens the input of a job; one that is gone is told before a line was sent. */
async function openInput(job: JobRecord, { store, storage }: ConvertDeps): Promise<Readable> {
  const gone = `The input '${job.input}' of this batch was deleted`;
  const file = await store.files.get(job.input);
  if (file === null || isExpired(file, Date.now())) throw inputGone(gone);
  try {
    return await storage.get(inputKey(job));
  } catch (error) {
    const isGone = error instanceof SluiceError && error.kind === 'NotFound';
    throw isGone ? inputGone(gone) : error;
  }
}

function inputGone(why: string): SluiceError {
  const message = `${why}, so that no request can stand beside its answer: leave merge out.`;
  return invalidInput('input_deleted', message, { param: 'merge' });
}
