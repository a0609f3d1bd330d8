import { readFile } from 'node:fs/promises';

/** How fast and how large the imitated engine is. Fields keep the names of vLLM's flags where one exists. */
export interface Profile {
  name: string;
  /** Whom the numbers imitate. */
  doc: string;
  /** false: no batching at all, each request is answered after `latency_ms`, for benches of the client. */
  modelled: boolean;
  latency_ms: number;
  /** Divides every modelled time: 10 runs the same engine ten times faster. */
  speed: number;
  max_num_seqs: number;
  max_num_batched_tokens: number;
  /** Requests waiting or running beyond which new ones get 503; 0 is no limit, vLLM's default. */
  max_num_queued_reqs: number;
  /** Time of a decode step that holds one sequence. */
  decode_step_ms: number;
  /** Each further sequence of a step costs 1 / this: what the whole batch approaches but never reaches. */
  decode_tokens_per_s: number;
  prefill_tokens_per_s: number;
  /** KV blocks of 16 tokens. */
  num_gpu_blocks: number;
  max_model_len: number;
  /** Answer length, in tokens, of a request that names no limit. */
  answer_tokens: number;
  /** Share of `answer_tokens` by which such an answer may be longer or shorter. */
  answer_spread: number;
  /**
   * Above 0, such an answer's length is drawn from so many powers of ten instead, all lengths on a logarithmic scale
   * alike, with `answer_tokens` in their middle.
   */
  answer_decades: number;
  /** Share of requests that stop before their `max_tokens`. */
  early_stop: number;
  embedding_dims: number;
  /** Sequences in a step beyond which the whole step gets slower, as when memory thrashes; 0: there are none. */
  knee_seqs: number;
  /** How much slower: a step of twice `knee_seqs` takes 2 to the power of this as long as it otherwise would. */
  knee_power: number;
  /** false: `/metrics` is not there, as behind most gateways. */
  metrics: boolean;
}

interface NumberRule {
  min: number;
  max: number;
  whole: boolean;
}

type NumberField = {
  [K in keyof Profile]: Profile[K] extends number ? K : never;
}[keyof Profile];

const LARGEST = 2 ** 31 - 1;
const count = { min: 1, max: LARGEST, whole: true };
const share = { min: 0, max: 1, whole: false };
const rate = { min: 0.001, max: 1e12, whole: false };

const NUMBERS: Record<NumberField, NumberRule> = {
  latency_ms: { min: 0, max: 3_600_000, whole: false },
  speed: { min: 0.001, max: 1_000_000, whole: false },
  max_num_seqs: count,
  max_num_batched_tokens: count,
  max_num_queued_reqs: { min: 0, max: LARGEST, whole: true },
  decode_step_ms: { min: 0, max: 3_600_000, whole: false },
  decode_tokens_per_s: rate,
  prefill_tokens_per_s: rate,
  num_gpu_blocks: count,
  max_model_len: count,
  answer_tokens: count,
  answer_spread: share,
  answer_decades: { min: 0, max: 6, whole: false },
  early_stop: share,
  embedding_dims: { min: 1, max: 65_536, whole: true },
  knee_seqs: { min: 0, max: LARGEST, whole: true },
  knee_power: { min: 0, max: 10, whole: false },
};

/** A setting, fault or profile that makes no sense; the message says which and why. */
export class InvalidSetting extends Error {
  override name = 'InvalidSetting';
}

/** Narrows JSON to an object, or throws InvalidSetting naming `what`. */
export function asObject(value: unknown, what: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new InvalidSetting(`${what} must be a JSON object`);
  }
  return value as Record<string, unknown>; // an object that is no array has string keys
}

/** Checks one number against a rule; throws InvalidSetting. */
export function asNumber(value: unknown, field: string, rule: NumberRule): number {
  const whole = rule.whole ? 'a whole number' : 'a number';
  const fits = typeof value === 'number' && value >= rule.min && value <= rule.max;
  if (!fits || (rule.whole && !Number.isInteger(value))) {
    const got = JSON.stringify(value);
    throw new InvalidSetting(
      `${field} must be ${whole} from ${rule.min} to ${rule.max}, got ${got}`,
    );
  }
  return value;
}

function isNumberField(field: string): field is NumberField {
  return Object.hasOwn(NUMBERS, field);
}

/** A copy of `base` with the fields of `changes` put in; an unknown or impossible field throws InvalidSetting. */
export function changeProfile(base: Profile, changes: Record<string, unknown>): Profile {
  const next = { ...base };
  for (const [field, value] of Object.entries(changes)) {
    if (isNumberField(field)) {
      next[field] = asNumber(value, field, NUMBERS[field]);
    } else if (field === 'modelled' || field === 'metrics') {
      if (typeof value !== 'boolean') throw new InvalidSetting(`${field} must be true or false`);
      next[field] = value;
    } else if (field === 'name' || field === 'doc') {
      if (typeof value !== 'string') throw new InvalidSetting(`${field} must be a string`);
      next[field] = value;
    } else {
      const known = ['modelled', 'metrics', ...Object.keys(NUMBERS)].join(', ');
      throw new InvalidSetting(`unknown field ${field}; known fields: ${known}`);
    }
  }
  return next;
}

/** What a file may leave out: most engines have none of it. */
const USUAL = { answer_decades: 0, knee_seqs: 0, knee_power: 0, metrics: true } as const;

/** Where `loadProfile` starts from; a file must still name every other field itself. */
const BLANK: Profile = {
  name: '',
  doc: '',
  modelled: true,
  latency_ms: 0,
  speed: 1,
  max_num_seqs: 1,
  max_num_batched_tokens: 1,
  max_num_queued_reqs: 0,
  decode_step_ms: 0,
  decode_tokens_per_s: 1,
  prefill_tokens_per_s: 1,
  num_gpu_blocks: 1,
  max_model_len: 1,
  answer_tokens: 1,
  answer_spread: 0,
  early_stop: 0,
  embedding_dims: 1,
  ...USUAL,
};

/** Reads a profile: a name of ../profiles, or the path of a JSON file that holds every field but the unusual ones. */
export async function loadProfile(nameOrPath: string): Promise<Profile> {
  const isName = /^[a-z0-9-]+$/.test(nameOrPath);
  const where = isName ? new URL(`../profiles/${nameOrPath}.json`, import.meta.url) : nameOrPath;
  const read: unknown = JSON.parse(await readFile(where, 'utf8'));
  const fields = asObject(read, `profile ${nameOrPath}`);
  const missing = Object.keys(BLANK).filter(
    (field) => !Object.hasOwn(fields, field) && !Object.hasOwn(USUAL, field),
  );
  if (missing.length > 0) {
    throw new InvalidSetting(`profile ${nameOrPath} lacks ${missing.join(', ')}`);
  }
  return changeProfile(BLANK, fields);
}
