import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import type { Readable } from 'node:stream';
import { createAdvance } from '../../queues/advance.ts';
import { concurrencyOf } from '../../queues/catalog.ts';
import { startWorker } from '../../queues/worker.ts';
import type { Attempt, QueueWorker } from '../../queues/worker.ts';
import type { Deps, SettleDeps } from '../../processors/deps.ts';
import { processors } from '../../processors/index.ts';
import { createEarlyFiles } from '../../processors/early-files.ts';
import type { EarlyFiles } from '../../processors/early-files.ts';
import { awaitInputs } from '../../processors/inputs.ts';
import { createFailedTries } from '../../processors/give-up.ts';
import { finishOrLeave } from '../../processors/settle.ts';
import { Seats } from '../../processors/seats.ts';
import { wakeLooks } from '../../processors/submission.ts';
import { answerTrouble } from '../../processors/trouble.ts';
import { Watches } from '../../processors/watch.ts';
import { assemble } from '../dispatcher/assemble.ts';
import { scanModel } from '../dispatcher/json-scan.ts';
import { findLost } from '../dispatcher/lost-parts.ts';
import { Dispatcher } from '../dispatcher/dispatcher.ts';
import type { Load } from '../dispatcher/dispatcher.ts';
import { goodLines } from '../dispatcher/remote-input.ts';
import { selectLines } from '../dispatcher/select-lines.ts';
import { describeError, SluiceError, transient } from '../domain/errors.ts';
import { segmentKey } from '../domain/file.ts';
import { isFinal, JOB } from '../domain/job.ts';
import type { JobRecord, JobState } from '../domain/job.ts';
import { PROVISION } from '../domain/provision.ts';
import type { ProvisionRecord, ProvisionState } from '../domain/provision.ts';
import { createStaticManager } from '../resources/static/index.ts';
import type { Runtime } from '../runtimes/contract.ts';
import type { JobChange } from '../store/jobs.ts';
import type { ProvisionChange } from '../store/provisions.ts';
import { clock } from './clock.ts';
import { openClusterJobs } from './kubernetes.ts';
import { assembleRemotely, openRemote } from './remote.ts';
import { createIsolation, createShareEngine } from './engine-share.ts';
import { openReach } from './reach.ts';
import { planInput } from './plan-input.ts';
import { soon } from './soon.ts';
import { version } from './version.ts';
import type { Connected, System } from './system.ts';

const BEAT_MS = 2_000;
/** To commit and give back; with Redis away, nothing of that can be done. */
const AFTER_GRACE_MS = 2_000;

/** What moves and settles records; every role that writes them shares it. */
export function settleDeps(
  system: System,
  { store, queues }: Pick<Connected, 'store' | 'queues'>,
  ahead: () => number,
): SettleDeps {
  const { settings, log, metrics } = system;
  const add = queues.add.bind(queues);
  const advanceJob = createAdvance<JobRecord, JobState, JobChange>(
    JOB,
    async (job, to, change) => {
      const moved = await store.jobs.move(job, to, change);
      if (moved !== 'stale' && isFinal(to)) metrics.jobsFinished.inc({ outcome: to });
      return moved;
    },
    add,
  );
  return {
    store,
    add,
    advanceJob,
    advanceProvision: createAdvance<ProvisionRecord, ProvisionState, ProvisionChange>(
      PROVISION,
      (provision, to, change) => store.provisions.move(provision, to, change),
      add,
    ),
    now: clock.now,
    pauseReleaseMs: settings.pauseRelease * 1_000,
    manager: createStaticManager(settings),
    ahead,
    log,
  };
}

export interface RunningWorker {
  /** What it has in hand now, for a progress bar. */
  load(): Load;
  close(): Promise<void>;
}

/**
 * Serves the queues of this process. `close` takes no new shards, lets lines in flight be answered for the grace,
 * commits what was answered, and gives shards back.
 */
export async function startWorkers(system: System): Promise<RunningWorker> {
  const { settings, log, patient } = system;
  const stopping = new AbortController();
  const graceOver = new AbortController();
  let heartbeat: Heartbeat | null = null;
  // Deadlines and times of records are Redis' time, and so is what they are compared with.
  const now = () => clock.now() + (heartbeat?.clockOffset ?? 0);
  const ahead = () => Math.max(2, (heartbeat?.dispatchers ?? 1) + 1);
  const settling = settleDeps(system, patient, ahead);
  const watches = new Watches({
    store: patient.store,
    now,
    onEngines: () => dispatcher.enginesChanged(),
    log,
  });
  const reach = await openReach(system, now);
  const { runtime, leasing, machines } = reach;
  const remote = openRemote(settings);
  const clusterJobs = await openClusterJobs(system, leasing, now);
  const processes = () => heartbeat?.dispatchers ?? 1;
  const early = createEarlyFiles({ name: system.name, deps: () => deps });
  const dispatcher = createDispatcher(system, { settling, runtime, processes, early });
  const deps: Deps = {
    ...settling,
    ...processorParts(system, runtime),
    leasing,
    machines,
    now,
    dispatcher,
    watches,
    failedTries: createFailedTries(),
    early,
    remote,
    clusterJobs,
    crashApartMs: settings.crashApart,
    graceOver: graceOver.signal,
  };
  const stops = await patient.store.jobs.subscribeStops((jobId) => watches.poke(jobId));
  const workers = serveQueues(system, deps, stopping.signal);
  const heart = await startHeartbeat(system, dispatcher);
  heartbeat = heart;
  return {
    load: () => dispatcher.load,
    async close() {
      stopping.abort(new Error('the process stops'));
      const grace = setTimeout(
        () => graceOver.abort(new Error('the grace is over')),
        settings.shutdownGrace,
      );
      const closing = Promise.all([...workers, early].map((each) => each.close()));
      await soon(closing, settings.shutdownGrace + AFTER_GRACE_MS);
      clearTimeout(grace);
      await dispatcher.close();
      await soon(reach.close(), AFTER_GRACE_MS);
      await remote?.close();
      await clusterJobs?.close();
      await soon(stops.close(), AFTER_GRACE_MS);
      await soon(heart.close(), AFTER_GRACE_MS);
    },
  };
}

function serveQueues(system: System, deps: Deps, stopping: AbortSignal): QueueWorker[] {
  const { settings, log, patient, namespace, name } = system;
  const seats = new Seats();
  const dispatch = seats.occupy(awaitInputs(processors.dispatch));
  const workers = settings.queues.map((queue) =>
    startWorker({
      queue,
      concurrency: concurrencyOf(queue, settings.plannerWorkerCount),
      connection: patient.redis.queues,
      namespace,
      name,
      processor: queue === 'dispatch' ? dispatch : processors[queue],
      deps,
      stopping,
      onAttempt: (attempt) => report(system, attempt),
      onError: (error) => log.debug({ queue, err: error }, 'queue error'),
    }),
  );
  seats.follow(workers.find(({ queue }) => queue === 'dispatch'));
  return workers;
}

function processorParts(system: System, runtime: Runtime) {
  const { maxLineBytes } = system.settings;
  return {
    store: system.patient.store,
    storage: system.storage,
    runtime,
    selectLines: (...[input, errors, shards]: Parameters<Deps['selectLines']>) =>
      selectLines(input, errors, { maxLineBytes, shards }),
    goodLines: (...[input, shards]: Parameters<Deps['goodLines']>) =>
      goodLines(input, shards, maxLineBytes),
    assembleRemote: assembleRemotely(system.settings),
    readPlan: planInput.bind(null, system.settings),
    findLost,
    assemble: (...[source, sinks, options]: Parameters<Deps['assemble']>) =>
      assemble(source, sinks, { ...options, maxLineBytes }),
    scanModel,
    version: version(),
    newToken: () => randomBytes(16).toString('hex'),
  };
}

function createDispatcher(
  system: System,
  parts: {
    settling: SettleDeps;
    runtime: Runtime;
    processes: () => number;
    early: Pick<EarlyFiles, 'committed'>;
  },
): Dispatcher {
  const { settling, runtime, processes, early } = parts;
  const { settings, log, metrics } = system;
  const { store } = system.patient;
  return new Dispatcher({
    clock,
    log,
    memoryBudget: settings.memoryBudget,
    maxResponseBytes: settings.maxResponseBytes,
    timeouts: {
      connect: settings.connectTimeout,
      firstByte: settings.requestTimeout,
      betweenBytes: settings.byteTimeout,
      answer: settings.answerTimeout,
    },
    maxLineBytes: settings.maxLineBytes,
    connect: (address) => runtime.connect(address),
    weightOf: (address) => settings.engineWeights[settings.engineUrls.indexOf(address)] ?? 1,
    processes,
    share: createShareEngine(system.name, store.engines),
    isolation: createIsolation(system.name, store.engines, log),
    limits: {
      engineLimits: {
        requestsPerSecond: settings.engineRequestsPerSecond ?? null,
        tokensPerMinute: settings.engineTokensPerMinute ?? null,
      },
      keyLimits: {
        requestsPerSecond: settings.keyRequestsPerSecond ?? null,
        tokensPerMinute: settings.keyTokensPerMinute ?? null,
      },
      draw: (...draw) => store.limits.draw(...draw),
    },
    openInput: (key, range) => openInput(system, key, range),
    newSegmentId: () => randomBytes(16).toString('hex'),
    putSegment: createSegmentStore(system),
    async commit(jobId, segment, parts) {
      const reply = await store.shards.commit(jobId, segment, parts);
      // Who keeps the writing of files to other processes means these, too.
      if (settings.queues.includes('release')) early.committed(jobId, segment.bytes);
      if (reply.last) await finishOrLeave(jobId, settling);
      return reply.parts;
    },
    crashApartMs: settings.crashApart,
    markAlone: (...mark) => store.shards.markAlone(...mark),
    onRetry: (reason) => metrics.retries.inc({ reason }),
    onAnswered: (...answer) => metrics.answered(...answer),
    onTrouble: (jobId, trouble) => void answerTrouble(jobId, trouble, settling),
    onEngineDown(address, reason) {
      log.warn({ address, reason }, 'engine does not answer, sending stopped');
      void wakeLooks(address, settling);
    },
  });
}

/** Stores segments; while storage refuses those of a job, the job says why it stands still. */
function createSegmentStore({ storage, patient, metrics, log }: System) {
  const refused = new Set<string>();
  /** Words for whoever looks at the job: whether they arrive decides nothing. */
  function say(jobId: string, reason: string): void {
    patient.store.jobs
      .note(jobId, reason)
      .catch((error: unknown) => log.warn({ jobId, err: error }, 'reason could not be noted'));
  }
  return async function putSegment(jobId: string, segmentId: string, chunks: Buffer[]) {
    try {
      const stored = await storage.put(segmentKey(jobId, segmentId), chunks);
      if (refused.delete(jobId)) say(jobId, '');
      metrics.segments.inc();
      metrics.segmentBytes.inc(stored.bytes);
      return stored;
    } catch (error) {
      refused.add(jobId);
      say(jobId, `Answers cannot be stored: ${describeError(error)}`);
      throw error;
    }
  };
}

interface Heartbeat {
  /** Live processes that take shards, this one included. */
  readonly dispatchers: number;
  /** What has to be added to this host's clock for Redis' time, ms. */
  readonly clockOffset: number;
  close(): Promise<void>;
}

/** Tells the others every two seconds that this process lives, and learns how many they are. */
async function startHeartbeat(system: System, dispatcher: Dispatcher): Promise<Heartbeat> {
  const { settings, log, metrics, name: id } = system;
  const { nodes } = system.patient.store;
  const queues = [...settings.queues];
  const node = { id, roles: [...system.roles], queues, pid: process.pid, host: hostname() };
  let dispatchers = 1;
  let clockOffset = 0;
  async function beat(): Promise<void> {
    try {
      clockOffset = (await nodes.beat(node)) - clock.now();
      dispatchers = await nodes.dispatchers();
      metrics.inFlight.set(dispatcher.load.inFlight);
      metrics.budgetBytes.set(dispatcher.load.budgetUsed);
    } catch (error) {
      // The next one is due in a moment, and others count this process in until several are missing.
      log.warn({ err: error }, 'heartbeat failed');
    }
  }
  await beat();
  const beating = setInterval(() => void beat(), BEAT_MS);
  return {
    get dispatchers() {
      return dispatchers;
    },
    get clockOffset() {
      return clockOffset;
    },
    async close() {
      clearInterval(beating);
      await nodes.leave(id);
    },
  };
}

/** An input that is away may come back, as a disk or a bucket does: its lines wait, and are not given up. */
async function openInput(
  { storage }: System,
  key: string,
  range: { start: number; end: number },
): Promise<Readable> {
  try {
    return await storage.get(key, range);
  } catch (error) {
    const isMissing = error instanceof SluiceError && error.kind === 'NotFound';
    throw isMissing ? transient('input.missing', 'The input file is not in storage.') : error;
  }
}

function report({ log, metrics }: System, attempt: Attempt): void {
  const { queue, result, ms, error, ...rest } = attempt;
  metrics.attemptSeconds.observe({ queue, result }, ms / 1_000);
  const fields = { queue, result, ms: Math.round(ms), ...rest };
  if (error === undefined) log.debug(fields, 'attempt');
  else if (result === 'stop') log.debug({ ...fields, err: error }, 'attempt');
  else log.error({ ...fields, err: error }, 'attempt');
}
