import { join } from 'node:path';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { makeInput, openaiClient, untilFinal, upload } from '../support/batch.ts';
import type { Input } from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import type { TestRedis } from '../support/redis.ts';
import { scanOf } from '../support/scan.ts';
import type { Scan } from '../support/scan.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import type { Sluice, TestFolder } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

let server: TestRedis;
let redis: Redis;
let engine: VllmProcess;
let folder: TestFolder;
let sluice: Sluice;
let scan: Scan;

beforeAll(async () => {
  server = await startRedis();
  redis = new Redis(server.url);
  engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  folder = await makeFolder();
  sluice = await startSluice({
    dataDir: folder.path,
    redisUrl: server.url,
    engines: [engine.url],
    env: { WEBHOOK_ALLOW_PRIVATE: 'true' },
  });
  scan = scanOf(redis, join(folder.path, 'storage'));
});

afterAll(async () => {
  redis.disconnect();
  await sluice.stop();
  await engine.close();
  await folder[Symbol.asyncDispose]();
  await server.stop();
  requireNothingLeft();
});

async function call(method: string, path: string, body?: object, key?: string) {
  const answer = await fetch(`${sluice.url}${path}`, {
    method,
    headers: {
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      ...(key === undefined ? {} : { 'idempotency-key': key }),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  return { status: answer.status, body: (await answer.json()) as Record<string, unknown> };
}

/** Forty lines, one of them twice, so that the error file and Redis have words of it, too. */
function withDuplicate(name: string): { input: Input; words: string[] } {
  const input = makeInput(40, { name });
  const [first] = input.text.split('\n');
  const text = `${input.text}${first}\n`;
  return { input: { ...input, text }, words: [name, ...input.marks.values()] };
}

/** The answer, which has the file's name, is kept under the key. */
async function uploadUnderKey(text: string, filename: string): Promise<string> {
  const form = new FormData();
  form.set('purpose', 'batch');
  form.set('file', new File([text], filename));
  const headers = { 'idempotency-key': `upload of ${text.length} bytes` };
  const answer = await fetch(`${sluice.url}/v1/files`, { method: 'POST', headers, body: form });
  return ((await answer.json()) as { id: string }).id;
}

/** A batch that has run to its end; answers kept under keys, and a webhook that nobody takes, know of it. */
async function runBatch(name: string, filename = 'input.jsonl') {
  const { input, words } = withDuplicate(name);
  const file = await uploadUnderKey(input.text, filename);
  const wish = {
    input_file_id: file,
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    metadata: { about: name },
    aibrix: { validation: 'lenient' },
  };
  await call('POST', '/v1/batches/validate', wish, `validate ${name.length}`);
  const key = `create ${name.length}`;
  const { body } = await call('POST', '/v1/batches', wish, key);
  const batch = await untilFinal(sluice.url, String(body['id']));
  expect(batch).toMatchObject({
    status: 'completed',
    request_counts: { completed: 40, failed: 1 },
  });
  return { batch, words, file, wish, key, jobId: batch.id.replace('batch_', 'job_') };
}

/** The sweeper asks whether other jobs have the input. */
async function untilHidden(file: string): Promise<void> {
  await until(async () => (await call('GET', `/v1/files/${file}`)).status === 404, {
    what: 'the end of the input',
  });
}

/** As if the minute were over for which the bytes of a file stay that nobody sees any more. */
async function makeDue(file: string): Promise<void> {
  await redis.hset(`{${file}}`, 'expires_at', Date.now() - 120_000);
  await redis.zadd('sluice:file-expiry', 0, file);
}

test('DELETE of a job leaves no byte of it in Redis or in storage', async () => {
  const hook = { url: 'http://127.0.0.1:9/', events: ['batch.completed'] };
  expect((await call('POST', '/api/v1/webhooks', hook)).status).toBeLessThan(300);
  const name = 'zebrafish';
  const { batch, words, file, wish, key, jobId } = await runBatch(name, `${name}.jsonl`);
  await until(async () => (await scan.redis([`evt_${jobId.slice(4)}.`])).length > 0, {
    what: 'the webhook',
  });
  expect(await scan.redis(words)).not.toEqual([]);
  // Input, output and error file, and a segment at least.
  expect((await scan.folder(words)).length).toBeGreaterThan(3);

  const deleted = { status: 200, body: { id: jobId, object: 'job', deleted: true } };
  expect(await call('DELETE', `/api/v1/jobs/${jobId}`)).toEqual(deleted);
  expect((await call('GET', `/v1/files/${batch.output_file_id}`)).status).toBe(404);
  await untilHidden(file);
  await makeDue(file);
  await until(async () => (await scan.folder(words)).length === 0, {
    what: 'the end of its bytes',
  });
  expect(await scan.redis(words)).toEqual([]);
  // Not even its name lies in the storage, and in Redis only what says that it was deleted, and queues' own history.
  expect(await scan.folder([jobId, jobId.slice(4)])).toEqual([]);
  const named = await scan.redis([jobId.slice(4)]);
  const left = named.filter((each) => !/:(?:erased|removed)$|^\{sluice:(?!webhooks)/.test(each));
  expect(left).toEqual(['sluice:erasing']);

  expect(await call('DELETE', `/api/v1/jobs/${jobId}`)).toEqual(deleted);
  const gone = [
    `/api/v1/jobs/${jobId}`,
    `/v1/batches/${batch.id}`,
    ...[file, batch.output_file_id, batch.error_file_id].map((id) => `/v1/files/${id}`),
  ];
  for (const path of gone) expect([path, (await call('GET', path)).status]).toEqual([path, 404]);
  const { data } = await openaiClient(sluice.url).batches.list();
  expect(data.map(({ id }) => id)).not.toContain(batch.id);
  // A request that comes again makes no job of the same id.
  const again = { ...wish, input_file_id: await upload(sluice.url, makeInput(1).text) };
  const refused = await call('POST', '/v1/batches', again, key);
  expect(refused).toMatchObject({ status: 400, body: { error: { code: 'id_deleted' } } });
});

test('the input stays that another job has, and goes with the last one', async () => {
  const { batch, file, jobId } = await runBatch('quokka-shared');
  const { body } = await call('POST', `/api/v1/jobs/${jobId}/clone`);
  const clone = String(body['id']);
  await untilFinal(sluice.url, clone.replace('job_', 'batch_'));
  await call('DELETE', `/api/v1/jobs/${jobId}`);
  expect((await call('GET', `/v1/files/${batch.output_file_id}`)).status).toBe(404);
  expect((await call('GET', `/v1/files/${file}`)).status).toBe(200);
  await call('DELETE', `/api/v1/jobs/${clone}`);
  await untilHidden(file);
});

test('DELETE of the files of a batch leaves none of their content, and its record', async () => {
  const { batch, words, file, jobId } = await runBatch('axolotl-by-file');
  const answers = words.slice(1);
  expect((await scan.folder(answers)).some((path) => path.startsWith('jobs/'))).toBe(true);
  const client = openaiClient(sluice.url);
  await client.files.delete(batch.output_file_id ?? '');
  expect(await scan.folder(answers)).toEqual([]);
  await client.files.delete(batch.error_file_id ?? '');
  await client.files.delete(file);
  expect(await scan.folder(words)).toEqual([]);
  const { body } = await call('GET', `/api/v1/jobs/${jobId}`);
  expect(body).toMatchObject({ id: jobId, status: 'completed' });
});

test('a job that is not over is not deleted, and one that is cancelled is', async () => {
  const file = await upload(sluice.url, makeInput(3, { name: 'still' }).text);
  // Nobody answers there.
  const aibrix = { runtime: { target: 'External', options: { base_url: 'http://127.0.0.1:9' } } };
  const wish = { input_file_id: file, endpoint: '/v1/chat/completions', completion_window: '24h' };
  const { body } = await call('POST', '/v1/batches', { ...wish, aibrix });
  const jobId = String(body['id']).replace('batch_', 'job_');
  const early = await call('DELETE', `/api/v1/jobs/${jobId}`);
  expect(early).toMatchObject({ status: 400, body: { error: { code: 'job_not_over' } } });
  expect((await call('GET', `/api/v1/jobs/${jobId}`)).status).toBe(200);
  await call('POST', `/api/v1/jobs/${jobId}/cancel`);
  await untilFinal(sluice.url, String(body['id']));
  expect((await call('DELETE', `/api/v1/jobs/${jobId}`)).status).toBe(200);
  expect((await call('DELETE', '/api/v1/jobs/job_never')).status).toBe(404);
});
