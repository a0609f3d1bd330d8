import { Redis } from 'ioredis';
import type { RedisOptions } from 'ioredis';

type RedisTarget = Pick<
  RedisOptions,
  'path' | 'host' | 'port' | 'db' | 'username' | 'password' | 'tls'
>;

/** Splits a Redis URL into ioredis options; `redis+unix:///path?db=1` names a unix socket. */
export function redisTarget(url: string): RedisTarget {
  const parsed = new URL(url);
  if (parsed.protocol === 'redis+unix:') {
    return {
      path: decodeURIComponent(parsed.pathname),
      db: Number(parsed.searchParams.get('db') ?? 0),
    };
  }
  return {
    host: parsed.hostname.replace(/^\[|\]$/g, ''),
    port: Number(parsed.port || 6379),
    db: Number(parsed.pathname.slice(1) || 0),
    ...(parsed.username === '' ? {} : { username: decodeURIComponent(parsed.username) }),
    ...(parsed.password === '' ? {} : { password: decodeURIComponent(parsed.password) }),
    ...(parsed.protocol === 'rediss:' ? { tls: {} } : {}),
  };
}

const IMPATIENCE_MS = 10_000;

/**
 * Opens a connection that reconnects for ever. `patient` ones (workers) wait for Redis however long it is away;
 * the others give a command up after two reconnects, so that an HTTP request is answered.
 */
export function connectRedis(
  url: string,
  { patient, onError }: { patient: boolean; onError: (error: Error) => void },
): Redis {
  const redis = new Redis({
    ...redisTarget(url),
    maxRetriesPerRequest: patient ? null : 2,
    retryStrategy: (attempt) => Math.min(50 * attempt, 1_000),
    enableAutoPipelining: true,
    // A host that vanished breaks no connection: only a time-out ends the wait.
    ...(patient ? {} : { commandTimeout: IMPATIENCE_MS }),
  });
  redis.on('error', onError);
  return redis;
}
