import { wantsEngines } from './job.ts';
import type { JobState, QueueName } from './job.ts';
import type { LeaseAttempt, MachineLogin } from './lease.ts';

export const PROVISION_STATES = [
  'intended',
  'creating',
  'booting',
  'starting',
  'serving',
  'releasing',
  'released',
] as const;
export type ProvisionState = (typeof PROVISION_STATES)[number];

/** The provision's state table: one leased machine, or one attempt at leasing one, for a job. */
export const PROVISION = {
  intended: { queue: 'provisioning', next: ['creating', 'starting', 'releasing'] },
  // The next attempt of a provision is `creating` again.
  creating: { queue: 'provisioning', next: ['creating', 'booting', 'starting', 'releasing'] },
  booting: { queue: 'provisioning', next: ['creating', 'starting', 'releasing'] },
  starting: { queue: 'submission', next: ['serving', 'releasing'] },
  serving: { queue: 'submission', next: ['starting', 'releasing'] },
  releasing: { queue: 'release', next: ['released'] },
  released: { queue: null, next: [] },
} as const satisfies Record<
  ProvisionState,
  { queue: QueueName | null; next: readonly ProvisionState[] }
>;

/** `caller`: a machine of the user's, which is used and shown but never destroyed. */
export const OWNERS = ['sluice', 'caller'] as const;
export type Owner = (typeof OWNERS)[number];

/** Those that lease machines which are logged in to. */
export const MACHINE_PROVIDERS = ['runpod', 'lambdaCloud'] as const;
export type MachineProvider = (typeof MACHINE_PROVIDERS)[number];

/** Those that lease machines for jobs; Kubernetes runs the engine itself, and nobody logs in there. */
export const LEASE_PROVIDERS = [...MACHINE_PROVIDERS, 'kubernetes'] as const;
export type LeaseProvider = (typeof LEASE_PROVIDERS)[number];

export const PROVIDERS = ['static', ...LEASE_PROVIDERS] as const;
export type Provider = (typeof PROVIDERS)[number];

/** Null for a provider whose machines nobody logs in to. */
export function machineProvider(provider: Provider): MachineProvider | null {
  return MACHINE_PROVIDERS.find((each) => each === provider) ?? null;
}

/** Null for a provider that leases nothing. */
export function leaseProvider(provider: Provider): LeaseProvider | null {
  return LEASE_PROVIDERS.find((each) => each === provider) ?? null;
}

/** One engine of a job. A job has many over time and none is ever overwritten. Times are Redis time in ms. */
export interface ProvisionRecord {
  id: string;
  job: string;
  /** Which of the job's wished-for engines this is, from 0; a replacement has the same slot. */
  slot: number;
  state: ProvisionState;
  version: number;
  wake: number;
  provider: Provider;
  owner: Owner;
  /** Base URL of the engine, without `/v1`; of one on a leased machine `lease://` and the provision's id. */
  address: string;
  /** Tries at leasing a machine, by number from 1. Empty where nothing is leased. */
  attempts: readonly LeaseAttempt[];
  /** Number of the attempt that it stands on; 0: none yet. */
  current: number;
  /** How that one's machine is logged in to; null while that is not known. */
  login: MachineLogin | null;
  /** Public host key of a machine of the caller's, which it has to prove itself with; null: not known yet, or leased. */
  hostKey: string | null;
  /** When it claimed a machine of the caller's: from then on what runs there may be its engine; null: it has not. */
  claimedAt: number | null;
  /** Since when no machine was to be had; null: one is there, or was not asked for yet. */
  waitingSince: number | null;
  /** Since when its engine is to become healthy, on the machine that it has now: its start, or its last loss; null: not yet. */
  engineAt: number | null;
  /** How often its engine ended by itself. */
  crashes: number;
  /** Up to where its engine's log was read, bytes. */
  logOffset: number;
  /** Since when its machine cannot be reached; null: it can, as far as anybody knows. */
  unreachableSince: number | null;
  /** The provision of another job that takes the machine over; null: none. */
  handedTo: string | null;
  /** Its machine is being given back: nobody may take it over any more. */
  isDestroying: boolean;
  /** The models of its job that the engine serves; null: all of them, as far as anybody knows. */
  models: readonly string[] | null;
  /** What the last look at the engine said, for people. */
  reason: string;
  /** Since when it says so; null when it was never noted. */
  reasonAt: number | null;
  createdAt: number;
  enteredAt: Partial<Record<ProvisionState, number>>;
}

/** What a provision says that leases nothing, or nothing yet. */
export const NO_LEASE = {
  attempts: [],
  current: 0,
  login: null,
  hostKey: null,
  claimedAt: null,
  waitingSince: null,
  engineAt: null,
  crashes: 0,
  logOffset: 0,
  unreachableSince: null,
  handedTo: null,
  isDestroying: false,
} as const satisfies Partial<ProvisionRecord>;

/** An engine that serves a job now. */
export type ServingEngine = Pick<ProvisionRecord, 'address' | 'models'>;

/** Whether an engine can be asked for a model; null is a line that names none, which any engine answers. */
export function servesModel({ models }: Pick<ServingEngine, 'models'>, model: string | null) {
  return model === null || models === null || models.includes(model);
}

/** The models of a job that none of its engines serves now. */
export function missingModels(
  models: readonly string[],
  provisions: readonly Pick<ProvisionRecord, 'state' | 'models'>[],
): string[] {
  const serving = provisions.filter(({ state }) => state === 'serving');
  return models.filter((model) => !serving.some((each) => servesModel(each, model)));
}

/** Names of models for people, a few of many. */
export function quoteModels(names: readonly string[]): string {
  const shown = names.slice(0, 5).map((name) => `'${name.slice(0, 100)}'`);
  const rest = names.length - shown.length;
  return shown.length === 0 ? 'no model' : shown.join(', ') + (rest > 0 ? ` and ${rest} more` : '');
}

/** Provision ids are derived, so that two planners of one job write the same record. */
export function provisionId(jobId: string, slot: number, attempt: number): string {
  return `prov_${jobId.slice('job_'.length)}_${slot}_${attempt}`;
}

export function isReleased(state: ProvisionState): boolean {
  return state === 'releasing' || state === 'released';
}

/** One engine that a job should have: an address in a slot; null is a machine that is leased for it. */
export interface Slot {
  slot: number;
  address: string | null;
}

/** Whether a provision is what a slot should have. */
export function fillsSlot(
  provision: Pick<ProvisionRecord, 'slot' | 'address'>,
  { slot, address }: Slot,
): boolean {
  if (provision.slot !== slot) return false;
  return address === null ? isLeased(provision) : provision.address === address;
}

const LEASED = 'lease://';

/** Where an engine on a machine that is leased for this provision is to be reached, by whoever knows its record. */
export function leaseAddress(provisionId: string): string {
  return `${LEASED}${provisionId}`;
}

/** The provision that an address stands for; null for an address of its own. */
export function leasedProvision(address: string): string | null {
  return address.startsWith(LEASED) ? address.slice(LEASED.length) : null;
}

/** The attempt that a provision stands on; null: it made none yet. */
export function currentAttempt({
  attempts,
  current,
}: Pick<ProvisionRecord, 'attempts' | 'current'>): LeaseAttempt | null {
  return attempts.find(({ n }) => n === current) ?? null;
}

/** Whether it has a machine to itself, leased or the caller's, on which its engine is started. */
export function isLeased({ address }: Pick<ProvisionRecord, 'address'>): boolean {
  return leasedProvision(address) !== null;
}

/** Whether its machine is one that the caller named: nobody but its owner makes it, pays for it or destroys it. */
export function isOnCallersMachine(provision: Pick<ProvisionRecord, 'address' | 'owner'>): boolean {
  return provision.owner === 'caller' && isLeased(provision);
}

/**
 * Whether a job still wants a provision: it sends lines or is about to, and the slot still names this address.
 * Pure and level-triggered: asked as often as one likes, it answers from what is there.
 */
export function wanted(
  job: { state: JobState },
  provision: { slot: number; address: string },
  slots: readonly Slot[],
): boolean {
  return wantsEngines(job.state) && slots.some((each) => fillsSlot(provision, each));
}

/** What becomes of the unfinished job of a provision that somebody releases. */
export const RELEASE_CHOICES = ['rehome', 'end'] as const;
export type ReleaseChoice = (typeof RELEASE_CHOICES)[number];

/**
 * What releasing a provision by hand does. `nothing`: it is released, or on its way. `release`: only that, since its
 * job needs it no longer. `rehome` and `end`: its job needs it, and gets another one, or is cancelled. `ask`: its job
 * needs it, and nobody said what is to become of that.
 */
export function releaseStep(
  jobState: JobState | null,
  state: ProvisionState,
  choice: ReleaseChoice | null,
): 'nothing' | 'release' | 'ask' | ReleaseChoice {
  if (isReleased(state)) return 'nothing';
  // A job that is ending gives its provisions back by itself, and one in `queued` is about to take this one up.
  const needsIt = jobState !== null && (jobState === 'queued' || wantsEngines(jobState));
  if (!needsIt) return 'release';
  return choice ?? 'ask';
}

/**
 * The provision that takes the place of a released one: of the same slot, at the address that the settings give that
 * slot now, or at its own where the settings have no opinion. Null where they have that slot no longer.
 */
export function rehomeSlot(released: Slot, configured: readonly Slot[]): Slot | null {
  if (configured.length === 0) return { slot: released.slot, address: released.address };
  return configured.find(({ slot }) => slot === released.slot) ?? null;
}

/**
 * The one step that a job's provisions allow it, or null where it stands right. Taken again until null, it brings
 * the job to `in_progress` when an engine serves, and back as far as its engines fell back.
 */
export function settledStep(
  state: JobState,
  provisions: readonly ProvisionState[],
): 'resource_preparing' | 'submitting' | 'in_progress' | null {
  if (!wantsEngines(state)) return null;
  const serving = provisions.includes('serving');
  const reachable = serving || provisions.includes('starting');
  if (state === 'resource_preparing') return reachable ? 'submitting' : null;
  if (!reachable) return 'resource_preparing';
  if (state === 'submitting') return serving ? 'in_progress' : null;
  return serving ? null : 'submitting';
}
