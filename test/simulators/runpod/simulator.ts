import { seededRandom } from '../vllm/digest.ts';
import type { ErrorName, Operation } from '../cloud/faults.ts';
import { createFleet } from '../cloud/fleet.ts';
import type { FleetOptions } from '../cloud/fleet.ts';
import { merge } from '../cloud/knobs.ts';
import type { Call, CloudApi, Reply } from '../cloud/server.ts';
import { openGround, serveCloud } from '../cloud/start.ts';
import type { CloudOptions, CloudSimulator } from '../cloud/start.ts';
import { podSpec } from './container.ts';
import { proxied, proxyRequest } from './proxy.ts';
import {
  createWindows,
  NO_CAPACITY,
  parseRunPodKnobs,
  problem,
  Refusal,
  v1Error,
} from './state.ts';
import type { PodExtra, RunPodState } from './state.ts';
import { answerV1 } from './v1.ts';
import { answerV2, askedByOf } from './v2.ts';

const MAX_BODY = 102_400;

const ERRORS: Record<ErrorName, [status: number, detail: string]> = {
  no_capacity: [400, NO_CAPACITY],
  quota: [400, NO_CAPACITY],
  balance: [402, 'insufficient balance'],
  forbidden: [403, 'access denied'],
  unauthorized: [401, 'missing bearer token'],
  rate_limited: [429, 'rate limit exceeded for the minute window'],
  internal: [500, 'Something went wrong. Please try again later or contact support.'],
  unavailable: [503, 'service unavailable'],
  conflict: [409, 'pod state conflict'],
  not_found: [404, 'pod not found'],
  unknown: [500, 'unknown error'],
};

const CLOUDFLARE: Reply = {
  status: 403,
  headers: { 'content-type': 'text/html' },
  payload: '<html><head><title>Access denied</title></head><body>Error 1010</body></html>',
};

function opOf(method: string, path: string): Operation {
  const pods = /^\/v[12]\/pods(\/[^/]+)?(\/[a-z]+)?$/.exec(path);
  if (pods === null) return path.startsWith('/v2/catalog') ? 'catalog' : 'other';
  if (pods[2] !== undefined) return 'action';
  if (method === 'DELETE') return 'terminate';
  if (pods[1] === undefined) return method === 'POST' ? 'create' : 'list';
  return 'get';
}

function isV1({ path }: Call): boolean {
  return path.startsWith('/v1/') || path === '/v1';
}

function refused(call: Call, refusal: Refusal): Reply {
  return isV1(call) ? v1Error(refusal) : problem(refusal);
}

function checkAccess(state: RunPodState, call: Call): void {
  if (call.body.length > MAX_BODY) throw new Refusal(413, 'request body too large');
  const { v1_gone: gone } = state.knobs();
  // Nobody has recorded the body; the status is what was announced.
  if (isV1(call) && gone)
    throw new Refusal(410, 'REST API v1 has been retired. Use https://api.runpod.io/v2.');
  const [scheme, key] = (call.headers.authorization ?? '').split(' ');
  if (scheme?.toLowerCase() !== 'bearer' || key === undefined)
    throw new Refusal(401, 'missing bearer token');
  if (!state.apiKeys.includes(key)) throw new Refusal(401, 'invalid bearer token');
  const full = state.windows.take(Date.now());
  if (full === undefined) return;
  const headers = { 'retry-after': String(full.retryAfter) };
  throw new Refusal(429, `rate limit exceeded for the ${full.window} window`, [], headers);
}

function createApi(state: RunPodState): CloudApi {
  async function answer(call: Call): Promise<Reply> {
    const agent = call.headers['user-agent'] ?? '';
    const blocked = agent === '' || agent.startsWith('Python-urllib');
    if (blocked && state.knobs().user_agent_needed) return CLOUDFLARE;
    try {
      checkAccess(state, call);
      return await (isV1(call) ? answerV1(state, call) : answerV2(state, call));
    } catch (error) {
      if (error instanceof Refusal) return refused(call, error);
      throw error;
    }
  }

  return {
    opOf,
    askedBy: askedByOf,
    divert(req, res) {
      const to = proxied(req);
      if (to !== undefined) proxyRequest(state, to, req, res);
      return to !== undefined;
    },
    async handle(call) {
      const reply = await answer(call);
      const { 'ratelimit-policy': policy, ratelimit } = state.windows.headers(Date.now());
      if (policy === undefined || ratelimit === undefined) return reply;
      return { ...reply, headers: { ...reply.headers, ratelimit, 'ratelimit-policy': policy } };
    },
    error(name, call, retryAfter) {
      const [status, detail] = ERRORS[name];
      const headers = retryAfter === null ? {} : { 'retry-after': String(retryAfter) };
      return refused(call, new Refusal(status, detail, [], headers));
    },
  };
}

/** Starts a simulated RunPod in this process; throws where `real` machines cannot run here, with the mend. */
export async function startRunPod(options: CloudOptions = {}): Promise<CloudSimulator> {
  const { seed = 1 } = options;
  let knobs = parseRunPodKnobs(merge({}, options.knobs ?? {}));
  const yard = await openGround(options);
  const random = seededRandom(seed + 1);
  const fleetOptions: FleetOptions<PodExtra> = {
    yard,
    seed,
    billed: 'second',
    relayed: true,
    knobs: () => knobs,
    spec: async (pod, machine) => podSpec(state, pod, machine),
  };
  const state: RunPodState = {
    apiKeys: options.apiKeys ?? ['runpod-key'],
    fleet: createFleet(fleetOptions),
    yard,
    sshKeys: [...(options.sshKeys ?? [])],
    volumes: new Map(),
    windows: createWindows(() => knobs.rate_limits),
    knobs: () => knobs,
    draw: (length) => Array.from({ length }, () => Math.floor(random() * 36).toString(36)).join(''),
  };
  return serveCloud(options, {
    fleet: state.fleet,
    yard,
    api: createApi(state),
    knobs: () => ({ ...knobs }),
    setKnobs(next) {
      knobs = parseRunPodKnobs(next);
    },
  });
}
