import { chmod, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { loadSettings } from '../../config/load.ts';
import { engineParts } from '../../src/main/engine-parts.ts';
import { createSecretReader } from '../../src/main/engine-secrets.ts';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'sluice-secrets-'));
});
afterEach(async () => rm(folder, { recursive: true }));

async function put(file: string, text: string, mode = 0o600): Promise<void> {
  const whole = path.join(folder, file);
  await mkdir(path.dirname(whole), { recursive: true });
  await writeFile(whole, text);
  await chmod(whole, mode);
}

test('a secret is a folder, its entries are files, and the end of a line is not part of one', async () => {
  await put('hf/token', 'hf_abc\n');
  await put('s3/access_key', 'id');
  await put('s3/secret_key', 'key with spaces \r\n');
  const read = createSecretReader(folder);
  expect(await read('hf')).toEqual({ token: 'hf_abc' });
  expect(await read('s3')).toEqual({ access_key: 'id', secret_key: 'key with spaces ' });
  // What is mounted may be renewed.
  await put('hf/token', 'hf_def');
  expect(await read('hf')).toEqual({ token: 'hf_def' });
});

test('it is read as Kubernetes mounts it: links to files below a folder of two dots', async () => {
  await put('hf/..2026_11_22/token', 'hf_abc', 0o400);
  await symlink('..2026_11_22', path.join(folder, 'hf/..data'));
  await symlink('..data/token', path.join(folder, 'hf/token'));
  expect(await createSecretReader(folder)('hf')).toEqual({ token: 'hf_abc' });
});

test('one that is not there, or whose name leads elsewhere, is none', async () => {
  await put('hf/token', 'hf_abc');
  await put('file', 'x');
  const read = createSecretReader(path.join(folder, 'hf'));
  const names = ['none', '..', '.', '../hf', '/etc', 'token', '', 'a/b', 'a\0b'];
  expect(await Promise.all(names.map(read))).toEqual(names.map(() => null));
  expect(await createSecretReader(undefined)('hf')).toBeNull();
});

test('one that others may read is refused, with the mend', async () => {
  await put('hf/token', 'hf_abc', 0o644);
  const read = createSecretReader(folder);
  const file = path.join(folder, 'hf/token');
  await expect(read('hf')).rejects.toMatchObject({
    kind: 'InvalidInput',
    code: 'engine.secret_file',
    message: expect.stringContaining(`others may read ${file} (mode 0644): chmod 600 ${file}`),
  });
  await chmod(file, 0o600);
  expect(await read('hf')).toEqual({ token: 'hf_abc' });
  await put('hf/token', 'x'.repeat(70_000));
  await expect(read('hf')).rejects.toMatchObject({ code: 'engine.secret_file' });
});

test('weights are looked for where the settings say that object storage is', () => {
  const aws = engineParts(loadSettings({}));
  expect(aws.objectStore('s3')).toBeNull();
  expect(aws.objectStore('tos')).toBeNull();
  const own = engineParts(
    loadSettings({ S3_ENDPOINT: 'https://minio.example:9000', TOS_REGION: 'cn-beijing' }),
  );
  expect(own.objectStore('s3')).toEqual({
    endpoint: 'https://minio.example:9000',
    region: 'us-east-1',
  });
  expect(own.objectStore('tos')).toEqual({
    endpoint: 'https://tos-s3-cn-beijing.volces.com',
    region: 'cn-beijing',
  });
  expect(own.objectStore('huggingface')).toBeNull();
});
