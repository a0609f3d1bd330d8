/** What an API server answers instead of an object: metav1.Status. */
export interface Status {
  kind: 'Status';
  apiVersion: 'v1';
  metadata: Record<string, unknown>;
  status: 'Success' | 'Failure';
  message?: string;
  reason?: string;
  details?: StatusDetails;
  code: number;
}

export interface StatusCause {
  reason: string;
  message: string;
  field: string;
}

export interface StatusDetails {
  name?: string;
  group?: string;
  kind?: string;
  uid?: string;
  causes?: StatusCause[];
  retryAfterSeconds?: number;
}

/** Thrown where a request ends with a failure. */
export class StatusError extends Error {
  override name = 'StatusError';
  status: Status;

  constructor(code: number, reason: string, message: string, details?: StatusDetails) {
    super(message);
    this.status = {
      kind: 'Status',
      apiVersion: 'v1',
      metadata: {},
      status: 'Failure',
      message,
      reason,
      ...(details === undefined ? {} : { details }),
      code,
    };
  }
}

/** Which objects a message is about: `jobs` of group `batch`. */
export interface Named {
  group: string;
  plural: string;
}

/** `jobs.batch`, or `pods` of the core group. */
export function qualified({ group, plural }: Named): string {
  return group === '' ? plural : `${plural}.${group}`;
}

const detailsOf = ({ group, plural }: Named, name: string): StatusDetails => ({
  name,
  ...(group === '' ? {} : { group }),
  kind: plural,
});

export function notFound(kind: Named, name: string): StatusError {
  return new StatusError(
    404,
    'NotFound',
    `${qualified(kind)} "${name}" not found`,
    detailsOf(kind, name),
  );
}

export function noSuchPath(): StatusError {
  return new StatusError(404, 'NotFound', 'the server could not find the requested resource', {});
}

export function alreadyExists(kind: Named, name: string): StatusError {
  const message = `${qualified(kind)} "${name}" already exists`;
  return new StatusError(409, 'AlreadyExists', message, detailsOf(kind, name));
}

export function conflict(kind: Named, name: string, why: string): StatusError {
  const message = `Operation cannot be fulfilled on ${qualified(kind)} "${name}": ${why}`;
  return new StatusError(409, 'Conflict', message, detailsOf(kind, name));
}

export const MODIFIED =
  'the object has been modified; please apply your changes to the latest version and try again';

export function badRequest(message: string): StatusError {
  return new StatusError(400, 'BadRequest', message);
}

export function expired(message: string): StatusError {
  return new StatusError(410, 'Expired', message);
}

export function unauthorized(): StatusError {
  return new StatusError(401, 'Unauthorized', 'Unauthorized');
}

/** A field that is wrong, in the words of field.Error. */
export interface FieldError {
  type:
    | 'FieldValueInvalid'
    | 'FieldValueRequired'
    | 'FieldValueForbidden'
    | 'FieldValueNotSupported';
  field: string;
  value?: unknown;
  detail: string;
}

function wordOf({ type, field, value, detail }: FieldError): string {
  if (type === 'FieldValueRequired') return `${field}: Required value${detail && `: ${detail}`}`;
  if (type === 'FieldValueForbidden') return `${field}: Forbidden: ${detail}`;
  const shown = typeof value === 'object' ? JSON.stringify(value) : JSON.stringify(value ?? null);
  const what = type === 'FieldValueInvalid' ? 'Invalid value' : 'Unsupported value';
  return `${field}: ${what}: ${shown}: ${detail}`;
}

/** 422, with each field that is wrong as a cause. */
export function invalid(
  kind: { group: string; kind: string },
  name: string,
  errors: readonly FieldError[],
): StatusError {
  const all = errors.map(wordOf);
  const text = all.length === 1 ? all[0] : `[${all.join(', ')}]`;
  const title = kind.group === '' ? kind.kind : `${kind.kind}.${kind.group}`;
  return new StatusError(422, 'Invalid', `${title} "${name}" is invalid: ${text}`, {
    name,
    ...(kind.group === '' ? {} : { group: kind.group }),
    kind: kind.kind,
    causes: errors.map((error, at) => ({
      reason: error.type,
      message: (all[at] ?? '').slice(error.field.length + 2),
      field: error.field,
    })),
  });
}
