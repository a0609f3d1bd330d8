import * as v from 'valibot';
import { FILE_PURPOSES } from '../domain/file.ts';
import type { FilePurpose, FileRecord } from '../domain/file.ts';
import { recordKey } from './keys.ts';
import { integer, parseRecord } from './parse.ts';
import type { Fields } from './parse.ts';
import { createRecord, enterIndex, pageRecords, readFields } from './records.ts';
import type { Context } from './records.ts';
import { damaged, newOp } from './scripts.ts';

export interface FilePage {
  after?: string;
  limit: number;
  order: 'asc' | 'desc';
  purpose?: FilePurpose;
}

/** Records of files; their bytes are storage's. */
export interface Files {
  /** Writes a file's record, or answers the one that is there under this id. */
  create(file: Omit<FileRecord, 'createdAt'>): Promise<FileRecord>;
  /** A damaged record is `store.damaged_record` (Permanent). */
  get(id: string): Promise<FileRecord | null>;
  /** By time of creation. An unknown `after` is `invalid_cursor` (InvalidInput). */
  page(options: FilePage): Promise<{ files: FileRecord[]; hasMore: boolean }>;
  /** Whether there was one to remove. */
  delete(id: string): Promise<boolean>;
}

export function createFiles(context: Context): Files {
  const { redis, scripts, keys } = context;
  async function get(id: string): Promise<FileRecord | null> {
    const fields = await readFields(context, id);
    return fields === null ? null : parseFile(id, fields);
  }
  return {
    async create({ id, bytes, sha256, filename, purpose }) {
      await createRecord(context, {
        id,
        enter: (anew) => enterIndex(context, keys.files, id, anew),
        fields: (at) => ({ bytes, sha256, filename, purpose, created_at: at }),
      });
      const file = await get(id);
      if (file === null) throw damaged(id, '(all)');
      return file;
    },
    get,
    async page({ after, limit, order, purpose }) {
      const { records, hasMore } = await pageRecords(context, {
        index: keys.files,
        after,
        limit,
        order,
        parse: parseFile,
        matches: (file) => purpose === undefined || file.purpose === purpose,
      });
      return { files: records, hasMore };
    },
    async delete(id) {
      const removed = await scripts.run('remove', recordKey(id), newOp());
      await redis.zrem(keys.files, id);
      return removed === 1;
    },
  };
}

const fileFields = v.object({
  bytes: integer,
  sha256: v.string(),
  filename: v.string(),
  purpose: v.picklist(FILE_PURPOSES),
  created_at: integer,
});

function parseFile(id: string, fields: Fields): FileRecord {
  const { created_at: createdAt, ...file } = parseRecord(id, fileFields, fields);
  return { id, ...file, createdAt };
}
