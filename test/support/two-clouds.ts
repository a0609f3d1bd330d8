import { afterAll, afterEach, beforeAll, beforeEach } from 'vitest';
import { leasingEnvironment, makeKeyFile, startCloud } from './clouds.ts';
import type { Cloud, KeyFile } from './clouds.ts';
import { startRedis } from './redis.ts';
import type { TestRedis } from './redis.ts';
import { makeFolder, requireNothingLeft } from './server.ts';
import type { Environment, TestFolder } from './server.ts';

/** What a file's tests of settings of both providers have: a Redis, a folder and a key for all, and clouds for each. */
export interface TwoClouds {
  folder: string;
  key: KeyFile;
  runpod: Cloud;
  lambdaCloud: Cloud;
  /** What a server has that leases from both. */
  environment(more?: Environment): Environment;
}

/** Opens it for each test of a file; machines of these clouds are entries in a ledger. Read it in tests only. */
export function useTwoClouds(): () => TwoClouds {
  let redis: TestRedis;
  let folder: TestFolder;
  let key: KeyFile;
  let clouds: [runpod: Cloud, lambdaCloud: Cloud];
  beforeAll(async () => {
    [redis, folder] = await Promise.all([startRedis(), makeFolder()]);
    key = await makeKeyFile(folder.path);
  });
  beforeEach(async () => {
    clouds = await Promise.all([
      startCloud('runpod', key, { machines: 'none' }),
      startCloud('lambdaCloud', key, { machines: 'none' }),
    ]);
  });
  afterEach(async () => {
    await Promise.all(clouds.map((cloud) => cloud[Symbol.asyncDispose]()));
  });
  afterAll(async () => {
    await redis.stop();
    await folder[Symbol.asyncDispose]();
    requireNothingLeft();
  });
  return () => {
    const [runpod, lambdaCloud] = clouds;
    return {
      folder: folder.path,
      key,
      runpod,
      lambdaCloud,
      environment: (more) => ({
        REDIS_URL: redis.url,
        DATA_DIR: folder.path,
        HTTP_ADDR: '127.0.0.1:0',
        ...leasingEnvironment(clouds, key),
        ...more,
      }),
    };
  };
}
