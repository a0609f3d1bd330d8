import { Readable } from 'node:stream';
import { errorOnlyLine, outputLine, requestId } from '../../src/dispatcher/answer-lines.ts';
import { fileKey, outputFileId } from '../../src/domain/file.ts';
import { batchIdOf } from '../../src/domain/job.ts';
import type { TestApi } from './api.ts';
import { newJob } from './store-back-ends.ts';

/** How one request went: what an engine answered, or why none did. */
export interface Went {
  customId: string;
  /** Its line of the input; a good one unless given. */
  request?: string;
  status?: number;
  body?: object;
  error?: { code: string; message: string };
}

/** The two files of a job as assembly writes them, and its input. */
export function filesOf(jobId: string, lines: readonly Went[]) {
  const files = { input: '', output: '', error: '' };
  for (const [index, line] of lines.entries()) {
    const { customId, status = 200, body, error } = line;
    const id = requestId(jobId, index);
    const raw = Buffer.from(JSON.stringify(customId));
    files.input += `${line.request ?? JSON.stringify({ custom_id: customId, body: { n: index } })}\n`;
    if (error !== undefined) {
      files.error += errorOnlyLine({ id, customId: raw, ...error }).toString();
      continue;
    }
    const bytes = Buffer.from(JSON.stringify(body ?? {}));
    const answer = { id, customId: raw, status, requestId: `req-${index}`, body: bytes };
    files[status === 200 ? 'output' : 'error'] += outputLine(answer).join('');
  }
  return files;
}

/** A job that is over, its files and its input, as a server has them whose work is done. */
export async function storeJob(api: TestApi, lines: readonly Went[]) {
  const created = newJob();
  const files = filesOf(created.id, lines);
  const input = `file-in${created.id.slice('job_'.length)}`;
  const { job } = await api.store.jobs.create({ ...created, input });
  await storeFile(api, input, 'questions.jsonl', 'batch', files.input);
  const ids = { output: outputFileId(job.id, 'output'), error: outputFileId(job.id, 'error') };
  for (const kind of ['output', 'error'] as const) {
    const name = `${batchIdOf(job.id)}_${kind}.jsonl`;
    await storeFile(api, ids[kind], name, 'batch_output', files[kind]);
  }
  return { job, input, ids, files };
}

export async function storeFile(
  api: TestApi,
  id: string,
  filename: string,
  purpose: 'batch' | 'batch_output' | 'user_data',
  text: string,
): Promise<void> {
  const stored = await api.storage.put(fileKey(id), Readable.from([Buffer.from(text)]));
  await api.store.files.create({ id, filename, purpose, ...stored });
}
