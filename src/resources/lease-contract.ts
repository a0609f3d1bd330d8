import type { JobResources, MachineState } from '../domain/lease.ts';
import type { LeaseProvider } from '../domain/provision.ts';
import type { Offer } from './contract.ts';

/** What a job wants of a machine. */
export interface MachineWish {
  /**
   * Nobody else's and no other attempt's: who asks has it on record before the first call. Lower case letters, digits
   * and `-`, at most 60 characters, and begins with the manager's `stamp`.
   */
  name: string;
  /** Which of the manager's offers is asked for; its id, as `catalog` gave it. */
  offer: string;
  /** GPUs on it. */
  gpuCount: number;
  /** In order of preference, as the provider spells them; empty: anywhere. */
  regions: readonly string[];
  /** It may be taken away while it is used, where the provider sells such. */
  interruptible: boolean;
  /** US dollars an hour for all of it; null: whatever it costs. */
  maxPricePerHour: number | null;
  /** Where the provider runs containers: the image of the machine. */
  image: string;
  /** Container and volume disk, GB. */
  diskGb: number;
  /** In OpenSSH's one-line form: who may log in. */
  authorizedKey: string;
  /** What the machine is to prove itself with: a private host key in OpenSSH's form. */
  hostKey: string;
  /** Volume or file system, by the provider's id or name, that outlives the machine and keeps model weights; null: none. */
  modelCache: string | null;
  /**
   * ms since 1970. What has not left by then must not leave any more (`lease.unavailable`): whoever recorded that a
   * create comes reckons with it from then on.
   */
  sendBefore: number;
  /** Where the machine comes with its engine: what that is started with. Others need none. */
  engine?: Pick<JobResources, 'spec' | 'servingName'>;
  /** Where the provider has several spaces that machines may be in: which one; missing: its first. */
  namespace?: string;
  /**
   * Nobody has asked for this name before, so that it need not be looked for first: a call less where calls are scarce.
   * Missing: it may have been.
   */
  isFresh?: boolean;
}

/** A machine as the provider shows it now. */
export interface Machine {
  /** The provider's id. */
  id: string;
  name: string;
  state: MachineState;
  /** Where its sshd is to be reached; null while that is not known. May change while it runs. */
  ssh: { host: string; port: number; user: string } | null;
  region: string;
  gpuType: string;
  gpuCount: number;
  /** US dollars an hour; null where the provider does not say. */
  pricePerHour: number | null;
  /** ms since 1970; null where the provider does not say. */
  createdAt: number | null;
  /** Why it is where it is, in the provider's words; '' where it says nothing. */
  reason: string;
  /** The provider's own answer, without secrets. */
  raw: unknown;
}

/** What a provider can do, and how long it may take. */
export interface LeaseCapabilities {
  interruptible: boolean;
  /** What keeps model weights beyond a lease. */
  modelCache: 'network_volume' | 'file_system' | null;
  /** Where a model cache is mounted on the machine. */
  modelCachePath: string;
  /** How an engine is run there: in a container of its own, as a process of the container that was leased, or by the provider. */
  engineForm: 'docker' | 'process' | 'hosted';
  /** By when a machine that was created must be reached, ms. */
  bootDeadlineMs: number;
  /** How long after a create its machine may be missing in `list`, ms. */
  listLagMs: number;
  /** A list shows all that is there when it is asked for: what it does not show is gone. Missing: lists lag behind. */
  areListsProof?: true;
}

/** An engine that comes with its machine. */
export interface HostedLook {
  /**
   * `waiting`: its process does not run yet. `running`: it does, which does not mean that it answers. `crashed`: it
   * ended by itself, and is to be started again. `leaving`: it is taken away by others, and comes back elsewhere.
   */
  is: 'waiting' | 'running' | 'crashed' | 'leaving';
  /** Why it is where it is, in the provider's words; '' where it needs no reason. */
  reason: string;
  /** How often it was started again on its machine. */
  restarts: number;
  /** How it ended last by itself; null: it never did. */
  end: string | null;
  /** Waiting cannot mend it. */
  isHopeless: boolean;
}

/** Where the engine of a machine is reached. */
export interface HostedWay {
  /** What stands before `/v1` and `/health`. */
  url: string;
  /** The certificate authority, and what this process proves itself with; null: neither is needed. */
  tls: {
    ca?: string;
    cert?: string;
    key?: string;
    rejectUnauthorized?: boolean;
    servername?: string;
  } | null;
  /** Value of the header that each request carries; null: none. */
  authorization(): Promise<string | null>;
}

/**
 * Engines that come with their machines, where a provider runs them itself: nobody logs in there. All methods reject as
 * `LeaseManager` says.
 */
export interface HostedEngines {
  /** Null: there certainly is no such machine any more. */
  look(machine: string): Promise<HostedLook | null>;
  /** The end of what the engine said before it ended last, or else of what it says now; '' where there is nothing. */
  lastWords(machine: string, lines: number): Promise<string>;
  way(machine: string): Promise<HostedWay>;
}

/**
 * Leases machines of one provider under one credential. None of its methods waits for a machine: the queues do. Each
 * call takes its turn by `Pace` first, and has a time limit. What went wrong is told by the class of the error:
 * - `NoCapacity` (`lease.no_capacity`): there is certainly no machine, and another offer or region may have one
 * - `InvalidInput` (`lease.…`): there is certainly no machine, and this wish can never be had; the message says why
 * - `Permanent` (`lease.unauthorized`, `lease.retired_api`, `lease.quota`, `lease.ssh_key_missing`): there is certainly no
 *   machine, and nothing can be had before a person mends it; the message says what to mend
 * - `Transient` `lease.unavailable`: there is certainly no machine; `retryAfterMs` where the provider gives a time
 * - `Transient` `lease.unknown`: a create whose outcome nobody knows (5xx, time-out, broken connection, nonsense): its
 *   name has to be looked for before the next one
 */
export interface LeaseManager {
  readonly provider: LeaseProvider;
  readonly capabilities: LeaseCapabilities;
  /** Missing: its machines are logged in to, and their engines started there. */
  readonly engines?: HostedEngines;
  /** What can be had now, with price and stock; kept for some seconds. */
  catalog(): Promise<Offer[]>;
  /**
   * Asks for a machine, or adopts the one that has the wish's name already; of several with that name the oldest that is
   * booting or running, and the others are `list`ed like any other.
   */
  create(wish: MachineWish): Promise<Machine>;
  /** Null: the provider says that it knows none of that id. */
  describe(id: string): Promise<Machine | null>;
  /** Gives it back: `gone` where the provider says that it is, or knows none of that id; `going` where it is on its way. */
  destroy(id: string): Promise<'gone' | 'going'>;
  /**
   * All machines whose name begins with `stamp` (or which carry it as a tag), of all regions and pages. Rejects
   * (`lease.unavailable`) rather than answer with less than all.
   */
  list(stamp: string): Promise<Machine[]>;
  /** What else there is as it should be, or not. Rejects as `catalog`. Missing: nothing else is looked at. */
  checks?(): Promise<AccountCheck[]>;
  /** Lets go of what it keeps open, where it does. */
  close?(): Promise<void>;
}

/** A manager whose account can be looked at before a job needs it, as `sluice doctor` does. Its checks change nothing. */
export interface LeaseAccount extends LeaseManager {
  /**
   * Whether machines can be given their login. Resolves to what is there, in words for people; null: nothing has to be
   * there. Rejects as `create` does, with Permanent `lease.ssh_key_missing` where a key is missing.
   */
  checkLogin(authorizedKey: string): Promise<string | null>;
  /** Whether a volume or file system is there that machines can use. Resolves to what it is; rejects as `create` does. */
  checkModelCache(modelCache: string): Promise<string>;
}

/** A finding in words for people, with the mend where something is to be mended. */
export interface AccountCheck {
  state: 'ok' | 'warn' | 'fail';
  message: string;
}

/** What a call is for; in the order in which they go before each other where a credential's rate is scarce. */
export type CallPurpose = 'release' | 'look' | 'create' | 'catalog';

/** Resolves when the credential may be used for one more call of this kind; the same bucket for all processes. */
export type Pace = (purpose: CallPurpose, signal?: AbortSignal) => Promise<void>;
