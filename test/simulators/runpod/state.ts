import * as v from 'valibot';
import type { Call, Reply } from '../cloud/server.ts';
import { json } from '../cloud/server.ts';
import type { Fleet, Lease } from '../cloud/fleet.ts';
import { cloudKnobs, parseControl } from '../cloud/knobs.ts';
import type { Yard } from '../machines/yard.ts';

const whole = v.pipe(v.number(), v.integer(), v.minValue(0));
const limit = v.nullable(whole);

const runpodKnobs = v.strictObject({
  ...cloudKnobs,
  /**
   * What a new pod's status is: `measured` says RUNNING from creation with no runtime and no ssh.direct, as
   * live pods were seen in 2026-08; `spec` goes PROVISIONING, STARTING, RUNNING as the document has it.
   */
  status_style: v.optional(v.picklist(['measured', 'spec']), 'measured'),
  /** Requests a minute, an hour and a day; null is without end. The document's examples. */
  rate_limits: v.optional(v.strictObject({ minute: limit, hour: limit, day: limit }), {
    minute: 60,
    hour: 3000,
    day: 50_000,
  }),
  /** v1 answers 410 to everything, as announced for 2026-11-15. */
  v1_gone: v.optional(v.boolean(), false),
  /** USD; a pod needs one hour's price of it. null is without end. */
  balance_usd: v.optional(v.nullable(v.number()), null),
  /** Pods' prices an hour together; beyond it a create is refused in the words of missing capacity. */
  spend_limit_usd: v.optional(v.nullable(v.number()), null),
  /** Types that this account may not rent: 403. */
  forbidden_types: v.optional(v.array(v.string()), []),
  /** `GET /v2/pods` reads `limit` and `cursor` and pages by at most so many; null: it ignores both. */
  page_limit: v.optional(v.nullable(whole), null),
  /** A request without a User-Agent, or with Python's own, gets Cloudflare's 403. */
  user_agent_needed: v.optional(v.boolean(), true),
  /** After a start or restart the old public port is shown so long. */
  stale_port_ms: v.optional(v.number(), 0),
  /** v1 only: what interruptible pods cost of the price. */
  interruptible_share: v.optional(v.number(), 0.5),
});

export type RunPodKnobs = v.InferOutput<typeof runpodKnobs>;

/** Throws InvalidControl. */
export function parseRunPodKnobs(value: unknown): RunPodKnobs {
  return parseControl(runpodKnobs, value);
}

/** What a pod is beside its lease. */
export interface PodExtra {
  image: string;
  args: string;
  entrypoint: string[];
  cmd: string[];
  disk: number;
  ports: string[];
  env: Record<string, string>;
  registry: string | null;
  cloud: 'SECURE' | 'COMMUNITY';
  network: { volumeId: string; path: string } | null;
  persistent: { size: number; path: string } | null;
  cudaVersion: string;
  locked: boolean;
  startSsh: boolean;
  /** The one machine in the data center that serves it. */
  hostId: string;
  oldPort: { port: number; until: number } | null;
  /** v1 shows the same pod in other words. */
  countryCodes: string[];
}

export type Pod = Lease<PodExtra>;

export interface Volume {
  id: string;
  name: string;
  size: number;
  dataCenter: string;
  type: 'STANDARD' | 'HIGH_PERFORMANCE';
}

export interface RunPodState {
  apiKeys: readonly string[];
  fleet: Fleet<PodExtra>;
  yard: Yard | undefined;
  sshKeys: string[];
  volumes: Map<string, Volume>;
  windows: RateWindows;
  knobs(): RunPodKnobs;
  /** Fresh ids. */
  draw(length: number): string;
}

// --- Rates -------------------------------------------------------------------------------------

const WINDOWS = [
  ['minute', 60],
  ['hour', 3600],
  ['day', 86_400],
] as const;

export interface RateWindows {
  /** Counts a request; the name and the rest of the first window that is full, or undefined. */
  take(now: number): { window: string; retryAfter: number } | undefined;
  headers(now: number): Record<string, string>;
}

/** Fixed windows, as RunPod's headers describe them (the IETF draft "RateLimit header fields"). */
export function createWindows(limits: () => RunPodKnobs['rate_limits']): RateWindows {
  const counts = new Map<string, { start: number; taken: number }>();

  function current(name: string, seconds: number, now: number) {
    const start = Math.floor(now / (seconds * 1000));
    const old = counts.get(name);
    if (old?.start === start) return old;
    const fresh = { start, taken: 0 };
    counts.set(name, fresh);
    return fresh;
  }

  const rest = (seconds: number, now: number): number =>
    Math.ceil(seconds - ((now / 1000) % seconds));

  return {
    take(now) {
      for (const [name, seconds] of WINDOWS) {
        const most = limits()[name];
        if (most !== null && current(name, seconds, now).taken >= most) {
          return { window: name, retryAfter: rest(seconds, now) };
        }
      }
      for (const [name, seconds] of WINDOWS) current(name, seconds, now).taken += 1;
      return undefined;
    },
    headers(now) {
      const left: string[] = [];
      const policy: string[] = [];
      for (const [name, seconds] of WINDOWS) {
        const most = limits()[name];
        if (most === null) continue;
        const { taken } = current(name, seconds, now);
        left.push(`"${name}";r=${Math.max(0, most - taken)};t=${rest(seconds, now)}`);
        policy.push(`"${name}";q=${most};w=${seconds}`);
      }
      if (left.length === 0) return {};
      return { ratelimit: left.join(', '), 'ratelimit-policy': policy.join(', ') };
    },
  };
}

// --- Refusals ----------------------------------------------------------------------------------

/** Verbatim; v2 has no code for it. */
export const NO_CAPACITY =
  'There are no longer any instances available with the requested specifications. Please refresh and try again.';
export const NO_FREE_GPU = 'There are not enough free GPUs on the host machine to start this pod.';

/** A refusal on its way out; each dialect has its own envelope for it. */
export class Refusal extends Error {
  override name = 'Refusal';
  status: number;
  errors: readonly string[];
  headers: Record<string, string>;

  constructor(
    status: number,
    detail: string,
    errors: readonly string[] = [],
    headers: Record<string, string> = {},
  ) {
    super(detail);
    this.status = status;
    this.errors = errors;
    this.headers = headers;
  }
}

const TITLES: Record<number, string> = {
  400: 'Bad Request',
  401: 'Unauthorized',
  402: 'Payment Required',
  403: 'Forbidden',
  404: 'Not Found',
  405: 'Method Not Allowed',
  409: 'Conflict',
  413: 'Request Entity Too Large',
  422: 'Unprocessable Entity',
  429: 'Too Many Requests',
  500: 'Internal Server Error',
  503: 'Service Unavailable',
};

/** RFC 9457, as every error of v2. */
export function problem({ status, message, errors, headers }: Refusal): Reply {
  const body = { title: TITLES[status] ?? 'Error', status, detail: message };
  const reply = json(
    status,
    errors.length > 0 ? { ...body, errors } : body,
    'application/problem+json',
  );
  return { ...reply, headers: { ...reply.headers, ...headers } };
}

/** v1 has no schema for errors; live it answered `{"error": …}`, and an empty object for 401. */
export function v1Error({ status, message, headers }: Refusal): Reply {
  const reply = json(status, { error: status === 401 ? {} : message });
  return { ...reply, headers: { ...reply.headers, ...headers } };
}

export const noContent: Reply = { status: 204, headers: {}, payload: '' };

/** The body as JSON; throws a Refusal. */
export function parseBody(call: Call): unknown {
  try {
    return JSON.parse(call.body.toString());
  } catch {
    throw new Refusal(400, 'request body is not valid JSON'); // whatever the parser says of it
  }
}
