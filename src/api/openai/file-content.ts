import type { Readable } from 'node:stream';
import { SluiceError } from '../../domain/errors.ts';
import { contentKey } from '../../domain/file.ts';
import type { FileRecord } from '../../domain/file.ts';
import { gzipped } from '../convert/convert.ts';
import { conversionOf } from '../convert/query.ts';
import { sendConverted } from '../convert/send.ts';
import type { ConvertDeps } from '../convert/send.ts';
import { contentDisposition } from '../disposition.ts';
import { acceptsGzip, askedRange } from '../encoding.ts';
import { isKnown } from '../etag.ts';
import type { ApiContext } from '../routes.ts';
import { streamBody } from '../stream-body.ts';

/** Below this, the head of a gzip stream and a thread's turn cost more than they save. */
const LEAST_GZIP_BYTES = 1_024;

type Range = { start: number; end: number } | 'unsatisfiable' | null;

/** A file as its bytes are, or in the form that the query of the request asks for. */
export async function sendContent(
  c: ApiContext,
  file: FileRecord,
  deps: ConvertDeps,
): Promise<Response> {
  const conversion = conversionOf(c);
  return conversion === null ? sendBytes(c, file, deps) : sendConverted(c, file, conversion, deps);
}

/**
 * The bytes of a file, by HTTP's rules (RFC 9110): whole, compressed where the client takes that, or one range; several
 * ranges are answered with the whole, which a server may. Bytes never change under an id, so their digest is the ETag;
 * compressed ones are another representation of the same, and have it as a weak one.
 */
async function sendBytes(
  c: ApiContext,
  file: FileRecord,
  { storage }: ConvertDeps,
): Promise<Response> {
  const strong = etagOf(file);
  // A range is of the bytes themselves: who asks for one gets no compressed ones, whole or in part.
  const range = rangeOf(c, file.bytes, strong);
  const isGzip = range === null && file.bytes >= LEAST_GZIP_BYTES && acceptsGzip(c);
  const shared = {
    ...etagHeader(strong, isGzip),
    Vary: 'Accept-Encoding',
    'Accept-Ranges': 'bytes',
  };
  if (isKnown(c, strong)) return c.body(null, 304, shared);
  if (range === 'unsatisfiable') throw unsatisfiable(c, file);
  const { start, end } = range ?? { start: 0, end: file.bytes };
  const headers = {
    ...shared,
    'Content-Type': contentType(file),
    // The type is what somebody said of bytes that nobody has looked at.
    'X-Content-Type-Options': 'nosniff',
    'Content-Disposition': contentDisposition(file.filename),
    ...(isGzip ? { 'Content-Encoding': 'gzip' } : { 'Content-Length': String(end - start) }),
    ...(range === null ? {} : { 'Content-Range': `bytes ${start}-${end - 1}/${file.bytes}` }),
  };
  // Hono answers HEAD through GET's handler and drops the body: a stream opened for it would stay open.
  if (c.req.method === 'HEAD') return c.body(null, 200, headers);
  const stream = await storage.get(contentKey(file), { start, end });
  const body = bodyOf(c, file, stream, isGzip ? null : end - start);
  return c.body(body, range === null ? 200 : 206, headers);
}

/** Null while nobody knows the digest: a file in a bucket of the user's is read first when its job is planned. */
function etagOf({ sha256 }: FileRecord): string | null {
  return sha256 === '' ? null : `"${sha256}"`;
}

function etagHeader(strong: string | null, isGzip: boolean): { ETag?: string } {
  if (strong === null) return {};
  return { ETag: isGzip ? `W/${strong}` : strong };
}

/** `bytes`: how many the stream has; null where they are to be compressed. */
function bodyOf(c: ApiContext, file: FileRecord, stream: Readable, bytes: number | null) {
  const source = bytes === null ? gzipped(stream) : stream;
  function onError(err: Error): void {
    c.var.log.error({ err, file: file.id }, 'reading a file failed');
  }
  return streamBody(c, source, onError, bytes ?? undefined);
}

/** The media type under which a file is downloaded. */
export function contentType({ purpose, mimeType }: FileRecord): string {
  if (purpose === 'batch' || purpose === 'batch_output') return 'application/jsonl';
  return mimeType ?? 'application/octet-stream';
}

/** What a request asks of `bytes`, end excluded; null for the whole, which also answers a header that makes no sense. */
function rangeOf(c: ApiContext, bytes: number, etag: string | null): Range {
  // A weak tag, or a date, says nothing about single bytes.
  const condition = c.req.header('if-range') ?? etag;
  const [, first, last] = /^bytes=\s*(\d*)-(\d*)\s*$/i.exec(askedRange(c) ?? '') ?? [];
  if (condition !== etag || first === undefined || last === undefined) return null;
  if (first === '') return last === '' ? null : lastBytes(Number(last), bytes);
  return bytesFrom(Number(first), last === '' ? Infinity : Number(last), bytes);
}

function bytesFrom(start: number, last: number, bytes: number): Range {
  if (last < start) return null;
  return start < bytes ? { start, end: Math.min(last + 1, bytes) } : 'unsatisfiable';
}

function lastBytes(wanted: number, bytes: number): Range {
  const length = Math.min(wanted, bytes);
  return length === 0 ? 'unsatisfiable' : { start: bytes - length, end: bytes };
}

function unsatisfiable(c: ApiContext, file: FileRecord): SluiceError {
  c.header('Content-Range', `bytes */${file.bytes}`);
  return new SluiceError(
    'InvalidInput',
    'range_not_satisfiable',
    `The file '${file.id}' has ${file.bytes} bytes, and the range begins behind them: ask for one within, or leave the header Range out.`,
    { param: 'Range', status: 416 },
  );
}
