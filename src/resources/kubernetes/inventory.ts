import type { Machine } from '../lease-contract.ts';
import type { Cluster } from './cluster.ts';
import { ENGINE, instanceOf, selectorOf } from './deployment.ts';
import { newestOf } from './engines.ts';
import { deploymentSchema, eventSchema, podSchema, serviceSchema, timeOf } from './objects.ts';
import type { Deployment, KubeEvent, Pod, Service } from './objects.ts';
import { idOf, parseId, pathOf } from './paths.ts';
import { eventsOf, lookAtPod } from './pods.ts';
import type { PodLook } from './pods.ts';
import { listAll } from './watched.ts';

/** What there is of an engine; some of it may be gone before the rest. */
interface Parts {
  namespace: string;
  name: string;
  deployment: Deployment | null;
  services: Service[];
  pods: Pod[];
}

/**
 * All engines of a deployment of Sluice by what the API server has now, also those of which only a pod or a Service is
 * left: a pod holds its GPU until it is gone.
 */
export async function listEngines(stamp: string, cluster: Cluster): Promise<Machine[]> {
  const namespaces = await cluster.namespaces();
  const all = await Promise.all(namespaces.map(async (each) => listIn(each, {}, cluster)));
  return all.flat().filter(({ name }) => name.startsWith(stamp));
}

/** Null: there is nothing left of it. */
export async function readEngine(id: string, cluster: Cluster): Promise<Machine | null> {
  const { namespace, name } = parseId(id);
  const narrow = { 'app.kubernetes.io/instance': name };
  const [found] = await listIn(namespace, narrow, cluster);
  return found ?? null;
}

async function listIn(
  namespace: string,
  narrow: Readonly<Record<string, string>>,
  cluster: Cluster,
): Promise<Machine[]> {
  const { api } = cluster;
  const query = { labelSelector: selectorOf({ ...ENGINE, ...narrow }) };
  // In this order: what comes to be meanwhile has its Deployment first, and what goes loses that first.
  const pods = await listAll(api, pathOf('pods', namespace), query, podSchema);
  const services = await listAll(api, pathOf('services', namespace), query, serviceSchema);
  const deployments = await listAll(api, pathOf('deployments', namespace), query, deploymentSchema);
  const parts = new Map<string, Parts>();
  function partsOf(labels: Readonly<Record<string, string>>): Parts | null {
    const name = instanceOf(labels);
    if (name === null) return null;
    const found = parts.get(name) ?? { namespace, name, deployment: null, services: [], pods: [] };
    parts.set(name, found);
    return found;
  }
  for (const each of pods.items) partsOf(each.metadata.labels)?.pods.push(each);
  for (const each of services.items) partsOf(each.metadata.labels)?.services.push(each);
  for (const each of deployments.items) {
    const its = partsOf(each.metadata.labels);
    if (its !== null) its.deployment = each;
  }
  const events = await eventsIn(namespace, [...parts.values()], cluster);
  return [...parts.values()].map((each) => machineOf(each, events));
}

/** Asked for only where a pod waits for a node: nothing else is read of them here. */
async function eventsIn(
  namespace: string,
  parts: readonly Parts[],
  { api }: Cluster,
): Promise<KubeEvent[]> {
  const waiting = parts.some(({ pods }) => pods.some((pod) => lookAtPod(pod).is === 'unscheduled'));
  if (!waiting) return [];
  const query = { fieldSelector: 'involvedObject.kind=Pod' };
  try {
    return (await listAll(api, pathOf('events', namespace), query, eventSchema)).items;
  } catch {
    // They are for people: who may not read them sees the pod's own condition.
    return [];
  }
}

function machineOf(parts: Parts, events: readonly KubeEvent[]): Machine {
  const { namespace, name, deployment, pods } = parts;
  const pod = newestOf(pods);
  const look = pod === null ? null : lookAtPod(pod, eventsOf(pod, events));
  const first = deployment ?? parts.services[0] ?? pod;
  return {
    id: idOf(namespace, name),
    name,
    state: stateOf(deployment, look),
    ssh: null,
    region: regionOf(pod),
    gpuType: '',
    gpuCount: 0,
    pricePerHour: null,
    createdAt: timeOf(first?.metadata.creationTimestamp ?? ''),
    reason: look?.reason || whyNoPod(deployment),
    raw: rawOf(parts, pod, look?.is ?? 'none'),
  };
}

/** Its node, where it has one. */
function regionOf(pod: Pod | null): string {
  return pod?.spec.nodeName ?? '';
}

function stateOf(deployment: Deployment | null, look: PodLook | null): Machine['state'] {
  if (deployment === null || deployment.metadata.deletionTimestamp !== null) return 'stopping';
  return look === null || look.is === 'unscheduled' ? 'booting' : 'running';
}

/** A quota, or a policy that refuses the pod. */
function whyNoPod(deployment: Deployment | null): string {
  const failure = deployment?.status.conditions.find(
    ({ type, status }) => type === 'ReplicaFailure' && status === 'True',
  );
  return failure === undefined ? '' : `${failure.reason}: ${failure.message}`;
}

function rawOf({ namespace, name, deployment }: Parts, pod: Pod | null, is: string) {
  return {
    namespace,
    deployment: deployment === null ? null : name,
    pod: pod?.metadata.name ?? null,
    node: pod?.spec.nodeName ?? null,
    is,
  };
}
