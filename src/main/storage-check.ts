import { randomUUID } from 'node:crypto';
import { text } from 'node:stream/consumers';
import type { Settings } from '../../config/schema.ts';
import { describeError, permanent, SluiceError } from '../domain/errors.ts';
import type { Logger } from '../observability/log.ts';
import type { Storage } from '../storage/contract.ts';
import { createStorage } from '../storage/index.ts';
import type { Erased } from '../storage/s3-versions.ts';
import type { S3Storage } from '../storage/s3.ts';
import { describeStorage, storageSettings } from './storage-settings.ts';

/** Who starts a server or asks a doctor waits for the answer. */
const ATTEMPTS = 3;
/** As a part of an upload that no record names: should it stay, it is collected as such. */
const PROBES = 'uploads/upload_probe';
/** Requests are signed by the store's clock, which mends signatures and nothing else. */
const SKEW_MS = 60_000;

const KEEPS =
  'The bucket keeps versions, and does not let us delete them: what is deleted, expires or is erased stays there as an old version. ' +
  'Allow s3:ListBucketVersions and s3:DeleteObjectVersion, or give it a lifecycle rule that expires noncurrent versions.';

/** What a probe of a storage found. */
export interface StorageProbe {
  /** What each step took, ms. */
  ms: { put: number; get: number; list: number; delete: number };
  /** Sentences about what works and is not as it should be. */
  warnings: string[];
}

/**
 * Opens the storage of the settings. Unless `check` is false, a small object is written, read, listed and deleted
 * first, so that what is wrong is said before anything is served: rejects with one sentence, and the mend.
 */
export async function openStorage(
  settings: Settings,
  log: Logger,
  check: boolean,
): Promise<Storage> {
  const wanted = storageSettings(settings);
  const where = describeStorage(wanted);
  const storage = await createStorage(wanted, {
    onNote(note) {
      if (!check) return;
      log.info({ note }, 'a setting of the storage is taken otherwise than it was given');
    },
  });
  if (!check || wanted.type === 'LOCAL') return storage;
  try {
    const { ms, warnings } = await probeStorage(
      await createStorage(wanted, { attempts: ATTEMPTS }),
    );
    log.info({ where, ms }, 'storage');
    for (const warning of warnings) log.warn({ where, warning }, 'storage could be better');
  } catch (error) {
    const code = error instanceof SluiceError ? error.code : 'storage.unavailable';
    throw permanent(code, `The storage cannot be used. ${oneLine(describeError(error))}`);
  }
  return storage;
}

function oneLine(message: string): string {
  return message.replaceAll(/\s+/g, ' ');
}

/** Writes, reads, lists and deletes a small object. Rejects with what the storage refuses, and the mend. */
export async function probeStorage(storage: Storage): Promise<StorageProbe> {
  const folder = `${PROBES}${randomUUID().replaceAll('-', '')}/`;
  const key = `${folder}probe`;
  const ms = { put: 0, get: 0, list: 0, delete: 0 };
  async function timed<T>(step: keyof typeof ms, work: () => Promise<T>): Promise<T> {
    const begun = performance.now();
    const result = await work();
    ms[step] = Math.round((performance.now() - begun) * 10) / 10;
    return result;
  }
  await timed('put', () => storage.put(key, [Buffer.from(key)]));
  try {
    const read = await timed('get', async () => text(await storage.get(key)));
    if (read !== key) throw permanent('storage.unfit', 'It gave back other bytes than were put.');
    const isListed = await timed('list', () => lists(storage, folder, key));
    if (!isListed) throw permanent('storage.unfit', 'It does not list what was just put.');
    const conditions = await conditionsOf(storage, key);
    const erased = await timed('delete', () => erase(storage, key));
    return {
      ms,
      warnings: [...skewOf(storage), ...(erased === 'kept' ? [KEEPS] : []), ...conditions],
    };
  } catch (error) {
    // what went wrong first is what has to be told
    await storage.delete(key).catch(() => undefined);
    throw error;
  }
}

async function lists(storage: Storage, folder: string, key: string): Promise<boolean> {
  for await (const found of storage.list(folder)) if (found === key) return true;
  return false;
}

function skewOf(storage: Storage): string[] {
  const ahead = storage.clockAheadMs();
  if (Math.abs(ahead) < SKEW_MS) return [];
  const minutes = Math.round(Math.abs(ahead) / 60_000);
  const side = ahead > 0 ? 'behind' : 'ahead of';
  return [
    `This machine's clock is ${minutes} min ${side} the store's. Set it (timedatectl set-ntp true): some stores refuse such requests.`,
  ];
}

async function conditionsOf(
  storage: Storage & Partial<Pick<S3Storage, 'obeysIfMatch'>>,
  key: string,
): Promise<string[]> {
  if (storage.obeysIfMatch === undefined || (await storage.obeysIfMatch(key))) return [];
  return [
    'The store ignores If-Match: an object that is replaced while it is read is noticed by its ETag alone. Do not write to objects below its prefix, and use a store that obeys it where you can.',
  ];
}

/** A folder keeps no versions. */
async function erase(
  storage: Storage & Partial<Pick<S3Storage, 'erase'>>,
  key: string,
): Promise<Erased> {
  if (storage.erase !== undefined) return storage.erase(key);
  await storage.delete(key);
  return 'gone';
}
