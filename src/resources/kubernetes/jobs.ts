import * as v from 'valibot';
import { SluiceError } from '../../domain/errors.ts';
import type { Cluster } from './cluster.ts';
import { instanceOf } from './deployment.ts';
import { BATCH_JOB } from './job-manifest.ts';
import { eventTime, jobSchema } from './objects.ts';
import type { KubeEvent, KubeJob, Pod } from './objects.ts';
import { pathOf } from './paths.ts';
import { eventsOf, lookAtPod } from './pods.ts';
import type { PodLook } from './pods.ts';
import { isAbsent } from './watched.ts';

const PAUSED = 'sluice/paused';
const QUEUE_LABEL = 'kueue.x-k8s.io/queue-name';

/** How far the Job of a batch is. */
export interface JobLook {
  job: KubeJob;
  /** `running` also while it waits, for whatever. */
  is: 'running' | 'complete' | 'failed' | 'expired';
  /** Why it waits or failed, in Kubernetes' words; '' where nothing is the matter. */
  reason: string;
  /** Of its pods, those that are there. */
  pods: PodLook[];
}

/** Jobs that this server makes, in the namespaces that it uses. */
export interface ClusterJobs {
  /** Makes it, or adopts the one of that name that is there. */
  create(namespace: string, name: string, manifest: object): Promise<KubeJob>;
  /** Null: there certainly is none of that name. */
  find(namespace: string, name: string): Promise<KubeJob | null>;
  look(namespace: string, job: KubeJob): Promise<JobLook>;
  /** Has it wait, or go on where we had it wait. What Kueue decides is left to it. */
  hold(namespace: string, job: KubeJob, isHeld: boolean): Promise<void>;
  /** In the background; false: it, or a pod of it, is there yet. */
  destroy(namespace: string, name: string): Promise<boolean>;
}

export function createClusterJobApi(cluster: Cluster): ClusterJobs {
  const { api } = cluster;
  return {
    create: async (namespace, name, manifest) => createJob(cluster, namespace, name, manifest),
    // What the watch was told is enough, but for what it does not know.
    find: async (namespace, name) =>
      (await cluster.jobs(namespace)).get(name) ?? getJob(cluster, namespace, name),
    async look(namespace, job) {
      const [pods, podEvents, jobEvents] = await Promise.all([
        podsOf(cluster, namespace, job.metadata.name),
        cluster.events(namespace, 'Pod'),
        cluster.events(namespace, 'Job'),
      ]);
      const looks = pods.map((pod) => lookAtPod(pod, eventsOf(pod, podEvents)));
      return { job, pods: looks, ...stateOf(job, looks, eventsOf(job, jobEvents)) };
    },
    async hold(namespace, job, isHeld) {
      const { name, labels, annotations } = job.metadata;
      const isOurs = annotations[PAUSED] === 'true';
      if (labels[QUEUE_LABEL] !== undefined || isHeld === isOurs) return;
      // Somebody else has it wait: that is theirs to end.
      if (isHeld && job.spec.suspend) return;
      const body = {
        metadata: { annotations: { [PAUSED]: isHeld ? 'true' : null } },
        spec: { suspend: isHeld },
      };
      await api.ask({ method: 'PATCH', path: pathOf('jobs', namespace, name), body });
    },
    async destroy(namespace, name) {
      const body = { kind: 'DeleteOptions', apiVersion: 'v1', propagationPolicy: 'Background' };
      try {
        await api.ask({ method: 'DELETE', path: pathOf('jobs', namespace, name), body });
        return false;
      } catch (error) {
        if (!isAbsent(error)) throw error;
        return (await podsOf(cluster, namespace, name)).length === 0;
      }
    },
  };
}

async function createJob(
  cluster: Cluster,
  namespace: string,
  name: string,
  body: object,
): Promise<KubeJob> {
  try {
    const path = pathOf('jobs', namespace);
    return v.parse(jobSchema, await cluster.api.ask({ method: 'POST', path, body }));
  } catch (error) {
    if (!(error instanceof SluiceError) || error.code !== 'kubernetes.conflict') throw error;
    const found = await getJob(cluster, namespace, name);
    const labels = found?.metadata.labels ?? {};
    const isOurs = Object.entries(BATCH_JOB).every(([key, value]) => labels[key] === value);
    if (found !== null && isOurs) return found;
    throw error;
  }
}

async function getJob({ api }: Cluster, namespace: string, name: string): Promise<KubeJob | null> {
  try {
    const path = pathOf('jobs', namespace, name);
    return v.parse(jobSchema, await api.ask({ method: 'GET', path }));
  } catch (error) {
    if (isAbsent(error)) return null;
    throw error;
  }
}

async function podsOf(cluster: Cluster, namespace: string, name: string): Promise<Pod[]> {
  const all = await cluster.pods(namespace);
  return [...all.values()].filter(({ metadata }) => instanceOf(metadata.labels) === name);
}

function stateOf(
  job: KubeJob,
  pods: readonly PodLook[],
  events: readonly KubeEvent[],
): Pick<JobLook, 'is' | 'reason'> {
  const is = (type: string) =>
    job.status.conditions.find((each) => each.type === type && each.status === 'True');
  if (is('Complete') !== undefined) return { is: 'complete', reason: '' };
  const failed = is('Failed');
  if (failed !== undefined) {
    const ends = pods.filter((pod) => pod.is === 'failed').map(({ reason }) => reason);
    const said = [`${failed.reason}: ${failed.message}`, ...ends.slice(-1)].join('; ');
    return { is: failed.reason === 'DeadlineExceeded' ? 'expired' : 'failed', reason: said };
  }
  if (job.spec.suspend) return { is: 'running', reason: whySuspended(job, events) };
  const waiting = pods.find(({ reason }) => reason !== '');
  if (waiting !== undefined) {
    return { is: 'running', reason: `Pod ${waiting.pod}: ${waiting.reason}` };
  }
  return { is: 'running', reason: pods.length === 0 ? whyNoPod(events) : '' };
}

/** Such as a quota. */
function whyNoPod(events: readonly KubeEvent[]): string {
  const last = events.findLast(({ type }) => type === 'Warning');
  return last === undefined ? '' : `${last.reason}: ${last.message}`;
}

function whySuspended({ metadata }: KubeJob, events: readonly KubeEvent[]): string {
  if (metadata.annotations[PAUSED] === 'true') return 'The Job is suspended: the batch is paused.';
  const queue = metadata.labels[QUEUE_LABEL];
  if (queue === undefined) return 'The Job is suspended (spec.suspend), by somebody else.';
  const [last] = events.toSorted((one, other) => eventTime(other) - eventTime(one));
  const said = last === undefined ? '' : ` ${last.reason}: ${last.message}`;
  return `The Job waits until Kueue admits it from the queue ${queue}.${said}`;
}
