import { eachMember } from './json-scan.ts';
import type { AnswerStream } from './stream-answer.ts';
import { joinChat, joinCompletion, takeResponse } from './stream-answer.ts';

/** A request whose answer is asked for as a stream, and what puts that answer together. */
export interface StreamedRequest {
  body: Buffer;
  openStream: () => AnswerStream;
}

const USAGE = Buffer.from('{"include_usage":true}');
const TRUE = Buffer.from('true');

/**
 * Makes a request one for a stream: `stream`, and for the usage at its end `stream_options`, are set in the user's
 * bytes, and nothing else is touched. Null where a stream would not say all that the whole answer does, or where the
 * engine would refuse it: at other endpoints, and with what vLLM does not stream.
 */
export function streamedRequest(path: string, body: Buffer): StreamedRequest | null {
  const asked = parseObject(body);
  if (asked === null || !isStreamable(path, asked)) return null;
  switch (path) {
    case '/v1/chat/completions':
      return { body: withUsage(body), openStream: () => joinChat(contentBesideTools(asked)) };
    case '/v1/completions':
      return { body: withUsage(body), openStream: joinCompletion };
    case '/v1/responses':
      return { body: setMember(body, 'stream', () => TRUE), openStream: takeResponse };
    default:
      return null;
  }
}

/**
 * vLLM refuses beam search and most prompt_logprobs in streams, and leaves out the logprobs of prompts that it counts
 * for what it echoes (0.32.0, seen); a background request is answered later, elsewhere.
 */
function isStreamable(path: string, asked: Record<string, unknown>): boolean {
  if (path === '/v1/responses') return asked['background'] !== true;
  const countsPrompt =
    asked['echo'] === true && (path === '/v1/chat/completions' || isGiven(asked['logprobs']));
  return asked['use_beam_search'] !== true && !isGiven(asked['prompt_logprobs']) && !countsPrompt;
}

function isGiven(value: unknown): boolean {
  return value !== undefined && value !== null;
}

/** What an answer without text that calls tools has for content: vLLM says '' where the caller demanded the call. */
function contentBesideTools({ tool_choice: choice }: Record<string, unknown>): '' | null {
  return choice === 'required' || (typeof choice === 'object' && choice !== null) ? '' : null;
}

function withUsage(body: Buffer): Buffer {
  const streamed = setMember(body, 'stream', () => TRUE);
  return setMember(streamed, 'stream_options', (options) =>
    options?.[0] === 0x7b ? setMember(options, 'include_usage', () => TRUE) : USAGE,
  );
}

/** Sets a member of a JSON object in its bytes: where it is, each time it is, else at the end. */
function setMember(object: Buffer, name: string, make: (before?: Buffer) => Buffer): Buffer {
  const pieces: Buffer[] = [];
  let kept = 0;
  let isThere = false;
  let end = object.indexOf(0x7b) + 1;
  let isEmpty = true;
  eachMember(object, ({ key, keyEnd, value, valueEnd }) => {
    isEmpty = false;
    end = valueEnd;
    if (JSON.parse(object.toString('utf8', key, keyEnd)) !== name) return;
    isThere = true;
    pieces.push(object.subarray(kept, value), make(object.subarray(value, valueEnd)));
    kept = valueEnd;
  });
  if (!isThere) {
    const member = Buffer.from(`${isEmpty ? '' : ','}${JSON.stringify(name)}:`);
    pieces.push(object.subarray(kept, end), member, make());
    kept = end;
  }
  return Buffer.concat([...pieces, object.subarray(kept)]);
}

function parseObject(body: Buffer): Record<string, unknown> | null {
  let value: unknown;
  try {
    value = JSON.parse(body.toString());
  } catch {
    return null; // what the engine says against it is its answer
  }
  const isObject = typeof value === 'object' && value !== null && !Array.isArray(value);
  return isObject ? (value as Record<string, unknown>) : null; // an object of JSON has string keys
}
