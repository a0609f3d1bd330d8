import { fileKey, filesInUse, isExpired, outputFileId, writerOf } from '../src/domain/file.ts';
import { isFinal } from '../src/domain/job.ts';
import type { JobRecord } from '../src/domain/job.ts';
import { partsPrefix, uploadStatus } from '../src/domain/upload.ts';
import type { UploadRecord } from '../src/domain/upload.ts';
import type { Storage } from '../src/storage/contract.ts';
import type { Store } from '../src/store/store.ts';
import { collectSegments, isOnlyCopy } from './collect-segments.ts';
import type { Log } from './deps.ts';
import { continueErasures } from './erase-job.ts';
import { readOrNull } from './read-or-null.ts';

export interface ExpiryDeps {
  store: {
    jobs: Pick<Store['jobs'], 'active' | 'get'>;
    shards: Pick<Store['shards'], 'segments'>;
    files: Store['files'];
    uploads: Store['uploads'];
    sweep: Pick<Store['sweep'], 'lease'>;
    webhooks: Pick<Store['webhooks'], 'erase'>;
    idempotency: Pick<Store['idempotency'], 'eraseAbout'>;
    collect: Store['collect'];
  };
  storage: Pick<Storage, 'delete' | 'list' | 'head'>;
  now(): number;
  log: Log;
  /** How long the bytes of an expired file stay, ms: what was begun before its end must be on record by then. */
  graceMs?: number;
}

interface NeededDeps {
  store: {
    jobs: ExpiryDeps['store']['jobs'];
    collect: Pick<Store['collect'], 'inputOf'>;
  };
}

const LEASE_MS = 10_000;
const AT_ONCE = 100;
/** Longer than it may take to record a job whose input was looked at while it had not expired. */
const GRACE_MS = 60_000;
const AGAIN_MS = 60_000;
const DANGLING_AFTER_MS = 60_000;
/** After the longest request: a part that was on its way when its upload ended has come by then, or never will. */
const LAST_LOOK_MS = 7 * 3_600_000;

/**
 * Removes what is over: expired files with their bytes, uploads past their hour, what ended uploads leave behind, and
 * what is left of erased jobs.
 * Each step may be repeated. One round looks at what is due, if this process has the sweeper's lease; false without it.
 */
export function createExpiry(holder: string, deps: ExpiryDeps): { round(): Promise<boolean> } {
  return {
    async round() {
      if (!(await deps.store.sweep.lease(holder, LEASE_MS))) return false;
      const stages = { expireFiles, sweepUploads, continueErasures };
      for (const [name, stage] of Object.entries(stages)) {
        await orLog(name, deps, () => stage(deps));
      }
      return true;
    },
  };
}

/** Whatever is wrong with one, the others are due as well, and this one again later, not before all that come after it. */
async function orLog(
  id: string,
  { log, now }: ExpiryDeps,
  task: () => Promise<void>,
  postpone?: (id: string, until: number) => Promise<void>,
): Promise<void> {
  try {
    await task();
  } catch (err) {
    log.error({ id, err }, 'what is over could not be removed');
    await postpone?.(id, now() + AGAIN_MS);
  }
}

async function sweepUploads(deps: ExpiryDeps): Promise<void> {
  const { uploads } = deps.store;
  for (const id of await uploads.due(AT_ONCE)) {
    await orLog(id, deps, () => sweepUpload(id, deps), uploads.postpone);
  }
}

async function expireFiles(deps: ExpiryDeps): Promise<void> {
  const { files } = deps.store;
  const due = await files.due(AT_ONCE);
  if (due.length === 0) return;
  const inUse = await neededFiles(deps);
  for (const id of due) await orLog(id, deps, () => expireFile(id, inUse, deps), files.postpone);
}

/**
 * Files that jobs which are not over need; read after what is due, so that no job of before is missed. Of a job whose
 * record cannot be read, what is known of it without: somebody may mend it.
 */
export async function neededFiles({ store }: NeededDeps): Promise<ReadonlySet<string>> {
  const files = new Set<string>();
  for await (const id of store.jobs.active()) {
    const job = await readOrNull(store.jobs, id);
    if (job === null) {
      for (const kind of ['output', 'error'] as const) files.add(outputFileId(id, kind));
      files.add((await store.collect.inputOf(id)) ?? '');
      continue;
    }
    if (isFinal(job.state)) continue;
    for (const file of filesInUse(job, await sourceOf(job, store))) files.add(file);
  }
  return files;
}

async function sourceOf(job: JobRecord, store: NeededDeps['store']): Promise<JobRecord | null> {
  return job.options.retryOf === null ? null : readOrNull(store.jobs, job.options.retryOf);
}

async function expireFile(id: string, inUse: ReadonlySet<string>, deps: ExpiryDeps): Promise<void> {
  const { store, storage, now, log, graceMs = GRACE_MS } = deps;
  const { files } = store;
  const file = await files.get(id);
  if (file !== null && file.expiresAt === undefined) {
    // Somebody began to delete it and died before it had an effect; its user will ask again.
    await files.forgetUnless(id);
    return;
  }
  if (file?.expiresAt !== undefined) {
    const gone = file.expiresAt + graceMs;
    if (!isExpired(file, now() - graceMs)) return files.postpone(id, gone);
    if (inUse.has(id)) return files.postpone(id, now() + AGAIN_MS);
    await files.delete(id);
    log.info({ file: id }, 'an expired file was removed');
  }
  await storage.delete(fileKey(id));
  await forgetContent(id, deps);
  await files.forget(id);
}

/**
 * The answers of a job's file lie in its segments, too, and what was said of a file in kept answers. Where one of the
 * files could not be written its answers are nowhere else, and stay as long as the job.
 */
export async function forgetContent(
  fileId: string,
  deps: Pick<ExpiryDeps, 'store' | 'storage'>,
): Promise<void> {
  const jobId = writerOf(fileId);
  const job = jobId === null ? null : await deps.store.jobs.get(jobId);
  if (job !== null && !isOnlyCopy(job)) {
    await collectSegments(job.id, deps, { step: async () => undefined, dryRun: false });
  }
  await deps.store.idempotency.eraseAbout(fileId);
}

async function sweepUpload(id: string, deps: ExpiryDeps): Promise<void> {
  const { uploads } = deps.store;
  const upload = await uploads.get(id);
  if (upload === null) {
    // Index first, record second: a creation that died, or has not got there yet.
    if ((await uploads.age(id)) > DANGLING_AFTER_MS) await uploads.forget(id);
    return;
  }
  if (upload.endedAt !== null) return clearUpload(upload, upload.endedAt, deps);
  if (uploadStatus(upload, deps.now()) === 'pending') {
    return uploads.postpone(id, Math.max(upload.expiresAt, upload.busyUntil) + 1);
  }
  // It puts the upload among those that are due: the next round clears it away.
  await uploads.expire(id);
}

async function clearUpload(
  upload: UploadRecord,
  endedAt: number,
  { store, storage, now }: ExpiryDeps,
): Promise<void> {
  const { id, result } = upload;
  await makeFile(upload, store);
  for await (const key of storage.list(partsPrefix(id))) await storage.delete(key);
  for (const fileId of await store.uploads.attempts(id)) {
    if (fileId !== result?.fileId) await storage.delete(fileKey(fileId));
  }
  if (now() - endedAt > LAST_LOOK_MS) await store.uploads.forget(id);
  else await store.uploads.postpone(id, endedAt + LAST_LOOK_MS + 1);
}

/** Who completed the upload died before its file had a record. */
async function makeFile(upload: UploadRecord, store: ExpiryDeps['store']): Promise<void> {
  const { result, bytes, filename, purpose, mimeType, expiresAfterMs } = upload;
  if (result === null || upload.isFileMade) return;
  const { fileId: id, sha256 } = result;
  await store.files.create({ id, sha256, bytes, filename, purpose, mimeType, expiresAfterMs });
  await store.uploads.markFileMade(upload.id);
}
