import type { Catalog, Offer } from '../../resources/contract.ts';
import type { Route } from '../routes.ts';
import { unixSeconds } from '../views.ts';

export interface CatalogDeps {
  catalog: Catalog;
}

/** What jobs can be run on, asked of the providers. */
export function catalogRoutes(deps: CatalogDeps): Route[] {
  return [
    {
      path: '/api/v1/catalog',
      async get(c) {
        return c.json({ offers: (await deps.catalog.offers()).map(offerView) });
      },
    },
  ];
}

/** Null is a number that nobody knows: 0 would be a price. */
export function offerView(offer: Offer) {
  return {
    provider: offer.provider,
    id: offer.id,
    kind: offer.kind,
    type: offer.type,
    count: offer.count,
    architecture: offer.architecture,
    vram_gb: offer.vramGb,
    price_per_hour: offer.pricePerHour,
    stock: offer.stock,
    region: offer.regions.join(', '),
    regions: offer.regions,
    address: offer.address,
    models: offer.models,
    error: offer.error,
    checked_at: unixSeconds(offer.checkedAt),
  };
}
