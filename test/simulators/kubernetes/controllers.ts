import type { Cluster } from './cluster.ts';
import { deletePod } from './cluster.ts';
import { createGarbageCollector } from './garbage.ts';
import { createJobController } from './job-controller.ts';
import type { Kubelet } from './kubelet.ts';
import { JOBS, NAMESPACES, NODES, PODS, SERVICE_ACCOUNTS } from './kinds.ts';
import type { Kind } from './kinds.ts';
import { hasCondition, setCondition, toTime } from './objects.ts';
import type { Job, KubeObject, Node, Pod } from './objects.ts';
import { createScheduler } from './scheduler.ts';
import { createEndpoints } from './services.ts';
import { createWorkloads } from './workloads.ts';

export interface Controllers {
  /** Looks at everything once. */
  sync(): void;
  /** What admission changes about a new object; throws a StatusError. */
  admit(kind: Kind, object: KubeObject): void;
}

export const QUEUE_LABEL = 'kueue.x-k8s.io/queue-name';
const SOURCE = { component: 'node-controller' };
const UNREACHABLE = 'node.kubernetes.io/unreachable';

/** Nodes that say nothing: not ready after a while, and their pods marked for deletion after another. */
function createNodeLifecycle(
  cluster: Cluster,
  kubelets: ReadonlyMap<string, Kubelet>,
): { sync(): void } {
  const { store, recorder, knobs, loop } = cluster;
  const lostSince = new Map<string, number>();

  function setReady(node: Node, ready: boolean): void {
    if (hasCondition(node.status.conditions, 'Ready') === ready) return;
    store.update(NODES, undefined, node.metadata.name, (copy) => {
      const { spec, status } = copy as Node;
      status.conditions = setCondition(
        status.conditions,
        ready
          ? {
              type: 'Ready',
              status: 'True',
              reason: 'KubeletReady',
              message: 'kubelet is posting ready status',
            }
          : {
              type: 'Ready',
              status: 'Unknown',
              reason: 'NodeStatusUnknown',
              message: 'Kubelet stopped posting node status.',
            },
        Date.now(),
      );
      const others = (spec.taints ?? []).filter(({ key }) => key !== UNREACHABLE);
      const timeAdded = toTime(Date.now());
      const taints = ready
        ? others
        : [
            ...others,
            { key: UNREACHABLE, effect: 'NoSchedule', timeAdded },
            { key: UNREACHABLE, effect: 'NoExecute', timeAdded },
          ];
      if (taints.length > 0) spec.taints = taints;
      else delete spec.taints;
    });
    const { name } = node.metadata;
    const state = ready ? 'NodeReady' : 'NodeNotReady';
    recorder.record(node, 'Normal', state, `Node ${name} status is now: ${state}`, SOURCE);
  }

  function unready(pod: Pod): void {
    if (!hasCondition(pod.status.conditions, 'Ready')) return;
    store.update(PODS, pod.metadata.namespace, pod.metadata.name, (copy) => {
      const { status } = copy as Pod;
      status.conditions = setCondition(
        status.conditions,
        { type: 'Ready', status: 'False' },
        Date.now(),
      );
    });
    recorder.record(pod, 'Warning', 'NodeNotReady', 'Node is not ready', SOURCE);
  }

  function evict(pod: Pod): void {
    if (pod.metadata.deletionTimestamp !== undefined) return;
    recorder.record(
      pod,
      'Normal',
      'TaintManagerEviction',
      `Marking for deletion Pod ${pod.metadata.namespace}/${pod.metadata.name}`,
      { component: 'taint-eviction-controller' },
    );
    store.update(PODS, pod.metadata.namespace, pod.metadata.name, (copy) => {
      const { status } = copy as Pod;
      status.conditions = setCondition(
        status.conditions,
        {
          type: 'DisruptionTarget',
          status: 'True',
          reason: 'DeletionByTaintManager',
          message: 'Taint manager: deleting due to NoExecute taint',
        },
        Date.now(),
      );
    });
    deletePod(cluster, pod);
  }

  function syncLost(node: Node, since: number): void {
    const { nodeGraceMs, evictAfterMs } = knobs();
    if (Date.now() < since + nodeGraceMs) {
      loop.at(since + nodeGraceMs);
      return;
    }
    setReady(node, false);
    const pods = (store.list(PODS) as Pod[]).filter(
      ({ spec, status }) =>
        spec.nodeName === node.metadata.name &&
        !['Succeeded', 'Failed'].includes(status.phase ?? ''),
    );
    for (const pod of pods) unready(pod);
    const due = since + nodeGraceMs + evictAfterMs;
    if (Date.now() < due) loop.at(due);
    else for (const pod of pods) evict(pod);
  }

  /** Ends a pod that no kubelet will ever speak of. */
  function giveUp({ metadata }: Pod, message: string): void {
    const { namespace, name } = metadata;
    store.update(PODS, namespace, name, (copy) => {
      const { status } = copy as Pod;
      if (['Succeeded', 'Failed'].includes(status.phase ?? '')) return;
      status.phase = 'Failed';
      if (message === '') return;
      status.conditions = setCondition(
        status.conditions,
        { type: 'DisruptionTarget', status: 'True', reason: 'DeletionByPodGC', message },
        Date.now(),
      );
    });
    store.update(PODS, namespace, name, (copy) => {
      copy.metadata.deletionTimestamp ??= toTime(Date.now());
      copy.metadata.deletionGracePeriodSeconds = 0;
    });
  }

  /** Pods of a node that is gone from the cluster, and those that are deleted before they had one. */
  function collectPods(nodes: ReadonlySet<string>): void {
    for (const pod of store.list(PODS) as Pod[]) {
      const { nodeName } = pod.spec;
      if (nodeName !== undefined && !nodes.has(nodeName)) {
        giveUp(pod, 'PodGC: node no longer exists');
      } else if (pod.metadata.deletionTimestamp !== undefined) {
        // Nor does a node speak that nobody runs pods on.
        if (nodeName === undefined || !kubelets.has(nodeName)) giveUp(pod, '');
      }
    }
  }

  return {
    sync() {
      const nodes = store.list(NODES) as Node[];
      for (const node of nodes) {
        const { name } = node.metadata;
        if (kubelets.get(name)?.isLost() === true) {
          if (!lostSince.has(name)) lostSince.set(name, Date.now());
          syncLost(node, lostSince.get(name) ?? Date.now());
        } else if (kubelets.has(name)) {
          lostSince.delete(name);
          setReady(node, true);
        }
      }
      collectPods(new Set(nodes.map(({ metadata }) => metadata.name)));
    },
  };
}

export function createControllers(
  cluster: Cluster,
  kubelets: ReadonlyMap<string, Kubelet>,
): Controllers {
  const { store, knobs } = cluster;
  const parts = [
    createNodeLifecycle(cluster, kubelets),
    createGarbageCollector(cluster),
    createJobController(cluster),
    createWorkloads(cluster),
    createScheduler(cluster),
    createEndpoints(cluster),
  ];

  /** Every namespace has an account `default`. */
  function makeAccounts(): void {
    for (const { metadata } of store.list(NAMESPACES)) {
      if (
        metadata.deletionTimestamp !== undefined ||
        store.get(SERVICE_ACCOUNTS, metadata.name, 'default') !== undefined
      )
        continue;
      store.create(SERVICE_ACCOUNTS, {
        apiVersion: 'v1',
        kind: 'ServiceAccount',
        metadata: {
          name: 'default',
          namespace: metadata.name,
        } as unknown as KubeObject['metadata'],
      });
    }
  }

  return {
    sync() {
      makeAccounts();
      for (const part of parts) part.sync();
    },
    admit(kind, object) {
      // As Kueue's webhook: only who admits may let it run.
      if (kind === JOBS && knobs().kueue && object.metadata.labels?.[QUEUE_LABEL] !== undefined) {
        (object as Job).spec.suspend = true;
      }
    },
  };
}
