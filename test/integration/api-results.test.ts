import { once } from 'node:events';
import { request } from 'node:http';
import { gunzipSync } from 'node:zlib';
import { parquetReadObjects } from 'hyparquet';
import { describe, expect, inject, test } from 'vitest';
import { fileKey, segmentKey } from '../../src/domain/file.ts';
import { batchIdOf } from '../../src/domain/job.ts';
import type { JobRecord, JobState } from '../../src/domain/job.ts';
import { rawRequest, startApi } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';
import { parseCsv } from '../support/csv.ts';
import { encodeSegment } from '../support/encode-segment.ts';
import { newJob, partOf } from '../support/store-back-ends.ts';
import { filesOf, storeFile, storeJob } from '../support/wrote.ts';
import type { Went } from '../support/wrote.ts';

const LINES: Went[] = [
  { customId: 'a', body: { choices: [{ text: 'A' }] } },
  { customId: 'b', status: 400, body: { error: { message: 'no' } } },
  { customId: 'c', body: { choices: [{ text: 'C' }] } },
  { customId: 'open' },
];

function start(): Promise<TestApi> {
  return startApi(inject('redisUrl'));
}

async function move(
  api: TestApi,
  id: string,
  to: JobState,
  change: Parameters<TestApi['store']['jobs']['move']>[2] = {},
): Promise<void> {
  const job = await api.store.jobs.get(id);
  if (job === null) throw new Error(`there is no ${id}`);
  expect(await api.store.jobs.move(job, to, change)).not.toBe('stale');
}

async function begin(api: TestApi, id: string): Promise<void> {
  const set = { lines: LINES.length, shards: 1, models: ['m'] };
  for (const to of ['resource_preparing', 'submitting', 'in_progress'] as const) {
    await move(api, id, to, { set });
  }
}

/** A job in progress whose last line has no answer yet. */
async function running(api: TestApi): Promise<JobRecord> {
  const created = newJob();
  const input = `file-${created.id}`;
  const { job } = await api.store.jobs.create({ ...created, input });
  const files = filesOf(job.id, LINES);
  await storeFile(api, input, 'in.jsonl', 'batch', files.input);
  const plan = { n: 0, first: 0, lines: LINES.length, offset: 0, bytes: files.input.length };
  await api.store.shards.write(job.id, [plan]);
  await begin(api, job.id);
  await api.store.shards.open(job.id, 1);
  await api.store.shards.take(job.id, { n: 0, wake: 1 }, 't', 0);
  const [first = '', third = ''] = files.output.split('\n');
  const answers = [
    { line: 0, kind: 'output' as const, bytes: Buffer.from(`${first}\n`) },
    { line: 1, kind: 'error' as const, bytes: Buffer.from(files.error) },
    { line: 2, kind: 'output' as const, bytes: Buffer.from(`${third}\n`) },
  ];
  const { bytes, parts } = encodeSegment([{ shard: 0, answers }]);
  const stored = await api.storage.put(segmentKey(job.id, 's'), bytes);
  const part = partOf(0, 't', LINES.length, [0, 1, 2], { ...parts[0], ok: 2, failed: 1 });
  await api.store.shards.commit(job.id, { id: 's', ...stored }, [part]);
  return job;
}

async function bytesOf(url: string, headers: Record<string, string> = {}) {
  const [incoming] = await once(request(url, { headers, agent: false }).end(), 'response');
  const chunks: Buffer[] = [];
  for await (const chunk of incoming) chunks.push(chunk);
  return { headers: incoming.headers, bytes: Buffer.concat(chunks) };
}

function idsOf(csv: string): (string | undefined)[] {
  return parseCsv(csv)
    .slice(1)
    .map(([customId]) => customId);
}

describe('results of a job that runs', () => {
  test('format, merge and gzip: come in the forms of files', async () => {
    await using api = await start();
    const job = await running(api);
    const url = `${api.url}/api/v1/jobs/${job.id}`;
    const csv = await bytesOf(`${url}/output?format=csv`);
    expect(csv.headers).toMatchObject({
      'x-incomplete': 'true',
      'cache-control': 'no-store',
      'content-type': 'text/csv; charset=utf-8; header=present',
    });
    expect(csv.headers.etag, 'it will be another one soon').toBeUndefined();
    expect(csv.headers['content-disposition']).toContain(`${batchIdOf(job.id)}_output.csv`);
    expect(idsOf(csv.bytes.toString())).toEqual(['a', 'c']);
    const committed = await bytesOf(`${url}/output?format=csv&order=committed`);
    expect(idsOf(committed.bytes.toString())).toEqual(['a', 'c']);
    const { bytes } = await bytesOf(`${url}/output?format=parquet`);
    const file = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
    expect(await parquetReadObjects({ file })).toMatchObject([
      { custom_id: 'a', content: 'A' },
      { custom_id: 'c', content: 'C' },
    ]);
    const merged = await bytesOf(`${url}/errors?merge=input`);
    expect(JSON.parse(merged.bytes.toString())).toMatchObject({
      custom_id: 'b',
      request: { custom_id: 'b', body: { n: 1 } },
      response: { status_code: 400 },
    });
    const zipped = await bytesOf(`${url}/errors?gzip=true`);
    const plain = await bytesOf(`${url}/errors`);
    expect(gunzipSync(zipped.bytes).toString()).toBe(plain.bytes.toString());
    expect(zipped.headers['content-disposition']).toContain('_error.jsonl.gz');
    const head = await rawRequest(`${url}/output?format=csv`, { method: 'HEAD' });
    expect([head.status, head.headers['x-incomplete'], head.text]).toEqual([200, 'true', '']);
  });

  test('are not merged as they were committed, since requests are read in their order', async () => {
    await using api = await start();
    const job = await running(api);
    const path = `/api/v1/jobs/${job.id}/output?merge=input&order=committed`;
    const { status, text } = await rawRequest(`${api.url}${path}`);
    expect([status, JSON.parse(text).error.param]).toEqual([400, 'order']);
  });

  test('break off in any form when a segment is gone', async () => {
    await using api = await start();
    const job = await running(api);
    await api.storage.delete(segmentKey(job.id, 's'));
    for (const query of ['format=csv', 'format=parquet', 'merge=input', 'gzip=true']) {
      const reading = rawRequest(`${api.url}/api/v1/jobs/${job.id}/output?${query}`);
      await expect(reading).rejects.toThrow(/aborted|hang up|reset/);
    }
  });
});

describe('results of a job that is over', () => {
  test('come in the forms of files, too, and of no line there is a table without rows', async () => {
    await using api = await start();
    const { job, ids } = await storeJob(api, LINES.slice(0, 3));
    await begin(api, job.id);
    await move(api, job.id, 'finalizing', { outcome: 'completed' });
    // Its counts are those of a commit: here there was none, and so no line but the failed ones.
    await move(api, job.id, 'completed', { set: { failed: 1, errorFile: ids.error } });
    const url = `${api.url}/v1/batches/${batchIdOf(job.id)}`;
    const errors = await bytesOf(`${url}/errors?format=csv`);
    expect(errors.headers['x-incomplete']).toBe('false');
    expect(idsOf(errors.bytes.toString())).toEqual(['b']);
    const none = await bytesOf(`${url}/output?format=csv`);
    expect(parseCsv(none.bytes.toString())).toHaveLength(1);
    const { bytes } = await bytesOf(`${url}/output?format=parquet`);
    const file = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
    expect(await parquetReadObjects({ file })).toEqual([]);
    const empty = await rawRequest(`${url}/output`);
    expect([empty.status, empty.text, empty.headers['x-incomplete']]).toEqual([200, '', 'false']);
  });

  test('whose files were given up are refused with the reason, not empty', async () => {
    await using api = await start();
    const job = await running(api);
    await move(api, job.id, 'finalizing', { outcome: 'completed' });
    const errors = [
      { code: 'segment.damaged', message: 'A segment is gone.', line: null, param: null },
    ];
    const set = { failed: 2, outputFile: null, errorFile: null, errors };
    await move(api, job.id, 'failed', { set });
    const base = `${api.url}/api/v1/jobs/${job.id}`;
    for (const [path, lines] of [
      ['output', 2],
      ['errors', 2],
      ['output?format=csv', 2],
    ] as const) {
      const answer = await rawRequest(`${base}/${path}`);
      expect([path, answer.status]).toEqual([path, 404]);
      expect(answer.headers['x-incomplete']).toBeUndefined();
      const { error } = JSON.parse(answer.text);
      expect(error).toMatchObject({ code: 'file_not_written', param: 'id' });
      expect(error.message).toContain(
        `of ${lines} lines, could not be written. A segment is gone.`,
      );
    }
    // The bytes of what never was are nobody's.
    expect(await api.storage.head(fileKey(`file-${job.id.slice(4)}-output`))).toBeNull();
  });
});
