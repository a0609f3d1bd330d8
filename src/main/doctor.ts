import { randomUUID } from 'node:crypto';
import type { Redis } from 'ioredis';
import { connectRedis } from '../../queues/connection.ts';
import type { Settings } from '../../config/schema.ts';
import { describeError } from '../domain/errors.ts';
import { formatLocation } from '../domain/location.ts';
import type { Location } from '../domain/location.ts';
import { createEndpointRuntime } from '../runtimes/endpoint.ts';
import { createStorage } from '../storage/index.ts';
import type { LeaseProvider } from '../domain/provision.ts';
import { checkLeases } from './doctor-leases.ts';
import { ensureFolder } from './data-dir.ts';
import { openEmbeddedRedis } from './embedded-redis.ts';
import { measureFsync, SLOW_FSYNC_MS } from './redis-report.ts';
import type { Places } from '../storage/places.ts';
import { openAllowedPlaces } from './places.ts';
import { probeStorage } from './storage-check.ts';
import { describeStorage, storageSettings } from './storage-settings.ts';

export interface DoctorOptions {
  json?: boolean;
}

/** What a check found: `warn` works and could be better, `fail` does not work. */
export interface Finding {
  check: 'redis' | 'disk' | 'storage' | 'folder' | 'engine' | 'ssh key' | LeaseProvider;
  state: 'ok' | 'warn' | 'fail';
  /** What is there, and the mend where something is to be mended. */
  message: string;
  /** What was measured, ms. */
  ms?: Readonly<Record<string, number>>;
}

const ANSWER_MS = 5_000;
const STORAGE_ATTEMPTS = 2;
const SAMPLES = 9;
/** BullMQ asks for it. */
const LEAST_REDIS = '6.2.0';

/**
 * `sluice doctor`: tries what the settings name, and prints a line for each check, or one JSON object. The exit code:
 * 1 where something does not work.
 */
export async function doctor({ json }: DoctorOptions, settings: Settings): Promise<number> {
  const checks = [
    checkRedis(settings),
    checkStorage(settings),
    checkFolders(settings),
    ...checkEngines(settings),
    ...checkLeases(settings),
  ];
  const findings = (await Promise.all(checks)).flat();
  const isFine = findings.every(({ state }) => state !== 'fail');
  if (json === true) console.log(JSON.stringify({ ok: isFine, checks: findings }));
  else {
    const width = Math.max(8, ...findings.map(({ check }) => check.length));
    for (const finding of findings) console.log(lineOf(finding, width));
  }
  return isFine ? 0 : 1;
}

function lineOf({ check, state, message, ms }: Finding, width: number): string {
  const times = Object.entries(ms ?? {}).map(([name, value]) => `${name} ${value} ms`);
  const measured = times.length === 0 ? '' : ` (${times.join(', ')})`;
  return `${state.toUpperCase().padEnd(5)} ${check.padEnd(width)} ${message.replaceAll(/\s+/g, ' ')}${measured}`;
}

async function checkRedis(settings: Settings): Promise<Finding[]> {
  const { redisUrl, storeUri } = settings;
  const findings: Finding[] = [];
  try {
    if (redisUrl === undefined) findings.push(...(await checkEmbedded(settings)));
    else findings.push(await checkServer(redisUrl, 'REDIS_URL'));
    if (storeUri !== undefined) findings.push(await checkServer(storeUri, 'STORE_URI'));
  } catch (error) {
    findings.push({ check: 'redis', state: 'fail', message: describeError(error) });
  }
  return findings;
}

/** Starts the embedded Redis where it does not run, as a server would, and lets it go again. */
async function checkEmbedded({ dataDir, redisFsync }: Settings): Promise<Finding[]> {
  await ensureFolder(dataDir);
  const log = () => undefined;
  const embedded = await openEmbeddedRedis({ dataDir, fsync: redisFsync, log });
  try {
    return [await checkServer(embedded.url, 'DATA_DIR'), await checkDisk(dataDir)];
  } finally {
    await embedded.close();
  }
}

async function checkDisk(dataDir: string): Promise<Finding> {
  const fsync = rounded(await measureFsync(dataDir));
  const isSlow = fsync > SLOW_FSYNC_MS;
  return {
    check: 'disk',
    state: isSlow ? 'warn' : 'ok',
    message: isSlow
      ? `${dataDir} is slow to make writes durable, and a job waits for about 35 of them: REDIS_FSYNC=everysec trades that for safety`
      : `${dataDir} makes writes durable quickly`,
    ms: { fsync },
  };
}

async function checkServer(url: string, setting: string): Promise<Finding> {
  let last: Error | null = null;
  const redis = connectRedis(url, { patient: false, onError: (error) => (last = error) });
  try {
    const limit = AbortSignal.timeout(ANSWER_MS);
    const { promise, reject } = Promise.withResolvers<never>();
    limit.addEventListener('abort', () => reject(new Error(`no answer within ${ANSWER_MS} ms`)));
    return await Promise.race([describeServer(redis), promise]);
  } catch (error) {
    const reason = describeError(last ?? error);
    const mend = `Start it or mend ${setting}.`;
    return { check: 'redis', state: 'fail', message: `it cannot be reached: ${reason}. ${mend}` };
  } finally {
    redis.disconnect();
  }
}

async function describeServer(redis: Redis): Promise<Finding> {
  const info = await redis.info('server');
  const [, version = '0'] = /^(?:redis|valkey)_version:(\S+)/m.exec(info) ?? [];
  const write = await measureWrite(redis);
  const ms = { write };
  if (version.localeCompare(LEAST_REDIS, 'en', { numeric: true }) < 0) {
    const message = `Redis ${version} is too old: ${LEAST_REDIS} is the least`;
    return { check: 'redis', state: 'fail', message, ms };
  }
  const { isSafe, text } = await durabilityOf(redis);
  const mend =
    '; it may lose what it acknowledges: set appendonly yes, appendfsync always and maxmemory-policy noeviction';
  return {
    check: 'redis',
    state: isSafe ? 'ok' : 'warn',
    message: `Redis ${version}, ${text}${isSafe ? '' : mend}`,
    ms,
  };
}

async function durabilityOf(redis: Redis): Promise<{ isSafe: boolean; text: string }> {
  const found: string[] = [];
  try {
    for (const name of ['appendonly', 'appendfsync', 'maxmemory-policy']) {
      const [, value] = await redis.config('GET', name);
      found.push(`${name} ${value}`);
    }
  } catch (error) {
    return { isSafe: false, text: `it does not say how durable it is: ${describeError(error)}` };
  }
  const text = found.join(', ');
  const safe = 'appendonly yes, appendfsync always, maxmemory-policy noeviction';
  return { isSafe: text === safe, text };
}

/** Median time until a write is acknowledged, its fsync included where there is one, ms. */
async function measureWrite(redis: Redis): Promise<number> {
  const key = `sluice:doctor:${randomUUID()}`;
  const times: number[] = [];
  for (let sample = 0; sample < SAMPLES; sample += 1) {
    const begun = performance.now();
    await redis.set(key, sample, 'PX', ANSWER_MS);
    times.push(performance.now() - begun);
  }
  await redis.del(key);
  return rounded(times.toSorted((a, b) => a - b)[Math.floor(SAMPLES / 2)] ?? 0);
}

async function checkStorage(settings: Settings): Promise<Finding[]> {
  const wanted = storageSettings(settings);
  const where = describeStorage(wanted);
  const notes: Finding[] = [];
  function warn(message: string): void {
    notes.push({ check: 'storage', state: 'warn', message });
  }
  try {
    const storage = await createStorage(wanted, { onNote: warn, attempts: STORAGE_ATTEMPTS });
    const { ms, warnings } = await probeStorage(storage);
    for (const warning of warnings) warn(warning);
    return [{ check: 'storage', state: 'ok', message: where, ms }, ...notes];
  } catch (error) {
    return [{ check: 'storage', state: 'fail', message: describeError(error) }, ...notes];
  }
}

/** The folders of ALLOWED_BUCKETS; some are there to be read only, others to be written. */
async function checkFolders(settings: Settings): Promise<Finding[]> {
  if (settings.allowedBuckets.length === 0) return [];
  const notes: Finding[] = [];
  const own = await createStorage({ type: 'LOCAL', directory: settings.dataDir });
  const { places } = openAllowedPlaces(own, settings, (message) =>
    notes.push({ check: 'folder', state: 'warn', message }),
  );
  const found = await Promise.all(places.allowed.map((folder) => checkFolder(places, folder)));
  return [...found, ...notes];
}

async function checkFolder(places: Places, folder: Location): Promise<Finding> {
  const where = formatLocation(folder);
  const trials = [
    ['read', () => places.look({ ...folder, key: `${folder.key}.sluice-look` })],
    ['written', () => places.tryWriting(folder)],
  ] as const;
  const refusals: string[] = [];
  for (const [what, run] of trials) {
    try {
      await run();
    } catch (error) {
      refusals.push(`It cannot be ${what}: ${describeError(error)}`);
    }
  }
  if (refusals.length === 0) return { check: 'folder', state: 'ok', message: where };
  const state = refusals.length === trials.length ? 'fail' : 'warn';
  return { check: 'folder', state, message: `${where} of ALLOWED_BUCKETS. ${refusals.join(' ')}` };
}

function checkEngines({ engineUrls, engineApiKey, connectTimeout }: Settings): Promise<Finding>[] {
  const runtime = createEndpointRuntime({ engineApiKey, engineUrls, connectTimeout });
  return engineUrls.map(async (url): Promise<Finding> => {
    const begun = performance.now();
    const look = await runtime.look(url, [], AbortSignal.timeout(2 * ANSWER_MS));
    const ms = { look: rounded(performance.now() - begun) };
    if (look.is === 'healthy') return { check: 'engine', state: 'ok', message: url, ms };
    const mend = 'Start the engine, or mend ENGINE_URLS or ENGINE_API_KEY.';
    return { check: 'engine', state: 'fail', message: `${look.reason}. ${mend}` };
  });
}

function rounded(ms: number): number {
  return Math.round(ms * 100) / 100;
}
