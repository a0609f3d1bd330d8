import type { Settings } from '../../config/schema.ts';
import type { Inventories, Inventory, Leasing } from '../../processors/leasing.ts';
import { publicUrlOf } from '../domain/engines/public-url.ts';
import { parseGpuName } from '../domain/gpu-names.ts';
import type { JobResources } from '../domain/lease.ts';
import type { LeaseProvider } from '../domain/provision.ts';
import type { LeaseManager } from '../resources/lease-contract.ts';
import type { MachineRuntime } from '../runtimes/contract.ts';
import { createKeyPair } from '../runtimes/ssh/keys.ts';
import type { Storage } from '../storage/contract.ts';
import type { Store } from '../store/store.ts';
import { authorizedKeyOf, LEASE_PARTS, openManagers } from './lease-providers.ts';
import { stampOf } from './stamp.ts';

/** What leasing stands on; a `System` is one. */
export interface LeasingGround {
  settings: Settings;
  storage: Pick<Storage, 'identity'>;
  patient: Limited;
}

interface Limited {
  store: Pick<Store, 'limits'>;
}

/**
 * What providers have of this deployment; null where PROVISIONER names none that leases. No provider has to be up for it.
 * Rejects with InvalidInput where settings are at odds.
 *
 * @param now Redis' time, ms
 */
export async function openInventories(
  { settings, storage }: Pick<LeasingGround, 'settings' | 'storage'>,
  { store: { limits } }: Limited,
  now: () => number,
): Promise<Inventories | null> {
  const stamp = await stampOf(storage);
  const managers = openManagers(settings, {
    stamp,
    now,
    draw: async (...units) => limits.draw(...units),
  });
  if (managers.size === 0) return null;
  return {
    stamp,
    manager: (provider) => managers.get(provider) ?? null,
    inventory: shareInventories(managers, stamp, now),
    async close() {
      await Promise.all([...managers.values()].map(async (manager) => manager.close?.()));
    },
  };
}

/**
 * What processors lease machines with; null as above. Rejects with InvalidInput where settings are at odds or the key
 * file is of no use, in words for people.
 *
 * @param parts.now Redis' time, ms
 */
export async function openLeasing(
  ground: LeasingGround,
  { machines, now }: { machines: MachineRuntime | null; now: () => number },
): Promise<Leasing | null> {
  const { settings } = ground;
  const inventories = await openInventories(ground, ground.patient, now);
  if (inventories === null) return null;
  return {
    ...inventories,
    authorizedKey: await authorizedKeyOf(settings),
    newHostKey: createKeyPair,
    machines,
    publicUrl: (attempt) => publicUrlOf(attempt, settings.runpodProxy),
    imageFor: (provider, resources) => LEASE_PARTS[provider].image(settings, resources),
    diskGb: ({ spec }) => weightsGb(spec.accelerator),
    modelCache: (provider) => LEASE_PARTS[provider].modelCache(settings),
    policy: settings.planningPolicy,
    capacityWaitMs: settings.capacityWait,
    maxLeases: settings.maxLeases,
    keepWarmMs: settings.keepWarmSeconds * 1_000,
  };
}

interface Listing {
  at: number;
  result: Promise<Inventory>;
}

/**
 * A list answers all who ask while it is not older than they bear; one that fails fails for all of them, and is forgotten.
 * One comes at a time, and is shared by all who bear any age: it may have to wait for its turn, and others would only
 * wait behind it. Those that bear none share the next one.
 */
function shareInventories(
  managers: ReadonlyMap<LeaseProvider, LeaseManager>,
  stamp: string,
  now: () => number,
): Leasing['inventory'] {
  const coming = new Map<LeaseProvider, Listing>();
  const next = new Map<LeaseProvider, Promise<Inventory>>();
  /** With when they came, which is what their age counts from. */
  const answered = new Map<LeaseProvider, { inventory: Inventory; cameAt: number }>();

  async function list(provider: LeaseProvider, at: number): Promise<Inventory> {
    const manager = managers.get(provider);
    if (manager === undefined) throw new Error(`${provider} is not in PROVISIONER`);
    const inventory = { at, machines: await manager.list(stamp) };
    answered.set(provider, { inventory, cameAt: now() });
    return inventory;
  }

  async function begin(provider: LeaseProvider): Promise<Inventory> {
    const at = now();
    const result = list(provider, at).finally(() => coming.delete(provider));
    coming.set(provider, { at, result });
    return result;
  }

  async function afterwards(provider: LeaseProvider, { result }: Listing): Promise<Inventory> {
    // Whoever waits for that one hears of its failure.
    await result.catch(() => null);
    next.delete(provider);
    return begin(provider);
  }

  return async function inventory(provider, maxAgeMs) {
    const at = now();
    const last = answered.get(provider);
    if (last !== undefined && maxAgeMs > 0 && at - last.cameAt <= maxAgeMs) return last.inventory;
    const pending = coming.get(provider);
    if (pending === undefined) return next.get(provider) ?? begin(provider);
    if (maxAgeMs > 0 || pending.at >= at) return pending.result;
    const following = next.get(provider) ?? afterwards(provider, pending);
    next.set(provider, following);
    return following;
  };
}

/** Beside weights: the system, caches, logs, and what an engine compiles. */
const OTHER_GB = 20;
/** Weights lie in files with something around them. */
const WEIGHTS_SHARE = 1.1;
/** Where neither the template nor the name of its GPU says: as much as most of those that are leased have. */
const USUAL_VRAM_GB = 80;

/** Weights that an engine can load fit in the memory of its GPUs, so that what holds as much holds them. */
function weightsGb({ type, count, vram_gb: wanted }: JobResources['spec']['accelerator']): number {
  const named = parseGpuName(type)?.memoryGb ?? 0;
  const each = Math.max(wanted, named) || USUAL_VRAM_GB;
  return Math.ceil(each * count * WEIGHTS_SHARE) + OTHER_GB;
}
