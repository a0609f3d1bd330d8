import { openAsBlob } from 'node:fs';
import { basename } from 'node:path';
import { Readable } from 'node:stream';
import * as v from 'valibot';
import { permanent, SluiceError, transient } from '../domain/errors.ts';
import { jobIdOf } from '../domain/job.ts';

/** A job as far as `sluice run` looks at it. */
const jobSchema = v.object({
  id: v.string(),
  status: v.string(),
  batch_id: v.string(),
  output_dataset: v.string(),
  error_dataset: v.string(),
  error_message: v.string(),
  request_counts: v.nullable(
    v.object({ total: v.number(), completed: v.number(), failed: v.number() }),
  ),
  errors: v.array(v.object({ code: v.string(), message: v.string(), line: v.number() })),
});
export type RunJob = v.InferOutput<typeof jobSchema>;

const failureSchema = v.object({ error: v.object({ message: v.string() }) });

/** The API as a user meets it, over HTTP. Whatever it refuses is an error with its own words. */
export interface RunClient {
  upload(path: string): Promise<string>;
  submit(batch: object): Promise<string>;
  /** Null when it cannot be told at this moment: the records' Redis may be away for a while. */
  job(batchId: string): Promise<RunJob | null>;
  cancel(batchId: string): Promise<void>;
  content(fileId: string): Promise<Readable>;
}

export function createRunClient(url: string): RunClient {
  async function call(method: string, path: string, body?: FormData | string): Promise<Response> {
    const headers = typeof body === 'string' ? { 'content-type': 'application/json' } : {};
    const response = await fetch(`${url}${path}`, { method, headers, ...(body ? { body } : {}) });
    if (response.ok) return response;
    // A body that is cut or no JSON says nothing that could be shown; the status does.
    const failure = v.safeParse(failureSchema, await response.json().catch(() => null));
    const message = failure.success ? failure.output.error.message : `HTTP ${response.status}`;
    throw response.status === 503
      ? transient('run.not_now', message)
      : permanent('run.refused', message);
  }

  async function idOf(response: Response): Promise<string> {
    return v.parse(v.object({ id: v.string() }), await response.json()).id;
  }

  return {
    async upload(path) {
      const form = new FormData();
      form.set('purpose', 'batch');
      form.set('file', await openAsBlob(path), basename(path));
      return idOf(await call('POST', '/v1/files', form));
    },
    async submit(batch) {
      return idOf(await call('POST', '/v1/batches', JSON.stringify(batch)));
    },
    async job(batchId) {
      try {
        const response = await call('GET', `/api/v1/jobs/${jobIdOf(batchId) ?? ''}`);
        return v.parse(jobSchema, await response.json());
      } catch (error) {
        if (error instanceof SluiceError && error.kind === 'Transient') return null;
        throw error;
      }
    },
    async cancel(batchId) {
      await call('POST', `/v1/batches/${batchId}/cancel`);
    },
    async content(fileId) {
      const { body } = await call('GET', `/v1/files/${fileId}/content`);
      return body === null ? Readable.from([]) : Readable.from(body);
    },
  };
}
