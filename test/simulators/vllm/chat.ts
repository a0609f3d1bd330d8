import type { ApiError } from './api-error.ts';
import { tokensOf } from './kv-cache.ts';
import { readPrompts } from './prompt.ts';
import {
  checkContext,
  countsOf,
  createdOf,
  event,
  readChoices,
  readLimit,
  usageOf,
  wantsUsage,
} from './task.ts';
import type { EventStream, Task, TaskInput } from './task.ts';
import { answerText, echoOf, givenText } from './text.ts';
import type { Text } from './text.ts';
import { missing, wrongType } from './validation.ts';

/** The text of a message's content: a string, or the text parts of a list. */
export function contentText(content: unknown): string {
  if (typeof content === 'string') return content;
  if (!Array.isArray(content)) return '';
  const parts: unknown[] = content;
  let text = '';
  for (const part of parts) {
    if (typeof part === 'object' && part !== null && 'text' in part) text += String(part.text);
  }
  return text;
}

interface Conversation {
  prompt: string;
  lastUser: string;
}

/** As a chat template: roles and contents in order, so that equal system prompts are equal prefixes. */
export function renderMessages(messages: readonly unknown[]): Conversation | undefined {
  let prompt = '';
  let lastUser = '';
  for (const message of messages) {
    if (typeof message !== 'object' || message === null || !('role' in message)) return undefined;
    const text = 'content' in message ? contentText(message.content) : '';
    prompt += `<|${String(message.role)}|>\n${text}\n`;
    if (message.role === 'user') lastUser = text;
  }
  return { prompt: `${prompt}<|assistant|>\n`, lastUser };
}

/** What every piece of an answer begins with; texts are JSON already. */
interface Frame {
  id: string;
  created: number;
  model: string;
}

function frameOf(id: string, digest: string, model: string): Frame {
  return { id: JSON.stringify(id), created: createdOf(digest), model: JSON.stringify(model) };
}

const finishOf = (text: Text): string => `"finish_reason":"${text.finish}"`;

function chatAnswer(frame: Frame, texts: readonly Text[], usage: string): string {
  const choices = texts.map(
    (text, index) =>
      `{"index":${index},"message":{"role":"assistant","content":${JSON.stringify(text.whole)},` +
      '"refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null},' +
      `"logprobs":null,${finishOf(text)},"stop_reason":null,"token_ids":null,"routed_experts":null}`,
  );
  return (
    `{"id":${frame.id},"object":"chat.completion","created":${frame.created},` +
    `"model":${frame.model},"choices":[${choices.join(',')}],"service_tier":null,` +
    `"system_fingerprint":null,"usage":${usage},"prompt_logprobs":null,` +
    '"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null,' +
    '"ec_transfer_params":null,"metrics":null}'
  );
}

/** Chunks (vLLM 0.32.0, seen) of vllm/entrypoints/openai/chat_completion/serving.py: role first, then text, then usage if asked. */
function chatStream(frame: Frame, texts: readonly Text[], usage: string | undefined): EventStream {
  const head =
    `{"id":${frame.id},"object":"chat.completion.chunk","created":${frame.created},` +
    `"model":${frame.model},"choices":[`;
  const chunk = (index: number, delta: string, finish: string, more = ''): string =>
    event(`${head}{"index":${index},"delta":${delta},"logprobs":null,${finish}}]${more}}`);
  const open = '"finish_reason":null';
  const role = '{"role":"assistant","content":""}';
  const prompt = ',"prompt_token_ids":null,"prompt_text":null';
  return {
    open: () => texts.map((_, i) => chunk(i, role, open, prompt)).join(''),
    token(sequence, index) {
      const text = texts[sequence];
      if (text === undefined) return '';
      const last = index === text.tokens - 1;
      const finish = last ? `${finishOf(text)},"stop_reason":null` : open;
      const delta = `{"content":${JSON.stringify(text.piece(index))}}`;
      return chunk(sequence, delta, `${finish},"token_ids":null`);
    },
    close: () => (usage === undefined ? '' : event(`${head}],"usage":${usage}}`)) + event('[DONE]'),
  };
}

/** POST /v1/chat/completions. */
export function chatTask(input: TaskInput): Task | ApiError {
  const { body, digest, id, model, profile } = input;
  const messages = body['messages'];
  if (messages === undefined) return missing(body, ['messages']);
  if (!Array.isArray(messages)) return wrongType('messages', 'list', messages);
  const conversation = renderMessages(messages);
  if (conversation === undefined) return wrongType('messages', 'dict', messages);
  const limit = readLimit(body, ['max_completion_tokens', 'max_tokens']);
  if (typeof limit === 'object') return limit;
  const choices = readChoices(body);
  if (typeof choices === 'object') return choices;
  const { prompt, lastUser } = conversation;
  const tooLong = checkContext(prompt, limit, profile);
  if (tooLong !== undefined) return tooLong;

  const echo = echoOf(lastUser);
  const texts: Text[] = [];
  for (let i = 0; i < choices; i += 1) {
    texts.push(echo === undefined ? answerText(digest, i, limit, profile) : givenText(echo));
  }
  const promptTokens = tokensOf(prompt);
  const usage = usageOf(promptTokens, texts);
  const frame = frameOf(`chatcmpl-${id}`, digest, model);
  return {
    sequences: texts.map((text) => ({ prompt, text })),
    answer: () => chatAnswer(frame, texts, usage),
    stream:
      body['stream'] === true
        ? chatStream(frame, texts, wantsUsage(body) ? countsOf(promptTokens, texts) : undefined)
        : undefined,
  };
}

/** `echoes` are sent before the first token of each sequence. */
function completionStream(
  frame: Frame,
  texts: readonly Text[],
  echoes: readonly string[],
  usage: string | undefined,
): EventStream {
  const head =
    `{"id":${frame.id},"object":"text_completion","created":${frame.created},` +
    `"model":${frame.model},"choices":[`;
  return {
    open: () => '',
    token(sequence, index) {
      const text = texts[sequence];
      if (text === undefined) return '';
      const finish = index === text.tokens - 1 ? finishOf(text) : '"finish_reason":null';
      const echo = index === 0 ? (echoes[sequence] ?? '') : '';
      const piece = JSON.stringify(echo + text.piece(index));
      return event(
        `${head}{"index":${sequence},"text":${piece},"logprobs":null,${finish},` +
          '"stop_reason":null,"prompt_token_ids":null,"token_ids":null}]}',
      );
    },
    close: () => (usage === undefined ? '' : event(`${head}],"usage":${usage}}`)) + event('[DONE]'),
  };
}

/** What vLLM gives a completion that names no limit (completion/protocol.py, `max_tokens: int = 16`). */
const COMPLETION_LIMIT = 16;

/** POST /v1/completions. */
export function completionTask(input: TaskInput): Task | ApiError {
  const { body, digest, id, model, profile } = input;
  if (body['prompt'] === undefined) return missing(body, ['prompt']);
  const prompts = readPrompts(body['prompt']);
  if (prompts === undefined) return wrongType('prompt', 'string', body['prompt']);
  const limit = readLimit(body, ['max_tokens']) ?? COMPLETION_LIMIT;
  if (typeof limit === 'object') return limit;
  const choices = readChoices(body);
  if (typeof choices === 'object') return choices;

  const sequences: { prompt: string; text: Text }[] = [];
  let promptTokens = 0;
  for (const { text: prompt, ids } of prompts) {
    const tooLong = checkContext(prompt, limit, profile, ids);
    if (tooLong !== undefined) return tooLong;
    promptTokens += tokensOf(prompt);
    const echo = echoOf(prompt);
    for (let i = 0; i < choices; i += 1) {
      const index = sequences.length;
      const text = echo === undefined ? answerText(digest, index, limit, profile) : givenText(echo);
      sequences.push({ prompt, text });
    }
  }
  const texts = sequences.map(({ text }) => text);
  const usage = usageOf(promptTokens, texts);
  const frame = frameOf(`cmpl-${id}`, digest, model);
  const repeats = body['echo'] === true;
  return {
    sequences,
    answer() {
      const shown = sequences.map(({ prompt, text }, index) => {
        const whole = JSON.stringify(repeats ? prompt + text.whole : text.whole);
        return (
          `{"index":${index},"text":${whole},"logprobs":null,${finishOf(text)},` +
          '"stop_reason":null,"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null,' +
          '"routed_experts":null}'
        );
      });
      return (
        `{"id":${frame.id},"object":"text_completion","created":${frame.created},` +
        `"model":${frame.model},"choices":[${shown.join(',')}],"service_tier":null,` +
        `"system_fingerprint":null,"usage":${usage},"kv_transfer_params":null,` +
        '"ec_transfer_params":null,"metrics":null}'
      );
    },
    stream:
      body['stream'] === true
        ? completionStream(
            frame,
            texts,
            repeats ? sequences.map(({ prompt }) => prompt) : [],
            wantsUsage(body) ? countsOf(promptTokens, texts) : undefined,
          )
        : undefined,
  };
}
