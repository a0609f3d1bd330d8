import type { ErrorKind } from '../../src/domain/errors.ts';
import type {
  CallPurpose,
  LeaseManager,
  MachineWish,
  Pace,
} from '../../src/resources/lease-contract.ts';
import type { CloudControl } from '../simulators/cloud/control.ts';
import type { ErrorName, FaultInput, Operation } from '../simulators/cloud/faults.ts';
import { createKeyPair } from '../simulators/machines/ssh-client.ts';

/** How another manager of the same account differs from the world's own. */
export interface ConnectOptions {
  apiKey?: string;
  /** Time limit of one call. */
  timeoutMs?: number;
  pace?: Pace;
}

/** A simulated account without real machines, where machines boot at once and rates have no limit unless knobs say so. */
export interface LeaseWorld extends AsyncDisposable {
  manager: LeaseManager;
  control: CloudControl;
  /** A manager as another process has it: same account, nothing remembered. */
  connect(options?: ConnectOptions): LeaseManager;
  /** What `manager` asked its pace for, in order. */
  paced: readonly CallPurpose[];
  /** An offer that has stock in both `regions` by default. */
  offer: { id: string; gpuCount: number };
  regions: readonly [string, string];
}

/** Starts a world of its own for one test; `knobs` are laid over the quick ones. */
export type StartWorld = (knobs?: Record<string, unknown>) => Promise<LeaseWorld>;

/** In what providers differ, as far as the contract lets them. */
export interface LeaseFlags {
  /** `list` has pages: the knob `page_limit`. */
  pages: boolean;
  /** `fixed`: the provider has no catalog to ask, so that neither price nor stock is known before a create. */
  catalog: 'live' | 'fixed';
  /** How an engine is run there, and what the place of its weights begins with. */
  engine: { form: 'docker' | 'process'; cachePath: string };
  /** What the provider's own refusals mean, beside those that mean the same everywhere. */
  refusals: readonly (readonly [error: ErrorName, kind: ErrorKind, code: string])[];
}

export const STAMP = 'sl-test1-';
/** A real one: a provider may have to be told of the public key, too. */
export const { privateKey: HOST_KEY } = await createKeyPair();
const AUTHORIZED_KEY =
  'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqZ0mYzm3v9cyTnYwVQ0TyFVZrYyW1y0C3m8dUrWmVh test';

/** Short enough for a test, long enough for a busy machine to answer in. */
export const QUICK_MS = 1500;

export function wishOf({ offer }: LeaseWorld, changes: Partial<MachineWish> = {}): MachineWish {
  return {
    name: `${STAMP}a`,
    offer: offer.id,
    gpuCount: offer.gpuCount,
    regions: [],
    interruptible: false,
    maxPricePerHour: null,
    image: 'vllm/vllm-openai:v0.29.0',
    diskGb: 60,
    authorizedKey: AUTHORIZED_KEY,
    hostKey: HOST_KEY,
    modelCache: null,
    sendBefore: Date.now() + 60_000,
    ...changes,
  };
}

/** What a call that must fail fails with. */
export async function failure(call: Promise<unknown>): Promise<Record<string, unknown>> {
  try {
    const value = await call;
    return { resolvedWith: value };
  } catch (error) {
    const { kind, code, retryAfterMs, message } = error as Record<string, unknown>; // an error has these or not
    return { kind, code, retryAfterMs, message };
  }
}

export const UNKNOWN = { kind: 'Transient', code: 'lease.unknown' };
export const UNAVAILABLE = { kind: 'Transient', code: 'lease.unavailable' };
export const NO_CAPACITY = { kind: 'NoCapacity', code: 'lease.no_capacity' };
export const UNAUTHORIZED = { kind: 'Permanent', code: 'lease.unauthorized' };

export async function calls({ control }: LeaseWorld, op?: Operation): Promise<number> {
  const requests = await control.requests();
  return requests.filter((request) => op === undefined || request.op === op).length;
}

export async function namesOf({ control }: LeaseWorld): Promise<string[]> {
  return (await control.inventory()).map(({ name }) => name).toSorted();
}

/** The same faults as a provider's API has them on any call; all but `error` are about the way of the answer. */
export function silentFaults(op: Operation): [what: string, fault: FaultInput][] {
  return [
    ['a 500', { kind: 'error', op, error: 'internal', count: 1 }],
    ['a 503', { kind: 'error', op, error: 'unavailable', count: 1 }],
    ['no answer', { kind: 'hang', op, count: 1 }],
    ['a cut connection', { kind: 'reset', op, count: 1 }],
    ['half an answer', { kind: 'truncate', op, count: 1 }],
    ["a gateway's page", { kind: 'html', op, count: 1 }],
  ];
}
