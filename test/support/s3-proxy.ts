import { once } from 'node:events';
import { createServer, request as send } from 'node:http';
import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http';
import { buffer } from 'node:stream/consumers';

/** A request as it came. */
export interface S3Request {
  /** As Amazon calls it, such as UploadPart. */
  operation: string;
  method: string;
  /** Path and query. */
  url: string;
  headers: IncomingHttpHeaders;
  bytes: number;
  /** From 1, of this operation. */
  n: number;
}

/**
 * What becomes of a request: `pass`; `reset`: its connection breaks before it arrives; `lose`: it is done, and the
 * answer is lost; `hang`: nothing ever happens; another `url` in its place; an answer of the proxy's own; the server's answer, but its body is cut
 * off (`cutAfter`) or stands still (`hangAfter`) after so many bytes.
 */
export type S3Fate =
  | 'pass'
  | 'reset'
  | 'lose'
  | 'hang'
  | { status: number; code: string; headers?: Record<string, string>; more?: string }
  | { cutAfter: number }
  | { hangAfter: number }
  | { url: string };

export interface S3ProxyOptions {
  /** What its clock is ahead of ours. */
  clockAheadMs?: number;
  /** Of every answer. */
  headers?: Readonly<Record<string, string>>;
}

export interface S3Proxy extends AsyncDisposable {
  url: string;
  port: number;
  seen: S3Request[];
  /** How often each operation was asked for. */
  counts(): Record<string, number>;
  /** Answers that have not ended yet. */
  underWay(): number;
}

/** The operation of a request, whichever way it names its bucket. */
export function operationOf(method: string, url: string, headers: IncomingHttpHeaders): string {
  const { host = '', 'x-amz-copy-source': source } = headers;
  const { pathname, searchParams: query } = new URL(url, 'http://host');
  const path = /^[\d.:]+$/.test(host)
    ? pathname.slice(1).replace(/^[^/]*\/?/, '')
    : pathname.slice(1);
  if (path === '') {
    if (method === 'HEAD') return 'HeadBucket';
    if (query.has('versions')) return 'ListObjectVersions';
    return query.has('uploads') ? 'ListMultipartUploads' : 'ListObjectsV2';
  }
  if (query.has('uploads')) return 'CreateMultipartUpload';
  if (source !== undefined) return query.has('uploadId') ? 'UploadPartCopy' : 'CopyObject';
  const verbs = query.has('uploadId')
    ? { PUT: 'UploadPart', POST: 'CompleteMultipartUpload', DELETE: 'AbortMultipartUpload' }
    : { PUT: 'PutObject', GET: 'GetObject', HEAD: 'HeadObject', DELETE: 'DeleteObject' };
  return new Map(Object.entries(verbs)).get(method) ?? method;
}

/** Sends a request on, and resolves with the head of its answer. */
export function forward(
  from: IncomingMessage,
  path: string,
  body: Buffer,
  target: URL,
): Promise<IncomingMessage> {
  const { method, headers } = from;
  const { hostname, port } = target;
  const { resolve, reject, promise } = Promise.withResolvers<IncomingMessage>();
  const sent = send({ hostname, port, method, path, headers, agent: false }, resolve);
  sent.on('error', reject);
  sent.end(body);
  return promise;
}

function drained(to: ServerResponse): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  to.once('drain', resolve);
  return promise;
}

async function answer(answered: IncomingMessage, to: ServerResponse, fate: S3Fate): Promise<void> {
  const { date: _, ...headers } = answered.headers;
  to.writeHead(answered.statusCode ?? 500, headers);
  const { promise: closed, resolve } = Promise.withResolvers<void>();
  to.once('close', resolve);
  let left = Infinity;
  if (typeof fate === 'object' && 'cutAfter' in fate) left = fate.cutAfter;
  if (typeof fate === 'object' && 'hangAfter' in fate) left = fate.hangAfter;
  for await (const chunk of answered as AsyncIterable<Buffer>) {
    const isTaken = to.write(chunk.subarray(0, left));
    left -= chunk.length;
    // a reader that is gone drains nothing
    if (!isTaken && !to.destroyed) await Promise.race([drained(to), closed]);
    if (to.destroyed) {
      answered.destroy();
      return;
    }
    if (left > 0) continue;
    answered.destroy();
    if (typeof fate === 'object' && 'cutAfter' in fate) {
      // what was written has to leave first
      to.write('', () => to.destroy());
    }
    return;
  }
  to.end();
}

function refuse(to: ServerResponse, fate: Extract<S3Fate, { status: number }>): void {
  const { status, code, headers = {}, more = '' } = fate;
  const text = `<?xml version="1.0" encoding="UTF-8"?><Error><Code>${code}</Code><Message>said ${code}</Message>${more}</Error>`;
  to.writeHead(status, { 'content-type': 'application/xml', ...headers });
  // an answer without a code says nothing
  to.end(to.req.method === 'HEAD' || code === '' ? '' : text);
}

/** A proxy in front of an S3 server that decides about every request. */
export async function startS3Proxy(
  target: string,
  decide: (request: S3Request) => S3Fate = () => 'pass',
  { clockAheadMs = 0, headers = {} }: S3ProxyOptions = {},
): Promise<S3Proxy> {
  const to = new URL(target);
  const seen: S3Request[] = [];
  const counts: Record<string, number> = {};
  async function handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { method = '', url = '', headers } = request;
    const body = await buffer(request);
    const operation = operationOf(method, url, headers);
    const n = (counts[operation] ?? 0) + 1;
    counts[operation] = n;
    const one = { operation, method, url, headers, bytes: body.length, n };
    seen.push(one);
    const fate = decide(one);
    if (fate === 'hang') return;
    if (fate === 'reset') request.socket.resetAndDestroy();
    else if (typeof fate === 'object' && 'status' in fate) refuse(response, fate);
    else {
      const answered = await forward(
        request,
        typeof fate === 'object' && 'url' in fate ? fate.url : url,
        body,
        to,
      );
      if (fate === 'lose') request.socket.destroy();
      else await answer(answered, response, fate);
    }
  }
  let underWay = 0;
  const server = createServer((request, response) => {
    underWay += 1;
    response.setHeader('date', new Date(Date.now() + clockAheadMs).toUTCString());
    for (const [name, value] of Object.entries(headers)) response.setHeader(name, value);
    response.on('close', () => (underWay -= 1));
    handle(request, response).catch(() => request.socket.destroy());
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  return {
    url: `http://127.0.0.1:${address.port}`,
    port: address.port,
    seen,
    counts: () => ({ ...counts }),
    underWay: () => underWay,
    async [Symbol.asyncDispose]() {
      const closed = once(server, 'close');
      server.close();
      server.closeAllConnections();
      await closed;
    },
  };
}
