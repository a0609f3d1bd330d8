import { randomUUID } from 'node:crypto';
import { expect, inject, test } from 'vitest';
import { createExpiry } from '../../processors/expiry.ts';
import type { ExpiryDeps } from '../../processors/expiry.ts';
import { DEFAULT_OPTIONS } from '../../src/domain/job.ts';
import { fileKey, outputFileId } from '../../src/domain/file.ts';
import { recordKey } from '../../src/store/keys.ts';
import { rawRequest, startApi, uploadInput } from '../support/api.ts';
import type { TestApi } from '../support/api.ts';
import { connectTo, newJob } from '../support/store-back-ends.ts';

function start(): Promise<TestApi> {
  return startApi(inject('redisUrl'));
}

/** The sweeper's part, by a clock that may be ahead. */
function expiryOf(api: TestApi, change: Partial<ExpiryDeps> = {}) {
  const { store, storage } = api;
  const quiet = () => undefined;
  const log = { debug: quiet, info: quiet, warn: quiet, error: quiet };
  const deps = { store, storage, now: Date.now, log, graceMs: 0, ...change };
  return createExpiry('test', deps);
}

/** A file that is in storage and has expired. */
async function expiredFile(api: TestApi, id = `file-${randomUUID()}`): Promise<string> {
  const stored = await api.storage.put(fileKey(id), [Buffer.from('{}\n')]);
  const named = { filename: 'a.jsonl', purpose: 'batch' } as const;
  await api.store.files.create({ id, ...stored, ...named, expiresAfterMs: -1 });
  return id;
}

test('an expired file is a 404 at once, and in no list, though its bytes are still there', async () => {
  await using api = await start();
  const id = await expiredFile(api);
  const alive = await uploadInput(api);
  for (const [method, path] of [
    ['GET', `/v1/files/${id}`],
    ['HEAD', `/v1/files/${id}`],
    ['GET', `/v1/files/${id}/content`],
    ['HEAD', `/v1/files/${id}/content`],
    ['DELETE', `/v1/files/${id}`],
    ['GET', `/api/v1/files/${id}`],
    ['GET', `/api/v1/files/${id}/content`],
  ]) {
    const answer = await rawRequest(`${api.url}${path}`, { method: method ?? '' });
    expect([method, path, answer.status]).toStrictEqual([method, path, 404]);
  }
  expect((await api.openai.files.list()).data.map((file) => file.id)).toStrictEqual([alive]);
  expect(await api.stored()).toContain(fileKey(id));
  const batch = api.openai.batches.create({
    input_file_id: id,
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
  });
  await expect(batch).rejects.toMatchObject({ status: 400, param: 'input_file_id' });
});

test('the sweeper removes record and bytes of an expired file, and leaves the others', async () => {
  await using api = await start();
  const kept = await uploadInput(api);
  const later = `file-${randomUUID()}`;
  const stored = await api.storage.put(fileKey(later), [Buffer.from('x')]);
  const named = { filename: 'b', purpose: 'evals' } as const;
  await api.store.files.create({ id: later, ...stored, ...named, expiresAfterMs: 3_600_000 });
  const id = await expiredFile(api);
  expect(await expiryOf(api).round()).toBe(true);
  expect(await api.store.files.get(id)).toBeNull();
  expect(await api.stored()).toStrictEqual([kept, later].map(fileKey).toSorted());
  expect(await api.store.files.due(10)).toStrictEqual([]);
});

test('bytes stay for a moment, until what was begun before the end is on record', async () => {
  await using api = await start();
  const id = await expiredFile(api);
  await expiryOf(api, { graceMs: 60_000 }).round();
  expect(await api.stored()).toStrictEqual([fileKey(id)]);
  expect(await api.store.files.due(10)).toStrictEqual([]);
  await api.store.files.postpone(id, 0);
  await expiryOf(api, { graceMs: 60_000, now: () => Date.now() + 61_000 }).round();
  expect(await api.stored()).toStrictEqual([]);
});

test('what an unfinished job needs stays until it is over, and keeps no other from going', async () => {
  await using api = await start();
  const ids: string[] = [];
  for (let n = 0; n < 100; n += 1) ids.push(await expiredFile(api, `file-in-use-${n}`));
  const { job } = await api.store.jobs.create(newJob({ input: ids[0] ?? '' }));
  const output = await expiredFile(api, outputFileId(job.id, 'output'));
  // A retry reads the first one's files when it is planned, which is not yet.
  const first = (await api.store.jobs.create(newJob({ input: ids[1] ?? '' }))).job;
  await api.store.jobs.move(first, 'failed', { set: { errorFile: ids[2] ?? '' } });
  const options = { ...DEFAULT_OPTIONS, retryOf: first.id };
  const retry = (await api.store.jobs.create(newJob({ input: 'file-later', options }))).job;

  const expiry = expiryOf(api);
  await expiry.round();
  await expiry.round();
  const needed = [ids[0] ?? '', ids[1] ?? '', ids[2] ?? '', output].map(fileKey).toSorted();
  expect(await api.stored()).toStrictEqual(needed);
  expect(await api.store.files.due(10)).toStrictEqual([]);

  for (const { id, state, version } of [job, retry]) {
    await api.store.jobs.move({ id, state, version }, 'cancelled');
  }
  for (const key of needed) await api.store.files.postpone(key.slice('files/'.length), 0);
  await expiry.round();
  expect(await api.stored()).toStrictEqual([]);
});

test('a deletion that died between record and bytes is brought to its end', async () => {
  await using api = await start();
  const id = await uploadInput(api);
  await api.store.files.delete(id);
  expect(await api.stored()).toStrictEqual([fileKey(id)]);
  // Whoever deletes it may still be at it for a minute.
  await expiryOf(api).round();
  expect(await api.stored()).toStrictEqual([fileKey(id)]);
  await api.store.files.postpone(id, 0);
  await expiryOf(api).round();
  expect(await api.stored()).toStrictEqual([]);
  expect(await api.store.files.due(10)).toStrictEqual([]);
});

test('the files of a job that is still writing them are not deleted', async () => {
  await using api = await start();
  const { job } = await api.store.jobs.create(newJob({ input: await uploadInput(api) }));
  const id = outputFileId(job.id, 'output');
  const stored = await api.storage.put(fileKey(id), [Buffer.from('x')]);
  await api.store.files.create({ id, ...stored, filename: 'o', purpose: 'batch_output' });
  const refused = await rawRequest(`${api.url}/v1/files/${id}`, { method: 'DELETE' });
  expect(refused.status).toBe(400);
  expect(JSON.parse(refused.text).error).toMatchObject({ code: 'file_in_use', param: 'id' });
});

test('nor are those that a job may need whose record cannot be read', async () => {
  await using api = await start();
  const input = await uploadInput(api);
  const { job } = await api.store.jobs.create(newJob({ input }));
  const redis = connectTo('redis');
  await redis.hset(recordKey(job.id), 'lines', 'many');
  redis.disconnect();
  const refused = await rawRequest(`${api.url}/v1/files/${input}`, { method: 'DELETE' });
  expect(refused.status).toBe(400);
  expect(JSON.parse(refused.text).error).toMatchObject({ code: 'file_in_use', param: 'id' });
  const other = await uploadInput(api);
  expect((await api.openai.files.delete(other)).deleted).toBe(true);
});
