import { hostname } from 'node:os';
import type { Settings } from '../../../config/schema.ts';
import { describeError, invalidInput, SluiceError } from '../../domain/errors.ts';
import { parseCompletionWindow } from '../../domain/job.ts';
import {
  ANNOTATION_PREFIX,
  mergeAnnotations,
  parseAnnotations,
  parseObject,
} from '../../domain/kubernetes/annotations.ts';
import type { BatchSpec, MergedAnnotations } from '../../domain/kubernetes/annotations.ts';
import { jobIdOfUid } from '../../domain/worker-progress.ts';
import { engineDoor } from './engine-door.ts';
import type { EngineDoor } from './engine-door.ts';
import { extensionWish } from './extension.ts';
import type { ExtensionWish } from './extension.ts';
import type { RunBatch } from './files.ts';
import type { KubernetesJob } from './kubernetes-job.ts';

/** What one worker is to do: its Job, its annotations and its settings in one. */
export interface WorkerTask {
  job: { uid: string; name: string; namespace: string };
  pod: { uid: string; name: string };
  isIndexed: boolean;
  index: number;
  /** Among how many the shards are divided; 1 where the Job is not Indexed. */
  indexes: number;
  /** Other pods are to answer the same lines at the same time. */
  isShared: boolean;
  spec: BatchSpec;
  wish: ExtensionWish;
  batch: RunBatch;
  door: EngineDoor;
  /** When the Job started, ms; null: nobody can tell. */
  startedAt: number | null;
  /** Where sources of annotations say different things. */
  conflicts: readonly string[];
}

const DAY_MS = 24 * 3_600_000;
/** Kubernetes ends pods at `activeDeadlineSeconds`: the files have to be written before. */
const LONGEST_MARGIN_MS = 60_000;

/** Annotations that environment variables stand for. */
function environmentAnnotations(settings: Settings): Record<string, string> {
  const values = {
    'input-file-id': settings.batchInputFileId,
    endpoint: settings.batchEndpoint,
    'output-file-id': settings.batchOutputFileId,
    'error-file-id': settings.batchErrorFileId,
    aibrix: settings.batchAibrix,
    opts: settings.batchOpts,
    'opts.fail_after_n_requests': settings.batchFailAfter,
  };
  return Object.fromEntries(
    Object.entries(values).map(([key, value]) => [`${ANNOTATION_PREFIX}${key}`, value ?? '']),
  );
}

/** Of each key the Job's annotation counts first, then that of its pod template, then the environment. */
function annotationsOf(settings: Settings, job: KubernetesJob | null): MergedAnnotations {
  return mergeAnnotations([
    { name: 'the Job', annotations: job?.metadata.annotations ?? {} },
    { name: 'its pod template', annotations: job?.spec.template.metadata.annotations ?? {} },
    { name: 'the environment', annotations: environmentAnnotations(settings) },
  ]);
}

/** Whether the environment alone says what to do, as AIBrix's later workers are told. */
export function isToldByEnvironment({ batchInputFileId, batchEndpoint }: Settings): boolean {
  return batchInputFileId !== undefined && batchEndpoint !== undefined;
}

/**
 * Joins what Job, pod template and environment say; the first that says something counts. Throws `worker.usage`
 * (InvalidInput) with everything that is wrong, each with what is allowed.
 */
export function createTask(
  settings: Settings,
  job: KubernetesJob | null,
  { engineContainer }: { engineContainer: string },
): WorkerTask {
  const { values, conflicts } = annotationsOf(settings, job);
  const uid = settings.jobUid ?? job?.metadata.uid ?? null;
  const parsed = parseAnnotations(values);
  const problems = [...(parsed.problems ?? []), ...wrongSettings(settings, uid)];
  const spec = 'spec' in parsed ? parsed.spec : null;
  const wish = wishOf(values['aibrix'], problems);
  if (spec === null || wish === null || uid === null || problems.length > 0) {
    throw refusal(problems);
  }
  const jobId = wish.jobId ?? jobIdOfUid(uid);
  const { endpoint, outputFileId, errorFileId } = spec;
  const { pinnedModel, outputPrefix } = wish;
  return {
    job: { uid, ...nameOf(settings, job) },
    ...placeOf(settings, job),
    spec,
    wish,
    batch: { jobId, endpoint, pinnedModel, outputFileId, errorFileId, outputPrefix },
    door: engineDoor(settings.llmReadyEndpoint, job, engineContainer),
    startedAt: startOf(job),
    conflicts,
  };
}

/** What the extension asks for; what is no JSON object was named as that already. */
function wishOf(text: string | undefined, problems: string[]): ExtensionWish | null {
  const value = text === undefined ? {} : parseObject(text);
  if (value === null) return null;
  try {
    return extensionWish(value);
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error;
    problems.push(`${ANNOTATION_PREFIX}aibrix: ${describeError(error)}`);
    return null;
  }
}

function refusal(problems: readonly string[]): SluiceError {
  const what =
    problems.length === 1
      ? 'One thing is wrong with the batch'
      : `${problems.length} things are wrong with the batch`;
  return invalidInput('worker.usage', `${what}:\n  ${problems.join('\n  ')}`);
}

function wrongSettings({ metastoreType }: Settings, uid: string | null): string[] {
  const problems: string[] = [];
  if (metastoreType === 'REDIS') {
    problems.push(
      'METASTORE_TYPE=REDIS: a batch worker needs no Redis. Leave METASTORE_TYPE out, so that its record lies beside the files, or set it to LOCAL, S3 or TOS.',
    );
  }
  if (uid === null) {
    problems.push(
      "JOB_UID is not set: fill it from metadata.labels['batch.kubernetes.io/controller-uid'].",
    );
  }
  return problems;
}

function nameOf({ jobName, jobNamespace }: Settings, job: KubernetesJob | null) {
  const { name = '', namespace = '' } = job?.metadata ?? {};
  return { name: jobName ?? name, namespace: jobNamespace ?? namespace };
}

/** Which pod and index this is. */
function placeOf(
  { podName = hostname(), podUid, jobCompletionIndex }: Settings,
  job: KubernetesJob | null,
) {
  const { completions = 1, parallelism = 1, completionMode } = job?.spec ?? {};
  const pod = { uid: podUid ?? podName, name: podName };
  // Without the Job nobody knows among how many the lines would be divided: each pod looks after all of them.
  if (completionMode !== 'Indexed' || jobCompletionIndex === undefined) {
    return { pod, isIndexed: false, index: 0, indexes: 1, isShared: parallelism > 1 };
  }
  return { pod, isIndexed: true, index: jobCompletionIndex, indexes: completions, isShared: false };
}

function startOf(job: KubernetesJob | null): number | null {
  const text = job?.status.startTime ?? job?.metadata.creationTimestamp;
  const at = Date.parse(text ?? '');
  return Number.isNaN(at) ? null : at;
}

/**
 * When the batch has to be over, ms: its window counts from the Job's start, and where none is said the Job's own
 * deadline does. Nothing of it may be later than what Kubernetes allows.
 */
export function deadlineOf(
  { spec, wish }: Pick<WorkerTask, 'spec' | 'wish'>,
  job: KubernetesJob | null,
  startedAt: number,
): number {
  const seconds = job?.spec.activeDeadlineSeconds;
  const activeMs = seconds === undefined ? Infinity : seconds * 1_000;
  const hard = startedAt + activeMs - Math.min(LONGEST_MARGIN_MS, activeMs / 10);
  if (wish.deadline !== null) return Math.min(wish.deadline, hard);
  if (spec.completionWindow !== null) {
    return Math.min(startedAt + parseCompletionWindow(spec.completionWindow), hard);
  }
  return Number.isFinite(hard) ? hard : startedAt + DAY_MS;
}
