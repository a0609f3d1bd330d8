import { createHash } from 'node:crypto';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { toFile } from 'openai';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { recordKey } from '../../src/store/keys.ts';
import { makeInput, openaiClient, untilFinal } from '../support/batch.ts';
import { onNewFile } from '../support/chaos.ts';
import { startRedis } from '../support/redis.ts';
import { makeFolder, requireNothingLeft, startSluice } from '../support/server.ts';
import { openSite } from '../support/site.ts';
import type { Site } from '../support/site.ts';
import { until } from '../support/until.ts';

let site: Site;
beforeAll(async () => {
  site = await openSite({ env: { MAX_UPLOAD_BYTES: '1GiB', MAX_BATCH_FILE_BYTES: '1GiB' } });
});
afterAll(async () => {
  await site[Symbol.asyncDispose]();
  requireNothingLeft();
});

const WISH = { filename: 'in.jsonl', purpose: 'batch', mime_type: 'application/jsonl' } as const;

/** Files below a folder of the local storage. */
function filesIn(dataDir: string, folder: string): string[] {
  try {
    const entries = readdirSync(join(dataDir, 'storage', folder), {
      recursive: true,
      withFileTypes: true,
    });
    return entries.filter((entry) => entry.isFile()).map((entry) => entry.name);
  } catch {
    return []; // a folder that nothing is in is not there
  }
}

test('the SDK sends an input in parts, runs a batch over it, and its output expires', async () => {
  const { url, folder } = site;
  const openai = openaiClient(url);
  const bytes = Buffer.from(makeInput(20).text);

  const upload = await openai.uploads.create({ ...WISH, bytes: bytes.length });
  const cut = Math.floor(bytes.length / 2);
  const sent = [bytes.subarray(0, cut), bytes.subarray(cut)].map(async (piece) => {
    const data = await toFile(piece, 'part');
    return (await openai.uploads.parts.create(upload.id, { data })).id;
  });
  const part_ids = await Promise.all(sent);
  const md5 = createHash('md5').update(bytes).digest('hex');
  const { file } = await openai.uploads.complete(upload.id, { part_ids, md5 });
  if (!file) throw new Error('a completed upload has a file');

  const { id } = await openai.batches.create({
    input_file_id: file.id,
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    output_expires_after: { anchor: 'created_at', seconds: 3_600 },
  });
  const batch = await untilFinal(url, id);
  expect(batch).toMatchObject({
    status: 'completed',
    request_counts: { total: 20, completed: 20 },
  });
  const output = await openai.files.retrieve(batch.output_file_id ?? '');
  expect(output.expires_at).toBe(output.created_at + 3_600);
  await until(() => filesIn(folder.path, 'uploads').length === 0, {
    timeoutMs: 60_000,
    what: 'the end of the parts',
  });
});

test('a server killed while it joins the parts leaves no file, and the next one makes it', async () => {
  await using redis = await startRedis();
  await using folder = await makeFolder();
  const part = Buffer.alloc(12 * 1024 ** 2, '{"custom_id":"a"}\n');
  const options = { dataDir: folder.path, redisUrl: redis.url, roles: ['api', 'sweeper'] };
  let uploadId: string;
  const part_ids: string[] = [];
  {
    await using sluice = await startSluice(options);
    const openai = openaiClient(sluice.url);
    const upload = await openai.uploads.create({ ...WISH, bytes: 4 * part.length });
    uploadId = upload.id;
    for (let n = 0; n < 4; n += 1) {
      const data = await toFile(part, 'part');
      part_ids.push((await openai.uploads.parts.create(uploadId, { data })).id);
    }
    // As soon as the joined file is begun.
    const begun = onNewFile(join(folder.path, 'storage', '.tmp'), /./, () => void sluice.kill());
    const complete = openai.uploads.complete(uploadId, { part_ids });
    complete.catch(() => undefined); // its server dies
    await begun;
    await sluice.exited;
    expect(filesIn(folder.path, 'files')).toStrictEqual([]);
  }
  // What the dead had begun is its own for 15 seconds: as if they were over.
  const client = new Redis(redis.url);
  expect(Number(await client.hget(recordKey(uploadId), 'busy_until'))).toBeGreaterThan(0);
  await client.hset(recordKey(uploadId), 'busy_until', 0);
  client.disconnect();
  await using sluice = await startSluice(options);
  const openai = openaiClient(sluice.url);
  expect((await openai.files.list()).data).toStrictEqual([]);
  const done = await openai.uploads.complete(uploadId, { part_ids });
  expect(done).toMatchObject({ status: 'completed', file: { bytes: 4 * part.length } });
  expect((await openai.files.list()).data).toHaveLength(1);
});

test('MAX_UPLOAD_BYTES is the largest upload, and lifts what a batch may have', async () => {
  const openai = openaiClient(site.url);
  const most = await openai.uploads.create({ ...WISH, bytes: 1024 ** 3 });
  expect(most.status).toBe('pending');
  await expect(openai.uploads.create({ ...WISH, bytes: 1024 ** 3 + 1 })).rejects.toMatchObject({
    status: 413,
    param: 'bytes',
    message: expect.stringContaining('MAX_UPLOAD_BYTES'),
  });
});
