import type { Readable } from 'node:stream';
import { Agent, request } from 'undici';
import type { Dispatcher } from 'undici';
import * as v from 'valibot';
import {
  describeError,
  errorCode,
  invalidInput,
  SluiceError,
  transient,
} from '../../domain/errors.ts';
import { parseRetryAfter } from '../../domain/retry.ts';
import { refusalSchema } from './wire.ts';

export interface RemoteOptions {
  /** Base URL, without `/v1`. */
  url: string;
  apiKey: string | undefined;
  /** How long a connection may take, ms. */
  connectTimeout: number;
  /** How long a small answer may take in all, ms. */
  answerTimeout?: number;
  /** How long a file may stand still, ms: some services hold all of it before they answer. */
  fileTimeout?: number;
  now?: () => number;
}

/** One request. */
export interface RemoteRequest {
  method: 'GET' | 'POST';
  /** Below the base URL. */
  path: string;
  headers?: Record<string, string>;
  body?: string | Readable;
  /** It brings a file, or takes one. */
  isFile?: true;
}

/** Nothing of what is read whole is ever that long. */
const MOST_BYTES = 16 * 1024 * 1024;
const MOST_SHOWN = 500;
/** The connection was never there: the service has heard nothing. */
const UNSENT = new Set([
  'ECONNREFUSED',
  'ENOTFOUND',
  'EAI_AGAIN',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'UND_ERR_CONNECT_TIMEOUT',
]);
const NOT_DONE = new Set([425, 429]);
/** It may have gone on after it gave up waiting, as after a 5xx. */
const TIMED_OUT = 408;
const ANSWER_TIMEOUT_MS = 30_000;
const FILE_TIMEOUT_MS = 300_000;

/** Asks one service; what is wrong with an answer is told as `RemoteService` says. */
export interface RemoteExchange {
  /** An answer of 2xx whose body fits the schema. */
  ask<S extends v.GenericSchema>(
    schema: S,
    asked: RemoteRequest,
    signal: AbortSignal,
  ): Promise<v.InferOutput<S>>;
  /** The body of an answer of 2xx, as it comes. */
  stream(asked: RemoteRequest, signal: AbortSignal): Promise<Dispatcher.ResponseData['body']>;
  close(): Promise<void>;
}

export function createExchange(options: RemoteOptions): RemoteExchange {
  const { url, apiKey, connectTimeout, now = Date.now } = options;
  const { answerTimeout = ANSWER_TIMEOUT_MS, fileTimeout = FILE_TIMEOUT_MS } = options;
  const agent = new Agent({
    connect: { timeout: connectTimeout },
    headersTimeout: fileTimeout,
    bodyTimeout: fileTimeout,
    // uvicorn closes an idle connection after 5 s: let go of it first, else a request meets the closing socket.
    keepAliveTimeout: 4_000,
    keepAliveMaxTimeout: 4_000,
  });
  const key: Record<string, string> =
    apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` };

  async function send(
    { method, path, headers = {}, body }: RemoteRequest,
    stop: AbortSignal,
    signal = stop,
  ): Promise<Dispatcher.ResponseData> {
    const answer = await orFail(`${method} ${url}${path}`, stop, () =>
      request(`${url}${path}`, {
        dispatcher: agent,
        method,
        headers: { accept: 'application/json', ...key, ...headers },
        signal,
        ...(body === undefined ? {} : { body }),
      }),
    );
    if (answer.statusCode >= 200 && answer.statusCode < 300) return answer;
    const text = await readText(answer.body, MOST_BYTES).catch(() => ''); // the status says enough
    throw failure(`${method} ${url}${path}`, answer, text, now());
  }

  return {
    async ask(schema, asked, stop) {
      const limit = asked.isFile ? [] : [AbortSignal.timeout(answerTimeout)];
      const signal = AbortSignal.any([stop, ...limit]);
      const what = `${asked.method} ${url}${asked.path}`;
      const { body } = await send(asked, stop, signal);
      const text = await orFail(what, stop, () => readText(body, MOST_BYTES));
      const parsed = v.safeParse(v.pipe(v.string(), v.parseJson(), schema), text);
      if (parsed.success) return parsed.output;
      throw unclear(`${what} answers something that is no whole answer: ${shown(text)}`);
    },
    async stream(asked, signal) {
      return (await send(asked, signal)).body;
    },
    close: () => agent.destroy(),
  };
}

/** Rejects with what a broken exchange means. */
async function orFail<T>(what: string, signal: AbortSignal, asking: () => Promise<T>): Promise<T> {
  try {
    return await asking();
  } catch (error) {
    signal.throwIfAborted();
    throw brokenExchange(what, error);
  }
}

/** The error for an exchange that broke; what was to be sent may have broken by itself. */
export function brokenExchange(what: string, error: unknown): SluiceError {
  if (error instanceof SluiceError) return error;
  const why = `${what} does not answer: ${describeError(error)}`;
  return UNSENT.has(connectCode(error)) ? transient('remote.unsent', why) : unclear(why);
}

/** A host with several addresses fails with what each of them said; any that may have heard something counts. */
function connectCode(error: unknown): string {
  if (!(error instanceof AggregateError)) return errorCode(error);
  const codes = error.errors.map(errorCode);
  return codes.find((code) => !UNSENT.has(code)) ?? codes[0] ?? '';
}

function unclear(message: string): SluiceError {
  return transient('remote.unclear', message);
}

function failure(
  what: string,
  { statusCode: status, headers }: Dispatcher.ResponseData,
  text: string,
  now: number,
): SluiceError {
  const message = `${what} answers ${status}: ${reasonIn(text)}`;
  const isUnclear = status >= 500 || status === TIMED_OUT;
  if (!isUnclear && !NOT_DONE.has(status)) {
    return invalidInput('remote.refused', message, { status });
  }
  const { 'retry-after': header } = headers;
  const wait = parseRetryAfter(Array.isArray(header) ? header[0] : header, now);
  const details = wait === null ? {} : { retryAfterMs: wait };
  return transient(isUnclear ? 'remote.unclear' : 'remote.busy', message, details);
}

/** What a service says of a refusal, in whichever of the ways. */
function reasonIn(text: string): string {
  const parsed = v.safeParse(v.pipe(v.string(), v.parseJson(), refusalSchema), text);
  if (!parsed.success) return shown(text);
  if ('error' in parsed.output) return parsed.output.error.message.slice(0, MOST_SHOWN);
  const { detail } = parsed.output;
  if (typeof detail === 'string') return detail.slice(0, MOST_SHOWN);
  const list = detail.map(({ loc, msg }) => `${loc.join('.')}: ${msg}`);
  return list.join('; ').slice(0, MOST_SHOWN);
}

function shown(text: string): string {
  const flat = text.slice(0, MOST_SHOWN).replaceAll(/\s+/g, ' ').trim();
  return flat === '' ? '(nothing)' : flat;
}

async function readText(body: AsyncIterable<Uint8Array>, most: number): Promise<string> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of body) {
    chunks.push(chunk);
    bytes += chunk.length;
    if (bytes > most) throw new Error(`the answer has more than ${most} bytes`);
  }
  return Buffer.concat(chunks).toString('utf8');
}
