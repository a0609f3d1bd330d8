import * as v from 'valibot';
import { invalidInput, notFound, SluiceError } from '../../domain/errors.ts';
import { FILE_PURPOSES, fileKey, filesInUse, isExpired, outputFileId } from '../../domain/file.ts';
import type { FileRecord } from '../../domain/file.ts';
import { batchIdOf, isFinal } from '../../domain/job.ts';
import type { JobRecord } from '../../domain/job.ts';
import type { Storage } from '../../storage/contract.ts';
import type { Collect } from '../../store/collect.ts';
import type { Files } from '../../store/files.ts';
import { parse } from '../body.ts';
import type { ConversionSlots } from '../convert/convert.ts';
import { isFileId, randomText } from '../ids.ts';
import { pathId } from '../routes.ts';
import type { ApiContext, Handler, Route } from '../routes.ts';
import { limitSchema, unknownCursor } from '../query.ts';
import { fileView, pageView } from '../views.ts';
import { sendContent } from './file-content.ts';
import { answerLink } from './file-link.ts';
import { receiveFile } from './file-form.ts';
import type { FileLimits } from './file-form.ts';

export interface FilesDeps {
  store: {
    files: Files;
    jobs: { active(): AsyncIterable<string>; get(id: string): Promise<JobRecord | null> };
    collect: Pick<Collect, 'inputOf'>;
  };
  storage: Pick<Storage, 'put' | 'get' | 'presign' | 'delete'>;
  limits: FileLimits;
  /** Removes what else holds a deleted file's content: segments of its job, kept answers. */
  forgetContent(fileId: string): Promise<void>;
}

type FileHandlers = Record<'upload' | 'list' | 'get' | 'content' | 'link' | 'remove', Handler>;

/** OpenAI's Files interface, under both of the paths that it has here. */
export function fileRoutes(deps: FilesDeps, slots: ConversionSlots): Route[] {
  const { upload, list, get, content, link, remove } = fileHandlers(deps, slots);
  return [
    { path: '/v1/files', get: list, post: upload },
    { path: '/v1/files/:id', get, delete: remove },
    { path: '/v1/files/:id/content', get: content },
    // The console's paths for the same files; before `:id`, which would match `upload` too.
    { path: '/api/v1/files/upload', post: upload },
    { path: '/api/v1/files', get: list },
    { path: '/api/v1/files/:id', get },
    { path: '/api/v1/files/:id/content', get: content },
    { path: '/api/v1/files/:id/link', post: link },
  ];
}

function fileHandlers(deps: FilesDeps, slots: ConversionSlots): FileHandlers {
  return {
    upload: (c) => upload(c, deps),
    list: (c) => list(c, deps),
    async get(c) {
      return sized(c, fileView(await findFile(deps, pathId(c))));
    },
    async content(c) {
      return sendContent(c, await findFile(deps, pathId(c)), { ...deps, slots });
    },
    async link(c) {
      return answerLink(c, await findFile(deps, pathId(c)), deps);
    },
    remove: (c) => remove(c, deps),
  };
}

/** JSON with its length, which a HEAD could not tell otherwise. */
function sized(c: ApiContext, value: object): Response {
  const text = JSON.stringify(value);
  return c.body(text, 200, {
    'Content-Type': 'application/json',
    'Content-Length': String(Buffer.byteLength(text)),
  });
}

async function findFile(deps: FilesDeps, id: string): Promise<FileRecord> {
  const file = isFileId(id) ? await deps.store.files.get(id) : null;
  if (file !== null && !isExpired(file, Date.now())) return file;
  const message = `There is no file '${id.slice(0, 100)}': GET /v1/files lists all.`;
  throw notFound('file_not_found', message, { param: 'id' });
}

async function upload(c: ApiContext, deps: FilesDeps): Promise<Response> {
  const id = `file-${randomText()}`;
  const { stored, ...form } = await receiveFile(c.env.incoming, deps.limits, (source) =>
    deps.storage.put(fileKey(id), source),
  );
  try {
    return c.json(fileView(await deps.store.files.create({ id, ...form, ...stored })));
  } catch (error) {
    await forgetUpload(c, deps, id);
    throw error;
  }
}

/** Nobody learns the id of such a file: neither its bytes nor a record whose acknowledgement got lost may stay. */
async function forgetUpload(c: ApiContext, deps: FilesDeps, id: string): Promise<void> {
  const removals = [() => deps.store.files.delete(id), () => deps.storage.delete(fileKey(id))];
  for (const removal of removals) {
    try {
      await removal();
    } catch (err) {
      // The other removal is still owed, and what the client hears is why the upload failed.
      c.var.log.warn({ err, file: id }, 'an upload that failed could not be removed whole');
    }
  }
}

const PURPOSES_RULE = `one of ${FILE_PURPOSES.join(', ')}`;
export const listSchema = v.object({
  after: v.optional(v.string()),
  limit: limitSchema(10_000, 10_000),
  order: v.optional(v.picklist(['asc', 'desc'], 'asc or desc'), 'desc'),
  purpose: v.optional(v.picklist(FILE_PURPOSES, PURPOSES_RULE)),
});

async function list(c: ApiContext, deps: FilesDeps): Promise<Response> {
  const { after, limit, order, purpose } = parse(listSchema, c.req.query());
  if (after !== undefined && !isFileId(after)) throw unknownCursor('file', after);
  const { files, hasMore } = await deps.store.files.page({
    limit,
    order,
    now: Date.now(),
    ...(after === undefined ? {} : { after }),
    ...(purpose === undefined ? {} : { purpose }),
  });
  return sized(c, pageView(files.map(fileView), hasMore));
}

async function remove(c: ApiContext, deps: FilesDeps): Promise<Response> {
  const { id } = await findFile(deps, pathId(c));
  const user = await findUser(deps, id);
  if (user !== null) {
    throw invalidInput(
      'file_in_use',
      `File '${id}' is in use by batch '${batchIdOf(user)}', which is not over yet. Cancel it first, or wait.`,
      { param: 'id' },
    );
  }
  // Record first: bytes without a record are harmless, a record without bytes is a broken promise.
  await deps.store.files.delete(id);
  await deps.storage.delete(fileKey(id));
  await deps.forgetContent(id);
  await deps.store.files.forget(id);
  return c.json({ id, object: 'file', deleted: true });
}

/** The id of the first job that still needs the file, or null. */
async function findUser({ store }: FilesDeps, fileId: string): Promise<string | null> {
  for await (const jobId of store.jobs.active()) {
    if ((await filesOf(jobId, store)).includes(fileId)) return jobId;
  }
  return null;
}

/** What an active job needs; of one whose record cannot be read, what is known without: somebody may mend it. */
async function filesOf(jobId: string, { jobs, collect }: FilesDeps['store']): Promise<string[]> {
  try {
    const job = await jobs.get(jobId);
    if (job === null || isFinal(job.state)) return [];
    const { retryOf } = job.options;
    return filesInUse(job, retryOf === null ? null : await jobs.get(retryOf));
  } catch (error) {
    if (!(error instanceof SluiceError) || error.code !== 'store.damaged_record') throw error;
    const outputs = [outputFileId(jobId, 'output'), outputFileId(jobId, 'error')];
    return [(await collect.inputOf(jobId)) ?? '', ...outputs];
  }
}
