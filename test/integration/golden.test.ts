import * as v from 'valibot';
import { describe, expect, inject, test } from 'vitest';
import type { JobState } from '../../src/domain/job.ts';
import { rawRequest, startApi, uploadInput } from '../support/api.ts';
import type { RawAnswer, TestApi } from '../support/api.ts';
import {
  openaiBatch,
  openaiBatchList,
  openaiDeletion,
  openaiError,
  openaiFile,
  openaiFileList,
  openaiUpload,
  openaiUploadPart,
} from '../support/openai-schema.ts';

function start(): Promise<TestApi> {
  return startApi(inject('redisUrl'));
}

interface Asked {
  method?: string;
  json?: unknown;
  form?: FormData;
}

/** What a path answers as JSON, by the strict schema; whatever is not so says where. */
async function ask<Schema extends v.GenericSchema>(
  api: TestApi,
  schema: Schema,
  path: string,
  { method = 'GET', json, form }: Asked = {},
): Promise<v.InferOutput<Schema>> {
  const headers: Record<string, string> = form ? {} : { 'content-type': 'application/json' };
  const body = form ?? (json === undefined ? null : JSON.stringify(json));
  const answer = await fetch(`${api.url}${path}`, { method, headers, body });
  const value: unknown = await answer.json();
  const parsed = v.safeParse(schema, value);
  const faults = parsed.issues && v.flatten(parsed.issues);
  expect({ path, value, faults }).toEqual({ path, value, faults: undefined });
  return v.parse(schema, value);
}

async function makeBatch(api: TestApi, more: object = {}) {
  const json = {
    input_file_id: await uploadInput(api),
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    ...more,
  };
  return ask(api, openaiBatch, '/v1/batches', { method: 'POST', json });
}

type Change = Parameters<TestApi['store']['jobs']['move']>[2];
type Step = readonly [JobState, Change?];

async function follow(api: TestApi, batchId: string, steps: readonly Step[]): Promise<void> {
  for (const [state, change] of steps) {
    const job = await api.store.jobs.get(batchId.replace('batch_', 'job_'));
    if (job === null) throw new Error(`no record of ${batchId}`);
    expect(await api.store.jobs.move(job, state, change ?? {})).not.toBe('stale');
  }
}

const PLANNED: Step = ['resource_preparing', { set: { lines: 3, models: ['m'] } }];
const BEGUN: readonly Step[] = [PLANNED, ['submitting'], ['in_progress']];
const fault = { code: 'invalid_json_line', message: 'Not JSON.', line: 2, param: null };
const written = { errorFile: 'file-errors', failed: 3 };

/** How a batch comes to be shown with each status of OpenAI, and which of its times it then has. */
const STATUSES: [status: string, times: string[], steps: readonly Step[]][] = [
  ['validating', [], []],
  ['validating', [], [PLANNED, ['submitting']]],
  ['in_progress', ['in_progress_at'], BEGUN],
  [
    'finalizing',
    ['in_progress_at', 'finalizing_at'],
    [...BEGUN, ['finalizing', { outcome: 'completed' }]],
  ],
  [
    'completed',
    ['in_progress_at', 'finalizing_at', 'completed_at'],
    [...BEGUN, ['finalizing', { outcome: 'completed' }], ['completed', { set: written }]],
  ],
  ['failed', ['failed_at'], [['failed', { outcome: 'failed', set: { errors: [fault] } }]]],
  ['failed', ['failed_at'], [['resource_failed', { outcome: 'resource_failed' }]]],
  [
    'expired',
    ['in_progress_at', 'finalizing_at', 'expired_at'],
    [
      ...BEGUN,
      ['cancelling', { outcome: 'expired' }],
      ['finalizing'],
      ['expired', { set: written }],
    ],
  ],
  [
    'cancelling',
    ['in_progress_at', 'cancelling_at'],
    [...BEGUN, ['cancelling', { outcome: 'cancelled' }]],
  ],
  [
    'cancelled',
    ['in_progress_at', 'finalizing_at', 'cancelling_at', 'cancelled_at'],
    [
      ...BEGUN,
      ['cancelling', { outcome: 'cancelled' }],
      ['finalizing'],
      ['cancelled', { set: written }],
    ],
  ],
];

const TIMES = [
  'in_progress_at',
  'finalizing_at',
  'completed_at',
  'failed_at',
  'expired_at',
  'cancelling_at',
  'cancelled_at',
] as const;

describe('a batch', () => {
  test.for(STATUSES)('%s, with the times %s', async ([status, times, steps]) => {
    await using api = await start();
    const { id } = await makeBatch(api, { metadata: { team: 'search' } });
    await follow(api, id, steps);

    const batch = await ask(api, openaiBatch, `/v1/batches/${id}`);

    expect(batch.status).toBe(status);
    expect(TIMES.filter((name) => batch[name] !== null)).toEqual(times);
    expect(batch.metadata).toEqual({ team: 'search' });
    const listed = await ask(api, openaiBatchList, '/v1/batches');
    expect(listed.data).toEqual([batch]);
  });

  test('has the errors of a failed one, and the error file of one whose lines failed', async () => {
    await using api = await start();
    const [failed, completed] = [await makeBatch(api), await makeBatch(api)];
    await follow(api, failed.id, [['failed', { outcome: 'failed', set: { errors: [fault] } }]]);
    const end: Step[] = [
      ['finalizing', { outcome: 'completed' }],
      ['completed', { set: written }],
    ];
    await follow(api, completed.id, [...BEGUN, ...end]);

    const { errors } = await ask(api, openaiBatch, `/v1/batches/${failed.id}`);
    expect(errors?.data).toEqual([fault]);
    expect(await ask(api, openaiBatch, `/v1/batches/${completed.id}`)).toMatchObject({
      output_file_id: null,
      error_file_id: 'file-errors',
      request_counts: { total: 3, completed: 0, failed: 3 },
      errors: null,
    });
  });

  test('is answered alike by create and by cancel', async () => {
    await using api = await start();
    const created = await makeBatch(api);
    expect(created).toMatchObject({ status: 'validating', metadata: null, usage: null });
    const path = `/v1/batches/${created.id}/cancel`;
    const cancelled = await ask(api, openaiBatch, path, { method: 'POST' });
    expect(cancelled.status).toBe('cancelled');
  });

  test('of none: an empty list', async () => {
    await using api = await start();
    const empty = await ask(api, openaiBatchList, '/v1/batches');
    expect(empty).toEqual({ object: 'list', data: [], first_id: '', last_id: '', has_more: false });
  });
});

function fileForm(purpose: string): FormData {
  const form = new FormData();
  form.set('purpose', purpose);
  form.set('file', new File(['{}\n'], 'lines.jsonl'));
  return form;
}

describe('files', () => {
  test('created, listed, looked at and deleted', async () => {
    await using api = await start();
    const none = await ask(api, openaiFileList, '/v1/files');
    expect(none.data).toEqual([]);
    const form = fileForm('batch');
    const file = await ask(api, openaiFile, '/v1/files', { method: 'POST', form });
    expect(file).toMatchObject({ bytes: 3, filename: 'lines.jsonl', purpose: 'batch' });
    expect(await ask(api, openaiFile, `/v1/files/${file.id}`)).toEqual(file);
    expect((await ask(api, openaiFileList, '/v1/files?purpose=batch')).data).toEqual([file]);
    const gone = await ask(api, openaiDeletion, `/v1/files/${file.id}`, { method: 'DELETE' });
    expect(gone.id).toBe(file.id);
  });
});

describe('uploads', () => {
  const json = { filename: 'x.jsonl', purpose: 'batch', bytes: 3, mime_type: 'application/jsonl' };
  const post = { method: 'POST' };

  test('created, filled and completed', async () => {
    await using api = await start();
    const made = await ask(api, openaiUpload, '/v1/uploads', { ...post, json });
    expect(made.status).toBe('pending');
    const form = new FormData();
    form.set('data', new File(['{}\n'], 'part'));
    const parts = `/v1/uploads/${made.id}/parts`;
    const part = await ask(api, openaiUploadPart, parts, { ...post, form });
    expect(part.upload_id).toBe(made.id);
    const path = `/v1/uploads/${made.id}/complete`;
    const whole = await ask(api, openaiUpload, path, { ...post, json: { part_ids: [part.id] } });
    expect(whole).toMatchObject({ status: 'completed', file: { bytes: 3, filename: 'x.jsonl' } });
  });

  test('cancelled', async () => {
    await using api = await start();
    const made = await ask(api, openaiUpload, '/v1/uploads', { ...post, json });
    const path = `/v1/uploads/${made.id}/cancel`;
    expect((await ask(api, openaiUpload, path, post)).status).toBe('cancelled');
  });
});

const REFUSED: [method: string, path: string, status: number][] = [
  ['GET', '/v1/files/file-none', 404],
  ['DELETE', '/v1/files/file-none', 404],
  ['GET', '/v1/files/file-none/content', 404],
  ['POST', '/v1/files', 400],
  ['GET', '/v1/files?limit=0', 400],
  ['GET', '/v1/batches/batch_none', 404],
  ['POST', '/v1/batches/batch_none/cancel', 404],
  ['POST', '/v1/batches', 400],
  ['GET', '/v1/batches?limit=101', 400],
  ['PUT', '/v1/batches', 405],
  ['POST', '/v1/uploads', 400],
  ['POST', '/v1/uploads/upload_none/complete', 404],
  ['POST', '/v1/uploads/upload_none/cancel', 404],
  ['GET', '/v1/nothing', 404],
];

describe('a refusal', () => {
  test.for(REFUSED)('%s %s is %s in the form of OpenAI', async ([method, path, status]) => {
    await using api = await start();
    const isPost = method === 'POST';
    const answer: RawAnswer = await rawRequest(`${api.url}${path}`, {
      method,
      headers: { 'content-type': 'application/json' },
      body:
        isPost && path.endsWith('/complete') ? ['{"part_ids":["part_x"]}'] : isPost ? ['{}'] : [],
    });
    expect(answer.status).toBe(status);
    const { error } = v.parse(openaiError, JSON.parse(answer.text));
    expect(error.type).toBe(status === 404 ? 'not_found_error' : 'invalid_request_error');
    expect(answer.headers['x-request-id']).toMatch(/^req_/);
  });
});
