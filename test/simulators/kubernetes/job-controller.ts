import { createPod, deletePod, isOver, podsOf } from './cluster.ts';
import type { Cluster } from './cluster.ts';
import { JOBS, PODS } from './kinds.ts';
import { controllerOf, hasCondition, setCondition, toTime } from './objects.ts';
import type { Job, Pod } from './objects.ts';

/*
 * The Job controller (k8s.io/kubernetes/pkg/controller/job): makes pods up to the parallelism, counts
 * those that ended once each (their finalizer says that they are not counted yet), and ends the Job.
 */

const FINALIZER = 'batch.kubernetes.io/job-tracking';
const INDEX = 'batch.kubernetes.io/job-completion-index';
const FAILURES = 'batch.kubernetes.io/job-index-failure-count';
const SOURCE = { component: 'job-controller' };
const MOST_DOUBLINGS = 6;

type Rule = NonNullable<Job['spec']['podFailurePolicy']>['rules'][number];

interface Verdict {
  action: string;
  message?: string;
}

/** `0,2-4`: the numbers in it. */
function parseIndexes(text: string | undefined): Set<number> {
  const found = new Set<number>();
  for (const part of (text ?? '').split(',').filter((one) => one !== '')) {
    const [from = 0, to = from] = part.split('-').map(Number);
    for (let index = from; index <= to; index += 1) found.add(index);
  }
  return found;
}

/** The other way: runs of three and more are written as such, as the controller does. */
function formatIndexes(indexes: ReadonlySet<number>): string {
  const sorted = [...indexes].toSorted((one, two) => one - two);
  const runs: [number, number][] = [];
  for (const index of sorted) {
    const last = runs.at(-1);
    if (last !== undefined && last[1] === index - 1) last[1] = index;
    else runs.push([index, index]);
  }
  return runs
    .map(([from, to]) =>
      from === to ? `${from}` : to === from + 1 ? `${from},${to}` : `${from}-${to}`,
    )
    .join(',');
}

const indexOf = (pod: Pod): number => Number(pod.metadata.annotations?.[INDEX] ?? -1);

function exitCodeRule(
  { onExitCodes }: Rule,
  pod: Pod,
): { container: string; code: number } | undefined {
  if (onExitCodes === undefined) return undefined;
  const statuses = [
    ...(pod.status.containerStatuses ?? []),
    ...(pod.status.initContainerStatuses ?? []),
  ];
  for (const { name, state } of statuses) {
    const code = state?.terminated?.exitCode;
    if (code === undefined || code === 0) continue;
    if (onExitCodes.containerName !== undefined && onExitCodes.containerName !== name) continue;
    if (onExitCodes.values.includes(code) === (onExitCodes.operator === 'In')) {
      return { container: name, code };
    }
  }
  return undefined;
}

/** What podFailurePolicy says of a failed pod. */
function judge(job: Job, pod: Pod): Verdict {
  for (const [at, rule] of (job.spec.podFailurePolicy?.rules ?? []).entries()) {
    const { namespace, name } = pod.metadata;
    const end = `matching ${rule.action} rule at index ${at}`;
    const exited = exitCodeRule(rule, pod);
    if (exited !== undefined) {
      const { container, code } = exited;
      return {
        action: rule.action,
        message: `Container ${container} for pod ${namespace}/${name} failed with exit code ${code} ${end}`,
      };
    }
    const condition = (rule.onPodConditions ?? []).find(({ type, status }) =>
      (pod.status.conditions ?? []).some(
        (one) => one.type === type && one.status === (status ?? 'True'),
      ),
    );
    if (condition !== undefined) {
      return {
        action: rule.action,
        message: `Pod ${namespace}/${name} has condition ${condition.type} ${end}`,
      };
    }
  }
  return { action: 'Count' };
}

/** What the controller remembers between two looks, by Job. */
interface Memory {
  failures: number;
  lastFailure: number;
  /** By index. */
  indexFailures: Map<number, number>;
}

export function createJobController(cluster: Cluster): { sync(): void } {
  const { store, recorder, knobs, loop } = cluster;
  const memories = new Map<string, Memory>();

  function memoryOf({ metadata }: Job): Memory {
    const found = memories.get(metadata.uid) ?? {
      failures: 0,
      lastFailure: 0,
      indexFailures: new Map(),
    };
    memories.set(metadata.uid, found);
    return found;
  }

  function change(job: Job, by: (job: Job) => void): Job {
    const { namespace, name } = job.metadata;
    return store.update(JOBS, namespace, name, (copy) => by(copy as Job)) as Job;
  }

  function condition(job: Job, type: string, status: string, reason: string, message: string): Job {
    return change(job, (copy) => {
      copy.status.conditions = setCondition(
        copy.status.conditions,
        { type, status, reason, message },
        Date.now(),
      ).map((one) => (one.type === type ? { ...one, lastProbeTime: toTime(Date.now()) } : one));
    });
  }

  function dropFinalizer(pod: Pod): void {
    if (pod.metadata.finalizers?.includes(FINALIZER) !== true) return;
    store.update(PODS, pod.metadata.namespace, pod.metadata.name, ({ metadata }) => {
      const left = (metadata.finalizers ?? []).filter((one) => one !== FINALIZER);
      if (left.length > 0) metadata.finalizers = left;
      else delete metadata.finalizers;
    });
  }

  function countFailure(job: Job, pod: Pod): Job {
    const memory = memoryOf(job);
    const { action, message = '' } = judge(job, pod);
    if (action === 'FailJob') job = fail(job, 'PodFailurePolicy', message);
    if (action === 'Ignore') return job;
    memory.failures += 1;
    memory.lastFailure = Date.now();
    const index = indexOf(pod);
    if (job.spec.completionMode === 'Indexed') {
      memory.indexFailures.set(index, (memory.indexFailures.get(index) ?? 0) + 1);
      const most = job.spec.backoffLimitPerIndex;
      const isOut = most !== undefined && (memory.indexFailures.get(index) ?? 0) > most;
      if (isOut || action === 'FailIndex') {
        job = change(job, ({ status }) => {
          status.failedIndexes = formatIndexes(parseIndexes(status.failedIndexes).add(index));
        });
      }
    }
    return change(job, ({ status }) => {
      status.failed = (status.failed ?? 0) + 1;
    });
  }

  /** Counts each pod that ended and was not counted. */
  function count(job: Job, pods: readonly Pod[]): Job {
    for (const pod of pods) {
      if (!isOver(pod) || pod.metadata.finalizers?.includes(FINALIZER) !== true) continue;
      if (pod.status.phase === 'Succeeded') {
        job = change(job, ({ spec, status }) => {
          const before = parseIndexes(status.completedIndexes);
          if (spec.completionMode === 'Indexed') {
            status.completedIndexes = formatIndexes(before.add(indexOf(pod)));
            status.succeeded = before.size;
          } else status.succeeded = (status.succeeded ?? 0) + 1;
        });
      } else job = countFailure(job, pod);
      dropFinalizer(pod);
    }
    return job;
  }

  /** The Job is to fail; it has failed once its pods are gone. */
  function fail(job: Job, reason: string, message: string): Job {
    if (hasCondition(job.status.conditions, 'FailureTarget')) return job;
    return condition(job, 'FailureTarget', 'True', reason, message);
  }

  function isDone({ spec, status }: Job, active: readonly Pod[]): boolean {
    const succeeded = status.succeeded ?? 0;
    if (spec.completionMode === 'Indexed') {
      const failed = parseIndexes(status.failedIndexes).size;
      return failed === 0 && succeeded >= (spec.completions ?? 0);
    }
    if (spec.completions === undefined) return succeeded > 0 && active.length === 0;
    return succeeded >= spec.completions;
  }

  function exceeded(job: Job): Job {
    const { spec, status } = job;
    const memory = memoryOf(job);
    const limit = spec.backoffLimit ?? 6;
    const restarts = spec.template.spec?.restartPolicy === 'OnFailure' ? restartsOf(job) : 0;
    if (memory.failures + restarts > limit) {
      return fail(job, 'BackoffLimitExceeded', 'Job has reached the specified backoff limit');
    }
    if (
      spec.maxFailedIndexes !== undefined &&
      parseIndexes(status.failedIndexes).size > spec.maxFailedIndexes
    ) {
      return fail(
        job,
        'MaxFailedIndexesExceeded',
        'Job has exceeded the specified maximal number of failed indexes',
      );
    }
    const over =
      parseIndexes(status.failedIndexes).size + (status.succeeded ?? 0) >=
      (spec.completions ?? Number.POSITIVE_INFINITY);
    if (spec.completionMode === 'Indexed' && over && parseIndexes(status.failedIndexes).size > 0) {
      return fail(job, 'FailedIndexes', 'Job has failed indexes');
    }
    const deadline = spec.activeDeadlineSeconds;
    if (deadline !== undefined && status.startTime !== undefined && spec.suspend !== true) {
      const end = Date.parse(status.startTime) + deadline * 1000;
      if (Date.now() >= end)
        return fail(job, 'DeadlineExceeded', 'Job was active longer than specified deadline');
      loop.at(end);
    }
    return job;
  }

  function restartsOf(job: Job): number {
    let total = 0;
    for (const pod of podsOf(cluster, job)) {
      for (const { restartCount } of pod.status.containerStatuses ?? []) total += restartCount;
    }
    return total;
  }

  function remove(job: Job, pod: Pod): void {
    deletePod(cluster, pod);
    recorder.record(job, 'Normal', 'SuccessfulDelete', `Deleted pod: ${pod.metadata.name}`, SOURCE);
  }

  function suspend(job: Job, active: readonly Pod[]): Job {
    for (const pod of active) remove(job, pod);
    if (hasCondition(job.status.conditions, 'Suspended')) return job;
    recorder.record(job, 'Normal', 'Suspended', 'Job suspended', SOURCE);
    const next = condition(job, 'Suspended', 'True', 'JobSuspended', 'Job suspended');
    return change(next, ({ status }) => {
      delete status.startTime;
    });
  }

  function begin(job: Job): Job {
    let next = job;
    if (hasCondition(job.status.conditions, 'Suspended')) {
      next = condition(job, 'Suspended', 'False', 'JobResumed', 'Job resumed');
      recorder.record(job, 'Normal', 'Resumed', 'Job resumed', SOURCE);
    }
    if (next.status.startTime !== undefined) return next;
    return change(next, ({ status }) => {
      status.startTime = toTime(Date.now());
    });
  }

  /** Indexes that want a pod and have none. */
  function openIndexes({ spec, status }: Job, busy: readonly Pod[]): number[] {
    const done = parseIndexes(status.completedIndexes);
    const failed = parseIndexes(status.failedIndexes);
    const taken = new Set(busy.map(indexOf));
    return Array.from({ length: spec.completions ?? 0 }, (_, index) => index).filter(
      (index) => !done.has(index) && !failed.has(index) && !taken.has(index),
    );
  }

  function make(job: Job, index: number | undefined): void {
    const { name } = job.metadata;
    const memory = memoryOf(job);
    const of = index === undefined ? {} : { [INDEX]: String(index) };
    const isCounted = index !== undefined && job.spec.backoffLimitPerIndex !== undefined;
    const pod = createPod(cluster, job, job.spec.template, {
      name: index === undefined ? name : `${name}-${index}`,
      labels: of,
      annotations: {
        ...of,
        ...(isCounted ? { [FAILURES]: String(memory.indexFailures.get(index) ?? 0) } : {}),
      },
      finalizers: [FINALIZER],
      change({ spec }) {
        if (index === undefined) return;
        spec.hostname ??= `${name}-${index}`;
        for (const container of [...(spec.initContainers ?? []), ...spec.containers]) {
          const known = (container.env ?? []).some((one) => one.name === 'JOB_COMPLETION_INDEX');
          if (known) continue;
          container.env = [
            ...(container.env ?? []),
            {
              name: 'JOB_COMPLETION_INDEX',
              valueFrom: {
                fieldRef: { apiVersion: 'v1', fieldPath: `metadata.annotations['${INDEX}']` },
              },
            },
          ];
        }
      },
    });
    recorder.record(job, 'Normal', 'SuccessfulCreate', `Created pod: ${pod.metadata.name}`, SOURCE);
  }

  function scale(job: Job, active: readonly Pod[], terminating: readonly Pod[]): void {
    const { spec, status } = job;
    const memory = memoryOf(job);
    const parallelism = spec.parallelism ?? 1;
    const busy = spec.podReplacementPolicy === 'Failed' ? [...active, ...terminating] : active;
    const wanted =
      spec.completions === undefined
        ? (status.succeeded ?? 0) > 0
          ? active.length
          : parallelism
        : Math.min(parallelism, spec.completions - (status.succeeded ?? 0));
    for (const pod of active.slice(Math.max(0, wanted))) remove(job, pod);
    const lacking = wanted - busy.length;
    if (lacking <= 0) return;
    if (memory.failures > 0) {
      const wait = knobs().jobBackoffMs * 2 ** Math.min(memory.failures - 1, MOST_DOUBLINGS);
      const ready = memory.lastFailure + wait;
      if (Date.now() < ready) {
        loop.at(ready);
        return;
      }
    }
    const indexes = spec.completionMode === 'Indexed' ? openIndexes(job, busy) : undefined;
    for (let made = 0; made < lacking; made += 1) {
      const index = indexes?.[made];
      if (indexes !== undefined && index === undefined) break;
      make(job, index);
    }
  }

  function finish(job: Job, active: readonly Pod[], terminating: readonly Pod[]): Job {
    for (const pod of active) remove(job, pod);
    if (active.length > 0 || terminating.length > 0) return job;
    const target = (job.status.conditions ?? []).find(
      ({ type, status }) => type === 'FailureTarget' && status === 'True',
    );
    if (target !== undefined) {
      const { reason = '', message = '' } = target;
      recorder.record(job, 'Warning', reason, message, SOURCE);
      return condition(job, 'Failed', 'True', reason, message);
    }
    const done = condition(
      job,
      'Complete',
      'True',
      'CompletionsReached',
      'Reached expected number of succeeded pods',
    );
    recorder.record(job, 'Normal', 'Completed', 'Job completed', SOURCE);
    return change(done, ({ status }) => {
      status.completionTime = toTime(Date.now());
    });
  }

  /** Numbers that depend on the pods as they are now. */
  function tell(job: Job): void {
    const pods = podsOf(cluster, job);
    const going = pods.filter((pod) => !isOver(pod));
    const terminating = going.filter(({ metadata }) => metadata.deletionTimestamp !== undefined);
    const active = going.length - terminating.length;
    const ready = going.filter(
      ({ status, metadata }) =>
        metadata.deletionTimestamp === undefined && hasCondition(status.conditions, 'Ready'),
    ).length;
    change(job, ({ status }) => {
      if (active > 0) status.active = active;
      else delete status.active;
      status.ready = ready;
      status.terminating = terminating.length;
      status.uncountedTerminatedPods = {};
    });
  }

  function expire(job: Job): void {
    const { ttlSecondsAfterFinished: ttl } = job.spec;
    const ended = (job.status.conditions ?? []).find(
      ({ type, status }) => ['Complete', 'Failed'].includes(type) && status === 'True',
    );
    if (ttl === undefined || ended?.lastTransitionTime === undefined) return;
    const due = Date.parse(ended.lastTransitionTime) + ttl * 1000;
    if (Date.now() < due) {
      loop.at(due);
      return;
    }
    store.update(JOBS, job.metadata.namespace, job.metadata.name, ({ metadata }) => {
      metadata.deletionTimestamp ??= toTime(Date.now());
      metadata.finalizers = [...new Set([...(metadata.finalizers ?? []), 'foregroundDeletion'])];
      metadata.deletionGracePeriodSeconds = 0;
    });
  }

  function syncJob(first: Job): void {
    let job = first;
    if (
      hasCondition(job.status.conditions, 'Complete') ||
      hasCondition(job.status.conditions, 'Failed')
    ) {
      for (const pod of podsOf(cluster, job)) if (isOver(pod)) dropFinalizer(pod);
      tell(job);
      expire(job);
      return;
    }
    if (job.metadata.deletionTimestamp !== undefined) return;
    job = count(job, podsOf(cluster, job));
    const going = podsOf(cluster, job).filter((pod) => !isOver(pod));
    const terminating = going.filter(({ metadata }) => metadata.deletionTimestamp !== undefined);
    const active = going.filter(({ metadata }) => metadata.deletionTimestamp === undefined);
    if (!hasCondition(job.status.conditions, 'SuccessCriteriaMet')) job = exceeded(job);
    const isFailing = hasCondition(job.status.conditions, 'FailureTarget');
    if (
      !isFailing &&
      isDone(job, active) &&
      !hasCondition(job.status.conditions, 'SuccessCriteriaMet')
    ) {
      job = condition(
        job,
        'SuccessCriteriaMet',
        'True',
        'CompletionsReached',
        'Reached expected number of succeeded pods',
      );
    }
    if (isFailing || hasCondition(job.status.conditions, 'SuccessCriteriaMet'))
      job = finish(job, active, terminating);
    else if (job.spec.suspend === true) job = suspend(job, active);
    else {
      job = begin(job);
      scale(job, active, terminating);
    }
    tell(job);
  }

  /** Pods whose Job is gone wait for nobody. */
  function releaseOrphans(): void {
    for (const pod of store.list(PODS) as Pod[]) {
      if (pod.metadata.finalizers?.includes(FINALIZER) !== true) continue;
      const owner = controllerOf(pod);
      const job =
        owner === undefined ? undefined : store.get(JOBS, pod.metadata.namespace, owner.name);
      if (
        job === undefined ||
        job.metadata.uid !== owner?.uid ||
        job.metadata.deletionTimestamp !== undefined
      )
        dropFinalizer(pod);
    }
  }

  return {
    sync() {
      for (const job of store.list(JOBS) as Job[]) syncJob(job);
      releaseOrphans();
    },
  };
}
