import type { Settings } from '../../config/schema.ts';
import { describeError } from '../domain/errors.ts';
import type { Catalog, Offer } from '../resources/contract.ts';
import type { LeaseManager } from '../resources/lease-contract.ts';
import { createStaticCatalog } from '../resources/static/catalog.ts';

/** What all enabled providers have; one that fails is an entry with its error, and keeps nobody from the others. */
export function createCatalog(
  settings: Pick<Settings, 'engineUrls' | 'engineApiKey'>,
  managers: readonly LeaseManager[],
  now: () => number,
): Catalog {
  if (managers.length === 0) return createStaticCatalog(settings);
  return {
    async offers() {
      const all = await Promise.all(managers.map((manager) => offersOf(manager, now)));
      return all.flat();
    },
  };
}

async function offersOf(manager: LeaseManager, now: () => number): Promise<Offer[]> {
  try {
    return await manager.catalog();
  } catch (error) {
    return [failed(manager, describeError(error), now())];
  }
}

/** In the place of all that a provider might have. */
function failed({ provider }: LeaseManager, error: string, checkedAt: number): Offer {
  return {
    provider,
    id: provider,
    kind: 'machine',
    type: '',
    count: null,
    architecture: null,
    vramGb: null,
    pricePerHour: null,
    stock: 'unknown',
    regions: [],
    address: '',
    models: [],
    error,
    checkedAt,
  };
}
