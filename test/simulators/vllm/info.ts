import { Buffer } from 'node:buffer';
import { errorBody } from './api-error.ts';
import { renderMessages } from './chat.ts';
import { sha256 } from './digest.ts';
import type { Reply } from './exchange.ts';
import { JSON_TYPE } from './exchange.ts';
import { INFERENCE } from './inference.ts';
import { TOKEN_CHARS } from './kv-cache.ts';
import type { SimulatorState } from './state.ts';
import { missing } from './validation.ts';

/** The release whose wire the simulator follows. */
const VERSION = '0.32.0';

function json(value: unknown, status = 200): Reply {
  return { status, type: JSON_TYPE, payload: JSON.stringify(value) };
}

/** Empty 200, or 503 once the engine is dead (serve/instrumentator/health.py). */
function health({ engine }: SimulatorState): Reply {
  return { status: engine.dead ? 503 : 200, payload: '' };
}

function modelCards({ models, profile, startedAt }: SimulatorState): Reply {
  const created = Math.floor(startedAt / 1000);
  const data = models.map((id) => ({
    id,
    object: 'model',
    created,
    owned_by: 'vllm',
    root: id,
    parent: null,
    max_model_len: profile.max_model_len,
    permission: [
      {
        id: `modelperm-${sha256(id).slice(0, 16)}`,
        object: 'model_permission',
        created,
        allow_create_engine: false,
        allow_sampling: true,
        allow_logprobs: true,
        allow_search_indices: false,
        allow_view: true,
        allow_fine_tuning: false,
        organization: '*',
        group: null,
        is_blocking: false,
      },
    ],
  }));
  return json({ object: 'list', data });
}

function metrics(state: SimulatorState): Reply {
  if (!state.profile.metrics) return json({ detail: 'Not Found' }, 404);
  const { running, waiting, kvUsage } = state.engine.stats();
  const numGpuBlocks = state.profile.num_gpu_blocks;
  const stats = { running, waiting, kvUsage, numGpuBlocks, dead: state.engine.dead };
  const type = 'text/plain; version=1.0.0; charset=utf-8';
  return { status: 200, type, payload: state.metrics.render(stats) };
}

function parse(body: Buffer): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(body.toString());
    // Only named fields are read from it, and each is checked.
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {}; // no JSON at all is answered like JSON without the needed field
  }
}

/** Four bytes are a token and its id is their number, so that /detokenize can undo it. */
function tokenize(state: SimulatorState, body: Buffer): Reply {
  const asked = parse(body);
  const { prompt, messages } = asked;
  const rendered = Array.isArray(messages) ? renderMessages(messages)?.prompt : prompt;
  if (typeof rendered !== 'string') {
    const error = missing(asked, ['prompt', 'messages']);
    return { status: 400, type: JSON_TYPE, payload: errorBody(error) };
  }
  const bytes = Buffer.from(rendered);
  const tokens: number[] = [];
  for (let at = 0; at < bytes.length; at += TOKEN_CHARS) {
    tokens.push(bytes.readUIntLE(at, Math.min(TOKEN_CHARS, bytes.length - at)));
  }
  const { max_model_len } = state.profile;
  return json({ count: tokens.length, max_model_len, tokens, token_strs: null });
}

function detokenize(_: SimulatorState, body: Buffer): Reply {
  const { tokens } = parse(body);
  const ids: unknown[] = Array.isArray(tokens) ? tokens : [];
  const words = ids.map((id) => {
    const bytes = Buffer.alloc(TOKEN_CHARS);
    bytes.writeUInt32LE(typeof id === 'number' ? id >>> 0 : 0);
    return bytes;
  });
  const prompt = Buffer.concat(words).toString().replaceAll('\0', '');
  return json({ prompt });
}

type Info = (state: SimulatorState, body: Buffer) => Reply;

const ROUTES: Record<string, Info> = {
  'GET /health': health,
  'GET /ping': health,
  'POST /ping': health, // SageMaker asks with POST too
  'GET /ready': health, // as the mock engine of AIBrix has it
  'GET /version': () => json({ version: VERSION }),
  'GET /load': (state) => json({ server_load: state.log.counts().in_flight }),
  'GET /metrics': metrics,
  'GET /v1/models': modelCards,
  'POST /tokenize': tokenize,
  'POST /detokenize': detokenize,
};

/** The endpoints of vLLM that ask nothing of the engine; FastAPI's `detail` for those that are none. */
export function infoReply(
  state: SimulatorState,
  method: string,
  path: string,
  body: Buffer,
): Reply {
  const route = ROUTES[`${method} ${path}`];
  if (route !== undefined) return route(state, body);
  const known = INFERENCE.has(path)
    ? 'POST'
    : Object.keys(ROUTES).find((name) => name.endsWith(` ${path}`));
  if (known === undefined) return json({ detail: 'Not Found' }, 404);
  const allow = known.split(' ', 1)[0] ?? '';
  return { ...json({ detail: 'Method Not Allowed' }, 405), headers: ['allow', allow] };
}
