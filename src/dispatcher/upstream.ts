import type { UpstreamStream } from '../domain/job.ts';
import type { AnswerStream } from './stream-answer.ts';
import { streamedRequest } from './stream-request.ts';

/** What a job wants of one attempt at a line. */
export interface AttemptWish {
  id: string;
  /** How long it may take, ms; null: as the server does by default. */
  answerTimeoutMs: number | null;
  upstreamStream: UpstreamStream;
}

/** Proxies give up after 60 s (nginx, AWS), 100 s (Cloudflare) or longer; what breaks sooner breaks for other reasons. */
const SILENCE_OF_A_CUT_MS = 60_000;
const GATEWAY_TIMEOUTS = new Set([504, 524]);
const BAD_GATEWAY = 502;

/**
 * Whether it was a proxy between us and the engine that gave up, because it heard nothing for too long. `status` is what
 * it answered, null where the connection just broke; `silentMs` is how long nothing had come by then.
 */
export function isProxyCut(status: number | null, silentMs: number): boolean {
  if (status !== null && GATEWAY_TIMEOUTS.has(status)) return true;
  return (status === null || status === BAD_GATEWAY) && silentMs >= SILENCE_OF_A_CUT_MS;
}

/** A job that is over is not told of: the one that was cut first is forgotten then. */
const MOST_CUT_JOBS = 1_000;

/** One attempt at a line. */
export interface UpstreamAttempt {
  body: Buffer;
  /** Bytes of `body` that are not the user's own: those are counted by whoever holds them. */
  copied: number;
  /** Null: the whole answer is asked for at once. */
  openStream: (() => AnswerStream) | null;
  /** How long nothing had come when the answer began, or the attempt ended. */
  silentMs: number;
}

/** Which lines one engine is asked to stream. */
export interface Upstream {
  begin(path: string, body: Buffer, job: AttemptWish): UpstreamAttempt;
  /**
   * What came of an attempt: a status, or null where the connection broke. `cut`: a proxy gave it up, so that the job's
   * lines are streamed from now on.
   */
  sawEnd(attempt: UpstreamAttempt, job: AttemptWish, status: number | null): 'cut' | 'other';
}

export function createUpstream(): Upstream {
  const cutJobs = new Set<string>();
  return {
    begin(path, body, { id, upstreamStream: mode }) {
      const isStreamed = mode === 'always' || (mode === 'auto' && cutJobs.has(id));
      const request = isStreamed ? streamedRequest(path, body) : null;
      return request === null
        ? { body, copied: 0, openStream: null, silentMs: 0 }
        : { ...request, copied: request.body.length, silentMs: 0 };
    },
    sawEnd({ openStream, silentMs }, { id, upstreamStream: mode }, status) {
      if (mode !== 'auto' || openStream !== null || !isProxyCut(status, silentMs)) return 'other';
      const [oldest] = cutJobs;
      if (cutJobs.size >= MOST_CUT_JOBS && oldest !== undefined) cutJobs.delete(oldest);
      cutJobs.add(id);
      return 'cut';
    },
  };
}
