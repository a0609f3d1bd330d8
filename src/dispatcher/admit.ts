import { createEstimator } from '../domain/estimate.ts';
import type { JobLimits } from '../domain/rate-limit.ts';
import type { Engine } from './engine.ts';
import type { Limiter, LimitScope, Permit } from './limiter.ts';
import type { Room, Wish } from './room.ts';
import type { Suspect } from './suspects.ts';

/** A line's job as far as rate limits go. */
export interface LimitedJob {
  id: string;
  limits: JobLimits;
}

/** A place at an engine and leave to send there; `permit` is null where no limit applies. */
export interface Admission {
  engine: Engine;
  permit: Permit | null;
}

interface AdmitDeps {
  limiter: Limiter;
  room: Room;
}

interface Asking {
  body: Buffer;
  job: LimitedJob;
  wish: Wish;
  suspect: Pick<Suspect, 'rest' | 'take'>;
  stop: AbortSignal;
}

/** Leave for a line that has a place, where no limit applies: the usual case costs no wait. */
export function admitFreely(engine: Engine, job: LimitedJob, limiter: Limiter): Admission | null {
  return limiter.needs(scopeOf(engine, job)) === 'nothing' ? { engine, permit: null } : null;
}

/** Leave for a line that has a place, if there is leave now: for what is not worth waiting for. */
export function admitAtOnce(
  engine: Engine,
  body: Buffer,
  job: LimitedJob,
  limiter: Limiter,
): Admission | null {
  const scope = scopeOf(engine, job);
  const needs = limiter.needs(scope);
  if (needs === 'nothing') return { engine, permit: null };
  const permit = limiter.tryPermit(scope, needs === 'tokens' ? estimateTokens(body) : 0);
  return permit === null ? null : { engine, permit };
}

/**
 * Leave for a line that has a place at `first`. While it waits, the place is free for others, and what is given in the
 * end may be another engine's. Null, and no place, when `stop` comes first.
 */
export async function admit(
  first: Engine,
  { body, job, wish, suspect, stop }: Asking,
  { limiter, room }: AdmitDeps,
): Promise<Admission | null> {
  let engine: Engine | null = first;
  let estimate: number | null = null;
  while (engine !== null) {
    const scope = scopeOf(engine, job);
    const needs = limiter.needs(scope);
    if (needs === 'nothing') return { engine, permit: null };
    const tokens = needs === 'tokens' ? (estimate ??= estimateTokens(body)) : 0;
    const permit = limiter.tryPermit(scope, tokens);
    if (permit !== null) return { engine, permit };
    // It stands in line before its place is free, so that no other line of the job takes the place only to wait, too.
    const waiting = limiter.permit(scope, tokens, stop);
    room.give(engine, wish.tenant);
    suspect.rest();
    const late = await waiting;
    wish.permitted = late === null ? null : engine;
    engine = await suspect.take(stop);
    wish.permitted = null;
    if (late !== null && engine?.address === scope.engine) return { engine, permit: late };
    late?.settle(null);
  }
  return null;
}

function scopeOf({ address, key }: Engine, { id, limits }: LimitedJob): LimitScope {
  return { jobId: id, engine: address, key, limits };
}

/** Output of a line that names no limit; what answers really take is learnt from them. */
const OUTPUT_WITHOUT_LIMIT = 1_000;
const BYTES_PER_TOKEN = 4;

/** Tokens that an engine is likely to read and write for a body: its text, and as much output as it allows. */
export function estimateTokens(body: Buffer): number {
  const fields = parseObject(body);
  if (fields === null) return Math.ceil(body.length / BYTES_PER_TOKEN) + OUTPUT_WITHOUT_LIMIT;
  const estimator = createEstimator();
  estimator.add(fields);
  const { inputTokens, maxOutputTokens, unlimited } = estimator.estimate;
  return inputTokens + maxOutputTokens + unlimited * OUTPUT_WITHOUT_LIMIT;
}

function parseObject(body: Buffer): Record<string, unknown> | null {
  try {
    // As the estimator wants it: each byte a character.
    const value: unknown = JSON.parse(body.toString('latin1'));
    return typeof value === 'object' && value !== null ? { ...value } : null;
  } catch {
    return null; // a body that is no JSON is the engine's to refuse
  }
}
