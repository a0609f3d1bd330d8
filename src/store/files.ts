import * as v from 'valibot';
import { FILE_PURPOSES, isExpired } from '../domain/file.ts';
import type { FilePurpose, FileRecord } from '../domain/file.ts';
import { recordKey } from './keys.ts';
import { integer, parseRecord } from './parse.ts';
import type { Fields } from './parse.ts';
import { createRecord, enterIndex, enterIndexAt, pageRecords, readFields } from './records.ts';
import type { Context } from './records.ts';
import { damaged, newOp } from './scripts.ts';

export interface FilePage {
  after?: string;
  limit: number;
  order: 'asc' | 'desc';
  purpose?: FilePurpose;
  /** Leaves out what is expired by then, ms; nothing unless given. */
  now?: number;
}

/** A file whose bytes are in storage. Its expiry is Redis' time at creation and `expiresAfterMs`. */
export interface NewFile extends Omit<FileRecord, 'createdAt' | 'expiresAt'> {
  expiresAfterMs?: number | null;
}

/** Records of files; their bytes are storage's. */
export interface Files {
  /** Writes a file's record, or answers the one that is there under this id. */
  create(file: NewFile): Promise<FileRecord>;
  /** Writes what was not known, or not for good, when the record was made; nothing where it is gone. */
  amend(id: string, change: Partial<Pick<FileRecord, 'sha256' | 'location'>>): Promise<void>;
  /** Expired ones too. A damaged record is `store.damaged_record` (Permanent). */
  get(id: string): Promise<FileRecord | null>;
  /** By time of creation. An unknown `after` is `invalid_cursor` (InvalidInput). */
  page(options: FilePage): Promise<{ files: FileRecord[]; hasMore: boolean }>;
  /** Whether there was one to remove. Call `forget` once its bytes are gone, too. */
  delete(id: string): Promise<boolean>;
  /**
   * Ids of files whose bytes are to go by Redis' clock, longest due first: they are expired, or somebody began to
   * delete them. Some may have no record.
   */
  due(limit: number): Promise<string[]>;
  /** Lets `due` name a file again at this time, ms, if it would name it at all. */
  postpone(id: string, until: number): Promise<void>;
  /** Lets a file expire at this time, ms, unless it does before. */
  expire(id: string, at: number): Promise<void>;
  /** Takes a file whose bytes are gone out of those that `due` names. */
  forget(id: string): Promise<void>;
  /** The same for one that stays for good, unless somebody began to delete it, or to let it expire, within a minute. */
  forgetUnless(id: string): Promise<void>;
}

/**
 * The sweeper sees an entry after this only: one without an effect is forgotten, and whoever made it has had it by then,
 * or is dead.
 */
const UNDISTURBED_MS = 60_000;

export function createFiles(context: Context): Files {
  const { redis, scripts, keys } = context;
  return {
    create: (file) => createFile(context, file),
    async amend(id, change) {
      await scripts.run('file-amend', recordKey(id), ...Object.entries(change).flat());
    },
    get: (id) => getFile(context, id),
    async page({ after, limit, order, purpose, now = -Infinity }) {
      const { records, hasMore } = await pageRecords(context, {
        index: keys.files,
        after,
        limit,
        order,
        parse: parseFile,
        matches: (file) =>
          (purpose === undefined || file.purpose === purpose) && !isExpired(file, now),
      });
      return { files: records, hasMore };
    },
    async delete(id) {
      // First of all, so that bytes which outlive their record, because who deletes them dies, are found.
      await scripts.run('enter', keys.fileExpiry, id, 1, UNDISTURBED_MS);
      const removed = await scripts.run('remove', recordKey(id), newOp());
      await redis.zrem(keys.files, id);
      return removed === 1;
    },
    due: async (limit) =>
      v.parse(v.array(v.string()), await scripts.run('due', keys.fileExpiry, limit)),
    async postpone(id, until) {
      await redis.zadd(keys.fileExpiry, 'XX', until, id);
    },
    async expire(id, at) {
      await scripts.run('enter', keys.fileExpiry, id, 1, UNDISTURBED_MS);
      const found = await scripts.run('file-expire', recordKey(id), at);
      if (found === 1) await redis.zadd(keys.fileExpiry, 'LT', at, id);
    },
    async forget(id) {
      await redis.zrem(keys.fileExpiry, id);
    },
    async forgetUnless(id) {
      await scripts.run('leave', keys.fileExpiry, id, '');
    },
  };
}

async function getFile(context: Context, id: string): Promise<FileRecord | null> {
  const fields = await readFields(context, id);
  return fields === null ? null : parseFile(id, fields);
}

async function createFile(context: Context, file: NewFile): Promise<FileRecord> {
  const { id, bytes, sha256, filename, purpose, mimeType, location } = file;
  const { keys } = context;
  const { expiresAfterMs = null } = file;
  await createRecord(context, {
    id,
    async enter(anew) {
      const at = await enterIndex(context, keys.files, id, anew);
      if (expiresAfterMs !== null)
        await enterIndexAt(context, keys.fileExpiry, id, at + expiresAfterMs, anew);
      return at;
    },
    fields: (at) => ({
      bytes,
      sha256,
      filename,
      purpose,
      created_at: at,
      ...(expiresAfterMs === null ? {} : { expires_at: at + expiresAfterMs }),
      ...(mimeType === undefined ? {} : { mime_type: mimeType }),
      ...(location === undefined ? {} : { location }),
    }),
  });
  const made = await getFile(context, id);
  if (made === null) throw damaged(id, '(all)');
  return made;
}

const fileFields = v.object({
  bytes: integer,
  sha256: v.string(),
  filename: v.string(),
  purpose: v.picklist(FILE_PURPOSES),
  created_at: integer,
  expires_at: v.optional(integer),
  mime_type: v.optional(v.string()),
  location: v.optional(v.string()),
});

function parseFile(id: string, fields: Fields): FileRecord {
  const parsed = parseRecord(id, fileFields, fields);
  const {
    created_at: createdAt,
    expires_at: expiresAt,
    mime_type: mimeType,
    location,
    ...file
  } = parsed;
  return {
    id,
    ...file,
    createdAt,
    ...(expiresAt === undefined ? {} : { expiresAt }),
    ...(mimeType === undefined ? {} : { mimeType }),
    ...(location === undefined ? {} : { location }),
  };
}
