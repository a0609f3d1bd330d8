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
  watch(path: string, silenceMs: number, signal: AbortSignal): AsyncGenerator<unknown>;
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
  /** For so long a connection is waited for at most, ms. */
  connectMs?: number;
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

/** Calls of one cluster; credentials are looked for at the first one, and again after that failed. */
export function createKubernetesApi(open: () => Promise<ClusterAccess>): KubernetesApi {
  let opening: Promise<{ access: ClusterAccess; pool: Pool }> | null = null;
  const watches = new Set<Client>();

  async function connect() {
    const access = await open();
    const pool = new Pool(access.server, {
      connections: CONNECTIONS,
      connect: { ...access.tls, timeout: CONNECT_MS },
      bodyTimeout: ANSWER_MS,
      headersTimeout: ANSWER_MS,
    });
    return { access, pool };
  }

  async function opened() {
    opening ??= connect();
    try {
      return await opening;
    } catch (error) {
      opening = null;
      throw error;
    }
  }

  async function headersOf(access: ClusterAccess, call: Partial<ApiCall>) {
    const authorization = await access.authorization();
    const kind = call.method === 'PATCH' ? `${call.patch ?? 'merge'}-` : '';
    const type =
      kind === ''
        ? 'application/json'
        : `application/${kind === 'merge-' ? 'merge-patch' : 'strategic-merge-patch'}+json`;
    return {
      accept: 'application/json',
      'user-agent': 'sluice',
      ...(authorization === null ? {} : { authorization }),
      ...(call.body === undefined ? {} : { 'content-type': type }),
    };
  }

  async function send(call: ApiCall): Promise<{ status: number; text: string; what: string }> {
    const { access, pool } = await opened();
    const what = `${call.method} ${call.path.replace(/\?.*$/s, '')}`;
    const headers = await headersOf(access, call);
    try {
      const { statusCode, body } = await pool.request({
        method: call.method,
        path: call.path,
        headers,
        body: call.body === undefined ? null : JSON.stringify(call.body),
        signal: AbortSignal.timeout(ANSWER_MS),
      });
      return { status: statusCode, text: await body.text(), what };
    } catch (error) {
      throw lost(access, what, error);
    }
  }

  return {
    access: async () => (await opened()).access,
    async ask(call) {
      const { status, text, what } = await send(call);
      if (status >= 300) throw refusal(what, status, text);
      const parsed = v.safeParse(v.pipe(v.string(), v.parseJson()), text);
      if (parsed.success) return parsed.output;
      throw transient(
        'kubernetes.unclear',
        `Kubernetes answers ${what} with something that is no JSON.`,
      );
    },
    async text(path) {
      const { status, text, what } = await send({ method: 'GET', path });
      if (status >= 300) throw refusal(what, status, text);
      return text.slice(-MOST_TEXT_BYTES);
    },
    async *watch(path, silenceMs, signal) {
      const { access } = await opened();
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
    },
    async close() {
      const pool = opening === null ? null : await opening.catch(() => null);
      await Promise.all([...watches].map(async (client) => client.destroy()));
      await pool?.pool.destroy();
    },
  };
}

async function* jsonLines(body: Dispatcher.ResponseData['body']): AsyncGenerator<unknown> {
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

/** What an answer that is none means; its own message is clear, and names verb and resource of what is forbidden. */
export function refusal(what: string, status: number, text: string): SluiceError {
  const parsed = v.safeParse(statusSchema, text);
  const said = parsed.success && parsed.output.message !== '' ? parsed.output.message : '';
  const message = `Kubernetes answers ${what} with ${status}${said === '' ? '' : `: ${said}`}`;
  if (status === 401) {
    return permanent(
      'kubernetes.unauthorized',
      `Kubernetes does not know these credentials (401): renew those of KUBECONFIG, or of the pod's service account.`,
    );
  }
  if (status === 403) {
    const isQuota = /exceeded quota/.test(said);
    const code = isQuota ? 'kubernetes.quota' : 'kubernetes.forbidden';
    const mend = isQuota ? '' : ': give our account that right by a Role or ClusterRole';
    return permanent(code, `${said === '' ? message : said}${mend}`);
  }
  if (status === 404) return notFound('kubernetes.absent', said === '' ? message : said);
  if (status === 409) return new SluiceError('Conflict', 'kubernetes.conflict', message);
  if (status === 410) return transient('kubernetes.expired', message);
  const after = parsed.success ? parsed.output.details?.retryAfterSeconds : undefined;
  const retry = typeof after === 'number' ? { retryAfterMs: after * 1_000 } : {};
  if (status === 429) return transient('kubernetes.busy', message, retry);
  if (status >= 500 || status === 408) return transient('kubernetes.unclear', message, retry);
  return invalidInput('kubernetes.invalid', message);
}
