import { readdir, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { makeInput, submit, untilFinal, upload } from '../support/batch.ts';
import { startRedis } from '../support/redis.ts';
import type { TestRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, runCli, startSluice } from '../support/server.ts';
import type { Sluice, TestFolder } from '../support/server.ts';
import { until } from '../support/until.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import type { VllmProcess } from '../support/vllm-process.ts';

const PATIENT = { timeoutMs: 60_000 };
const MONTH_AGO = Date.now() - 30 * 86_400_000;

let server: TestRedis;
let redis: Redis;
let engine: VllmProcess;
let folder: TestFolder;
/** Keeps no segment, and jobs and files for a day. */
let sluice: Sluice;

beforeAll(async () => {
  server = await startRedis();
  redis = new Redis(server.url);
  engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  folder = await makeFolder();
});

afterAll(async () => {
  await sluice[Symbol.asyncDispose]();
  redis.disconnect();
  await engine.close();
  await folder[Symbol.asyncDispose]();
  await server.stop();
  requireNothingLeft();
});

function start(env: Record<string, string>) {
  const options = { dataDir: folder.path, redisUrl: server.url, engines: [engine.url] };
  return startSluice({ ...options, env: { GC_INTERVAL: '1s', ...env } });
}

async function segmentsOf(jobId: string): Promise<string[]> {
  const path = join(folder.path, 'storage', 'jobs', jobId);
  const found = await readdir(path, { recursive: true }).catch(() => []);
  return found.filter((name) => name !== 'segments');
}

/** A batch that is over, and its job's id. */
async function runBatch(url: string) {
  const batch = await untilFinal(url, await submit(url, makeInput(20)));
  expect(batch.status).toBe('completed');
  return { batch, jobId: batch.id.replace('batch_', 'job_') };
}

async function statusOf(url: string): Promise<number> {
  return (await fetch(url)).status;
}

/** Makes the record of a job, or of a file, say that its time was a month ago. */
async function age(jobId: string): Promise<void> {
  await redis.hset(`{${jobId}}`, 'completed_at', MONTH_AGO);
  await redis.zadd('sluice:ended', MONTH_AGO, jobId);
}

test('SEGMENT_KEEP and GC_INTERVAL: the sweeper removes segments of jobs that are over, and logs a report', async () => {
  let kept: string;
  {
    await using first = await start({ SEGMENT_KEEP: '24h' });
    const { jobId } = await runBatch(first.url);
    kept = jobId;
    await first.untilLogged('collected what is over', 60_000);
    expect(await segmentsOf(kept)).not.toEqual([]);
    await first.stop();
  }
  sluice = await start({ SEGMENT_KEEP: '0s', JOB_RETENTION: '24h', FILE_RETENTION: '24h' });
  const { batch, jobId } = await runBatch(sluice.url);
  for (const id of [kept, jobId]) {
    await until(async () => (await segmentsOf(id)).length === 0, {
      what: `the end of ${id}`,
      ...PATIENT,
    });
  }
  expect(await redis.keys(`{${jobId}}:s:*`)).toEqual([]);
  expect(await statusOf(`${sluice.url}/v1/files/${batch.output_file_id}/content`)).toBe(200);
  await until(
    () =>
      sluice.logs().some(({ msg, kinds }) => {
        const text = JSON.stringify(kinds ?? {});
        return msg === 'collected what is over' && /"segments":\{"count":[1-9]/.test(text);
      }),
    { what: 'the report', ...PATIENT },
  );
});

test('JOB_RETENTION: the record of a job goes when its time is over, and its files stay', async () => {
  const [old, young] = [await runBatch(sluice.url), await runBatch(sluice.url)];
  await age(old.jobId);
  await until(
    async () => (await statusOf(`${sluice.url}/v1/batches/${old.batch.id}`)) === 404,
    PATIENT,
  );
  expect(await statusOf(`${sluice.url}/v1/files/${old.batch.output_file_id}/content`)).toBe(200);
  expect(await statusOf(`${sluice.url}/v1/batches/${young.batch.id}`)).toBe(200);
  expect(await redis.keys(`*${old.jobId}*`)).toContain(`{${old.jobId}}:erased`);
});

test('FILE_RETENTION: files without an end of their own expire', async () => {
  const [old, young] = [await upload(sluice.url, 'a\n'), await upload(sluice.url, 'b\n')];
  await redis.zadd('sluice:files', MONTH_AGO, old);
  await until(async () => (await statusOf(`${sluice.url}/v1/files/${old}`)) === 404, PATIENT);
  expect(await statusOf(`${sluice.url}/v1/files/${young}`)).toBe(200);
  // Killed, it would keep others from sweeping and collecting for a while.
  expect(await sluice.stop()).toMatchObject({ code: 0 });
});

test('ORPHAN_AGE: sluice gc says what would go, then removes it, and nothing that has a record', async () => {
  const env = { DATA_DIR: folder.path, REDIS_URL: server.url, ORPHAN_AGE: '8h' };
  const files = join(folder.path, 'storage', 'files');
  const before = await readdir(files);
  for (const [name, hours] of [
    ['file-old', 9],
    ['file-young', 1],
  ] as const) {
    await writeFile(join(files, name), '12345');
    const at = Date.now() / 1_000 - hours * 3_600;
    await utimes(join(files, name), at, at);
  }
  const dry = await runCli(['gc', '--dry-run', '--json'], env);
  expect(dry).toMatchObject({ code: 0, stderr: '' });
  const orphans = { orphan_files: { count: 1, bytes: 5 } };
  expect(JSON.parse(dry.stdout)).toMatchObject({ dry_run: true, doubt: null, kinds: orphans });
  expect(await readdir(files)).toContain('file-old');
  const wet = await runCli(['gc'], env);
  expect(wet).toMatchObject({ code: 0, stderr: '' });
  expect(wet.stdout).toMatch(/^removed +1 +0\.0 KiB {2}files without a record$/m);
  expect((await readdir(files)).toSorted()).toEqual([...before, 'file-young'].toSorted());
});

test('sluice gc with another Redis only reports, until a person confirms', async () => {
  await using other = await startRedis();
  const client = new Redis(other.url);
  const identity = await redis.get('sluice:storage');
  await client.set('sluice:storage', identity ?? '');
  client.disconnect();
  {
    const options = { dataDir: folder.path, redisUrl: other.url, engines: [engine.url] };
    await using sluice = await startSluice(options);
    await sluice.untilLogged('orphans in storage are only reported, see sluice gc', 60_000);
    await sluice.stop();
  }
  const files = join(folder.path, 'storage', 'files');
  const names = await readdir(files);
  const at = Date.now() / 1_000 - 86_400;
  for (const name of names) await utimes(join(files, name), at, at);
  const env = { DATA_DIR: folder.path, REDIS_URL: other.url, ORPHAN_AGE: '7h' };
  const refused = await runCli(['gc'], env);
  expect(refused.code).toBe(1);
  expect(refused.stdout).toContain('Redis has lost its data');
  expect(await readdir(files)).toEqual(names);
  const confirmed = await runCli(['gc', '--confirm', '--json'], env);
  expect(JSON.parse(confirmed.stdout)).toMatchObject({ doubt: null });
  expect(await readdir(files).catch(() => [])).toEqual([]);
});
