import { randomBytes, randomUUID } from 'node:crypto';
import { hostname } from 'node:os';
import type { Redis } from 'ioredis';
import { connectRedis } from '../../queues/connection.ts';
import { claimCensus } from '../../processors/collect-census.ts';
import { createQueues } from '../../queues/queues.ts';
import type { Queues } from '../../queues/queues.ts';
import type { Role, Settings } from '../../config/schema.ts';
import { describeError, permanent, transient } from '../domain/errors.ts';
import { createMetrics } from '../observability/metrics.ts';
import type { Metrics } from '../observability/metrics.ts';
import type { Logger } from '../observability/log.ts';
import type { Storage } from '../storage/contract.ts';
import type { Places } from '../storage/places.ts';
import { createStore } from '../store/store.ts';
import type { Store } from '../store/store.ts';
import { ensureFolder } from './data-dir.ts';
import { openAllowedPlaces } from './places.ts';
import { openEmbeddedRedis } from './embedded-redis.ts';
import { reportDurability } from './redis-report.ts';
import { soon } from './soon.ts';
import { openStorage } from './storage-check.ts';

export interface SystemOptions {
  settings: Settings;
  log: Logger;
  /** Begins the keys of queues and indexes; processes of one namespace work together. */
  namespace?: string;
  roles?: readonly Role[];
  /** Its name where somebody else gave it one: who did has said already what is to be said of Redis and disk. */
  name?: string;
}

const FIRST_PING_MS = 10_000;
const CLOSE_MS = 2_000;

/** Records and queues over connections of one temper. */
export interface Connected {
  store: Store;
  queues: Queues;
  /** The connections below, which may lead to two servers. */
  redis: Connections;
}

interface Connections {
  records: Redis;
  queues: Redis;
}

/** What every role stands on: Redis, records, queues and storage, opened and checked. */
export interface System {
  settings: Settings;
  log: Logger;
  namespace: string;
  roles: readonly Role[];
  /** Of this process, among all that there ever are. */
  name: string;
  metrics: Metrics;
  storage: Storage;
  /** Buckets of others that batches may name; `storage` reads and writes them, too. */
  places: Places;
  /** For workers and the sweeper: a command waits for Redis, however long it is away. */
  patient: Connected;
  /** For HTTP requests: a command fails after a moment when Redis is away, so that the request is answered. */
  impatient: Connected;
  close(): Promise<void>;
}

/**
 * Opens Redis (embedded unless `REDIS_URL` is set) and storage, and makes sure that they belong together.
 * Rejects with what is wrong and how to mend it; what was opened is closed again then.
 */
export async function openSystem({
  settings,
  log,
  namespace = 'sluice',
  roles = settings.roles,
  name,
}: SystemOptions): Promise<System> {
  const closers: (() => Promise<void>)[] = [];
  async function close(): Promise<void> {
    for (const closer of closers.splice(0).toReversed()) await soon(closer(), CLOSE_MS);
  }
  try {
    await ensureFolder(settings.dataDir);
    const urls = await openRedis(settings, log, closers);
    const onError = quietly(log);
    function connect(url: string, patient: boolean): Redis {
      const redis = connectRedis(url, { patient, onError });
      closers.push(async () => redis.disconnect());
      return redis;
    }
    function connectBoth(patient: boolean): Connections {
      return { records: connect(urls.store, patient), queues: connect(urls.queues, patient) };
    }
    function onDamaged(error: unknown): void {
      log.error({ err: error }, 'a damaged record was left out');
    }
    function standOn(redis: Connections): Connected {
      const store = createStore({ redis: redis.records, namespace, onDamaged });
      return { store, queues: createQueues(redis.queues, { namespace, onError }), redis };
    }
    const [waiting, failing] = [connectBoth(true), connectBoth(false)];
    await Promise.all([ping(failing.records, urls.store), ping(failing.queues, urls.queues)]);
    if (name === undefined) await reportDurability(failing.records, settings, log);
    const ownStorage = await openStorage(settings, log, name === undefined);
    const { storage, places } = openAllowedPlaces(ownStorage, settings, (note) =>
      log.info({ note }, 'a setting of the storage is taken otherwise than it was given'),
    );
    const [patient, impatient] = [standOn(waiting), standOn(failing)];
    closers.push(async () => {
      await Promise.all([patient.queues.close(), impatient.queues.close()]);
    });
    await claim(patient.store, storage);
    const doubt = await claimCensus({ store: patient.store, storage, newId: randomUUID });
    if (doubt !== null && name === undefined) {
      log.warn({ reason: doubt }, 'orphans in storage are only reported, see sluice gc');
    }
    const own = { settings, log, namespace, roles, name: name ?? newProcessName(process.pid) };
    return { ...own, metrics: createMetrics(), storage, places, patient, impatient, close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Tells a process from all others, and a person where to look for it. */
export function newProcessName(what: string | number): string {
  return `${hostname()}-${what}-${randomBytes(4).toString('hex')}`;
}

async function openRedis(
  settings: Settings,
  log: Logger,
  closers: (() => Promise<void>)[],
): Promise<{ queues: string; store: string }> {
  let { redisUrl: queues } = settings;
  if (queues === undefined) {
    const embedded = await openEmbeddedRedis({
      dataDir: settings.dataDir,
      fsync: settings.redisFsync,
      log: (fields, message) => log.debug(fields, message),
    });
    closers.push(() => embedded.close());
    embedded.onFailure((error) => log.error({ err: error }, 'the embedded Redis does not run'));
    queues = embedded.url;
  }
  return { queues, store: settings.storeUri ?? queues };
}

async function ping(redis: Redis, url: string): Promise<void> {
  let last: Error | null = null;
  function remember(error: Error): void {
    last = error;
  }
  redis.on('error', remember);
  try {
    const timeout = AbortSignal.timeout(FIRST_PING_MS);
    await Promise.race([
      redis.ping(),
      new Promise((_resolve, reject) => {
        timeout.addEventListener('abort', () => reject(new Error('no answer within 10 s')));
      }),
    ]);
  } catch (error) {
    const reason = describeError(last ?? error);
    throw transient(
      'redis.unreachable',
      `Redis at ${withoutSecrets(url)} cannot be reached: ${reason}. Start it or mend REDIS_URL; ` +
        'without REDIS_URL Sluice runs a Redis of its own.',
    );
  } finally {
    redis.off('error', remember);
  }
}

function withoutSecrets(url: string): string {
  const parsed = new URL(url);
  return parsed.host === '' ? parsed.pathname : `${parsed.hostname}:${parsed.port || 6379}`;
}

/** A storage and its records belong together: with another folder every file would seem lost. */
async function claim(store: Store, storage: Storage): Promise<void> {
  const own = await storage.identity();
  const bound = await store.claimStorage(own);
  if (own === bound) return;
  throw permanent(
    'storage.foreign',
    `This Redis belongs to the storage ${bound}, but the storage here is ${own}. Processes on several hosts need a ` +
      'storage that they share; if the folder was moved or deleted, point DATA_DIR to the old one or use another Redis.',
  );
}

/** Says once that a connection is broken, not at each of its tries. */
function quietly(log: Logger): (error: Error) => void {
  let saidAt = 0;
  return function onError(error) {
    if (Date.now() - saidAt < 10_000) return;
    saidAt = Date.now();
    log.warn({ reason: describeError(error) }, 'Redis connection error');
  };
}
