import { execFile, execFileSync } from 'node:child_process';
import {
  chmod,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  symlink,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { createStorage } from '../../src/storage/index.ts';
import { bytesOf, describeStorage, keysOf } from '../support/storage-suite.ts';
import type { StorageUnderTest } from '../support/storage-suite.ts';

interface LocalUnderTest extends StorageUnderTest {
  settings: { type: 'LOCAL'; directory: string };
}

async function createLocal(): Promise<LocalUnderTest> {
  const directory = await mkdtemp(join(tmpdir(), 'storage-'));
  const settings = { type: 'LOCAL', directory } as const;
  return { storage: await createStorage(settings), settings };
}

async function destroyLocal({ settings }: LocalUnderTest): Promise<void> {
  await rm(settings.directory, { recursive: true, force: true });
}

describeStorage('local', {
  create: createLocal,
  destroy: destroyLocal,
  flags: {
    nestedKeys: false,
    listsUploads: true,
    copies: { whole: true, parts: false },
    links: 'none',
  },
});

const run = promisify(execFile);
const MODULE = new URL('../../src/storage/index.ts', import.meta.url).href;

/** Runs a script with a `storage` in a process of its own, below `sh` when limits are to be set first. */
async function inProcess(directory: string, script: string, limits = ':'): Promise<string> {
  const whole = `const { createStorage } = await import(${JSON.stringify(MODULE)});
    const storage = await createStorage({ type: 'LOCAL', directory: ${JSON.stringify(directory)} });
    ${script}`;
  const { stdout } = await run('sh', [
    '-c',
    `${limits} && exec "$0" --input-type=module -e "$1"`,
    process.execPath,
    whole,
  ]);
  return stdout.trim();
}

/** Mounts are for root, and not in every container. */
function canMount(): boolean {
  try {
    execFileSync(
      'sh',
      [
        '-c',
        'd=$(mktemp -d) && mount -t tmpfs -o size=1m none "$d" && umount "$d"; s=$?; rmdir "$d"; exit $s',
      ],
      { stdio: 'ignore' },
    );
    return true;
  } catch {
    // refused, or no such program
    return false;
  }
}

describe('local: the folder', () => {
  let made: LocalUnderTest;
  let directory = '';
  beforeEach(async () => {
    made = await createLocal();
    directory = made.settings.directory;
  });
  afterEach(() => destroyLocal(made));

  test('is made with its parents at first use', async () => {
    const deep = join(directory, 'x/y/z');
    const storage = await createStorage({ type: 'LOCAL', directory: deep });
    expect(await storage.head('key')).toBeNull();
    expect(await keysOf(storage)).toEqual([]);
    await storage.put('a/key', [Buffer.from('1')]);
    expect((await readdir(deep)).toSorted()).toEqual(['.tmp', 'a']);
  });

  test('holds no temporary file after failures, and no empty folder after deletes', async () => {
    const { storage } = made;
    await expect(
      storage.put(
        'a/b/c',
        (function* () {
          yield Buffer.from('x');
          throw new Error('no');
        })(),
      ),
    ).rejects.toThrow('no');
    await storage.put('a/b/c', [Buffer.from('x')]);
    await storage.identity();
    expect(await readdir(join(directory, '.tmp'))).toEqual([]);
    await storage.delete('a/b/c');
    expect((await readdir(directory)).toSorted()).toEqual(['.tmp', 'identity']);
  });

  test('is rid of temporary files that nobody has written to for a day', async () => {
    await mkdir(join(directory, '.tmp'));
    const yesterday = new Date(Date.now() - 25 * 3_600_000);
    for (const name of ['1-old', '2-new']) await writeFile(join(directory, '.tmp', name), 'x');
    await utimes(join(directory, '.tmp', '1-old'), yesterday, yesterday);
    await made.storage.put('key', [Buffer.from('1')]);
    expect(await readdir(join(directory, '.tmp'))).toEqual(['2-new']);
  });

  test('keeps two names for itself', async () => {
    for (const key of ['identity', '.tmp/x']) {
      await expect(made.storage.put(key, [])).rejects.toMatchObject({
        code: 'storage.invalid_key',
      });
    }
    await expect(keysOf(made.storage, '.tmp/')).rejects.toMatchObject({ kind: 'InvalidInput' });
  });

  test('refuses a key that is a folder or lies below an object', async () => {
    const { storage } = made;
    await storage.put('a/b', [Buffer.from('1')]);
    for (const key of ['a', 'a/b/c', 'a/b/c/d']) {
      await expect(storage.put(key, [Buffer.from('2')])).rejects.toMatchObject({
        kind: 'InvalidInput',
        code: 'storage.invalid_key',
      });
      await expect(storage.get(key)).rejects.toMatchObject({ code: 'storage.not_found' });
      expect(await storage.head(key)).toBeNull();
      await storage.delete(key);
    }
    expect(await keysOf(storage)).toEqual(['a/b']);
    expect(await keysOf(storage, 'a/b/')).toEqual([]);
  });

  test('shows nothing of what a link leads to', async () => {
    await symlink('/etc/hostname', join(directory, 'link'));
    expect(await made.storage.head('link')).toBeNull();
    await expect(made.storage.get('link')).rejects.toMatchObject({ code: 'storage.not_found' });
    expect(await keysOf(made.storage)).toEqual([]);
  });

  test('that is a file is no folder, and is tried again', async () => {
    const path = join(directory, 'file');
    await writeFile(path, '');
    const storage = await createStorage({ type: 'LOCAL', directory: path });
    await expect(storage.put('key', [])).rejects.toMatchObject({
      kind: 'Permanent',
      code: 'storage.not_writable',
      message: `${path} is not a folder`,
    });
    await rm(path);
    await storage.put('key', [Buffer.from('1')]);
    expect((await bytesOf(await storage.get('key'))).toString()).toBe('1');
  });

  test('that goes away under a running process is missed, not made anew', async () => {
    await made.storage.put('key', []);
    await rm(directory, { recursive: true });
    await expect(made.storage.put('key', [])).rejects.toMatchObject({
      kind: 'Transient',
      code: 'storage.unavailable',
      message: expect.stringContaining('ENOENT'),
    });
  });

  test('has one identity, whichever of many processes makes it', async () => {
    const script = 'process.stdout.write(await storage.identity())';
    const made = await Promise.all([1, 2, 3, 4].map(() => inProcess(directory, script)));
    expect(new Set(made).size).toBe(1);
    expect(await readFile(join(directory, 'identity'), 'utf8')).toBe(`${made[0]}\n`);
    expect(await readdir(join(directory, '.tmp'))).toEqual([]);
  });

  test('does not guess an identity that was damaged', async () => {
    await writeFile(join(directory, 'identity'), 'half');
    await expect(made.storage.identity()).rejects.toMatchObject({
      kind: 'Permanent',
      code: 'storage.identity_damaged',
    });
  });
});

describe('local: a folder that is refused', () => {
  let made: LocalUnderTest;
  let directory = '';
  beforeEach(async () => {
    made = await createLocal();
    directory = made.settings.directory;
  });
  afterEach(() => destroyLocal(made));

  /** Tries to put 4 MiB, and prints what became of it. */
  const FILL = `
    async function* large() { for (let n = 0; n < 64; n += 1) yield Buffer.alloc(65536, 'x'); }
    const { kind, code, message } = await storage.put('a/large', large()).catch((error) => error);
    const keys = await Array.fromAsync(storage.list(''));
    process.stdout.write(JSON.stringify({ kind, code, message, keys }));`;

  test('says so when a file may not become so long', async () => {
    const found = JSON.parse(await inProcess(directory, FILL, 'ulimit -f 2048'));
    expect(found).toMatchObject({ kind: 'Transient', code: 'storage.full', keys: [] });
    expect(found.message).toMatch(/ulimit -f.*MiB of \d+ MiB free/);
    expect(await readdir(join(directory, '.tmp'))).toEqual([]);
  });

  test('says whose rights are missing', async () => {
    await made.storage.put('a', [Buffer.from('1')]);
    await chmod(directory, 0);
    const tried = await inProcess(
      directory,
      `if (process.getuid() === 0) process.setuid(65534);
       const results = {};
       async function attempt(name, work) {
         results[name] = await work.then(() => 'done', ({ kind, code }) => kind + ' ' + code);
       }
       await attempt('put', storage.put('b', []));
       await attempt('get', storage.get('a'));
       await attempt('head', storage.head('a'));
       await attempt('delete', storage.delete('a'));
       await attempt('list', Array.fromAsync(storage.list('')));
       await attempt('identity', storage.identity());
       process.stdout.write(JSON.stringify(results));`,
    );
    await chmod(directory, 0o700);
    expect(JSON.parse(tried)).toEqual({
      put: 'Permanent storage.not_writable',
      get: 'Permanent storage.not_readable',
      head: 'Permanent storage.not_readable',
      delete: 'Permanent storage.not_readable',
      list: 'Permanent storage.not_readable',
      identity: 'Permanent storage.not_readable',
    });
  });

  test.runIf(canMount())('says how much room is left, and goes on when there is more', async () => {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'sluice-test', directory]);
    try {
      const { storage } = made;
      const large = [Buffer.alloc(1_500_000, 'x')];
      await storage.put('a', large);
      await expect(storage.put('b', large)).rejects.toMatchObject({
        kind: 'Transient',
        code: 'storage.full',
        message: expect.stringMatching(`no room left in ${directory} \\(0 MiB of 2 MiB free\\)`),
      });
      expect(await keysOf(storage)).toEqual(['a']);
      expect(await readdir(join(directory, '.tmp'))).toEqual([]);
      const stream = Readable.from(large);
      await expect(storage.put('b', stream)).rejects.toMatchObject({ code: 'storage.full' });
      expect(stream.errored).toMatchObject({ code: 'storage.full' });
      await storage.delete('a');
      expect(await storage.put('b', large)).toMatchObject({ bytes: 1_500_000 });
    } finally {
      execFileSync('umount', [directory]);
    }
  });

  test.runIf(canMount())('says who may not write', async () => {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'sluice-test', directory]);
    try {
      const { storage } = made;
      await storage.put('a', [Buffer.from('1')]);
      execFileSync('mount', ['-o', 'remount,ro', directory]);
      const refused = {
        kind: 'Permanent',
        code: 'storage.not_writable',
        message: expect.stringContaining('EROFS'),
      };
      await expect(storage.put('b', [Buffer.from('1')])).rejects.toMatchObject(refused);
      await expect(storage.delete('a')).rejects.toMatchObject(refused);
      await expect(storage.identity()).rejects.toMatchObject(refused);
      expect((await bytesOf(await storage.get('a'))).toString()).toBe('1');
    } finally {
      execFileSync('umount', [directory]);
    }
  });
});
