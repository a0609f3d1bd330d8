import type { ContentfulStatusCode } from 'hono/utils/http-status';
import { httpStatus, SluiceError, transient } from '../domain/errors.ts';
import type { ApiContext } from './routes.ts';

/** OpenAI's error envelope; every answer that is no success has this shape. */
interface ErrorBody {
  error: { message: string; type: string; param: string | null; code: string | null };
}

/** A client that hung up reads no answer; the status is nginx's, for log and metrics. */
export const CLIENT_CLOSED = 499;

/** Answers an error in OpenAI's envelope; what is not ours stays inside and is logged in full. */
export function answerError(error: unknown, c: ApiContext): Response {
  const known = storeTrouble(error) ?? error;
  const status = httpStatus(known);
  if (status >= 500) c.var.log.error({ err: error }, 'request failed');
  else if (isRefusalOf(error)) c.var.log.warn({ err: error }, 'request refused for another error');
  if (status === 503 || isTimed(known)) c.header('Retry-After', retryAfter(known));
  // The status comes from our own error table, where every value has a body.
  return c.json(errorBody(known, status, c.var.requestId), status as ContentfulStatusCode);
}

/** What lies behind a refusal is in no answer. */
function isRefusalOf(error: unknown): boolean {
  return error instanceof SluiceError && error.cause instanceof SluiceError;
}

function isTimed(error: unknown): boolean {
  return error instanceof SluiceError && error.retryAfterMs !== null;
}

/** The envelope of an error that arose outside of any route. */
export function errorText(error: SluiceError): string {
  return JSON.stringify(errorBody(error, error.status, ''));
}

function errorBody(error: unknown, status: number, requestId: string): ErrorBody {
  const type = errorType(status);
  if (!(error instanceof SluiceError)) {
    const message = `Internal error. The server's log tells more under request id ${requestId}.`;
    return { error: { message, type, param: null, code: 'internal_error' } };
  }
  return { error: { message: error.message, type, param: error.param, code: error.code } };
}

function errorType(status: number): string {
  if (status >= 500) return 'server_error';
  if (status === 404) return 'not_found_error';
  return status === 429 ? 'rate_limit_error' : 'invalid_request_error';
}

/** Seconds, at least one: a client that comes back at once meets the same trouble. */
function retryAfter(error: unknown): string {
  const ms = error instanceof SluiceError ? (error.retryAfterMs ?? 0) : 0;
  return String(Math.max(1, Math.ceil(ms / 1_000)));
}

/** Redis answers these while it starts, fails over, or has no room; they pass or are mended outside. */
const REDIS_BUSY = /^(?:LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|OOM|MISCONF|NOREPLICAS)\b/;
/** ioredis gives these no class or code of their own. */
const REDIS_GONE =
  /^(?:Connection is closed|Command timed out|(?:Stream|Cluster) isn't (?:writeable|ready))/;
const CONNECTION_CODES = new Set(['ECONNREFUSED', 'ECONNRESET', 'ENOTFOUND', 'EPIPE']);

/** What ioredis throws when Redis cannot be asked, as an error that says so; null for any other. */
function storeTrouble(error: unknown): SluiceError | null {
  if (!(error instanceof Error) || error instanceof SluiceError) return null;
  if (REDIS_BUSY.test(error.message)) {
    return transient('store.not_ready', `The store (Redis) is not ready: ${error.message}`, {
      cause: error,
    });
  }
  const code = 'code' in error ? String(error.code) : '';
  const unreachable =
    error.name === 'MaxRetriesPerRequestError' ||
    REDIS_GONE.test(error.message) ||
    CONNECTION_CODES.has(code);
  if (!unreachable) return null;
  return transient('store.unreachable', 'The store (Redis) is not reachable. Try again later.', {
    cause: error,
  });
}
