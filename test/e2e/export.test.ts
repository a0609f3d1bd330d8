import { readdir, readFile, readlink, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { jobIdOf } from '../../src/domain/job.ts';
import { jobKey, recordKey, shardKey } from '../../src/store/keys.ts';
import { createBatch, makeInput, untilAnswered, untilFinal, upload } from '../support/batch.ts';
import { makeFolder, requireNothingLeft, runCli } from '../support/server.ts';
import type { TestFolder } from '../support/server.ts';
import { openSite } from '../support/site.ts';
import type { Site } from '../support/site.ts';

/** Two shards. */
const LINES = 1_500;
const REFUSED = 'Question 77 of line';

let site: Site;
let redis: Redis;
let target: TestFolder;
let job: string;
/** The whole output and error file of the batch. */
let whole: { output: string; error: string };

beforeAll(async () => {
  site = await openSite();
  redis = new Redis(site.redis.url);
  await site.engine.setFaults([{ kind: 'status', status: 400, match: REFUSED }]);
  // Slow enough for two segments, which are two seconds apart.
  await site.engine.setConfig({ latency_ms: 150 });
  const input = await upload(site.url, makeInput(LINES).text);
  const { id } = await createBatch(site.url, input, { maxConcurrency: 64 });
  job = jobIdOf(id) ?? '';
  const batch = await untilFinal(site.url, id);
  whole = {
    output: await readFile(storedFile(batch.output_file_id), 'utf8'),
    error: await readFile(storedFile(batch.error_file_id), 'utf8'),
  };
});

beforeEach(async () => {
  target = await makeFolder();
  return () => target[Symbol.asyncDispose]();
});

afterAll(async () => {
  redis.disconnect();
  await site[Symbol.asyncDispose]();
  requireNothingLeft();
});

function storedFile(id: string | null | undefined): string {
  return join(site.folder.path, 'storage/files', id ?? '');
}

async function exportTo(id: string, ...args: string[]) {
  const env = { DATA_DIR: site.folder.path, REDIS_URL: site.redis.url };
  const all = ['jobs', 'export', id, '--to', target.path, '--json', ...args];
  const { code, stdout, stderr } = await runCli(all, env);
  return { code, stderr, said: stdout === '' ? null : JSON.parse(stdout) };
}

/** Both files as they were written, and nothing else; a file without a line is not there. */
async function written() {
  const name = job.replace('job_', 'batch_');
  const files = { output: '', error: '' };
  for (const each of await readdir(target.path)) {
    const kind = each === `${name}_output.jsonl` ? 'output' : 'error';
    expect(each).toBe(`${name}_${kind}.jsonl`);
    files[kind] = await readFile(join(target.path, each), 'utf8');
  }
  return files;
}

test('a job is exported as its files are, under either of its ids', async () => {
  const { code, said, stderr } = await exportTo(job);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(said).toMatchObject({ total: LINES, completed: LINES - 1, failed: 1, lost: 0 });
  expect(await written()).toEqual(whole);
  const again = await exportTo(job.replace('job_', 'batch_'));
  expect(again.code).toBe(1);
  expect(again.stderr).toContain('is there already: name another folder with --to, or write over');
  expect((await exportTo(job.replace('job_', 'batch_'), '--force')).code).toBe(0);
  expect(await written()).toEqual(whole);
});

test('what storage has lost, or records do not tell, is left out and counted', async () => {
  const [segment = ''] = await redis.hkeys(jobKey(job, 'SEGMENTS'));
  const path = join(site.folder.path, 'storage/jobs', job, 'segments', segment);
  const bytes = await readFile(path);
  await rm(path);
  const { code, said } = await exportTo(job);
  expect(code).toBe(1);
  const { output, error } = await written();
  const all = new Set(`${whole.output}${whole.error}`.split('\n'));
  const found = `${output}${error}`.trimEnd().split('\n');
  expect(found.every((line) => all.has(line))).toBe(true);
  expect(found.length + said.lost).toBe(LINES);
  expect(said.lost).toBeGreaterThan(0);
  expect(said.reason).toContain(segment);

  await writeFile(path, bytes);
  const second = shardKey(job, 1);
  const [parts = '', lines = ''] = await redis.hmget(second, 'parts', 'lines');
  for (const [field, counts] of [
    ['parts', { lost: Number(lines), unreadable: 0 }],
    ['lines', { lost: 0, unreadable: 1 }],
  ] as const) {
    await redis.hset(second, field, 'nonsense');
    const without = await exportTo(job, '--force');
    expect(without).toMatchObject({ code: 1, stderr: '', said: counts });
    expect(without.said.completed + without.said.failed).toBe(LINES - Number(lines));
    await redis.hset(second, { parts: parts ?? '', lines: lines ?? '' });
  }
});

test('a job that runs is exported as far as it is, and runs on', async () => {
  await site.engine.setConfig({ latency_ms: 20 });
  const input = await upload(site.url, makeInput(LINES, { name: 'running' }).text);
  const { id } = await createBatch(site.url, input, { maxConcurrency: 8 });
  await untilAnswered(site.url, id, 200);
  const { code, said } = await exportTo(id);
  expect(code).toBe(0);
  expect(said.completed).toBeGreaterThanOrEqual(200);
  expect(said.completed).toBeLessThan(LINES);
  const [name = ''] = await readdir(target.path);
  const lines = (await readFile(join(target.path, name), 'utf8')).trimEnd().split('\n');
  expect(lines).toHaveLength(said.completed);
  expect((await untilFinal(site.url, id)).request_counts?.completed).toBe(LINES);
});

test('what cannot be exported is told', async () => {
  const cases = [
    ['job_nobody', 'There is no job'],
    ['nonsense', "'nonsense' names no batch or job, such as batch_abc or job_abc."],
  ] as const;
  for (const [id, message] of cases) {
    const { code, stderr } = await exportTo(id);
    expect(code).toBe(1);
    expect(stderr).toContain(message);
  }
  // What cannot be looked at may be there: it is not written over.
  const unclear = join(target.path, `${job.replace('job_', 'batch_')}_output.jsonl`);
  await symlink(unclear, unclear);
  const refused = await exportTo(job);
  expect(refused).toMatchObject({ code: 1, stderr: expect.stringContaining('ELOOP') });
  expect(await readlink(unclear)).toBe(unclear);
  await redis.rename(jobKey(job, 'SEGMENTS'), `${recordKey(job)}:aside`);
  const { code, stderr } = await exportTo(job);
  expect(code).toBe(1);
  expect(stderr).toMatch(/Its answers are in its files: download \/v1\/files\/\S+\/content and/);
  await redis.rename(`${recordKey(job)}:aside`, jobKey(job, 'SEGMENTS'));
});
