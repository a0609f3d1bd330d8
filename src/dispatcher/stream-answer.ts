import { readEvents } from './event-stream.ts';
import { eachMember } from './json-scan.ts';
import { grow, grownJson, jsonOf } from './joined-json.ts';
import type { Grown, GrownObject } from './joined-json.ts';

/** A streamed answer while it comes; made for one attempt. */
export interface AnswerStream {
  /** Bytes that it keeps of what came. */
  readonly held: number;
  /** The engine said that this was all. */
  readonly isWhole: boolean;
  push(chunk: Buffer): void;
  /**
   * The answer as the engine would have given it unstreamed to a request that it answers with `status`; an error in
   * mid-stream has its own. Null: the stream ended before the answer did.
   */
  finish(status: number): { status: number; body: Buffer } | null;
}

/** What a stream said in place of the rest of its answer. */
interface Instead {
  status: number | null;
  body: Buffer;
}

/** An event that is no JSON stands for the answer, which then is none, and so it will be said. */
const NO_JSON: Instead = { status: null, body: Buffer.from('?') };

/** What one kind of answer makes of its events. */
interface Joiner {
  /** Bytes kept of this event. `instead`: the answer is this. `whole`: nothing follows. */
  take(data: Buffer, type: string): number | Instead | 'whole';
  /** The answer that the events make; null: part of it is missing. */
  join(): Buffer | null;
}

function answerStream(joiner: Joiner): AnswerStream {
  let kept = 0;
  let instead: Instead | null = null;
  let isWhole = false;
  let isOver = false;
  const events = readEvents((data, type) => {
    if (isWhole) return;
    const taken = joiner.take(data, type);
    if (typeof taken === 'number') {
      kept += taken;
      return;
    }
    // The stream was cut in the middle of its last event.
    if (taken === NO_JSON && isOver) return;
    isWhole = true;
    if (taken === 'whole') return;
    instead = taken;
    kept = taken.body.length;
  });
  return {
    get held() {
      return kept + events.pending;
    },
    get isWhole() {
      return isWhole;
    },
    push: events.push,
    finish(status) {
      isOver = true;
      events.end();
      if (!isWhole) return null;
      const { status: other, body } = instead ?? { status: null, body: joiner.join() };
      return body === null ? null : { status: other ?? status, body };
    },
  };
}

/** What an event says; else what stands for the answer. */
function parseEvent(data: Buffer): { value: object } | Instead {
  let value: unknown;
  try {
    value = JSON.parse(data.toString());
  } catch {
    value = null; // a foreign or damaged event is the engine's fault, and no exception here
  }
  if (typeof value !== 'object' || value === null) return NO_JSON;
  return 'error' in value && value.error !== null && value.error !== undefined
    ? { status: errorStatus(value.error), body: data }
    : { value };
}

/** vLLM says the status as `code` of an error in mid-stream, whose headers had to say 200. */
function errorStatus(error: unknown): number {
  const code =
    typeof error === 'object' && error !== null && 'code' in error ? Number(error.code) : 0;
  return Number.isInteger(code) && code >= 400 && code <= 599 ? code : 500;
}

interface Shape {
  object: string;
  /** Of vLLM's answer, in its order: what a stream leaves out is null there (0.32.0, seen). */
  answer: readonly string[];
  choice: readonly string[];
  message: readonly string[];
}

function words(text: string): string[] {
  return text.trim().split(/\s+/);
}

const CHAT: Shape = {
  object: 'chat.completion',
  answer: words(`
    id object created model choices service_tier system_fingerprint usage prompt_logprobs prompt_token_ids
    prompt_text kv_transfer_params ec_transfer_params metrics
  `),
  choice: words('index message logprobs finish_reason stop_reason token_ids routed_experts'),
  message: words('role content refusal annotations audio function_call tool_calls reasoning'),
};
const COMPLETION: Shape = {
  object: 'text_completion',
  answer: words(`
    id object created model choices service_tier system_fingerprint usage kv_transfer_params ec_transfer_params
    metrics
  `),
  choice: words(`
    index text logprobs finish_reason stop_reason token_ids prompt_logprobs prompt_token_ids routed_experts
  `),
  message: [],
};
const USAGE = words(`
  prompt_tokens total_tokens completion_tokens prompt_tokens_details completion_tokens_details
`);

/** Chat completions; `beside` is the content of a message that says nothing but calls tools. */
export function joinChat(beside: '' | null): AnswerStream {
  return joinChoices(CHAT, beside);
}

export function joinCompletion(): AnswerStream {
  return joinChoices(COMPLETION, null);
}

function joinChoices(shape: Shape, beside: '' | null): AnswerStream {
  /** What is said of the answer as a whole: the last word counts. */
  const said = new Map<string, unknown>();
  const choices = new Map<number, GrownObject>();

  function takeChoice(choice: unknown): number {
    if (typeof choice !== 'object' || choice === null) return 0;
    const { index = 0, delta, ...rest } = choice as { index?: number; delta?: object };
    const known = choices.get(index) ?? new Map<string, Grown>();
    choices.set(index, known);
    return grow(known, delta ? { ...rest, message: delta } : rest);
  }

  return answerStream({
    take(data) {
      if (isDone(data)) return 'whole';
      const parsed = parseEvent(data);
      if ('body' in parsed) return parsed;
      let kept = 0;
      for (const [key, value] of Object.entries(parsed.value) as [string, unknown][]) {
        if (key === 'choices' && Array.isArray(value)) {
          for (const choice of value) kept += takeChoice(choice);
        } else if (!said.has(key) || value !== null) {
          said.set(key, value);
        }
      }
      return kept;
    },
    join() {
      const all = [...choices].toSorted(([a], [b]) => a - b);
      if (all.length === 0 || !all.every(([, choice]) => isFinished(choice))) return null;
      const isVllm = all.every(([, choice]) => choice.has('stop_reason'));
      const list = all.map(([index, choice]) => choiceJson(index, choice, shape, isVllm, beside));
      const members = new Map([...said].map(([key, value]) => [key, JSON.stringify(value)]));
      members.set('object', JSON.stringify(shape.object)).set('choices', `[${list.join(',')}]`);
      const usage = said.get('usage');
      if (isVllm && typeof usage === 'object' && usage !== null) {
        const counts = Object.entries(usage).map(([key, n]) => [key, JSON.stringify(n)] as const);
        members.set('usage', shaped(new Map(counts), USAGE, true));
      }
      return Buffer.from(shaped(members, shape.answer, isVllm));
    },
  });
}

function isDone(data: Buffer): boolean {
  return data.length < 16 && data.toString().trim() === '[DONE]';
}

function isFinished(choice: GrownObject): boolean {
  const reason = choice.get('finish_reason');
  return reason !== undefined && !(reason.is === 'value' && reason.value === null);
}

function choiceJson(
  index: number,
  choice: GrownObject,
  shape: Shape,
  isVllm: boolean,
  beside: '' | null,
): string {
  const members = new Map([['index', String(index)]]);
  for (const [key, grown] of choice) {
    const isMessage = key === 'message' && grown.is === 'members';
    const json = isMessage ? messageJson(grown.members, shape, isVllm, beside) : grownJson(grown);
    members.set(key, json);
  }
  return shaped(members, shape.choice, isVllm);
}

function messageJson(
  message: GrownObject,
  shape: Shape,
  isVllm: boolean,
  beside: '' | null,
): string {
  const members = new Map([...message].map(([key, grown]) => [key, grownJson(grown)]));
  const calls = message.has('tool_calls') || message.has('function_call');
  // A stream opens with empty content, whatever follows.
  if (isSilent(message.get('content'))) {
    if (calls) members.set('content', JSON.stringify(beside));
    else if (!isSilent(message.get('reasoning')) || !isSilent(message.get('reasoning_content'))) {
      members.set('content', 'null');
    }
  }
  const keys = calls ? shape.message : shape.message.filter((key) => key !== 'tool_calls');
  return shaped(members, keys, isVllm);
}

function isSilent(grown: Grown | undefined): boolean {
  return grown === undefined || (grown.is === 'text' ? grown.text.isEmpty : grown.is === 'value');
}

/** Members in a given order, others behind them; `isFull` names those that are absent, too. */
function shaped(
  members: ReadonlyMap<string, string>,
  keys: readonly string[],
  isFull: boolean,
): string {
  const first = keys.filter((key) => isFull || members.has(key));
  const rest = [...members].filter(([key]) => !keys.includes(key));
  return jsonOf([...first.map((key) => [key, members.get(key) ?? 'null'] as const), ...rest]);
}

const FINAL_RESPONSES = new Set(['response.completed', 'response.incomplete', 'response.failed']);

/** The Responses API says the whole answer in its last event; it is taken as it came. */
export function takeResponse(): AnswerStream {
  return answerStream({
    take(data, named) {
      const type = named === '' ? typeOf(data) : named;
      if (type === 'error') return errorOf(data);
      if (!FINAL_RESPONSES.has(type)) return 0;
      let response: Buffer | null = null;
      eachMember(data, ({ key, keyEnd, value, valueEnd }) => {
        const isIt = data.toString('utf8', key, keyEnd) === '"response"';
        if (isIt) response = data.subarray(value, valueEnd);
      });
      return response === null ? NO_JSON : { status: null, body: response };
    },
    join: () => null,
  });
}

function typeOf(data: Buffer): string {
  const parsed = parseEvent(data);
  if ('body' in parsed) return 'error';
  return 'type' in parsed.value && typeof parsed.value.type === 'string' ? parsed.value.type : '';
}

/** An error event holds the envelope of an error, or just its members. */
function errorOf(data: Buffer): Instead {
  const parsed = parseEvent(data);
  if ('body' in parsed) return parsed;
  const body = Buffer.concat([Buffer.from('{"error":'), data, Buffer.from('}')]);
  return { status: errorStatus(parsed.value), body };
}
