import { Client, Pool } from 'undici';
import type { Dispatcher } from 'undici';
import * as v from 'valibot';
import {
  describeError,
  errorCode,
  invalidInput,
  notFound,
  permanent,
  SluiceError,
  transient,
} from '../../domain/errors.ts';
import type { ClusterAccess } from './access.ts';

/**
 * What went wrong with a call is told by its code:
 * - `kubernetes.unsent` (Transient): there was no connection, so that nothing was done
 * - `kubernetes.unclear` (Transient): no whole answer, or 5xx: what was asked may be done or not
 * - `kubernetes.busy` (Transient): 429, nothing was done
 * - `kubernetes.expired` (Transient): 410, what was asked from is too old
 * - `kubernetes.absent` (NotFound), `kubernetes.conflict` (Conflict), `kubernetes.invalid` (InvalidInput)
 * - `kubernetes.unauthorized`, `kubernetes.forbidden`, `kubernetes.credentials` (Permanent)
 */
export interface KubernetesApi {
  access(): Promise<ClusterAccess>;
  /** Resolves to the answer's JSON. */
  ask(call: ApiCall): Promise<unknown>;
  /** The answer as text, such as a log. */
  text(path: string): Promise<string>;
  /** What a watch tells, line by line, until the server ends it; rejects where it breaks, or is silent for too long. */
  watch(path: string, silenceMs: number, signal: AbortSignal): AsyncGenerator;
  /** Cuts what is in flight. May be called twice. */
  close(): Promise<void>;
}

export interface ApiCall {
  method: 'GET' | 'POST' | 'PATCH' | 'DELETE';
  /** With its query. */
  path: string;
  body?: object;
  /** Of a PATCH. */
  patch?: 'merge' | 'strategic';
}

const ANSWER_MS = 30_000;
const CONNECT_MS = 5_000;
const MOST_TEXT_BYTES = 1024 * 1024;
const MOST_LINE_BYTES = 16 * 1024 * 1024;
const CONNECTIONS = 8;

const statusSchema = v.pipe(
  v.string(),
  v.parseJson(),
  v.object({
    kind: v.literal('Status'),
    message: v.nullish(v.string(), ''),
    reason: v.nullish(v.string(), ''),
    details: v.nullish(
      v.object({
        kind: v.nullish(v.string(), ''),
        name: v.nullish(v.string(), ''),
        retryAfterSeconds: v.nullish(v.number()),
      }),
    ),
  }),
);

interface Opened {
  access: ClusterAccess;
  pool: Pool;
}

/** Calls of one cluster; credentials are looked for at the first one, and again after that failed. */
export function createKubernetesApi(open: () => Promise<ClusterAccess>): KubernetesApi {
  let opening: Promise<Opened> | null = null;
  const watches = new Set<Client>();

  async function opened(): Promise<Opened> {
    opening ??= connect(open);
    try {
      return await opening;
    } catch (error) {
      opening = null;
      throw error;
    }
  }

  return {
    access: async () => (await opened()).access,
    async ask(call) {
      const { text, what } = await send(await opened(), call);
      const parsed = v.safeParse(v.pipe(v.string(), v.parseJson()), text);
      if (parsed.success) return parsed.output;
      const message = `Kubernetes answers ${what} with something that is no JSON.`;
      throw transient('kubernetes.unclear', message);
    },
    async text(path) {
      const { text } = await send(await opened(), { method: 'GET', path });
      return text.slice(-MOST_TEXT_BYTES);
    },
    async *watch(path, silenceMs, signal) {
      const { access } = await opened();
      yield* watch(access, { path, silenceMs, watches }, signal);
    },
    async close() {
      const found = await opening?.catch(() => null);
      await Promise.all([...watches].map(async (client) => client.destroy()));
      await found?.pool.destroy();
    },
  };
}

async function connect(open: () => Promise<ClusterAccess>): Promise<Opened> {
  const access = await open();
  const pool = new Pool(access.server, {
    connections: CONNECTIONS,
    connect: { ...access.tls, timeout: CONNECT_MS },
    bodyTimeout: ANSWER_MS,
    headersTimeout: ANSWER_MS,
  });
  return { access, pool };
}

const PATCHES = {
  merge: 'application/merge-patch+json',
  strategic: 'application/strategic-merge-patch+json',
} as const;

async function headersOf(access: ClusterAccess, call: Partial<ApiCall>) {
  const authorization = await access.authorization();
  const type = call.method === 'PATCH' ? PATCHES[call.patch ?? 'merge'] : 'application/json';
  return {
    accept: 'application/json',
    'user-agent': 'sluice',
    ...(authorization === null ? {} : { authorization }),
    ...(call.body === undefined ? {} : { 'content-type': type }),
  };
}

/** Resolves to an answer that is none of refusal. */
async function send(
  { access, pool }: Opened,
  call: ApiCall,
): Promise<{ text: string; what: string }> {
  const { method, path, body } = call;
  const what = `${method} ${path.replace(/\?.*$/s, '')}`;
  const headers = await headersOf(access, call);
  let status: number;
  let text: string;
  try {
    const answer = await pool.request({
      method,
      path,
      headers,
      body: body === undefined ? null : JSON.stringify(body),
      signal: AbortSignal.timeout(ANSWER_MS),
    });
    status = answer.statusCode;
    text = await answer.body.text();
  } catch (error) {
    throw lost(access, what, error);
  }
  if (status >= 300) throw refusal(what, status, text);
  return { text, what };
}

async function* watch(
  access: ClusterAccess,
  { path, silenceMs, watches }: { path: string; silenceMs: number; watches: Set<Client> },
  signal: AbortSignal,
): AsyncGenerator {
  const what = `WATCH ${path.replace(/\?.*$/s, '')}`;
  // A connection of its own: it is held for minutes.
  const client = new Client(access.server, {
    connect: { ...access.tls, timeout: CONNECT_MS },
    headersTimeout: ANSWER_MS,
    bodyTimeout: silenceMs,
  });
  watches.add(client);
  try {
    const headers = await headersOf(access, {});
    const answer = await client.request({ method: 'GET', path, headers, signal });
    if (answer.statusCode >= 300) {
      throw refusal(what, answer.statusCode, await answer.body.text());
    }
    yield* jsonLines(answer.body);
  } catch (error) {
    signal.throwIfAborted();
    throw error instanceof SluiceError ? error : lost(access, what, error);
  } finally {
    watches.delete(client);
    await client.destroy();
  }
}

async function* jsonLines(body: Dispatcher.ResponseData['body']): AsyncGenerator {
  let rest = '';
  for await (const chunk of body.setEncoding('utf8')) {
    rest += String(chunk);
    if (rest.length > MOST_LINE_BYTES) throw new Error('an event of the watch is too large');
    const lines = rest.split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) if (line.trim() !== '') yield JSON.parse(line) as unknown;
  }
}

/** Nothing was sent, so nothing was done. */
const UNSENT = new Set([
  'ECONNREFUSED',
  'ENOTFOUND',
  'EAI_AGAIN',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'UND_ERR_CONNECT_TIMEOUT',
]);
/** Nobody talks to a server that does not prove itself. */
const TLS = /^(?:CERT_|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO_|ERR_TLS_|ERR_SSL_)/;

function lost(access: ClusterAccess, what: string, cause: unknown): SluiceError {
  const code = errorCode(cause);
  if (TLS.test(code)) {
    const message = `The API server ${access.server} does not prove itself by the certificate authority of ${access.source} (${code}).`;
    return permanent('kubernetes.credentials', message, { cause });
  }
  const isUnsent = UNSENT.has(code);
  return transient(
    isUnsent ? 'kubernetes.unsent' : 'kubernetes.unclear',
    isUnsent
      ? `The API server of Kubernetes at ${access.server} cannot be reached: ${describeError(cause)}`
      : `The API server of Kubernetes gives no whole answer to ${what}: ${describeError(cause)}`,
    { cause },
  );
}

interface Said {
  /** The server's own words, which name verb and resource of what is forbidden. */
  message: string;
  retry: { retryAfterMs?: number };
}

function readStatus(text: string): Said {
  const parsed = v.safeParse(statusSchema, text);
  if (!parsed.success) return { message: '', retry: {} };
  const { message, details } = parsed.output;
  const after = details?.retryAfterSeconds;
  return { message, retry: typeof after === 'number' ? { retryAfterMs: after * 1_000 } : {} };
}

/** What an answer that is none means. */
function refusal(what: string, status: number, text: string): SluiceError {
  const { message: said, retry } = readStatus(text);
  const told = said === '' ? '' : `: ${said}`;
  const message = `Kubernetes answers ${what} with ${status}${told}`;
  if (status === 401) return permanent('kubernetes.unauthorized', UNAUTHORIZED);
  if (status === 403) return forbidden(said || message);
  if (status === 404) return notFound('kubernetes.absent', said || message);
  if (status === 409) return new SluiceError('Conflict', 'kubernetes.conflict', message);
  const passing = status >= 500 ? 'kubernetes.unclear' : PASSING[status];
  if (passing !== undefined) return transient(passing, message, retry);
  return invalidInput('kubernetes.invalid', message);
}

const UNAUTHORIZED =
  "Kubernetes does not know these credentials (401): renew those of KUBECONFIG, or of the pod's service account.";
const PASSING: Readonly<Record<number, string>> = {
  408: 'kubernetes.unclear',
  410: 'kubernetes.expired',
  429: 'kubernetes.busy',
};

function forbidden(said: string): SluiceError {
  if (/exceeded quota/.test(said)) return permanent('kubernetes.quota', said);
  const mend = 'give our account that right by a Role or ClusterRole';
  return permanent('kubernetes.forbidden', `${said}: ${mend}`);
}
