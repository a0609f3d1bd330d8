import { Readable } from 'node:stream';
import * as v from 'valibot';
import type { PartialWish } from '../../processors/partial.ts';
import { invalidInput, notFound, transient } from '../domain/errors.ts';
import { batchIdOf, isFinal } from '../domain/job.ts';
import type { JobRecord } from '../domain/job.ts';
import type { Storage } from '../storage/contract.ts';
import type { Files } from '../store/files.ts';
import type { Jobs } from '../store/jobs.ts';
import { parse } from './body.ts';
import type { ConversionSlots } from './convert/convert.ts';
import { contentSchema, conversionOf } from './convert/query.ts';
import { sendConvertedStream } from './convert/send.ts';
import type { ConvertDeps } from './convert/send.ts';
import { contentDisposition } from './disposition.ts';
import { findBatch, findJob } from './find-job.ts';
import type { FindJob } from './find-job.ts';
import { sendContent } from './openai/file-content.ts';
import { pathId } from './routes.ts';
import type { ApiContext, Route } from './routes.ts';
import { cutWhenUnread, streamBody } from './stream-body.ts';
import { jobFiles } from './views.ts';

export interface PartialDeps {
  store: { jobs: Pick<Jobs, 'get'>; files: Pick<Files, 'get'> };
  storage: Pick<Storage, 'get'>;
  /** What a job that is not over has so far; fails rather than end early. */
  openPartial(job: JobRecord, wish: PartialWish): Readable;
}

/** Says whether lines may still come. */
const INCOMPLETE = 'X-Incomplete';
/** Merging takes some 25 MB where answers are large; reading as it was committed takes next to nothing. */
export const MOST_MERGED = 4;
const AGAIN_MS = 2_000;
/** Whoever takes nothing for so long must not keep others from reading. */
const STALLED_MS = 60_000;

/** A job's results under its own id: its files when it is over, and before that what it has so far. */
export function partialRoutes(deps: PartialDeps, slots: ConversionSlots): Route[] {
  const open = { count: 0 };
  const convertDeps = { ...deps, slots };
  function route(path: string, kind: PartialWish['kind'], find: FindJob): Route {
    return { path, get: (c) => results(c, convertDeps, { kind, find, open }) };
  }
  return [
    route('/v1/batches/:id/output', 'output', findBatch),
    route('/v1/batches/:id/errors', 'error', findBatch),
    route('/api/v1/jobs/:id/output', 'output', findJob),
    route('/api/v1/jobs/:id/errors', 'error', findJob),
  ];
}

export const querySchema = v.object({
  ...contentSchema.entries,
  order: v.optional(v.picklist(['input', 'committed'], 'input or committed'), 'input'),
});

type ResultDeps = PartialDeps & ConvertDeps;

interface Asked {
  kind: PartialWish['kind'];
  find: FindJob;
  /** Partial results that this process is merging. */
  open: { count: number };
}

async function results(c: ApiContext, deps: ResultDeps, asked: Asked): Promise<Response> {
  const job = await asked.find(deps.store.jobs, pathId(c));
  const { order } = parse(querySchema, c.req.query());
  const { kind } = asked;
  if (isFinal(job.state)) return finished(c, deps, job, kind);
  const conversion = conversionOf(c);
  if (conversion?.isMerged === true && order === 'committed') {
    const message =
      'merge=input reads requests and answers side by side: leave order=committed out.';
    throw invalidInput('invalid_value', message, { param: 'order' });
  }
  const marks = { [INCOMPLETE]: 'true', 'Cache-Control': 'no-store' };
  const openLines = () => openCounted(deps, job, { kind, order }, asked.open);
  if (conversion !== null) {
    const wish = { filename: filenameOf(job, kind), conversion, headers: marks };
    return sendConvertedStream(c, job, openLines, wish, deps);
  }
  const headers = { ...headersOf(job, kind), ...marks };
  if (c.req.method === 'HEAD') return c.body(null, 200, headers);
  return send(c, openLines(), headers);
}

function openCounted(
  deps: PartialDeps,
  job: JobRecord,
  wish: PartialWish,
  open: Asked['open'],
): Readable {
  if (wish.order === 'committed') return deps.openPartial(job, wish);
  if (open.count >= MOST_MERGED) {
    const message =
      `This server is merging the results of ${MOST_MERGED} unfinished jobs already: ` +
      'try again later, or read them with order=committed.';
    throw transient('too_many_readers', message, { retryAfterMs: AGAIN_MS });
  }
  const stream = deps.openPartial(job, wish);
  open.count += 1;
  stream.once('close', () => (open.count -= 1));
  return stream;
}

async function finished(
  c: ApiContext,
  deps: ResultDeps,
  job: JobRecord,
  kind: PartialWish['kind'],
): Promise<Response> {
  const id = jobFiles(job)[kind];
  if (id === null) refuseUnwritten(job, kind);
  const file = id === null ? null : await deps.store.files.get(id);
  if (id !== null && file === null) {
    throw notFound('file_not_found', `The file '${id}' of this job was deleted.`, { param: 'id' });
  }
  c.header(INCOMPLETE, 'false');
  if (file !== null) return sendContent(c, file, deps);
  // No line went there, and so no file was made.
  const conversion = conversionOf(c);
  if (conversion !== null) {
    const wish = { filename: filenameOf(job, kind), conversion, headers: {} };
    return sendConvertedStream(c, job, () => Readable.from([]), wish, deps);
  }
  return c.body(null, 200, { ...headersOf(job, kind), 'Content-Length': '0' });
}

/** Its files were given up: nothing to read is not the same as no line to be read. */
function refuseUnwritten(job: JobRecord, kind: PartialWish['kind']): void {
  const lines = kind === 'output' ? job.completed : job.failed;
  if (lines === 0) return;
  const [error] = job.errors;
  const why = error === undefined ? '' : ` ${error.message}`;
  const message = `The ${kind} file of this job, of ${lines} lines, could not be written.${why}`;
  throw notFound('file_not_written', message, { param: 'id' });
}

function headersOf(job: JobRecord, kind: PartialWish['kind']): Record<string, string> {
  return {
    'Content-Type': 'application/jsonl',
    'Content-Disposition': contentDisposition(filenameOf(job, kind)),
  };
}

function filenameOf(job: JobRecord, kind: PartialWish['kind']): string {
  return `${batchIdOf(job.id)}_${kind}.jsonl`;
}

function send(c: ApiContext, source: Readable, headers: Record<string, string>): Response {
  cutWhenUnread(c.env.outgoing, STALLED_MS);
  const body = streamBody(c, source, (err) =>
    c.var.log.error({ err }, 'reading the results of a job failed'),
  );
  return c.body(body, 200, headers);
}
