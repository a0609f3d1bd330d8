import { badRequest, invalidBody } from './api-error.ts';
import type { ApiError } from './api-error.ts';
import type { Profile } from './profile.ts';
import { tokensOf } from './kv-cache.ts';
import type { Text } from './text.ts';

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
  /** Of the raw body: ids and answers derive from it. */
  digest: string;
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

/** A missing field in pydantic's words. */
export function missing(field: string): ApiError {
  return invalidBody(`[{'type': 'missing', 'loc': ('body', '${field}'), 'msg': 'Field required'}]`);
}

/** A field of the wrong type in pydantic's words. */
export function wrongType(field: string, wanted: string): ApiError {
  return invalidBody(
    `[{'type': '${wanted}_type', 'loc': ('body', '${field}'), 'msg': 'Input should be a valid ${wanted}'}]`,
  );
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
  if (typeof limit !== 'number' || !Number.isInteger(limit)) return wrongType(field, 'int');
  if (limit < 1) return badRequest(`${field} must be at least 1, got ${limit}.`, field);
  return limit;
}

/** Refuses a prompt that, with its answer, is longer than the context. */
export function checkContext(
  prompt: string,
  limit: number | undefined,
  profile: Profile,
): ApiError | undefined {
  const input = tokensOf(prompt);
  const context = profile.max_model_len;
  const output = limit ?? 0;
  // A prompt must leave room for one token at least.
  if (input + Math.max(1, output) <= context) return undefined;
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
  if (typeof n !== 'number' || !Number.isInteger(n)) return wrongType('n', 'int');
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
  let output = 0;
  for (const text of texts) output += text.tokens;
  return (
    `{"prompt_tokens":${promptTokens},"total_tokens":${promptTokens + output},` +
    `"completion_tokens":${output},"prompt_tokens_details":null}`
  );
}

/** One server-sent event of a stream that names no event types. */
export function event(data: string): string {
  return `data: ${data}\n\n`;
}
