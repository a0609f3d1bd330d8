import type { ResourceManager } from './contract.ts';
import { createStaticManager } from './static/index.ts';

/** The managers that are enabled, by the name that `PROVISIONER` gives them. */
export const MANAGERS = {
  static: createStaticManager,
} as const satisfies Record<
  string,
  (settings: { engineUrls: readonly string[] }) => ResourceManager
>;
