import type { PlanningPolicy } from '../src/domain/choose-offer.ts';
import type { JobResources, LeaseAttempt } from '../src/domain/lease.ts';
import type { LeaseProvider } from '../src/domain/provision.ts';
import type { LeaseManager, Machine } from '../src/resources/lease-contract.ts';
import type { MachineRuntime } from '../src/runtimes/contract.ts';

/** All machines of this deployment at one provider, as they were listed. */
export interface Inventory {
  /** Redis' time at which the list was asked for, ms: what was created later may be missing. */
  at: number;
  machines: readonly Machine[];
}

/** What the providers of this deployment have of it. */
export interface Inventories {
  /** Begins the names of all machines of this deployment. */
  stamp: string;
  /** Null where this process has no settings for that provider. */
  manager(provider: LeaseProvider): LeaseManager | null;
  /**
   * The list of a provider, answered at most `maxAgeMs` ago, or still to come; 0: asked for now. Rejects as `list`
   * does.
   */
  inventory(provider: LeaseProvider, maxAgeMs: number): Promise<Inventory>;
  /** Lets go of what managers keep open. */
  close(): Promise<void>;
}

/** What leasing machines takes beside the records. */
export interface Leasing extends Inventories {
  /** Who may log in to machines: the public half of the deployment's key, in one line. */
  authorizedKey: string;
  /** A fresh key for a machine to prove itself with. */
  newHostKey(): { privateKey: string; publicKey: string };
  /** Null where this process has no key for machines. */
  machines: MachineRuntime | null;
  /** Where the engine of an attempt's machine is reached by the world; null: through a tunnel only. */
  publicUrl(attempt: LeaseAttempt): string | null;
  /** Image that a machine of this provider is leased with, where that runs containers. */
  imageFor(provider: LeaseProvider, resources: JobResources): string;
  /** Disk that a machine needs for the weights of a template, GB. */
  diskGb(resources: JobResources): number;
  /** Volume or file system that keeps weights, where one is set; null: none. */
  modelCache(provider: LeaseProvider): string | null;
  policy: PlanningPolicy;
  /** How long a job waits for capacity, ms. */
  capacityWaitMs: number;
  /** Most machines that this deployment leases at the same time. */
  maxLeases: number;
  /** How long a machine that no job needs is kept for the next one, ms. */
  keepWarmMs: number;
}
