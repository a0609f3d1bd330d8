import { badRequest } from './api-error.ts';
import type { ApiError } from './api-error.ts';
import type { Profile } from './profile.ts';
import { tokensOf } from './kv-cache.ts';
import type { Text } from './text.ts';
import { wrongType } from './validation.ts';

/** One engine sequence of a request: a choice of a prompt, or an input to pool (no text). */
export interface TaskSequence {
  prompt: string;
  text: Text | undefined;
}

/** Server-sent events of a request, as text ready to write. */
export interface EventStream {
  open(): string;
  token(sequence: number, index: number): string;
  close(): string;
}

/** A request understood: what the engine must compute for it and what it is answered then. */
export interface Task {
  sequences: TaskSequence[];
  answer(): string;
  stream: EventStream | undefined;
}

/** What a handler of one endpoint gets. */
export interface TaskInput {
  body: Record<string, unknown>;
  /** Of the raw body: answers derive from it. */
  digest: string;
  /** What the answer's id ends with: the client's `x-request-id`, or 16 digits of the digest. */
  id: string;
  /** The model as the answer names it. */
  model: string;
  profile: Profile;
}

export type TaskHandler = (input: TaskInput) => Task | ApiError;

/** Tells the two results of a handler apart. */
export function isApiError(result: Task | ApiError): result is ApiError {
  return 'status' in result;
}

/** Same body, same answer: so `created` comes from the body too, some second of a year. */
export function createdOf(digest: string): number {
  return 1_750_000_000 + (Number.parseInt(digest.slice(0, 8), 16) % 31_536_000);
}

/**
 * The token limit of a request, checked against the context as
 * vllm/renderers/params.py TokenizeParams does it. undefined: the request names none.
 */
export function readLimit(
  body: Record<string, unknown>,
  fields: readonly string[],
): number | undefined | ApiError {
  const field = fields.find((name) => body[name] !== undefined && body[name] !== null);
  if (field === undefined) return undefined;
  const limit = body[field];
  if (typeof limit !== 'number' || !Number.isInteger(limit)) return wrongType(field, 'int', limit);
  if (limit < 1) return badRequest(`${field} must be at least 1, got ${limit}.`, field);
  return limit;
}

/** What vLLM takes as the longest token of a BERT vocabulary (`max_chars_per_token`; vLLM 0.32.0, seen). */
const LONGEST_TOKEN_CHARS = 18;

/**
 * The words for a prompt that is too long by itself (vLLM 0.32.0, seen; TokenizeParams of
 * vllm/renderers/params.py). A text is cut one token after the context and nobody knows its real
 * length; a text that cannot fit in any case is not even tokenized; ids are counted.
 */
function promptTooLong(prompt: string, ids: boolean, context: number): ApiError {
  const start = `This model's maximum context length is ${context} tokens. However, your prompt contains`;
  const plea = 'Please reduce the length of the input prompt.';
  const most = context * LONGEST_TOKEN_CHARS;
  if (!ids && prompt.length > most) {
    return badRequest(
      `${start} ${prompt.length} characters (more than ${most} characters, which is the upper bound ` +
        `for ${context} input tokens). ${plea} (parameter=input_text, value=${prompt.length})`,
      'input_text',
    );
  }
  const tokens = ids ? tokensOf(prompt) : context + 1;
  const least = tokens === context + 1 ? 'at least ' : '';
  return badRequest(
    `${start} ${least}${tokens} input tokens, which exceeds this limit even without any output ` +
      `tokens. ${plea} (parameter=input_tokens, value=${tokens})`,
    'input_tokens',
  );
}

/** Refuses a prompt that, with its answer, is longer than the context; `limit` 0 is for pooling, which gives none. */
export function checkContext(
  prompt: string,
  limit: number | undefined,
  { max_model_len: context }: Profile,
  ids = false,
): ApiError | undefined {
  const input = tokensOf(prompt);
  if (input > context) return promptTooLong(prompt, ids, context);
  // A generating request must leave room for one token at least.
  const output = limit ?? 1;
  if (input + output <= context) return undefined;
  return badRequest(
    `This model's maximum context length is ${context} tokens. However, you requested ${output} ` +
      `output tokens and your prompt contains ${input} input tokens, for a total of ` +
      `${input + output} tokens. Please reduce the length of the input prompt or the number of ` +
      `requested output tokens. (parameter=input_tokens, value=${input})`,
    'input_tokens',
  );
}

/** `n`, the number of choices. */
export function readChoices(body: Record<string, unknown>): number | ApiError {
  const n = body['n'] ?? 1;
  if (typeof n !== 'number' || !Number.isInteger(n)) return wrongType('n', 'int', n);
  return n >= 1 && n <= 128 ? n : badRequest(`n must be at least 1, got ${n}.`, 'n');
}

/** Whether a streamed answer ends with usage. */
export function wantsUsage(body: Record<string, unknown>): boolean {
  const options = body['stream_options'];
  return typeof options === 'object' && options !== null && 'include_usage' in options
    ? options.include_usage === true
    : false;
}

/** Usage as chat and completions report it; `n` choices share one prompt. */
export function usageOf(promptTokens: number, texts: readonly Text[]): string {
  const counts = countsOf(promptTokens, texts);
  return `${counts.slice(0, -1)},"prompt_tokens_details":null,"completion_tokens_details":null}`;
}

/** The same at the end of a stream, which leaves out what is null (vLLM 0.32.0, seen). */
export function countsOf(promptTokens: number, texts: readonly Text[]): string {
  let output = 0;
  for (const text of texts) output += text.tokens;
  return (
    `{"prompt_tokens":${promptTokens},"total_tokens":${promptTokens + output},` +
    `"completion_tokens":${output}}`
  );
}

/** One server-sent event of a stream that names no event types. */
export function event(data: string): string {
  return `data: ${data}\n\n`;
}
