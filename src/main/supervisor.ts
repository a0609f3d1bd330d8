import { setTimeout as delay } from 'node:timers/promises';
import type { Load } from '../dispatcher/dispatcher.ts';
import { endedSnapshot } from '../observability/metrics.ts';
import type { Snapshot } from '../observability/metrics.ts';
import { handBack } from './hand-back.ts';
import { soon } from './soon.ts';
import { newProcessName } from './system.ts';
import type { System } from './system.ts';
import type { RunningWorker } from './worker.ts';
import { NO_LOAD, startWorkerProcess } from './worker-process.ts';
import type { WorkerEnd, WorkerProcess } from './worker-process.ts';

/** One that ends sooner than this after its start may end so again, however often it is started. */
const QUICK_DEATH_MS = 2_000;
/** By how many quick deaths there were in a row; so there is at most one start in 5 s in the end. */
const BACKOFF_MS = [0, 250, 500, 1_000, 2_000];
const LONGEST_BACKOFF_MS = 5_000;
const QUICK_DEATHS_TO_COMPLAIN = 5;
/** What a child may take beyond the grace to commit and give back. */
const KILL_AFTER_MS = 6_000;
const HAND_BACK_AT_END_MS = 2_000;
/** With Redis away for longer, who is to work waits for it anyway. */
const HAND_BACK_FIRST_MS = 1_000;

/**
 * Starts WORKER_PROCESSES worker processes and keeps them up: one that dies is replaced by one that stands by, and what
 * it had in hand goes back to the queues; one that dies at once again and again is started ever later. Resolves when
 * each works, or has died once; one that cannot even be started is one that has died. `close` stops them all with the
 * grace, and kills what then is left. The death of this process stops them, too.
 */
export async function startSupervisor(
  system: System,
  /** The Node of the processes; this process's own unless given. */
  node: { execPath?: string } = {},
): Promise<RunningWorker> {
  const { settings, log, metrics } = system;
  const stopping = new AbortController();
  const crew = createCrew(system, node);
  metrics.include(crew.counted);

  /** Who ends this process while it stops wants an end at once; in any other case children stop by themselves. */
  function onExit(): void {
    if (stopping.signal.aborted) crew.kill('SIGKILL');
  }
  process.on('exit', onExit);

  const numbers = Array.from({ length: settings.workerProcesses }, (_, index) => index + 1);
  const first = numbers.map((number) => crew.employ(number));
  const kept = first.map(async (worker) => keepUp(worker, crew, system, stopping.signal));
  await Promise.all(first.map(({ child }) => child.up));
  if (!stopping.signal.aborted) crew.standBy();
  return {
    load: crew.load,
    async close() {
      stopping.abort();
      crew.kill('SIGTERM');
      const late = setTimeout(() => {
        log.error({}, 'worker processes do not stop: killed');
        crew.kill('SIGKILL');
      }, settings.shutdownGrace + KILL_AFTER_MS);
      await Promise.all(kept);
      await crew.gone();
      clearTimeout(late);
      process.off('exit', onExit);
    },
  };
}

/** A process at work. */
interface Worker {
  number: number;
  child: WorkerProcess;
  begun: number;
}

interface Crew {
  /** Lets a process work: the one that stands by, if there is one. */
  employ(number: number): Worker;
  /** Starts one that stands by, unless there is one. */
  standBy(): void;
  kill(signal: NodeJS.Signals): void;
  /** Resolves when none is left. */
  gone(): Promise<void>;
  load(): Load;
  /** What all of them counted, those that have ended included: a counter never goes back. */
  counted(): Promise<Snapshot[]>;
}

function createCrew({ settings, log, namespace }: System, node: { execPath?: string }): Crew {
  const alive = new Set<WorkerProcess>();
  const silent = new Set<WorkerProcess>();
  let reserve: WorkerProcess | null = null;
  let ended: Promise<Snapshot> = Promise.resolve([]);

  function start(): WorkerProcess {
    const order = {
      settings: { ...settings, roles: ['worker' as const], workerProcesses: 0 },
      logLevel: log.level,
      namespace,
      name: newProcessName('worker'),
    };
    const child = startWorkerProcess(order, node);
    alive.add(child);
    silent.add(child);
    void child.ended.then(() => alive.delete(child));
    void child.silent.then(() => {
      silent.delete(child);
      ended = Promise.all([ended, child.report()]).then(endedSnapshot);
    });
    return child;
  }
  return {
    employ(number) {
      const child = reserve === null || reserve.isOver ? start() : reserve;
      reserve = null;
      child.go({ number });
      const { name, pid: childPid } = child;
      if (childPid !== undefined) {
        log.info({ worker: number, childPid, name }, 'worker process started');
      }
      return { number, child, begun: performance.now() };
    },
    standBy() {
      if (reserve === null || reserve.isOver) reserve = start();
    },
    kill(signal) {
      for (const child of alive) child.kill(signal);
    },
    async gone() {
      await Promise.all([...alive].map((child) => child.ended));
    },
    load: () => totalLoad(alive),
    async counted() {
      const reports = [...silent].map((child) => child.report());
      return [await ended, ...(await Promise.all(reports))];
    },
  };
}

/** Replaces a process whenever it has died, until `stopping`; resolves when the last one has ended then. */
async function keepUp(
  first: Worker,
  crew: Crew,
  system: System,
  stopping: AbortSignal,
): Promise<void> {
  let quickDeaths = 0;
  for (let worker = first; ;) {
    const { number, child, begun } = worker;
    const { name } = child;
    const end = await child.ended;
    if (stopping.aborted) {
      // Who stopped in time gave back what it had.
      if (end.code !== 0) await soon(giveBackOf(name, system), HAND_BACK_AT_END_MS);
      return;
    }
    const ranMs = Math.round(performance.now() - begun);
    // On a busy machine one may take long to load before it dies at its start.
    quickDeaths = ranMs < QUICK_DEATH_MS || !child.wasUp ? quickDeaths + 1 : 0;
    const restartInMs = BACKOFF_MS[quickDeaths] ?? LONGEST_BACKOFF_MS;
    const who = { worker: number, name, childPid: child.pid };
    reportDeath({ ...who, ...end, ranMs, quickDeaths, restartInMs }, system);
    // Before the process in its place looks for work, so that it finds this first.
    await soon(giveBackOf(name, system), HAND_BACK_FIRST_MS);
    // It rejects only when everything stops.
    await delay(restartInMs, undefined, { signal: stopping }).catch(() => undefined);
    if (stopping.aborted) return;
    worker = crew.employ(number);
    void worker.child.up.then(() => {
      if (!stopping.aborted) crew.standBy();
    });
  }
}

interface Death extends WorkerEnd {
  worker: number;
  name: string;
  childPid: number | undefined;
  ranMs: number;
  /** How many in a row ended soon after their start. */
  quickDeaths: number;
  restartInMs: number;
}

function reportDeath(death: Death, { log }: System): void {
  if (death.quickDeaths < QUICK_DEATHS_TO_COMPLAIN) log.warn(death, 'worker process ended');
  else log.error(death, 'worker process does not stay up');
}

async function giveBackOf(name: string, { log, patient }: System): Promise<void> {
  try {
    const begun = performance.now();
    const handedBack = await handBack(name, patient);
    await patient.store.nodes.leave(name);
    const ms = Math.round(performance.now() - begun);
    if (handedBack > 0) log.info({ name, handedBack, ms }, 'work of an ended process handed back');
  } catch (error) {
    // Its locks run out in a few seconds, and then others take it over anyway.
    log.error({ name, err: error }, 'work of an ended process could not be handed back');
  }
}

function totalLoad(children: Iterable<WorkerProcess>): Load {
  const total = { ...NO_LOAD };
  for (const child of children) {
    const load = child.load();
    total.unsent += load.unsent;
    total.inFlight += load.inFlight;
    total.uncommitted += load.uncommitted;
    total.budgetUsed += load.budgetUsed;
  }
  return total;
}
