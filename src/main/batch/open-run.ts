import { randomBytes } from 'node:crypto';
import type { Settings } from '../../../config/schema.ts';
import { storageConflicts } from '../../../config/storage.ts';
import { invalidInput } from '../../domain/errors.ts';
import type { RunWriter } from '../../domain/kubernetes/run-record.ts';
import type { Logger } from '../../observability/log.ts';
import type { Storage } from '../../storage/contract.ts';
import type { Places } from '../../storage/places.ts';
import { clock } from '../clock.ts';
import { openAllowedPlaces } from '../places.ts';
import { openStorage } from '../storage-check.ts';
import { createRecord } from './record.ts';
import type { RunRecord } from './record.ts';
import type { WorkerTask } from './task.ts';

/** What a worker stands on. */
export interface OpenRun {
  /** Reads inputs, takes files; buckets of ALLOWED_BUCKETS, too. */
  storage: Storage;
  places: Places;
  record: RunRecord;
}

/** Opens storage and metastore, and tries them. Rejects with what is wrong, and the mend. */
export async function openRun(settings: Settings, uid: string, log: Logger): Promise<OpenRun> {
  const own = await openStorage(settings, log, true);
  const { storage, places } = openAllowedPlaces(own, settings);
  const meta = await openMetastore(settings, own, log);
  return { storage, places, record: createRecord(uid, { data: own, meta }) };
}

async function openMetastore(settings: Settings, own: Storage, log: Logger): Promise<Storage> {
  const { metastoreType } = settings;
  if (metastoreType === 'AUTO' || metastoreType === 'REDIS') return own;
  if (metastoreType === settings.storageType) return own;
  const elsewhere: Settings = { ...settings, storageType: metastoreType };
  const conflicts = storageConflicts(elsewhere);
  if (conflicts.length > 0) {
    throw invalidInput('worker.usage', `METASTORE_TYPE=${metastoreType}: ${conflicts.join(' ')}`);
  }
  return openStorage(elsewhere, log, true);
}

/** Enters this process among those that answer the index, before it looks what the others did. */
export async function enter(
  record: RunRecord,
  { pod, index }: Pick<WorkerTask, 'pod' | 'index'>,
): Promise<{ writer: RunWriter; firstAt: number }> {
  const others = await record.writers(index);
  const attempt = 1 + Math.max(0, ...others.map((other) => other.attempt));
  // A container that starts again in its pod is another writer: a write of the one that died may still be on its way.
  const writer = { name: `${pod.uid}.${randomBytes(4).toString('hex')}`, index, attempt };
  const at = clock.now();
  await record.putWriter(writer, { pod: pod.name, at });
  return { writer, firstAt: Math.min(at, ...others.map((other) => other.at)) };
}
