import { createServer } from 'node:http';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { adminReply } from './admin.ts';
import { httpError } from './api-error.ts';
import { sha256 } from './digest.ts';
import { createEngine } from './engine.ts';
import { JSON_TYPE, readBody, send, sendError, settle } from './exchange.ts';
import type { Exchange } from './exchange.ts';
import { createFaultPlan } from './faults.ts';
import type { Fault, FaultReport } from './faults.ts';
import { INFERENCE, infer, strike } from './inference.ts';
import { infoReply } from './info.ts';
import { createMetrics } from './metrics.ts';
import { changeProfile, loadProfile } from './profile.ts';
import { createRequestLog } from './request-log.ts';
import type { LogEntry } from './request-log.ts';
import { applyConfig, applyFaults, configOf, countsOf } from './state.ts';
import type { SimulatorConfig, SimulatorCounts, SimulatorState } from './state.ts';
import type { TaskHandler } from './task.ts';

/** How to start one; the flags of ../vllm.ts say the same. */
export interface VllmOptions {
  /** 0, the default, takes a free one. */
  port?: number;
  host?: string;
  models?: readonly string[];
  /** Answers to every model name, not only to `models`. */
  anyModel?: boolean;
  /** Name of a file in ../profiles, or a path. Default `small`. */
  profile?: string;
  /** Fields that differ from the profile, and `log` and `keep_bodies`: what POST /admin/config takes. */
  config?: Record<string, unknown>;
  /** Of the draw of faults. */
  seed?: number;
  /** Appends the request log to this file. */
  logFile?: string;
  /** vLLM listens only once its model is loaded, so the port opens late … */
  startDelayMs?: number;
  /** … or opens at once and answers 503 until then, as a gateway in front of it. */
  startAnswers503?: boolean;
  /** How long an idle connection stays open: 5 s, VLLM_HTTP_TIMEOUT_KEEP_ALIVE. */
  keepAliveTimeoutMs?: number;
  /** Needed under /v1 and /v2, as with `--api-key`; other paths stay open as they do in vLLM. */
  apiKey?: string;
  /** `--enable-request-id-headers` */
  requestIdHeaders?: boolean;
  /** Old metric name of the KV usage. */
  oldMetricNames?: boolean;
  /** What a fault that ends the process calls; without it the server only closes, abruptly. */
  onExit?: (code: number) => void;
}

/** A fault as POST /admin/faults takes it. */
export type FaultInput = Partial<Fault> & Pick<Fault, 'kind'>;

/** A simulated engine, in this process or in another. */
export interface VllmSimulator extends AsyncDisposable {
  url: string;
  port: number;
  counts(): Promise<SimulatorCounts>;
  requests(options?: { bodies?: boolean }): Promise<LogEntry[]>;
  setFaults(faults: readonly FaultInput[]): Promise<void>;
  faults(): Promise<FaultReport[]>;
  setConfig(changes: Record<string, unknown>): Promise<SimulatorConfig>;
  /** Cuts all connections and stops. */
  close(): Promise<void>;
}

/** The simulator of this process, which can also be stopped politely. */
export interface LocalVllm extends VllmSimulator {
  /** As uvicorn at SIGTERM: takes no more connections, answers what it has, at most for `graceMs`. */
  stop(graceMs: number): Promise<void>;
}

function splitUrl(url: string): [path: string, query: string] {
  const at = url.indexOf('?');
  return at < 0 ? [url, ''] : [url.slice(0, at), url.slice(at + 1)];
}

function isAllowed({ apiKey }: SimulatorState, { req, path }: Exchange): boolean {
  if (apiKey === undefined || !/^\/v[12]\//.test(path)) return true;
  return req.headers.authorization === `Bearer ${apiKey}`;
}

function answer(state: SimulatorState, x: Exchange, handler: TaskHandler | undefined): void {
  if (state.silent) {
    x.res.once('close', () => settle(x, null, 'aborted', true));
  } else if (state.starting) {
    sendError(x, httpError(503));
  } else if (!isAllowed(state, x)) {
    // serve/middleware/authenticate.py: its own shape, not the error envelope
    send(x, { status: 401, type: JSON_TYPE, payload: '{"error":"Unauthorized"}' });
  } else if (handler !== undefined) {
    infer(state, x, handler);
  } else {
    send(x, infoReply(state, x.req.method ?? 'GET', x.path, x.body));
  }
}

function handle(state: SimulatorState, req: IncomingMessage, res: ServerResponse): void {
  const [path, query] = splitUrl(req.url ?? '/');
  const handler = req.method === 'POST' ? INFERENCE.get(path) : undefined;
  const log = handler === undefined ? undefined : state.log;
  log?.begin();

  function exchange(body: Buffer, digest: string): Exchange {
    const arrival = { path, sha256: digest, body, headers: req.headers };
    const entry = log?.arrived(arrival);
    return { req, res, path, body, sha256: digest, log, entry, fault: undefined, ended: false };
  }

  function whole(body: Buffer): void {
    const x = exchange(body, log === undefined ? '' : sha256(body));
    if (path.startsWith('/admin/')) {
      send(x, adminReply(state, req.method ?? 'GET', path, query, body));
      return;
    }
    if (!state.faults.empty) {
      const fault = state.faults.pick(path, handler !== undefined, body);
      const go = (): void => answer(state, x, handler);
      if (fault !== undefined && strike(state, x, fault, go)) return;
    }
    answer(state, x, handler);
  }

  readBody(req, whole, () => settle(exchange(Buffer.alloc(0), ''), null, 'aborted', true));
}

/** Time limits are the client's affair here; only idle connections end, after exactly the given time. */
function createHttpServer(state: SimulatorState, keepAliveTimeout: number): Server {
  const server = createServer({
    keepAliveTimeout,
    keepAliveTimeoutBuffer: 0,
    requestTimeout: 0,
    headersTimeout: 0,
    noDelay: true,
  });
  server.on('request', (req, res) => handle(state, req, res));
  server.on('connection', (socket) => {
    state.connections.opened += 1;
    state.connections.open += 1;
    socket.on('close', () => {
      state.connections.open -= 1;
    });
  });
  return server;
}

async function listen(server: Server, port: number, host: string): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<undefined>();
  server.once('error', reject);
  server.listen(port, host, 1024, () => resolve(undefined));
  await promise;
  server.off('error', reject);
  return (server.address() as AddressInfo).port; // a TCP server has no other kind of address
}

async function createState(options: VllmOptions): Promise<SimulatorState> {
  const { log: level, keep_bodies: keep, ...changes } = options.config ?? {};
  const profile = changeProfile(await loadProfile(options.profile ?? 'small'), changes);
  const startedAt = Date.now();
  const models = options.models ?? ['sim-model'];
  const metrics = createMetrics({
    model: models[0] ?? '',
    startedAt: startedAt / 1000,
    oldNames: options.oldMetricNames ?? false,
  });
  // A bench of tens of thousands of requests a second has no room for an entry each.
  const entries = profile.modelled || options.logFile !== undefined;
  const state: SimulatorState = {
    models,
    anyModel: options.anyModel ?? false,
    apiKey: options.apiKey,
    requestIdHeaders: options.requestIdHeaders ?? false,
    profile,
    engine: createEngine(profile, metrics),
    metrics,
    log: createRequestLog(entries ? 'full' : 'counts', options.logFile),
    faults: createFaultPlan(options.seed ?? 1),
    starting: false,
    startedAt,
    connections: { opened: 0, open: 0 },
    silent: false,
    stopListening: () => {},
    exit: () => {},
  };
  applyConfig(state, {
    ...(level === undefined ? {} : { log: level }),
    ...(keep === undefined ? {} : { keep_bodies: keep }),
  });
  return state;
}

async function sleep(ms: number): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<undefined>();
  setTimeout(() => resolve(undefined), ms);
  await promise;
}

/**
 * Starts a simulated vLLM server in this process and resolves once it listens.
 * Throws InvalidSetting for a bad profile or setting, and the system's error if the port is taken.
 */
export async function startVllm(options: VllmOptions = {}): Promise<LocalVllm> {
  const state = await createState(options);
  const server = createHttpServer(state, options.keepAliveTimeoutMs ?? 5000);
  const host = options.host ?? '127.0.0.1';
  const delay = options.startDelayMs ?? 0;
  if (delay > 0 && options.startAnswers503 === true) {
    state.starting = true;
    setTimeout(() => {
      state.starting = false;
    }, delay).unref();
  } else if (delay > 0) {
    await sleep(delay);
  }
  const port = await listen(server, options.port ?? 0, host);
  let closed: Promise<void> | undefined;

  async function closeAll(graceMs: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<undefined>();
    server.close(() => resolve(undefined));
    // A connection that is busy now is idle after its answer, and uvicorn closes it then.
    const idle = setInterval(() => server.closeIdleConnections(), 20);
    const timer = setTimeout(() => server.closeAllConnections(), graceMs);
    if (graceMs === 0) server.closeAllConnections();
    await promise;
    clearTimeout(timer);
    clearInterval(idle);
    state.engine.die();
    state.log.close();
  }

  async function stop(graceMs: number): Promise<void> {
    closed ??= closeAll(graceMs);
    await closed;
  }

  state.stopListening = () => void server.close();
  state.exit = options.onExit ?? (() => void stop(0));
  return {
    url: `http://${host}:${port}`,
    port,
    counts: async () => countsOf(state),
    requests: async ({ bodies = false } = {}) => state.log.entries(bodies),
    setFaults: async (faults) => applyFaults(state, { faults }),
    faults: async () => state.faults.report(),
    async setConfig(changes) {
      applyConfig(state, changes);
      return configOf(state);
    },
    stop,
    close: async () => stop(0),
    [Symbol.asyncDispose]: async () => stop(0),
  };
}
