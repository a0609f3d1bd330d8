import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import { invalidInput, permanent, SluiceError } from '../../domain/errors.ts';
import { fileKey } from '../../domain/file.ts';
import type { FileRecord } from '../../domain/file.ts';
import { partKey, uploadStatus } from '../../domain/upload.ts';
import type { UploadPart, UploadRecord, UploadStatus } from '../../domain/upload.ts';
import type { Inspector, JoinResult, Storage } from '../../storage/contract.ts';
import type { Files } from '../../store/files.ts';
import type { Uploads } from '../../store/uploads.ts';
import { clientClosed } from '../body.ts';
import { randomText, sha256 } from '../ids.ts';

export interface JoinDeps {
  store: { files: Pick<Files, 'create' | 'get'>; uploads: Uploads };
  storage: Pick<Storage, 'copy' | 'concat'>;
  /** Throws where there is no such upload. */
  find(id: string): Promise<UploadRecord>;
  /** Whether who asked is gone. */
  isHungUp(): boolean;
  log: Pick<Logger, 'info' | 'warn'>;
}

/** Which parts make the file, in order. */
export interface CompleteWish {
  partIds: readonly string[];
  /** Lower-case hex; null: not said. */
  md5: string | null;
}

/** An attempt that says nothing for so long belongs to a process that died. */
const LEASE_MS = 15_000;
const LOOK_AGAIN_MS = 200;

/**
 * Joins the parts of an upload to its file, and returns the upload as it then is. Each attempt writes an object of its
 * own, and the record says which one counts: however many run and wherever they break off, there is one file, or none.
 * One runs at a time and the others wait for it, as a client does that lost an answer and asks again. What attempts
 * leave behind is the sweeper's to remove, since only the record knows what is not needed.
 */
export async function completeUpload(
  id: string,
  wish: CompleteWish,
  deps: JoinDeps,
): Promise<UploadRecord> {
  const { uploads } = deps.store;
  for (;;) {
    const upload = await deps.find(id);
    const status = uploadStatus(upload, Date.now());
    if (status === 'completed') return refuseOther(upload, wish);
    if (status !== 'pending') throw notPending(id, status);
    const parts = chosenParts(upload, await uploads.parts(id), wish);
    const fileId = `file-${randomText()}`;
    const begun = await uploads.begin(id, fileId, LEASE_MS);
    if (begun === 'begun') await join(upload, parts, { fileId, wish }, deps);
    else if (deps.isHungUp()) throw clientClosed();
    else await sleep(LOOK_AGAIN_MS);
  }
}

/** The file of a completed upload, whose record is written by whoever first needs it; null: none, or deleted. */
export async function fileOf(
  upload: UploadRecord,
  { store }: Pick<JoinDeps, 'store'>,
): Promise<FileRecord | null> {
  if (upload.result === null) return null;
  const { fileId, sha256: digest } = upload.result;
  if (upload.isFileMade) return store.files.get(fileId);
  const { bytes, filename, purpose, mimeType, expiresAfterMs } = upload;
  const known = { id: fileId, sha256: digest, bytes, filename, purpose, mimeType, expiresAfterMs };
  const file = await store.files.create(known);
  await store.uploads.markFileMade(upload.id);
  return file;
}

/** Why an upload that has ended takes nothing more. */
export function notPending(id: string, status: UploadStatus): SluiceError {
  const why = status === 'expired' ? 'expired, an hour after its creation' : `is ${status}`;
  const message = `Upload '${id}' ${why}: it cannot be changed any more. Create another one with POST /v1/uploads.`;
  return invalidInput('upload_not_pending', message, { param: 'id' });
}

/** A repeat of what completed the upload gets the same answer; anything else asks for what is too late. */
function refuseOther(upload: UploadRecord, { partIds, md5 }: CompleteWish): UploadRecord {
  const { result } = upload;
  if (result === null || result.list !== listOf(partIds)) {
    throw notPending(upload.id, 'completed');
  }
  if (md5 !== null && md5 !== result.md5) throw wrongDigest(md5, result.md5);
  return upload;
}

function listOf(partIds: readonly string[]): string {
  return sha256(JSON.stringify(partIds));
}

function chosenParts(
  upload: UploadRecord,
  known: ReadonlyMap<string, UploadPart>,
  { partIds }: CompleteWish,
): UploadPart[] {
  const seen = new Set<string>();
  const parts = partIds.map((partId, n) => {
    const part = known.get(partId);
    if (part === undefined) throw unknownPart(upload.id, partId, n);
    if (seen.has(partId)) throw twice(partId, n);
    seen.add(partId);
    return part;
  });
  const bytes = parts.reduce((sum, part) => sum + part.bytes, 0);
  if (bytes === upload.bytes) return parts;
  throw invalidInput(
    'bytes_mismatch',
    `The ${parts.length} parts have ${bytes} bytes together, but the upload was announced with ${upload.bytes}. ` +
      'Send what is missing and name all parts, each once.',
    { param: 'part_ids' },
  );
}

async function join(
  upload: UploadRecord,
  parts: readonly UploadPart[],
  { fileId, wish }: { fileId: string; wish: CompleteWish },
  { store: { uploads }, storage, log }: JoinDeps,
): Promise<void> {
  const lost = new AbortController();
  const renewal = setInterval(() => {
    uploads.begin(upload.id, fileId, LEASE_MS).then(
      (reply) => reply !== 'begun' && lost.abort(lostAttempt()),
      // The next one may get through; if none does, another attempt begins and this one ends in nothing.
      (err: unknown) => log.warn({ err, upload: upload.id }, 'an attempt was not renewed'),
    );
  }, LEASE_MS / 3).unref();
  try {
    const {
      sha256: digest,
      md5,
      byStore,
    } = await joinBytes(upload, parts, {
      to: fileKey(fileId),
      wanted: wish.md5,
      storage,
      signal: lost.signal,
    });
    log.info({ upload: upload.id, parts: parts.length, byStore }, 'parts were joined');
    const result = { fileId, sha256: digest, md5 };
    await uploads.complete(upload.id, { ...result, list: listOf(wish.partIds) });
  } catch (error) {
    // Before it is abandoned, which a renewal would undo.
    clearInterval(renewal);
    // Whoever lost it looks at the record again, which says who won.
    if (lost.signal.aborted) return;
    await uploads.abandon(upload.id, fileId);
    if ((await uploads.get(upload.id))?.status === 'pending') throw lostPart(upload, error);
  } finally {
    clearInterval(renewal);
  }
}

interface JoinWish {
  to: string;
  /** MD5 that the whole must have; null: any. */
  wanted: string | null;
  storage: JoinDeps['storage'];
  signal: AbortSignal;
}

/** Writes all parts as one object, which nobody sees unless its bytes are those that were announced. */
async function joinBytes(
  upload: UploadRecord,
  parts: readonly UploadPart[],
  { to, wanted, storage, signal }: JoinWish,
): Promise<JoinResult & { md5: string }> {
  let md5 = '';
  function inspect(): Inspector {
    const digest = createHash('md5');
    let bytes = 0;
    return {
      see(chunk) {
        digest.update(chunk);
        bytes += chunk.length;
      },
      end() {
        md5 = digest.digest('hex');
        if (bytes !== upload.bytes) throw damaged(upload, bytes);
        if (wanted !== null && wanted !== md5) throw wrongDigest(wanted, md5);
      },
    };
  }
  const keys = parts.map((part) => partKey(upload.id, part.id));
  const [only] = keys;
  const options = { signal, inspect };
  const joined =
    only !== undefined && keys.length === 1
      ? await storage.copy(only, to, options)
      : await storage.concat(keys, to, options);
  return { ...joined, md5 };
}

function damaged(upload: UploadRecord, bytes: number): SluiceError {
  const message = `upload ${upload.id}: its parts have ${bytes} bytes in storage, ${upload.bytes} by their records`;
  return permanent('upload.damaged', message);
}

function lostAttempt(): SluiceError {
  return new SluiceError('Conflict', 'upload.lost_attempt', 'another attempt took over');
}

/** A part whose record is there and whose bytes are not is our trouble, and no file that the client asked for. */
function lostPart({ id }: UploadRecord, error: unknown): unknown {
  if (!(error instanceof SluiceError) || error.code !== 'storage.not_found') return error;
  const message = `A part of upload '${id}' is gone from the storage. Create another upload, and send its parts again.`;
  return permanent('upload_part_lost', message, { cause: error });
}

function unknownPart(id: string, partId: string, n: number): SluiceError {
  const message = `Upload '${id}' has no part '${partId.slice(0, 100)}': name the ids that POST /v1/uploads/${id}/parts answered.`;
  return invalidInput('invalid_part_id', message, { param: `part_ids.${n}` });
}

function twice(partId: string, n: number): SluiceError {
  const message = `The part '${partId}' is named twice: name each one once, in the order of the bytes.`;
  return invalidInput('invalid_part_id', message, { param: `part_ids.${n}` });
}

function wrongDigest(wanted: string, found: string): SluiceError {
  const message = `The MD5 of the whole is ${found}, not ${wanted}: check the order of 'part_ids', or send the parts again.`;
  return invalidInput('md5_mismatch', message, { param: 'md5' });
}
