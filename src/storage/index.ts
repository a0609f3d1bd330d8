import type { Storage } from './contract.ts';
import { createLocalStorage } from './local.ts';
import type { S3Target } from './s3-target.ts';
import type { TosTarget } from './tos.ts';

export type StorageSettings =
  | { type: 'LOCAL'; directory: string }
  | ({ type: 'S3' } & S3Target)
  | ({ type: 'TOS' } & TosTarget);

export interface StorageOptions {
  /** Hears a sentence where a setting was taken otherwise than it was given. */
  onNote?: (note: string) => void;
  /** How often a request is sent in all where it fails for a reason that may pass. */
  attempts?: number;
}

/**
 * The storages that are enabled. What speaks S3 is loaded only where it is used: it doubles the memory of a process that
 * has just begun.
 */
export async function createStorage(
  settings: StorageSettings,
  { onNote, attempts }: StorageOptions = {},
): Promise<Storage> {
  switch (settings.type) {
    case 'LOCAL':
      return createLocalStorage(settings);
    case 'S3': {
      const { createS3Storage } = await import('./s3.ts');
      const { s3Options } = await import('./s3-target.ts');
      return createS3Storage({ ...s3Options(settings), attempts });
    }
    case 'TOS': {
      const { createS3Storage } = await import('./s3.ts');
      const { tosOptions } = await import('./tos.ts');
      const { options, note } = tosOptions(settings);
      if (note !== null) onNote?.(note);
      return createS3Storage({ ...options, attempts });
    }
  }
}
