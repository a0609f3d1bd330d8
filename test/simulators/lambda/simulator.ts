import { seededRandom } from '../vllm/digest.ts';
import type { ErrorName, Operation } from '../cloud/faults.ts';
import { createFleet } from '../cloud/fleet.ts';
import type { FleetOptions } from '../cloud/fleet.ts';
import { merge } from '../cloud/knobs.ts';
import type { Call, CloudApi, Reply } from '../cloud/server.ts';
import { openGround, serveCloud } from '../cloud/start.ts';
import type { CloudOptions, CloudSimulator } from '../cloud/start.ts';
import { answer, askedByOf } from './api.ts';
import { instanceSpec } from './instances.ts';
import { errorReply, parseLambdaKnobs, Refusal } from './state.ts';
import type { ErrorKey, InstanceExtra, LambdaState } from './state.ts';

const KEYS: Record<ErrorName, ErrorKey> = {
  no_capacity: 'capacity',
  quota: 'quota',
  balance: 'inactive',
  forbidden: 'forbidden',
  unauthorized: 'key',
  rate_limited: 'rate',
  internal: 'internal',
  unavailable: 'unavailable',
  conflict: 'conflict',
  not_found: 'missing',
  unknown: 'unknown',
};

const LAUNCH = '/api/v1/instance-operations/launch';
/** A client that waits exactly as long as it should is early by the network's jitter now and then. */
const TOLERANCE = 0.95;

function opOf(method: string, path: string): Operation {
  if (path === LAUNCH) return 'create';
  if (path === '/api/v1/instance-operations/terminate') return 'terminate';
  if (path === '/api/v1/instance-operations/restart') return 'action';
  if (path === '/api/v1/instances') return 'list';
  if (path === '/api/v1/instance-types') return 'catalog';
  if (!path.startsWith('/api/v1/instances/')) return 'other';
  return method === 'GET' ? 'get' : 'action';
}

/** `Bearer key`, `Basic base64("key:")` or `Basic key`. */
function keyOf({ headers }: Call): string | undefined {
  const [scheme = '', value = ''] = (headers.authorization ?? '').split(' ');
  if (scheme.toLowerCase() === 'bearer') return value;
  if (scheme.toLowerCase() !== 'basic') return undefined;
  const decoded = Buffer.from(value, 'base64').toString();
  return decoded.endsWith(':') ? decoded.slice(0, -1) : value;
}

function checkRate({ last, knobs }: LambdaState, call: Call): void {
  const now = Date.now();
  const { request_interval_ms: request, launch_interval_ms: launch } = knobs();
  const isLaunch = call.path === LAUNCH;
  const early = now - last.request < request * TOLERANCE;
  if (early || (isLaunch && now - last.launch < launch * TOLERANCE)) throw new Refusal('rate');
  last.request = now;
  if (isLaunch) last.launch = now;
}

function rateReply({ knobs }: LambdaState): Reply {
  const { rate_limit_body: kind } = knobs();
  if (kind === 'json') return errorReply(new Refusal('rate'));
  const html = kind === 'html' ? '<html><body><h1>429 Too Many Requests</h1></body></html>' : '';
  return { status: 429, headers: { 'content-type': 'text/html' }, payload: html };
}

function createApi(state: LambdaState): CloudApi {
  function refuse(refusal: Refusal): Reply {
    return refusal.key === 'rate' ? rateReply(state) : errorReply(refusal);
  }

  return {
    opOf,
    askedBy: askedByOf,
    async handle(call) {
      try {
        const key = keyOf(call);
        if (key === undefined || !state.apiKeys.includes(key)) throw new Refusal('key');
        checkRate(state, call);
        if (state.knobs().account_inactive) throw new Refusal('inactive');
        return await answer(state, call);
      } catch (error) {
        if (error instanceof Refusal) return refuse(error);
        throw error;
      }
    },
    error(name, _, retryAfter) {
      const reply = refuse(new Refusal(KEYS[name]));
      if (retryAfter === null) return reply;
      return { ...reply, headers: { ...reply.headers, 'retry-after': String(retryAfter) } };
    },
  };
}

/** Starts a simulated Lambda Cloud in this process; throws where `real` machines cannot run here, with the mend. */
export async function startLambda(options: CloudOptions = {}): Promise<CloudSimulator> {
  const { seed = 1 } = options;
  let knobs = parseLambdaKnobs(merge({}, options.knobs ?? {}));
  const yard = await openGround(options);
  const random = seededRandom(seed + 1);
  const draw = (): string =>
    Array.from({ length: 32 }, () => Math.floor(random() * 16).toString(16)).join('');
  const fleetOptions: FleetOptions<InstanceExtra> = {
    yard,
    seed,
    billed: 'minute',
    relayed: false,
    knobs: () => knobs,
    spec: async (instance, machine) => instanceSpec(state, instance, machine),
  };
  const state: LambdaState = {
    apiKeys: options.apiKeys ?? ['lambda-key'],
    fleet: createFleet(fleetOptions),
    yard,
    sshKeys: new Map(),
    fileSystems: new Map(),
    last: { request: 0, launch: 0 },
    knobs: () => knobs,
    draw,
  };
  for (const [at, publicKey] of (options.sshKeys ?? []).entries()) {
    const name = at === 0 ? 'default' : `default-${at + 1}`;
    const id = draw();
    state.sshKeys.set(id, { id, name, public_key: publicKey });
  }
  return serveCloud(options, {
    fleet: state.fleet,
    yard,
    api: createApi(state),
    knobs: () => ({ ...knobs }),
    setKnobs(next) {
      knobs = parseLambdaKnobs(next);
    },
  });
}
