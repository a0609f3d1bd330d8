import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { parse } from 'yaml';
import type { Settings } from '../../config/schema.ts';
import { chooseOffers } from '../domain/choose-offer.ts';
import { describeError, SluiceError, transient } from '../domain/errors.ts';
import { gpuWishes } from '../domain/gpu-wish.ts';
import { isEndpoint } from '../domain/job.ts';
import type { Endpoint, JobError, JobRecord } from '../domain/job.ts';
import { ANNOTATION_PREFIX, formatAnnotations } from '../domain/kubernetes/annotations.ts';
import type { JobResources } from '../domain/lease.ts';
import type { RemoteEnd, RemoteLook } from '../domain/remote.ts';
import { runPrefix } from '../domain/worker-progress.ts';
import type { WorkerProgress } from '../domain/worker-progress.ts';
import type { Logger } from '../observability/log.ts';
import type { Offer } from '../resources/contract.ts';
import type { Cluster } from '../resources/kubernetes/cluster.ts';
import { renderJob } from '../resources/kubernetes/job-manifest.ts';
import type { JobTerms } from '../resources/kubernetes/job-manifest.ts';
import { createClusterJobApi } from '../resources/kubernetes/jobs.ts';
import type { ClusterJobs, JobLook } from '../resources/kubernetes/jobs.ts';
import { timeOf } from '../resources/kubernetes/objects.ts';
import type { KubeJob } from '../resources/kubernetes/objects.ts';
import type { RemoteOrder, RemoteService } from '../runtimes/remote/contract.ts';
import { clientOf } from '../runtimes/remote/order.ts';
import type { Storage } from '../storage/contract.ts';
import { createRunResults } from './cluster-results.ts';
import type { RunLook, RunResults } from './cluster-results.ts';

/** What the records of jobs that a cluster runs have as their service. */
const CLUSTER_URL = 'kubernetes:jobs';
const TEMPLATE = fileURLToPath(
  new URL('../../config/kubernetes/job-template.yaml', import.meta.url),
);
const USUAL_ENDPOINT: Endpoint = '/v1/chat/completions';
/** A Job's name proves whether it is there, as soon as a request can have no effect any more. */
const UNCLEAR_MS = 35_000;
/** A Job whose batch is about to end has time to say so. */
const LEAST_SECONDS = 60;

export interface ClusterJobsOptions {
  settings: Settings;
  cluster: Cluster;
  /** What the cluster has. */
  catalog(): Promise<Offer[]>;
  terms: Omit<JobTerms, 'template'>;
  storage: Storage;
  /** Begins the names of all Jobs of this deployment. */
  stamp: string;
  log: Logger;
  /** Redis' time, ms. */
  now(): number;
}

/** A batch by its id: where its Job is, and among how many pods its lines are shared out. */
interface BatchPlace {
  namespace: string;
  name: string;
  uid: string;
  indexes: number;
}

function batchIdOf({ namespace, name, uid, indexes }: BatchPlace): string {
  return [namespace, name, uid, indexes].join('/');
}

function placeOf(batch: string): BatchPlace {
  const [namespace = '', name = '', uid = '', indexes = '1'] = batch.split('/');
  return { namespace, name, uid, indexes: Number(indexes) };
}

/** One Job a job, and its name says which: who asks twice gets the same one. */
function jobName(stamp: string, jobId: string): string {
  return `${stamp}-job-${createHash('sha256').update(jobId).digest('hex').slice(0, 16)}`;
}

interface Ground extends ClusterJobsOptions {
  jobs: ClusterJobs;
  results: RunResults;
  /** What an order is for: more of a job goes into its Job than goes over the wire to others. */
  ordered: WeakMap<RemoteOrder, JobRecord>;
}

/** A cluster that runs whole batches in Jobs, as the service that runs them in this server's place. */
export function createClusterJobs(options: ClusterJobsOptions): RemoteService {
  const { cluster, storage, log, settings } = options;
  const jobs = createClusterJobApi(cluster);
  const results = createRunResults({ storage, maxLineBytes: settings.maxLineBytes, log });
  const ground: Ground = { ...options, jobs, results, ordered: new WeakMap() };
  return {
    url: CLUSTER_URL,
    unclearMs: UNCLEAR_MS,
    order(job, _provision, file) {
      const order = orderOf(job, file);
      ground.ordered.set(order, job);
      return order;
    },
    findInput: async () => null,
    async upload({ name, content, key }, signal) {
      if (key !== undefined) return key;
      const copy = inputCopy(name.replace(/\.jsonl$/, ''));
      await storage.put(copy, content, { signal });
      return copy;
    },
    create: async (order, _key, signal) => told(async () => create(order, ground), signal),
    findBatch: async (jobId, _since, signal) => told(async () => find(jobId, ground), signal),
    look: async (batch, signal) => told(async () => lookAt(placeOf(batch), ground, signal), signal),
    cancel: async (batch, signal) =>
      told(async () => {
        const { namespace, name, uid } = placeOf(batch);
        // Before the Job is gone: what becomes of its lines is told by this.
        await results.markCancelled(uid);
        await jobs.destroy(namespace, name);
      }, signal),
    hold: async (batch, isHeld, signal) =>
      told(async () => {
        const { namespace, name, uid } = placeOf(batch);
        const found = await jobs.find(namespace, name);
        if (found?.metadata.uid === uid) await jobs.hold(namespace, found, isHeld);
      }, signal),
    release: async (batch, job, signal) =>
      told(async () => release(placeOf(batch), job, ground), signal),
    open: async (file, _signal) => storage.get(file),
    close: async () => cluster.close(),
  };
}

/** A batch that was just made, or found: nothing is known of it but what its workers have said. */
async function fresh(place: BatchPlace, { results }: Ground): Promise<RemoteLook> {
  const run = await results.look(place.uid, place.indexes);
  return remoteLook(batchIdOf(place), null, run, null);
}

async function create(order: RemoteOrder, ground: Ground): Promise<RemoteLook> {
  const { settings, cluster, stamp, terms, jobs, now } = ground;
  const job = ground.ordered.get(order);
  const resources = job?.options.resources ?? null;
  if (job === undefined || resources === null) throw new Error('an order of another service');
  const [first = ''] = await cluster.namespaces();
  const namespace = resources.namespace ?? first;
  const name = jobName(stamp, job.id);
  const path = settings.kubernetesJobTemplate ?? TEMPLATE;
  const template: unknown = parse(await readFile(path, 'utf8'));
  const manifest = renderJob(
    {
      name,
      namespace,
      annotations: annotationsOf(job, order),
      engine: resources,
      gpu: await gpuFor(resources, ground),
      replicas: resources.replicas,
      seconds: Math.max(LEAST_SECONDS, Math.ceil((job.deadline - now()) / 1_000)),
    },
    { ...terms, template },
  );
  const { metadata } = await jobs.create(namespace, name, manifest);
  return fresh({ namespace, name, uid: metadata.uid, indexes: resources.replicas }, ground);
}

async function find(jobId: string, ground: Ground): Promise<RemoteLook | null> {
  const name = jobName(ground.stamp, jobId);
  for (const namespace of await ground.cluster.namespaces()) {
    const found = await ground.jobs.find(namespace, name);
    if (found === null) continue;
    const { metadata, spec } = found;
    return fresh({ namespace, name, uid: metadata.uid, indexes: spec.completions }, ground);
  }
  return null;
}

async function lookAt(place: BatchPlace, ground: Ground, signal: AbortSignal): Promise<RemoteLook> {
  const { namespace, name, uid, indexes } = place;
  const { jobs, results } = ground;
  const found = await jobs.find(namespace, name);
  const look = found?.metadata.uid === uid ? await jobs.look(namespace, found) : null;
  const run = await results.look(uid, indexes);
  const isOne = run.isOver && indexes === 1;
  const end = isOne
    ? endOfOne(run.words[0] ?? null)
    : await endOf(place, look, run, ground, signal);
  return remoteLook(batchIdOf(place), look, run, end);
}

/** Null while the workers, or pods that come after them, may go on. */
async function endOf(
  { uid, indexes }: BatchPlace,
  look: JobLook | null,
  run: RunLook,
  { results, now }: Ground,
  signal: AbortSignal,
): Promise<RemoteEnd | null> {
  const isStopped = look === null || look.is !== 'running';
  if (!run.isOver && !isStopped) return null;
  const isCancelled = !run.isOver && (await results.isCancelled(uid));
  const outcome = outcomeOf(look, run, isCancelled);
  const errors = outcome === 'failed' ? [jobError(look)] : [];
  const endpoint = endpointOf(look?.job);
  const startedAt = timeOf(look?.job.metadata.creationTimestamp ?? '') ?? now();
  return results.finish({ uid, indexes, outcome, errors, endpoint, startedAt }, signal);
}

async function release(
  { namespace, name, uid }: BatchPlace,
  { id, remote }: JobRecord,
  { jobs, results }: Ground,
): Promise<boolean> {
  if (!(await jobs.destroy(namespace, name))) return false;
  const { output = null, error = null } = remote?.end ?? {};
  await results.remove(uid, [output, error, inputCopy(id)]);
  return true;
}

/** Of an input that the workers cannot read as it is. */
function inputCopy(jobId: string): string {
  return `${runPrefix('inputs')}${jobId}.jsonl`;
}

/** The GPU as the nodes call it; where it is full now the scheduler, or Kueue, has the Job wait. */
async function gpuFor(resources: JobResources, { catalog, terms }: ClusterJobsOptions) {
  const offers = (await catalog()).map((offer) => ({
    ...offer,
    stock: 'unknown' as const,
    error: '',
  }));
  const rules = { policy: 'simple', speeds: new Map<string, number>() } as const;
  const [found] = gpuWishes(resources).flatMap(
    (wish) => chooseOffers(offers, wish, rules).candidates,
  );
  const product = found?.type ?? terms.resource;
  return { product, count: resources.spec.accelerator.count, regions: resources.regions };
}

function orderOf(job: JobRecord, file: string): RemoteOrder {
  const { options } = job;
  return {
    input_file_id: file,
    endpoint: job.endpoint,
    completion_window: job.completionWindow,
    metadata: job.metadata,
    aibrix: {
      ...(options.pinnedModel === null ? {} : { model: options.pinnedModel }),
      client: clientOf(job),
      resource_allocation: { provision_resource_deadline: Math.floor(job.deadline / 1_000) },
    },
  };
}

function annotationsOf(job: JobRecord, order: RemoteOrder): Record<string, string> {
  return formatAnnotations({
    inputFileId: order.input_file_id,
    endpoint: job.endpoint,
    completionWindow: order.completion_window,
    sessionId: job.id,
    metadata: order.metadata,
    aibrix: order.aibrix,
  });
}

function endpointOf(job: KubeJob | undefined): Endpoint {
  const said = job?.metadata.annotations[`${ANNOTATION_PREFIX}endpoint`] ?? '';
  return isEndpoint(said) ? said : USUAL_ENDPOINT;
}

/** What the batch of one worker came to, by its own word. */
function endOfOne(word: WorkerProgress | null): RemoteEnd | null {
  if (word === null) return null;
  const { state } = word;
  if (state !== 'completed' && state !== 'expired' && state !== 'failed') return null;
  return { status: state, output: word.output?.key ?? null, error: word.error?.key ?? null };
}

/** What a batch comes to whose Job ends, or is gone, before all workers have said that they are over. */
function outcomeOf(look: JobLook | null, run: RunLook, isCancelled: boolean) {
  if (run.isOver) return 'completed' as const;
  if (isCancelled) return 'cancelled' as const;
  return look?.is === 'expired' ? ('expired' as const) : ('failed' as const);
}

function jobError(look: JobLook | null): JobError {
  const message = look === null ? 'Its Job was deleted.' : look.reason || 'Its Job failed.';
  return { code: 'kubernetes.job_failed', message, line: null, param: null };
}

function remoteLook(
  id: string,
  look: JobLook | null,
  { words }: RunLook,
  end: RemoteEnd | null,
): RemoteLook {
  const known = words.filter((word) => word !== null);
  const sum = (pick: (word: WorkerProgress) => number) =>
    known.reduce((total, word) => total + pick(word), 0);
  const waiting = known.find(
    ({ state, reason }) => (state === 'waiting' || state === 'interrupted') && reason !== '',
  );
  const failed = known.flatMap(({ errors }) => errors);
  return {
    id,
    status: end?.status ?? known[0]?.state ?? 'validating',
    end,
    completed: sum((word) => word.request_counts?.completed ?? 0),
    failed: sum((word) => word.request_counts?.failed ?? 0),
    usage: {
      inputTokens: sum(({ usage }) => usage.input_tokens),
      cachedTokens: sum(({ usage }) => usage.cached_tokens),
      outputTokens: sum(({ usage }) => usage.output_tokens),
      reasoningTokens: sum(({ usage }) => usage.reasoning_tokens),
    },
    errors: failed.length === 0 && end?.status === 'failed' ? [jobError(look)] : failed,
    reason: look?.reason || (waiting?.reason ?? ''),
  };
}

const CODES: Readonly<Record<string, string>> = {
  'kubernetes.unsent': 'remote.unsent',
  'kubernetes.busy': 'remote.busy',
  'kubernetes.quota': 'remote.busy',
  'kubernetes.unclear': 'remote.unclear',
  'kubernetes.expired': 'remote.unclear',
};

/** Says what went wrong as a `RemoteService` does. */
async function told<T>(work: () => Promise<T>, signal: AbortSignal): Promise<T> {
  try {
    return await work();
  } catch (error) {
    signal.throwIfAborted();
    if (!(error instanceof SluiceError)) throw error;
    const { code, kind, message, retryAfterMs } = error;
    if (code.startsWith('remote.')) throw error;
    const details = { cause: error, ...(retryAfterMs === null ? {} : { retryAfterMs }) };
    const passing = CODES[code];
    if (passing !== undefined) throw transient(passing, message, details);
    if (kind === 'Transient') throw transient('remote.unclear', describeError(error), details);
    throw new SluiceError('InvalidInput', 'remote.refused', message, details);
  }
}
