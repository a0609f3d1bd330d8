import { createHash } from 'node:crypto';
import type { Readable } from 'node:stream';
import { describe, expect, test } from 'vitest';
import type { Inspector, Storage } from '../../src/storage/contract.ts';

/** What a store can do with objects that it has. */
export interface JoinFlags {
  /** It copies one object, or the parts of one, without their bytes being sent again. */
  copies: { whole: boolean; parts: boolean };
  /** What its links are like: none, believed whatever they say, or checked. */
  links: 'none' | 'believed' | 'checked';
}

const PART = 5 * 2 ** 20;

async function all<T>(source: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const one of source) found.push(one);
  return found;
}

async function bytesOf(stream: Readable): Promise<Buffer> {
  return Buffer.concat(await all(stream as AsyncIterable<Buffer>));
}

async function textOf(storage: Storage, key: string): Promise<string> {
  return (await bytesOf(await storage.get(key))).toString();
}

function sha256(bytes: string | Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** What was seen, and how often it was begun. */
function watcher(more: Partial<Inspector> = {}) {
  const watched = { text: '', begun: 0, ended: 0 };
  function inspect(): Inspector {
    watched.begun += 1;
    watched.text = '';
    return {
      see(chunk) {
        watched.text += Buffer.from(chunk).toString('latin1');
        more.see?.(chunk);
      },
      end() {
        watched.ended += 1;
        more.end?.();
      },
    };
  }
  return { watched, inspect };
}

/** What every storage has to hold of `copy`, `concat` and `presign`. */
export function describeJoins(name: string, opened: () => Storage, flags: JoinFlags): void {
  /** Puts objects, and returns their keys. */
  async function put(...contents: (string | Buffer)[]): Promise<string[]> {
    const keys = contents.map((_, n) => `uploads/upload_1/part_${n}`);
    for (const [n, key] of keys.entries()) {
      await opened().put(key, [Buffer.from(contents[n] ?? '')]);
    }
    return keys;
  }

  async function keysLeft(): Promise<string[]> {
    const keys = await all(opened().list(''));
    return keys.filter((key) => !key.startsWith('uploads/'));
  }

  async function uploadsLeft(): Promise<unknown[]> {
    return all(opened().abandoned(0));
  }

  describe(`${name}: copies and joins`, () => {
    test('a copy has the bytes, and outlives its source', async () => {
      const storage = opened();
      await storage.put('to', [Buffer.from('what was there')]);
      const [key = ''] = await put('héllo');
      const { watched, inspect } = watcher();
      expect(await storage.copy(key, 'to', { inspect })).toEqual({
        bytes: 6,
        sha256: sha256('héllo'),
        byStore: flags.copies.whole,
      });
      expect(watched).toMatchObject({ ended: 1, text: Buffer.from('héllo').toString('latin1') });
      expect(await textOf(storage, key)).toBe('héllo');
      await storage.delete(key);
      expect(await textOf(storage, 'to')).toBe('héllo');
      expect(await storage.head('to')).toMatchObject({ bytes: 6 });
    });

    test('a copy of what is empty is empty', async () => {
      const [key = ''] = await put('');
      expect(await opened().copy(key, 'to')).toMatchObject({ bytes: 0, sha256: sha256('') });
      expect(await textOf(opened(), 'to')).toBe('');
    });

    test('long parts become one object in their order, and none is left behind', async () => {
      const contents = ['b', 'a', ''].map((letter) =>
        Buffer.alloc(letter === '' ? 0 : PART, letter),
      );
      const keys = await put(...contents, 'and the end');
      const whole = Buffer.concat([...contents, Buffer.from('and the end')]);
      const { watched, inspect } = watcher();
      expect(await opened().concat(keys, 'files/whole', { inspect })).toEqual({
        bytes: whole.length,
        sha256: sha256(whole),
        byStore: flags.copies.parts,
      });
      expect(sha256(Buffer.from(watched.text, 'latin1'))).toBe(sha256(whole));
      expect(watched.ended).toBe(1);
      const read = await bytesOf(await opened().get('files/whole'));
      expect(sha256(read)).toBe(sha256(whole));
      expect(await keysLeft()).toEqual(['files/whole']);
      expect(await uploadsLeft()).toEqual([]);
    });

    test('short parts, one part and none are joined as well', async () => {
      const keys = await put('ab', '', 'cd');
      expect(await opened().concat(keys, 'short')).toMatchObject({ sha256: sha256('abcd') });
      expect(await opened().concat(keys.slice(2), 'one')).toMatchObject({ bytes: 2 });
      expect(await opened().concat([], 'none')).toMatchObject({ bytes: 0, sha256: sha256('') });
      for (const [key, text] of Object.entries({ short: 'abcd', one: 'cd', none: '' })) {
        expect(await textOf(opened(), key)).toBe(text);
      }
    });

    test('an absent part is told, and nothing is made', async () => {
      const [first = ''] = await put('x');
      const absent = { kind: 'NotFound', code: 'storage.not_found' };
      const storage = opened();
      await expect(storage.copy('uploads/none', 'to')).rejects.toMatchObject(absent);
      await expect(storage.concat([first, 'uploads/none'], 'to')).rejects.toMatchObject(absent);
      expect(await keysLeft()).toEqual([]);
    });

    test('what an inspector refuses is never seen', async () => {
      const storage = opened();
      await storage.put('to', [Buffer.from('old')]);
      const large = Buffer.alloc(PART, 'x');
      const keys = await put(large, large, 'x');
      for (const parts of [keys.slice(2), keys.slice(1), keys]) {
        const { inspect } = watcher({
          end() {
            throw new Error('not these');
          },
        });
        await expect(storage.concat(parts, 'to', { inspect })).rejects.toThrow('not these');
        await expect(storage.copy(parts[0] ?? '', 'to', { inspect })).rejects.toThrow('not these');
      }
      expect(await textOf(storage, 'to')).toBe('old');
      expect(await keysLeft()).toEqual(['to']);
      expect(await uploadsLeft()).toEqual([]);
    });

    test('a join that is aborted rejects with the reason, and leaves nothing', async () => {
      const large = Buffer.alloc(PART, 'x');
      const keys = await put(large, large, 'x');
      const reason = new Error('cancelled');
      for (const parts of [keys.slice(0, 1), keys]) {
        const stop = new AbortController();
        const { inspect } = watcher({ see: () => stop.abort(reason) });
        const { signal } = stop;
        await expect(opened().concat(parts, 'to', { signal, inspect })).rejects.toBe(reason);
        await expect(opened().concat(parts, 'to', { signal })).rejects.toBe(reason);
        await expect(opened().copy(parts[0] ?? '', 'to', { signal })).rejects.toBe(reason);
      }
      expect(await keysLeft()).toEqual([]);
      expect(await uploadsLeft()).toEqual([]);
    });
  });

  describe.skipIf(flags.links === 'none')(`${name}: a link`, () => {
    test('downloads the object without a key, and says until when', async () => {
      await opened().put('files/file-1', [Buffer.from('hello')]);
      const before = Date.now();
      const { url, expiresAt } = await opened().presign('files/file-1', { expiresInSeconds: 60 });
      expect(expiresAt - before).toBeGreaterThanOrEqual(60_000);
      expect(expiresAt - before).toBeLessThan(120_000);
      const answer = await fetch(url);
      expect(answer.status).toBe(200);
      expect(await answer.text()).toBe('hello');
    });

    test.skipIf(flags.links === 'believed')('is what the store checks', async () => {
      await opened().put('files/file-1', [Buffer.from('hello')]);
      const { url } = await opened().presign('files/file-1', {
        expiresInSeconds: 60,
        disposition: `attachment; filename="a (1)'.txt"; filename*=UTF-8''%C3%BC%20%281%29.txt`,
        type: 'text/x-mine',
      });
      const answer = await fetch(url);
      expect(await answer.text()).toBe('hello');
      expect(answer.headers.get('content-type')).toBe('text/x-mine');
      expect(answer.headers.get('content-disposition')).toContain("UTF-8''%C3%BC%20%281%29.txt");
      expect((await fetch(url.replace('files/file-1', 'files/file-2'))).status).toBe(403);
      expect((await fetch(url, { method: 'DELETE' })).status).toBe(403);
    });

    test.for([0, -1, 1.5, NaN, 7 * 24 * 3_600 + 1])('is not made for %j seconds', async (time) => {
      const made = opened().presign('files/file-1', { expiresInSeconds: time });
      await expect(made).rejects.toMatchObject({
        kind: 'InvalidInput',
        code: 'storage.invalid_expiry',
      });
    });
  });

  test.runIf(flags.links === 'none')(`${name} has no links, and says so`, async () => {
    const made = opened().presign('files/file-1', { expiresInSeconds: 60 });
    await expect(made).rejects.toMatchObject({ kind: 'InvalidInput', code: 'storage.no_links' });
  });
}
