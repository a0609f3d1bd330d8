import type { Item } from './items.ts';

/** A finished line as a row of a table; what it does not have is null. */
export interface Row {
  custom_id: string | null;
  status_code: number | null;
  request_id: string | null;
  model: string | null;
  /** What the engine wrote: the text of the first choice, an embedding or a result as JSON. */
  content: string | null;
  finish_reason: string | null;
  prompt_tokens: number | null;
  completion_tokens: number | null;
  total_tokens: number | null;
  error_code: string | null;
  error_message: string | null;
  /** The whole answer as the engine wrote it. */
  body: string | null;
  /** The line of the input, where it was asked for. */
  request: string | null;
}

export type Column = keyof Row;

/** Columns in their order; `request` comes last, and only where it was asked for. */
const COLUMNS = [
  'custom_id',
  'status_code',
  'request_id',
  'model',
  'content',
  'finish_reason',
  'prompt_tokens',
  'completion_tokens',
  'total_tokens',
  'error_code',
  'error_message',
  'body',
] as const satisfies readonly Column[];

export function columnsOf(isMerged: boolean): readonly Column[] {
  return isMerged ? [...COLUMNS, 'request'] : COLUMNS;
}

type Json = Readonly<Record<string, unknown>>;

export function rowOf({ answer, request }: Item): Row {
  const head = objectOf(parse(answer.head));
  const body = objectOf(parse(answer.body));
  const usage = objectOf(body['usage']);
  // A refusal of the engine has its error in the body, what never got an answer beside it.
  const error = errorOf(parse(answer.error)) ?? errorOf(body['error']) ?? {};
  const prompt = count(usage['prompt_tokens'] ?? usage['input_tokens']);
  const completion = count(usage['completion_tokens'] ?? usage['output_tokens']);
  return {
    custom_id: text(parse(answer.customId)),
    status_code: count(head['status_code']),
    request_id: text(head['request_id']),
    model: text(body['model']),
    content: contentOf(body),
    finish_reason: finishOf(body),
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: count(usage['total_tokens']),
    error_code: text(error['code']) ?? text(error['type']),
    error_message: text(error['message']),
    body: answer.body?.toString() ?? null,
    request: request?.toString() ?? null,
  };
}

/** An engine's answer was parsed before it was stored; what its members are is known to nobody. */
function parse(raw: Buffer | null): unknown {
  return raw === null ? null : JSON.parse(raw.toString());
}

function objectOf(value: unknown): Json {
  return isObject(value) ? value : {};
}

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null;
}

function errorOf(value: unknown): Json | null {
  if (typeof value === 'string') return { message: value };
  return isObject(value) ? value : null;
}

function text(value: unknown): string | null {
  if (typeof value === 'number') return String(value);
  return typeof value === 'string' ? value : null;
}

function count(value: unknown): number | null {
  return typeof value === 'number' && Number.isSafeInteger(value) ? value : null;
}

function firstOf(value: unknown): Json {
  return objectOf(Array.isArray(value) ? value[0] : null);
}

/** By the forms of the endpoints that a batch may ask. */
function contentOf(body: Json): string | null {
  const choice = firstOf(body['choices']);
  const said = objectOf(choice['message'])['content'] ?? choice['text'];
  if (Array.isArray(body['output'])) return responseText(body['output']);
  return textOrJson(said ?? embeddingsOf(body['data']) ?? resultsOf(body));
}

function embeddingsOf(data: unknown): unknown {
  const embeddings = Array.isArray(data) ? data.map(embeddingOf) : [];
  if (embeddings.some((each) => each === undefined)) return undefined;
  return embeddings.length > 1 ? embeddings : embeddings[0];
}

/** Ranks and moderations are under `results`, scores under `data`. */
function resultsOf(body: Json): unknown {
  return body['results'] ?? (body['object'] === 'list' ? body['data'] : undefined);
}

function embeddingOf(value: unknown): unknown {
  return objectOf(value)['embedding'];
}

/** The messages of a Responses answer, which may have calls and thoughts beside them. */
function responseText(output: readonly unknown[]): string | null {
  const texts = output
    .map(objectOf)
    .filter(({ type }) => type === 'message')
    .flatMap(({ content }) => (Array.isArray(content) ? content.map(objectOf) : []))
    .map((part) => part['text'])
    .filter((part) => typeof part === 'string');
  return texts.length === 0 ? null : texts.join('');
}

function textOrJson(value: unknown): string | null {
  if (value === undefined || value === null) return null;
  return typeof value === 'string' ? value : JSON.stringify(value);
}

function finishOf(body: Json): string | null {
  const reason = firstOf(body['choices'])['finish_reason'];
  const isResponse = body['object'] === 'response';
  const why = objectOf(body['incomplete_details'])['reason'];
  return text(reason) ?? (isResponse ? (text(why) ?? text(body['status'])) : null);
}
