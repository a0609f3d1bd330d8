import { afterEach, beforeEach, describe, expect, inject, test } from 'vitest';
import { createS3Storage } from '../../src/storage/s3.ts';
import type { S3Storage } from '../../src/storage/s3.ts';
import { startApi, uploadInput } from '../support/api.ts';
import { startS3Proxy } from '../support/s3-proxy.ts';
import { ANY_KEYS, startS3Server } from '../support/s3-server.ts';
import { startVersionedStore } from '../support/versioned-store.ts';
import type { VersionedStore } from '../support/versioned-store.ts';

let store: VersionedStore;
let storage: S3Storage;

beforeEach(async () => {
  store = await startVersionedStore();
  storage = createS3Storage({
    bucket: 'bucket',
    prefix: 'p/',
    endpoint: store.url,
    region: 'us-east-1',
    forcePathStyle: true,
    isAws: false,
    credentials: ANY_KEYS,
    attempts: 2,
  });
});
afterEach(() => store[Symbol.asyncDispose]());

async function putTimes(key: string, count: number): Promise<void> {
  for (let n = 0; n < count; n += 1) await storage.put(key, [Buffer.from(String(n))]);
}

function left(): string[] {
  return store.versions.map(({ key, bytes }) => (bytes === null ? `${key} marker` : key));
}

describe('in a bucket that keeps versions', () => {
  test('a delete removes all versions and markers of its key, and of no other', async () => {
    await putTimes('a/b', 3);
    await putTimes('a/bc', 2);
    await storage.put('a', [Buffer.from('x')]);
    expect(await storage.erase('a/b')).toBe('gone');
    expect(left()).toEqual(['p/a/bc', 'p/a/bc', 'p/a']);
    const asked = store.asked.filter((what) => what.startsWith('DELETE'));
    const ids = ['', ' v1', ' v2', ' v3', ' v7'];
    expect(asked.toSorted()).toEqual(ids.map((id) => `DELETE p/a/b${id}`));
    // Absent by now: what the delete itself leaves goes, too.
    await storage.delete('a/b');
    await storage.delete('absent');
    expect(left()).toEqual(['p/a/bc', 'p/a/bc', 'p/a']);
  });

  test('nobody sees an older version meanwhile', async () => {
    await putTimes('a', 3);
    const seen: (string | null)[] = [];
    store.refuse = (what) => {
      const newest = store.versions.findLast(({ key }) => key === 'p/a');
      if (what.startsWith('DELETE p/a v')) seen.push(newest?.bytes?.toString() ?? null);
      return null;
    };
    await storage.delete('a');
    expect(seen).toEqual([null, null, null, null]);
    expect(store.versions).toEqual([]);
  });

  test('what is put meanwhile stays', async () => {
    await putTimes('a', 2);
    store.refuse = (what) => {
      const isFirst = store.versions.every(({ id }) => id !== 'new');
      if (what === 'LIST versions' && isFirst) {
        store.versions.push({ id: 'new', key: 'p/a', bytes: Buffer.from('new') });
      }
      return null;
    };
    expect(await storage.erase('a')).toBe('gone');
    expect(store.versions.map(({ id }) => id)).toEqual(['new']);
  });

  test.for(['LIST versions', 'DELETE p/a v1'])(
    'that refuses %s, the object is gone for all, and its versions are told',
    async (refused) => {
      await putTimes('a', 2);
      store.refuse = (what) => (what === refused ? 403 : null);
      expect(await storage.erase('a')).toBe('kept');
      expect(await storage.head('a')).toBeNull();
      expect(left()).toContain('p/a');
      // As soon as it may be, all of it goes.
      store.refuse = () => null;
      expect(await storage.erase('a')).toBe('gone');
      expect(store.versions).toEqual([]);
    },
  );

  test('a delete that did not come to its end is no success', async () => {
    await putTimes('a', 2);
    store.refuse = (what) => (what === 'DELETE p/a v2' ? 503 : null);
    await expect(storage.delete('a')).rejects.toMatchObject({ kind: 'Transient' });
    store.refuse = () => null;
    await storage.delete('a');
    expect(store.versions).toEqual([]);
  });

  test('where versions are suspended, the marker that is always the newest is left alone', async () => {
    await putTimes('a', 1);
    store.versions.push({ id: 'null', key: 'p/a', bytes: null });
    store.refuse = (what) => {
      // The delete made no other marker than that one.
      if (what === 'LIST versions')
        store.versions = store.versions.filter(({ id, bytes }) => id === 'null' || bytes !== null);
      return null;
    };
    expect(await storage.erase('a')).toBe('gone');
    expect(store.versions.map(({ id }) => id)).toEqual(['null']);
  });
});

test('a file that is deleted through the API leaves no version behind', async () => {
  await using api = await startApi(inject('redisUrl'), () => ({ storage }));
  const id = await uploadInput(api, '{"custom_id":"a"}\n');
  await putTimes(`files/${id}`, 2);
  expect(store.versions).toHaveLength(3);
  expect((await fetch(`${api.url}/v1/files/${id}`, { method: 'DELETE' })).status).toBe(200);
  expect(store.versions).toEqual([]);
});

test('in a bucket without versions a delete is one request', async () => {
  await using server = await startS3Server();
  await using proxy = await startS3Proxy(server.url);
  const plain = createS3Storage({
    bucket: await server.createBucket(),
    prefix: '',
    endpoint: proxy.url,
    region: 'us-east-1',
    forcePathStyle: true,
    isAws: false,
    credentials: ANY_KEYS,
  });
  await plain.put('a', [Buffer.from('x')]);
  expect(await plain.erase('a')).toBe('gone');
  expect(proxy.counts()).toEqual({ PutObject: 1, DeleteObject: 1 });
});
