import type { SpendLimits } from './cost.ts';
import type { LeaseProvider, Slot } from './provision.ts';
import type { TemplateSpec } from './template.ts';

/** What a job whose engines are started for it wants of their machines; fixed when it is created. */
export interface JobResources extends SpendLimits {
  /** The template as it was then. */
  spec: TemplateSpec;
  /** What its lines name as `body.model`. */
  servingName: string;
  /** Id of the template: what it was measured by, and who may take over whose machine, goes by it. */
  templateId: string;
  /** Machines, each with an engine. */
  replicas: number;
  /** In the order in which they are asked; never empty. */
  providers: readonly LeaseProvider[];
  /** In order of preference, as the provider spells them; empty: anywhere. */
  regions: readonly string[];
  /** In order of preference; empty: the template's. */
  gpuTypes: readonly string[];
  /** Machines will do that may be taken away in mid-use. */
  interruptible: boolean;
  /** US dollars an hour for one machine; null: whatever it costs. */
  maxPricePerHour: number | null;
  /** Of the namespaces that engines may run in, where the job names one; absent: the first. */
  namespace?: string;
  /** `job`: the cluster runs the whole of it in a Job; absent: an engine, which lines are sent to. */
  form?: 'job';
  /** The machine of the caller's that it runs on; absent: machines are leased. */
  machine?: CallerMachine;
}

/** A machine that a job brings with it: its engine is started and stopped there, and the machine is left alone. */
export interface CallerMachine {
  login: MachineLogin;
  /** Its public host key in one line, or the `SHA256:…` of that; null: the first one that it shows. */
  hostKey: string | null;
}

/** One slot a machine. */
export function leasedSlots({ replicas }: Pick<JobResources, 'replicas'>): Slot[] {
  return Array.from({ length: replicas }, (_, slot) => ({ slot, address: null }));
}

/** How a machine is logged in to. */
export interface MachineLogin {
  host: string;
  port: number;
  user: string;
}

/** `booting`: not yet to be reached. `running`: by the provider's word, which is no readiness. `gone`: it costs nothing any more. */
export type MachineState = 'booting' | 'running' | 'stopping' | 'gone';

/** Whether a machine may become, or is, one to work on. */
export function isOfUse({ state }: { state: MachineState }): boolean {
  return state === 'booting' || state === 'running';
}

/**
 * `asked`: on record, and the call may be on its way. `unknown`: nobody knows what came of the call; the name is looked
 * for. `there`: the provider has told its id. `leaving`: it is given back. `none`: there is certainly no machine.
 * `gone`: there was one, and it costs nothing any more. `handed`: another provision has it now.
 */
export const ATTEMPT_STATES = [
  'asked',
  'unknown',
  'there',
  'leaving',
  'none',
  'gone',
  'handed',
] as const;
export type AttemptState = (typeof ATTEMPT_STATES)[number];

/** One try at leasing a machine, on record before the provider hears of it. Times are Redis time in ms. */
export interface LeaseAttempt {
  /** From 1. */
  n: number;
  /** What the machine is called; nobody else's, and no other attempt's. */
  name: string;
  provider: LeaseProvider;
  /** Id of the provider's offer. */
  offer: string;
  gpuType: string;
  gpuCount: number;
  /** US dollars an hour; first as the catalog said, then as the machine did; null: nobody knows. */
  pricePerHour: number | null;
  region: string;
  /** Public half of the key by which the machine proves itself, in one line. */
  hostKey: string;
  state: AttemptState;
  askedAt: number;
  /** The provider's id; null while none is known. */
  machine: string | null;
  /** When the machine was created by the provider's word. */
  createdAt: number | null;
  /** When it was logged in to, and had what it was leased for. */
  reachedAt: number | null;
  /** When it was found to be gone, or never to have been. */
  endedAt: number | null;
  /** Whole lists in which it was missing since it was last seen, and when it was so first and last. */
  missing: number;
  missingSince: number | null;
  missingAt: number | null;
  /** Before that its offer is not asked for again; null: it may be at any time. */
  notBefore: number | null;
  /** Why it came to nothing, or stands where it stands; '' where there is nothing to say. */
  error: string;
  /** What the provider said of it last, as JSON without secrets; ''. */
  raw: string;
}

/** What is written of an attempt after it was begun. */
export type AttemptNews = Partial<
  Omit<LeaseAttempt, 'n' | 'name' | 'provider' | 'offer' | 'hostKey' | 'askedAt'>
>;

/** What an attempt is begun with. */
export function newAttempt(
  first: Pick<
    LeaseAttempt,
    | 'n'
    | 'name'
    | 'provider'
    | 'offer'
    | 'gpuType'
    | 'gpuCount'
    | 'pricePerHour'
    | 'region'
    | 'hostKey'
    | 'askedAt'
  >,
): LeaseAttempt {
  return {
    ...first,
    state: 'asked',
    machine: null,
    createdAt: null,
    reachedAt: null,
    endedAt: null,
    missing: 0,
    missingSince: null,
    missingAt: null,
    notBefore: null,
    error: '',
    raw: '',
  };
}

/** Nothing of it is there, or can turn up, that this provision would have to give back. */
export function isOver({ state }: Pick<LeaseAttempt, 'state'>): boolean {
  return state === 'none' || state === 'gone' || state === 'handed';
}

/** Names of machines are `<stamp>-<key>-<n>-<time>`: whose, of which provision, its how manieth attempt, and when. */
const NAME = /-([0-9a-z]{16})-([1-9][0-9]*)-([0-9a-z]+)$/;

/**
 * @param key of the provision, 16 characters of 0-9 and a-z
 * @param n number of the attempt
 * @param at ms since 1970
 */
export function machineName(stamp: string, key: string, n: number, at: number): string {
  return `${stamp}-${key}-${n}-${Math.floor(at / 1_000).toString(36)}`;
}

/** Null for a name that is none of this deployment's. */
export function parseMachineName(
  name: string,
  stamp: string,
): { key: string; n: number; at: number } | null {
  if (!name.startsWith(`${stamp}-`)) return null;
  const [, key, n, time] = NAME.exec(name.slice(stamp.length)) ?? [];
  if (key === undefined || n === undefined || time === undefined) return null;
  return { key, n: Number(n), at: Number.parseInt(time, 36) * 1_000 };
}
