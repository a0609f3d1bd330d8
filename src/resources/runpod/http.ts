import * as v from 'valibot';
import { describeError, errorCode, transient } from '../../domain/errors.ts';
import type { SluiceError } from '../../domain/errors.ts';
import { askOnce } from '../ask-once.ts';
import type { OneAnswer, OneCall } from '../ask-once.ts';
import { createTurn } from '../create-turn.ts';
import type { CallPurpose, Pace } from '../lease-contract.ts';
import { restAsked } from './rate-limit.ts';
import type { Headers } from './rate-limit.ts';
import { isProblem, refusalOf } from './refusals.ts';
import type { RunPodApi } from './settings.ts';

/** Carries one request and reads its answer whole; rejects where there is none, or half of one. */
export type Fetcher = (call: OneCall) => Promise<OneAnswer>;

export interface Ask {
  purpose: CallPurpose;
  method: 'GET' | 'POST' | 'DELETE';
  /** Below the base URL, with its query. */
  path: string;
  body?: object;
  /** Statuses that are an answer. */
  expects: readonly number[];
  /** 404 is an answer, too, if it is the API that says it: null. */
  orNone?: boolean;
  /** A machine may come of it, so that what is not understood is `lease.unknown`. */
  creates?: boolean;
  /** ms since 1970 by which it has to leave; missing: whenever its turn comes. */
  sendBefore?: number;
}

export interface Http {
  /** The answer's JSON, undefined for an empty one, null for a 404 that was allowed. Rejects as `LeaseManager` says. */
  ask(ask: Ask): Promise<unknown>;
}

interface HttpOptions {
  api: RunPodApi;
  apiKey: string;
  timeoutMs: number;
  pace: Pace;
  fetcher?: Fetcher | undefined;
  now?: () => number;
  onAnswer: (headers: Headers) => void;
}

/** Nothing was sent, so nothing was done. */
const UNSENT = new Set(['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'UND_ERR_CONNECT_TIMEOUT']);

/** A header that asks for more is believed in pieces: an hour without a look is an hour of unseen machines. */
const LONGEST_REST_MS = 60_000;

const anyJson = v.pipe(v.string(), v.parseJson());

function pathOnly({ method, path }: Ask): string {
  return `${method} ${path.replace(/\?.*$/s, '')}`;
}

function lostAnswer(ask: Ask, error: unknown): SluiceError {
  const message = `RunPod gives no answer to ${pathOnly(ask)}: ${describeError(error)}`;
  const doubtful = ask.creates === true && !UNSENT.has(errorCode(error));
  return transient(doubtful ? 'lease.unknown' : 'lease.unavailable', message, { cause: error });
}

/** RunPod's API under one key, each request in its turn and with a time limit. */
export function createHttp(options: HttpOptions): Http {
  const { api, apiKey, timeoutMs, pace, fetcher = askOnce, now = Date.now, onAnswer } = options;
  let restsUntil = 0;

  async function send(ask: Ask, connectMs: number | undefined): Promise<OneAnswer> {
    const body = ask.body === undefined ? null : JSON.stringify(ask.body);
    const headers = {
      authorization: `Bearer ${apiKey}`,
      accept: 'application/json',
      // Cloudflare's rules before the API turn clients away that do not name themselves (403, error 1010).
      'user-agent': 'sluice',
      ...(body === null ? {} : { 'content-type': 'application/json' }),
    };
    const signal = AbortSignal.timeout(timeoutMs);
    try {
      const call = { method: ask.method, url: api.base + ask.path, headers, body, signal };
      return await fetcher(connectMs === undefined ? call : { ...call, connectMs });
    } catch (error) {
      throw lostAnswer(ask, error);
    }
  }

  /** How long a connection may take then; undefined: as long as any. */
  async function takeTurn({ purpose, sendBefore }: Ask): Promise<number | undefined> {
    if (sendBefore !== undefined) return createTurn(pace, sendBefore, now);
    await pace(purpose);
    return undefined;
  }

  /** Until RunPod wants to be asked again; what gives machines back is never kept waiting by a header. */
  function checkRest(purpose: CallPurpose): void {
    const retryAfterMs = restsUntil - now();
    if (purpose === 'release' || retryAfterMs <= 0) return;
    const message = 'RunPod has been asked too often and is left alone for a while.';
    throw transient('lease.unavailable', message, { retryAfterMs });
  }

  function parse(ask: Ask, text: string): unknown {
    if (text === '') return undefined;
    const parsed = v.safeParse(anyJson, text);
    if (parsed.success) return parsed.output;
    const code = ask.creates === true ? 'lease.unknown' : 'lease.unavailable';
    throw transient(code, `RunPod answers ${pathOnly(ask)} with something that is no JSON.`);
  }

  return {
    async ask(ask) {
      checkRest(ask.purpose);
      const connectMs = await takeTurn(ask);
      const { status, headers, text } = await send(ask, connectMs);
      onAnswer(headers);
      const rest = restAsked(status, headers, now());
      if (rest !== null) restsUntil = now() + Math.min(rest, LONGEST_REST_MS);
      if (ask.expects.includes(status)) return parse(ask, text);
      if (status === 404 && ask.orNone === true && isProblem(text)) return null;
      const { version } = api;
      const creates = ask.creates === true;
      throw refusalOf({ status, text, retryAfterMs: rest, what: pathOnly(ask), creates, version });
    },
  };
}
