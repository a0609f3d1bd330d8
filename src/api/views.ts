import type { FileRecord } from '../domain/file.ts';
import { shownAddress } from '../domain/location.ts';
import { batchIdOf, batchStatus, isFinal } from '../domain/job.ts';
import type { JobError, JobRecord, JobState } from '../domain/job.ts';

/** Wire form of times: unix seconds; the records hold ms. */
export function unixSeconds(ms: number): number {
  return Math.floor(ms / 1_000);
}

function secondsOrNull(ms: number | undefined): number | null {
  return ms === undefined ? null : unixSeconds(ms);
}

/** OpenAI's File object; `status` is deprecated there and yet required. */
export function fileView(file: FileRecord) {
  return {
    id: file.id,
    object: 'file',
    bytes: file.bytes,
    created_at: unixSeconds(file.createdAt),
    ...(file.expiresAt === undefined ? {} : { expires_at: unixSeconds(file.expiresAt) }),
    filename: file.filename,
    purpose: file.purpose,
    status: 'uploaded',
    ...(file.location === undefined ? {} : { location: shownAddress(file.location) }),
  };
}

/** One page as OpenAI's clients walk it: they stop at an empty one, so `has_more` never comes with it. */
export function pageView<Item extends { id: string }>(data: Item[], hasMore: boolean) {
  return {
    object: 'list',
    data,
    // The schema has strings here, so an empty page has empty ones.
    first_id: data[0]?.id ?? '',
    last_id: data.at(-1)?.id ?? '',
    has_more: hasMore && data.length > 0,
  };
}

/** When each step of a job was reached, in ms; a job that falls back keeps the first time. */
export function jobTimes(job: JobRecord) {
  const at = job.enteredAt;
  const cancelled = job.outcome === 'cancelled' || job.state === 'cancelled';
  return {
    inProgress: at.in_progress,
    // The collecting before an end that nobody cancelled belongs, to OpenAI, to finalizing.
    finalizing: cancelled ? at.finalizing : (at.cancelling ?? at.finalizing),
    completed: at.completed,
    failed: at.failed ?? at.resource_failed ?? at.submit_failed,
    expired: at.expired,
    cancelling: cancelled ? (at.cancelling ?? at.cancelled) : undefined,
    cancelled: at.cancelled,
  };
}

/** A job's files, which exist for the user only once it is over and has lines in them. */
export function jobFiles(job: JobRecord): { output: string | null; error: string | null } {
  const over = isFinal(job.state);
  return {
    output: over && job.completed > 0 ? job.outputFile : null,
    error: over && job.failed > 0 ? job.errorFile : null,
  };
}

const FAILED_STATES: ReadonlySet<JobState> = new Set([
  'failed',
  'resource_failed',
  'submit_failed',
]);

/** Why a job failed; the reason of its last state where planning found no line at fault. */
export function jobErrors(job: JobRecord): JobError[] {
  if (job.errors.length > 0 || !FAILED_STATES.has(job.state)) return job.errors;
  const message = job.reason === '' ? `The job ended as ${job.state}.` : job.reason;
  return [{ code: job.state, message, param: null, line: null }];
}

/** Lines of a job; once it is over, completed and failed make up the total. */
export function requestCounts(job: JobRecord) {
  return { total: job.lines, completed: job.completed, failed: job.failed };
}

/** Null until an answer told its usage. */
export function usageView(job: JobRecord) {
  const { inputTokens, cachedTokens, outputTokens, reasoningTokens } = job.usage;
  if (inputTokens + outputTokens === 0) return null;
  return {
    input_tokens: inputTokens,
    input_tokens_details: { cached_tokens: cachedTokens },
    output_tokens: outputTokens,
    output_tokens_details: { reasoning_tokens: reasoningTokens },
    total_tokens: inputTokens + outputTokens,
  };
}

/** The model of a job, when its lines ask exactly one, or may. */
export function onlyModel(job: JobRecord): string | null {
  const known = job.models.length === 1 ? job.models[0] : job.options.pinnedModel;
  return known ?? null;
}

/** OpenAI's Batch object, what is unknown as null like in their example of a new batch. */
export function batchView(job: JobRecord) {
  const times = jobTimes(job);
  const files = jobFiles(job);
  const errors = jobErrors(job).map(({ code, message, param, line }) => ({
    code,
    message,
    param,
    line,
  }));
  const model = onlyModel(job);
  return {
    id: batchIdOf(job.id),
    object: 'batch',
    endpoint: job.endpoint,
    model,
    errors: errors.length === 0 ? null : { object: 'list', data: errors },
    input_file_id: job.input,
    completion_window: job.completionWindow,
    status: batchStatus({ ...job, begun: job.enteredAt.in_progress !== undefined }),
    output_file_id: files.output,
    error_file_id: files.error,
    created_at: unixSeconds(job.createdAt),
    in_progress_at: secondsOrNull(times.inProgress),
    expires_at: unixSeconds(job.deadline),
    finalizing_at: secondsOrNull(times.finalizing),
    completed_at: secondsOrNull(times.completed),
    failed_at: secondsOrNull(times.failed),
    expired_at: secondsOrNull(times.expired),
    cancelling_at: secondsOrNull(times.cancelling),
    cancelled_at: secondsOrNull(times.cancelled),
    request_counts: requestCounts(job),
    usage: usageView(job),
    metadata: Object.keys(job.metadata).length === 0 ? null : job.metadata,
  };
}
