import type { Storage } from './contract.ts';
import { createLocalStorage } from './local.ts';

export interface StorageSettings {
  /** `AUTO` takes what the settings allow: the local folder. */
  type: 'AUTO' | 'LOCAL';
  /** Folder of the local storage. */
  directory: string;
}

/** The storages that are enabled. */
export function createStorage(settings: StorageSettings): Storage {
  switch (settings.type) {
    case 'AUTO':
    case 'LOCAL':
      return createLocalStorage({ directory: settings.directory });
  }
}
