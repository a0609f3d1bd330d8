import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { PassThrough } from 'node:stream';
import type { Readable } from 'node:stream';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from 'vitest';
import type { AbandonedUpload, Storage } from '../../src/storage/contract.ts';
import { createStorage } from '../../src/storage/index.ts';
import type { StorageSettings } from '../../src/storage/index.ts';
import { describeJoins } from './storage-join-suite.ts';
import type { JoinFlags } from './storage-join-suite.ts';
import { until } from './until.ts';

// Before `gc` is asked for; tests that are started by others have no flags of their own.
setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void; // the only thing of that name

export interface StorageUnderTest {
  storage: Storage;
  /** With which another process reaches the same store. */
  settings: StorageSettings;
}

export interface StorageSuite<T extends StorageUnderTest> {
  /** An empty store. */
  create(): Promise<T>;
  /** The same without a proxy of this process on the way, whose memory would count; `create` unless given. */
  createDirect?(): Promise<T>;
  destroy(made: T): Promise<void>;
  flags: {
    /** A key may be the folder of another one. */
    nestedKeys: boolean;
    /** Tells which writes were begun and never ended. */
    listsUploads: boolean;
  } & JoinFlags;
}

export async function bytesOf(stream: Readable): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream as AsyncIterable<Buffer>) chunks.push(chunk);
  return Buffer.concat(chunks);
}

export async function keysOf(storage: Storage, prefix = ''): Promise<string[]> {
  const keys: string[] = [];
  for await (const key of storage.list(prefix)) keys.push(key);
  return keys.toSorted();
}

async function textOf(storage: Storage, key: string, range?: { start?: number; end?: number }) {
  return (await bytesOf(await storage.get(key, range))).toString();
}

function sha256(bytes: string | Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

async function* chunked(text: string): AsyncGenerator<Uint8Array> {
  for (const letter of text) yield new Uint8Array(Buffer.from(letter));
}

/** What is in use of memory outside of the heap: what nobody holds any more does not count. */
function heldBytes(): number {
  collectGarbage();
  return process.memoryUsage().arrayBuffers;
}

/** What every storage has to hold, whatever it is made of. */
export function describeStorage<T extends StorageUnderTest>(
  name: string,
  { create, createDirect = create, destroy, flags }: StorageSuite<T>,
): void {
  let made: T;
  let storage: Storage;
  beforeEach(async () => {
    made = await create();
    storage = made.storage;
  });
  afterEach(() => destroy(made));

  describe(`${name}: objects`, () => {
    test('come back as they were put, with length and digest', async () => {
      const before = Date.now();
      const put = await storage.put('jobs/job_1/input-1.jsonl', chunked('héllo'));
      expect(put).toEqual({ bytes: 6, sha256: sha256('héllo') });
      expect(await textOf(storage, 'jobs/job_1/input-1.jsonl')).toBe('héllo');
      const info = await storage.head('jobs/job_1/input-1.jsonl');
      expect(info?.bytes).toBe(6);
      // stores keep their own clocks
      expect(Math.abs((info?.modifiedAt ?? 0) - before)).toBeLessThan(60_000);
    });

    test('may be empty', async () => {
      expect(await storage.put('empty', [])).toEqual({ bytes: 0, sha256: sha256('') });
      expect(await storage.head('empty')).toMatchObject({ bytes: 0 });
      expect(await textOf(storage, 'empty')).toBe('');
      expect(await textOf(storage, 'empty', { start: 0, end: 10 })).toBe('');
    });

    test('are taken from lists, streams and generators, with a signal too', async () => {
      const stream = new PassThrough();
      const { signal } = new AbortController();
      const putting = storage.put('stream', stream, { signal });
      stream.write('ab');
      stream.end('c');
      await putting;
      await storage.put('list', [Buffer.from('a'), Buffer.from('bc')], { signal });
      await storage.put('generator', chunked('abc'), { signal });
      for (const key of ['stream', 'list', 'generator']) {
        expect(await textOf(storage, key)).toBe('abc');
      }
    });

    test('are replaced whole', async () => {
      await storage.put('key', chunked('a longer one'));
      const open = await storage.get('key');
      await storage.put('key', chunked('new'));
      expect(await textOf(storage, 'key')).toBe('new');
      expect((await bytesOf(open)).toString()).toBe('a longer one');
    });

    test('are read in ranges', async () => {
      await storage.put('key', chunked('0123456789'));
      expect(await textOf(storage, 'key', { start: 3 })).toBe('3456789');
      expect(await textOf(storage, 'key', { end: 3 })).toBe('012');
      expect(await textOf(storage, 'key', { start: 3, end: 5 })).toBe('34');
      expect(await textOf(storage, 'key', { start: 3, end: 99 })).toBe('3456789');
      expect(await textOf(storage, 'key', { start: 4, end: 4 })).toBe('');
      expect(await textOf(storage, 'key', { start: 10 })).toBe('');
      expect(await textOf(storage, 'key', { start: 50 })).toBe('');
      for (const range of [{ start: -1 }, { start: 1.5 }, { start: 3, end: 2 }, { end: NaN }]) {
        await expect(storage.get('key', range)).rejects.toMatchObject({
          kind: 'InvalidInput',
          code: 'storage.invalid_range',
        });
      }
    });

    test('that are absent are told apart', async () => {
      await expect(storage.get('absent')).rejects.toMatchObject({
        kind: 'NotFound',
        code: 'storage.not_found',
      });
      expect(await storage.head('a/b/absent')).toBeNull();
      await storage.delete('a/b/absent');
    });

    test('are deleted, again too, and can be put again', async () => {
      await storage.put('a/b/c', chunked('1'));
      await storage.put('a/d', chunked('2'));
      await storage.delete('a/b/c');
      await storage.delete('a/b/c');
      expect(await keysOf(storage)).toEqual(['a/d']);
      await storage.put('a/b/c', chunked('3'));
      expect(await textOf(storage, 'a/b/c')).toBe('3');
    });

    test('are listed by prefix', async () => {
      for (const key of ['a/1', 'a/b/2', 'a/b/c/3', 'ab/4', '5']) {
        await storage.put(key, chunked('x'));
      }
      expect(await keysOf(storage)).toEqual(['5', 'a/1', 'a/b/2', 'a/b/c/3', 'ab/4']);
      expect(await keysOf(storage, 'a/')).toEqual(['a/1', 'a/b/2', 'a/b/c/3']);
      expect(await keysOf(storage, 'a/b/')).toEqual(['a/b/2', 'a/b/c/3']);
      expect(await keysOf(storage, 'absent/')).toEqual([]);
    });

    test.runIf(flags.nestedKeys)('may lie below another one', async () => {
      await storage.put('a', chunked('1'));
      await storage.put('a/b', chunked('2'));
      expect(await keysOf(storage)).toEqual(['a', 'a/b']);
    });
  });

  describe(`${name}: keys`, () => {
    test.for([
      '',
      '/',
      '/etc/passwd',
      '..',
      '../up',
      'a/../../up',
      'a/./b',
      'a//b',
      'a/',
      'a b',
      'a\\b',
      'a\0b',
      'ä',
      'a\n',
      'x'.repeat(256),
      `${'x/'.repeat(600)}x`,
    ])('%j is refused everywhere', async (key) => {
      const refused = { kind: 'InvalidInput', code: 'storage.invalid_key' };
      await expect(storage.put(key, chunked('x'))).rejects.toMatchObject(refused);
      await expect(storage.get(key)).rejects.toMatchObject(refused);
      await expect(storage.head(key)).rejects.toMatchObject(refused);
      await expect(storage.delete(key)).rejects.toMatchObject(refused);
      await expect(storage.copy(key, 'to')).rejects.toMatchObject(refused);
      await expect(storage.copy('from', key)).rejects.toMatchObject(refused);
      await expect(storage.concat(['from', key], 'to')).rejects.toMatchObject(refused);
      await expect(storage.concat(['from'], key)).rejects.toMatchObject(refused);
      await expect(storage.presign(key, { expiresInSeconds: 1 })).rejects.toMatchObject(refused);
      if (key === '') return;
      await expect(keysOf(storage, `${key}/`)).rejects.toMatchObject(refused);
    });

    test('a prefix ends in a slash', async () => {
      await expect(keysOf(storage, 'a')).rejects.toMatchObject({ code: 'storage.invalid_key' });
    });

    test('a refused key lets the stream go, and says why', async () => {
      const stream = new PassThrough();
      await expect(storage.put('..', stream)).rejects.toMatchObject({ kind: 'InvalidInput' });
      expect(stream.errored).toMatchObject({ code: 'storage.invalid_key' });
    });
  });

  describe(`${name}: a put is whole or not there`, () => {
    const LARGE = Buffer.alloc(3 * 1024 * 1024, 'x');

    async function left(olderThanMs: number): Promise<AbandonedUpload[]> {
      const found: AbandonedUpload[] = [];
      for await (const one of storage.abandoned(olderThanMs)) found.push(one);
      return found;
    }

    test("when its source fails, with the source's error", async () => {
      await storage.put('key', chunked('old'));
      async function* failing() {
        yield LARGE;
        throw new Error('the source failed');
      }
      const { signal } = new AbortController();
      await expect(storage.put('key', failing())).rejects.toThrow('the source failed');
      await expect(storage.put('key', failing(), { signal })).rejects.toThrow('the source failed');
      await expect(storage.put('other', failing())).rejects.toThrow('the source failed');
      expect(await textOf(storage, 'key')).toBe('old');
      expect(await keysOf(storage)).toEqual(['key']);
    });

    test('when its source is a stream that is destroyed', async () => {
      for (const signal of [undefined, new AbortController().signal]) {
        for (const error of [undefined, new Error('gone')]) {
          const stream = new PassThrough();
          const putting = storage.put('key', stream, signal === undefined ? {} : { signal });
          stream.write(LARGE, () => stream.destroy(error));
          await expect(putting).rejects.toThrow(error?.message ?? 'Premature close');
        }
      }
      expect(await keysOf(storage)).toEqual([]);
    });

    test('when it is aborted, even while the source hangs, with the reason', async () => {
      const stop = new AbortController();
      const reason = new Error('cancelled');
      async function* hanging() {
        yield LARGE;
        stop.abort(reason);
        await new Promise(() => undefined);
      }
      await expect(storage.put('key', hanging(), { signal: stop.signal })).rejects.toBe(reason);
      const stream = new PassThrough();
      const again = new AbortController();
      const putting = storage.put('key', stream, { signal: again.signal });
      stream.write(LARGE, () => again.abort(reason));
      await expect(putting).rejects.toBe(reason);
      expect(stream.errored).toBe(reason);
      const late = storage.put('key', chunked('x'), { signal: again.signal });
      await expect(late).rejects.toBe(reason);
      expect(await keysOf(storage)).toEqual([]);
    });

    test('when it is aborted as its source ends', async () => {
      const stop = new AbortController();
      async function* ending() {
        yield LARGE;
        stop.abort(new Error('cancelled'));
      }
      const putting = storage.put('key', ending(), { signal: stop.signal });
      await expect(putting).rejects.toThrow('cancelled');
      expect(await storage.head('key')).toBeNull();
    });

    test.for(['put', 'concat'])(
      'when its process is killed in a %s, and what it leaves is found and removed',
      async (method) => {
        const writer = fileURLToPath(new URL('storage-writer.ts', import.meta.url));
        const settings = JSON.stringify(made.settings);
        const child = spawn(process.execPath, [writer, settings, 'jobs/killed', method], {
          stdio: ['ignore', 'pipe', 'inherit'],
        });
        const exited = once(child, 'exit');
        try {
          const first = await Promise.race([once(child.stdout, 'data'), exited]);
          expect(String(first[0])).toContain('writing');
          if (flags.listsUploads) await until(async () => (await left(0)).length === 1);
        } finally {
          child.kill('SIGKILL');
        }
        expect(await exited).toEqual([null, 'SIGKILL']);
        expect(await storage.head('jobs/killed')).toBeNull();
        for (const key of await keysOf(storage, 'parts/')) await storage.delete(key);
        expect(await keysOf(storage)).toEqual([]);
        if (!flags.listsUploads) return;
        expect(await left(3_600_000)).toEqual([]);
        const [one] = await left(0);
        if (one === undefined) throw new Error('nothing was left behind');
        expect(Math.abs(one.startedAt - Date.now())).toBeLessThan(60_000);
        await storage.abandon(one);
        await storage.abandon(one);
        expect(await left(0)).toEqual([]);
        expect(await keysOf(storage)).toEqual([]);
      },
    );

    test('and leaves nothing behind when it fails', async () => {
      async function* failing() {
        for (let n = 0; n < 10; n += 1) yield LARGE;
        throw new Error('the source failed');
      }
      await expect(storage.put('key', failing())).rejects.toThrow('the source failed');
      expect(await left(0)).toEqual([]);
      expect(await keysOf(storage)).toEqual([]);
    });

    test('when two write one key, one of them', async () => {
      const texts = Array.from({ length: 6 }, (_, n) => String(n).repeat(400_000));
      await Promise.all(texts.map((text) => storage.put('key', [Buffer.from(text)])));
      expect(texts).toContain(await textOf(storage, 'key'));
      expect(await keysOf(storage)).toEqual(['key']);
    });

    test('while others delete its last neighbour', async () => {
      for (let round = 0; round < 50; round += 1) {
        await storage.put('a/b/first', [Buffer.from('1')]);
        await Promise.all([
          storage.delete('a/b/first'),
          storage.put('a/b/second', [Buffer.from('2')]),
        ]);
        expect(await keysOf(storage)).toEqual(['a/b/second']);
        await storage.delete('a/b/second');
      }
    });
  });

  describeJoins(name, () => storage, flags);

  describe(`${name}: memory`, () => {
    test('does not grow with the object', async () => {
      const direct = await createDirect();
      onTestFinished(() => destroy(direct));
      const [chunks, size] = [400, 256 * 1024];
      const before = heldBytes();
      let most = 0;
      let taken = 0;
      function look(): void {
        taken += 1;
        if (taken % 40 === 0) most = Math.max(most, heldBytes() - before);
      }
      async function* source() {
        for (let n = 0; n < chunks; n += 1) {
          look();
          yield Buffer.alloc(size, n % 256);
        }
      }
      const { bytes, sha256: digest } = await direct.storage.put('large', source());
      expect(bytes).toBe(chunks * size);
      const read = createHash('sha256');
      for await (const chunk of (await direct.storage.get('large')) as AsyncIterable<Buffer>) {
        read.update(chunk);
        look();
      }
      expect(read.digest('hex')).toBe(digest);
      const joined = await direct.storage.concat(['large', 'large'], 'larger', {
        inspect: () => ({ see: look, end: () => undefined }),
      });
      expect(joined.bytes).toBe(2 * chunks * size);
      // A few parts, which are less than half of it.
      expect(most).toBeLessThan(0.6 * chunks * size);
    });
  });

  describe(`${name}: identity`, () => {
    test('is made once, whoever of many makes it at once', async () => {
      const others = await Promise.all([1, 2, 3, 4].map(() => createStorage(made.settings)));
      const makers = [storage, storage, storage, ...others];
      const identities = await Promise.all(makers.map((maker) => maker.identity()));
      expect(new Set(identities).size).toBe(1);
      expect(await storage.identity()).toBe(identities[0]);
      expect(identities[0]).toMatch(/^[0-9a-f]{32}$/);
      expect(await keysOf(storage)).toEqual([]);
    });

    test('differs between stores', async () => {
      const other = await create();
      try {
        const stores = [storage, other.storage];
        const [mine, its] = await Promise.all(stores.map((each) => each.identity()));
        expect(its).not.toBe(mine);
      } finally {
        await destroy(other);
      }
    });
  });
}
