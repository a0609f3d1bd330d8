import type { LeaseProvider } from '../domain/provision.ts';
import { createLease } from './lease.ts';
import type { Lease } from './lease.ts';
import type { Context } from './records.ts';

/** A machine, as its provider knows it. */
export interface MachineRef {
  provider: LeaseProvider;
  id: string;
}

/** Since when something is known of machines. Times are Redis time in ms. */
export interface Sightings {
  /** Notes the machine unless it is noted, and returns since when it is. */
  note(machine: MachineRef): Promise<number>;
  /** Those of a provider that are noted, by id. */
  of(provider: LeaseProvider): Promise<Map<string, number>>;
  forget(machine: MachineRef): Promise<void>;
}

/** What comparing providers' inventories with the records goes by, over many looks and processes. */
export interface Machines {
  /** Comparing. */
  sweep: Lease;
  /** Whether `holder` has the lease of comparing now; unlike `sweep.lease` it does not take one that was lost. */
  isSweeping(holder: string): Promise<boolean>;
  /** Redis' time, ms. */
  now(): Promise<number>;
  /** Machines that no record names. */
  orphans: Sightings;
  /** Machines that the provider was told to destroy. */
  destroyed: Sightings;
}

export function createMachines(context: Context): Machines {
  const { redis, keys } = context;
  return {
    sweep: createLease(context, keys.machineSweep),
    isSweeping: async (holder) => (await redis.get(keys.machineSweep)) === holder,
    async now() {
      const [seconds = 0, micros = 0] = (await redis.time()).map(Number);
      return seconds * 1_000 + Math.floor(micros / 1_000);
    },
    orphans: createSightings(context, keys.orphans),
    destroyed: createSightings(context, keys.destroyed),
  };
}

function createSightings({ redis, scripts }: Context, key: string): Sightings {
  return {
    note: async (machine) => Number(await scripts.run('enter', key, member(machine), 0)),
    async of(provider) {
      const found = new Map<string, number>();
      const reply = await redis.zrange(key, '0', '-1', 'WITHSCORES');
      for (let i = 0; i < reply.length; i += 2) {
        const [of = '', ...id] = (reply[i] ?? '').split(' ');
        if (of === provider) found.set(id.join(' '), Number(reply[i + 1]));
      }
      return found;
    },
    async forget(machine) {
      await redis.zrem(key, member(machine));
    },
  };
}

function member({ provider, id }: MachineRef): string {
  return `${provider} ${id}`;
}
