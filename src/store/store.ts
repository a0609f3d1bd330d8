import { createCollect } from './collect.ts';
import type { Collect } from './collect.ts';
import { createEvents } from './events.ts';
import type { Events } from './events.ts';
import { createFiles } from './files.ts';
import type { Files } from './files.ts';
import { createIdempotency } from './idempotency.ts';
import type { Idempotency } from './idempotency.ts';
import { claimStorage } from './identity.ts';
import { createJobs } from './jobs.ts';
import type { Jobs } from './jobs.ts';
import { globalKeys, jobKey } from './keys.ts';
import { createLease } from './lease.ts';
import type { Lease } from './lease.ts';
import { createLeases } from './leases.ts';
import type { Leases } from './leases.ts';
import { createLimits } from './limits.ts';
import type { Limits } from './limits.ts';
import { createMachines } from './machines.ts';
import type { Machines } from './machines.ts';
import { createModels } from './models.ts';
import type { Models } from './models.ts';
import { createEngines } from './engines.ts';
import type { Engines } from './engines.ts';
import { createNodes } from './nodes.ts';
import type { Nodes } from './nodes.ts';
import type { OnDamaged } from './parse.ts';
import { createProvisions } from './provisions.ts';
import type { Provisions } from './provisions.ts';
import { defineScripts } from './scripts.ts';
import type { Client } from './scripts.ts';
import { createShards } from './shards.ts';
import type { Shards } from './shards.ts';
import { createTemplates } from './templates.ts';
import type { Templates } from './templates.ts';
import { createUploads } from './uploads.ts';
import type { Uploads } from './uploads.ts';
import { createWebhooks } from './webhooks.ts';
import type { Webhooks } from './webhooks.ts';

export interface StoreOptions {
  /** Stays the caller's to close. */
  redis: Client;
  /** Begins the keys that belong to no record; `sluice` unless given. */
  namespace?: string;
  /** Told of records that a list leaves out because they cannot be read. */
  onDamaged?: OnDamaged;
}

/**
 * Redis as the system of record. Every write that depends on what was read is one script; a command that ioredis
 * sends again, because its reply was lost, is answered as it was at first.
 */
export interface Store {
  jobs: Jobs;
  events: Events;
  shards: Shards;
  provisions: Provisions;
  files: Files;
  uploads: Uploads;
  models: Models;
  templates: Templates;
  nodes: Nodes;
  engines: Engines;
  leases: Leases;
  /** Sweeping. */
  sweep: Lease;
  machines: Machines;
  webhooks: Webhooks;
  idempotency: Idempotency;
  limits: Limits;
  collect: Collect;
  /** Writing the files of a job while it still runs. */
  writer(jobId: string): Lease;
  /** Binds the records to a storage once, and returns the identity of the storage that they are bound to. */
  claimStorage(identity: string): Promise<string>;
}

export function createStore({ redis, namespace = 'sluice', onDamaged }: StoreOptions): Store {
  const context = {
    redis,
    scripts: defineScripts(redis),
    keys: globalKeys(namespace),
    onDamaged: onDamaged ?? (() => undefined),
  };
  return {
    jobs: createJobs(context),
    events: createEvents(context),
    shards: createShards(context),
    provisions: createProvisions(context),
    files: createFiles(context),
    uploads: createUploads(context),
    models: createModels(context),
    templates: createTemplates(context),
    nodes: createNodes(context),
    engines: createEngines(context),
    leases: createLeases(context),
    sweep: createLease(context, context.keys.sweep),
    machines: createMachines(context),
    webhooks: createWebhooks(context),
    idempotency: createIdempotency(context),
    limits: createLimits(context),
    collect: createCollect(context),
    writer: (jobId) => createLease(context, jobKey(jobId, 'WRITER')),
    claimStorage: (identity) => claimStorage(context, identity),
  };
}
