import type { JobRecord } from '../domain/job.ts';
import type { Provider, Slot } from '../domain/provision.ts';

/** Something that a job can be run on: an engine that is there already, or a kind of machine that can be leased. */
export interface Offer {
  provider: Provider;
  /** What the provider calls it; unique among its offers. */
  id: string;
  /** `engine`: runs already; `machine`: is leased for a job. */
  kind: 'engine' | 'machine';
  /** GPU type, as the provider spells it; empty where that is not known. */
  type: string;
  /** GPUs; null where that is not known. */
  count: number | null;
  /** Of the machine's processors; null where that is not known. */
  architecture: 'x86_64' | 'arm64' | null;
  /** Memory of one GPU in GB; null where that is not known. */
  vramGb: number | null;
  /** Price of all of it in US dollars an hour; null where it has none, or none that is known. */
  pricePerHour: number | null;
  /** `unknown`: the provider does not say before it is asked for one. */
  stock: 'available' | 'unavailable' | 'unknown';
  /** Where it can be had now, as the provider spells it; empty: the provider does not say. */
  regions: readonly string[];
  /** Base URL of an engine that runs; empty for a machine. */
  address: string;
  /** What an engine serves now. */
  models: string[];
  /** Why it cannot be had now; empty where it can. */
  error: string;
  /** When it was looked at, ms since 1970. */
  checkedAt: number;
}

/**
 * Where engines come from. A manager never waits: it says what a job should have, and the queues do the waiting.
 */
export interface ResourceManager {
  readonly provider: Provider;
  /**
   * The engines that a job should have, one a slot. Empty when this manager has none to give.
   * Answers the same for the same job as long as the settings stand.
   */
  slots(job: Pick<JobRecord, 'engines' | 'options' | 'remote'>): readonly Slot[];
}

/** What can be had of a provider. */
export interface Catalog {
  /** Asked live, within seconds, and then kept for some; what does not answer is among them with its error. */
  offers(): Promise<Offer[]>;
}
