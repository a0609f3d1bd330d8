import * as v from 'valibot';
import { compileCheck } from '../cloud/check.ts';
import type { Fleet, Lease } from '../cloud/fleet.ts';
import { cloudKnobs, parseControl } from '../cloud/knobs.ts';
import { json } from '../cloud/server.ts';
import type { Call, Reply } from '../cloud/server.ts';
import type { Yard } from '../machines/yard.ts';

const ms = v.pipe(v.number(), v.minValue(0));

const lambdaKnobs = v.strictObject({
  ...cloudKnobs,
  /** Documented: a request a second; 0 is without limit. */
  request_interval_ms: v.optional(ms, 1000),
  /** Documented: a launch every 12 s. */
  launch_interval_ms: v.optional(ms, 12_000),
  /** The body of a 429 is not documented: JSON as other errors, a page, or nothing. */
  rate_limit_body: v.optional(v.picklist(['json', 'html', 'empty']), 'json'),
  /** `active` is said when sshd has been up for so long (27 to 62 s were measured), … */
  active_lag_ms: v.optional(ms, 0),
  /** … or, if this is set, as soon as the machine runs, sshd or no sshd. */
  active_early: v.optional(v.boolean(), false),
  /** A machine that boots cannot be terminated: 409, `vm-has-not-launched`. */
  booting_holds: v.optional(v.boolean(), false),
  /** A second terminate is `global/unknown`, as it was seen (SkyPilot #3410), not a success. */
  terminating_is_unknown: v.optional(v.boolean(), false),
  /** What has ended is shown as `terminated`, by its id, so long. */
  terminated_shown_ms: v.optional(ms, 0),
  /** `global/account-inactive` to everything. */
  account_inactive: v.optional(v.boolean(), false),
});

export type LambdaKnobs = v.InferOutput<typeof lambdaKnobs>;

/** Throws InvalidControl. */
export function parseLambdaKnobs(value: unknown): LambdaKnobs {
  return parseControl(lambdaKnobs, value);
}

export interface SshKey {
  id: string;
  name: string;
  public_key: string;
}

export interface FileSystem {
  id: string;
  name: string;
  region: string;
  created: string;
}

/** What an instance is beside its lease. */
export interface InstanceExtra {
  keys: SshKey[];
  mounts: { mount_point: string; file_system_id: string }[];
  fileSystemNames: string[];
  hostname: string | undefined;
  tags: { key: string; value: string }[];
  userData: string;
}

export type Instance = Lease<InstanceExtra>;

export interface LambdaState {
  apiKeys: readonly string[];
  fleet: Fleet<InstanceExtra>;
  yard: Yard | undefined;
  sshKeys: Map<string, SshKey>;
  fileSystems: Map<string, FileSystem>;
  /** When the last request and the last launch that counted came. */
  last: { request: number; launch: number };
  knobs(): LambdaKnobs;
  /** A fresh id of 32 hex digits. */
  draw(): string;
}

// --- Refusals ----------------------------------------------------------------------------------

/** Code, status, message and suggestion of an error, as the document's ApiError… schemas have them. */
export const ERRORS = {
  capacity: [
    'instance-operations/launch/insufficient-capacity',
    400,
    'Not enough capacity to fulfill launch request.',
    'Choose an instance type with more availability, or try again later.',
  ],
  wrongRegion: [
    'instance-operations/launch/file-system-in-wrong-region',
    400,
    'The specified file system is in a different region.',
    undefined,
  ],
  invalid: ['global/invalid-parameters', 400, 'Invalid request data.', undefined],
  quota: [
    'global/quota-exceeded',
    400,
    'Quota exceeded.',
    'Contact Support to increase your quota.',
  ],
  missing: ['global/object-does-not-exist', 404, 'Specified instance does not exist.', undefined],
  resource: [
    'global/object-does-not-exist',
    404,
    'The specified resource does not exist.',
    'Check the request and try again.',
  ],
  duplicate: ['global/duplicate', 400, 'An object with this name already exists.', undefined],
  inUse: ['filesystems/filesystem-in-use', 400, 'The filesystem is in use.', undefined],
  key: [
    'global/invalid-api-key',
    401,
    'API key was invalid, expired, or deleted.',
    'Check your API key or create a new one, then try again.',
  ],
  inactive: [
    'global/account-inactive',
    403,
    'Your account is inactive.',
    'Make sure you have verified your email address and have a valid payment method. Contact Support if problems continue.',
  ],
  address: [
    'global/invalid-address',
    403,
    'Your billing address is invalid.',
    'Make sure your billing address is valid. Contact Support if problems continue.',
  ],
  forbidden: ['global/forbidden', 403, 'Forbidden.', undefined],
  notFound: ['global/not-found', 404, 'The requested resource was not found.', undefined],
  conflict: [
    'global/conflict',
    409,
    'The request conflicts with the current state of the resource.',
    undefined,
  ],
  rate: ['global/too-many-requests', 429, 'Too many requests.', 'Slow down and try again.'],
  internal: [
    'global/internal-error',
    500,
    'An internal server error occurred.',
    'Try again later. Contact Support if the problem persists.',
  ],
  unavailable: ['provider/internal-unavailable', 503, 'Provider unavailable', 'Try again shortly'],
  unknown: ['global/unknown', 400, 'An unknown error occurred.', undefined],
} as const satisfies Record<string, readonly [string, number, string, string | undefined]>;

export type ErrorKey = keyof typeof ERRORS;

/** A refusal on its way out. */
export class Refusal extends Error {
  override name = 'Refusal';
  key: ErrorKey;

  constructor(key: ErrorKey, message: string = ERRORS[key][2]) {
    super(message);
    this.key = key;
  }
}

/** `{"error": {code, message, suggestion?}}` with the code's status. */
export function errorReply({ key, message }: Refusal): Reply {
  const [code, status, , suggestion] = ERRORS[key];
  return json(status, {
    error: { code, message, ...(suggestion === undefined ? {} : { suggestion }) },
  });
}

export function data(value: unknown): Reply {
  return json(200, { data: value });
}

// --- Bodies ------------------------------------------------------------------------------------

const text = { type: 'string' };
const texts = { type: 'array', items: text };

/** The document closes no request body: keys that it does not know (`quantity`, once) are ignored. */
function body(properties: object, required: readonly string[]): object {
  return { type: 'object', properties, required };
}

const mount = body(
  {
    mount_point: { ...text, maxLength: 256, pattern: '^(/home|/lambda/nfs|/data)[/a-zA-Z0-9-]*$' },
    file_system_id: text,
  },
  ['mount_point', 'file_system_id'],
);

const tag = body(
  {
    key: { ...text, maxLength: 55, pattern: '^[a-z][a-z0-9-:]+$' },
    value: { ...text, maxLength: 128 },
  },
  ['key', 'value'],
);

/** Bodies by Lambda's OpenAPI document 1.10.0. */
export const checks = {
  launch: compileCheck(
    body(
      {
        region_name: text,
        instance_type_name: text,
        // Currently exactly one, says the text; the schema does not.
        ssh_key_names: { ...texts, minItems: 1, maxItems: 1 },
        file_system_names: texts,
        file_system_mounts: { type: 'array', items: mount },
        hostname: { ...text, minLength: 1, maxLength: 63, pattern: '^[a-z0-9][0-9a-z-]{0,62}$' },
        name: { ...text, maxLength: 64 },
        image: { anyOf: [body({ id: text }, ['id']), body({ family: text }, ['family'])] },
        user_data: { ...text, maxLength: 1_000_000 },
        tags: { type: 'array', items: tag },
        firewall_rulesets: { type: 'array', items: body({ id: text }, ['id']) },
      },
      ['region_name', 'instance_type_name', 'ssh_key_names'],
    ),
  ),
  ids: compileCheck(body({ instance_ids: texts }, ['instance_ids'])),
  rename: compileCheck(body({ name: { ...text, maxLength: 64 } }, [])),
  addKey: compileCheck(
    body(
      {
        name: { ...text, minLength: 1, maxLength: 64 },
        public_key: { ...text, minLength: 1, maxLength: 4096 },
      },
      ['name'],
    ),
  ),
  createFileSystem: compileCheck(
    body(
      {
        name: { ...text, minLength: 1, maxLength: 60, pattern: '^[a-zA-Z]+[0-9a-zA-Z-]*$' },
        region: text,
      },
      ['name', 'region'],
    ),
  ),
};

/** A body that a check has passed; only then may its fields be taken for what the schema says. */
export function checked(call: Call, check: (value: unknown) => string[]): object {
  let value: unknown;
  try {
    value = JSON.parse(call.body.toString());
  } catch {
    throw new Refusal('invalid', 'Request body is not valid JSON.'); // whatever the parser says of it
  }
  const errors = check(value);
  if (errors.length > 0) throw new Refusal('invalid', `Invalid request data. ${errors.join('; ')}`);
  return value as object; // every schema here is one of an object
}
