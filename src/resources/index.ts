import type { Catalog, ResourceManager } from './contract.ts';
import { createStaticCatalog } from './static/catalog.ts';
import { createStaticManager } from './static/index.ts';

/** The managers that are enabled, by the name that `PROVISIONER` gives them. */
export const MANAGERS = {
  static: createStaticManager,
} as const satisfies Record<
  string,
  (settings: { engineUrls: readonly string[] }) => ResourceManager
>;

/** What can be had of each. */
export const CATALOGS = {
  static: createStaticCatalog,
} as const satisfies Record<
  keyof typeof MANAGERS,
  (settings: { engineUrls: readonly string[]; engineApiKey: string | undefined }) => Catalog
>;
