import * as v from 'valibot';
import { expect } from 'vitest';
import type { JobRecord, JobState } from '../../src/domain/job.ts';
import type { TestApi } from './api.ts';

/** The body of every refusal, as OpenAI has it. */
export const errorSchema = v.strictObject({
  error: v.strictObject({
    message: v.string(),
    type: v.string(),
    param: v.nullable(v.string()),
    code: v.nullable(v.string()),
  }),
});

export function errorOf(text: string): v.InferOutput<typeof errorSchema>['error'] {
  return v.parse(errorSchema, JSON.parse(text)).error;
}

/** An answer that refuses a field with this code and a message like that. */
export function refusedWith(code: string, param: string, message: RegExp) {
  const error = expect.objectContaining({ code, param, message: expect.stringMatching(message) });
  return { status: 400, body: { error } };
}

/** The record of a job, by its id or by that of its batch. */
export async function recordOf(api: TestApi, id: string): Promise<JobRecord> {
  const record = await api.store.jobs.get(id.replace('batch_', 'job_'));
  if (record === null) throw new Error(`no record of ${id}`);
  return record;
}

const created = v.object({ id: v.string() });

/** The record of the batch or job that was created with this answer. */
export async function createdJob(
  api: TestApi,
  answer: { status: number; body: unknown },
): Promise<JobRecord> {
  expect(answer).toMatchObject({ status: 200 });
  return recordOf(api, v.parse(created, answer.body).id);
}

/** Moves a job as its queues would. */
export async function moveJob(
  api: TestApi,
  id: string,
  to: JobState,
  change: Parameters<TestApi['store']['jobs']['move']>[2] = {},
): Promise<void> {
  expect(await api.store.jobs.move(await recordOf(api, id), to, change)).not.toBe('stale');
}
