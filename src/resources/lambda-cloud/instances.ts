import * as v from 'valibot';
import type { MachineState } from '../../domain/lease.ts';
import type { Machine } from '../lease-contract.ts';
import { callError } from './api.ts';

/** Tags that say whose an instance is; they stay when somebody renames it. By the API, keys fit `^[a-z][a-z0-9-:]+$`. */
const TAGS = { stamp: 'sluice:stamp', name: 'sluice:name', created: 'sluice:created' } as const;

interface Tag {
  key: string;
  value: string;
}

/** The tags of a new instance; instances carry no time of creation, so that one says it (ms since 1970). */
export function tagsOf(stamp: string, name: string, createdAt: number): Tag[] {
  return [
    { key: TAGS.stamp, value: stamp },
    { key: TAGS.name, value: name },
    { key: TAGS.created, value: String(createdAt) },
  ];
}

/** As much as says whether an instance is one of ours; those of others may be as they like. */
const label = v.object({
  id: v.string(),
  name: v.nullish(v.string(), ''),
  tags: v.nullish(v.array(v.object({ key: v.string(), value: v.string() })), []),
});

const details = v.object({
  status: v.string(),
  ip: v.nullish(v.string(), null),
  region: v.object({ name: v.string() }),
  instance_type: v.object({
    gpu_description: v.string(),
    price_cents_per_hour: v.number(),
    specs: v.object({ gpus: v.number() }),
  }),
});

/** An instance in a list, read only as far as it is asked for. */
export interface Listed {
  id: string;
  name: string;
  stamp: string;
  createdAt: number | null;
  raw: unknown;
}

/** Null where it is no instance. */
export function readLabel(raw: unknown): Listed | null {
  const parsed = v.safeParse(label, raw);
  if (!parsed.success) return null;
  const { id, name, tags } = parsed.output;
  const values = new Map(tags.map(({ key, value }) => [key, value]));
  const created = Number(values.get(TAGS.created) ?? Number.NaN);
  return {
    id,
    name: values.get(TAGS.name) ?? name,
    stamp: values.get(TAGS.stamp) ?? '',
    createdAt: Number.isSafeInteger(created) ? created : null,
    raw,
  };
}

const NO_DETAILS = { is: 'data', data: null, pageToken: null } as const;

const STATES: Record<string, MachineState> = {
  booting: 'booting',
  active: 'running',
  // It bills, and whether it can be used is for whoever looks at it by SSH.
  unhealthy: 'running',
  terminating: 'stopping',
  // Nothing says that it costs nothing: it is to be terminated as any other.
  preempted: 'stopping',
  terminated: 'gone',
};

/** Throws Transient `lease.unavailable` where a field is missing that the specification requires. */
export function toMachine({ id, name, createdAt, raw }: Listed): Machine {
  const parsed = v.safeParse(details, raw);
  if (!parsed.success) throw callError(`for the instance ${id}`, NO_DETAILS);
  const { status, ip, region, instance_type: type } = parsed.output;
  const state = STATES[status] ?? (ip === null ? 'booting' : 'running');
  const isReachable = ip !== null && (state === 'booting' || state === 'running');
  return {
    id,
    name,
    state,
    // sshd answers up to a minute before an instance is called active, so the address is all that counts.
    ssh: isReachable ? { host: ip, port: 22, user: 'ubuntu' } : null,
    region: region.name,
    gpuType: type.gpu_description,
    gpuCount: type.specs.gpus,
    pricePerHour: type.price_cents_per_hour / 100,
    createdAt,
    reason: status === 'booting' || status === 'active' ? '' : status,
    raw: withoutSecrets(raw),
  };
}

/** Whether it was told to end; a preempted one was not. */
export function isTerminating({ raw }: Listed): boolean {
  const parsed = v.safeParse(details, raw);
  return parsed.success && parsed.output.status === 'terminating';
}

/** `jupyter_token` and `jupyter_url` let anybody in who has them. */
const SECRET = /jupyter|token|secret|password|private_key|user_data/;

function withoutSecrets(raw: unknown): unknown {
  if (typeof raw !== 'object' || raw === null) return raw;
  return Object.fromEntries(Object.entries(raw).filter(([key]) => !SECRET.test(key)));
}

/** The oldest first; of those that do not say, in the order of their ids, so that all who ask choose alike. */
export function byAge(one: Machine, other: Machine): number {
  const age = (one.createdAt ?? Infinity) - (other.createdAt ?? Infinity);
  if (!Number.isNaN(age) && age !== 0) return age;
  return one.id < other.id ? -1 : 1;
}
