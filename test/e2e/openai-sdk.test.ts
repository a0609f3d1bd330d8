import { createHash } from 'node:crypto';
import { BadRequestError, NotFoundError } from 'openai';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import {
  createBatch,
  download,
  expectExact,
  makeInput,
  requestLine,
  openaiClient,
  parseLines,
  say,
  submit,
  untilBatch,
  untilFinal,
  upload,
} from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import { goldenClient } from '../support/golden-client.ts';
import type { GoldenClient } from '../support/golden-client.ts';
import { requireNothingLeft, makeFolder, startSluice } from '../support/server.ts';
import type { Sluice, TestFolder } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

let engine: VllmProcess;
let folder: TestFolder;
let sluice: Sluice;
/** As a user starts it, with a Redis of its own. */
beforeAll(async () => {
  engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  folder = await makeFolder();
  sluice = await startSluice({ dataDir: folder.path, engines: [engine.url], timeoutMs: 60_000 });
});
beforeEach(async () => {
  await engine.setConfig({ latency_ms: 0, keep_bodies: false });
});
afterAll(async () => {
  const { code } = await sluice.stop();
  await folder[Symbol.asyncDispose]();
  await engine.close();
  requireNothingLeft();
  if (code !== 0) throw new Error(`the server ended with ${code}`);
});

test('the SDK with nothing but a base URL uploads, creates, polls and downloads', async () => {
  const input = makeInput(20);

  const begun = performance.now();
  const id = await submit(sluice.url, input);
  const batch = await untilFinal(sluice.url, id);
  const ms = performance.now() - begun;

  say(`20 lines from upload to completed: ${Math.round(ms)} ms`);
  expect(batch).toMatchObject({ status: 'completed', object: 'batch', model: 'sim-model' });
  const { error } = await expectExact(sluice.url, batch, input);
  expect(error).toEqual([]);
  expect(batch.error_file_id).toBeFalsy();
});

test('the engine gets the bytes of the body, and the output file those of the answer', async () => {
  await engine.setConfig({ keep_bodies: true });
  const before = (await engine.requests()).length;
  const bodies = [
    // Integers above 2^53, keys twice, keys that look like indexes, spaces, escapes: none survives parse and stringify.
    '{"model":"sim-model","seed":9007199254740993,"messages":[{"role":"user","content":"big"}]}',
    '{"z":1,"model":"sim-model","a":2,"z":3,"messages":[{"role":"user","content":"twice"}]}',
    '{"10":1,"2":1,"messages":[{"content":"order","role":"user"}],"1":1,"model":"sim-model"}',
    '{ "model" : "sim-model" , "x":1.0e+2,"messages":[{"role":"user","content":"\\u00e9\\/ \\ud83d\\ude00"}]}',
    '{"model":"sim-model","messages":[{"role":"user","content":"ECHO: 𝕊𝕝𝕦𝕚𝕔𝕖 😀 日本語"}]}',
  ];
  const text = bodies.map((body, n) => requestLine(`raw-${n}`, body)).join('\n');

  const { id } = await createBatch(sluice.url, await upload(sluice.url, text));
  const batch = await untilFinal(sluice.url, id);

  expect(batch.request_counts).toEqual({ total: 5, completed: 5, failed: 0 });
  const asked = (await engine.requests({ bodies: true })).slice(before);
  const received = asked.map(({ body }) => Buffer.from(body ?? '', 'base64').toString());
  expect(received.toSorted()).toEqual(bodies.toSorted());
  const output = (await download(sluice.url, batch.output_file_id)).trimEnd().split('\n');
  for (const [n, body] of bodies.entries()) {
    const direct = await fetch(`${engine.url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body,
    });
    // The simulator answers a body always alike, so that its own bytes can be looked for.
    expect(output[n], `line ${n}`).toContain(`"body":${await direct.text()}`);
    expect(output[n]).toContain(`"custom_id":"raw-${n}"`);
  }
});

/** The input file of a new batch, and the batch. */
async function begin({ openai }: GoldenClient, text: string) {
  const file = await openai.files.create({ file: new File([text], 'in.jsonl'), purpose: 'batch' });
  const batch = await openai.batches.create({
    input_file_id: file.id,
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    metadata: { team: 'search' },
  });
  return { file, batch };
}

async function readAll(body: AsyncIterable<Uint8Array> | null): Promise<string> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of body ?? []) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

test('every call of a batch is answered as OpenAI would: files, content, errors, headers', async () => {
  const golden = goldenClient(sluice.url);
  const { openai } = golden;
  const input = makeInput(30, { name: 'golden' });
  // Files of other tests were there before.
  const earlier = (await openaiClient(sluice.url).files.list()).data.map(({ id }) => id);

  const { file, batch } = await begin(golden, input.text);
  expect(file).toMatchObject({ filename: 'in.jsonl', bytes: input.text.length });
  expect(batch).toMatchObject({ status: 'validating', metadata: { team: 'search' } });
  await untilFinal(sluice.url, batch.id);
  const done = await openai.batches.retrieve(batch.id);
  expect(done).toMatchObject({ status: 'completed', error_file_id: null });
  expect(done.usage?.total_tokens).toBeGreaterThan(0);

  const output = await openai.files.content(done.output_file_id ?? '');
  expect(output.headers.get('x-request-id')).toMatch(/^req_/);
  const streamed = await readAll(output.body);
  expect(parseLines(streamed).map(({ custom_id: id }) => id)).toEqual(input.customIds);
  expect(await (await openai.files.content(file.id)).text()).toBe(input.text);

  const {
    data,
    response,
    request_id: requestId,
  } = await openai.batches.retrieve(batch.id).withResponse();
  expect(data.id).toBe(batch.id);
  expect(requestId).toMatch(/^req_/);
  expect(response.headers.get('x-request-id')).toBe(requestId);

  const files = await openai.files.list({ purpose: 'batch_output', order: 'asc' });
  expect(files.data.at(-1)?.id).toBe(done.output_file_id);
  const seen: string[] = [];
  for await (const each of openai.files.list({ limit: 1 })) seen.push(each.id);
  expect(seen).toEqual([done.output_file_id, file.id, ...earlier]);
  expect(await openai.files.retrieve(file.id)).toEqual(file);
  expect(await openai.files.delete(file.id)).toMatchObject({ id: file.id, deleted: true });
  await expect(openai.files.retrieve(file.id)).rejects.toThrow(NotFoundError);

  await expect(openai.batches.retrieve('batch_none')).rejects.toMatchObject({
    status: 404,
    code: 'batch_not_found',
    requestID: expect.stringMatching(/^req_/),
  });
  await expect(openai.batches.cancel(batch.id)).rejects.toThrow(BadRequestError);
  await expect(openai.batches.list({ limit: 1_000 })).rejects.toThrow(/1 to 100/);
  const bad = await begin(golden, '{"custom_id":"a"}\n');
  await untilFinal(sluice.url, bad.batch.id);
  const { status, errors } = await openai.batches.retrieve(bad.batch.id);
  expect([status, errors?.data?.[0]?.line]).toEqual(['failed', 1]);
  expect(golden.faults).toEqual([]);
  expect(golden.seen).toMatchObject({
    file: 3,
    batch: 5,
    deletion: 1,
    'file list': 3 + earlier.length,
    error: 4,
  });
});

test('a batch that is cancelled keeps what was answered', async () => {
  await engine.setConfig({ latency_ms: 300 });
  const golden = goldenClient(sluice.url);
  const { openai } = golden;
  const input = makeInput(2_000, { name: 'cancelled' });
  const { batch } = await begin(golden, input.text);
  await untilBatch(sluice.url, batch.id, (now) => (now.request_counts?.completed ?? 0) > 0);
  await expect(openai.files.delete(batch.input_file_id)).rejects.toThrow(BadRequestError);

  expect(await openai.batches.cancel(batch.id)).toMatchObject({ status: 'cancelling' });

  await untilFinal(sluice.url, batch.id);
  const over = await openai.batches.retrieve(batch.id);
  expect(over).toMatchObject({ status: 'cancelled', metadata: { team: 'search' } });
  const { error } = await expectExact(sluice.url, over, input);
  expect(new Set(error.map((line) => line.error?.code))).toEqual(new Set(['batch_cancelled']));
  expect(golden.faults).toEqual([]);
});

test('130 batches are paged through, newest first, each once', async () => {
  await using redis = await startRedis();
  await using own = await makeFolder();
  // Without a worker they stay as they are.
  await using api = await startSluice({
    dataDir: own.path,
    redisUrl: redis.url,
    roles: ['api'],
    engines: ['http://127.0.0.1:9'],
  });
  const golden = goldenClient(api.url);
  const { openai } = golden;
  const { file, batch } = await begin(golden, makeInput(1).text);
  const made = [batch.id];
  while (made.length < 130) {
    const created = await openai.batches.create({
      input_file_id: file.id,
      endpoint: '/v1/chat/completions',
      completion_window: '24h',
    });
    made.push(created.id);
  }

  for (const limit of [100, 7]) {
    const walked: string[] = [];
    for await (const each of openai.batches.list({ limit })) walked.push(each.id);
    expect(walked).toEqual(made.toReversed());
  }
  const first = await openai.batches.list({ limit: 100 });
  expect(first.hasNextPage()).toBe(true);
  expect((await first.getNextPage()).data[0]?.id).toBe(made[29]);
  expect(golden.faults).toEqual([]);
  expect(golden.seen).toMatchObject({ batch: 130, 'batch list': 2 + 19 + 2 });
});

test('an input comes in parts through Uploads, in the order that is asked', async () => {
  const golden = goldenClient(sluice.url);
  const { openai } = golden;
  const input = makeInput(20);
  const bytes = input.text.length;
  const wish = {
    filename: 'parts.jsonl',
    purpose: 'batch' as const,
    bytes,
    mime_type: 'application/jsonl',
  };
  const upload = await openai.uploads.create(wish);
  const halves = [input.text.slice(bytes / 2), input.text.slice(0, bytes / 2)];
  const parts: string[] = [];
  for (const half of halves) {
    const part = await openai.uploads.parts.create(upload.id, { data: new File([half], 'part') });
    parts.push(part.id);
  }
  const md5 = createHash('md5').update(input.text).digest('hex');
  const order = { part_ids: parts.toReversed(), md5 };
  const whole = await openai.uploads.complete(upload.id, order);
  expect(whole).toMatchObject({ status: 'completed', file: { bytes, filename: 'parts.jsonl' } });

  const { id } = await createBatch(sluice.url, whole.file?.id ?? '');
  await expectExact(sluice.url, await untilFinal(sluice.url, id), input);

  const dropped = await openai.uploads.create(wish);
  expect((await openai.uploads.cancel(dropped.id)).status).toBe('cancelled');
  const late = openai.uploads.parts.create(dropped.id, { data: new File(['x'], 'part') });
  await expect(late).rejects.toThrow(BadRequestError);
  await expect(openai.uploads.complete('upload_none', { part_ids: [] })).rejects.toThrow(
    NotFoundError,
  );
  expect(golden.faults).toEqual([]);
});
