import { invalidInput } from './errors.ts';
import type { JobResources } from './lease.ts';
import { NO_LIMITS } from './rate-limit.ts';
import type { JobLimits } from './rate-limit.ts';
import type { RemoteBatch } from './remote.ts';
import type { RetryPolicy } from './retry.ts';

/** The five queues, in the order in which a job meets them. */
export const QUEUE_NAMES = [
  'planning',
  'provisioning',
  'submission',
  'dispatch',
  'release',
] as const;
export type QueueName = (typeof QUEUE_NAMES)[number];

/** What a stopped or finished job ends as; each is also a final state. */
export const OUTCOMES = [
  'completed',
  'failed',
  'expired',
  'cancelled',
  'resource_failed',
  'submit_failed',
] as const;
export type Outcome = (typeof OUTCOMES)[number];

export const JOB_STATES = [
  'queued',
  'resource_preparing',
  'submitting',
  'in_progress',
  'cancelling',
  'finalizing',
  ...OUTCOMES,
] as const;
export type JobState = (typeof JOB_STATES)[number];

/**
 * The job's state table: no other file gives a state a successor or a queue.
 * A state without a queue is moved on by the job's provisions or shards, which have queues of their own.
 */
export const JOB = {
  queued: {
    queue: 'planning',
    next: [
      'resource_preparing',
      // No line of it can be asked, so that it needs no engine.
      'finalizing',
      'failed',
      'expired',
      'cancelled',
      'resource_failed',
      'submit_failed',
    ],
  },
  resource_preparing: { queue: null, next: ['submitting', 'finalizing', 'cancelling'] },
  submitting: {
    queue: null,
    next: ['in_progress', 'finalizing', 'resource_preparing', 'cancelling'],
  },
  in_progress: {
    queue: null,
    next: ['finalizing', 'submitting', 'resource_preparing', 'cancelling'],
  },
  cancelling: { queue: 'release', next: ['finalizing'] },
  finalizing: { queue: 'release', next: [...OUTCOMES, 'resource_preparing'] },
  completed: { queue: null, next: [] },
  failed: { queue: null, next: [] },
  expired: { queue: null, next: [] },
  cancelled: { queue: null, next: [] },
  resource_failed: { queue: null, next: [] },
  submit_failed: { queue: null, next: [] },
} as const satisfies Record<JobState, { queue: QueueName | null; next: readonly JobState[] }>;

export function isFinal(state: JobState): state is Outcome {
  return JOB[state].next.length === 0;
}

/** The same for a text that came from outside. */
export function isFinalName(text: string): boolean {
  return OUTCOMES.some((outcome) => outcome === text);
}

/** From `finalizing` on, records of shards stand still: commits are answered `sealed`. */
export function isSealed(state: JobState): boolean {
  return state === 'finalizing' || isFinal(state);
}

/** True while the job still wants engines: it waits for one or sends lines. */
export function wantsEngines(state: JobState): boolean {
  return state === 'resource_preparing' || state === 'submitting' || state === 'in_progress';
}

/** True until a job has its outcome: only then it can be paused and resumed, and its deadline counts. */
export function isOpen(state: JobState): boolean {
  return state === 'queued' || wantsEngines(state);
}

/** Whether somebody holds the job: what is in flight is answered, and nothing new begins. */
export function isPaused(job: { state: JobState; pausedAt: number | null }): boolean {
  return job.pausedAt !== null && isOpen(job.state);
}

/**
 * Where a job goes when somebody stops it with `outcome`, or null where it stays: it is final, or it has an outcome
 * already. Before planning has read the input any outcome is final at once; from then on every line is in the output
 * or the error file at the end, answered or not.
 */
export function stopTarget(
  job: { state: JobState },
  outcome: Exclude<Outcome, 'completed'>,
): JobState | null {
  if (isSealed(job.state) || job.state === 'cancelling') return null;
  return job.state === 'queued' ? outcome : 'cancelling';
}

/**
 * The class that a job has now: one above what was asked for where it would miss its deadline at the rate of its lines
 * so far. Nothing is known of one that has no answer yet.
 */
export function classNow(
  job: Pick<JobRecord, 'options' | 'lines' | 'completed' | 'failed' | 'enteredAt' | 'deadline'>,
  now: number,
): JobClass {
  const asked = JOB_CLASSES.indexOf(job.options.priority);
  return JOB_CLASSES[isLate(job, now) ? Math.max(0, asked - 1) : asked] ?? 'normal';
}

function isLate(
  job: Pick<JobRecord, 'lines' | 'completed' | 'failed' | 'enteredAt' | 'deadline'>,
  now: number,
): boolean {
  const begun = job.enteredAt.in_progress;
  const done = job.completed + job.failed;
  if (begun === undefined || done === 0) return false;
  const left = job.lines - done;
  return now + (left * (now - begun)) / done > job.deadline;
}

/** The words of OpenAI's batch status. */
export type BatchStatus =
  | 'validating'
  | 'failed'
  | 'in_progress'
  | 'finalizing'
  | 'completed'
  | 'expired'
  | 'cancelling'
  | 'cancelled';

/** OpenAI's status of a job; one that fell back after it had begun is still shown `in_progress`. */
export function batchStatus(job: {
  state: JobState;
  outcome: Outcome | null;
  begun: boolean;
}): BatchStatus {
  switch (job.state) {
    case 'queued':
    case 'resource_preparing':
    case 'submitting':
      return job.begun ? 'in_progress' : 'validating';
    case 'cancelling':
    case 'finalizing':
      return job.outcome === 'cancelled' ? 'cancelling' : 'finalizing';
    case 'resource_failed':
    case 'submit_failed':
      return 'failed';
    case 'in_progress':
    case 'completed':
    case 'failed':
    case 'expired':
    case 'cancelled':
      return job.state;
  }
}

/** Token usage summed over answers, in OpenAI's words. */
export interface Usage {
  inputTokens: number;
  cachedTokens: number;
  outputTokens: number;
  reasoningTokens: number;
}

/** One reason why a job failed: OpenAI's BatchError. `line` is the physical line of the input file, from 1. */
export interface JobError {
  code: string;
  message: string;
  line: number | null;
  param: string | null;
}

/** How planning cuts the input; stored on the job at creation so that every planner cuts alike. */
export interface Cut {
  lines: number;
  bytes: number;
}

/** How the window of an engine adapts, in the words of the Console's client settings. */
export interface Adaptive {
  /** The window may become so many times as large as it began; null: as large as the job's concurrency. */
  maxFactor: number | null;
  /** Healthy answers before each step up. */
  healthyWindow: number;
  /** Lines by which it grows a step, once it had to shrink. */
  additiveIncrease: number;
}

export const DEFAULT_ADAPTIVE: Adaptive = {
  maxFactor: null,
  healthyWindow: 8,
  additiveIncrease: 1,
};

export const ON_ERROR_RATE = ['pause', 'fail', 'continue'] as const;
export type OnErrorRate = (typeof ON_ERROR_RATE)[number];

/** Whose turn it is: shards of a class take turns, and go before those of the classes after it. */
export const JOB_CLASSES = ['high', 'normal', 'low'] as const;
export type JobClass = (typeof JOB_CLASSES)[number];

/**
 * Whether engines are asked to stream their answers, of which the output file gets the whole in any case. `auto`: once a
 * proxy before an engine has cut a job's line because nothing came for too long.
 */
export const UPSTREAM_STREAMS = ['auto', 'always', 'never'] as const;
export type UpstreamStream = (typeof UPSTREAM_STREAMS)[number];

/** What the user chose beside the input: fixed at creation, and each with a default that older records get. */
export interface JobOptions {
  /** Who asked for it, as they said; empty: nobody said. */
  owner: string;
  /** Seconds after which its output and error file are deleted; null: never. */
  outputExpiresAfter: number | null;
  /** Whether one bad line fails the batch, or goes to the error file while the rest runs. */
  validation: 'strict' | 'lenient';
  /** The job whose failed and expired lines this one asks again. */
  retryOf: string | null;
  /** Where the end of the job is told. */
  webhook: string | null;
  /** How often and how late a line is asked again; null: as the server does by default. */
  retry: RetryPolicy | null;
  /** How long one attempt at a line may take, ms; null: as the server does by default. */
  answerTimeoutMs: number | null;
  /** What its lines may ask, all processes together. */
  limits: JobLimits;
  upstreamStream: UpstreamStream;
  /** How windows adapt to it; null: not at all, it always has its whole concurrency. */
  adaptive: Adaptive | null;
  priority: JobClass;
  /** What becomes of it when its lines fail for a reason that is not their own. */
  onErrorRate: OnErrorRate;
  /** Whether its last lines may be asked at two engines at the same time. */
  hedging: boolean;
  /** The deployment template that it was asked for with, by name and resolved version; null: none. */
  template: { name: string; version: string } | null;
  /** The one model that its lines may name, which its template pins; null: any. */
  pinnedModel: string | null;
  /** How many requests the input has by the word of who asked; shown until planning has counted. */
  expectedRequests: number | null;
  /** Address of an input that lies in a bucket of the user's, pinned to one version; null: it is ours. */
  inputLocation: string | null;
  /** URL of a folder in a bucket of the user's that the job's files are written to; null: into our storage. */
  outputPrefix: string | null;
  /** The machines that are leased for it; null: none are, it runs on engines that are there. */
  resources: JobResources | null;
}

export const DEFAULT_OPTIONS: JobOptions = {
  owner: '',
  outputExpiresAfter: null,
  validation: 'strict',
  retryOf: null,
  webhook: null,
  retry: null,
  answerTimeoutMs: null,
  limits: NO_LIMITS,
  upstreamStream: 'auto',
  adaptive: DEFAULT_ADAPTIVE,
  priority: 'normal',
  onErrorRate: 'pause',
  hedging: false,
  template: null,
  pinnedModel: null,
  expectedRequests: null,
  inputLocation: null,
  outputPrefix: null,
  resources: null,
};

/** What the user asked for, and how far it is. Times are Redis time in ms since 1970. */
export interface JobRecord {
  id: string;
  state: JobState;
  version: number;
  wake: number;
  outcome: Outcome | null;
  name: string;
  endpoint: Endpoint;
  /** Id of the input file. */
  input: string;
  completionWindow: string;
  deadline: number;
  metadata: Record<string, string>;
  /** Most lines in flight at one engine, all worker processes together. */
  maxConcurrency: number;
  /** Base URLs of the caller's own engines; empty: the provisioner's. */
  engines: string[];
  options: JobOptions;
  /** The batch by which a remote metadata service runs it; null: it runs here. Fixed when it is planned. */
  remote: RemoteBatch | null;
  cut: Cut;
  /** Distinct `body.model` of the input, known after planning. */
  models: string[];
  /** Those of them that no engine serves, so that their lines fail while the others are asked; never all. */
  givenUp: string[];
  lines: number;
  shards: number;
  doneShards: number;
  completed: number;
  failed: number;
  usage: Usage;
  outputFile: string | null;
  errorFile: string | null;
  errors: JobError[];
  /** Why the job stands where it stands, for people; empty when there is nothing to say. */
  reason: string;
  /** Since when it is paused; null: it is not. */
  pausedAt: number | null;
  /** Who paused it, as they said; empty: nobody said. */
  pausedBy: string;
  createdAt: number;
  /** When each state was first entered. */
  enteredAt: Partial<Record<JobState, number>>;
}

/** What happened to a job: it came to another state, or somebody changed what it was asked for. */
export const JOB_EVENT_KINDS = [
  'state',
  'paused',
  'resumed',
  'extended',
  'given_up',
  'engine',
] as const;
export type JobEventKind = (typeof JOB_EVENT_KINDS)[number];

/** An entry of a job's history. */
export interface JobEvent {
  id: string;
  at: number;
  kind: JobEventKind;
  state: JobState;
  message: string;
}

/** Paths of OpenAI's and vLLM's API that a line may ask. */
export const ENDPOINTS = [
  '/v1/chat/completions',
  '/v1/completions',
  '/v1/embeddings',
  '/v1/responses',
  '/v1/rerank',
  '/v1/score',
  '/v1/moderations',
] as const;
export type Endpoint = (typeof ENDPOINTS)[number];

export function isEndpoint(text: string): text is Endpoint {
  return (ENDPOINTS as readonly string[]).includes(text);
}

/** The models of a job that engines are still to serve. */
export function wantedModels({ models, givenUp }: Pick<JobRecord, 'models' | 'givenUp'>): string[] {
  return models.filter((model) => !givenUp.includes(model));
}

/** What the lines of a planned job had to be like. */
export function plannedRules({ endpoint, models, options }: JobRecord) {
  return { endpoint, models, pinnedModel: options.pinnedModel };
}

const WINDOW = /^(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)(?:min|m))?$/;
const [DAY, HOUR, MINUTE] = [86_400_000, 3_600_000, 60_000] as const;
const LONGEST_WINDOW = 365 * DAY;

/** Milliseconds of a completion window such as `24h`, `1d12h` or `90m`; anything else is invalid input. */
export function parseCompletionWindow(text: string): number {
  const parts = WINDOW.exec(text);
  const [days, hours, minutes] = [1, 2, 3].map((group) => Number(parts?.[group] ?? 0));
  const ms = (days ?? 0) * DAY + (hours ?? 0) * HOUR + (minutes ?? 0) * MINUTE;
  if (parts === null || ms <= 0 || ms > LONGEST_WINDOW) {
    throw invalidInput(
      'invalid_completion_window',
      `completion_window must be days, hours and minutes such as 24h, 1d12h or 90m, at most 365d; got '${text}'`,
      { param: 'completion_window' },
    );
  }
  return ms;
}

/** The batch id under which OpenAI's API shows a job, and back; null for anything that is no such id. */
export function batchIdOf(jobId: string): string {
  return `batch_${jobId.slice('job_'.length)}`;
}

export function jobIdOf(batchId: string): string | null {
  return /^batch_[A-Za-z0-9]+$/.test(batchId) ? `job_${batchId.slice('batch_'.length)}` : null;
}
