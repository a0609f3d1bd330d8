import { Buffer } from 'node:buffer';
import type { ApiError } from './api-error.ts';
import { badRequest } from './api-error.ts';
import { contentText } from './chat.ts';
import { fraction, seededRandom, sha256 } from './digest.ts';
import { tokensOf } from './kv-cache.ts';
import { checkContext, createdOf, missing, readLimit } from './task.ts';
import type { Task, TaskInput } from './task.ts';

/** One text or many, each a string, token ids or content parts; undefined when it is none of these. */
function readInputs(value: unknown): string[] | undefined {
  if (typeof value === 'string') return [value];
  if (typeof value === 'object' && value !== null && 'content' in value) {
    return [contentText(value.content)]; // ScoreMultiModalParam
  }
  if (!Array.isArray(value) || value.length === 0) return undefined;
  const items: unknown[] = value;
  if (items.every((item) => typeof item === 'number')) return [items.join(' ')];
  const texts = items.map((item) => (Array.isArray(item) ? item.join(' ') : item));
  return texts.every((text) => typeof text === 'string') ? texts : undefined;
}

function sum(prompts: readonly string[]): number {
  let tokens = 0;
  for (const prompt of prompts) tokens += tokensOf(prompt);
  return tokens;
}

function firstTooLong(prompts: readonly string[], input: TaskInput): ApiError | undefined {
  for (const prompt of prompts) {
    const tooLong = checkContext(prompt, undefined, input.profile);
    if (tooLong !== undefined) return tooLong;
  }
  return undefined;
}

function pooled(prompts: readonly string[], answer: () => string): Task {
  return {
    sequences: prompts.map((prompt) => ({ prompt, text: undefined })),
    answer,
    stream: undefined,
  };
}

/** A unit vector that depends on the text alone. */
function vectorOf(text: string, dims: number): number[] {
  const random = seededRandom(Number.parseInt(sha256(text).slice(0, 8), 16));
  const raw = Array.from({ length: dims }, () => random() * 2 - 1);
  const norm = Math.hypot(...raw) || 1;
  return raw.map((x) => Number((x / norm).toFixed(6)));
}

function encode(vector: readonly number[], format: unknown): string | readonly number[] {
  if (format !== 'base64') return vector;
  return Buffer.from(new Float32Array(vector).buffer).toString('base64'); // what the OpenAI SDKs ask for
}

/** POST /v1/embeddings (vllm/entrypoints/pooling/embed/protocol.py). */
export function embeddingTask(input: TaskInput): Task | ApiError {
  const { body, digest, model, profile } = input;
  if (body['input'] === undefined) return missing('input');
  const inputs = readInputs(body['input']);
  if (inputs === undefined) return badRequest('input should be a text or token ids', 'input');
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
      id: `embd-${digest.slice(0, 32)}`,
      object: 'list',
      created: createdOf(digest),
      model,
      data: inputs.map((text, index) => ({
        index,
        object: 'embedding',
        embedding: encode(vectorOf(text, dims), body['encoding_format']),
      })),
      usage: {
        prompt_tokens: tokens,
        total_tokens: tokens,
        completion_tokens: 0,
        prompt_tokens_details: null,
      },
    });
  });
}

/** How well two texts fit: a number in [0, 1) that depends on the pair alone. */
function scoreOf(query: string, document: string): number {
  return Number(fraction(sha256(JSON.stringify([query, document]))).toFixed(6));
}

/** POST /v1/rerank, /v2/rerank and /rerank (vllm/entrypoints/pooling/scoring/protocol.py RerankRequest). */
export function rerankTask(input: TaskInput): Task | ApiError {
  const { body, digest, model } = input;
  const absent = ['query', 'documents'].find((field) => body[field] === undefined);
  if (absent !== undefined) return missing(absent);
  const query = readInputs(body['query'])?.[0];
  const documents = readInputs(body['documents']);
  if (query === undefined || documents === undefined) {
    return badRequest('query and documents should be texts', 'documents');
  }
  const top = typeof body['top_n'] === 'number' && body['top_n'] > 0 ? body['top_n'] : undefined;
  const pairs = documents.map((document) => query + document);
  const tooLong = firstTooLong(pairs, input);
  if (tooLong !== undefined) return tooLong;
  return pooled(pairs, () => {
    const results = documents.map((text, index) => ({
      index,
      document: { text, multi_modal: null },
      relevance_score: scoreOf(query, text),
    }));
    const ranked = results.toSorted((a, b) => b.relevance_score - a.relevance_score);
    const tokens = sum(pairs);
    return JSON.stringify({
      id: `rerank-${digest.slice(0, 32)}`,
      model,
      usage: { prompt_tokens: tokens, total_tokens: tokens },
      results: ranked.slice(0, top),
    });
  });
}

/** The field pairs that ScoreRequest may use. */
const SCORE_FIELDS = [
  ['text_1', 'text_2'],
  ['queries', 'documents'],
  ['queries', 'items'],
  ['data_1', 'data_2'],
] as const;

/** POST /v1/score and /score: one against many, or pairwise. */
export function scoreTask(input: TaskInput): Task | ApiError {
  const { body, digest, model } = input;
  const fields = SCORE_FIELDS.find(([a, b]) => body[a] !== undefined && body[b] !== undefined);
  if (fields === undefined) return missing('text_1');
  const first = readInputs(body[fields[0]]);
  const second = readInputs(body[fields[1]]);
  if (first === undefined || second === undefined) {
    return badRequest(`${fields[0]} and ${fields[1]} should be texts`, fields[0]);
  }
  if (first.length > 1 && first.length !== second.length) {
    return badRequest('Input lengths must be either 1:1, 1:N or N:N'); // scoring/utils.py
  }
  const pairs = second.map((b, i) => [first[first.length === 1 ? 0 : i] ?? '', b] as const);
  const prompts = pairs.map(([a, b]) => a + b);
  const tooLong = firstTooLong(prompts, input);
  if (tooLong !== undefined) return tooLong;
  return pooled(prompts, () => {
    const tokens = sum(prompts);
    return JSON.stringify({
      id: `score-${digest.slice(0, 32)}`,
      object: 'list',
      created: createdOf(digest),
      model,
      data: pairs.map(([a, b], index) => ({ index, object: 'score', score: scoreOf(a, b) })),
      usage: {
        prompt_tokens: tokens,
        total_tokens: tokens,
        completion_tokens: 0,
        prompt_tokens_details: null,
      },
    });
  });
}
