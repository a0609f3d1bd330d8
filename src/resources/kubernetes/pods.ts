import type { ContainerStatus, KubeEvent, Pod } from './objects.ts';
import { eventTime, timeOf } from './objects.ts';

/** What a container of a pod came to. */
export interface ContainerEnd {
  container: string;
  exitCode: number;
  /** In Kubernetes' words: `OOMKilled`, `Error`, `Completed`. */
  reason: string;
}

/** How far a pod is, for people and for what is done next. */
export interface PodLook {
  pod: string;
  /**
   * `unscheduled`: no node has taken it. `waiting`: its containers cannot start, or are about to. `running`: those that it
   * needs run, which is no readiness. `crashed`: one ended, and is to be started again. `done`, `failed`: it is over.
   * `leaving`: it is being deleted, evicted, or its node is lost.
   */
  is: 'unscheduled' | 'waiting' | 'running' | 'crashed' | 'done' | 'failed' | 'leaving';
  /** Why it is there; '' where it needs no reason. */
  reason: string;
  /** The last end of a container of its own, which nobody ordered; null: none ended. */
  end: ContainerEnd | null;
  /** How often containers were started again. */
  restarts: number;
  /** Waiting cannot mend it. */
  isHopeless: boolean;
}

/** Reasons for which kubelet does not start a container however long one waits. */
const HOPELESS = new Set(['InvalidImageName', 'ErrImageNeverPull']);
const MOST_MESSAGE = 600;

/** Reads a pod's state with what was last said of it in events; pure. */
export function lookAtPod(pod: Pod, events: readonly KubeEvent[] = []): PodLook {
  const { status, metadata } = pod;
  const all = [...status.initContainerStatuses, ...status.containerStatuses];
  const restarts = all.reduce((sum, { restartCount }) => sum + restartCount, 0);
  const end = lastEnd(all);
  const look = { pod: metadata.name, restarts, end, isHopeless: false };
  const leaving = whyLeaving(pod);
  if (leaving !== null) return { ...look, is: 'leaving', reason: leaving };
  if (status.phase === 'Succeeded') return { ...look, is: 'done', reason: '' };
  if (status.phase === 'Failed') return { ...look, is: 'failed', reason: whyFailed(pod, end) };
  const scheduled = status.conditions.find(({ type }) => type === 'PodScheduled');
  if (scheduled?.status !== 'True' && pod.spec.nodeName === '') {
    return { ...look, is: 'unscheduled', reason: whyUnscheduled(scheduled, events) };
  }
  const waiting = all.find((each) => isStuck(each));
  if (waiting !== undefined) return { ...look, ...lookAtWaiting(waiting, end, events) };
  const isStarted = status.containerStatuses.some(({ state }) => state.running);
  const isRunning = status.phase === 'Running' && isStarted;
  return isRunning
    ? { ...look, is: 'running', reason: '' }
    : { ...look, is: 'waiting', reason: latest(events) };
}

/** Waits for more than its turn. */
function isStuck({ state }: ContainerStatus): boolean {
  const reason = state.waiting?.reason ?? '';
  return !['', 'ContainerCreating', 'PodInitializing'].includes(reason);
}

function lookAtWaiting(
  { name, state, lastState }: ContainerStatus,
  end: ContainerEnd | null,
  events: readonly KubeEvent[],
): Pick<PodLook, 'is' | 'reason' | 'isHopeless'> {
  const { reason = '', message = '' } = state.waiting ?? {};
  if (reason === 'CrashLoopBackOff') {
    const why = end === null ? message : describeEnd(end);
    return { is: 'crashed', reason: cut(`CrashLoopBackOff: ${why}`), isHopeless: false };
  }
  // The back-off's message repeats the image only; what the registry said is in the event before.
  const said = events.findLast(
    ({ type, message: text }) => type === 'Warning' && /pull|mount|create/i.test(text),
  );
  const text = reason === 'ImagePullBackOff' && said !== undefined ? said.message : message;
  const is = lastState.terminated ? ('crashed' as const) : ('waiting' as const);
  const why = text === '' ? '' : `: ${text}`;
  return {
    is,
    reason: cut(`${reason}${why} (container ${name})`),
    isHopeless: HOPELESS.has(reason),
  };
}

function whyUnscheduled(
  scheduled: { reason: string; message: string } | undefined,
  events: readonly KubeEvent[],
): string {
  if (scheduled !== undefined && scheduled.message !== '') {
    return cut(`${scheduled.reason || 'Unschedulable'}: ${scheduled.message}`);
  }
  const warning = events.findLast(({ reason }) => reason === 'FailedScheduling');
  return warning === undefined ? '' : cut(`FailedScheduling: ${warning.message}`);
}

/** Who takes a pod away, and why; null: nobody does. */
function whyLeaving({ metadata, status, spec }: Pod): string | null {
  const disrupted = status.conditions.find(
    ({ type, status: is }) => type === 'DisruptionTarget' && is === 'True',
  );
  if (disrupted !== undefined) {
    return cut(`${disrupted.reason || 'DisruptionTarget'}: ${disrupted.message}`);
  }
  if (status.reason === 'Evicted' || status.reason === 'NodeLost') {
    return cut(`${status.reason}: ${status.message}`);
  }
  const ready = status.conditions.find(({ type }) => type === 'Ready');
  if (metadata.deletionTimestamp !== null) {
    const node = ready?.reason === 'NodeNotReady' ? `: its node ${spec.nodeName} is lost` : '';
    return `The pod ${metadata.name} is being deleted${node}`;
  }
  if (ready?.reason === 'NodeNotReady') return `NodeNotReady: the node ${spec.nodeName} is lost`;
  return null;
}

function whyFailed({ status, metadata }: Pod, end: ContainerEnd | null): string {
  if (end !== null) return describeEnd(end);
  const said = [status.reason, status.message].filter(Boolean).join(': ');
  return cut(said === '' ? `The pod ${metadata.name} failed` : said);
}

/** In Kubernetes' word and with the code, which is all there is of a process that was killed. */
export function describeEnd({ container, exitCode, reason }: ContainerEnd): string {
  const oom = reason === 'OOMKilled' ? ', its memory limit was not enough' : '';
  const by = exitCode > 128 ? `, ended by signal ${exitCode - 128}` : '';
  return `container ${container} ${reason || 'ended'} (exit code ${exitCode}${by}${oom})`;
}

function lastEnd(all: readonly ContainerStatus[]): ContainerEnd | null {
  const ends = all.flatMap(({ name, state, lastState }) =>
    [state.terminated, lastState.terminated].flatMap((end) =>
      end ? [{ container: name, at: timeOf(end.finishedAt) ?? 0, ...end }] : [],
    ),
  );
  const bad = ends.filter(({ exitCode, reason }) => exitCode !== 0 || reason === 'OOMKilled');
  const [last] = bad.toSorted((one, other) => other.at - one.at);
  return last === undefined
    ? null
    : { container: last.container, exitCode: last.exitCode, reason: last.reason };
}

/** What kubelet or the scheduler is at, by the newest event. */
function latest(events: readonly KubeEvent[]): string {
  const last = events.at(-1);
  return last === undefined ? '' : cut(`${last.reason}: ${last.message}`);
}

/** Events of one pod, oldest first. */
export function eventsOf(
  { metadata: { name, uid } }: { metadata: { name: string; uid: string } },
  events: Iterable<KubeEvent>,
): KubeEvent[] {
  return [...events]
    .filter(({ involvedObject: of }) => of.name === name && (of.uid === '' || of.uid === uid))
    .toSorted((one, other) => eventTime(one) - eventTime(other));
}

function cut(text: string): string {
  const line = text.replaceAll(/\s+/g, ' ').trim();
  return line.length > MOST_MESSAGE ? `${line.slice(0, MOST_MESSAGE)}…` : line;
}
