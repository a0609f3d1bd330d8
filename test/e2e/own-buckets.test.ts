import { createHash } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { createS3Storage } from '../../src/storage/s3.ts';
import type { S3Storage } from '../../src/storage/s3.ts';
import {
  download,
  expectExact,
  makeInput,
  openaiClient,
  parseLines,
  readJob,
  untilAnswered,
  untilFinal,
  upload,
} from '../support/batch.ts';
import type { Input } from '../support/batch.ts';
import { ANY_KEYS as credentials, startS3Server } from '../support/s3-server.ts';
import type { S3Server } from '../support/s3-server.ts';
import { startS3Proxy } from '../support/s3-proxy.ts';
import type { S3Fate, S3Proxy, S3Request } from '../support/s3-proxy.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import type { Sluice, TestFolder } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

let server: S3Server;
let proxy: S3Proxy;
let engine: VllmProcess;
let folder: TestFolder;
let sluice: Sluice;
/** The bucket of a user, as the user sees it. */
let bucket: S3Storage;
let name: string;
/** What becomes of the requests of the server under test. */
let decide: (request: S3Request) => S3Fate;

/** Lines of which some are not read yet when the first are answered: shards are read as they are taken. */
const LONG_INPUT = 6_000;

/** A server with files of its own in a folder, which batches may let read and write in a bucket. */
beforeAll(async () => {
  server = await startS3Server();
  name = await server.createBucket();
  const options = { endpoint: server.url, region: 'us-east-1', forcePathStyle: true, isAws: false };
  bucket = createS3Storage({ ...options, bucket: name, prefix: '', anyKey: true, credentials });
  proxy = await startS3Proxy(server.url, (request) => decide(request));
  engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  folder = await makeFolder();
  sluice = await startSluice({
    dataDir: folder.path,
    engines: [engine.url],
    env: {
      ALLOWED_BUCKETS: `s3://${name}/in/,s3://${name}/out/`,
      S3_ENDPOINT: proxy.url,
      AWS_ACCESS_KEY_ID: credentials.accessKeyId,
      AWS_SECRET_ACCESS_KEY: credentials.secretAccessKey,
    },
  });
});

afterAll(async () => {
  await sluice[Symbol.asyncDispose]();
  await folder[Symbol.asyncDispose]();
  await engine[Symbol.asyncDispose]();
  await proxy[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
  requireNothingLeft();
});

beforeEach(async () => {
  decide = () => 'pass';
  await engine.setFaults([]);
  await engine.setConfig({ latency_ms: 0 });
});

/** Writes an object that is the input of a batch, and returns its URL. */
async function put(key: string, input: Input): Promise<string> {
  await bucket.put(`in/${key}`, [Buffer.from(input.text)]);
  return `s3://${name}/in/${key}`;
}

async function create(
  input: string,
  { client = {}, ...aibrix }: { client?: object; [field: string]: unknown } = {},
): Promise<string> {
  const endpoint = '/v1/chat/completions' as const;
  const body = { input_file_id: input, endpoint, completion_window: '24h' as const };
  const extension = { aibrix: { client, ...aibrix } };
  return (await openaiClient(sluice.url).batches.create({ ...body, ...extension })).id;
}

function jobUrl(batchId: string, action: string): string {
  return `${sluice.url}/api/v1/jobs/${batchId.replace('batch_', 'job_')}/${action}`;
}

/** Resolves when a request that came from now on is of this kind. */
async function untilAsked(what: (request: S3Request) => boolean): Promise<void> {
  const before = proxy.seen.length;
  await until(() => proxy.seen.slice(before).some(what), {
    what: 'a request to the store',
    timeoutMs: 60_000,
  });
}

async function textOf(key: string): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of await bucket.get(key)) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
}

async function keysOf(prefix: string): Promise<string[]> {
  const keys: string[] = [];
  for await (const key of bucket.list(prefix)) keys.push(key);
  return keys.toSorted();
}

function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}

/** Lines without what differs from one run to the next: when the engine said it, and how it called that. */
function comparable(text: string): unknown[] {
  return parseLines(text).map(({ response, ...line }) => ({
    ...line,
    ...(response === null
      ? { response }
      : {
          response: { ...response, request_id: '', body: { ...response.body, id: '', created: 0 } },
        }),
  }));
}

test('a job from and to a bucket of the user gives what one with uploaded files gives', async () => {
  const input = makeInput(1_200);
  await engine.setFaults([{ kind: 'status', status: 400, match: '77 of line' }]);
  const url = await put('a b/input.jsonl', input);
  const id = await create(url, { output_prefix: `s3://${name}/out/x y` });
  const batch = await untilFinal(sluice.url, id);
  const { error } = await expectExact(sluice.url, batch, input);
  expect(error.length).toBeGreaterThan(10);

  // What is in the bucket is what the API gives, and nothing else was left there.
  const [output, errors] = await Promise.all([
    download(sluice.url, batch.output_file_id),
    download(sluice.url, batch.error_file_id),
  ]);
  const names = ['error.jsonl', 'manifest.json', 'output.jsonl'];
  expect(await keysOf('out/x y/')).toEqual(names.map((end) => `out/x y/${id}_${end}`));
  expect(await textOf(`out/x y/${id}_output.jsonl`)).toBe(output);
  expect(await textOf(`out/x y/${id}_error.jsonl`)).toBe(errors);
  const { filename, bytes, ...file } = await openaiClient(sluice.url).files.retrieve(
    batch.output_file_id ?? '',
  );
  expect({ filename, bytes }).toEqual({ filename: `${id}_output.jsonl`, bytes: output.length });
  expect(file).toMatchObject({ location: `s3://${name}/out/x y/${id}_output.jsonl` });

  // Its manifest knows the digest of an input that was never uploaded.
  const manifest: unknown = JSON.parse(await textOf(`out/x y/${id}_manifest.json`));
  expect(manifest).toMatchObject({
    input: { sha256: sha256(input.text), lines: 1_200, filename: 'input.jsonl' },
    output: { sha256: sha256(output) },
    error: { sha256: sha256(errors), lines: error.length },
  });

  const plain = await create(await upload(sluice.url, input.text));
  const other = await untilFinal(sluice.url, plain);
  const swap = (text: string) =>
    text.replaceAll(plain.slice('batch_'.length), id.slice('batch_'.length));
  expect(comparable(output)).toEqual(
    comparable(swap(await download(sluice.url, other.output_file_id))),
  );
  expect(comparable(errors)).toEqual(
    comparable(swap(await download(sluice.url, other.error_file_id))),
  );

  // The user's objects stay whatever becomes of the records.
  for (const each of [batch.input_file_id, batch.output_file_id, batch.error_file_id]) {
    await openaiClient(sluice.url).files.delete(each ?? '');
  }
  expect(await keysOf('out/x y/')).toHaveLength(3);
  expect(await textOf('in/a b/input.jsonl')).toBe(input.text);
});

test('an object that is written again during the run fails the job, and never mixes two versions', async () => {
  await engine.setConfig({ latency_ms: 200 });
  await engine.setFaults([{ kind: 'status', status: 400, match: '7 of first' }]);
  const input = makeInput(LONG_INPUT, { name: 'first' });
  const url = await put('changing', input);
  const id = await create(url, {
    client: { max_concurrency: 64 },
    output_prefix: `s3://${name}/out/changing`,
  });
  await untilAnswered(sluice.url, id, 100);
  const second = makeInput(LONG_INPUT, { name: 'second' });
  await put('changing', second);
  await engine.setConfig({ latency_ms: 0 });

  const batch = await untilFinal(sluice.url, id, 60_000);
  expect(batch.status).toBe('failed');
  const [error] = batch.errors?.data ?? [];
  expect(error).toMatchObject({ code: 'input.changed', param: 'input_file_id' });
  const bytes = Buffer.byteLength(second.text);
  expect(error?.message).toMatch(new RegExp(`'${url}' was changed: .*${bytes} bytes with ETag`));

  // What was answered until then is there, each line once and of the first version.
  const output = parseLines(await download(sluice.url, batch.output_file_id));
  const errors = parseLines(await download(sluice.url, batch.error_file_id));
  expect(output.length).toBeGreaterThanOrEqual(100);
  expect(errors.length).toBeGreaterThan(0);
  const failed = LONG_INPUT - output.length;
  expect(batch.request_counts).toEqual({ total: LONG_INPUT, completed: output.length, failed });
  const places = new Map(input.customIds.map((each, place) => [each, place]));
  const found = [output, errors].map((lines) =>
    lines.map(({ custom_id: each }) => places.get(each) ?? -1),
  );
  for (const each of found) expect(each).toEqual(each.toSorted((one, other) => one - other));
  expect(new Set(found.flat()).size).toBe(output.length + errors.length);
  expect(found.flat()).not.toContain(-1);
  const unnamed = failed - errors.length;
  expect(unnamed).toBeGreaterThan(0);
  const job = await readJob(sluice.url, id);
  expect(job.events.at(-1)?.message).toContain(`${unnamed} of them were not asked`);
  const manifest: unknown = JSON.parse(await textOf(`out/changing/${id}_manifest.json`));
  expect(manifest).toMatchObject({
    output: { lines: output.length },
    error: { lines: errors.length },
    request_counts: { completed: output.length, failed },
  });
});

test('an object that is written again before it was read fails the job before any line is asked', async () => {
  const { requests } = await engine.counts();
  decide = ({ operation }) =>
    operation === 'GetObject' ? { status: 503, code: 'SlowDown' } : 'pass';
  const first = untilAsked(({ operation }) => operation === 'GetObject');
  const id = await create(await put('early', makeInput(10)));
  await first;
  await put('early', makeInput(11));
  decide = () => 'pass';
  const batch = await untilFinal(sluice.url, id);
  expect(batch).toMatchObject({
    status: 'failed',
    errors: { data: [{ code: 'input.changed', param: 'input_file_id' }] },
    request_counts: { total: 0 },
  });
  expect((await engine.counts()).requests).toBe(requests);
});

function denyWriting({ operation }: S3Request): S3Fate {
  return operation === 'PutObject' ? { status: 403, code: 'AccessDenied' } : 'pass';
}

test('a bucket that refuses the output for a while is waited for, and the job says why', async () => {
  const input = makeInput(300);
  decide = denyWriting;
  const id = await create(await put('waited', input), { output_prefix: `s3://${name}/out` });
  const says = async () => (await readJob(sluice.url, id)).error_message.includes('AccessDenied');
  await until(says, { what: 'the reason', timeoutMs: 60_000 });
  const explained = await fetch(jobUrl(id, 'explain'));
  expect(await explained.json()).toMatchObject({
    status: 'finalizing',
    code: 'storage',
    explanation: expect.stringContaining(`bucket '${name}'`),
  });
  decide = () => 'pass';
  const batch = await untilFinal(sluice.url, id);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
});

test('a cancelled job keeps what was answered when nobody can name its other lines any more', async () => {
  await engine.setConfig({ latency_ms: 100 });
  const id = await create(await put('cancelled', makeInput(1_000)), {
    client: { max_concurrency: 16 },
    output_prefix: `s3://${name}/out`,
  });
  await untilAnswered(sluice.url, id, 32);
  decide = denyWriting;
  const refused = untilAsked(({ operation }) => operation === 'PutObject');
  await openaiClient(sluice.url).batches.cancel(id);
  await refused;
  await put('cancelled', makeInput(1));
  // The try that was under way may have read it before.
  await untilAsked(({ method, url }) => method === 'GET' && url.includes('/in/cancelled'));
  decide = () => 'pass';
  const batch = await untilFinal(sluice.url, id);
  expect(batch).toMatchObject({
    status: 'cancelled',
    errors: { data: [{ code: 'input.changed' }] },
    error_file_id: null,
  });
  const { length: completed } = parseLines(await download(sluice.url, batch.output_file_id));
  expect(completed).toBeGreaterThanOrEqual(32);
  expect(batch.request_counts).toEqual({ total: 1_000, completed, failed: 1_000 - completed });
});

test('a store that is away during the run is waited for', async () => {
  // The first lines take seconds: no shard ends before the store is away, and others are not read yet.
  await engine.setFaults([{ kind: 'hang_headers', delay_ms: 3_000 }]);
  const input = makeInput(LONG_INPUT, { name: 'away' });
  const id = await create(await put('away', input), { client: { max_concurrency: 64 } });
  await until(async () => ((await engine.faults())[0]?.hits ?? 0) > 0, {
    what: 'the first lines',
    timeoutMs: 60_000,
  });
  decide = () => 'reset';
  const before = proxy.seen.length;
  await engine.setFaults([]);
  await until(() => proxy.seen.length > before + 2, {
    what: 'reads that break',
    timeoutMs: 60_000,
  });
  const { status } = await openaiClient(sluice.url).batches.retrieve(id);
  expect(status).toBe('in_progress');
  decide = () => 'pass';
  const batch = await untilFinal(sluice.url, id, 60_000);
  expect(batch.status).toBe('completed');
  await expectExact(sluice.url, batch, input);
});

test('failed lines of an input and error file in a bucket are asked again', async () => {
  const input = makeInput(500);
  await engine.setFaults([{ kind: 'status', status: 400, match: '7 of line' }]);
  const id = await create(await put('again', input), { output_prefix: `s3://${name}/out` });
  const batch = await untilFinal(sluice.url, id);
  const { error } = await expectExact(sluice.url, batch, input);
  expect(error).toHaveLength(50);

  await engine.setFaults([]);
  const answer = await fetch(jobUrl(id, 'retry'), { method: 'POST' });
  expect(answer.status).toBe(200);
  const job = (await answer.json()) as { batch_id: string }; // the view's fields are tested with the API
  expect(job).toMatchObject({ input_location: '', output_prefix: `s3://${name}/out/` });
  const again = await untilFinal(sluice.url, job.batch_id);
  expect(again).toMatchObject({ status: 'completed', error_file_id: null });
  const lines = parseLines(await textOf(`out/${job.batch_id}_output.jsonl`));
  expect(lines.map((line) => line.custom_id)).toEqual(error.map((line) => line.custom_id));

  // With another error file in its place, nobody knows what to ask.
  await bucket.put(`out/${id}_error.jsonl`, [Buffer.from('{}\n')]);
  const refused = await fetch(jobUrl(id, 'retry'), { method: 'POST' });
  const said = await refused.text();
  expect([refused.status, said]).toEqual([400, expect.stringContaining('was changed')]);
});
