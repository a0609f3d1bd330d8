import { randomUUID } from 'node:crypto';
import { createInventorySweep } from '../../processors/inventory.ts';
import type { InventorySweep } from '../../processors/inventory.ts';
import { surveyMachines } from '../../processors/inventory-survey.ts';
import type { MachineSurvey } from '../../processors/inventory-survey.ts';
import type { Inventories } from '../../processors/leasing.ts';
import { clock } from './clock.ts';
import { openInventories } from './leasing.ts';
import type { System } from './system.ts';

/** Who asks what machines there are, again and again, is told the same for a moment. */
const SHOWN_MS = 5_000;

/** Compares all machines with the records; does nothing where no provider leases. */
export function openInventorySweep(holder: string, system: System): InventorySweep {
  const { storage, metrics, log, patient } = system;
  let opened: InventorySweep | null = null;
  let looking: Inventories | null = null;
  async function open(): Promise<InventorySweep> {
    const { store } = patient;
    const inventories = await openInventories(system, patient, clock.now);
    looking = inventories;
    if (inventories === null) return { round: async () => false, close: async () => undefined };
    const leasing: Inventories = {
      ...inventories,
      // What is noted of machines is in Redis' time, which is not every process's.
      async inventory(provider, maxAgeMs) {
        const at = await store.machines.now();
        return { ...(await inventories.inventory(provider, maxAgeMs)), at };
      },
    };
    const deps = { store, storage, leasing, metrics, newId: randomUUID, now: clock.now, log };
    return createInventorySweep(holder, deps);
  }
  return {
    async round(signal) {
      opened ??= await open();
      return opened.round(signal);
    },
    async close() {
      await opened?.close();
      await looking?.close();
    },
  };
}

/** All machines of this deployment, as its providers list them, with whose each is; empty where none leases. */
export function createSurvey(
  { storage, log, impatient: { store } }: System,
  leasing: Inventories | null,
): () => Promise<MachineSurvey> {
  if (leasing === null) return async () => ({ machines: [], failures: [] });
  const deps = { store, storage, leasing, newId: randomUUID, log };
  return () => surveyMachines(SHOWN_MS, deps);
}
