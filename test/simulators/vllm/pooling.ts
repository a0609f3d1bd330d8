import { Buffer } from 'node:buffer';
import type { ApiError } from './api-error.ts';
import { badRequest } from './api-error.ts';
import { contentText } from './chat.ts';
import { fraction, seededRandom, sha256 } from './digest.ts';
import { tokensOf } from './kv-cache.ts';
import { readPrompts } from './prompt.ts';
import type { Prompt } from './prompt.ts';
import { checkContext, createdOf, readLimit } from './task.ts';
import type { Task, TaskInput } from './task.ts';
import { missing, notOneOf, wrongType } from './validation.ts';

/** Texts, token ids or content parts; undefined when it is none of these. */
function readInputs(value: unknown): Prompt[] | undefined {
  if (typeof value === 'object' && value !== null && 'content' in value) {
    return [{ text: contentText(value.content), ids: false }]; // ScoreMultiModalParam
  }
  return readPrompts(value);
}

function sum(prompts: readonly Prompt[]): number {
  let tokens = 0;
  for (const { text } of prompts) tokens += tokensOf(text);
  return tokens;
}

function firstTooLong(prompts: readonly Prompt[], input: TaskInput): ApiError | undefined {
  for (const { text, ids } of prompts) {
    const tooLong = checkContext(text, 0, input.profile, ids);
    if (tooLong !== undefined) return tooLong;
  }
  return undefined;
}

function pooled(prompts: readonly Prompt[], answer: () => string): Task {
  return {
    sequences: prompts.map(({ text }) => ({ prompt: text, text: undefined })),
    answer,
    stream: undefined,
  };
}

/** A unit vector that depends on the text alone. */
function vectorOf(text: string, dims: number): number[] {
  const random = seededRandom(Number.parseInt(sha256(text).slice(0, 8), 16));
  const raw = Array.from({ length: dims }, () => random() * 2 - 1);
  const norm = Math.hypot(...raw) || 1;
  return raw.map((x) => Math.fround(x / norm)); // a float32 in all its digits (vLLM 0.32.0, seen)
}

function encode(vector: readonly number[], format: unknown): string | readonly number[] {
  if (format !== 'base64') return vector;
  return Buffer.from(new Float32Array(vector).buffer).toString('base64'); // what the OpenAI SDKs ask for
}

function usageOfPooling(tokens: number): object {
  return {
    prompt_tokens: tokens,
    total_tokens: tokens,
    completion_tokens: 0,
    prompt_tokens_details: null,
    completion_tokens_details: null,
  };
}

/** The variants of EmbeddingRequest, by the field that each wants (vLLM 0.32.0, seen). */
const EMBEDDING_FIELDS = [
  'input',
  'messages',
  'messages',
  'messages',
  'input',
  'messages',
  'input',
];
const ENCODING_FORMATS = ['float', 'base64', 'bytes', 'bytes_only'];

function refuseEmbedding(body: Record<string, unknown>): ApiError | undefined {
  const { input, encoding_format: format = 'float' } = body;
  if (input === undefined) return missing(body, EMBEDDING_FIELDS);
  if (Array.isArray(input) && input.length === 0) {
    return badRequest('You must pass at least one prompt');
  }
  if (typeof format === 'string' && ENCODING_FORMATS.includes(format)) return undefined;
  return notOneOf('encoding_format', ENCODING_FORMATS, format);
}

/** POST /v1/embeddings (vllm/entrypoints/pooling/embed/protocol.py). */
export function embeddingTask(input: TaskInput): Task | ApiError {
  const { body, digest, id, model, profile } = input;
  const refused = refuseEmbedding(body);
  if (refused !== undefined) return refused;
  const inputs = readInputs(body['input']);
  if (inputs === undefined) return wrongType('input', 'list', body['input']);
  const dims = readLimit(body, ['dimensions']) ?? profile.embedding_dims;
  if (typeof dims === 'object') return dims;
  if (dims > profile.embedding_dims) {
    return badRequest(`dimensions must be at most ${profile.embedding_dims}`, 'dimensions');
  }
  const tooLong = firstTooLong(inputs, input);
  if (tooLong !== undefined) return tooLong;
  return pooled(inputs, () => {
    const tokens = sum(inputs);
    return JSON.stringify({
      id: `embd-${id}`,
      object: 'list',
      created: createdOf(digest),
      model,
      data: inputs.map(({ text }, index) => ({
        index,
        object: 'embedding',
        embedding: encode(vectorOf(text, dims), body['encoding_format']),
      })),
      usage: usageOfPooling(tokens),
    });
  });
}

/** How well two texts fit: a number in [0, 1) that depends on the pair alone. */
function scoreOf(query: string, document: string): number {
  return Math.fround(fraction(sha256(JSON.stringify([query, document]))));
}

/** POST /v1/rerank, /v2/rerank and /rerank (vllm/entrypoints/pooling/scoring/protocol.py RerankRequest). */
export function rerankTask(input: TaskInput): Task | ApiError {
  const { body, id, model } = input;
  const fields = ['query', 'documents'];
  if (fields.some((field) => body[field] === undefined)) return missing(body, fields);
  const query = readInputs(body['query'])?.[0]?.text;
  const documents = readInputs(body['documents']);
  if (query === undefined) return wrongType('query', 'string', body['query']);
  if (documents === undefined) return wrongType('documents', 'list', body['documents']);
  const top = typeof body['top_n'] === 'number' && body['top_n'] > 0 ? body['top_n'] : undefined;
  const pairs = documents.map(({ text }) => ({ text: query + text, ids: false }));
  const tooLong = firstTooLong(pairs, input);
  if (tooLong !== undefined) return tooLong;
  return pooled(pairs, () => {
    const results = documents.map(({ text }, index) => ({
      index,
      document: { text, multi_modal: null },
      relevance_score: scoreOf(query, text),
    }));
    const ranked = results.toSorted((a, b) => b.relevance_score - a.relevance_score);
    const tokens = sum(pairs);
    return JSON.stringify({
      id: `score-${id}`, // vLLM 0.32.0, seen,
      model,
      usage: { prompt_tokens: tokens, total_tokens: tokens },
      results: ranked.slice(0, top),
    });
  });
}

/** The field pairs that ScoreRequest may use, in the order of its complaints. */
const SCORE_FIELDS = [
  ['queries', 'documents'],
  ['queries', 'items'],
  ['data_1', 'data_2'],
  ['text_1', 'text_2'],
] as const;

/** POST /v1/score and /score: one against many, or pairwise. */
export function scoreTask(input: TaskInput): Task | ApiError {
  const { body, digest, id, model } = input;
  const fields = SCORE_FIELDS.find(([a, b]) => body[a] !== undefined && body[b] !== undefined);
  if (fields === undefined) return missing(body, SCORE_FIELDS.flat());
  const first = readInputs(body[fields[0]]);
  const second = readInputs(body[fields[1]]);
  if (first === undefined) return wrongType(fields[0], 'list', body[fields[0]]);
  if (second === undefined) return wrongType(fields[1], 'list', body[fields[1]]);
  if (first.length > 1 && first.length !== second.length) {
    return badRequest('Input lengths must be either 1:1, 1:N or N:N'); // scoring/utils.py
  }
  const pairs = second.map(
    (b, i) => [first[first.length === 1 ? 0 : i]?.text ?? '', b.text] as const,
  );
  const prompts = pairs.map(([a, b]) => ({ text: a + b, ids: false }));
  const tooLong = firstTooLong(prompts, input);
  if (tooLong !== undefined) return tooLong;
  return pooled(prompts, () => {
    const tokens = sum(prompts);
    return JSON.stringify({
      id: `score-${id}`,
      object: 'list',
      created: createdOf(digest),
      model,
      data: pairs.map(([a, b], index) => ({ index, object: 'score', score: scoreOf(a, b) })),
      usage: usageOfPooling(tokens),
    });
  });
}
