import * as v from 'valibot';
import { UPLOAD_PURPOSES } from '../domain/file.ts';
import { MAX_PARTS, UPLOAD_LIFE_MS, UPLOAD_STATUSES } from '../domain/upload.ts';
import type { UploadEnd, UploadPart, UploadRecord, UploadResult } from '../domain/upload.ts';
import { recordKey, uploadKey } from './keys.ts';
import { count, integer, parseRecord, replyNumber } from './parse.ts';
import type { Fields } from './parse.ts';
import { createRecord, enterIndex, indexAge, readFields } from './records.ts';
import type { Context } from './records.ts';
import { damaged, newOp } from './scripts.ts';

/** An upload as it was asked for; it expires an hour after its creation. */
export interface NewUpload extends Pick<
  UploadRecord,
  'id' | 'filename' | 'purpose' | 'mimeType' | 'bytes' | 'expiresAfterMs'
> {
  /** Tells a request that was sent twice from another one under the same id. */
  bodyHash: string;
}

/** Records of uploads and of their parts; the bytes are storage's. */
export interface Uploads {
  /** `exists`: this id and body are there already; `other`: the id is, with another body. */
  create(
    upload: NewUpload,
  ): Promise<{ outcome: 'created' | 'exists' | 'other'; upload: UploadRecord }>;
  /** A damaged record is `store.damaged_record` (Permanent). */
  get(id: string): Promise<UploadRecord | null>;
  /** Adds a part whose bytes are in storage. `over`: the upload takes none any more; `full`: nor as many. */
  addPart(id: string, part: Omit<UploadPart, 'createdAt'>): Promise<UploadPart | 'over' | 'full'>;
  /** All parts that were added, by id. */
  parts(id: string): Promise<ReadonlyMap<string, UploadPart>>;
  /**
   * Lets one attempt at joining the parts run for `ms`; called again by the same one it goes on. An attempt is known
   * by the id of the file that it writes. `busy`: another one runs; `over`: the upload is not pending any more.
   */
  begin(id: string, fileId: string, ms: number): Promise<'begun' | 'busy' | 'over'>;
  /** Ends an attempt that came to nothing, so that another may begin at once. */
  abandon(id: string, fileId: string): Promise<void>;
  /** Brings a pending upload to its end, which only one does: `over` for all others. */
  complete(id: string, result: UploadResult): Promise<'ended' | 'over'>;
  cancel(id: string): Promise<'ended' | 'over'>;
  /** `over` also while it has time left, or an attempt runs. */
  expire(id: string): Promise<'ended' | 'over'>;
  /** Notes that a completed one has its file. */
  markFileMade(id: string): Promise<void>;
  /** Files that attempts began to write, that of a completed upload among them. */
  attempts(id: string): Promise<string[]>;
  /** Ids of uploads that are to be looked at by Redis' clock, longest due first; some may have no record. */
  due(limit: number): Promise<string[]>;
  postpone(id: string, until: number): Promise<void>;
  /** Milliseconds since `due` began to name it; 0 when it does not. */
  age(id: string): Promise<number>;
  /** Keeps nothing but the record, for a while, so that repeats are answered. */
  forget(id: string): Promise<void>;
}

/** How long the record of an upload outlives what was kept of it. */
const KEPT_MS = 30 * 24 * 3_600_000;

export function createUploads(context: Context): Uploads {
  const { redis, scripts, keys } = context;
  async function end(id: string, to: UploadEnd, result?: UploadResult): Promise<'ended' | 'over'> {
    const { fileId = '', sha256 = '', md5 = '', list = '' } = result ?? {};
    const op = newOp();
    const reply = await scripts.run('upload-end', recordKey(id), op, to, fileId, sha256, md5, list);
    const outcome = v.parse(v.picklist(['ended', 'over']), reply);
    // What is left of it is cleared away soon; whoever dies before this leaves that to the hour's end.
    if (outcome === 'ended') await scripts.run('enter', keys.uploads, id, 1);
    return outcome;
  }
  return {
    create: (upload) => createUpload(context, upload),
    get: (id) => getUpload(context, id),
    async addPart(id, part) {
      const reply = await scripts.run('upload-part', recordKey(id), part.id, part.bytes, MAX_PARTS);
      const createdAt = v.parse(replyNumber, reply);
      if (createdAt < 0) return createdAt === -1 ? 'over' : 'full';
      return { ...part, createdAt };
    },
    parts: async (id) => parseParts(id, await redis.hgetall(uploadKey(id, 'UPLOAD_PARTS'))),
    async begin(id, fileId, ms) {
      const reply = await scripts.run('upload-begin', recordKey(id), fileId, ms);
      return v.parse(v.picklist(['begun', 'busy', 'over']), reply);
    },
    async abandon(id, fileId) {
      await scripts.run('upload-begin', recordKey(id), fileId, 0);
    },
    complete: (id, result) => end(id, 'completed', result),
    cancel: (id) => end(id, 'cancelled'),
    expire: (id) => end(id, 'expired'),
    async markFileMade(id) {
      await redis.hset(recordKey(id), 'file_made', 1);
    },
    attempts: (id) => redis.smembers(uploadKey(id, 'UPLOAD_FILES')),
    due: async (limit) =>
      v.parse(v.array(v.string()), await scripts.run('due', keys.uploads, limit)),
    async postpone(id, until) {
      await redis.zadd(keys.uploads, 'XX', until, id);
    },
    age: (id) => indexAge(context, keys.uploads, id),
    async forget(id) {
      await redis.del(uploadKey(id, 'UPLOAD_PARTS'), uploadKey(id, 'UPLOAD_FILES'));
      await redis.pexpire(recordKey(id), KEPT_MS);
      await redis.zrem(keys.uploads, id);
    },
  };
}

async function createUpload(
  context: Context,
  { id, bodyHash, ...asked }: NewUpload,
): ReturnType<Uploads['create']> {
  const outcome = await createRecord(context, {
    id,
    bodyHash,
    enter: (anew) => enterIndex(context, context.keys.uploads, id, anew),
    fields: (at) => ({
      status: 'pending',
      filename: asked.filename,
      purpose: asked.purpose,
      mime_type: asked.mimeType,
      bytes: asked.bytes,
      ...(asked.expiresAfterMs === null ? {} : { expires_after: asked.expiresAfterMs }),
      created_at: at,
      expires_at: at + UPLOAD_LIFE_MS,
    }),
  });
  const upload = await getUpload(context, id);
  if (upload === null) throw damaged(id, '(all)');
  return { outcome, upload };
}

async function getUpload(context: Context, id: string): Promise<UploadRecord | null> {
  const fields = await readFields(context, id);
  return fields === null ? null : parseUpload(id, fields);
}

const text = v.optional(v.string(), '');

const uploadFields = v.object({
  status: v.picklist(UPLOAD_STATUSES),
  filename: v.string(),
  purpose: v.picklist(UPLOAD_PURPOSES),
  mime_type: v.string(),
  bytes: integer,
  expires_after: v.optional(integer),
  created_at: integer,
  expires_at: integer,
  busy_until: count,
  ended_at: v.optional(integer),
  file: text,
  sha256: text,
  md5: text,
  list: text,
  file_made: v.optional(v.string()),
});

function parseUpload(id: string, fields: Fields): UploadRecord {
  const parsed = parseRecord(id, uploadFields, fields);
  const { status, filename, purpose, bytes, file: fileId, sha256, md5, list } = parsed;
  return {
    id,
    status,
    filename,
    purpose,
    bytes,
    mimeType: parsed.mime_type,
    expiresAfterMs: parsed.expires_after ?? null,
    createdAt: parsed.created_at,
    expiresAt: parsed.expires_at,
    busyUntil: parsed.busy_until,
    endedAt: parsed.ended_at ?? null,
    result: fileId === '' ? null : { fileId, sha256, md5, list },
    isFileMade: parsed.file_made !== undefined,
  };
}

function parseParts(id: string, fields: Fields): ReadonlyMap<string, UploadPart> {
  const parts = Object.entries(fields).map(([part, value]) => {
    const [bytes, createdAt] = value.split(' ');
    const schema = v.object({ bytes: integer, createdAt: integer });
    return { id: part, ...parseRecord(`${id} ${part}`, schema, { bytes, createdAt }) };
  });
  return new Map(parts.map((part) => [part.id, part]));
}
