import type { Readable } from 'node:stream';
import type { Advance } from '../queues/advance.ts';
import type { Queues } from '../queues/queues.ts';
import type { AssemblyOptions } from '../src/dispatcher/assemble.ts';
import type { AssemblySinks, AssemblySource } from '../src/dispatcher/contract.ts';
import type { Dispatcher } from '../src/dispatcher/dispatcher.ts';
import type { RemoteAssemblyOptions, RemoteResults } from '../src/dispatcher/assemble-remote.ts';
import type { ReadPlan, ReadPlanOptions } from '../src/dispatcher/read-plan.ts';
import type { JobRecord, JobState } from '../src/domain/job.ts';
import type { Owner, ProvisionRecord, ProvisionState } from '../src/domain/provision.ts';
import type { AcceptedShard, LostParts } from '../src/domain/segment.ts';
import type { ResourceManager } from '../src/resources/contract.ts';
import type { MachineRuntime, Runtime } from '../src/runtimes/contract.ts';
import type { RemoteService } from '../src/runtimes/remote/contract.ts';
import type { Storage } from '../src/storage/contract.ts';
import type { JobChange } from '../src/store/jobs.ts';
import type { ProvisionChange } from '../src/store/provisions.ts';
import type { Store } from '../src/store/store.ts';
import type { EarlyFiles } from './early-files.ts';
import type { FailedTries } from './give-up.ts';
import type { Leasing } from './leasing.ts';
import type { Watches } from './watch.ts';

/** Where processors write what happened; messages are static, what varies stands in the fields. */
export interface Log {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

/** What settling and stopping a job take. */
export interface SettleDeps {
  store: Pick<Store, 'jobs' | 'shards' | 'provisions' | 'leases'>;
  advanceJob: Advance<JobRecord, JobState, JobChange>;
  advanceProvision: Advance<ProvisionRecord, ProvisionState, ProvisionChange>;
  add: Queues['add'];
  manager: Pick<ResourceManager, 'provider' | 'slots'>;
  /** How many shards of a job may wait in the queue: one more than there are processes that take them. */
  ahead(): number;
  /** Redis' time, ms. */
  now(): number;
  log: Log;
  /** After so long a paused job gives its leased machines back, ms. */
  pauseReleaseMs: number;
}

/** Everything that the five processors touch; a test may give any part of it its own. */
export interface Deps extends SettleDeps {
  store: Pick<Store, 'jobs' | 'shards' | 'provisions' | 'files' | 'writer' | 'leases'>;
  storage: Pick<Storage, 'put' | 'get' | 'head' | 'delete'>;
  runtime: Pick<Runtime, 'look'>;
  /** Null where this process has no settings for a provider that leases. */
  leasing: Leasing | null;
  /** Null where this process has no key for machines. */
  machines: MachineRuntime | null;
  dispatcher: Pick<Dispatcher, 'run' | 'asideMs'>;
  watches: Pick<Watches, 'open'>;
  readPlan(
    source: Readable,
    options: Omit<ReadPlanOptions, 'uniqueIds' | 'maxLines' | 'maxLineBytes'>,
  ): Promise<ReadPlan>;
  /** The lines of an input that an error file names, in input order, but for those that shards have marked as bad. */
  selectLines(
    input: Readable,
    errorFile: Readable,
    shards: AsyncIterable<Pick<AcceptedShard, 'plan' | 'bad'>>,
  ): AsyncIterable<Uint8Array>;
  assemble(
    source: AssemblySource,
    sinks: AssemblySinks,
    options: Pick<AssemblyOptions, 'jobId' | 'undone' | 'onLine' | 'aheadBytes'>,
  ): Promise<{ output: number; error: number; undone: number }>;
  /** The lines of an input that shards have not marked as bad. */
  goodLines(
    input: Readable,
    shards: AsyncIterable<Pick<AcceptedShard, 'plan' | 'bad'>>,
  ): AsyncIterable<Uint8Array>;
  /** Files of another service are read once where they are in the order of the input, else twice. */
  assembleRemote(
    results: RemoteResults,
    sinks: AssemblySinks,
    options: Pick<RemoteAssemblyOptions, 'jobId' | 'undone' | 'onLine'> & { inOrder: boolean },
  ): Promise<{ output: number; error: number; undone: number }>;
  /** The metadata service that runs jobs in this server's place; null: jobs run here. */
  remote: RemoteService | null;
  /** The cluster that runs whole jobs; null: this process has none. */
  clusterJobs: RemoteService | null;
  /** Shards of which storage has lost accepted parts, each read twice; what cannot be read now ends it with the error. */
  findLost(source: Pick<AssemblySource, 'shards' | 'openPart'>): AsyncIterable<LostParts>;
  /** The model that the body of an answer names at its top level; null where it names none. */
  scanModel(body: Buffer): string | null;
  /** Of Sluice, as manifests name it. */
  version: string;
  /** Of writing jobs' files, by this process. */
  failedTries: FailedTries;
  /** Files that this process writes while their jobs still run. */
  early: Pick<EarlyFiles, 'finish'>;
  /** How far apart deaths of processes are at least that count for a line, ms. */
  crashApartMs: number;
  /** A fresh random holder token of 128 bits. */
  newToken(): string;
  /** Lines in flight are cut from then on: the process stops and their time is over. */
  graceOver: AbortSignal;
}

/** Whose machine an engine of this job is. */
export function ownerOf({ engines, options }: Pick<JobRecord, 'engines' | 'options'>): Owner {
  const { resources } = options;
  const isCallers = resources === null ? engines.length > 0 : resources.machine !== undefined;
  return isCallers ? 'caller' : 'sluice';
}
