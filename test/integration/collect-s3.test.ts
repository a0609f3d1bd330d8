import { afterAll, beforeAll, expect, test } from 'vitest';
import { createS3Storage } from '../../src/storage/s3.ts';
import type { Storage } from '../../src/storage/contract.ts';
import { fileKey } from '../../src/domain/file.ts';
import { DAY, HOUR, openCollectWorld } from '../support/collect-world.ts';
import { ANY_KEYS, startS3Server } from '../support/s3-server.ts';
import type { S3Server } from '../support/s3-server.ts';
import { connectTo } from '../support/store-back-ends.ts';

const MIB = 1024 * 1024;

let server: S3Server;

beforeAll(async () => {
  server = await startS3Server();
});

afterAll(async () => {
  await server[Symbol.asyncDispose]();
});

async function openBucket(prefix: string, bucket?: string): Promise<Storage & { bucket: string }> {
  const name = bucket ?? (await server.createBucket());
  const storage = createS3Storage({
    bucket: name,
    prefix,
    endpoint: server.url,
    region: 'us-east-1',
    forcePathStyle: true,
    isAws: false,
    credentials: ANY_KEYS,
    partBytes: 5 * MIB,
  });
  return { ...storage, bucket: name };
}

test('on S3, with records on a cluster, what is over goes, and what others keep in the bucket stays', async () => {
  const storage = await openBucket('sluice/');
  const others = await openBucket('', storage.bucket);
  await others.put('files/file-of-others', [Buffer.from('x')]);
  await using world = await openCollectWorld({ redis: connectTo('cluster'), given: storage });
  const [over, running] = [await world.run(), await world.run()];
  await world.finish(over);
  await world.storage.put('files/file-orphan', [Buffer.from('12345')]);
  const before = await world.objects();
  world.ahead = DAY - HOUR;
  await world.collect();
  expect(await world.objects()).toEqual(before);
  world.ahead = DAY + HOUR;
  const { kinds, doubt, failures } = await world.collect();
  expect({ ...kinds, doubt, failures }).toMatchObject({
    failures: [],
    segments: { count: 1, bytes: 10 },
    orphan_files: { count: 1, bytes: 5 },
    doubt: null,
  });
  const { input } = await world.job(running);
  expect(await world.erase(over)).toBe('erased');
  await world.expire();
  const left = await world.objects();
  expect(left.filter((key) => !key.startsWith(`jobs/${running}/`))).toEqual([fileKey(input)]);
  expect(left).toHaveLength(2);
  expect(await others.head('files/file-of-others')).not.toBeNull();
});
