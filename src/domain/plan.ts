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

/** More errors than this help nobody; the last entry says that there are more. */
export const MAX_REPORTED_ERRORS = 100;

/** A job may name this many models; an engine must serve them all. */
export const MAX_MODELS = 32;

/** What planning needs of a line that it has parsed. */
export interface CheckedLine {
  customId: string;
  model: string | null;
}

type Problem = Omit<JobError, 'line'>;
type Fields = Record<string, unknown>;

/** Fields that a body needs, by endpoint, with the types that the engines take (vLLM answers 400 to anything else). */
const BODY_FIELDS: Record<Endpoint, Record<string, readonly ('string' | 'array')[]>> = {
  '/v1/chat/completions': { model: ['string'], messages: ['array'] },
  '/v1/completions': { model: ['string'], prompt: ['string', 'array'] },
  '/v1/embeddings': { model: ['string'], input: ['string', 'array'] },
  '/v1/responses': { model: ['string'], input: ['string', 'array'] },
  '/v1/rerank': { model: ['string'], query: ['string'], documents: ['array'] },
  '/v1/score': { model: ['string'] },
  '/v1/moderations': { input: ['string', 'array'] },
};

function isObject(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function typeOf(value: unknown): string {
  return Array.isArray(value) ? 'array' : typeof value;
}

function checkEnvelope(line: Fields, endpoint: Endpoint): Problem | null {
  for (const [param, type] of [
    ['custom_id', 'string'],
    ['method', 'string'],
    ['url', 'string'],
  ] as const) {
    if (line[param] === undefined) return missing(param, param);
    if (typeof line[param] !== type) return wrongType(param, 'a string', param);
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

function checkBody(body: Fields, endpoint: Endpoint): Problem | null {
  for (const [field, types] of Object.entries(BODY_FIELDS[endpoint])) {
    const param = `body.${field}`;
    if (body[field] === undefined) return missing(param, param);
    if (!(types as readonly string[]).includes(typeOf(body[field]))) {
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
  return null;
}

/**
 * Checks one parsed input line against the batch's endpoint. Unknown fields are ignored.
 * Returns what planning keeps of it, or the first problem in OpenAI's words.
 */
export function checkLine(line: unknown, endpoint: Endpoint): CheckedLine | Problem {
  if (!isObject(line)) {
    return problem('invalid_json_line', 'This line is not a JSON object.', null);
  }
  const wrong = checkEnvelope(line, endpoint);
  if (wrong !== null) return wrong;
  const body = line['body'] as Fields;
  const wrongBody = checkBody(body, endpoint);
  if (wrongBody !== null) return wrongBody;
  const model = body['model'];
  return { customId: String(line['custom_id']), model: typeof model === 'string' ? model : null };
}

export function isProblem(checked: CheckedLine | Problem): checked is Problem {
  return 'code' in checked;
}

function problem(code: string, message: string, param: string | null): Problem {
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
