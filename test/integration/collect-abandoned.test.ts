import { randomUUID } from 'node:crypto';
import { mkdtemp, readdir, rm, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { createLocalStorage } from '../../src/storage/local.ts';
import { openCollectWorld } from '../support/collect-world.ts';

test('what a killed process left of a write in a folder goes, and what others keep there stays', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'sluice-abandoned-'));
  onTestFinished(() => rm(directory, { recursive: true }));
  await using world = await openCollectWorld({ given: createLocalStorage({ directory }) });
  await world.storage.put('files/file-a', [Buffer.from('x')]);
  const temporary = join(directory, '.tmp');
  for (const name of [`4711-${randomUUID()}`, 'note-of-somebody']) {
    await writeFile(join(temporary, name), 'x');
    await utimes(join(temporary, name), 1, 1);
  }
  const { kinds, failures } = await world.collect({ confirm: true });
  expect({ failures, count: kinds.abandoned_uploads.count }).toEqual({ failures: [], count: 1 });
  expect(await readdir(temporary)).toEqual(['note-of-somebody']);
});

test('an upload that we began in a bucket of a user’s goes as well', async () => {
  await using world = await openCollectWorld();
  const storage = { ...world.storage };
  const key = 's3://bucket/out/batch_1_output.jsonl';
  const given: string[] = [];
  storage.abandoned = async function* abandoned() {
    yield* [{ key, uploadId: 'id', startedAt: 1 }];
  };
  storage.abandon = async (upload) => void given.push(upload.key);
  await world.collect({ confirm: true }, { storage });
  expect(given).toEqual([key]);
});
