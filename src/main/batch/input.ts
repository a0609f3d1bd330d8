import { addAbortSignal } from 'node:stream';
import { invalidInput, notFound } from '../../domain/errors.ts';
import { fileKey } from '../../domain/file.ts';
import type { Endpoint, JobError } from '../../domain/job.ts';
import {
  formatLocation,
  formatPinned,
  isUrl,
  isWithin,
  parseObjectUrl,
} from '../../domain/location.ts';
import type { RunPlan } from '../../domain/kubernetes/run-record.ts';
import { reportProblems, SHARD_CUT } from '../../domain/plan.ts';
import type { ShardPlan } from '../../domain/plan.ts';
import type { Storage } from '../../storage/contract.ts';
import { isPlainKey } from '../../storage/keys.ts';
import type { Places } from '../../storage/places.ts';
import { planInput } from '../plan-input.ts';
import type { InputLimits } from '../plan-input.ts';

/** An input as it lies in storage. */
export interface RunInput {
  /** Key, or address of one version of an object in a bucket of the user's. */
  key: string;
  bytes: number;
}

/**
 * Finds the input that a batch names: a file that was uploaded, an object of that key, or one of a bucket that
 * ALLOWED_BUCKETS names. Rejects with InvalidInput for a name that can name none, and `input.missing` (NotFound).
 */
export async function findInput(
  id: string,
  { storage, places }: { storage: Storage; places: Places },
): Promise<RunInput> {
  if (isUrl(id)) return findOutside(id, places);
  if (!isPlainKey(id)) {
    const rule = `the id of an uploaded file, the key of an object in storage, or a URL such as s3://bucket/key`;
    throw invalidInput('input.name', `input-file-id must be ${rule}; got '${id.slice(0, 200)}'`);
  }
  for (const key of [fileKey(id), id]) {
    const found = await storage.head(key);
    if (found !== null) return { key, bytes: found.bytes };
  }
  throw notFound(
    'input.missing',
    `The input file '${id}' is not in storage, neither as ${fileKey(id)} nor as ${id}: see whether input-file-id and the storage settings (STORAGE_TYPE, bucket, prefix) are those that it was uploaded with.`,
  );
}

async function findOutside(url: string, places: Places): Promise<RunInput> {
  const parsed = parseObjectUrl(url);
  if ('problem' in parsed) {
    throw invalidInput('input.name', `input-file-id '${url.slice(0, 200)}' ${parsed.problem}`);
  }
  const { location } = parsed;
  if (!isWithin(places.allowed, location)) {
    const mend = `set ALLOWED_BUCKETS=${location.scheme}://${location.bucket}/ for the worker`;
    const message = `input-file-id names ${formatLocation(location)}, which ALLOWED_BUCKETS does not allow: ${mend}`;
    throw invalidInput('input.name', message);
  }
  const found = await places.look(location);
  if (found === null) {
    throw notFound('input.missing', `There is no object ${formatLocation(location)}.`);
  }
  return { key: formatPinned(location, found.pin), bytes: found.bytes };
}

export interface PlanWish {
  input: RunInput;
  endpoint: Endpoint;
  pinnedModel: string | null;
  isLenient: boolean;
  signal: AbortSignal;
}

/** Whoever may create the Job has no quota here: a limit would only send them to another tool. */
const NO_LIMIT = { maxBatchLines: 1_000_000_000 };

/** Validates a whole input in one pass and cuts it into shards. It depends on nothing but the input and these wishes. */
export async function makePlan(
  { input, endpoint, pinnedModel, isLenient, signal }: PlanWish,
  { storage, ...limits }: Omit<InputLimits, 'maxBatchLines'> & { storage: Storage },
): Promise<{ plan: Omit<RunPlan, 'sha256'> } | { errors: JobError[] }> {
  const shards: ShardPlan[] = [];
  const bad = new Map<number, Buffer>();
  const source = addAbortSignal(signal, await storage.get(input.key));
  try {
    const read = await planInput({ ...limits, ...NO_LIMIT }, source, {
      endpoint,
      pinnedModel,
      cut: SHARD_CUT,
      signal,
      async onShards(page) {
        shards.push(...page);
      },
      onBadLines: isLenient
        ? async (page) => {
            for (const { n, bad: bits } of page) bad.set(n, bits);
          }
        : null,
    });
    const errors = isLenient
      ? [read.unfit].filter((error) => error !== null)
      : reportProblems(read.problems, read.total);
    if (errors.length > 0) return { errors };
    const { models, lines } = read;
    const { key: inputKey, bytes: inputBytes } = input;
    return { plan: { inputKey, inputBytes, models, lines, shards, bad } };
  } catch (error) {
    // Whoever aborted says why; the stream only says that it was.
    signal.throwIfAborted();
    throw error;
  } finally {
    source.destroy();
  }
}
