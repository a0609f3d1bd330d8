import { createHash } from 'node:crypto';
import { APIError, toFile } from 'openai';
import type OpenAI from 'openai';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { fileKey, manifestKey } from '../../src/domain/file.ts';
import {
  createBatch,
  download,
  expectExact,
  makeInput,
  openaiClient,
  say,
  untilFinal,
  upload,
} from '../support/batch.ts';
import type { Input } from '../support/batch.ts';
import { chaosRandom, LONG } from '../support/chaos.ts';
import { startRedis } from '../support/redis.ts';
import type { TestRedis } from '../support/redis.ts';
import { ANY_KEYS, startS3Server } from '../support/s3-server.ts';
import type { S3Server } from '../support/s3-server.ts';
import { makeFolder, requireNothingLeft, runCli, startSluice } from '../support/server.ts';
import type { Environment, Sluice, TestFolder } from '../support/server.ts';
import { startStorageChaosProxy, TROUBLES } from '../support/storage-chaos-proxy.ts';
import type { ChaosRequest, StorageChaosProxy } from '../support/storage-chaos-proxy.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';
import { logged } from '../support/worker-processes.ts';

/** Segments, outputs and inputs of tests have several parts of the smallest size that there is. */
const LINES = LONG ? 12_000 : 1_300;
const LINE_PADDING = LONG ? 2_100 : 4_200;
const SHARE = 0.3;
const BOUND_MS = LONG ? 300_000 : 150_000;
/** So that one of a few segments is longer than a part. */
const ANSWER_TOKENS = LONG ? 800 : 1_600;
const LATER_MS = 8 * 3_600_000;

let store: S3Server;
let bucket: string;
let redis: TestRedis;
let engine: VllmProcess;
let folder: TestFolder;
let proxy: StorageChaosProxy;
let env: Environment;
/** API and sweeper, with a process for the workers. */
let sluice: Sluice;
let input: Input;
/** What a run in fair weather writes. */
let clean: Files;

interface Files {
  output: string;
  error: string;
}

beforeAll(async () => {
  store = await startS3Server();
  bucket = await store.createBucket();
  redis = await startRedis();
  const flags = ['--profile', 'zero', '--set', `answer_tokens=${ANSWER_TOKENS}`];
  engine = await startVllmProcess({ flags });
  await engine.setFaults([{ kind: 'status', status: 400, match: '77 of line' }]);
  folder = await makeFolder();
  proxy = await startStorageChaosProxy(store.url, {
    random: chaosRandom(),
    hangMs: LONG ? null : 300,
  });
  env = {
    STORAGE_TYPE: 'S3',
    S3_BUCKET: bucket,
    S3_ENDPOINT: proxy.url,
    S3_PART_SIZE: '5MiB',
    AWS_ACCESS_KEY_ID: ANY_KEYS.accessKeyId,
    AWS_SECRET_ACCESS_KEY: ANY_KEYS.secretAccessKey,
    SEGMENT_KEEP: '0s',
    ORPHAN_AGE: '7h',
    GC_INTERVAL: '1s',
  };
  sluice = await start();
  input = makeInput(LINES, { padding: LINE_PADDING });
  const id = await submit();
  clean = await filesOf(await untilFinal(sluice.url, id, BOUND_MS));
}, 2 * BOUND_MS);

afterEach(() => proxy.setShare(0));

afterAll(async () => {
  for (const each of [sluice, proxy, engine, store]) await each[Symbol.asyncDispose]();
  await folder[Symbol.asyncDispose]();
  await redis.stop();
  requireNothingLeft();
});

function start(): Promise<Sluice> {
  const server = { dataDir: folder.path, redisUrl: redis.url, engines: [engine.url] };
  return startSluice({ ...server, env: { ...env, WORKER_PROCESSES: '1' } });
}

/** Uploads the input and starts a batch over it, again where the API says that the store fails. */
async function submit(): Promise<string> {
  return (await createBatch(sluice.url, await uploadInput())).id;
}

async function uploadInput(): Promise<string> {
  const what = 'an upload';
  return until(() => upload(sluice.url, input.text).catch(isAway), { timeoutMs: BOUND_MS, what });
}

function isAway(error: unknown): undefined {
  if (!(error instanceof APIError && error.status === 503)) throw error;
}

/** Both files of a finished batch, which hold every line once, without the id in which two runs differ. */
async function filesOf(batch: OpenAI.Batch): Promise<Files> {
  expect(batch.status).toBe('completed');
  const { error } = await expectExact(sluice.url, batch, input);
  expect(error).toHaveLength(LINES / 100);
  const id = batch.id.slice('batch_'.length);
  const files = [batch.output_file_id, batch.error_file_id];
  const texts = await Promise.all(files.map((file) => download(sluice.url, file)));
  const [outputText = '', errorText = ''] = texts.map((text) => text.replaceAll(id, 'ID'));
  return { output: outputText, error: errorText };
}

function expectSame(found: Files): void {
  expect(found.output === clean.output, 'the output of a run in fair weather').toBe(true);
  expect(found.error === clean.error, 'its error file').toBe(true);
}

async function keysInBucket(): Promise<string[]> {
  const listed = await (await fetch(`${store.url}/${bucket}?list-type=2`)).text();
  return [...listed.matchAll(/<Key>(.*?)<\/Key>/g)].map(([, key = '']) => key);
}

/** Collects as one who comes eight hours later, and makes sure that only what records name is left. */
async function expectNothingLeft(): Promise<void> {
  const later = new URL('../support/later-clock.ts', import.meta.url).href;
  proxy.setUploadAge(LATER_MS);
  const { code, stdout, stderr } = await runCli(['gc'], {
    ...env,
    DATA_DIR: folder.path,
    REDIS_URL: redis.url,
    NODE_OPTIONS: `--import=${later}`,
  });
  proxy.setUploadAge(0);
  say(stdout);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(proxy.openUploads()).toEqual([]);
  const client = openaiClient(sluice.url);
  const named: string[] = [];
  for await (const { id } of client.files.list()) named.push(fileKey(id));
  for await (const { id } of client.batches.list())
    named.push(manifestKey(id.replace('batch_', 'job_')));
  const left = (await keysInBucket()).filter((key) => !/^(identity|gc)\//.test(key));
  expect(left.toSorted()).toEqual(named.toSorted());
}

test('a third of all requests to the store goes wrong, and the job writes what it would have written', async () => {
  proxy.setShare(SHARE);
  const begun = performance.now();
  const id = await submit();
  const batch = await untilFinal(sluice.url, id, BOUND_MS);
  const seconds = (performance.now() - begun) / 1_000;
  expectSame(await filesOf(batch));
  const troubles = () => Object.values(proxy.troubles).reduce((sum, count) => sum + count, 0);
  // Of so many, most kinds have come.
  while (troubles() < 25) await uploadInput();
  const left = proxy.openUploads().length;
  await expectNothingLeft();
  const asked = Object.entries(proxy.operations).map(([name, count]) => `${name} ${count}`);
  const spoilt = TROUBLES.map((trouble) => `${trouble} ${proxy.troubles[trouble]}`);
  say(`${seconds.toFixed(1)} s; ${left} uploads left open; ${spoilt.join(', ')}`);
  say(asked.join(', '));
  expect(TROUBLES.filter((trouble) => proxy.troubles[trouble] > 0).length).toBeGreaterThan(4);
});

test('workers that are killed in the middle of an upload leave nothing, and no line is lost', async () => {
  const id = await submit();
  for (const kind of [/\/segments\//, /-output$/]) {
    const isPart = ({ operation, key }: ChaosRequest) =>
      operation === 'UploadPart' && kind.test(key);
    await proxy.holdNext(isPart);
    expect(proxy.openUploads().filter(({ key }) => kind.test(key))).toHaveLength(1);
    process.kill(Number(logged(sluice, 'worker process is up').at(-1)?.['pid']), 'SIGKILL');
  }
  expectSame(await filesOf(await untilFinal(sluice.url, id, BOUND_MS)));
  await expectNothingLeft();
});

/** An upload of long parts that wants to be completed, and the MD5 of its bytes. */
async function uploadParts(): Promise<{ id: string; wish: { part_ids: string[]; md5: string } }> {
  const { uploads } = openaiClient(sluice.url);
  const pieces = [6, 5, 7, 1].map((size, n) => Buffer.alloc(size * 2 ** 20, `${n}\n`));
  const bytes = Buffer.concat(pieces);
  const { id } = await uploads.create({
    filename: 'in.jsonl',
    purpose: 'batch',
    mime_type: 'application/jsonl',
    bytes: bytes.length,
  });
  const part_ids: string[] = [];
  for (const piece of pieces) {
    const send = async () => uploads.parts.create(id, { data: await toFile(piece, 'part') });
    part_ids.push((await untilTaken(send)).id);
  }
  return { id, wish: { part_ids, md5: createHash('md5').update(bytes).digest('hex') } };
}

function untilTaken<T>(send: () => Promise<T>): Promise<T> {
  return until(() => send().catch(isAway), { timeoutMs: BOUND_MS, what: 'an answer of 200' });
}

/** Completes an upload, and makes sure that its file has all bytes. */
async function completeUpload({ id, wish }: Awaited<ReturnType<typeof uploadParts>>) {
  const complete = () => openaiClient(sluice.url).uploads.complete(id, wish);
  const { file } = await untilTaken(complete);
  proxy.setShare(0);
  const text = await download(sluice.url, file?.id);
  expect(createHash('md5').update(text).digest('hex')).toBe(wish.md5);
}

async function expectNoParts(): Promise<void> {
  const isClear = async () => !(await keysInBucket()).some((key) => key.startsWith('uploads/'));
  await until(isClear, { timeoutMs: BOUND_MS, what: 'the end of the parts' });
  await expectNothingLeft();
}

test('parts are joined by a store of which a third goes wrong, and are what was sent', async () => {
  for (let round = 0; round < (LONG ? 10 : 1); round += 1) {
    proxy.setShare(SHARE);
    await completeUpload(await uploadParts());
  }
  expect(proxy.operations['UploadPartCopy']).toBeGreaterThan(0);
  await expectNoParts();
});

test.runIf(LONG)(
  'a server that is killed while the store joins parts leaves nothing, and another one makes the file',
  async () => {
    const upload = await uploadParts();
    const held = proxy.holdNext(({ operation }) => operation === 'UploadPartCopy');
    const lost = openaiClient(sluice.url).uploads.complete(upload.id, upload.wish);
    lost.catch(() => undefined); // its server dies
    await held;
    expect(proxy.openUploads()).toHaveLength(1);
    await sluice.kill();
    await sluice[Symbol.asyncDispose]();
    sluice = await start();
    await completeUpload(upload);
    await expectNoParts();
  },
);
