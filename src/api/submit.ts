import * as v from 'valibot';
import { invalidInput } from '../domain/errors.ts';
import type { FileRecord } from '../domain/file.ts';
import { DEFAULT_OPTIONS, ENDPOINTS, parseCompletionWindow } from '../domain/job.ts';
import type { Endpoint, JobOptions, JobRecord } from '../domain/job.ts';
import { SHARD_CUT } from '../domain/plan.ts';
import type { NewJob } from '../store/jobs.ts';
import { derivedText, isFileId, randomText, sha256 } from './ids.ts';

/** What creating a job needs, however it was asked for. */
export interface SubmitDeps {
  store: {
    jobs: { get(id: string): Promise<JobRecord | null> };
    files: { get(id: string): Promise<FileRecord | null> };
  };
  /** Records the job and starts it. `exists`: this id with this body was there; `other`: with another body. */
  createJob(job: NewJob): Promise<{ outcome: 'created' | 'exists' | 'other'; job: JobRecord }>;
  limits: { maxBatchFileBytes: number };
  /** What a job gets that does not say otherwise. */
  defaults: {
    /** Lines that one process sends at once to one engine. */
    maxConcurrency: number;
    /** The engines of this server. */
    engineUrls: readonly string[];
  };
}

/** A job as a user asks for it through either interface; null: the server's default. */
interface JobWish {
  name: string;
  endpoint: Endpoint;
  input: string;
  completionWindow: string;
  metadata: Record<string, string>;
  maxConcurrency: number | null;
  engines: string[];
  options: Partial<JobOptions>;
}

/** OpenAI's limits: 16 pairs, keys of 64 and values of 512 characters. */
const METADATA_RULE =
  'at most 16 pairs of strings, keys of at most 64 and values of at most 512 characters';

export const metadataSchema = v.pipe(
  v.record(v.string(), v.string('a string'), METADATA_RULE),
  v.check((pairs) => Object.keys(pairs).length <= 16, METADATA_RULE),
  v.check(
    (pairs) =>
      Object.entries(pairs).every(([key, value]) => key.length <= 64 && value.length <= 512),
    METADATA_RULE,
  ),
);

export const endpointSchema = v.picklist(ENDPOINTS, `one of ${ENDPOINTS.join(', ')}`);

const CONCURRENCY_RULE = 'an integer from 1 to 1024';

/** Keys of `client`; one that has no effect here is refused, since a wish ignored in silence is worse. */
export const clientEntries = {
  max_concurrency: v.nullish(
    v.pipe(
      v.number(CONCURRENCY_RULE),
      v.integer(CONCURRENCY_RULE),
      v.minValue(1, CONCURRENCY_RULE),
      v.maxValue(1_024, CONCURRENCY_RULE),
    ),
  ),
};

/**
 * Creates the job, or finds the one that the same `Idempotency-Key` made before: its id is derived from the key, so
 * that the store's own create decides. `param` is the name that the input file has in this interface.
 */
export async function submitJob(
  deps: SubmitDeps,
  wish: JobWish,
  { idempotencyKey, param }: { idempotencyKey: string | undefined; param: string },
): Promise<JobRecord> {
  const windowMs = parseCompletionWindow(wish.completionWindow);
  const id = jobId(idempotencyKey);
  // A repeat must be answered as the first time, even if the input file was deleted since.
  const isRepeat = idempotencyKey !== undefined && (await deps.store.jobs.get(id)) !== null;
  if (!isRepeat) await checkInput(deps, wish.input, param);
  checkEngines(deps, wish.engines);
  const { outcome, job } = await deps.createJob({
    ...wish,
    id,
    windowMs,
    options: { ...DEFAULT_OPTIONS, ...wish.options },
    maxConcurrency: wish.maxConcurrency ?? deps.defaults.maxConcurrency,
    cut: SHARD_CUT,
    bodyHash: sha256(canonicalJson(wish)),
  });
  if (outcome !== 'other') return job;
  throw invalidInput(
    'idempotency_key_reused',
    'This Idempotency-Key was used before with another request body.',
    { param: 'Idempotency-Key' },
  );
}

function jobId(idempotencyKey: string | undefined): string {
  if (idempotencyKey === undefined) return `job_${randomText()}`;
  if (idempotencyKey.length >= 1 && idempotencyKey.length <= 255) {
    return `job_${derivedText(idempotencyKey)}`;
  }
  throw invalidInput('invalid_value', 'An Idempotency-Key has 1 to 255 characters.', {
    param: 'Idempotency-Key',
  });
}

/** Equal wishes give equal texts, in whatever order their keys came. */
function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_key, inner: unknown) =>
    typeof inner === 'object' && inner !== null && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).toSorted(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  );
}

async function checkInput(deps: SubmitDeps, fileId: string, param: string): Promise<void> {
  const file = isFileId(fileId) ? await deps.store.files.get(fileId) : null;
  if (file === null) {
    throw invalidInput('invalid_input_file', `There is no file '${fileId.slice(0, 100)}'.`, {
      param,
    });
  }
  if (file.purpose !== 'batch') {
    throw invalidInput(
      'invalid_input_file',
      `File '${file.id}' has the purpose '${file.purpose}'; the input of a batch needs 'batch'.`,
      { param },
    );
  }
  const limit = deps.limits.maxBatchFileBytes;
  if (file.bytes > limit) {
    throw invalidInput(
      'invalid_input_file',
      `File '${file.id}' has ${file.bytes} bytes; the input of a batch may have at most ${limit}.`,
      { param },
    );
  }
}

function checkEngines({ defaults }: SubmitDeps, engines: readonly string[]): void {
  if (engines.length > 0 || defaults.engineUrls.length > 0) return;
  throw invalidInput(
    'no_engine',
    'This server has no engine to run a batch on: start it with ENGINE_URLS=http://host:8000, ' +
      "or name one in the request: aibrix.runtime {target: 'External', options: {base_url: 'http://host:8000'}}.",
    { param: 'aibrix.runtime' },
  );
}
