import { ENDPOINTS } from './job.ts';
import type { Endpoint, JobError } from './job.ts';

/** A run of consecutive lines of a job's input: the unit that a dispatch worker takes. */
export interface ShardPlan {
  n: number;
  /** Index of its first line, from 0, blank lines not counted. */
  first: number;
  lines: number;
  /** Where its bytes begin in the input file, and how many they are. */
  offset: number;
  bytes: number;
}

/** A shard is cut after this many lines or bytes, whichever comes first, and has at least one line. */
export const SHARD_CUT = { lines: 1_000, bytes: 8 * 1024 * 1024 } as const;

/** A shard that was taken oftener than this without a commit, and not given back, may be what processes die of. */
export const MANY_TAKES = 5;

/** More problems than this help nobody; how many there are in all is said after them. */
export const MAX_REPORTED_ERRORS = 100;

/** A job may name this many models; each of its engines serves one of them or more. */
export const MAX_MODELS = 32;

/** Lines of a shard that are no requests that an engine could be asked: bits as in `Part.mask`. */
export interface BadLines {
  n: number;
  bad: Buffer;
}

/** What the lines of a job must be like. */
export interface LineRules {
  endpoint: Endpoint;
  /** The one model that all must name; null: each may name its own. */
  pinnedModel: string | null;
}

/** What planning needs of a line that it has parsed. */
export interface CheckedLine {
  customId: string;
  model: string | null;
  /** Texts in it beyond ASCII may stand as latin1, a character for each of their UTF-8 bytes. */
  body: Record<string, unknown>;
}

/** What is wrong with a line, wherever it stands. */
export type Problem = Omit<JobError, 'line'>;
type Fields = Record<string, unknown>;
type FieldType = 'string' | 'array';

/** Fields that a body needs, by endpoint, with the types that the engines take (vLLM answers 400 to anything else). */
const BODY_FIELDS: Record<Endpoint, Record<string, readonly FieldType[]>> = {
  '/v1/chat/completions': { model: ['string'], messages: ['array'] },
  '/v1/completions': { model: ['string'], prompt: ['string', 'array'] },
  '/v1/embeddings': { model: ['string'], input: ['string', 'array'] },
  '/v1/responses': { model: ['string'], input: ['string', 'array'] },
  '/v1/rerank': { model: ['string'], query: ['string'], documents: ['array'] },
  '/v1/score': { model: ['string'] },
  '/v1/moderations': { input: ['string', 'array'] },
};

interface BodyField {
  name: string;
  /** Its name in errors. */
  param: string;
  types: readonly FieldType[];
}

/** The same as lists: they are gone through for each line. */
const BODY_FIELD_LISTS: ReadonlyMap<Endpoint, readonly BodyField[]> = new Map(
  ENDPOINTS.map((endpoint) => [
    endpoint,
    Object.entries(BODY_FIELDS[endpoint]).map(([name, types]) => ({
      name,
      param: `body.${name}`,
      types,
    })),
  ]),
);

const STRING_FIELDS = ['custom_id', 'method', 'url'] as const;

function isObject(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function typeOf(value: unknown): string {
  return Array.isArray(value) ? 'array' : typeof value;
}

function checkEnvelope(line: Fields, endpoint: Endpoint): Problem | null {
  for (const param of STRING_FIELDS) {
    if (line[param] === undefined) return missing(param, param);
    if (typeof line[param] !== 'string') return wrongType(param, 'a string', param);
  }
  if (line['custom_id'] === '')
    return problem('invalid_custom_id', 'custom_id is empty', 'custom_id');
  if (line['method'] !== 'POST') {
    return problem(
      'invalid_method',
      `method must be POST, got '${clip(line['method'])}'`,
      'method',
    );
  }
  if (line['url'] !== endpoint) {
    return problem(
      'url_mismatch',
      `url must be the batch's endpoint '${endpoint}', got '${clip(line['url'])}'`,
      'url',
    );
  }
  if (line['body'] === undefined) return missing('body', 'body');
  return isObject(line['body']) ? null : wrongType('body', 'an object', 'body');
}

function checkBody(body: Fields, { endpoint, pinnedModel }: LineRules): Problem | null {
  for (const { name, param, types } of BODY_FIELD_LISTS.get(endpoint) ?? []) {
    const value = body[name];
    if (value === undefined) return missing(param, param);
    if (!(types as readonly string[]).includes(typeOf(value))) {
      return wrongType(
        param,
        types.map((type) => (type === 'array' ? 'a list' : 'a string')).join(' or '),
        param,
      );
    }
  }
  if (body['stream'] === true) {
    return problem('unsupported_parameter', 'stream must not be true in a batch', 'body.stream');
  }
  // Only moderations may name none, and then get the engine's own.
  const { model = pinnedModel } = body;
  if (pinnedModel === null || model === pinnedModel) return null;
  return problem(
    'model_mismatch',
    `model must be '${clip(pinnedModel)}', the one of the job's template, got '${clip(model)}'`,
    'body.model',
  );
}

/**
 * Checks one parsed input line against the rules of its job. Unknown fields are ignored.
 * Returns what planning keeps of it, or the first problem in OpenAI's words.
 */
export function checkLine(line: unknown, rules: LineRules): CheckedLine | Problem {
  if (!isObject(line)) {
    return problem('invalid_json_line', 'This line is not a JSON object.', null);
  }
  const wrong = checkEnvelope(line, rules.endpoint);
  if (wrong !== null) return wrong;
  const body = line['body'] as Fields;
  const wrongBody = checkBody(body, rules);
  if (wrongBody !== null) return wrongBody;
  const model = body['model'];
  return {
    customId: String(line['custom_id']),
    model: typeof model === 'string' ? model : null,
    body,
  };
}

export function isProblem(checked: CheckedLine | Problem): checked is Problem {
  return 'code' in checked;
}

/** The problems of an input as a job reports them: the first ones, and one entry more where there are others. */
export function reportProblems(problems: readonly JobError[], total: number): JobError[] {
  if (total <= problems.length) return [...problems];
  const message = `There are ${total} problems in all; only the first ${problems.length} are listed.`;
  return [...problems, { code: 'too_many_errors', message, line: null, param: null }];
}

export function problem(code: string, message: string, param: string | null): Problem {
  return { code, message, param };
}

function missing(name: string, param: string): Problem {
  return problem('missing_required_parameter', `Missing required field '${name}'.`, param);
}

function wrongType(name: string, what: string, param: string): Problem {
  return problem('invalid_type', `'${name}' must be ${what}.`, param);
}

/** Users' text in messages is cut: an error is no place for a megabyte. */
function clip(text: unknown): string {
  return String(text).slice(0, 100);
}
