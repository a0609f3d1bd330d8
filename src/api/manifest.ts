import { buffer } from 'node:stream/consumers';
import * as v from 'valibot';
import { SluiceError, notFound } from '../domain/errors.ts';
import { manifestKey } from '../domain/file.ts';
import { isFinal } from '../domain/job.ts';
import type { JobRecord } from '../domain/job.ts';
import type { Storage } from '../storage/contract.ts';
import type { Jobs } from '../store/jobs.ts';
import { findBatch, findJob } from './find-job.ts';
import type { FindJob } from './find-job.ts';
import { pathId } from './routes.ts';
import type { ApiContext, Route } from './routes.ts';

export interface ManifestDeps {
  store: { jobs: Pick<Jobs, 'get'> };
  storage: Pick<Storage, 'get'>;
}

/** What a job wrote, from what and by whom: digests and counts of its files. */
export function manifestRoutes(deps: ManifestDeps): Route[] {
  function route(path: string, find: FindJob): Route {
    return { path, get: (c) => send(c, deps, find) };
  }
  return [
    route('/v1/batches/:id/manifest', findBatch),
    route('/api/v1/jobs/:id/manifest', findJob),
  ];
}

async function send(c: ApiContext, deps: ManifestDeps, find: FindJob): Promise<Response> {
  const job = await find(deps.store.jobs, pathId(c));
  const bytes = isFinal(job.state) ? await read(job, deps) : null;
  if (bytes === null) {
    const why = isFinal(job.state)
      ? 'it has none: it wrote no files, or they were deleted'
      : `it is written with the files, and the job is ${job.state}`;
    throw notFound('manifest_not_found', `There is no manifest of this job: ${why}.`, {
      param: 'id',
    });
  }
  return c.body(new Uint8Array(bytes), 200, { 'Content-Type': 'application/json' });
}

const outcomeSchema = v.pipe(
  v.string(),
  v.parseJson(),
  v.object({
    status: v.string(),
    output: v.nullable(v.object({ file_id: v.string() })),
    error: v.nullable(v.object({ file_id: v.string() })),
  }),
);

/** False for one of files that were given up after it was written: their job ended otherwise. */
function isOf(job: JobRecord, text: string): boolean {
  const { success, output } = v.safeParse(outcomeSchema, text);
  if (!success || output.status !== job.state) return false;
  const files = [output.output?.file_id ?? null, output.error?.file_id ?? null];
  return files[0] === job.outputFile && files[1] === job.errorFile;
}

async function read(job: JobRecord, { storage }: ManifestDeps): Promise<Buffer | null> {
  try {
    const bytes = await buffer(await storage.get(manifestKey(job.id)));
    return isOf(job, bytes.toString()) ? bytes : null;
  } catch (error) {
    if (error instanceof SluiceError && error.kind === 'NotFound') return null;
    throw error;
  }
}
