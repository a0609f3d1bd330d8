import { open, readdir } from 'node:fs/promises';
import { openAsBlob } from 'node:fs';
import { join } from 'node:path';
import { APIError } from 'openai';
import type OpenAI from 'openai';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  createBatch,
  expectExact,
  makeInput,
  openaiClient,
  requestLine,
  untilFinal,
  upload,
} from '../support/batch.ts';
import { requireNothingLeft, makeFolder, startSluice } from '../support/server.ts';
import type { Sluice, TestFolder } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

let folder: TestFolder;
let engine: VllmProcess;
let sluice: Sluice;

beforeAll(async () => {
  engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  folder = await makeFolder();
  sluice = await startSluice({ dataDir: folder.path, engines: [engine.url] });
});

afterAll(async () => {
  await sluice.stop();
  await engine.close();
  await folder[Symbol.asyncDispose]();
  requireNothingLeft();
});

/** What the server refused a request with; that it refused it is part of the test. */
async function refusal(
  work: Promise<unknown>,
): Promise<{ status: number; body: OpenAI.ErrorObject }> {
  try {
    await work;
  } catch (error) {
    if (!(error instanceof APIError)) throw error;
    return { status: error.status as number, body: error.error as OpenAI.ErrorObject };
  }
  throw new Error('it should have been refused');
}

async function failedBatch(text: string): Promise<OpenAI.Batch> {
  const { id } = await createBatch(sluice.url, await upload(sluice.url, text));
  const batch = await untilFinal(sluice.url, id);
  expect(batch.status).toBe('failed');
  expect([batch.output_file_id, batch.error_file_id].filter(Boolean)).toEqual([]);
  return batch;
}

/** Whatever is in the storage, half or whole. */
async function stored(): Promise<string[]> {
  return readdir(join(folder.path, 'storage'), { recursive: true });
}

test('a file that is no JSONL fails its batch and says where', async () => {
  const batch = await failedBatch('this is\nno JSONL\n');
  expect(batch.errors?.data?.map(({ line }) => line)).toEqual([1, 2]);
  expect(batch.errors?.data?.[0]).toMatchObject({ code: 'invalid_json_line', line: 1 });
  expect(batch.errors?.data?.[0]?.message).toBeTruthy();
});

test('three bad lines of 10,000 are all told, with code and line', async () => {
  const lines = makeInput(10_000).text.trimEnd().split('\n');
  lines[99] = '{"custom_id": "cut';
  lines[4_999] = '{"custom_id":"x","method":"GET","url":"/v1/chat/completions","body":{}}';
  lines[9_999] = '{"custom_id":"y","method":"POST","url":"/v1/embeddings","body":{}}';
  const batch = await failedBatch(`${lines.join('\n')}\n`);
  expect(batch.errors?.data?.map(({ line }) => line)).toEqual([100, 5_000, 10_000]);
  for (const { code, message } of batch.errors?.data ?? []) {
    expect(code).toMatch(/^[a-z_.]+$/);
    expect(message).toMatch(/\w+/);
  }
});

test('a custom_id that is there twice fails the batch at its second line', async () => {
  const { text } = makeInput(3);
  const batch = await failedBatch(text + text.split('\n')[1]);
  expect(batch.errors?.data).toMatchObject([{ code: 'duplicate_custom_id', line: 4 }]);
  expect(batch.errors?.data?.[0]?.message).toContain('in line 2');
});

test('an unknown file and a wrong endpoint are refused at once, by name', async () => {
  const unknown = await refusal(createBatch(sluice.url, 'file-doesnotexist'));
  expect(unknown).toMatchObject({ status: 400, body: { param: 'input_file_id' } });
  expect(unknown.body.message).toContain('file-doesnotexist');

  const file = await upload(sluice.url, makeInput(1).text);
  const endpoint = '/v1/nonsense' as '/v1/embeddings'; // the SDK's type knows better than a user
  const wrong = await refusal(createBatch(sluice.url, file, { endpoint }));
  expect(wrong).toMatchObject({ status: 400, body: { param: 'endpoint' } });
  expect(wrong.body.message).toContain('/v1/chat/completions');
});

test('a file of 201 MiB is refused with the limit, and nothing of it is stored', async () => {
  const path = join(folder.path, 'large.jsonl');
  const file = await open(path, 'w');
  await file.truncate(201 * 2 ** 20); // a hole: costs no disk
  await file.close();
  const large = new File([await openAsBlob(path)], 'large.jsonl');

  const before = await stored();
  const refused = await refusal(
    openaiClient(sluice.url).files.create({ file: large, purpose: 'batch' }),
  );
  expect(refused.status).toBe(413);
  expect(refused.body.message).toContain(String(200 * 2 ** 20));
  expect((await stored()).toSorted()).toEqual(before.toSorted());
});

test('unknown JSON fields are ignored in the lines, and refused in the request', async () => {
  const input = makeInput(10, { name: 'extra' });
  const text = input.text.replaceAll('{"custom_id"', '{"x_future":[1],"custom_id"');
  const file = await upload(sluice.url, text);
  const known = {
    input_file_id: file,
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    output_expires_after: { anchor: 'created_at', seconds: 86_400 },
  };
  const create = (body: object) =>
    fetch(`${sluice.url}/v1/batches`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
    });
  const refused = await create({ ...known, x_future: true });
  expect(await refused.json()).toMatchObject({
    error: { code: 'unknown_parameter', param: 'x_future' },
  });
  const { id } = (await (await create(known)).json()) as OpenAI.Batch;
  const batch = await untilFinal(sluice.url, id);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
});

test('a line of another model than the engine serves waits with the reason', async () => {
  const body = '{"model":"other","messages":[]}';
  const { id } = await createBatch(
    sluice.url,
    await upload(sluice.url, requestLine('other-0', body)),
  );
  const job = `${sluice.url}/api/v1/jobs/${id.replace('batch_', 'job_')}`;
  await expect
    .poll(
      async () => ((await (await fetch(job)).json()) as { error_message: string }).error_message,
    )
    .toMatch(/serves 'sim-model', but the input asks for 'other'/);
  const cancelled = await openaiClient(sluice.url).batches.cancel(id);
  expect(['cancelling', 'cancelled']).toContain(cancelled.status);
  const batch = await untilFinal(sluice.url, id);
  expect(batch).toMatchObject({
    status: 'cancelled',
    request_counts: { total: 1, completed: 0, failed: 1 },
  });
});

test('none of all that cost an engine anything but the ten good lines', async () => {
  expect((await engine.counts()).requests).toBe(10);
});
