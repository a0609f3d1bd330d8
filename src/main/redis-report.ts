import { open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Redis } from 'ioredis';
import type { Settings } from '../../config/schema.ts';
import { describeError } from '../domain/errors.ts';
import type { Logger } from '../observability/log.ts';

/** A job is about 35 acknowledged writes in a row: above this a small one is felt to be slow. */
export const SLOW_FSYNC_MS = 3;
const FSYNC_SAMPLES = 9;

/** Says how durable writes to Redis are and what that costs here. */
export async function reportDurability(
  redis: Redis,
  settings: Settings,
  log: Logger,
): Promise<void> {
  await reportRedis(redis, settings, log);
  await reportDisk(settings, log);
}

/** Says under which durability somebody else's Redis runs; ours is set up as it has to be. */
async function reportRedis(redis: Redis, settings: Settings, log: Logger): Promise<void> {
  if (settings.redisUrl === undefined && settings.storeUri === undefined) return;
  try {
    const [, appendonly] = await redis.config('GET', 'appendonly');
    const [, appendfsync] = await redis.config('GET', 'appendfsync');
    const [, policy] = await redis.config('GET', 'maxmemory-policy');
    const safe = appendonly === 'yes' && appendfsync === 'always' && policy === 'noeviction';
    const fields = { appendonly, appendfsync, policy };
    if (safe) log.info(fields, 'Redis keeps what it acknowledges');
    else
      log.warn(
        fields,
        'Redis may lose what it acknowledges: it wants appendonly yes, appendfsync always and maxmemory-policy noeviction',
      );
  } catch (error) {
    log.warn({ reason: describeError(error) }, 'Redis does not say how durable it is');
  }
}

/** Median time of an fsync in DATA_DIR, ms. */
export async function measureFsync(directory: string): Promise<number> {
  const path = join(directory, `.fsync-${process.pid}`);
  const file = await open(path, 'w');
  try {
    const times: number[] = [];
    for (let sample = 0; sample < FSYNC_SAMPLES; sample += 1) {
      await file.write(Buffer.alloc(512, sample));
      const begun = performance.now();
      await file.datasync();
      times.push(performance.now() - begun);
    }
    return times.toSorted((a, b) => a - b)[Math.floor(FSYNC_SAMPLES / 2)] ?? 0;
  } finally {
    await file.close();
    await rm(path, { force: true });
  }
}

/** Says what the disk costs where our own Redis waits for it. */
async function reportDisk(settings: Settings, log: Logger): Promise<void> {
  if (settings.redisUrl !== undefined || settings.redisFsync !== 'always') return;
  const fsyncMs = Math.round((await measureFsync(settings.dataDir)) * 100) / 100;
  if (fsyncMs <= SLOW_FSYNC_MS) log.debug({ fsyncMs }, 'disk measured');
  else {
    log.warn(
      { fsyncMs, perJobMs: Math.round(fsyncMs * 35) },
      'this disk is slow to make writes durable: each job takes so much longer; REDIS_FSYNC=everysec trades that for safety',
    );
  }
}
