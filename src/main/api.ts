import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Settings } from '../../config/schema.ts';
import { createJob } from '../../processors/create.ts';
import type { Inventories } from '../../processors/leasing.ts';
import type { SettleDeps } from '../../processors/deps.ts';
import { eraseJob } from '../../processors/erase-job.ts';
import { forgetContent } from '../../processors/expiry.ts';
import { extendJob, pauseJob, resumeJob } from '../../processors/pause.ts';
import { openPartial } from '../../processors/partial.ts';
import type { PartialDeps } from '../../processors/partial.ts';
import { releaseByHand } from '../../processors/release-by-hand.ts';
import { stopJob } from '../../processors/settle.ts';
import { createApp } from '../api/app.ts';
import { createHttpServer } from '../api/http-server.ts';
import { assemble } from '../dispatcher/assemble.ts';
import { readEntries } from '../dispatcher/segments.ts';
import { describeError, errorCode, notFound, permanent } from '../domain/errors.ts';
import type { JobRecord } from '../domain/job.ts';
import { LEASE_PROVIDERS } from '../domain/provision.ts';
import { createCatalog } from './catalog.ts';
import { clock } from './clock.ts';
import { clusterForm } from './kubernetes.ts';
import { enabledLeases } from './lease-providers.ts';
import { openInventories } from './leasing.ts';
import { createSurvey } from './machines.ts';
import { inspectInput } from './plan-input.ts';
import type { System } from './system.ts';
import type { LeaseManager } from '../resources/lease-contract.ts';
import { settleDeps } from './worker.ts';

export interface RunningApi {
  /** `http://host:port` that it listens on. */
  url: string;
  /** Takes no new connections, and gives requests in hand so long to end. */
  close(graceMs: number): Promise<void>;
}

/** What a job has of machines that does not say otherwise. */
function leaseDefaults(settings: Settings) {
  return {
    providers: enabledLeases(settings),
    defaultTemplate: settings.defaultTemplate ?? null,
    spend: {
      maxCostUsd: settings.maxCostUsd ?? null,
      maxIdleMinutes: settings.maxIdleMinutes ?? null,
    },
    mostReplicas: settings.maxLeases,
    cluster: { namespaces: settings.kubernetesNamespaces, form: clusterForm(settings) },
  };
}

/** Serves the API; rejects with `http.*` (Permanent) when the address cannot be had. */
export async function startApi(system: System): Promise<RunningApi> {
  const { settings, log, metrics, storage, places, impatient } = system;
  const settling = settleDeps(system, impatient, () => 2);
  const inventories = await openInventories(system, impatient, clock.now);
  const erasing = { ...settling, store: impatient.store, storage };
  const stopping = new AbortController();
  const app = createApp({
    store: impatient.store,
    storage,
    places,
    queues: impatient.queues.all,
    limits: settings,
    inspectInput: inspectInput.bind(null, { ...settings, storage }),
    live: { liveStreams: settings.liveStreams, stopping: stopping.signal },
    openPartial: (job, wish) => openPartial(job, wish, partialDeps(system)),
    defaults: { ...settings, ...leaseDefaults(settings) },
    webhooks: {
      signsJobs: settings.webhookSecret !== undefined,
      allowPrivate: settings.webhookAllowPrivate,
    },
    log,
    provider: settings.provisioners[0] ?? 'static',
    catalog: createCatalog(settings, managersOf(inventories), clock.now),
    surveyMachines: createSurvey(system, inventories),
    releaseProvision: (id, choice) => releaseByHand(id, choice, settling),
    createJob: (job) => createJob(job, settling),
    pauseJob: (id, by) => pauseJob(id, by, settling),
    resumeJob: (id) => resumeJob(id, settling),
    extendJob: (job, window, windowMs) => extendJob(job, window, windowMs, settling),
    eraseJob: (id) => eraseJob(id, { withFiles: true }, erasing),
    forgetContent: (id) => forgetContent(id, erasing),
    stopJob: (id, outcome) => cancelJob(id, outcome, settling),
    ready: () => checkReady(system),
    async metrics() {
      await countQueued(system);
      return metrics.render();
    },
    observe: (route, method, status, seconds) =>
      metrics.httpSeconds.observe({ route, method, status: String(status) }, seconds),
  });
  const server = createHttpServer({ app, log });
  const { host, port } = settings.httpAddr;
  await listen(server, host, port);
  const { port: bound } = server.address() as AddressInfo; // a TCP server that listens has one
  const shown = host.includes(':') ? `[${host}]` : host;
  return {
    url: `http://${shown}:${bound}`,
    async close(graceMs) {
      stopping.abort();
      await inventories?.close();
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeIdleConnections();
      const cut = setTimeout(() => server.closeAllConnections(), graceMs);
      await closed;
      clearTimeout(cut);
    },
  };
}

async function cancelJob(
  id: string,
  outcome: 'cancelled',
  settling: SettleDeps,
): Promise<JobRecord> {
  const job = await stopJob(id, { outcome, event: 'Cancelled on request.' }, settling);
  if (job === null) throw notFound('not_found', `There is no job '${id}'.`);
  return job;
}

function managersOf(inventories: Inventories | null): LeaseManager[] {
  return LEASE_PROVIDERS.flatMap((provider) => inventories?.manager(provider) ?? []);
}

function partialDeps({ impatient, settings, storage }: System): PartialDeps {
  const { maxLineBytes } = settings;
  return {
    store: impatient.store,
    storage,
    assemble: (source, sinks, options) => assemble(source, sinks, { ...options, maxLineBytes }),
    readEntries,
  };
}

async function checkReady({ impatient, storage }: System): Promise<Record<string, string>> {
  async function check(probe: () => Promise<unknown>): Promise<string> {
    try {
      await probe();
      return 'ok';
    } catch (error) {
      return describeError(error);
    }
  }
  const [redis, files, workers] = await Promise.all([
    check(() => impatient.redis.records.ping()),
    check(() => storage.identity()),
    check(async () => {
      const live = await impatient.store.nodes.live();
      if (live.length === 0) throw permanent('worker.none', 'no worker process is alive');
    }),
  ]);
  return { redis, storage: files, workers };
}

async function countQueued({ impatient, metrics }: System): Promise<void> {
  const states = ['waiting', 'prioritized', 'delayed', 'active'] as const;
  await Promise.all(
    impatient.queues.all.map(async (queue) => {
      const counts = await queue.getJobCounts(...states);
      for (const state of states)
        metrics.queued.set({ queue: queue.name, state }, counts[state] ?? 0);
    }),
  );
}

async function listen(server: Server, host: string, port: number): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once('error', reject);
  server.listen(port, host, resolve);
  try {
    await promise;
  } catch (error) {
    const where = `${host}:${port}`;
    const mend = 'set HTTP_ADDR to another one';
    if (errorCode(error) === 'EADDRINUSE') {
      throw permanent(
        'http.address_in_use',
        `${where} is in use by another program: stop it, or ${mend}.`,
      );
    }
    throw permanent(
      'http.cannot_listen',
      `Cannot listen on ${where} (${describeError(error)}): ${mend}.`,
    );
  }
}
