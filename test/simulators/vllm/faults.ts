import { seededRandom } from './digest.ts';
import { asNumber, asObject, InvalidSetting } from './profile.ts';

/**
 * What may go wrong, and who showed it:
 * - `status`: any status; 429 with Retry-After as a rate limiter before the engine sends it, 503 as
 *   vLLM's admission control, 500 as its unhandled exceptions.
 * - `reset`: RST, before the answer or (`at: body`) in its middle, as when a pod dies or a tunnel breaks.
 * - `hang_headers`, `hang_body`: silence, for `delay_ms` or for ever. vLLM's `/health` stays 200 in such
 *   hangs, so a client that watches only health waits for ever.
 * - `truncate`: half of the JSON under a matching Content-Length, as proxies with a full buffer do.
 * - `content_type`: a proxy's HTML page with status 200 instead of the answer.
 * - `proxy_cut`: a proxy between client and engine, which gives up once no byte has passed for `delay_ms`
 *   (100 s unless given): it answers `status` (524 unless given, as Cloudflare does) before the answer, and
 *   cuts the connection within it. A stream that goes on passes.
 * - `oom`: EngineCore dies: 500 to all in flight, nobody listens any more, and the process ends 0.1 s
 *   later; `/health` never says 503 (vLLM 0.32.0, seen). With `delay_ms` it listens so long, fails
 *   every request and says 503 in `/health`: an engine that died with only streams in flight is not
 *   noticed until watchdog_loop of vllm/entrypoints/launchers/launcher.py looks, every 5 s.
 * - `drain_silently`: SIGTERM with requests in flight (vLLM 0.32.0, seen): new connections are refused,
 *   those in flight stay open and get no byte and no FIN until the process is killed. It comes from
 *   outside, so it begins when it is set and hits no request of its own: no other field matters.
 * - `exit`: the process ends at once, as the OOM killer or a spot reclaim does it.
 */
export const FAULT_KINDS = [
  'status',
  'reset',
  'hang_headers',
  'hang_body',
  'truncate',
  'content_type',
  'proxy_cut',
  'oom',
  'drain_silently',
  'exit',
] as const;

export type FaultKind = (typeof FAULT_KINDS)[number];

export interface Fault {
  kind: FaultKind;
  status: number;
  /** Seconds, sent as Retry-After. */
  retry_after: number | null;
  /** Share of the matching requests that it hits. */
  rate: number;
  /** How often it hits at most; null is without end. */
  count: number | null;
  /** How many matching requests pass before it. */
  after: number;
  /** Hits only bodies that contain this text. */
  match: string | null;
  /** Hits only this path; without it every inference path, and none of health, models and metrics. */
  path: string | null;
  /** `reset`: before the answer or in the middle of it. */
  at: 'headers' | 'body';
  /** `hang_*`: goes on after this time; null never. `proxy_cut`: its patience. `oom`: time until the process ends and the port closes; null is at once. */
  delay_ms: number | null;
  exit_code: number;
}

/** A fault with what it did so far. */
export interface FaultReport extends Fault {
  seen: number;
  hits: number;
}

export interface FaultPlan {
  set(faults: readonly Fault[]): void;
  report(): FaultReport[];
  /** The first fault that hits this request, if any; counts it. */
  pick(path: string, inference: boolean, body: Buffer): Fault | undefined;
  readonly empty: boolean;
}

const FIELDS = [
  'kind',
  'status',
  'retry_after',
  'rate',
  'count',
  'after',
  'match',
  'path',
  'at',
  'delay_ms',
  'exit_code',
];
const COUNT = { min: 1, max: 1e9, whole: true };
const MILLISECONDS = { min: 0, max: 86_400_000, whole: false };

const USUAL_STATUS: Partial<Record<FaultKind, number>> = { status: 500, proxy_cut: 524 };

function optional<T>(value: unknown, fallback: T, parse: (value: unknown) => T): T {
  return value === undefined || value === null ? fallback : parse(value);
}

function asText(value: unknown, field: string): string {
  if (typeof value !== 'string' || value === '') {
    throw new InvalidSetting(`${field} must be a text, got ${JSON.stringify(value)}`);
  }
  return value;
}

function asKind(value: unknown): FaultKind {
  const kind = FAULT_KINDS.find((known) => known === value);
  if (kind !== undefined) return kind;
  throw new InvalidSetting(
    `kind must be one of ${FAULT_KINDS.join(', ')}, got ${JSON.stringify(value)}`,
  );
}

function asPlace(value: unknown): 'headers' | 'body' {
  if (value === 'headers' || value === 'body') return value;
  throw new InvalidSetting(`at must be headers or body, got ${JSON.stringify(value)}`);
}

function parseFault(input: unknown, index: number): Fault {
  const f = asObject(input, `faults[${index}]`);
  const unknown = Object.keys(f).find((field) => !FIELDS.includes(field));
  if (unknown !== undefined) {
    throw new InvalidSetting(
      `faults[${index}] has an unknown field ${unknown}; known fields: ${FIELDS.join(', ')}`,
    );
  }
  const kind = asKind(f['kind']);
  const n = (field: string, rule: { min: number; max: number; whole: boolean }) => {
    return (value: unknown): number => asNumber(value, field, rule);
  };
  const usualStatus = USUAL_STATUS[kind] ?? 200;
  const status = n('status', { min: 200, max: 599, whole: true });
  const seconds = n('retry_after', { min: 0, max: 86_400, whole: false });
  return {
    kind,
    status: optional(f['status'], usualStatus, status),
    retry_after: optional<number | null>(f['retry_after'], null, seconds),
    rate: optional(f['rate'], 1, n('rate', { min: 0, max: 1, whole: false })),
    count: optional<number | null>(f['count'], null, n('count', COUNT)),
    after: optional(f['after'], 0, n('after', { min: 0, max: 1e9, whole: true })),
    match: optional<string | null>(f['match'], null, (value) => asText(value, 'match')),
    path: optional<string | null>(f['path'], null, (value) => asText(value, 'path')),
    at: optional(f['at'], 'headers', asPlace),
    delay_ms: optional<number | null>(f['delay_ms'], null, n('delay_ms', MILLISECONDS)),
    exit_code: optional(f['exit_code'], 1, n('exit_code', { min: 0, max: 255, whole: true })),
  };
}

/** Reads `{"faults": [...]}`; throws InvalidSetting that names the field. */
export function parseFaults(input: unknown): Fault[] {
  const { faults, ...rest } = asObject(input, 'the body');
  const unknown = Object.keys(rest)[0];
  if (unknown !== undefined) throw new InvalidSetting(`unknown field ${unknown}; only faults`);
  if (!Array.isArray(faults)) throw new InvalidSetting('faults must be a list');
  return faults.map(parseFault);
}

/** No faults yet; `set` starts the draw anew from the seed. */
export function createFaultPlan(seed: number): FaultPlan {
  let random = seededRandom(seed);
  let active: FaultReport[] = [];

  function hits(fault: FaultReport): boolean {
    fault.seen += 1;
    if (fault.seen <= fault.after) return false;
    if (fault.count !== null && fault.hits >= fault.count) return false;
    if (fault.rate < 1 && random() >= fault.rate) return false;
    fault.hits += 1;
    return true;
  }

  function concerns(fault: Fault, path: string, inference: boolean, body: Buffer): boolean {
    if (fault.kind === 'drain_silently') return false;
    if (fault.path === null ? !inference : fault.path !== path) return false;
    return fault.match === null || body.includes(fault.match);
  }

  return {
    set(faults) {
      random = seededRandom(seed);
      active = faults.map((fault) => ({ ...fault, seen: 0, hits: 0 }));
    },
    report: () => active.map((fault) => ({ ...fault })),
    pick(path, inference, body) {
      return active.find((fault) => concerns(fault, path, inference, body) && hits(fault));
    },
    get empty() {
      return active.length === 0;
    },
  };
}
