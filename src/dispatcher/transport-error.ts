import { errorCode, SluiceError } from '../domain/errors.ts';
import { StreamCutError, TooLongError } from './exchange.ts';
import { connectTimedOut, TimedOutError } from './timeouts.ts';
import type { Timeouts } from './timeouts.ts';

/** No answer came: the connection broke, the engine took too long, or the answer was cut. */
export class TransportError extends Error {
  readonly code: 'engine_unreachable' | 'engine_timeout' | 'response_too_large';

  constructor(code: TransportError['code'], message: string, cause?: unknown) {
    super(message, { cause });
    this.name = 'TransportError';
    this.code = code;
  }
}

/** The connection broke, and not because we let go of it. */
export function isBroken(error: unknown): boolean {
  return !(error instanceof TooLongError || error instanceof TimedOutError);
}

const NEVER_SENT = new Set([
  'ECONNREFUSED',
  'ENOTFOUND',
  'EHOSTUNREACH',
  'UND_ERR_CONNECT_TIMEOUT',
]);

/** There was not even a connection: whatever was asked, nobody has heard it. */
export function wasNeverSent({ cause }: TransportError): boolean {
  // Why there is no way to a machine is an error of ours; what breaks later has a system's code.
  return cause instanceof SluiceError || NEVER_SENT.has(errorCode(cause));
}

/**
 * The way to the engine broke, and not the engine: a tunnel's connection, which all that was in flight shared. That says
 * nothing about a line.
 */
export function wasWayCut({ cause }: TransportError): boolean {
  return cause instanceof Error && cause.cause instanceof SluiceError;
}

/** An engine that answers is not broken, however long its answer is or takes. */
export function isEnginesFault(error: unknown): boolean {
  return isBroken(error) || (error instanceof TimedOutError && error.isSilence);
}

/** The line's owner is told what happened, not where: addresses of machines are no business of the output file's. */
export function transportError(error: unknown, { connect }: Timeouts): TransportError {
  if (error instanceof TooLongError) {
    return new TransportError('response_too_large', error.message, error);
  }
  if (error instanceof TimedOutError) {
    return new TransportError('engine_timeout', error.message, error);
  }
  if (error instanceof StreamCutError) {
    return new TransportError('engine_unreachable', error.message, error);
  }
  const code = errorCode(error) || (error instanceof Error ? error.name : 'Error');
  if (code === 'UND_ERR_CONNECT_TIMEOUT') {
    return new TransportError('engine_timeout', connectTimedOut(connect), error);
  }
  const message = `The connection to the engine broke (${code}).`;
  return new TransportError('engine_unreachable', message, error);
}
