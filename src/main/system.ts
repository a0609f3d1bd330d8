import { join } from 'node:path';
import { connectRedis } from '../../queues/connection.ts';
import { createQueues } from '../../queues/queues.ts';
import type { Settings } from '../../config/schema.ts';
import type { Role } from '../../config/schema.ts';
import { describeError, permanent, transient } from '../domain/errors.ts';
import { createMetrics } from '../observability/metrics.ts';
import type { Logger } from '../observability/log.ts';
import { createStorage } from '../storage/index.ts';
import { createStore } from '../store/store.ts';
import { ensureFolder } from './data-dir.ts';
import { openEmbeddedRedis } from './embedded-redis.ts';
import { reportDisk, reportRedis } from './redis-report.ts';
import { soon } from './soon.ts';

export interface SystemOptions {
  settings: Settings;
  log: Logger;
  /** Begins the keys of queues and indexes; processes of one namespace work together. */
  namespace?: string;
  roles?: readonly Role[];
}

const FIRST_PING_MS = 10_000;
const CLOSE_MS = 2_000;

/** What every role stands on: Redis, records, queues and storage, opened and checked. */
export type System = Awaited<ReturnType<typeof openSystem>>;

/**
 * Opens Redis (embedded unless `REDIS_URL` is set) and storage, and makes sure that they belong together.
 * Rejects with what is wrong and how to mend it; what was opened is closed again then.
 */
export async function openSystem({ settings, log, namespace = 'sluice', roles }: SystemOptions) {
  const closers: (() => Promise<void>)[] = [];
  async function close(): Promise<void> {
    for (const closer of closers.splice(0).toReversed()) await soon(closer(), CLOSE_MS);
  }
  try {
    await ensureFolder(settings.dataDir);
    const urls = await openRedis(settings, log, closers);
    const onError = quietly(log);
    function connect(url: string, patient: boolean) {
      const redis = connectRedis(url, { patient, onError });
      closers.push(async () => redis.disconnect());
      return redis;
    }
    // An HTTP request gives up after a moment; a worker waits for Redis however long it is away.
    const [records, patientRecords] = [connect(urls.store, false), connect(urls.store, true)];
    const [sending, working] = [connect(urls.queues, false), connect(urls.queues, true)];
    await Promise.all([ping(records, urls.store), ping(sending, urls.queues)]);
    await reportRedis(records, settings, log);
    await reportDisk(settings, log);
    function onDamaged(error: unknown): void {
      log.error({ err: error }, 'a damaged record was left out');
    }
    const store = createStore({ redis: patientRecords, namespace, onDamaged });
    const storage = createStorage({
      type: settings.storageType,
      directory: join(settings.dataDir, 'storage'),
    });
    await claim(store, storage);
    const queues = createQueues(working, { namespace, onError });
    const impatientQueues = createQueues(sending, { namespace, onError });
    closers.push(async () => {
      await Promise.all([queues.close(), impatientQueues.close()]);
    });
    const metrics = createMetrics();
    return {
      settings,
      log,
      namespace,
      roles: roles ?? settings.roles,
      metrics,
      storage,
      /** For workers: waits for Redis. */
      store,
      queues,
      working,
      /** For HTTP requests: gives up soon when Redis is away. */
      impatient: {
        store: createStore({ redis: records, namespace, onDamaged }),
        queues: impatientQueues,
        redis: records,
      },
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
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

async function ping(redis: ReturnType<typeof connectRedis>, url: string): Promise<void> {
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
async function claim(
  store: ReturnType<typeof createStore>,
  storage: ReturnType<typeof createStorage>,
): Promise<void> {
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
