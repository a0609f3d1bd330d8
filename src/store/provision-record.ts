import * as v from 'valibot';
import { ATTEMPT_STATES } from '../domain/lease.ts';
import { LEASE_PROVIDERS, OWNERS, PROVIDERS, PROVISION_STATES } from '../domain/provision.ts';
import type { ProvisionRecord } from '../domain/provision.ts';
import { ATTEMPT_FIELD } from './keys.ts';
import { count, integer, jsonText, parseEntered, parseRecord, textOrNull } from './parse.ts';
import type { Fields } from './parse.ts';

const time = v.nullable(v.number());

const attempt = v.object({
  n: v.number(),
  name: v.string(),
  provider: v.picklist(LEASE_PROVIDERS),
  offer: v.string(),
  gpuType: v.string(),
  gpuCount: v.number(),
  pricePerHour: v.nullable(v.number()),
  region: v.string(),
  hostKey: v.string(),
  state: v.picklist(ATTEMPT_STATES),
  askedAt: v.number(),
  machine: v.nullable(v.string()),
  createdAt: time,
  reachedAt: time,
  endedAt: time,
  missing: v.number(),
  missingSince: time,
  missingAt: time,
  notBefore: time,
  error: v.string(),
  raw: v.string(),
});

const attemptField = v.pipe(jsonText, attempt);
const login = v.pipe(
  v.optional(v.string(), 'null'),
  jsonText,
  v.nullable(v.object({ host: v.string(), port: v.number(), user: v.string() })),
);
const integerOrNull = v.pipe(
  v.optional(v.string(), ''),
  v.union([
    v.pipe(
      v.literal(''),
      v.transform(() => null),
    ),
    integer,
  ]),
);

const provisionFields = v.object({
  job: v.string(),
  slot: integer,
  state: v.picklist(PROVISION_STATES),
  version: integer,
  wake: integer,
  provider: v.picklist(PROVIDERS),
  owner: v.picklist(OWNERS),
  address: v.string(),
  // Absent until an engine was seen that serves only some of its job's.
  models: v.optional(v.pipe(jsonText, v.array(v.string()))),
  reason: v.optional(v.string(), ''),
  reason_at: v.optional(integer),
  created_at: integer,
  current: count,
  login,
  host_key: textOrNull,
  claimed_at: integerOrNull,
  waiting_since: integerOrNull,
  engine_at: integerOrNull,
  crashes: count,
  log_offset: count,
  unreachable_since: integerOrNull,
  handed_to: textOrNull,
  destroying: v.optional(v.string(), ''),
});

export function parseProvision(id: string, fields: Fields): ProvisionRecord {
  const { created_at, reason_at, models, ...read } = parseRecord(id, provisionFields, fields);
  const { waiting_since, engine_at, log_offset, unreachable_since, ...rest } = read;
  const { handed_to: handedTo, host_key, claimed_at, destroying, ...provision } = rest;
  return {
    id,
    ...provision,
    models: models ?? null,
    reasonAt: reason_at ?? null,
    createdAt: created_at,
    hostKey: host_key,
    claimedAt: claimed_at,
    waitingSince: waiting_since,
    engineAt: engine_at,
    logOffset: log_offset,
    unreachableSince: unreachable_since,
    // While it is found out whether that one took it, a mark stands before.
    handedTo: handedTo?.replace(/^!/, '') ?? null,
    isDestroying: destroying === '1',
    attempts: parseAttempts(id, fields),
    enteredAt: parseEntered(id, PROVISION_STATES, fields),
  };
}

function parseAttempts(id: string, fields: Fields): ProvisionRecord['attempts'] {
  const names = Object.keys(fields).filter((name) => name.startsWith(ATTEMPT_FIELD));
  return names
    .map((name) => parseRecord(`${id} ${name}`, attemptField, fields[name]))
    .toSorted((one, other) => one.n - other.n);
}
