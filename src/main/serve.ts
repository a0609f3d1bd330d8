import type { Settings } from '../../config/schema.ts';
import { createLogger } from '../observability/log.ts';
import { startServer } from './server.ts';
import { untilStopped } from './signals.ts';

/** Longer than the grace: whatever hangs at the end must not keep the process. */
const LAST_RESORT_MS = 10_000;

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || host.startsWith('127.');
}

/** `sluice start`: runs the roles of `ROLES` until SIGTERM or Ctrl-C. */
export async function serve(settings: Settings): Promise<void> {
  const log = createLogger({ level: settings.logLevel });
  const server = await startServer({ settings, log });
  // Until here nothing is in hand: a signal's own effect was the right one.
  const stopped = untilStopped();
  if (server.url !== null) {
    log.info({ url: server.url, roles: settings.roles, dataDir: settings.dataDir }, 'Sluice is up');
    if (process.stdout.isTTY) console.log(`Sluice is up at ${server.url} (Ctrl-C stops it)`);
  } else log.info({ roles: settings.roles, queues: settings.queues }, 'Sluice is up');
  const { host } = settings.httpAddr;
  if (server.url !== null && !isLoopback(host)) {
    log.warn(
      { host },
      'the API has no authentication, and others can reach it: everybody may run and read batches',
    );
  }
  const isLeasing = settings.provisioners.some((provider) => provider !== 'static');
  const hasEngines = settings.engineUrls.length > 0 || settings.metadataServiceUrl !== undefined;
  if (!hasEngines && !isLeasing && settings.roles.includes('api')) {
    log.warn({}, 'no ENGINE_URLS: batches have to name their engine in aibrix.runtime');
  }
  const signal = await stopped;
  log.info({ signal, graceMs: settings.shutdownGrace }, 'stopping');
  const lastResort = setTimeout(() => {
    log.error({}, 'stopping took too long');
    process.exit(1);
  }, settings.shutdownGrace + LAST_RESORT_MS);
  await server.close();
  clearTimeout(lastResort);
  log.info({}, 'stopped');
}
