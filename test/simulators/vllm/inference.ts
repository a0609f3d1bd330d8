import { ENGINE_DEAD, errorBody, httpError, queueFull, unknownModel } from './api-error.ts';
import type { ApiError } from './api-error.ts';
import { chatTask, completionTask } from './chat.ts';
import { sha256 } from './digest.ts';
import type { Ticket } from './engine.ts';
import {
  cutWhenSilent,
  EVENTS_TYPE,
  hang,
  JSON_TYPE,
  send,
  sendError,
  settle,
  writeHead,
} from './exchange.ts';
import type { Exchange, Reply } from './exchange.ts';
import type { Fault } from './faults.ts';
import { tokensOf } from './kv-cache.ts';
import { embeddingTask, rerankTask, scoreTask } from './pooling.ts';
import { responsesTask } from './responses.ts';
import type { SimulatorState } from './state.ts';
import { event, isApiError } from './task.ts';
import type { EventStream, Task, TaskHandler } from './task.ts';
import {
  emptyBody,
  malformedJson,
  noObject,
  unsupportedMediaType,
  wrongType,
} from './validation.ts';

/** The endpoints that ask the engine. */
export const INFERENCE: ReadonlyMap<string, TaskHandler> = new Map([
  ['/v1/chat/completions', chatTask],
  ['/v1/completions', completionTask],
  ['/v1/responses', responsesTask],
  ['/v1/embeddings', embeddingTask],
  ['/rerank', rerankTask],
  ['/v1/rerank', rerankTask],
  ['/v2/rerank', rerankTask],
  ['/score', scoreTask],
  ['/v1/score', scoreTask],
]);

/** From the first 500 to a refused connection (vLLM 0.32.0, seen): the errors just leave before the process does. */
const DEATH_MS = 100;

/** A fault that needs no answer of the engine; false when the request goes on. */
export function strike(state: SimulatorState, x: Exchange, fault: Fault, go: () => void): boolean {
  if (fault.kind === 'proxy_cut') {
    cutWhenSilent(x, fault);
    return false;
  }
  x.fault = fault;
  if (fault.kind === 'status') {
    const headers = fault.retry_after === null ? [] : ['retry-after', String(fault.retry_after)];
    settle(x, fault.status, 'fault');
    const payload = errorBody(httpError(fault.status));
    writeHead(x, { status: fault.status, type: JSON_TYPE, headers }, Buffer.byteLength(payload));
    x.res.end(payload);
  } else if (fault.kind === 'reset' && fault.at === 'headers') {
    settle(x, null, 'fault');
    x.req.socket.resetAndDestroy();
  } else if (fault.kind === 'hang_headers') {
    hang(x, fault, go);
  } else if (fault.kind === 'oom') {
    settle(x, ENGINE_DEAD.status, 'fault');
    state.engine.die();
    const payload = errorBody(ENGINE_DEAD);
    writeHead(x, { status: ENGINE_DEAD.status, type: JSON_TYPE }, Buffer.byteLength(payload));
    x.res.end(payload);
    if (fault.delay_ms === null) {
      state.stopListening();
      state.silent = true; // what still comes over an open connection ends with its reset
    }
    // Not unref'd: nothing else keeps a process that no longer listens until its exit code.
    setTimeout(() => state.exit(fault.exit_code), fault.delay_ms ?? DEATH_MS);
  } else if (fault.kind === 'exit') {
    settle(x, null, 'fault');
    state.exit(fault.exit_code);
  } else {
    return false;
  }
  return true;
}

type Parsed = { body: Record<string, unknown> } | { refused: ApiError };

/** How many variants the union of a request has, where there is more than one (vLLM 0.32.0, seen). */
const VARIANTS: Record<string, number> = { '/v1/embeddings': 5 };

function parseBody(x: Exchange): Parsed {
  const type = x.req.headers['content-type']?.split(';', 1)[0]?.toLowerCase();
  if (type !== JSON_TYPE) return { refused: unsupportedMediaType() };
  const text = x.body.toString();
  if (text === '') return { refused: emptyBody() };
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return { refused: malformedJson(text) }; // its own search says what and where, in Python's words
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
    return { body: value as Record<string, unknown> }; // an object that is no array has string keys
  }
  return { refused: noObject(value, VARIANTS[x.path] ?? 1) };
}

/** The generating endpoints, whose complaint about the model names the field. */
const GENERATING = new Set(['/v1/chat/completions', '/v1/completions', '/v1/responses']);

function modelOf(state: SimulatorState, asked: unknown, path: string): string | ApiError {
  // check_model of openai/models/serving.py lets a request without a model pass
  if (asked === undefined || asked === null || asked === '') return state.models[0] ?? '';
  if (typeof asked !== 'string') return wrongType('model', 'string', asked);
  if (state.anyModel || state.models.includes(asked)) return asked;
  return unknownModel(asked, GENERATING.has(path) ? 'model' : null);
}

/** Understands a request, or says what vLLM would say against it. */
function readTask(state: SimulatorState, x: Exchange, handler: TaskHandler): Task | ApiError {
  const parsed = parseBody(x);
  if ('refused' in parsed) return parsed.refused;
  const { body } = parsed;
  const model = modelOf(state, body['model'], x.path);
  if (typeof model === 'object') return model;
  // _base_request_id of serve/engine/serving.py (vLLM 0.32.0, seen)
  const id = String(x.req.headers['x-request-id'] ?? x.sha256.slice(0, 16));
  const digest = body['stream'] === true ? wholeDigest(body) : x.sha256;
  return handler({ body, digest, id, model, profile: state.profile });
}

/** A stream says what the whole answer says to the same body without the stream, as `JSON.stringify` writes it. */
function wholeDigest(body: Record<string, unknown>): string {
  const whole = { ...body };
  delete whole['stream'];
  delete whole['stream_options'];
  return sha256(JSON.stringify(whole));
}

function eventsOf(task: Task, stream: EventStream): string {
  let text = stream.open();
  for (const [s, sequence] of task.sequences.entries()) {
    const tokens = sequence.text?.tokens ?? 0;
    for (let i = 0; i < tokens; i += 1) text += stream.token(s, i);
  }
  return text + stream.close();
}

function replyOf(task: Task, headers: readonly string[] | undefined): Reply {
  const { stream } = task;
  const reply: Reply =
    stream === undefined
      ? { status: 200, type: JSON_TYPE, payload: task.answer() }
      : { status: 200, type: EVENTS_TYPE, payload: eventsOf(task, stream) };
  if (headers !== undefined) reply.headers = headers;
  return reply;
}

function countSuccess({ metrics }: SimulatorState, task: Task): void {
  for (const { text } of task.sequences) metrics.counters.success[text?.finish ?? 'stop'] += 1;
}

/** Without a modelled engine: only the counters that a client may read in /metrics. */
function countUnmodelled(state: SimulatorState, task: Task, seconds: number): void {
  const { metrics } = state;
  countSuccess(state, task);
  for (const { prompt, text } of task.sequences) {
    metrics.counters.promptTokens += tokensOf(prompt);
    metrics.counters.generationTokens += text?.tokens ?? 0;
  }
  metrics.observe('vllm:time_to_first_token_seconds', seconds);
  metrics.observe('vllm:e2e_request_latency_seconds', seconds);
}

function answerUnmodelled(
  state: SimulatorState,
  x: Exchange,
  task: Task,
  headers?: string[],
): void {
  const delay = state.profile.latency_ms;
  const answer = (): void => {
    if (state.silent) return;
    countUnmodelled(state, task, delay / 1000);
    send(x, replyOf(task, headers));
  };
  if (delay === 0) {
    answer();
    return;
  }
  const timer = setTimeout(answer, delay);
  x.res.once('close', () => {
    clearTimeout(timer);
    settle(x, null, 'aborted', true);
  });
}

/** The events of a running stream: headers leave with the first token, as a StreamingResponse's do. */
function createStreamWriter(x: Exchange, stream: EventStream, headers: readonly string[]) {
  let open = false;
  return {
    token(sequence: number, index: number): void {
      if (!open) {
        writeHead(x, { status: 200, type: EVENTS_TYPE, headers });
        x.res.write(stream.open());
        open = true;
      }
      x.res.write(stream.token(sequence, index));
    },
    end(dead: boolean): void {
      settle(x, 200, dead ? 'refused' : 'answered');
      // An error in mid-stream is an event (chat_completion/serving.py create_streaming_error_response).
      x.res.end(dead ? event(errorBody(ENGINE_DEAD)) + event('[DONE]') : stream.close());
    },
    started: () => open,
  };
}

/** Lets the engine compute a task; a client that hangs up takes it out again (with_cancellation). */
async function compute(
  state: SimulatorState,
  x: Exchange,
  task: Task,
  headers: string[] | undefined,
): Promise<void> {
  // A stream that a fault will break is sent as one piece: the fault cuts it in its middle.
  const live =
    task.stream === undefined || x.fault !== undefined
      ? undefined
      : createStreamWriter(x, task.stream, headers ?? []);
  const tickets: Ticket[] = [];
  x.res.once('close', () => {
    for (const ticket of tickets) ticket.abort();
    settle(x, null, x.fault === undefined ? 'aborted' : 'fault', true);
  });
  for (const [s, { prompt, text }] of task.sequences.entries()) {
    tickets.push(
      state.engine.submit({
        prompt,
        promptTokens: tokensOf(prompt),
        outputTokens: text?.tokens ?? 0,
        onToken: live === undefined ? undefined : (index) => live.token(s, index),
      }),
    );
  }
  const ends = await Promise.all(tickets.map((ticket) => ticket.ended));
  if (ends.includes('aborted')) return;
  const dead = ends.includes('dead');
  if (!dead) {
    countSuccess(state, task);
    // Every input of a pooling request is a request of its own to the engine.
    const pooling = task.sequences[0]?.text === undefined;
    state.metrics.observe('vllm:request_params_n', pooling ? 1 : task.sequences.length);
  }
  if (live?.started() === true) live.end(dead);
  else if (dead) sendError(x, ENGINE_DEAD);
  else send(x, replyOf(task, headers));
}

function isFull(state: SimulatorState, more: number): boolean {
  const limit = state.profile.max_num_queued_reqs;
  const { running, waiting } = state.engine.stats();
  return limit > 0 && running + waiting + more > limit;
}

/** Answers a request to the engine, from its whole body on. Never throws for what a client sent. */
export function infer(state: SimulatorState, x: Exchange, handler: TaskHandler): void {
  if (state.engine.dead) {
    sendError(x, ENGINE_DEAD);
    return;
  }
  const task = readTask(state, x, handler);
  if (isApiError(task)) {
    sendError(x, task);
    return;
  }
  // serve/middleware/x_request_id.py, only with --enable-request-id-headers
  const asked = x.req.headers['x-request-id'] ?? x.sha256.slice(0, 32);
  const headers = state.requestIdHeaders ? ['x-request-id', String(asked)] : undefined;
  if (!state.profile.modelled) {
    answerUnmodelled(state, x, task, headers);
  } else if (isFull(state, task.sequences.length)) {
    state.metrics.counters.admissionRejections += 1;
    sendError(x, queueFull(state.profile.max_num_queued_reqs));
  } else {
    void compute(state, x, task, headers);
  }
}
