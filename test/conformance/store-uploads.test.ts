import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { MAX_PARTS } from '../../src/domain/upload.ts';
import { recordKey } from '../../src/store/keys.ts';
import type { Client } from '../../src/store/scripts.ts';
import { createStore } from '../../src/store/store.ts';
import type { Store } from '../../src/store/store.ts';
import type { NewUpload } from '../../src/store/uploads.ts';
import { BACK_ENDS, connectTo } from '../support/store-back-ends.ts';

function newUpload(): NewUpload {
  return {
    id: `upload_${randomUUID().replaceAll('-', '')}`,
    filename: 'ä.jsonl',
    purpose: 'batch',
    mimeType: 'application/jsonl',
    bytes: 4,
    expiresAfterMs: null,
    bodyHash: 'hash',
  };
}

describe.each(BACK_ENDS)('uploads on %s', (kind) => {
  let redis: Client;
  let store: Store;
  let id: string;

  beforeAll(() => {
    redis = connectTo(kind);
  });
  afterAll(() => redis.disconnect());
  beforeEach(async () => {
    store = createStore({ redis, namespace: randomUUID() });
    const asked = newUpload();
    id = asked.id;
    await store.uploads.create(asked);
  });

  const RESULT = { fileId: 'file-a', sha256: 'a', md5: 'b', list: 'c' };

  function set(fields: Record<string, number>): Promise<unknown> {
    return redis.hset(recordKey(id), fields);
  }

  test('are made once, and are due at once', async () => {
    const asked = newUpload();
    const first = await store.uploads.create({ ...asked, expiresAfterMs: 3_600_000 });
    const { bodyHash: _hash, ...rest } = asked;
    expect(first.outcome).toBe('created');
    expect(first.upload).toEqual({
      ...rest,
      status: 'pending',
      expiresAfterMs: 3_600_000,
      createdAt: first.upload.createdAt,
      expiresAt: first.upload.createdAt + 3_600_000,
      busyUntil: 0,
      endedAt: null,
      result: null,
      isFileMade: false,
    });
    expect((await store.uploads.create({ ...asked, expiresAfterMs: 3_600_000 })).outcome).toBe(
      'exists',
    );
    expect((await store.uploads.create({ ...asked, bodyHash: 'other' })).outcome).toBe('other');
    expect(await store.uploads.due(5)).toEqual([id, asked.id]);
    await store.uploads.postpone(id, Date.now() + 60_000);
    expect(await store.uploads.due(5)).toEqual([asked.id]);
    expect(await store.uploads.get('upload_none')).toBeNull();
  });

  test('take parts while they are pending, and no more than they may', async () => {
    const part = await store.uploads.addPart(id, { id: 'part_a', bytes: 3 });
    expect(part).toMatchObject({ id: 'part_a', bytes: 3 });
    expect(await store.uploads.addPart(id, { id: 'part_a', bytes: 3 })).toEqual(part);
    expect([...(await store.uploads.parts(id)).values()]).toEqual([part]);
    const fields = Array.from({ length: MAX_PARTS }, (_, n) => [`p${n}`, '1 1']).flat();
    await redis.hset(`${recordKey(id)}:parts`, ...fields);
    expect(await store.uploads.addPart(id, { id: 'part_b', bytes: 3 })).toBe('full');
    await store.uploads.cancel(id);
    expect(await store.uploads.addPart(id, { id: 'part_c', bytes: 3 })).toBe('over');
    expect(await store.uploads.addPart('upload_none', { id: 'part_c', bytes: 3 })).toBe('over');
  });

  test('let one attempt run at a time', async () => {
    const { uploads } = store;
    expect(await uploads.begin(id, 'file-a', 60_000)).toBe('begun');
    expect(await uploads.begin(id, 'file-a', 60_000)).toBe('begun');
    expect(await uploads.begin(id, 'file-b', 60_000)).toBe('busy');
    await uploads.abandon(id, 'file-b');
    expect(await uploads.begin(id, 'file-b', 60_000)).toBe('busy');
    await uploads.abandon(id, 'file-a');
    expect(await uploads.begin(id, 'file-b', 60_000)).toBe('begun');
    expect((await uploads.attempts(id)).toSorted()).toEqual(['file-a', 'file-b']);
    // Past its hour it still has the time of who joins its parts.
    await set({ expires_at: 1 });
    expect(await uploads.expire(id)).toBe('over');
    expect(await uploads.complete(id, RESULT)).toBe('ended');
    expect(await uploads.begin(id, 'file-b', 60_000)).toBe('over');
    expect((await uploads.get(id))?.result).toEqual(RESULT);
  });

  test('end once', async () => {
    const { uploads } = store;
    expect(await uploads.expire(id)).toBe('over');
    const ends = await Promise.all([
      uploads.cancel(id),
      uploads.complete(id, RESULT),
      uploads.cancel(id),
    ]);
    expect(ends.toSorted()).toEqual(['ended', 'over', 'over']);
    expect((await uploads.get(id))?.endedAt).toBeGreaterThan(0);
  });

  test('of an hour ago can only expire', async () => {
    const { uploads } = store;
    await set({ expires_at: 1 });
    expect(await uploads.addPart(id, { id: 'part_a', bytes: 3 })).toBe('over');
    expect(await uploads.begin(id, 'file-a', 60_000)).toBe('over');
    expect(await uploads.cancel(id)).toBe('over');
    expect(await uploads.complete(id, RESULT)).toBe('over');
    await uploads.postpone(id, Date.now() + 60_000);
    expect(await uploads.expire(id)).toBe('ended');
    expect(await uploads.due(5)).toEqual([id]);
    expect((await uploads.get(id))?.status).toBe('expired');
  });

  test('are forgotten but for their record, which goes later', async () => {
    const { uploads } = store;
    await uploads.addPart(id, { id: 'part_a', bytes: 3 });
    await uploads.cancel(id);
    await uploads.forget(id);
    expect(await uploads.due(5)).toEqual([]);
    expect((await uploads.parts(id)).size).toBe(0);
    expect((await uploads.get(id))?.status).toBe('cancelled');
    expect(await redis.pttl(recordKey(id))).toBeGreaterThan(86_400_000);
  });
});
