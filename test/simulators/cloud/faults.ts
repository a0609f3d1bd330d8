import * as v from 'valibot';
import { seededRandom } from '../vllm/digest.ts';
import { parseControl } from './knobs.ts';

/**
 * What may go wrong with one call:
 * - `error`: the provider's own refusal, by name (`no_capacity`, `quota`, `balance`, `forbidden`, `unauthorized`,
 *   `rate_limited`, `internal`, `unavailable`, `conflict`, `not_found`, `unknown`); nothing is done.
 * - `error_after`: the same answer after the call was carried out, as create answered 500 for pods that
 *   existed and were billed (transformerlab-app #2305).
 * - `hang`, `hang_after`: no answer, for `delay_ms` and then a reset, or for ever; not done, or done.
 * - `reset`, `reset_after`: the connection is cut; not done, or done.
 * - `slow`: the right answer, `delay_ms` late.
 * - `truncate`: the first half of the right answer, then the end of the connection.
 * - `html`: a gateway's page with status 200 instead of the answer; it was carried out.
 * - `repeat`: what was answered to the same request the last time, though things have changed since.
 * - `lost`: a terminate that is answered as if it had been done, and nothing ends.
 */
const FAULT_KINDS = [
  'error',
  'error_after',
  'hang',
  'hang_after',
  'reset',
  'reset_after',
  'slow',
  'truncate',
  'html',
  'repeat',
  'lost',
] as const;

/** Which calls: `any` is all of them. */
export const OPERATIONS = [
  'create',
  'get',
  'list',
  'terminate',
  'action',
  'catalog',
  'other',
  'any',
] as const;
export type Operation = (typeof OPERATIONS)[number];

export const ERRORS = [
  'no_capacity',
  'quota',
  'balance',
  'forbidden',
  'unauthorized',
  'rate_limited',
  'internal',
  'unavailable',
  'conflict',
  'not_found',
  'unknown',
] as const;
export type ErrorName = (typeof ERRORS)[number];

const fault = v.strictObject({
  kind: v.picklist(FAULT_KINDS),
  op: v.optional(v.picklist(OPERATIONS), 'any'),
  error: v.optional(v.picklist(ERRORS), 'internal'),
  /** Seconds; with `rate_limited`. */
  retry_after: v.optional(v.nullable(v.number()), null),
  delay_ms: v.optional(v.nullable(v.number()), null),
  /** Share of the calls that it hits. */
  rate: v.optional(v.pipe(v.number(), v.minValue(0), v.maxValue(1)), 1),
  /** How often it hits at most; null is without end. */
  count: v.optional(v.nullable(v.number()), null),
  /** How many calls pass before it. */
  after: v.optional(v.number(), 0),
  /** Hits only calls whose path or body contains this. */
  match: v.optional(v.nullable(v.string()), null),
});

export type Fault = v.InferOutput<typeof fault>;
export type FaultInput = v.InferInput<typeof fault>;
export interface FaultReport extends Fault {
  seen: number;
  hits: number;
}

export interface FaultPlan {
  /** Replaces all; throws InvalidControl. */
  set(faults: unknown): void;
  report(): FaultReport[];
  pick(op: Operation, text: string): Fault | undefined;
}

/** No faults yet; `set` starts the draw anew from the seed. */
export function createFaultPlan(seed: number): FaultPlan {
  let random = seededRandom(seed);
  let active: FaultReport[] = [];

  function hits(one: FaultReport): boolean {
    one.seen += 1;
    if (one.seen <= one.after) return false;
    if (one.count !== null && one.hits >= one.count) return false;
    if (one.rate < 1 && random() >= one.rate) return false;
    one.hits += 1;
    return true;
  }

  return {
    set(faults) {
      const parsed = parseControl(v.array(fault), faults);
      random = seededRandom(seed);
      active = parsed.map((one) => ({ ...one, seen: 0, hits: 0 }));
    },
    report: () => active.map((one) => ({ ...one })),
    pick(op, text) {
      return active.find((one) => {
        if (one.op !== 'any' && one.op !== op) return false;
        if (one.match !== null && !text.includes(one.match)) return false;
        return hits(one);
      });
    },
  };
}
