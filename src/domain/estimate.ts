type Fields = Readonly<Record<string, unknown>>;

/** A rule of thumb for English; other scripts have fewer characters a token, and more bytes a character. */
const BYTES_PER_TOKEN = 4;
/** What a model reads of a body, over all endpoints. */
const TEXT_FIELDS = [
  'messages',
  'prompt',
  'input',
  'instructions',
  'query',
  'documents',
  'text_1',
  'text_2',
  'tools',
] as const;
/** Parts of messages whose bytes are no text: images, sounds and files cost by other measures. */
const MEDIA_FIELDS = new Set(['image_url', 'input_audio', 'file', 'image_data', 'file_data']);
const LIMIT_FIELDS = ['max_completion_tokens', 'max_tokens', 'max_output_tokens'] as const;
/** A body nests a few levels; one that nests thousands must not end the process. */
const DEEPEST = 32;

/** What the lines of an input are likely to cost. */
export interface Estimate {
  /** Bytes of text divided by four, and tokens that are given as numbers as they are; media are not counted. */
  inputTokens: number;
  /** The sum of `max_completion_tokens`, `max_tokens` or `max_output_tokens`, times `n`, where lines give one. */
  maxOutputTokens: number;
  /** Lines that give none: their answers are as long as the model lets them. */
  unlimited: number;
}

export interface Estimator {
  /** The body of one line; of text beyond ASCII each UTF-8 byte may be a character, as `CheckedLine` has it. */
  add(body: Fields): void;
  readonly estimate: Estimate;
}

/** Sums what lines are likely to cost, without a tokenizer: that differs from model to model. */
export function createEstimator(): Estimator {
  let [text, given, maxOutputTokens, unlimited] = [0, 0, 0, 0];

  function measure(value: unknown, depth: number): void {
    if (typeof value === 'string') text += value.length;
    else if (typeof value === 'number') given += 1;
    else if (typeof value === 'object' && value !== null && depth < DEEPEST) {
      for (const [name, inner] of Object.entries(value)) {
        if (!MEDIA_FIELDS.has(name)) measure(inner, depth + 1);
      }
    }
  }

  return {
    add(body) {
      for (const field of TEXT_FIELDS) if (body[field] !== undefined) measure(body[field], 0);
      const limit = outputLimit(body);
      if (limit === null) unlimited += 1;
      else maxOutputTokens += limit;
    },
    get estimate() {
      const inputTokens = Math.ceil(text / BYTES_PER_TOKEN) + given;
      return { inputTokens, maxOutputTokens, unlimited };
    },
  };
}

function outputLimit(body: Fields): number | null {
  const limit = LIMIT_FIELDS.map((field) => body[field]).find(isCount);
  if (limit === undefined) return null;
  return limit * (isCount(body['n']) ? body['n'] : 1);
}

function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value > 0;
}
