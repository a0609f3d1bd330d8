import * as v from 'valibot';
import { invalidInput, SluiceError } from '../domain/errors.ts';
import type { ErrorDetails } from '../domain/errors.ts';
import { isExpired } from '../domain/file.ts';
import type { FileRecord } from '../domain/file.ts';
import {
  formatLocation,
  formatPinned,
  isUrl,
  isWithin,
  parseAddress,
  parseFolderUrl,
  parseObjectUrl,
} from '../domain/location.ts';
import type { Location } from '../domain/location.ts';
import type { Places } from '../storage/places.ts';
import type { NewFile } from '../store/files.ts';
import { isFileId, randomText } from './ids.ts';

const INPUT_RULE =
  'the id of an uploaded file, or a URL such as s3://bucket/key where ALLOWED_BUCKETS of the server has its folder';

/** The input of a job that is created. */
export const inputSchema = v.pipe(v.string(INPUT_RULE), v.nonEmpty(INPUT_RULE));

/** Where the files of a job go that is created. */
export const outputPrefixSchema = v.nullish(
  v.string(
    'a URL such as s3://bucket/folder/, where ALLOWED_BUCKETS of the server has it: output and error file are ' +
      'written there, as <batch id>_output.jsonl and <batch id>_error.jsonl',
  ),
);

export interface PlacesDeps {
  store: { files: { get(id: string): Promise<FileRecord | null> } };
  limits: { maxBatchFileBytes: number };
  places: Places;
}

/** An input that is there and may be one. */
export interface FoundInput {
  /** Its record, or the one that it gets when the job is created. */
  file: FileRecord | NewFile;
  isRecorded: boolean;
}

/** A folder as a request names it, in the field `param`. */
export interface OutputWish {
  url: string;
  param: string;
}

/** The output folder that a request asks for, in the one way in which it is written. */
export function outputWish(url: string | null | undefined, param: string): { output?: OutputWish } {
  if (url === null || url === undefined) return {};
  const parsed = parseFolderUrl(url);
  if ('problem' in parsed) throw badUrl(url, parsed.problem, param);
  return { output: { url: formatLocation(parsed.location), param } };
}

function badUrl(url: string, problem: string, param: string): SluiceError {
  const message = `Invalid '${param}': '${url.slice(0, 200)}' ${problem}.`;
  return invalidInput('invalid_url', message, { param });
}

/**
 * Looks at the input that a request names, by the id of its file or by its URL. One outside is pinned to the version
 * that it has now. Refused unless it is there, may be read, and is not too large.
 */
export async function findInput(
  deps: PlacesDeps,
  named: string,
  param: string,
): Promise<FoundInput> {
  const found = isUrl(named)
    ? { file: await findObject(deps, named, param), isRecorded: false }
    : { file: await findFile(deps, named, param), isRecorded: true };
  const { bytes } = found.file;
  const limit = deps.limits.maxBatchFileBytes;
  if (bytes <= limit) return found;
  throw badInput(
    `${isUrl(named) ? 'The object' : 'File'} '${named}' has ${bytes} bytes; the input of a batch may have at most ${limit}.`,
    param,
  );
}

async function findFile(deps: PlacesDeps, fileId: string, param: string): Promise<FileRecord> {
  const file = isFileId(fileId) ? await deps.store.files.get(fileId) : null;
  if (file === null || isExpired(file, Date.now())) {
    const message = `There is no file '${fileId.slice(0, 100)}': GET /v1/files lists all, POST /v1/files uploads one.`;
    throw badInput(message, param);
  }
  if (file.purpose !== 'batch') {
    const message = `File '${file.id}' has the purpose '${file.purpose}'; the input of a batch needs 'batch'.`;
    throw badInput(message, param);
  }
  await requireUnchanged(deps, file, param);
  return file;
}

/** A file that lies in a bucket of the user's has to be what it was, in a folder that is allowed still. */
export async function requireUnchanged(
  { places }: Pick<PlacesDeps, 'places'>,
  file: FileRecord,
  param: string,
): Promise<void> {
  const { location, pin } = parseAddress(file.location ?? '') ?? {};
  if (location === undefined || !pin) return;
  const url = formatLocation(location);
  requireAllowed({ places }, location, param);
  const isThere = await orRefuse(
    () => places.isThere(location, pin),
    (why, cause) => unreadable(url, why, { param, cause }),
  );
  if (isThere) return;
  const message = `File '${file.id}' is a version of '${url}' that is not there any more: it was changed or deleted. Name the URL itself to use what is there now.`;
  throw badInput(message, param);
}

async function findObject(deps: PlacesDeps, url: string, param: string): Promise<NewFile> {
  const parsed = parseObjectUrl(url);
  if ('problem' in parsed) throw badUrl(url, parsed.problem, param);
  const { location } = parsed;
  requireAllowed(deps, location, param);
  const { bytes, pin } = await look(deps, location, param);
  return {
    id: `file-${randomText()}`,
    bytes,
    // Not known before somebody reads it, which planning does.
    sha256: '',
    filename: location.key.split('/').at(-1) ?? location.key,
    purpose: 'batch',
    location: formatPinned(location, pin),
  };
}

async function look({ places }: Pick<PlacesDeps, 'places'>, location: Location, param: string) {
  const url = formatLocation(location);
  const found = await orRefuse(
    () => places.look(location),
    (why, cause) => unreadable(url, why, { param, cause }),
  );
  if (found !== null) return found;
  throw badInput(`There is no object '${url}'.`, param);
}

function unreadable(url: string, why: string, details: ErrorDetails): SluiceError {
  const message = `The object '${url}' cannot be read by this server: ${why}`;
  return invalidInput('invalid_input_file', message, details);
}

/** Refused unless the server may, and can, write to the folder. */
export async function requireWritable(
  deps: Pick<PlacesDeps, 'places'>,
  { url, param }: OutputWish,
): Promise<void> {
  const parsed = parseFolderUrl(url);
  if ('problem' in parsed) throw badUrl(url, parsed.problem, param);
  requireAllowed(deps, parsed.location, param);
  await orRefuse(
    () => deps.places.tryWriting(parsed.location),
    (why, cause) => {
      const message = `This server cannot write to '${url}': ${why}`;
      return invalidInput('output_not_writable', message, { param, cause });
    },
  );
}

function requireAllowed(
  { places }: Pick<PlacesDeps, 'places'>,
  location: Location,
  param: string,
): void {
  if (isWithin(places.allowed, location)) return;
  const message = `The folder of '${formatLocation(location)}' is not among those that batches may name: whoever runs this server allows it with ALLOWED_BUCKETS, such as ALLOWED_BUCKETS=${location.scheme}://${location.bucket}/folder/.`;
  throw invalidInput('bucket_not_allowed', message, { param });
}

/** What only who owns the bucket can mend, or who wrote the request: other jobs may wait for that, a new one need not. */
const LASTING = new Set(['storage.denied', 'storage.no_bucket', 'storage.wrong_region']);

/** What is wrong with a bucket for good is the request's fault; a store that is away is not. */
async function orRefuse<T>(
  ask: () => Promise<T>,
  refusal: (why: string, cause: SluiceError) => SluiceError,
): Promise<T> {
  try {
    return await ask();
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error;
    if (error.kind === 'Transient' && !LASTING.has(error.code)) throw error;
    // What the store said of itself is for the log.
    throw refusal(error.message, error);
  }
}

function badInput(message: string, param: string): SluiceError {
  return invalidInput('invalid_input_file', message, { param });
}
