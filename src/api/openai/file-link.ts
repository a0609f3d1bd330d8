import * as v from 'valibot';
import { invalidInput, SluiceError } from '../../domain/errors.ts';
import { contentKey, MOST_LINK_SECONDS } from '../../domain/file.ts';
import type { FileRecord } from '../../domain/file.ts';
import type { Link, LinkOptions, Storage } from '../../storage/contract.ts';
import { exactObject, parse } from '../body.ts';
import { optionalJson } from '../console/request.ts';
import { contentDisposition } from '../disposition.ts';
import type { ApiContext } from '../routes.ts';
import { unixSeconds } from '../views.ts';
import { contentType } from './file-content.ts';

const DEFAULT_SECONDS = 3_600;
const SECONDS_RULE = `an integer of seconds from 1 to ${MOST_LINK_SECONDS}`;

export const linkBodySchema = exactObject({
  expires_in: v.nullish(
    v.pipe(
      v.number(SECONDS_RULE),
      v.integer(SECONDS_RULE),
      v.minValue(1, SECONDS_RULE),
      v.maxValue(MOST_LINK_SECONDS, SECONDS_RULE),
    ),
    DEFAULT_SECONDS,
  ),
});

/** A link as the API shows it; the id is that of the file, with which a kept answer goes. */
export function linkView({ id }: Pick<FileRecord, 'id'>, { url, expiresAt }: Link) {
  return { id, object: 'file.link', url, expires_at: unixSeconds(expiresAt) };
}

/** An address at the store itself, from which a file is downloaded without a key; it ends with the file at the latest. */
export async function answerLink(
  c: ApiContext,
  file: FileRecord,
  { storage }: { storage: Pick<Storage, 'presign'> },
): Promise<Response> {
  const { expires_in: wanted } = parse(linkBodySchema, await optionalJson(c));
  const left = Math.ceil(((file.expiresAt ?? Infinity) - Date.now()) / 1_000);
  const link = await linkOf(file, storage, {
    expiresInSeconds: Math.max(1, Math.min(wanted, left)),
    disposition: contentDisposition(file.filename),
    type: contentType(file),
  });
  return c.json(linkView(file, link));
}

async function linkOf(
  file: FileRecord,
  storage: Pick<Storage, 'presign'>,
  options: LinkOptions,
): Promise<Link> {
  try {
    return await storage.presign(contentKey(file), options);
  } catch (error) {
    if (!(error instanceof SluiceError) || error.code !== 'storage.no_links') throw error;
    const message = `This server keeps files in a folder, to which there are no links: download it with GET /v1/files/${file.id}/content, or keep files in a bucket (STORAGE_TYPE).`;
    throw invalidInput('links_not_available', message, { param: 'id', cause: error });
  }
}
