import * as v from 'valibot';
import { DEFAULT_RETRY } from '../domain/retry.ts';
import type { RetryPolicy } from '../domain/retry.ts';
import { exactObject } from './body.ts';

const CONCURRENCY_RULE = 'an integer from 1 to 1024';
const ADAPTIVE_RULE =
  'false or left out: this server keeps as many lines in flight as client.max_concurrency says, and adapts nothing';
const ENDPOINT_RETRIES_RULE =
  'left out: a line that finds no engine waits for one until the deadline, and uses up no retry';
const RETRIES_RULE = 'an integer from 0 to 100';
const SECONDS_RULE = 'a number of seconds from 0 to 3600';

function integerWithin(least: number, most: number, rule: string) {
  const number = v.pipe(v.number(rule), v.integer(rule));
  return v.nullish(v.pipe(number, v.minValue(least, rule), v.maxValue(most, rule)));
}

function refused(rule: string) {
  return v.nullish(
    v.pipe(
      v.number(rule),
      v.check(() => false, rule),
    ),
  );
}

const seconds = v.nullish(
  v.pipe(v.number(SECONDS_RULE), v.minValue(0, SECONDS_RULE), v.maxValue(3_600, SECONDS_RULE)),
);

/** How the lines of a job are sent. A key that has no effect is refused: a wish ignored in silence is worse. */
export const clientSchema = exactObject({
  max_concurrency: integerWithin(1, 1_024, CONCURRENCY_RULE),
  adaptive_concurrency: v.nullish(
    v.pipe(
      v.boolean(ADAPTIVE_RULE),
      v.check((isOn) => !isOn, ADAPTIVE_RULE),
    ),
  ),
  adaptive_max_factor: refused(ADAPTIVE_RULE),
  adaptive_healthy_window: refused(ADAPTIVE_RULE),
  adaptive_additive_increase: refused(ADAPTIVE_RULE),
  retry_policy: v.nullish(
    exactObject({
      max_retries: integerWithin(0, 100, RETRIES_RULE),
      base_delay_seconds: seconds,
      max_delay_seconds: seconds,
      no_endpoint_max_retries: refused(ENDPOINT_RETRIES_RULE),
    }),
  ),
});

type Client = v.InferOutput<typeof clientSchema> | null | undefined;

/** What a `client` block asks for; null: as the server does by default. */
export function clientWish(client: Client): {
  maxConcurrency: number | null;
  retry: RetryPolicy | null;
} {
  return { maxConcurrency: client?.max_concurrency ?? null, retry: retryWish(client) };
}

function retryWish(client: Client): RetryPolicy | null {
  const policy = client?.retry_policy;
  if (!policy) return null;
  const { maxRetries, baseMs, capMs } = DEFAULT_RETRY;
  return {
    maxRetries: policy.max_retries ?? maxRetries,
    baseMs: milliseconds(policy.base_delay_seconds) ?? baseMs,
    capMs: milliseconds(policy.max_delay_seconds) ?? capMs,
  };
}

function milliseconds(given: number | null | undefined): number | null {
  return given === null || given === undefined ? null : given * 1_000;
}
