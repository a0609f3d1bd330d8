import * as v from 'valibot';
import { engineBaseUrl } from '../src/domain/engine-url.ts';

/** One setting. `doc` is what people read, in README, `.env.example` and in a refusal. */
export interface Setting<S extends v.GenericSchema<string | undefined, unknown>> {
  doc: string;
  env: string;
  /** Other names of the variable, which count where it is unset; the first that is set. */
  also?: readonly string[];
  /** Text that stands for an unset variable; undefined: unset has a meaning of its own, which `doc` gives. */
  default: string | undefined;
  /** Parses the text; its messages say what is allowed. */
  schema: S;
  /** Never printed, logged or shown. */
  secret?: true;
  /** Few need it: `.env.example` has it, README's table does not. */
  isRare?: true;
}

const UNITS: Record<string, number> = { '': 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30 };
const DURATIONS: Record<string, number> = {
  ms: 1,
  s: 1_000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
};

export const text = v.string();

/** One of these words. */
export function oneOf<const T extends readonly string[]>(choices: T) {
  return v.pipe(text, v.picklist(choices, `must be one of ${choices.join(', ')}`));
}

/** Words out of these, with commas between. */
export function listOf<const T extends readonly string[]>(choices: T) {
  return v.pipe(
    text,
    v.transform((value) => value.split(',').map((part) => part.trim())),
    v.array(v.picklist(choices, `must be a comma-separated list of ${choices.join(', ')}`)),
  );
}

/** A whole number. */
export function whole(min: number, max: number) {
  const message = `must be a whole number from ${min} to ${max}`;
  return v.pipe(
    text,
    v.regex(/^\d+$/, message),
    v.transform(Number),
    v.minValue(min, message),
    v.maxValue(max, message),
  );
}

/** A number of bytes, with a unit or without. */
export function bytes(min: number) {
  const message = `must be a number of bytes of at least ${min}, such as 512MiB, 2GiB or 1048576`;
  return v.pipe(
    text,
    v.regex(/^\d+(KiB|MiB|GiB)?$/, message),
    v.transform((value) => Number.parseInt(value, 10) * (UNITS[value.replace(/^\d+/, '')] ?? 1)),
    v.minValue(min, message),
    v.maxValue(Number.MAX_SAFE_INTEGER, message),
  );
}

/** ms of a whole number and its unit. */
export function inMs(value: string): number {
  return Number.parseInt(value, 10) * (DURATIONS[value.replace(/^\d+/, '')] ?? 1);
}

/** A duration with its unit, as ms. */
export function duration(minMs: number) {
  const message = `must be a duration of at least ${minMs} ms, such as 500ms, 10s, 15m or 2h`;
  return v.pipe(
    text,
    v.regex(/^\d+(ms|s|m|h)$/, message),
    v.transform(inMs),
    v.minValue(minMs, message),
    v.maxValue(2 ** 31 - 1, message),
  );
}

const RATE_MESSAGE = 'must be a number from 0.001 to 1000000000, such as 10 or 0.5';

export const rateLimit = v.optional(
  v.pipe(
    text,
    v.regex(/^\d+(\.\d+)?$/, RATE_MESSAGE),
    v.transform(Number),
    v.minValue(0.001, RATE_MESSAGE),
    v.maxValue(1e9, RATE_MESSAGE),
  ),
);

const REDIS_URL_MESSAGE =
  'must be a Redis URL: redis://, rediss:// or redis+unix:///path/to/redis.sock';

export function isRedisUrl(value: string): boolean {
  return /^(rediss?:\/\/[^\s/]|redis\+unix:\/\/\/)/.test(value) && URL.canParse(value);
}

export const redisUrl = v.optional(v.pipe(text, v.check(isRedisUrl, REDIS_URL_MESSAGE)));

export const STORE_MESSAGE =
  `${REDIS_URL_MESSAGE}; Sluice keeps its records in Redis, so that a SQL or file URL has no effect here: ` +
  'unset STORE_URI to keep them in REDIS_URL';

const ENGINE_MESSAGE =
  'must be a comma-separated list of http(s) URLs such as http://localhost:8000, without user, query or fragment';

export const engineUrls = v.pipe(
  text,
  v.transform((value) => value.split(',').map((part) => part.trim())),
  v.transform((parts) => parts.filter((part) => part !== '').map(engineBaseUrl)),
  v.array(v.string(ENGINE_MESSAGE), ENGINE_MESSAGE),
);

const SERVICE_MESSAGE =
  'must be an http(s) URL such as http://localhost:8090, without user, query or fragment';

export const serviceUrl = v.optional(
  v.pipe(text, v.transform(engineBaseUrl), v.string(SERVICE_MESSAGE)),
);

const WEIGHTS_MESSAGE = 'must be a comma-separated list of numbers from 0.01 to 1000';

export const weights = v.pipe(
  text,
  v.transform((value) => value.split(',').map((part) => part.trim())),
  v.transform((parts) => parts.filter((part) => part !== '').map(Number)),
  v.array(
    v.pipe(
      v.number(WEIGHTS_MESSAGE),
      v.minValue(0.01, WEIGHTS_MESSAGE),
      v.maxValue(1_000, WEIGHTS_MESSAGE),
    ),
    WEIGHTS_MESSAGE,
  ),
);

function parseAddress(value: string): { host: string; port: number } | null {
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([^:[\]]*)):(\d{1,5})$/.exec(value);
  const port = Number(match?.[3]);
  if (match === null || port > 65_535) return null;
  return { host: match[1] ?? (match[2] === '' ? '0.0.0.0' : (match[2] ?? '')), port };
}

const ADDRESS_MESSAGE = 'must be host:port, such as 127.0.0.1:8080 or [::1]:8080';

export const address = v.pipe(
  text,
  v.transform(parseAddress),
  v.object({ host: v.string(), port: v.number() }, ADDRESS_MESSAGE),
);

export const bearerToken = v.optional(
  v.pipe(text, v.regex(/^[\x21-\x7e]+$/, 'must be printable ASCII without spaces')),
);
