import { batchIdOf } from '../../domain/job.ts';
import type { JobEvent, JobRecord, JobState } from '../../domain/job.ts';
import { isReleased } from '../../domain/provision.ts';
import type { ProvisionRecord } from '../../domain/provision.ts';
import {
  jobErrors,
  jobFiles,
  jobTimes,
  onlyModel,
  requestCounts,
  unixSeconds,
  usageView,
} from '../views.ts';

/** How the Console names a state's event, and which part of it speaks: `mds` is the batch service. */
const EVENTS: Record<JobState, { label: string; source: 'planner' | 'mds' }> = {
  queued: { label: 'Queued', source: 'planner' },
  resource_preparing: { label: 'Provisioning', source: 'planner' },
  submitting: { label: 'Submitting', source: 'planner' },
  in_progress: { label: 'In progress', source: 'mds' },
  cancelling: { label: 'Cancelling', source: 'mds' },
  finalizing: { label: 'Finalizing', source: 'mds' },
  completed: { label: 'Completed', source: 'mds' },
  failed: { label: 'Failed', source: 'mds' },
  expired: { label: 'Expired', source: 'mds' },
  cancelled: { label: 'Cancelled', source: 'mds' },
  resource_failed: { label: 'Provision failed', source: 'planner' },
  submit_failed: { label: 'Submit failed', source: 'planner' },
};

/** Unix seconds, 0 for what has not happened: the Console's messages leave no field out. */
function secondsOrZero(ms: number | undefined): number {
  return ms === undefined ? 0 : unixSeconds(ms);
}

/** The Console's Job message with every one of its fields; its times are unix seconds. */
export function jobView(
  job: JobRecord,
  events: readonly JobEvent[],
  provisions: readonly ProvisionRecord[],
) {
  const provision = provisions.find((each) => !isReleased(each.state)) ?? provisions.at(-1);
  const files = jobFiles(job);
  const usage = usageView(job);
  return {
    id: job.id,
    object: 'batch',
    endpoint: job.endpoint,
    model: onlyModel(job) ?? '',
    input_dataset: job.input,
    completion_window: job.completionWindow,
    status: job.state,
    output_dataset: files.output ?? '',
    error_dataset: files.error ?? '',
    created_at: unixSeconds(job.createdAt),
    ...timeFields(job),
    request_counts: job.lines === 0 ? null : requestCounts(job),
    usage: usage && {
      input_tokens: usage.input_tokens,
      output_tokens: usage.output_tokens,
      total_tokens: usage.total_tokens,
    },
    metadata: job.metadata,
    extra_body: {},
    errors: job.errors.map(errorView),
    runtime: runtimeView(job),
    resource_allocation: null,
    model_template_ref: null,
    profile: null,
    name: job.name,
    created_by: '',
    model_template_name: '',
    model_template_version: '',
    batch_id: batchIdOf(job.id),
    provision_id: provision?.id ?? '',
    error_message: errorMessage(job),
    provision: provision === undefined ? null : provisionView(provision),
    events: eventViews(events),
  };
}

function timeFields(job: JobRecord) {
  const at = job.enteredAt;
  const times = jobTimes(job);
  return {
    in_progress_at: secondsOrZero(times.inProgress),
    expires_at: unixSeconds(job.deadline),
    finalizing_at: secondsOrZero(times.finalizing),
    completed_at: secondsOrZero(times.completed),
    failed_at: secondsOrZero(times.failed),
    expired_at: secondsOrZero(times.expired),
    cancelling_at: secondsOrZero(times.cancelling),
    cancelled_at: secondsOrZero(times.cancelled),
    queued_at: unixSeconds(at.queued ?? job.createdAt),
    resource_preparing_at: secondsOrZero(at.resource_preparing),
    submitting_at: secondsOrZero(at.submitting),
    resource_failed_at: secondsOrZero(at.resource_failed),
    submit_failed_at: secondsOrZero(at.submit_failed),
    cancel_requested_at: secondsOrZero(times.cancelling),
  };
}

function errorView(error: JobRecord['errors'][number]) {
  return {
    code: error.code,
    message: error.message,
    param: error.param ?? '',
    line: error.line ?? 0,
  };
}

/** Why it failed, or why it stands where it stands; a job that went well has nothing to say. */
function errorMessage(job: JobRecord): string {
  const [first] = jobErrors(job);
  if (first !== undefined) return first.message;
  return job.state === 'completed' ? '' : job.reason;
}

function runtimeView(job: JobRecord) {
  if (job.engines.length === 0) return null;
  const options = { base_urls: JSON.stringify(job.engines) };
  const raw = { target: 'External', options: { base_urls: job.engines } };
  return { target: 'External', options, raw_json: JSON.stringify(raw) };
}

function provisionView(provision: ProvisionRecord) {
  const times = Object.values(provision.enteredAt);
  const createdAt = unixSeconds(provision.createdAt);
  const updatedAt = unixSeconds(Math.max(provision.createdAt, ...times));
  const raw = {
    provisionId: provision.id,
    provider: provision.provider,
    owner: provision.owner,
    status: provision.state,
    address: provision.address,
    createdAt: new Date(provision.createdAt).toISOString(),
  };
  return {
    provision_id: provision.id,
    provider: provision.provider,
    idempotency_key: provision.id,
    status: provision.state,
    region: '',
    error_message: provision.reason,
    created_at: createdAt,
    updated_at: updatedAt,
    raw_json: JSON.stringify(raw),
  };
}

/** A state's first event is known by the state's name, a later one by its own id beside it. */
function eventViews(events: readonly JobEvent[]) {
  const seen = new Set<JobState>();
  return events.flatMap((event) => {
    const isFirst = !seen.has(event.state);
    seen.add(event.state);
    const view = {
      id: isFirst ? event.state : `${event.state}:${event.id}`,
      ...EVENTS[event.state],
      status: event.state,
      at: unixSeconds(event.at),
      message: event.message,
    };
    // The Console knows the moment at which an engine took the batch as an event of its own.
    return isFirst && event.state === 'in_progress'
      ? [{ ...view, ...BATCH_CREATED }, view]
      : [view];
  });
}

const BATCH_CREATED = {
  id: 'batch_created',
  label: 'Batch created',
  status: 'scheduling',
  message: 'An engine serves the batch.',
};
