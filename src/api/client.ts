import * as v from 'valibot';
import {
  DEFAULT_ADAPTIVE,
  DEFAULT_OPTIONS,
  ON_ERROR_RATE,
  UPSTREAM_STREAMS,
} from '../domain/job.ts';
import type { Adaptive, JobOptions, JobRecord } from '../domain/job.ts';
import type { JobLimits } from '../domain/rate-limit.ts';
import { DEFAULT_RETRY } from '../domain/retry.ts';
import type { RetryPolicy } from '../domain/retry.ts';
import { exactObject } from './body.ts';

/** The most lines of a job that may be in flight at one engine. */
export const MOST_CONCURRENCY = 16_384;
const CONCURRENCY_RULE = `an integer from 1 to ${MOST_CONCURRENCY}`;
const ADAPTIVE_RULE =
  'true (the engine decides how many lines are in flight, up to client.max_concurrency) or false (always that many)';
const ON_ERROR_RULE =
  "'pause', 'fail' or 'continue': what becomes of the job when its lines fail alike, for a reason that no retry mends";
const HEDGING_RULE =
  'true (the last lines are asked at a second engine, too, where one has nothing else to do) or false';
const STEP_RULE = 'an integer from 1 to 1024';
const FACTOR_RULE = 'a number from 1 to 1024';
const FIXED_RULE =
  'true or left out where adaptive_max_factor, adaptive_healthy_window or adaptive_additive_increase is given';
const ENDPOINT_RETRIES_RULE =
  'left out: a line that finds no engine waits for one until the deadline, and uses up no retry';
const RETRIES_RULE = 'an integer from 0 to 100';
const ATTEMPT_RULE = 'a number of seconds from 1 to 86400';
const STREAM_RULE = `one of ${UPSTREAM_STREAMS.join(', ')}`;
const LEAST_LIMIT = 0.001;
const MOST_LIMIT = 1_000_000_000;
const REQUESTS_RULE = `a number of requests a second from ${LEAST_LIMIT} to ${MOST_LIMIT}`;
const TOKENS_RULE = `a number of tokens a minute from ${LEAST_LIMIT} to ${MOST_LIMIT}`;
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

/** Slower than once in twenty minutes is no limit but a stop. */
function limit(rule: string) {
  return v.nullish(
    v.pipe(v.number(rule), v.minValue(LEAST_LIMIT, rule), v.maxValue(MOST_LIMIT, rule)),
  );
}

const settings = exactObject({
  max_concurrency: integerWithin(1, MOST_CONCURRENCY, CONCURRENCY_RULE),
  request_timeout_seconds: v.pipe(
    v.nullish(
      v.pipe(v.number(ATTEMPT_RULE), v.minValue(1, ATTEMPT_RULE), v.maxValue(86_400, ATTEMPT_RULE)),
    ),
    v.description(
      'How long one attempt at a line may take in all; then it is asked again as `retry_policy` says. Left out: ' +
        '`REQUEST_TIMEOUT` until the first byte, and `ANSWER_TIMEOUT` in all.',
    ),
  ),
  requests_per_second: v.pipe(
    limit(REQUESTS_RULE),
    v.description(
      'The most requests a second that are sent for the job, to all engines by all workers together, and repeats of ' +
        'requests among them. Left out: no limit of its own. Those of the server (`ENGINE_REQUESTS_PER_SECOND`, ' +
        '`KEY_REQUESTS_PER_SECOND`) hold as well.',
    ),
  ),
  tokens_per_minute: v.pipe(
    limit(TOKENS_RULE),
    v.description(
      'The most tokens a minute that the job takes, read and written together. A request reserves its estimate (text ' +
        'and `max_tokens`) and pays what the `usage` of its answer says. Left out: no limit of its own.',
    ),
  ),
  upstream_stream: v.pipe(
    v.nullish(v.picklist(UPSTREAM_STREAMS, STREAM_RULE)),
    v.description(
      'Whether the engine is asked to stream chat completions, completions and responses. The output file gets the ' +
        'same whole answers in any case. `auto`, the default, streams once a proxy before the engine has cut a line of ' +
        'the job because nothing came for too long, as Cloudflare does after 100 s; `always` and `never` say so outright.',
    ),
  ),
  adaptive_concurrency: v.nullish(v.boolean(ADAPTIVE_RULE)),
  on_error_rate: v.nullish(v.picklist(ON_ERROR_RATE, ON_ERROR_RULE)),
  hedging: v.nullish(v.boolean(HEDGING_RULE)),
  adaptive_max_factor: v.nullish(
    v.pipe(v.number(FACTOR_RULE), v.minValue(1, FACTOR_RULE), v.maxValue(1_024, FACTOR_RULE)),
  ),
  adaptive_healthy_window: integerWithin(1, 1_024, STEP_RULE),
  adaptive_additive_increase: integerWithin(1, 1_024, STEP_RULE),
  retry_policy: v.nullish(
    exactObject({
      max_retries: integerWithin(0, 100, RETRIES_RULE),
      base_delay_seconds: seconds,
      max_delay_seconds: seconds,
      no_endpoint_max_retries: refused(ENDPOINT_RETRIES_RULE),
    }),
  ),
});

/** How the lines of a job are sent. A key that has no effect is refused: a wish ignored in silence is worse. */
export const clientSchema = v.pipe(
  settings,
  v.forward(
    v.partialCheck(
      [
        ['adaptive_concurrency'],
        ['adaptive_max_factor'],
        ['adaptive_healthy_window'],
        ['adaptive_additive_increase'],
      ],
      (client) =>
        client.adaptive_concurrency !== false ||
        (client.adaptive_max_factor ??
          client.adaptive_healthy_window ??
          client.adaptive_additive_increase ??
          null) === null,
      FIXED_RULE,
    ),
    ['adaptive_concurrency'],
  ),
);

type Client = v.InferOutput<typeof clientSchema> | null | undefined;

/**
 * What a `client` block asks for: null, and options that are left out, are as the server does by default. Of options
 * that are several fields together, those that it does not name are as in `before`.
 */
export function clientWish(
  client: Client,
  before: Pick<JobOptions, 'adaptive' | 'limits' | 'retry'> = DEFAULT_OPTIONS,
): {
  maxConcurrency: number | null;
  options: Partial<JobOptions>;
} {
  const retry = retryWish(client, before.retry);
  const adaptive = adaptiveWish(client, before.adaptive);
  const limits = limitsWish(client, before.limits);
  return {
    maxConcurrency: client?.max_concurrency ?? null,
    options: {
      ...(retry === null ? {} : { retry }),
      ...attemptWish(client),
      ...(limits === null ? {} : { limits }),
      ...(adaptive === undefined ? {} : { adaptive }),
      ...(client?.on_error_rate ? { onErrorRate: client.on_error_rate } : {}),
      ...(typeof client?.hedging === 'boolean' ? { hedging: client.hedging } : {}),
    },
  };
}

function attemptWish(
  client: Client,
): Partial<Pick<JobOptions, 'answerTimeoutMs' | 'upstreamStream'>> {
  const answerTimeoutMs = milliseconds(client?.request_timeout_seconds);
  const upstreamStream = client?.upstream_stream;
  return {
    ...(answerTimeoutMs === null ? {} : { answerTimeoutMs }),
    ...(upstreamStream ? { upstreamStream } : {}),
  };
}

/**
 * How a job's lines are sent, in the words in which it can be asked for: limits and a time-out of its own are null where
 * it has none, adaptive numbers where nothing adapts, and the rest is never null.
 */
export function clientView({
  maxConcurrency,
  options,
}: Pick<JobRecord, 'maxConcurrency' | 'options'>) {
  const { adaptive, retry, limits } = options;
  return {
    max_concurrency: maxConcurrency,
    adaptive_concurrency: adaptive !== null,
    adaptive_max_factor: adaptive?.maxFactor ?? null,
    adaptive_healthy_window: adaptive?.healthyWindow ?? null,
    adaptive_additive_increase: adaptive?.additiveIncrease ?? null,
    retry_policy: retryView(retry ?? DEFAULT_RETRY),
    requests_per_second: limits.requestsPerSecond,
    tokens_per_minute: limits.tokensPerMinute,
    request_timeout_seconds:
      options.answerTimeoutMs === null ? null : options.answerTimeoutMs / 1_000,
    upstream_stream: options.upstreamStream,
    on_error_rate: options.onErrorRate,
    hedging: options.hedging,
  };
}

function retryView({ maxRetries, baseMs, capMs }: RetryPolicy) {
  return {
    max_retries: maxRetries,
    base_delay_seconds: baseMs / 1_000,
    max_delay_seconds: capMs / 1_000,
  };
}

function adaptiveWish(client: Client, before: Adaptive | null): Adaptive | null | undefined {
  const {
    adaptive_concurrency: isOn,
    adaptive_max_factor: maxFactor,
    adaptive_healthy_window: healthyWindow,
    adaptive_additive_increase: additiveIncrease,
  } = client ?? {};
  const from = before ?? DEFAULT_ADAPTIVE;
  const wishes = { maxFactor, healthyWindow, additiveIncrease };
  const given = Object.entries(wishes).filter(([, wish]) => wish !== null && wish !== undefined);
  if (isOn === false) return null;
  if (given.length === 0) return isOn === true ? from : undefined;
  return { ...from, ...Object.fromEntries(given) };
}

function limitsWish(client: Client, before: JobLimits): JobLimits | null {
  const { requests_per_second: requests = null, tokens_per_minute: tokens = null } = client ?? {};
  if (requests === null && tokens === null) return null;
  return {
    requestsPerSecond: requests ?? before.requestsPerSecond,
    tokensPerMinute: tokens ?? before.tokensPerMinute,
  };
}

function retryWish(client: Client, before: RetryPolicy | null): RetryPolicy | null {
  const policy = client?.retry_policy;
  if (!policy) return null;
  const { maxRetries, baseMs, capMs } = before ?? DEFAULT_RETRY;
  return {
    maxRetries: policy.max_retries ?? maxRetries,
    baseMs: milliseconds(policy.base_delay_seconds) ?? baseMs,
    capMs: milliseconds(policy.max_delay_seconds) ?? capMs,
  };
}

function milliseconds(given: number | null | undefined): number | null {
  return given === null || given === undefined ? null : given * 1_000;
}
