import { createServer } from 'node:http';
import type { IncomingHttpHeaders, IncomingMessage, Server, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { ACTS } from './control.ts';
import type { Act, CloudControl, RequestEntry } from './control.ts';
import type { ErrorName, Fault, FaultInput, FaultPlan, Operation } from './faults.ts';
import { InvalidControl } from './knobs.ts';

/** One request, read whole. */
export interface Call {
  method: string;
  /** Without the query. */
  path: string;
  query: URLSearchParams;
  headers: IncomingHttpHeaders;
  body: Buffer;
  /** The fault is a terminate that is only said to be done. */
  lost: boolean;
}

export interface Reply {
  status: number;
  headers: Record<string, string>;
  /** Empty for none. */
  payload: string;
  /** Writes on and on instead, until the client goes. */
  stream?: (res: ServerResponse) => void;
}

/** What a provider is to the server. */
export interface CloudApi {
  opOf(method: string, path: string): Operation;
  handle(call: Call): Promise<Reply>;
  /** Its own words for a refusal. */
  error(name: ErrorName, call: Call, retryAfter: number | null): Reply;
  /** How the ledger names who asked. */
  askedBy(call: Call): string;
  /** Answers a request that is none of the API's and says so, before anything reads its body. */
  divert?(req: IncomingMessage, res: ServerResponse): boolean;
}

export function json(status: number, value: unknown, type = 'application/json'): Reply {
  return { status, headers: { 'content-type': type }, payload: JSON.stringify(value) };
}

const GATEWAY_PAGE =
  '<html><head><title>Just a moment...</title></head><body><h1>Checking your browser</h1></body></html>';

async function readBody(req: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of req) chunks.push(chunk as Buffer); // no encoding is set
  return Buffer.concat(chunks);
}

function send(res: ServerResponse, reply: Reply, truncated = false): void {
  if (res.destroyed) return;
  const headers = { ...reply.headers };
  if (reply.stream !== undefined) {
    res.writeHead(reply.status, headers);
    reply.stream(res);
    return;
  }
  if (reply.status !== 204) headers['content-length'] = String(Buffer.byteLength(reply.payload));
  res.writeHead(reply.status, headers);
  if (!truncated) {
    res.end(reply.payload);
    return;
  }
  res.write(reply.payload.slice(0, Math.floor(reply.payload.length / 2)));
  setTimeout(() => res.destroy(), 20);
}

async function controlValue(
  control: CloudControl,
  method: string,
  path: string,
  body: Buffer,
): Promise<unknown> {
  const parsed: unknown = body.length === 0 ? {} : JSON.parse(body.toString());
  const record = parsed as Record<string, unknown>; // each control parses what it takes
  const machine = /^\/_sim\/machines\/([^/]+)\/([a-z_]+)$/.exec(path);
  if (method === 'POST' && machine !== null) {
    const act = ACTS.find((name) => name === machine[2]);
    if (act === undefined)
      throw new InvalidControl(`no act ${machine[2] ?? ''}; there is ${ACTS.join(', ')}`);
    return (await control.act(machine[1] ?? '', act satisfies Act, record)) ?? {};
  }
  const routes: Record<string, () => Promise<unknown>> = {
    'GET /_sim/knobs': async () => control.knobs(),
    'POST /_sim/knobs': async () => control.setKnobs(record),
    'GET /_sim/faults': async () => control.faults(),
    'POST /_sim/faults': async () => control.setFaults(parsed as FaultInput[]),
    'GET /_sim/inventory': async () => control.inventory(),
    'GET /_sim/ledger': async () => control.ledger(),
    'GET /_sim/requests': async () => control.requests(),
    'GET /_sim/asked': async () => control.asked(),
    'POST /_sim/reset': async () => control.reset(),
  };
  const route = routes[`${method} ${path}`];
  if (route === undefined) {
    const known = [...Object.keys(routes), 'POST /_sim/machines/{id}/{act}'].join(', ');
    throw new InvalidControl(`no ${method} ${path}; there is ${known}`);
  }
  return (await route()) ?? {};
}

async function controlReply(control: CloudControl, call: Call): Promise<Reply> {
  try {
    return json(200, await controlValue(control, call.method, call.path, call.body));
  } catch (error) {
    if (error instanceof InvalidControl || error instanceof SyntaxError) {
      return json(400, { error: error.message });
    }
    throw error;
  }
}

export interface CloudServerOptions {
  port: number;
  host: string;
  api: CloudApi;
  control: CloudControl;
  faults: FaultPlan;
  requests: RequestEntry[];
}

export interface CloudServer {
  url: string;
  port: number;
  close(): Promise<void>;
}

type Outcome = { reply: Reply; truncated?: boolean } | 'cut' | 'silence';

/** Serves a provider's API and, under `/_sim`, its control; faults strike between the two. */
export async function startCloudServer(options: CloudServerOptions): Promise<CloudServer> {
  const { api, control, faults, requests } = options;
  const remembered = new Map<string, Reply>();

  /** Before the call is carried out; undefined where nothing keeps it from that. */
  async function before(fault: Fault, call: Call): Promise<Outcome | undefined> {
    switch (fault.kind) {
      case 'error':
        return { reply: api.error(fault.error, call, fault.retry_after) };
      case 'hang':
        if (fault.delay_ms === null) return 'silence';
        await sleep(fault.delay_ms);
        return 'cut';
      case 'reset':
        return 'cut';
      case 'repeat': {
        const old = remembered.get(`${call.method} ${call.path}`);
        return old === undefined ? undefined : { reply: old };
      }
      case 'error_after':
      case 'hang_after':
      case 'reset_after':
      case 'slow':
      case 'truncate':
      case 'html':
      case 'lost':
        return undefined;
    }
  }

  async function after(fault: Fault, call: Call, reply: Reply): Promise<Outcome> {
    switch (fault.kind) {
      case 'error_after':
        return { reply: api.error(fault.error, call, fault.retry_after) };
      case 'hang_after':
        if (fault.delay_ms === null) return 'silence';
        await sleep(fault.delay_ms);
        return 'cut';
      case 'reset_after':
        return 'cut';
      case 'slow':
        await sleep(fault.delay_ms ?? 1000);
        return { reply };
      case 'truncate':
        return { reply, truncated: true };
      case 'html':
        return {
          reply: { status: 200, headers: { 'content-type': 'text/html' }, payload: GATEWAY_PAGE },
        };
      case 'error':
      case 'hang':
      case 'reset':
      case 'repeat':
      case 'lost':
        return { reply };
    }
  }

  async function outcomeOf(call: Call, fault: Fault | undefined): Promise<Outcome> {
    const early = fault === undefined ? undefined : await before(fault, call);
    if (early !== undefined) return early;
    const reply = await api.handle({ ...call, lost: fault?.kind === 'lost' });
    if (call.method === 'GET') remembered.set(`GET ${call.path}`, reply);
    return fault === undefined ? { reply } : after(fault, call, reply);
  }

  async function handle(req: IncomingMessage, res: ServerResponse): Promise<void> {
    if (api.divert?.(req, res) === true) return;
    const url = new URL(req.url ?? '/', 'http://simulator');
    const call: Call = {
      method: req.method ?? 'GET',
      path: url.pathname,
      query: url.searchParams,
      headers: req.headers,
      body: await readBody(req),
      lost: false,
    };
    if (call.path.startsWith('/_sim')) {
      send(res, await controlReply(control, call));
      return;
    }
    const op = api.opOf(call.method, call.path);
    const fault = faults.pick(op, `${call.path} ${call.body.toString()}`);
    const entry: RequestEntry = {
      at: Date.now(),
      method: call.method,
      path: call.path,
      op,
      status: null,
      fault: fault?.kind ?? null,
      asked_by: api.askedBy(call),
    };
    requests.push(entry);
    const outcome = await outcomeOf(call, fault);
    if (outcome === 'silence') return;
    if (outcome === 'cut') {
      req.socket.resetAndDestroy();
      return;
    }
    entry.status = outcome.reply.status;
    send(res, outcome.reply, outcome.truncated);
  }

  const server: Server = createServer({ keepAliveTimeout: 5000, requestTimeout: 0 }, (req, res) => {
    handle(req, res).catch((error: unknown) => {
      // A client that went away is no matter; anything else is a fault of the simulator.
      if (!req.destroyed && !res.headersSent) {
        console.error(error);
        send(res, json(500, { simulator: String(error) }));
      }
    });
  });
  const { promise, resolve, reject } = Promise.withResolvers<undefined>();
  server.once('error', reject).listen(options.port, options.host, () => resolve(undefined));
  await promise;
  const { port } = server.address() as AddressInfo; // a TCP server has no other kind of address
  return {
    url: `http://${options.host}:${port}`,
    port,
    async close() {
      const closed = Promise.withResolvers<undefined>();
      server.close(() => closed.resolve(undefined));
      server.closeAllConnections();
      await closed.promise;
    },
  };
}
