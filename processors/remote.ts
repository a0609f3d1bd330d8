import type { Verdict } from '../queues/worker.ts';
import { SluiceError, transient } from '../src/domain/errors.ts';
import { inputKey } from '../src/domain/file.ts';
import { isFinal, isPaused, wantsEngines } from '../src/domain/job.ts';
import type { JobError, JobRecord } from '../src/domain/job.ts';
import type { ProvisionRecord } from '../src/domain/provision.ts';
import { newRemoteBatch } from '../src/domain/remote.ts';
import type { RemoteBatch, RemoteLook } from '../src/domain/remote.ts';
import type { RemoteService } from '../src/runtimes/remote/contract.ts';
import { stopIfChanged } from './changed-input.ts';
import type { Deps } from './deps.ts';
import { settle, stopJob } from './settle.ts';

/** A job that a remote service runs. */
export type RemoteJob = JobRecord & { remote: RemoteBatch };

export function isRemote(job: JobRecord): job is RemoteJob {
  return job.remote !== null;
}

/** Somebody else has written what is known of the batch: read it again. */
export const AGAIN_MS = 100;
export const LOOK_MS = { first: 500, longest: 5_000 } as const;
export const WAIT_MS = { first: 1_000, longest: 30_000 } as const;
/** The wait between looks grows with how long the batch has run: a look costs at most a twentieth of that. */
export const SHARE_OF_RUN = 20;
export const SHARE_OF_WAIT = 4;
/** A service that was just started may not know yet what it has. */
export const LOST_AFTER_MS = 60_000;
const RELEASE_LOOK_MS = 1_000;
const RELEASE_AGAIN_MS = 5_000;
export const BATCH_LOST = 'remote.batch_lost';

const NO_CLUSTER = 'This server runs no Jobs in Kubernetes: start it with PROVISIONER=kubernetes.';

/** Where the batch of a new job is to run; null: here. */
export function remoteFor(
  job: Pick<JobRecord, 'options'>,
  deps: Pick<Deps, 'remote' | 'clusterJobs'>,
): RemoteBatch | null {
  const service = isClusterJob(job) ? deps.clusterJobs : deps.remote;
  return service === null ? null : newRemoteBatch(service.url);
}

/** Whether a cluster is to run the whole job. */
function isClusterJob({ options }: Pick<JobRecord, 'options'>): boolean {
  return options.resources?.form === 'job';
}

/** Why a job cannot be run by a remote service; null: it can. */
export function whyNotRemote(
  job: JobRecord,
  deps: Pick<Deps, 'remote' | 'clusterJobs'>,
): string | null {
  const { options } = job;
  if (isClusterJob(job)) return deps.clusterJobs === null ? NO_CLUSTER : null;
  if (deps.remote === null) return null;
  if (options.resources?.machine !== undefined) {
    return 'A batch at METADATA_SERVICE_URL is not run on a machine of yours: unset METADATA_SERVICE_URL.';
  }
  if (options.resources?.providers.includes('kubernetes') === true) {
    return 'A batch at METADATA_SERVICE_URL is not run on an engine in Kubernetes: take kubernetes out of PROVISIONER, or unset METADATA_SERVICE_URL.';
  }
  const replicas = options.resources?.replicas ?? 1;
  if (replicas === 1) return null;
  return `A batch at METADATA_SERVICE_URL uses one machine, not ${replicas}: ask for 1 replica, or unset METADATA_SERVICE_URL.`;
}

/**
 * Submission's part for a job that a remote service runs: makes its batch there, exactly one, and looks at it until it
 * is over. Never waits: what is not there yet is looked for again.
 */
export async function followRemote(
  provision: ProvisionRecord,
  job: RemoteJob,
  signal: AbortSignal,
  deps: Deps,
): Promise<Verdict> {
  try {
    const service = serviceOf(job, deps);
    const task = { job, service, signal };
    const verdict =
      provision.state === 'starting'
        ? await submit(task, provision, deps)
        : await follow(task, provision, deps);
    const isTold = provision.state === 'serving' && service.hold !== undefined;
    if (provision.reason !== '' && !isTold) await note(provision, job, '', deps);
    return verdict;
  } catch (error) {
    signal.throwIfAborted();
    if (await stopIfChanged(job.id, error, deps)) return 'done';
    if (!isRemoteTrouble(error)) throw error;
    return afterTrouble(provision, job, error, deps);
  }
}

export interface RemoteTask {
  job: RemoteJob;
  service: RemoteService;
  signal: AbortSignal;
}

/** The service that has the job's batch. Throws `remote.not_configured` (Transient) where this process has another one. */
export function serviceOf(
  job: RemoteJob,
  deps: Pick<Deps, 'remote' | 'clusterJobs'>,
): RemoteService {
  const { remote } = job;
  if (deps.remote?.url === remote.url) return deps.remote;
  if (deps.clusterJobs?.url === remote.url) return deps.clusterJobs;
  if (isClusterJob(job)) throw transient('remote.not_configured', NO_CLUSTER);
  throw transient(
    'remote.not_configured',
    `The batch of this job runs at ${remote.url}: set METADATA_SERVICE_URL to that.`,
  );
}

export function isRemoteTrouble(error: unknown): error is SluiceError {
  return error instanceof SluiceError && error.code.startsWith('remote.');
}

async function submit(
  { job, service, signal }: RemoteTask,
  provision: ProvisionRecord,
  deps: Deps,
): Promise<Verdict> {
  const { remote } = job;
  const task = { job, service, signal };
  if (remote.batch === null) {
    return remote.file === null ? sendInput(task, deps) : makeBatch(task, provision, deps);
  }
  const moved = await deps.advanceProvision(provision, 'serving', { reason: '' });
  if (moved !== 'stale') await settle(job.id, deps);
  return 'done';
}

/** Writes what is known of the batch, and has it read again. */
export async function keep(
  job: RemoteJob,
  change: Partial<RemoteBatch>,
  deps: Deps,
): Promise<Verdict> {
  const now = { ...job.remote, ...change };
  const isKept = await deps.store.jobs.noteRemote(job.id, { before: job.remote, now });
  return { againInMs: isKept ? 0 : AGAIN_MS };
}

async function sendInput({ job, service, signal }: RemoteTask, deps: Deps): Promise<Verdict> {
  const { remote } = job;
  const name = `${job.id}.jsonl`;
  const isWhole = job.options.validation === 'strict';
  const bytes = isWhole ? ((await deps.store.files.get(job.input))?.bytes ?? null) : null;
  if (remote.asked !== null && bytes !== null) {
    const file = await service.findInput({ name, bytes }, signal);
    if (file !== null) return keep(job, { file, asked: null }, deps);
  }
  const asked = { ...remote, asked: remote.asked ?? { at: deps.now(), by: deps.newToken() } };
  if (!(await deps.store.jobs.noteRemote(job.id, { before: remote, now: asked }))) {
    return { againInMs: AGAIN_MS };
  }
  const input = await deps.storage.get(inputKey(job));
  try {
    const shards = deps.store.shards.accepted(job.id, 0, job.shards);
    const content = isWhole ? input : deps.goodLines(input, shards);
    const isOwn = isWhole && job.options.inputLocation === null;
    const key = isOwn ? { key: inputKey(job) } : {};
    const file = await service.upload({ name, content, bytes, ...key }, signal);
    return await keep({ ...job, remote: asked }, { file, asked: null }, deps);
  } finally {
    input.destroy();
  }
}

/**
 * Makes the batch. That it is asked for is on record first: whoever finds that, and no batch, looks for one that
 * carries the job's id before it asks again, until none can turn up any more.
 */
async function makeBatch(
  { job, service, signal }: RemoteTask,
  provision: ProvisionRecord,
  deps: Deps,
): Promise<Verdict> {
  const { remote } = job;
  if (remote.asked !== null) {
    const found = await service.findBatch(job.id, job.createdAt, signal);
    if (found !== null) return keep(job, { batch: found.id }, deps);
    if (deps.now() - remote.asked.at < service.unclearMs) {
      const message = `${service.url} has not said whether it has the batch: it is looked for before it is asked again.`;
      throw transient('remote.unclear', message);
    }
  }
  const order = service.order(job, provision, remote.file ?? '');
  const asked = { ...job, remote: { ...remote, asked: { at: deps.now(), by: deps.newToken() } } };
  const { before, now } = { before: remote, now: asked.remote };
  if (!(await deps.store.jobs.noteRemote(job.id, { before, now }))) return { againInMs: AGAIN_MS };
  // Who stops a job looks for a batch only where it was asked for: from here on either of the two sees the other.
  const seen = await deps.store.jobs.get(job.id);
  if (seen === null || !wantsEngines(seen.state)) return keep(asked, { asked: null }, deps);
  let made: RemoteLook;
  try {
    made = await service.create(order, provision.id, signal);
  } catch (error) {
    if (isRemoteTrouble(error) && error.code !== 'remote.unclear') {
      await keep(asked, { asked: null }, deps);
    }
    throw error;
  }
  deps.log.info({ jobId: job.id, remote: made.id, url: service.url }, 'remote batch made');
  const verdict = await keep(asked, { batch: made.id }, deps);
  await cancelUnlessKept({ job, service, signal }, made.id, deps);
  return verdict;
}

/** A job that was over before its batch was on record has nobody who would ever look at that. */
async function cancelUnlessKept(
  { job, service, signal }: RemoteTask,
  batch: string,
  { store }: Deps,
): Promise<void> {
  const now = await store.jobs.get(job.id);
  if (now?.remote?.batch !== batch) await service.cancel(batch, signal);
}

async function follow(
  { job, service, signal }: RemoteTask,
  provision: ProvisionRecord,
  deps: Deps,
): Promise<Verdict> {
  const look = await lookAt(job, service, signal, deps);
  if (look === null) return { againInMs: AGAIN_MS };
  if (look.end !== null) return finish(job, look, deps);
  const { batch } = job.remote;
  if (batch !== null) await service.hold?.(batch, isPaused(job), signal);
  if (look.reason !== undefined) await tell(provision, job, look.reason, deps);
  const since = deps.now() - (provision.enteredAt.serving ?? deps.now());
  return { againInMs: within(LOOK_MS, since / SHARE_OF_RUN) };
}

/** Says for people what the batch waits for, each reason once in the job's history. */
async function tell(
  provision: ProvisionRecord,
  job: RemoteJob,
  reason: string,
  deps: Deps,
): Promise<void> {
  if (reason === provision.reason) return;
  if (reason !== '') await deps.store.jobs.tell(job.id, reason);
  await note(provision, job, reason, deps);
}

/** Gives back what the batch of a job that is over still has at its service; null: nothing is left of it. */
export async function releaseRemote(
  job: RemoteJob,
  signal: AbortSignal,
  deps: Deps,
): Promise<Verdict | null> {
  const { batch } = job.remote;
  // Nothing of a job that is run here, or by a metadata service, is left where it ran.
  if (batch === null || !isClusterJob(job)) return null;
  // Whoever stops it, and whoever copies its results, needs it yet.
  if (!isFinal(job.state)) return wantsEngines(job.state) ? null : { againInMs: RELEASE_LOOK_MS };
  try {
    const isGone = (await serviceOf(job, deps).release?.(batch, job, signal)) ?? true;
    return isGone ? null : { againInMs: RELEASE_LOOK_MS };
  } catch (error) {
    signal.throwIfAborted();
    if (!isRemoteTrouble(error)) throw error;
    deps.log.warn({ jobId: job.id, reason: error.message }, 'remote batch not given back yet');
    return { againInMs: RELEASE_AGAIN_MS };
  }
}

/** Looks at the batch and writes down how far it is; null where somebody else was faster. */
export async function lookAt(
  { id, remote }: RemoteJob,
  service: RemoteService,
  signal: AbortSignal,
  { store }: Deps,
): Promise<RemoteLook | null> {
  const look = remote.batch === null ? null : await service.look(remote.batch, signal);
  if (look === null) throw transient(BATCH_LOST, `${remote.url} knows no batch ${remote.batch}.`);
  const now = { ...remote, end: look.end };
  return (await store.jobs.noteRemote(id, { before: remote, now }, look)) ? look : null;
}

/** The batch is over: so is what the job wants of its provisions. Its files are copied when it is finalized. */
async function finish(job: RemoteJob, { end, errors }: RemoteLook, deps: Deps): Promise<Verdict> {
  if (end?.status === 'completed') {
    const event = 'The remote batch is completed; copying its results.';
    const moved = await deps.advanceJob(job, 'finalizing', { outcome: 'completed', event });
    if (moved === 'stale') return { againInMs: AGAIN_MS };
    await settle(job.id, deps);
    return 'done';
  }
  const outcome = end?.status ?? 'failed';
  const event = `The remote batch is ${outcome}.`;
  const why = outcome === 'failed' ? { errors: failuresOf(job, errors), reason: event } : {};
  await stopJob(job.id, { outcome, event, ...why }, deps);
  return 'done';
}

/** Its lines are those of the input only where none was left out. */
function failuresOf({ options }: JobRecord, errors: readonly JobError[]): JobError[] {
  if (errors.length === 0) {
    const message = 'The remote batch failed, and does not say why.';
    return [{ code: 'remote.failed', message, line: null, param: null }];
  }
  if (options.validation === 'strict') return [...errors];
  return errors.map((error) => ({ ...error, line: null }));
}

/** What becomes of a job whose service cannot be asked, or refuses. */
async function afterTrouble(
  provision: ProvisionRecord,
  job: RemoteJob,
  error: SluiceError,
  deps: Deps,
): Promise<Verdict> {
  const { code, message } = error;
  const isNews = message !== provision.reason;
  if (isNews) {
    await note(provision, job, message, deps);
    deps.log.warn({ jobId: job.id, code, reason: message }, 'remote service waited for');
  }
  const stands = isNews ? 0 : deps.now() - (provision.reasonAt ?? deps.now());
  const errors = [{ code, message, line: null, param: null }];
  if (code === 'remote.refused' && provision.state === 'starting') {
    const event = 'The remote service refuses the batch.';
    await stopJob(job.id, { outcome: 'submit_failed', event, reason: message, errors }, deps);
    return 'done';
  }
  if (code === BATCH_LOST && stands > LOST_AFTER_MS) {
    const event = 'The remote service has lost the batch.';
    await stopJob(job.id, { outcome: 'failed', event, reason: message, errors }, deps);
    return 'done';
  }
  const wait = within(WAIT_MS, stands / SHARE_OF_WAIT);
  return { againInMs: Math.max(wait, Math.min(error.retryAfterMs ?? 0, WAIT_MS.longest)) };
}

/** Says for people what the service is waited for; '' that it is not any more. */
async function note(
  { id }: ProvisionRecord,
  job: JobRecord,
  reason: string,
  { store }: Deps,
): Promise<void> {
  await store.provisions.note(id, reason);
  const now = await store.jobs.get(job.id);
  if (now !== null && wantsEngines(now.state)) await store.jobs.note(job.id, reason);
}

export function within({ first, longest }: { first: number; longest: number }, ms: number): number {
  return Math.min(Math.max(ms, first), longest);
}
