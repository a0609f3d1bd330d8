import * as v from 'valibot';
import { invalidInput, notFound } from '../../domain/errors.ts';
import type { SluiceError } from '../../domain/errors.ts';
import { EXPIRES_AFTER_SECONDS, isExpired, UPLOAD_PURPOSES } from '../../domain/file.ts';
import type { FileRecord } from '../../domain/file.ts';
import { MAX_PARTS, partKey, uploadStatus } from '../../domain/upload.ts';
import type { UploadPart, UploadRecord } from '../../domain/upload.ts';
import type { Storage } from '../../storage/contract.ts';
import type { Files } from '../../store/files.ts';
import type { Uploads } from '../../store/uploads.ts';
import { canonicalJson, exactObject, parse, readJson } from '../body.ts';
import { derivedText, isUploadId, randomText, sha256 } from '../ids.ts';
import { MAX_FILENAME } from '../multipart.ts';
import { pathId } from '../routes.ts';
import type { ApiContext, Route } from '../routes.ts';
import { fileView, unixSeconds } from '../views.ts';
import { receivePart } from './file-form.ts';
import { completeUpload, fileOf, notPending } from './join-parts.ts';

export interface UploadsDeps {
  store: { files: Files; uploads: Uploads };
  storage: Pick<Storage, 'put' | 'copy' | 'concat' | 'delete'>;
  limits: { maxUploadBytes: number; maxBatchFileBytes: number };
}

/** OpenAI's Uploads interface: a file of many gigabytes comes in parts, in any order and several at once. */
export function uploadRoutes(deps: UploadsDeps): Route[] {
  return [
    { path: '/v1/uploads', post: (c) => create(c, deps) },
    // OpenAI has no way to look at an upload; whoever lost an answer needs one.
    {
      path: '/v1/uploads/:id',
      async get(c) {
        return answer(c, await findUpload(deps, pathId(c)), deps);
      },
    },
    { path: '/v1/uploads/:id/parts', post: (c) => addPart(c, deps) },
    { path: '/v1/uploads/:id/complete', post: (c) => complete(c, deps) },
    { path: '/v1/uploads/:id/cancel', post: (c) => cancel(c, deps) },
  ];
}

/** OpenAI's Upload object; only a completed one has a file, which may have been deleted since. */
export function uploadView(upload: UploadRecord, file: FileRecord | null, now: number) {
  return {
    id: upload.id,
    object: 'upload',
    bytes: upload.bytes,
    created_at: unixSeconds(upload.createdAt),
    filename: upload.filename,
    purpose: upload.purpose,
    status: uploadStatus(upload, now),
    expires_at: unixSeconds(upload.expiresAt),
    file: file === null ? null : fileView(file),
  };
}

export function uploadPartView(uploadId: string, part: UploadPart) {
  return {
    id: part.id,
    object: 'upload.part',
    created_at: unixSeconds(part.createdAt),
    upload_id: uploadId,
  };
}

const { min, max } = EXPIRES_AFTER_SECONDS;
const SECONDS_RULE = `an integer of seconds from ${min} to ${max}`;
const NAME_RULE = `a name of 1 to ${MAX_FILENAME} characters`;
const BYTES_RULE = 'the size of the whole file as an integer of at least 1';
const TYPE_RULE = 'a media type such as application/jsonl';
export const createUploadSchema = exactObject({
  filename: v.pipe(
    v.string(NAME_RULE),
    v.nonEmpty(NAME_RULE),
    v.maxLength(MAX_FILENAME, NAME_RULE),
  ),
  purpose: v.picklist(UPLOAD_PURPOSES, `one of ${UPLOAD_PURPOSES.join(', ')}`),
  bytes: v.pipe(v.number(BYTES_RULE), v.safeInteger(BYTES_RULE), v.minValue(1, BYTES_RULE)),
  mime_type: v.pipe(
    v.string(TYPE_RULE),
    v.maxLength(255, TYPE_RULE),
    v.regex(/^[\w!#$&^.+-]+\/[\w!#$&^.+-]+(?: *; *[\w-]+=[\w.+-]+)*$/, TYPE_RULE),
  ),
  expires_after: v.nullish(
    exactObject({
      anchor: v.literal('created_at', "'created_at'"),
      seconds: v.pipe(
        v.number(SECONDS_RULE),
        v.integer(SECONDS_RULE),
        v.minValue(min, SECONDS_RULE),
        v.maxValue(max, SECONDS_RULE),
      ),
    }),
  ),
});

async function create(c: ApiContext, deps: UploadsDeps): Promise<Response> {
  const body = parse(createUploadSchema, await readJson(c.env.incoming));
  refuseSize(body, deps);
  const { creationKey } = c.var;
  const seconds = body.expires_after?.seconds;
  const { outcome, upload } = await deps.store.uploads.create({
    id: `upload_${creationKey === undefined ? randomText() : derivedText(creationKey)}`,
    filename: body.filename,
    purpose: body.purpose,
    bytes: body.bytes,
    mimeType: body.mime_type,
    expiresAfterMs: seconds === undefined ? null : seconds * 1_000,
    bodyHash: sha256(canonicalJson(body)),
  });
  if (outcome !== 'other') return answer(c, upload, deps);
  throw invalidInput(
    'idempotency_key_reused',
    'This Idempotency-Key was used before with another request body: send a new key with a new request.',
    { param: 'Idempotency-Key' },
  );
}

/** Refused before the first part, not after the last one. */
function refuseSize(
  { bytes, purpose }: v.InferOutput<typeof createUploadSchema>,
  { limits }: UploadsDeps,
): void {
  const isBatch = purpose === 'batch' && limits.maxBatchFileBytes < limits.maxUploadBytes;
  const limit = isBatch ? limits.maxBatchFileBytes : limits.maxUploadBytes;
  if (bytes <= limit) return;
  const what = isBatch ? 'the input of a batch' : 'an upload';
  const setting = isBatch ? 'MAX_BATCH_FILE_BYTES' : 'MAX_UPLOAD_BYTES';
  throw invalidInput(
    'content_size_limit_exceeded',
    `Maximum content size limit exceeded: ${what} may have at most ${limit} bytes (${setting} of the server), got ${bytes}.`,
    { param: 'bytes', status: 413 },
  );
}

/** An upload as OpenAI shows it, with the file that it became. */
async function answer(c: ApiContext, upload: UploadRecord, deps: UploadsDeps): Promise<Response> {
  const now = Date.now();
  const file = await fileOf(upload, deps);
  const seen = file !== null && !isExpired(file, now) ? file : null;
  return c.json(uploadView(upload, seen, now));
}

async function findUpload(deps: UploadsDeps, id: string): Promise<UploadRecord> {
  const upload = isUploadId(id) ? await deps.store.uploads.get(id) : null;
  if (upload !== null) return upload;
  const message = `There is no upload '${id.slice(0, 100)}'. POST /v1/uploads creates one.`;
  throw notFound('upload_not_found', message, { param: 'id' });
}

async function addPart(c: ApiContext, deps: UploadsDeps): Promise<Response> {
  const upload = await findUpload(deps, pathId(c));
  const status = uploadStatus(upload, Date.now());
  if (status !== 'pending') throw notPending(upload.id, status);
  const id = `part_${randomText()}`;
  const key = partKey(upload.id, id);
  const { bytes } = await receivePart(c.env.incoming, (source) => deps.storage.put(key, source));
  const refusal = wrongSize(bytes, upload);
  const part = refusal ?? (await deps.store.uploads.addPart(upload.id, { id, bytes }));
  if (typeof part === 'object' && 'createdAt' in part) {
    return c.json(uploadPartView(upload.id, part));
  }
  await deps.storage.delete(key);
  if (part === 'full') throw tooManyParts(upload.id);
  if (part === 'over') {
    const ended = uploadStatus(await findUpload(deps, upload.id), Date.now());
    throw notPending(upload.id, ended === 'pending' ? 'expired' : ended);
  }
  throw part;
}

function wrongSize(bytes: number, upload: UploadRecord): SluiceError | null {
  if (bytes === 0) {
    const message = "The part 'data' has no bytes: send at least one.";
    return invalidInput('empty_part', message, { param: 'data' });
  }
  if (bytes <= upload.bytes) return null;
  const message =
    `This part has ${bytes} bytes, but the whole upload was announced with ${upload.bytes}. ` +
    'Create an upload with the right size, or send the right part.';
  return invalidInput('bytes_mismatch', message, { param: 'data' });
}

function tooManyParts(id: string): SluiceError {
  const message = `Upload '${id}' has ${MAX_PARTS} parts, and takes no more: create another one, and send larger parts.`;
  return invalidInput('too_many_parts', message, { param: 'data' });
}

const IDS_RULE = `a list of 1 to ${MAX_PARTS} ids of parts, in the order of their bytes`;
const ID_RULE = 'the id of a part';
const MD5_RULE = 'the MD5 of the whole file as 32 hexadecimal digits';
export const completeUploadSchema = exactObject({
  part_ids: v.pipe(
    v.array(v.pipe(v.string(ID_RULE), v.nonEmpty(ID_RULE)), IDS_RULE),
    v.minLength(1, IDS_RULE),
    v.maxLength(MAX_PARTS, IDS_RULE),
  ),
  md5: v.nullish(v.pipe(v.string(MD5_RULE), v.regex(/^[0-9a-f]{32}$/i, MD5_RULE), v.toLowerCase())),
});

async function complete(c: ApiContext, deps: UploadsDeps): Promise<Response> {
  const { id } = await findUpload(deps, pathId(c));
  const body = parse(completeUploadSchema, await readJson(c.env.incoming));
  const wish = { partIds: body.part_ids, md5: body.md5 ?? null };
  const upload = await completeUpload(id, wish, {
    ...deps,
    find: (uploadId) => findUpload(deps, uploadId),
    isHungUp: () => c.env.outgoing.destroyed,
    log: c.var.log,
  });
  return answer(c, upload, deps);
}

async function cancel(c: ApiContext, deps: UploadsDeps): Promise<Response> {
  const { id } = await findUpload(deps, pathId(c));
  await deps.store.uploads.cancel(id);
  const upload = await findUpload(deps, id);
  const status = uploadStatus(upload, Date.now());
  // Again and again the same: who cancels what is cancelled already has what they want.
  if (status === 'cancelled') return answer(c, upload, deps);
  throw notPending(id, status);
}
