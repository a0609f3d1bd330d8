import { APIError } from 'openai';
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';
import { createExpiry } from '../../processors/expiry.ts';
import { permanent, transient } from '../../src/domain/errors.ts';
import { parseFolderUrl } from '../../src/domain/location.ts';
import { inspectInput } from '../../src/main/plan-input.ts';
import type { Storage } from '../../src/storage/contract.ts';
import { openPlaces } from '../../src/storage/places.ts';
import type { Places } from '../../src/storage/places.ts';
import { createS3Storage } from '../../src/storage/s3.ts';
import type { S3Storage } from '../../src/storage/s3.ts';
import { createdJob } from '../support/api-answers.ts';
import { postJson, startApi, uploadInput } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';
import { makeInput } from '../support/batch.ts';
import { ANY_KEYS as credentials, startS3Server } from '../support/s3-server.ts';
import type { S3Server } from '../support/s3-server.ts';

const MOST_BYTES = 10_000;
const INPUT = makeInput(20);

let server: S3Server;
let name: string;
let bucket: S3Storage;

beforeAll(async () => {
  server = await startS3Server();
  name = await server.createBucket();
  const region = 'us-east-1';
  const options = { endpoint: server.url, region, forcePathStyle: true, isAws: false };
  bucket = createS3Storage({ ...options, bucket: name, prefix: '', anyKey: true, credentials });
  await bucket.put('in/a b.jsonl', [Buffer.from(INPUT.text)]);
  await bucket.put('in/large', [Buffer.alloc(MOST_BYTES + 1)]);
  await bucket.put('other/secret', [Buffer.from(INPUT.text)]);
});

afterAll(() => server[Symbol.asyncDispose]());

/** Allows `in/` and `out/` of the bucket, and a bucket that is not there. */
function openOver(own: Storage): ReturnType<typeof openPlaces> {
  const allowed = [`s3://${name}/in`, `s3://${name}/out`, 's3://no-such-bucket'].flatMap((url) => {
    const parsed = parseFolderUrl(url);
    return 'location' in parsed ? [parsed.location] : [];
  });
  const target = { endpoint: server.url, region: 'us-east-1', prefix: '', credentials };
  return openPlaces(own, {
    allowed,
    s3: (each) => ({ ...target, bucket: each, pathStyle: 'auto' }),
    tos: (each) => ({ ...target, bucket: each }),
  });
}

function start(more: Partial<Places> = {}): Promise<TestApi> {
  return startApi(inject('redisUrl'), (base) => {
    // The API has no use for more of its own storage than it was given.
    const { places, storage } = openOver(base.storage as Storage);
    const limits = { ...base.limits, maxBatchFileBytes: MOST_BYTES };
    const inspecting = { ...limits, storage, dataDir: '/nowhere' };
    return {
      storage,
      places: { ...places, ...more },
      limits,
      inspectInput: inspectInput.bind(null, inspecting),
    };
  });
}

function batch(input: string, more: object = {}) {
  const endpoint = '/v1/chat/completions';
  return { input_file_id: input, endpoint, completion_window: '24h', ...more };
}

function job(input: string, more: object = {}) {
  return { input_dataset: input, endpoint: '/v1/chat/completions', ...more };
}

test('input_file_id takes the URL of an object, with the SDK as it is', async () => {
  await using api = await start();
  const url = `s3://${name}/in/a b.jsonl`;
  const made = await api.openai.batches.create({
    input_file_id: url,
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
  });
  expect(made.input_file_id).toMatch(/^file-[A-Za-z0-9]{24}$/);
  const file = await api.openai.files.retrieve(made.input_file_id);
  expect(file).toMatchObject({
    filename: 'a b.jsonl',
    purpose: 'batch',
    bytes: INPUT.text.length,
    location: url,
  });
  const content = await api.openai.files.content(file.id);
  expect(await content.text()).toBe(INPUT.text);
  const part = await fetch(`${api.url}/v1/files/${file.id}/content`, {
    headers: { range: 'bytes=2-9' },
  });
  expect([part.status, await part.text()]).toEqual([206, INPUT.text.slice(2, 10)]);
  // Nobody has read it yet: an ETag would be that of all such files.
  expect(part.headers.get('etag')).toBeNull();
  const conditional = await fetch(`${api.url}/v1/files/${file.id}/content`, {
    headers: { 'if-none-match': '""', 'if-range': '""', range: 'bytes=2-9' },
  });
  expect([conditional.status, await conditional.text()]).toEqual([200, INPUT.text]);
  const record = await api.store.jobs.get(made.id.replace('batch_', 'job_'));
  expect(record?.options.inputLocation?.startsWith(`${url}?etag=`)).toBe(true);
  // Nothing was copied.
  expect(await api.stored()).toEqual([]);
});

test('input_dataset and output_prefix of the Console do the same', async () => {
  await using api = await start();
  const url = `s3://${name}/in/a b.jsonl`;
  const more = { output_prefix: `s3://${name}/out/console` };
  const answer = await postJson(api, '/api/v1/jobs', job(url, more));
  expect(answer).toMatchObject({
    status: 200,
    body: { input_location: url, output_prefix: `s3://${name}/out/console/` },
  });
  const plain = await postJson(api, '/api/v1/jobs', job(await uploadInput(api)));
  expect(plain).toMatchObject({ status: 200, body: { input_location: '', output_prefix: '' } });
});

test('aibrix.output_prefix is a folder that can be written, and is written once and the same', async () => {
  await using api = await start();
  const input = await uploadInput(api);
  for (const end of ['', '/']) {
    const aibrix = { output_prefix: `s3://${name}/out/a b${end}` };
    const record = await createdJob(
      api,
      await postJson(api, '/v1/batches', batch(input, { aibrix })),
    );
    expect(record.options.outputPrefix).toBe(`s3://${name}/out/a b/`);
  }
  const none = await createdJob(api, await postJson(api, '/v1/batches', batch(input)));
  expect(none.options.outputPrefix).toBeNull();
});

describe('what cannot be', () => {
  const CASES: [input: string, code: string, words: string][] = [
    ['s3:/<name>/in/x', 'invalid_url', 'is no URL such as'],
    ['gs://<name>/in/x', 'invalid_url', 'is no URL such as'],
    ['s3://<name>', 'invalid_url', 'no object in it'],
    ['s3://<name>/in/', 'invalid_url', 'ends in a slash'],
    ['s3://<name>/in/../other/secret', 'invalid_url', '..'],
    ['s3://<name>/in/x?versionId=1', 'invalid_url', 'has a ?'],
    ['s3://<name>/other/secret', 'bucket_not_allowed', 'ALLOWED_BUCKETS=s3://<name>/'],
    ['s3://<name>/in', 'bucket_not_allowed', 'ALLOWED_BUCKETS'],
    ['s3://<name>/inner/x', 'bucket_not_allowed', 'ALLOWED_BUCKETS'],
    ['s3://another/in/x', 'bucket_not_allowed', 'ALLOWED_BUCKETS'],
    ['tos://<name>/in/a b.jsonl', 'bucket_not_allowed', 'ALLOWED_BUCKETS=tos://'],
    ['s3://<name>/in/missing', 'invalid_input_file', 'There is no object'],
    ['s3://no-such-bucket/x', 'invalid_input_file', 'no such bucket'],
    ['s3://<name>/in/large', 'invalid_input_file', '10001 bytes'],
  ];
  const PATHS = [
    ['/v1/batches', batch, 'input_file_id'],
    ['/v1/batches/validate', batch, 'input_file_id'],
    ['/api/v1/jobs', job, 'input_dataset'],
    ['/api/v1/jobs/validate', job, 'input_dataset'],
  ] as const;

  test.for(CASES)('%s: %s', async ([url, code, words]) => {
    await using api = await start();
    for (const [path, body, param] of PATHS) {
      const answer = await postJson(api, path, body(url.replace('<name>', name)));
      expect(answer).toMatchObject({
        status: 400,
        body: {
          error: {
            code,
            param,
            message: expect.stringContaining(words.replace('<name>', name)),
          },
        },
      });
    }
    // Nothing is recorded of what was refused.
    expect((await api.openai.files.list()).data).toEqual([]);
  });

  test.for([
    ['s3:/x', 'invalid_url'],
    ['s3://<name>/out?x', 'invalid_url'],
    ['s3://<name>/other', 'bucket_not_allowed'],
    ['s3://<name>/outer', 'bucket_not_allowed'],
    ['s3://no-such-bucket/', 'output_not_writable'],
  ] as const)('output to %s: %s', async ([url, code]) => {
    await using api = await start();
    const input = await uploadInput(api);
    const prefix = { output_prefix: url.replace('<name>', name) };
    for (const [path, body] of PATHS) {
      const isBatch = body === batch;
      const answer = await postJson(api, path, body(input, isBatch ? { aibrix: prefix } : prefix));
      const param = isBatch ? 'aibrix.output_prefix' : 'output_prefix';
      expect(answer).toMatchObject({ status: 400, body: { error: { code, param } } });
    }
  });

  test('a bucket that may not be read is refused, and a store that is away is no fault of the request', async () => {
    let failure: Error = transient('storage.denied', 'bucket: they may not do this');
    const look = () => Promise.reject(failure);
    const tryWriting = () => Promise.reject(failure);
    await using api = await start({ look, tryWriting });
    const input = batch(`s3://${name}/in/x`);
    const aibrix = { output_prefix: `s3://${name}/out` };
    const output = batch(await uploadInput(api), { aibrix });
    expect(await postJson(api, '/v1/batches', input)).toMatchObject({
      status: 400,
      body: {
        error: { code: 'invalid_input_file', message: expect.stringContaining('may not do') },
      },
    });
    expect(await postJson(api, '/v1/batches', output)).toMatchObject({
      status: 400,
      body: { error: { code: 'output_not_writable' } },
    });
    failure = transient('storage.unreachable', 'nobody answers');
    expect(await postJson(api, '/v1/batches', input)).toMatchObject({ status: 503 });
    expect(await postJson(api, '/v1/batches', output)).toMatchObject({ status: 503 });
    failure = permanent('storage.no_etag', 'the store gives no ETag');
    expect(await postJson(api, '/v1/batches', input)).toMatchObject({ status: 400 });
  });

  test('what a store says of itself stays inside', async () => {
    const arn = 'arn:aws:iam::123456789012:user/ops is not authorized';
    const failure = transient('storage.denied', 'they may not do this', { cause: new Error(arn) });
    const refuse = () => Promise.reject(failure);
    await using api = await start({ look: refuse, tryWriting: refuse });
    const aibrix = { output_prefix: `s3://${name}/out` };
    for (const body of [batch(`s3://${name}/in/x`), batch(await uploadInput(api), { aibrix })]) {
      const { status, body: answer } = await postJson(api, '/v1/batches', body);
      expect(status).toBe(400);
      expect(JSON.stringify(answer)).toContain('they may not do this');
      expect(JSON.stringify(answer)).not.toContain('arn:aws');
    }
  });

  test('a server without ALLOWED_BUCKETS allows none', async () => {
    await using api = await startApi(inject('redisUrl'));
    const answer = await postJson(api, '/v1/batches', batch(`s3://${name}/in/a b.jsonl`));
    expect(answer).toMatchObject({ status: 400, body: { error: { code: 'bucket_not_allowed' } } });
  });
});

test('validate reads the object where it is, and creates nothing', async () => {
  await using api = await start();
  const url = `s3://${name}/in/a b.jsonl`;
  const body = batch(url, { aibrix: { output_prefix: `s3://${name}/out` } });
  expect(await postJson(api, '/v1/batches/validate', body)).toMatchObject({
    status: 200,
    body: { valid: true, input_file_id: url, bytes: INPUT.text.length, total_lines: 20 },
  });
  expect((await api.openai.files.list()).data).toEqual([]);
});

test('the same request twice makes one job and one file, also when the object was changed since', async () => {
  await using api = await start();
  await bucket.put('in/repeated', [Buffer.from(INPUT.text)]);
  const body = batch(`s3://${name}/in/repeated`, { aibrix: { job_id: 'job_named1' } });
  const first = await createdJob(api, await postJson(api, '/v1/batches', body));
  await bucket.put('in/repeated', [Buffer.from('{}\n')]);
  const second = await createdJob(api, await postJson(api, '/v1/batches', body));
  expect(second).toEqual(first);
  await bucket.delete('in/repeated');
  expect(await createdJob(api, await postJson(api, '/v1/batches', body))).toEqual(first);
  expect((await api.openai.files.list()).data.map(({ id }) => id)).toEqual([first.input]);
});

test('two requests at once for one job leave one file', async () => {
  await using api = await start();
  const body = batch(`s3://${name}/in/a b.jsonl`, { aibrix: { job_id: 'job_named2' } });
  const answers = await Promise.all([1, 2, 3, 4].map(() => postJson(api, '/v1/batches', body)));
  const records = await Promise.all(answers.map((answer) => createdJob(api, answer)));
  expect(new Set(records.map(({ input }) => input)).size).toBe(1);
  expect((await api.openai.files.list()).data).toHaveLength(1);
});

test('deleting the file leaves the object', async () => {
  await using api = await start();
  const record = await createdJob(
    api,
    await postJson(api, '/v1/batches', batch(`s3://${name}/in/a b.jsonl`)),
  );
  await expect(api.openai.files.delete(record.input)).rejects.toThrow(/in use/);
  await api.openai.batches.cancel(record.id.replace('job_', 'batch_'));
  await api.openai.files.delete(record.input);
  expect(await api.store.files.get(record.input)).toBeNull();
  expect(await bucket.head('in/a b.jsonl')).toMatchObject({ bytes: INPUT.text.length });
});

test('what expires in a bucket of the user is the record, and not the object', async () => {
  await using api = await start();
  const { storage } = openOver(api.storage);
  const id = 'file-expired-output';
  const put = await storage.put(`s3://${name}/out/expired`, [Buffer.from('{}\n')]);
  const { address: location = '', ...stored } = put;
  const named = { filename: 'a.jsonl', purpose: 'batch_output' } as const;
  await api.store.files.create({ id, ...stored, ...named, location, expiresAfterMs: -1 });
  const quiet = () => undefined;
  const log = { debug: quiet, info: quiet, warn: quiet, error: quiet };
  const deps = { store: api.store, storage, now: Date.now, log, graceMs: 0 };
  await createExpiry('test', deps).round();
  expect(await api.store.files.get(id)).toBeNull();
  expect(await bucket.head('out/expired')).toMatchObject({ bytes: 3 });
});

test('the file of an object can be the input of further jobs as long as it is what it was', async () => {
  await using api = await start();
  await bucket.put('in/shared', [Buffer.from(INPUT.text)]);
  const body = batch(`s3://${name}/in/shared`, { aibrix: { output_prefix: `s3://${name}/out` } });
  const first = await createdJob(api, await postJson(api, '/v1/batches', body));
  const again = await createdJob(api, await postJson(api, '/v1/batches', batch(first.input)));
  expect(again.input).toBe(first.input);
  expect(again.options.inputLocation).toBe(first.options.inputLocation);
  const cloned = await createdJob(api, await postJson(api, `/api/v1/jobs/${first.id}/clone`, {}));
  const { inputLocation, outputPrefix } = first.options;
  expect(cloned).toMatchObject({ input: first.input, options: { inputLocation, outputPrefix } });
  const elsewhere = { output_prefix: `s3://${name}/out/elsewhere` };
  expect(await postJson(api, `/api/v1/jobs/${first.id}/clone`, elsewhere)).toMatchObject({
    status: 200,
    body: { output_prefix: `s3://${name}/out/elsewhere/` },
  });

  await bucket.put('in/shared', [Buffer.from('{}\n')]);
  const refused = {
    status: 400,
    body: {
      error: { code: 'invalid_input_file', message: expect.stringContaining('was changed') },
    },
  };
  expect(await postJson(api, '/v1/batches', batch(first.input))).toMatchObject(refused);
  expect(await postJson(api, `/api/v1/jobs/${first.id}/clone`, {})).toMatchObject(refused);
  // What was there when the job was created cannot be had any more.
  const content = api.openai.files.content(first.input);
  await expect(content).rejects.toMatchObject({ status: 410, code: 'storage.changed' });
  await expect(content).rejects.toBeInstanceOf(APIError);
});
