import type { Role, Settings } from '../../config/schema.ts';
import type { Load } from '../dispatcher/dispatcher.ts';
import type { Logger } from '../observability/log.ts';
import { authorizedKeyOf, enabledLeases } from './lease-providers.ts';
import { startSupervisor } from './supervisor.ts';
import { startSweeper } from './sweeper.ts';
import { openSystem } from './system.ts';
import { startWorkers } from './worker.ts';

export interface RunningServer {
  /** Where the API answers; null without the role. */
  url: string | null;
  /** What this process and its worker processes have in hand; null without the worker's role. */
  load(): Load | null;
  /** Stops cleanly: no new work, a grace for what is in hand, shards given back. */
  close(): Promise<void>;
}

/** Starts the roles of this process; whatever was started is stopped again when one of them cannot be. */
export async function startServer(options: {
  settings: Settings;
  log: Logger;
  namespace?: string;
  roles?: readonly Role[];
}): Promise<RunningServer> {
  const { settings } = options;
  // A key that is of no use is told before anything is opened, and not when the first machine is up.
  if (enabledLeases(settings).length > 0) await authorizedKeyOf(settings);
  const system = await openSystem(options);
  const closers: (() => Promise<void>)[] = [];
  // Side by side: while an upload is given its grace, no new line may be sent.
  async function close(): Promise<void> {
    const ends = await Promise.allSettled(closers.splice(0).map((closer) => closer()));
    await system.close();
    for (const end of ends) if (end.status === 'rejected') throw end.reason;
  }
  try {
    let url: string | null = null;
    let load: () => Load | null = () => null;
    if (system.roles.includes('sweeper')) {
      const sweeper = startSweeper(system);
      closers.push(() => sweeper.close());
    }
    if (system.roles.includes('worker')) {
      const start = settings.workerProcesses > 0 ? startSupervisor : startWorkers;
      const worker = await start(system);
      ({ load } = worker);
      closers.push(() => worker.close());
    }
    if (system.roles.includes('api')) {
      // A worker has no use for an HTTP server and a board: 20 MB less in each.
      const { startApi } = await import('./api.ts');
      const api = await startApi(system);
      ({ url } = api);
      closers.push(() => api.close(settings.shutdownGrace));
    }
    return { url, load, close };
  } catch (error) {
    await close();
    throw error;
  }
}
