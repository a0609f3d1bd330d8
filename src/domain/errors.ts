/**
 * Errors are classed by what the caller does next, not by where they arose:
 * - `InvalidInput`: tell the user, never retry
 * - `NotFound`: what was named does not exist
 * - `Conflict`: somebody else was faster; stop quietly and read again
 * - `NoCapacity`: this offer has nothing left; try the next one
 * - `Transient`: try the same again later
 * - `Permanent`: trying again cannot help; fail the job
 */
export const ERROR_KINDS = [
  'InvalidInput',
  'NotFound',
  'Conflict',
  'NoCapacity',
  'Transient',
  'Permanent',
] as const;
export type ErrorKind = (typeof ERROR_KINDS)[number];

export interface ErrorDetails {
  /** Request field at fault, as OpenAI's `error.param`. */
  param?: string;
  /** HTTP status where the kind's own is too coarse (413 for a body that is too large). */
  status?: number;
  retryAfterMs?: number;
  cause?: unknown;
}

/**
 * An error that says what to do about it. `code` is stable: dotted inside (`store.damaged_record`), in OpenAI's style
 * where its users see it. `message` is for people.
 */
export class SluiceError extends Error {
  readonly kind: ErrorKind;
  readonly code: string;
  readonly param: string | null;
  readonly status: number;
  readonly retryAfterMs: number | null;

  constructor(kind: ErrorKind, code: string, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = kind;
    this.kind = kind;
    this.code = code;
    this.param = details.param ?? null;
    this.status = details.status ?? HTTP_STATUS[kind];
    this.retryAfterMs = details.retryAfterMs ?? null;
  }
}

/** 400, not 409, for what the caller asked wrongly: OpenAI's clients retry a 409. */
const HTTP_STATUS = {
  InvalidInput: 400,
  NotFound: 404,
  Conflict: 409,
  NoCapacity: 429,
  Transient: 503,
  Permanent: 500,
} as const satisfies Record<ErrorKind, number>;

export type QueueAction = 'fail' | 'stop' | 'retry';

const QUEUE_ACTION = {
  InvalidInput: 'fail',
  NotFound: 'stop',
  Conflict: 'stop',
  NoCapacity: 'retry',
  Transient: 'retry',
  Permanent: 'fail',
} as const satisfies Record<ErrorKind, QueueAction>;

/** What a queue does with a processor's error; an error of unknown make counts as transient. */
export function queueAction(error: unknown): QueueAction {
  return error instanceof SluiceError ? QUEUE_ACTION[error.kind] : 'retry';
}

/** HTTP status of an error; what is not ours is a 500 whose text stays inside. */
export function httpStatus(error: unknown): number {
  return error instanceof SluiceError ? error.status : 500;
}

export function invalidInput(code: string, message: string, details?: ErrorDetails): SluiceError {
  return new SluiceError('InvalidInput', code, message, details);
}

export function notFound(code: string, message: string, details?: ErrorDetails): SluiceError {
  return new SluiceError('NotFound', code, message, details);
}

export function transient(code: string, message: string, details?: ErrorDetails): SluiceError {
  return new SluiceError('Transient', code, message, details);
}

export function permanent(code: string, message: string, details?: ErrorDetails): SluiceError {
  return new SluiceError('Permanent', code, message, details);
}

/** `code` of a system error; empty for anything else. */
export function errorCode(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : '';
}

/** What was thrown as an Error, for streams and listeners that take nothing else. */
export function toError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : new Error(String(thrown));
}

/** Storage's word for an object that is another one for good now than the one that was recorded. */
export function isChangedObject(error: unknown): boolean {
  return (
    error instanceof SluiceError && error.code === 'storage.changed' && error.kind === 'Permanent'
  );
}

/** The text of anything that was thrown, with the codes of its causes (`fetch failed` alone helps nobody). */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const text = ownText(error);
  return error.cause === undefined ? text : `${text}: ${describeError(error.cause)}`;
}

/**
 * As `describeError`, for users: what made one of our errors stays inside, because what a cloud says of itself names
 * accounts, roles and addresses that are the operator's business.
 */
export function shownError(error: unknown): string {
  return error instanceof SluiceError ? ownText(error) : describeError(error);
}

function ownText(error: Error): string {
  const code = errorCode(error);
  const own = error.message === '' ? code || error.name : error.message;
  return code !== '' && !own.includes(code) ? `${own} (${code})` : own;
}
