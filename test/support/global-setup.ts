import type { TestProject } from 'vitest/node';

import { startCluster, startRedis } from './redis.ts';
import type { ClusterNode } from './redis.ts';

declare module 'vitest' {
  interface ProvidedContext {
    /** One Redis for the whole run, AOF on: a random key prefix keeps tests apart, no FLUSHALL. */
    redisUrl: string;
    /** A cluster of three. */
    clusterNodes: ClusterNode[];
  }
}

/** Starts what all integration tests share, and returns its end. */
export async function setup(project: TestProject): Promise<() => Promise<void>> {
  const [redis, cluster] = await Promise.all([startRedis(), startCluster()]);
  project.provide('redisUrl', redis.url);
  project.provide('clusterNodes', cluster.nodes);
  return async () => {
    await Promise.all([redis.stop(), cluster.stop()]);
  };
}
