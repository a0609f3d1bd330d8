import { batchIdOf, isFinal, isOpen, isPaused } from '../../domain/job.ts';
import type { JobEvent, JobEventKind, JobRecord, JobState } from '../../domain/job.ts';
import { shownAddress } from '../../domain/location.ts';
import { isReleased, machineProvider } from '../../domain/provision.ts';
import type { CallerMachine } from '../../domain/lease.ts';
import type { LeaseProvider, ProvisionRecord } from '../../domain/provision.ts';
import { clientView } from '../client.ts';
import { allocationView, costView } from './allocation-view.ts';
import { provisionView } from './provision-view.ts';
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

/** The Console's Job message with every one of its fields; its times are unix seconds, `now` is in ms. */
export function jobView(
  job: JobRecord,
  events: readonly JobEvent[],
  provisions: readonly ProvisionRecord[],
  now = Date.now(),
) {
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
    manifest: (files.output ?? files.error) === null ? '' : `/api/v1/jobs/${job.id}/manifest`,
    created_at: unixSeconds(job.createdAt),
    ...timeFields(job),
    request_counts: countsView(job),
    usage: usage && {
      input_tokens: usage.input_tokens,
      output_tokens: usage.output_tokens,
      total_tokens: usage.total_tokens,
    },
    prefix_cache_hit_rate: hitRate(job),
    metadata: job.metadata,
    extra_body: {},
    errors: jobErrors(job).map(errorView),
    runtime: runtimeView(job),
    cost: costView(job, provisions, now),
    model_template_ref: templateView(job),
    profile: null,
    name: job.name,
    ...optionFields(job),
    client: clientView(job),
    ...pauseFields(job),
    batch_id: batchIdOf(job.id),
    ...errorFields(job),
    ...provisionFields(job, provisions),
    events: eventViews(job, events, now),
  };
}

/** The provision in use, or else the last one, and what the job has of machines altogether. */
function provisionFields(job: JobRecord, provisions: readonly ProvisionRecord[]) {
  const provision = provisions.find((each) => !isReleased(each.state)) ?? provisions.at(-1);
  const provisionId = provision?.id ?? '';
  const others = provisions.filter((each) => each !== provision);
  return {
    provision_id: provisionId,
    provision: provision === undefined ? null : provisionView(provision, others),
    resource_allocation: allocationView(job, provisions, provisionId),
  };
}

/** Null where no engine said that it had any of the input cached: those that hit and do not say so look like others. */
function hitRate({ usage }: JobRecord): number | null {
  return usage.cachedTokens === 0 ? null : usage.cachedTokens / usage.inputTokens;
}

/** Until planning has counted, what whoever asked has said; null where nobody did, or where planning never will. */
function countsView(job: JobRecord) {
  if (job.lines > 0) return requestCounts(job);
  const { expectedRequests } = job.options;
  if (expectedRequests === null || !isOpen(job.state)) return null;
  return { ...requestCounts(job), total: expectedRequests };
}

/** With machines that are leased for it a job has a copy of its template, as that was then. */
function templateView(job: JobRecord) {
  const { template, resources } = job.options;
  const raw = resources === null ? template : { ...template, spec: resources.spec };
  return template && { ...template, raw_json: JSON.stringify(raw) };
}

function optionFields({ options }: JobRecord) {
  return {
    created_by: options.owner,
    model_template_name: options.template?.name ?? '',
    model_template_version: options.template?.version ?? '',
    retry_of: options.retryOf ?? '',
    priority: options.priority,
    input_location: options.inputLocation === null ? '' : shownAddress(options.inputLocation),
    output_prefix: options.outputPrefix ?? '',
  };
}

function pauseFields(job: JobRecord) {
  if (!isPaused(job)) return { paused_at: 0, paused_by: '' };
  return { paused_at: secondsOrZero(job.pausedAt ?? undefined), paused_by: job.pausedBy };
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
function errorFields(job: JobRecord) {
  const [first] = jobErrors(job);
  if (first !== undefined) return { error_code: first.code, error_message: first.message };
  return { error_code: '', error_message: job.state === 'completed' ? '' : job.reason };
}

function runtimeView(job: JobRecord) {
  const { machine, providers } = job.options.resources ?? {};
  if (machine !== undefined && providers !== undefined) return machineRuntime(machine, providers);
  if (job.engines.length === 0) return null;
  const options = { base_urls: JSON.stringify(job.engines) };
  const raw = { target: 'External', options: { base_urls: job.engines } };
  return { target: 'External', options, raw_json: JSON.stringify(raw) };
}

const TARGETS = { runpod: 'RunPod', lambdaCloud: 'LambdaCloud' } as const;

/** As the request named it; options are texts, as in AIBrix. */
function machineRuntime(
  { login, hostKey }: CallerMachine,
  [first = 'runpod']: readonly LeaseProvider[],
) {
  const { host, port, user } = login;
  const key = hostKey === null ? {} : { host_key: hostKey };
  const target = TARGETS[machineProvider(first) ?? 'runpod'];
  const raw = { target, options: { host, ssh_port: port, ssh_user: user, ...key } };
  const options = { host, ssh_port: String(port), ssh_user: user, ...key };
  return { target, options, raw_json: JSON.stringify(raw) };
}

interface EventView {
  id: string;
  label: string;
  status: string;
  source: 'planner' | 'mds';
  /** Unix seconds. */
  at: number;
  message: string;
  duration_seconds: number;
}

/** What an event is called that is no new state. */
const CHANGES: Record<Exclude<JobEventKind, 'state'>, string> = {
  paused: 'Paused',
  resumed: 'Resumed',
  extended: 'Deadline moved',
  given_up: 'Model given up',
  engine: 'Engine',
};

/**
 * The history with how long each lasted: a state until the next one, a pause until its end, what is only a moment 0,
 * and what still lasts until now. A state's first event is known by the state's name, a later one by its own id beside.
 */
function eventViews(job: JobRecord, events: readonly JobEvent[], now: number) {
  const seen = new Set<JobState>();
  return events.flatMap((event, index): EventView[] => {
    const { kind, state } = event;
    const duration = { duration_seconds: Math.floor(durationOf(job, events, index, now) / 1_000) };
    const at = unixSeconds(event.at);
    if (kind !== 'state') {
      const id = `${kind}:${event.id}`;
      const label = CHANGES[kind];
      const { message } = event;
      return [{ id, label, source: 'planner', status: state, at, message, ...duration }];
    }
    const isFirst = !seen.has(state);
    seen.add(state);
    const id = isFirst ? state : `${state}:${event.id}`;
    const view = { id, ...EVENTS[state], status: state, at, message: event.message, ...duration };
    // The Console knows the moment at which an engine took the batch as an event of its own.
    return isFirst && state === 'in_progress' ? [{ ...view, ...BATCH_CREATED }, view] : [view];
  });
}

/** Milliseconds that an event lasted. */
function durationOf(
  job: JobRecord,
  events: readonly JobEvent[],
  index: number,
  now: number,
): number {
  const event = events[index];
  if (event === undefined || (event.kind !== 'state' && event.kind !== 'paused')) return 0;
  const isEnd = (later: JobEvent): boolean =>
    later.kind === 'state'
      ? event.kind === 'state' || !isOpen(later.state)
      : event.kind === 'paused' && later.kind === 'resumed';
  const end = events.slice(index + 1).find(isEnd);
  if (end === undefined && isFinal(job.state)) return 0;
  return Math.max(0, (end?.at ?? now) - event.at);
}

const BATCH_CREATED = {
  id: 'batch_created',
  label: 'Batch created',
  status: 'scheduling',
  message: 'An engine serves the batch.',
  duration_seconds: 0,
};
