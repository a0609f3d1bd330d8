import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, inject, test } from 'vitest';
import { finalize } from '../../processors/finalize.ts';
import { assemble } from '../../src/dispatcher/assemble.ts';
import { scanModel } from '../../src/dispatcher/json-scan.ts';
import { errorOnlyLine, outputLine, requestId } from '../../src/dispatcher/answer-lines.ts';
import { permanent } from '../../src/domain/errors.ts';
import { fileKey, manifestKey, outputFileId, segmentKey } from '../../src/domain/file.ts';
import type { Outcome } from '../../src/domain/job.ts';
import { batchIdOf } from '../../src/domain/job.ts';
import type { Manifest } from '../../src/domain/manifest.ts';
import { provisionId } from '../../src/domain/provision.ts';
import type { EngineTally } from '../../src/domain/segment.ts';
import { createLocalStorage } from '../../src/storage/local.ts';
import type { Storage } from '../../src/storage/contract.ts';
import { rawRequest, startApi } from '../support/api.ts';
import { encodeSegment } from '../support/encode-segment.ts';
import { openRecordWorld } from '../support/record-world.ts';
import type { RecordWorld } from '../support/record-world.ts';
import { newJob, partOf } from '../support/store-back-ends.ts';

const [A, B] = ['http://a:1/path?x=1,2;3 4', 'http://b:2'] as const;
const NEVER = new AbortController().signal;

const folders: string[] = [];
afterEach(async () => {
  for (const folder of folders.splice(0)) await rm(folder, { recursive: true });
});

/** How a line went: answered with a status by a model, with an error by nobody, or not at all. */
type Went = { status: number; model: string } | 'crashed' | 'undone';

interface Setting {
  lines: readonly Went[];
  models?: string[];
  /** Of the one part of each shard. */
  engines?: readonly (readonly EngineTally[])[];
  outcome?: Outcome;
  outputPrefix?: string;
}

const SHARD = 4;

/** A sealed job whose answers are stored; the product's own assembly and storage are to write its files. */
async function sealed(world: RecordWorld, setting: Setting) {
  const { lines, models = ['m'], engines = [], outcome = 'completed' } = setting;
  const { outputPrefix = null } = setting;
  const folder = await mkdtemp(join(tmpdir(), 'sluice-manifest-'));
  folders.push(folder);
  const storage = createLocalStorage({ directory: folder });
  const { maxLineBytes } = { maxLineBytes: 10_000 };
  Object.assign(world.deps, {
    storage,
    scanModel,
    assemble: (...[source, sinks, options]: Parameters<typeof assemble>) =>
      assemble(source, sinks, { ...options, maxLineBytes }),
  });
  const created = newJob();
  const input = `file-${created.id}`;
  const { store } = world;
  const options = { ...created.options, outputPrefix };
  const { job } = await store.jobs.create({ ...created, input, options });
  const rows = lines.map((_, n) => `{"custom_id":"c${n}","body":{}}\n`);
  const stored = await storage.put(fileKey(input), [Buffer.from(rows.join(''))]);
  await store.files.create({ id: input, filename: 'in.jsonl', purpose: 'batch', ...stored });
  const shards = Math.ceil(lines.length / SHARD);
  await store.shards.write(job.id, plansOf(rows));
  let at = { id: job.id, state: job.state, version: job.version };
  for (const to of ['resource_preparing', 'submitting', 'in_progress'] as const) {
    const moved = await store.jobs.move(at, to, { set: { lines: lines.length, shards, models } });
    if (moved === 'stale') throw new Error('nobody else moves this job');
    at = { id: job.id, state: to, version: moved.version };
  }
  await store.shards.open(job.id, shards);
  for (let n = 0; n < shards; n += 1) await answerShard(world, storage, job.id, n, lines, engines);
  const moved = await store.jobs.move(at, 'finalizing', { outcome });
  if (moved === 'stale') throw new Error('nobody else moves this job');
  return { id: job.id, input, storage };
}

function plansOf(rows: readonly string[]) {
  const plans = [];
  let offset = 0;
  for (let first = 0; first < rows.length; first += SHARD) {
    const own = rows.slice(first, first + SHARD);
    const bytes = Buffer.byteLength(own.join(''));
    plans.push({ n: first / SHARD, first, lines: own.length, offset, bytes });
    offset += bytes;
  }
  return plans;
}

async function answerShard(
  { store }: RecordWorld,
  storage: Storage,
  jobId: string,
  n: number,
  lines: readonly Went[],
  engines: NonNullable<Setting['engines']>,
): Promise<void> {
  const own = lines.slice(n * SHARD, (n + 1) * SHARD);
  const answers = own.flatMap((went, line) => {
    if (went === 'undone') return [];
    const isOk = went !== 'crashed' && went.status === 200;
    const kind = isOk ? ('output' as const) : ('error' as const);
    return [{ line, kind, bytes: lineOf(jobId, n * SHARD + line, went) }];
  });
  if (answers.length === 0) return;
  await store.shards.take(jobId, { n, wake: 1 }, `t${n}`, 0);
  const { bytes, parts } = encodeSegment([{ shard: n, answers }]);
  const segment = `seg-${n}`;
  const stored = await storage.put(segmentKey(jobId, segment), bytes);
  const ok = answers.filter(({ kind }) => kind === 'output').length;
  const usage = { inputTokens: ok, cachedTokens: 0, outputTokens: 2 * ok, reasoningTokens: 0 };
  const part = partOf(
    n,
    `t${n}`,
    own.length,
    answers.map(({ line }) => line),
    {
      ...parts[0],
      ok,
      failed: answers.length - ok,
      usage,
      ...(engines[n] === undefined ? {} : { engines: engines[n] }),
    },
  );
  const { parts: results } = await store.shards.commit(jobId, { id: segment, ...stored }, [part]);
  expect(results).toMatchObject([{ outcome: 'committed' }]);
}

function lineOf(jobId: string, index: number, went: Exclude<Went, 'undone'>): Buffer {
  const id = requestId(jobId, index);
  const customId = Buffer.from(`"c${index}"`);
  if (went === 'crashed')
    return errorOnlyLine({ id, customId, code: 'worker_crashed', message: '' });
  const { status, model } = went;
  const body = Buffer.from(
    `{"id": "x\\"model\\":", "usage": {"model": "n"}, "model" : ${JSON.stringify(model)}, "choices":[{"model": "m"}]}`,
  );
  const pieces = outputLine({ id, customId, status, requestId: 'r', body });
  return Buffer.concat(pieces.map((piece) => Buffer.from(piece)));
}

async function textOf(storage: Storage, key: string): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of await storage.get(key)) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

async function manifestOf(storage: Storage, id: string): Promise<Manifest> {
  return JSON.parse(await textOf(storage, manifestKey(id)));
}

function ok(model = 'm'): Went {
  return { status: 200, model };
}

async function addProvision({ store }: RecordWorld, job: string, n: number, address: string) {
  const slot = { slot: 0, provider: 'static', owner: 'sluice', address } as const;
  await store.provisions.create({ id: provisionId(job, 0, n), job, ...slot });
}

test('counts lines by status, model, engine and provision, and says the same each time', async () => {
  using world = openRecordWorld();
  const { id, input, storage } = await sealed(world, {
    lines: [ok('m'), ok('n'), { status: 400, model: 'n' }, 'crashed', ok('m'), ok('m'), 'undone'],
    // One is longer than a whole line.
    models: ['m'.repeat(500), 'm', 'n'],
    engines: [
      [
        { engine: A, ok: 1, failed: 1 },
        { engine: B, ok: 1, failed: 0 },
      ],
      [{ engine: A, ok: 2, failed: 0 }],
    ],
    outcome: 'cancelled',
  });
  // One machine was lost, and the next one got its address.
  await addProvision(world, id, 0, A);
  await addProvision(world, id, 1, B);
  await addProvision(world, id, 2, A);
  const before = await world.job(id);
  await finalize(before, NEVER, world.deps);
  const job = await world.job(id);
  expect(job).toMatchObject({ state: 'cancelled', completed: 4, failed: 3 });
  const manifest = await manifestOf(storage, id);
  const files = await Promise.all(
    [input, job.outputFile, job.errorFile].map((file) => world.store.files.get(file ?? '')),
  );
  const told = files.map((file) => ({ sha256: file?.sha256, bytes: file?.bytes }));
  expect(manifest).toMatchObject({
    status: 'cancelled',
    tool: { name: 'sluice', version: '1.2.3' },
    input: { file_id: input, filename: 'in.jsonl', lines: 7, ...told[0] },
    output: { file_id: job.outputFile, lines: 4, ...told[1] },
    error: { file_id: job.errorFile, lines: 3, ...told[2] },
    request_counts: { total: 7, completed: 4, failed: 3 },
    usage: { input_tokens: 4, output_tokens: 8, total_tokens: 12 },
  });
  expect(manifest.status_codes).toEqual([
    { status_code: 200, completed: 4, failed: 0 },
    { status_code: 400, completed: 0, failed: 1 },
    { status_code: null, completed: 0, failed: 2 },
  ]);
  expect(manifest.models).toEqual([
    { model: 'm', completed: 3, failed: 0 },
    { model: 'n', completed: 1, failed: 1 },
    { model: null, completed: 0, failed: 2 },
  ]);
  const provider = 'static';
  const [first, second, third] = [0, 1, 2].map((n) => provisionId(id, 0, n));
  expect(manifest.engines).toEqual([
    { engine: 'engine-1', provider, provision_ids: [first, third], completed: 3, failed: 1 },
    { engine: 'engine-2', provider, provision_ids: [second], completed: 1, failed: 0 },
    { engine: null, provider: null, provision_ids: [], completed: 0, failed: 2 },
  ]);
  // A second one that was as far as the first, and comes late.
  const text = await textOf(storage, manifestKey(id));
  expect(text).not.toContain('http');
  await storage.delete(manifestKey(id));
  await finalize(before, NEVER, world.deps);
  expect(await textOf(storage, manifestKey(id))).toBe(text);
  // Nor does it write worse than what is there when the input was deleted meanwhile.
  await world.store.files.delete(input);
  await finalize(before, NEVER, world.deps);
  expect(await textOf(storage, manifestKey(id))).toBe(text);
});

test('of a job with one engine every answer is of that, also where parts do not say so', async () => {
  using world = openRecordWorld();
  const { id, storage } = await sealed(world, {
    lines: [ok(), { status: 404, model: 'm' }, 'crashed', ok()],
  });
  await addProvision(world, id, 0, A);
  await world.untilFinal(id);
  expect((await manifestOf(storage, id)).engines).toMatchObject([
    { engine: 'engine-1', completed: 2, failed: 1 },
    { engine: null, completed: 0, failed: 1 },
  ]);
});

test('of a job with several engines that nobody noted, it says that it does not know', async () => {
  using world = openRecordWorld();
  const { id, storage } = await sealed(world, { lines: [ok(), ok()] });
  await addProvision(world, id, 0, A);
  await addProvision(world, id, 1, B);
  await world.untilFinal(id);
  expect((await manifestOf(storage, id)).engines).toMatchObject([{ engine: null, completed: 2 }]);
});

test('lies beside files in a bucket of the user, and where it is always found', async () => {
  using world = openRecordWorld();
  const outputPrefix = 's3://bucket/results/';
  const { id, storage } = await sealed(world, { lines: [ok()], outputPrefix });
  const { put } = storage;
  const bucket = new Map<string, string>();
  storage.put = async (key, source, options) => {
    if (!key.startsWith('s3:')) return put(key, source, options);
    const chunks: Uint8Array[] = [];
    for await (const chunk of source) chunks.push(chunk);
    const bytes = Buffer.concat(chunks);
    bucket.set(key, bytes.toString());
    return { bytes: bytes.length, sha256: 'ab', address: `${key}?etag=1` };
  };
  await world.untilFinal(id);
  const batch = batchIdOf(id);
  const names = [`${batch}_output.jsonl`, `${batch}_manifest.json`];
  expect([...bucket.keys()]).toEqual(names.map((name) => `${outputPrefix}${name}`));
  const text = await textOf(storage, manifestKey(id));
  expect(bucket.get(`${outputPrefix}${batch}_manifest.json`)).toBe(text);
  expect(JSON.parse(text).output).toMatchObject({ filename: `${batch}_output.jsonl`, lines: 1 });
});

test('is there when there is only an error file', async () => {
  using world = openRecordWorld();
  const { id, storage } = await sealed(world, { lines: ['undone', 'undone'], outcome: 'expired' });
  await world.untilFinal(id);
  const manifest = await manifestOf(storage, id);
  expect(manifest).toMatchObject({
    status: 'expired',
    output: null,
    error: { filename: `${batchIdOf(id)}_error.jsonl`, lines: 2 },
    request_counts: { total: 2, completed: 0, failed: 2 },
  });
});

test('a job is not over before its manifest is stored', async () => {
  using world = openRecordWorld();
  const { id, storage } = await sealed(world, { lines: [ok()] });
  const { put } = storage;
  storage.put = async (key, ...rest) => {
    if (key === manifestKey(id)) throw new Error('the disk is gone');
    return put(key, ...rest);
  };
  await world.deliver('release', id);
  expect(await world.job(id)).toMatchObject({
    state: 'finalizing',
    reason: 'The output files cannot be written: the disk is gone',
  });
  storage.put = put;
  await world.untilFinal(id);
  expect((await manifestOf(storage, id)).request_counts.total).toBe(1);
});

test('what struck answers counted for their engines is gone with them', async () => {
  using world = openRecordWorld();
  const { store } = world;
  const { id } = await sealed(world, {
    lines: [ok(), ok(), ok(), ok(), ok()],
    engines: [[{ engine: A, ok: 4, failed: 0 }], [{ engine: B, ok: 1, failed: 0 }]],
  });
  async function tallies() {
    const found = [];
    for await (const { parts } of store.shards.accepted(id, 0, 2)) {
      found.push(parts.map(({ engines }) => engines));
    }
    return found;
  }
  const both = [[[{ engine: A, ok: 4, failed: 0 }]], [[{ engine: B, ok: 1, failed: 0 }]]];
  expect(await tallies()).toEqual(both);
  const { version } = await world.job(id);
  const lost = {
    n: 0,
    rest: Buffer.alloc(1),
    lost: [{ segment: 'seg-0', offset: 0, length: 0, crc: 0 }],
  };
  expect(await store.shards.strike({ id, version }, lost, '')).not.toBe('stale');
  expect(await tallies()).toEqual([[], both[1]]);
  expect(await world.job(id)).toMatchObject({ completed: 1 });
});

/** Writes the files and fails then as often as it takes until they are given up. */
async function giveUp(world: RecordWorld, id: string): Promise<void> {
  const { advanceJob } = world.deps;
  world.deps.advanceJob = async (job, to, change) => {
    if (to !== 'failed') throw permanent('store.damaged_record', 'cannot be read');
    return advanceJob(job, to, change);
  };
  for (const seconds of [0, 30, 61]) {
    world.ahead = seconds * 1_000;
    await world.deliver('release', id);
  }
  world.deps.advanceJob = advanceJob;
}

test('files that are given up after all leave no manifest and no records', async () => {
  using world = openRecordWorld();
  const { id, storage } = await sealed(world, { lines: [ok(), 'crashed'] });
  await giveUp(world, id);
  expect(await world.job(id)).toMatchObject({ state: 'failed', outputFile: null });
  expect(await storage.head(manifestKey(id))).toBeNull();
  for (const kind of ['output', 'error'] as const) {
    const file = outputFileId(id, kind);
    expect(await storage.head(fileKey(file))).toBeNull();
    expect(await world.store.files.get(file)).toBeNull();
  }
});

test('beside files in a bucket of the user, the manifest of given-up ones says so', async () => {
  using world = openRecordWorld();
  const outputPrefix = 's3://bucket/results/';
  const { id, storage } = await sealed(world, { lines: [ok()], outputPrefix });
  const bucket = new Map<string, string>();
  const { put, head } = storage;
  storage.put = async (key, source, options) => {
    if (!key.startsWith('s3:')) return put(key, source, options);
    const chunks: Uint8Array[] = [];
    for await (const chunk of source) chunks.push(chunk);
    const bytes = Buffer.concat(chunks);
    bucket.set(key, bytes.toString());
    return { bytes: bytes.length, sha256: 'ab', address: `${key}?etag=1` };
  };
  storage.head = async (key) => {
    if (!key.startsWith('s3:')) return head(key);
    return bucket.has(key) ? { bytes: 1, modifiedAt: 0 } : null;
  };
  await giveUp(world, id);
  const text = bucket.get(`${outputPrefix}${batchIdOf(id)}_manifest.json`) ?? '{}';
  expect(JSON.parse(text)).toMatchObject({ status: 'failed', output: null, error: null });
});

test('a manifest is served only where it tells how the job ended', async () => {
  await using api = await startApi(inject('redisUrl'));
  const { job } = await api.store.jobs.create(newJob());
  const outputFile = outputFileId(job.id, 'output');
  const path = `${api.url}/api/v1/jobs/${job.id}/manifest`;
  const moved = await api.store.jobs.move(job, 'finalizing', { outcome: 'failed' });
  if (moved === 'stale') throw new Error('nobody else moves this job');
  const at = { id: job.id, state: 'finalizing', version: moved.version } as const;
  await api.store.jobs.move(at, 'failed', { set: { outputFile } });
  async function statusOf(manifest: object): Promise<number> {
    await api.storage.put(manifestKey(job.id), [Buffer.from(JSON.stringify(manifest))]);
    return (await rawRequest(path)).status;
  }
  const output = { file_id: outputFile };
  expect(await statusOf({ status: 'failed', output, error: null })).toBe(200);
  expect(await statusOf({ status: 'completed', output, error: null })).toBe(404);
  expect(await statusOf({ status: 'failed', output, error: { file_id: 'file-x' } })).toBe(404);
  expect(await statusOf({ status: 'failed', output: null, error: null })).toBe(404);
});

test('a job without one says why', async () => {
  await using api = await startApi(inject('redisUrl'));
  const { job } = await api.store.jobs.create(newJob());
  async function refusal(path: string) {
    const { status, text } = await rawRequest(`${api.url}${path}`);
    return { status, ...JSON.parse(text).error };
  }
  const path = `/api/v1/jobs/${job.id}/manifest`;
  expect(await refusal(path)).toMatchObject({
    status: 404,
    code: 'manifest_not_found',
    message: expect.stringContaining('the job is queued'),
  });
  await api.store.jobs.move(job, 'failed', { outcome: 'failed' });
  for (const each of [path, `/v1/batches/${batchIdOf(job.id)}/manifest`]) {
    expect(await refusal(each)).toMatchObject({
      status: 404,
      code: 'manifest_not_found',
      message: expect.stringContaining('it wrote no files'),
    });
  }
  expect(await refusal('/api/v1/jobs/job_none/manifest')).toMatchObject({ code: 'job_not_found' });
  const view = await rawRequest(`${api.url}/api/v1/jobs/${job.id}`);
  expect(JSON.parse(view.text).manifest).toBe('');
});
