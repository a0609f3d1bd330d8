import { Buffer } from 'node:buffer';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { ApiError } from './api-error.ts';
import { errorBody } from './api-error.ts';
import type { Fault } from './faults.ts';
import type { LogEntry, Outcome, RequestLog } from './request-log.ts';

/** One HTTP request on its way through the simulator. */
export interface Exchange {
  req: IncomingMessage;
  res: ServerResponse;
  path: string;
  body: Buffer;
  sha256: string;
  /** Where this request is counted; undefined for health, metrics and the like. */
  log: RequestLog | undefined;
  entry: LogEntry | undefined;
  fault: Fault | undefined;
  ended: boolean;
}

/** An answer as a whole. */
export interface Reply {
  status: number;
  /** Content type; vLLM's empty answers have none. */
  type?: string;
  payload: string;
  headers?: readonly string[];
}

export const JSON_TYPE = 'application/json';
export const EVENTS_TYPE = 'text/event-stream; charset=utf-8';
const NO_BODY = Buffer.alloc(0);

/** Collects a body; `gone` is called instead when the client goes away before its end. */
export function readBody(
  req: IncomingMessage,
  done: (body: Buffer) => void,
  gone: () => void,
): void {
  // Nearly every body is one chunk: no list is made for it.
  let first: Buffer | undefined;
  let rest: Buffer[] | undefined;
  req.on('data', (chunk: Buffer) => {
    if (first === undefined) first = chunk;
    else if (rest === undefined) rest = [first, chunk];
    else rest.push(chunk);
  });
  req.on('end', () => done(rest === undefined ? (first ?? NO_BODY) : Buffer.concat(rest)));
  req.on('error', () => {
    if (!req.complete) gone();
  });
}

/** Writes status and headers the way uvicorn does. */
export function writeHead(
  { req, res }: Exchange,
  { status, type, headers }: Omit<Reply, 'payload'>,
  length?: number,
): void {
  // CORSMiddleware, which is always there, adds `vary` (vLLM 0.32.0, seen).
  const all = ['server', 'uvicorn', 'vary', 'Origin'];
  if (type !== undefined) all.push('content-type', type);
  if (length !== undefined) all.push('content-length', String(length));
  if (headers !== undefined) all.push(...headers);
  // uvicorn says neither `Connection: keep-alive` nor `Keep-Alive: timeout=5`; with Node's hint a client
  // would know when an idle connection dies, and the race of a stale connection would never show.
  if (res.shouldKeepAlive && req.httpVersion === '1.1') res.removeHeader('connection');
  res.writeHead(status, all);
}

/** Closes the books on a request; only the first call counts. */
export function settle(
  x: Exchange,
  status: number | null,
  outcome: Outcome,
  aborted = false,
): void {
  if (x.ended) return;
  x.ended = true;
  const fault = x.fault?.kind ?? null;
  x.log?.finish({ entry: x.entry, sha256: x.sha256, status, outcome, fault, aborted });
}

function sendHalf(x: Exchange, reply: Reply, whole: boolean): Buffer {
  const payload = Buffer.from(reply.payload);
  const half = payload.subarray(0, payload.length >> 1);
  writeHead(x, reply, whole ? payload.length : half.length);
  x.res.write(half);
  return payload.subarray(half.length);
}

const PROXY_PAGE =
  '<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head>' +
  '<body><h1>Bad gateway</h1></body></html>';

/** Does to an answer what its fault says; false when the fault is not one of bodies. */
function sendBroken(x: Exchange, reply: Reply, fault: Fault): boolean {
  if (fault.kind === 'reset' && fault.at === 'body') {
    sendHalf(x, reply, true);
    settle(x, reply.status, 'fault');
    // The first half must be on its way, or the client sees no answer at all.
    setImmediate(() => x.req.socket.resetAndDestroy());
  } else if (fault.kind === 'hang_body') {
    const rest = sendHalf(x, reply, true);
    hang(x, fault, () => {
      settle(x, reply.status, 'fault');
      x.res.end(rest);
    });
  } else if (fault.kind === 'truncate') {
    sendHalf(x, reply, false);
    settle(x, reply.status, 'fault');
    x.res.end();
  } else if (fault.kind === 'content_type') {
    writeHead(x, { status: fault.status, type: 'text/html' }, PROXY_PAGE.length);
    settle(x, fault.status, 'fault');
    x.res.end(PROXY_PAGE);
  } else {
    return false;
  }
  return true;
}

/** Says nothing until `delay_ms` is over (null: never) or the client goes away. */
export function hang(x: Exchange, fault: Fault, resume: () => void): void {
  const timer = fault.delay_ms === null ? undefined : setTimeout(resume, fault.delay_ms);
  x.res.once('close', () => {
    clearTimeout(timer);
    settle(x, null, 'fault', true);
  });
}

/** Cloudflare's, after which it answers 524. */
const USUAL_PATIENCE_MS = 100_000;
const LOOKS = 20;

/**
 * A proxy's patience: when `delay_ms` have passed without a byte, it answers in the engine's stead, or cuts an answer
 * that has begun, and lets go of the engine. Only a request that it strikes is logged with the fault.
 */
export function cutWhenSilent(x: Exchange, fault: Fault): void {
  const patience = fault.delay_ms ?? USUAL_PATIENCE_MS;
  const { socket } = x.req;
  let written = socket.bytesWritten;
  let lastByte = performance.now();
  const looks = setInterval(() => {
    const now = performance.now();
    if (socket.bytesWritten !== written) {
      written = socket.bytesWritten;
      lastByte = now;
    } else if (now - lastByte >= patience) {
      cut();
    }
  }, patience / LOOKS);
  x.res.once('close', () => clearInterval(looks));
  function cut(): void {
    clearInterval(looks);
    if (x.ended) return;
    x.fault = fault;
    if (x.res.headersSent) {
      settle(x, null, 'fault', true);
      socket.resetAndDestroy();
      return;
    }
    settle(x, fault.status, 'fault', true);
    writeHead(x, { status: fault.status, type: 'text/html' }, PROXY_PAGE.length);
    x.res.end(PROXY_PAGE);
  }
}

/** Sends a whole answer, or what a fault leaves of it. The request counts as answered once it is handed to the socket. */
export function send(x: Exchange, reply: Reply): void {
  if (x.ended) return;
  if (x.fault !== undefined && sendBroken(x, reply, x.fault)) return;
  const length = Buffer.byteLength(reply.payload);
  writeHead(x, reply, length);
  settle(x, reply.status, reply.status < 400 ? 'answered' : 'refused');
  // Pure ASCII may go out as latin1, which costs the hot path a tenth less than encoding UTF-8.
  x.res.end(reply.payload, length === reply.payload.length ? 'latin1' : 'utf8');
}

/** Sends vLLM's error envelope. */
export function sendError(x: Exchange, error: ApiError, headers: readonly string[] = []): void {
  send(x, { status: error.status, type: JSON_TYPE, payload: errorBody(error), headers });
}
