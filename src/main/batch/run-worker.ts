import type { Settings } from '../../../config/schema.ts';
import { describeError, invalidInput } from '../../domain/errors.ts';
import { createLogger } from '../../observability/log.ts';
import type { Logger } from '../../observability/log.ts';
import { clock } from '../clock.ts';
import { untilStopped } from '../signals.ts';
import { endsByItself } from './engine-door.ts';
import { codeOfExit, exitOf, isWorkerStop } from './exits.ts';
import type { WorkerStop } from './exits.ts';
import { ownNamespace, readJob } from './kubernetes-job.ts';
import type { KubernetesJob } from './kubernetes-job.ts';
import { createTask, isToldByEnvironment } from './task.ts';
import { endEngine } from './victim.ts';
import { work } from './work.ts';

export interface BatchWorkerOptions {
  /** The Job has to be read: the environment alone will not do. */
  loadJobFromApi?: true;
  /** Name of the engine's container in the Job. */
  llmEngineContainerName: string;
}

/** Longer than an upgrade of a control plane takes. */
const API_PATIENCE_MS = 15 * 60_000;
const END_ENGINE_MS = 20_000;

/**
 * `sluice batch-worker`: answers the batch that the annotations of its Kubernetes Job describe, with the engine in its
 * pod and nothing but storage. Returns the exit code, one of `WORKER_EXITS`.
 */
export async function runBatchWorker(
  options: BatchWorkerOptions,
  settings: Settings,
): Promise<number> {
  const log = createLogger({ level: settings.logLevel });
  const handedBack = new AbortController();
  void untilStopped().then((signal) => {
    log.info({ signal }, 'batch worker is to stop and hands back');
    const stop: WorkerStop = { stop: 'handedBack', reason: `The pod got ${signal}.` };
    handedBack.abort(stop);
  });
  let job: KubernetesJob | null = null;
  try {
    job = await loadJob(options, settings, { log, signal: handedBack.signal });
    const { llmEngineContainerName: engineContainer } = options;
    const task = createTask(settings, job, { engineContainer });
    log.debug({ spec: task.spec, engine: task.door }, 'batch as the Job asks for it');
    for (const conflict of task.conflicts) log.warn({ conflict }, 'annotations disagree');
    const exit = await work(task, job, { settings, log, handBack: handedBack.signal });
    log.info({ exit, code: codeOfExit(exit) }, 'batch worker ends');
    return codeOfExit(exit);
  } catch (error) {
    return codeOfExit(sayWhy(error, log));
  } finally {
    if (!endsByItself(job, options.llmEngineContainerName)) {
      const sleep = async (ms: number) => clock.sleep(ms, new AbortController().signal);
      await endEngine({ log, sleep, graceMs: END_ENGINE_MS });
    }
  }
}

function sayWhy(error: unknown, log: Logger) {
  const exit = exitOf(error);
  const fields = { exit, code: codeOfExit(exit) };
  if (isWorkerStop(error)) log.warn({ ...fields, reason: error.reason }, 'batch worker ends');
  else if (exit === 'software') log.fatal({ ...fields, err: error }, 'batch worker failed');
  else log.fatal({ ...fields, reason: describeError(error) }, 'batch worker failed');
  return exit;
}

/** The Job that this pod belongs to; null where there is no cluster around, and the environment says all. */
async function loadJob(
  { loadJobFromApi }: BatchWorkerOptions,
  settings: Settings,
  { log, signal }: { log: Logger; signal: AbortSignal },
): Promise<KubernetesJob | null> {
  const { kubernetesServiceHost: host, kubernetesServicePort: port } = settings;
  const mayDoWithout = loadJobFromApi !== true && isToldByEnvironment(settings);
  if (host === undefined) {
    if (mayDoWithout) return null;
    throw invalidInput(
      'worker.usage',
      'KUBERNETES_SERVICE_HOST is not set, so that the Job cannot be read: run this in a pod of a Kubernetes Job, or set BATCH_INPUT_FILE_ID, BATCH_ENDPOINT and JOB_UID.',
    );
  }
  const where = { host, port, directory: settings.serviceAccountDir };
  const { jobName: name } = settings;
  if (name === undefined) {
    throw invalidInput(
      'worker.usage',
      "JOB_NAME is not set: fill it from metadata.labels['job-name'] (valueFrom.fieldRef in the Job's template).",
    );
  }
  const namespace = settings.jobNamespace ?? (await ownNamespace(where)) ?? 'default';
  try {
    const job = await readJob(
      where,
      { name, namespace },
      {
        patienceMs: API_PATIENCE_MS,
        signal,
        sleep: clock.sleep,
        onWait: (reason, ms) => log.warn({ reason, againInMs: ms }, 'waiting for the API server'),
      },
    );
    log.info({ name, namespace, uid: job.metadata.uid }, 'job loaded');
    return job;
  } catch (error) {
    if (signal.aborted || !mayDoWithout) throw error;
    log.warn(
      { reason: describeError(error) },
      'the Job cannot be read: annotations on it are not heeded, BATCH_INPUT_FILE_ID and BATCH_ENDPOINT are',
    );
    return null;
  }
}
