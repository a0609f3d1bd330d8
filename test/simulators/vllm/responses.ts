import type { ApiError } from './api-error.ts';
import { renderMessages } from './chat.ts';
import { tokensOf } from './kv-cache.ts';
import { checkContext, createdOf, readLimit } from './task.ts';
import type { EventStream, Task, TaskInput } from './task.ts';
import { answerText, echoOf, givenText } from './text.ts';
import type { Text } from './text.ts';
import { missing, wrongType } from './validation.ts';

/** Input of the Responses API as chat messages: a text is one user message, instructions are the system's. */
function readMessages(input: unknown, instructions: unknown): unknown[] | undefined {
  const system =
    typeof instructions === 'string' ? [{ role: 'system', content: instructions }] : [];
  if (typeof input === 'string') return [...system, { role: 'user', content: input }];
  return Array.isArray(input) ? [...system, ...(input as unknown[])] : undefined;
}

interface Reply {
  id: string;
  messageId: string;
  created: number;
  model: string;
  text: Text;
  promptTokens: number;
  body: Record<string, unknown>;
}

function messageOf({ messageId, text }: Reply, status: string): object {
  const part = { annotations: [], text: text.whole, type: 'output_text', logprobs: null };
  const content = status === 'in_progress' ? [] : [part];
  return { id: messageId, content, role: 'assistant', status, type: 'message' };
}

/** A ResponsesResponse of vllm/entrypoints/openai/responses/protocol.py in one of its states. */
function responseOf(reply: Reply, status: string): object {
  const { id, created, model, text, promptTokens, body } = reply;
  const open = status === 'in_progress';
  return {
    id,
    created_at: created,
    incomplete_details: status === 'incomplete' ? { reason: 'max_output_tokens' } : null,
    instructions: body['instructions'] ?? null,
    metadata: body['metadata'] ?? null,
    model,
    object: 'response',
    output: open ? [] : [messageOf(reply, 'completed')],
    parallel_tool_calls: true,
    temperature: body['temperature'] ?? 1,
    tool_choice: 'auto',
    tools: [],
    top_p: body['top_p'] ?? 1,
    background: false,
    max_output_tokens: body['max_output_tokens'] ?? null,
    previous_response_id: null,
    service_tier: 'auto',
    status,
    text: null,
    truncation: 'disabled',
    usage: open
      ? null
      : {
          input_tokens: promptTokens,
          input_tokens_details: { cached_tokens: 0 },
          output_tokens: text.tokens,
          output_tokens_details: { reasoning_tokens: 0 },
          total_tokens: promptTokens + text.tokens,
        },
    user: null,
  };
}

/** Typed events with a running number, as vllm/entrypoints/openai/responses/serving.py sends them; no [DONE]. */
function responseStream(reply: Reply, finalStatus: string): EventStream {
  const { messageId, text } = reply;
  const place = { item_id: messageId, output_index: 0, content_index: 0 };
  let sequence = 0;
  const send = (type: string, fields: object): string => {
    const data = { type, sequence_number: sequence, ...fields };
    sequence += 1;
    return `event: ${type}\ndata: ${JSON.stringify(data)}\n\n`;
  };
  const part = (whole: string) => ({
    annotations: [],
    text: whole,
    type: 'output_text',
    logprobs: null,
  });
  return {
    open() {
      const item = { output_index: 0, item: messageOf(reply, 'in_progress') };
      return (
        send('response.created', { response: responseOf(reply, 'in_progress') }) +
        send('response.in_progress', { response: responseOf(reply, 'in_progress') }) +
        send('response.output_item.added', item) +
        send('response.content_part.added', { ...place, part: part('') })
      );
    },
    token: (_, index) =>
      send('response.output_text.delta', { ...place, delta: text.piece(index), logprobs: [] }),
    close() {
      const item = { output_index: 0, item: messageOf(reply, 'completed') };
      return (
        send('response.output_text.done', { ...place, text: text.whole, logprobs: [] }) +
        send('response.content_part.done', { ...place, part: part(text.whole) }) +
        send('response.output_item.done', item) +
        send(`response.${finalStatus}`, { response: responseOf(reply, finalStatus) })
      );
    },
  };
}

/** POST /v1/responses. */
export function responsesTask({ body, digest, model, profile }: TaskInput): Task | ApiError {
  if (body['input'] === undefined) return missing(body, ['input']);
  const messages = readMessages(body['input'], body['instructions']);
  const conversation = messages === undefined ? undefined : renderMessages(messages);
  if (conversation === undefined) return wrongType('input', 'string', body['input']);
  const limit = readLimit(body, ['max_output_tokens']);
  if (typeof limit === 'object') return limit;
  const { prompt, lastUser } = conversation;
  const tooLong = checkContext(prompt, limit, profile);
  if (tooLong !== undefined) return tooLong;

  const echo = echoOf(lastUser);
  const text = echo === undefined ? answerText(digest, 0, limit, profile) : givenText(echo);
  const reply: Reply = {
    id: `resp_${digest.slice(0, 16)}`,
    messageId: `msg_${digest.slice(16, 32)}`,
    created: createdOf(digest),
    model,
    text,
    promptTokens: tokensOf(prompt),
    body,
  };
  const status = text.finish === 'length' ? 'incomplete' : 'completed';
  return {
    sequences: [{ prompt, text }],
    answer: () => JSON.stringify(responseOf(reply, status)),
    stream: body['stream'] === true ? responseStream(reply, status) : undefined,
  };
}
