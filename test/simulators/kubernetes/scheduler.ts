import type { Cluster } from './cluster.ts';
import { isOver } from './cluster.ts';
import { NODES, PODS } from './kinds.ts';
import { hasCondition, setCondition } from './objects.ts';
import type { Node, Pod } from './objects.ts';
import { parseQuantity, podRequests } from './quantity.ts';
import type { Resources } from './quantity.ts';
import { matchesSelector } from './selectors.ts';

/** Puts pods on nodes, and says why one fits nowhere (k8s.io/kubernetes/pkg/scheduler). */

type Taint = NonNullable<Node['spec']['taints']>[number];

const SOURCE = { component: 'default-scheduler' };

function tolerates(pod: Pod, taint: Taint): boolean {
  return (pod.spec.tolerations ?? []).some(({ key, operator = 'Equal', value = '', effect }) => {
    if (effect !== undefined && effect !== '' && effect !== taint.effect) return false;
    if (operator === 'Exists') return key === undefined || key === '' || key === taint.key;
    return key === taint.key && value === (taint.value ?? '');
  });
}

function affinityAllows(pod: Pod, node: Node): boolean {
  const required = pod.spec.affinity?.nodeAffinity?.requiredDuringSchedulingIgnoredDuringExecution;
  if (required === undefined) return true;
  const labels = node.metadata.labels ?? {};
  return required.nodeSelectorTerms.some(({ matchExpressions = [] }) =>
    matchExpressions.every(({ key, operator, values = [] }) => {
      const found = Number(labels[key]);
      if (operator === 'Gt') return found > Number(values[0]);
      if (operator === 'Lt') return found < Number(values[0]);
      return matchesSelector({ matchExpressions: [{ key, operator, values }] }, labels);
    }),
  );
}

function lacks(wanted: Resources, used: Resources, { status }: Node): string[] {
  const all = { ...wanted, pods: 1 };
  return Object.entries(all).flatMap(([name, amount]) => {
    if (amount === 0) return [];
    const room = (parseQuantity(status.allocatable?.[name]) ?? 0) - (used[name] ?? 0);
    if (amount <= room) return [];
    return [name === 'pods' ? 'Too many pods' : `Insufficient ${name}`];
  });
}

/** Why a pod cannot go there; empty where it can. */
function obstacles(pod: Pod, node: Node, used: Resources): string[] {
  const taints = (node.spec.taints ?? []).filter(({ effect }) => effect !== 'PreferNoSchedule');
  if (node.spec.unschedulable === true) return ['node(s) were unschedulable'];
  const taint = taints.find((one) => !tolerates(pod, one));
  if (taint !== undefined) {
    return [`node(s) had untolerated taint {${taint.key}: ${taint.value ?? ''}}`];
  }
  const selected = Object.entries(pod.spec.nodeSelector ?? {}).every(
    ([key, value]) => node.metadata.labels?.[key] === value,
  );
  if (!selected || !affinityAllows(pod, node))
    return ["node(s) didn't match Pod's node affinity/selector"];
  return lacks(podRequests(pod.spec), used, node);
}

function add(one: Resources, two: Resources): Resources {
  const sum = { ...one };
  for (const [name, amount] of Object.entries(two)) sum[name] = (sum[name] ?? 0) + amount;
  return sum;
}

function refusal(reasons: readonly string[][]): string {
  const counts = new Map<string, number>();
  for (const reason of reasons.flat()) counts.set(reason, (counts.get(reason) ?? 0) + 1);
  const total = reasons.length;
  if (total === 0) return 'no nodes available to schedule pods';
  const all = [...counts].map(([reason, count]) => `${count} ${reason}`).toSorted();
  const kind = reasons.every((one) =>
    one.every((word) => word.startsWith('Insufficient') || word.startsWith('Too many')),
  )
    ? `${total} No preemption victims found for incoming pod.`
    : `${total} Preemption is not helpful for scheduling.`;
  return `0/${total} nodes are available: ${all.join(', ')}. preemption: 0/${total} nodes are available: ${kind}`;
}

export function createScheduler({ store, recorder }: Cluster): { sync(): void } {
  function usage(): Map<string, Resources> {
    const used = new Map<string, Resources>();
    for (const pod of store.list(PODS) as Pod[]) {
      const { nodeName } = pod.spec;
      if (nodeName === undefined || isOver(pod)) continue;
      used.set(nodeName, add(used.get(nodeName) ?? {}, { ...podRequests(pod.spec), pods: 1 }));
    }
    return used;
  }

  function bind(pod: Pod, node: string): void {
    const { namespace, name } = pod.metadata;
    const bound = store.update(PODS, namespace, name, (copy) => {
      const { spec, status } = copy as Pod;
      spec.nodeName = node;
      const kept = (status.conditions ?? []).filter(({ type }) => type !== 'PodScheduled');
      status.conditions = setCondition(kept, { type: 'PodScheduled', status: 'True' }, Date.now());
    });
    recorder.record(
      bound,
      'Normal',
      'Scheduled',
      `Successfully assigned ${namespace}/${name} to ${node}`,
      SOURCE,
    );
  }

  function refuse(pod: Pod, message: string): void {
    const before = (pod.status.conditions ?? []).find(({ type }) => type === 'PodScheduled');
    if (before?.message === message) return;
    const { namespace, name } = pod.metadata;
    store.update(PODS, namespace, name, (copy) => {
      const { status } = copy as Pod;
      status.conditions = setCondition(
        status.conditions,
        { type: 'PodScheduled', status: 'False', reason: 'Unschedulable', message },
        Date.now(),
      );
    });
    recorder.record(pod, 'Warning', 'FailedScheduling', message, SOURCE);
  }

  return {
    sync() {
      const used = usage();
      const nodes = store.list(NODES) as Node[];
      const ready = new Set(nodes.filter(({ status }) => hasCondition(status.conditions, 'Ready')));
      for (const pod of store.list(PODS) as Pod[]) {
        const { spec, metadata } = pod;
        const waits =
          spec.nodeName === undefined && metadata.deletionTimestamp === undefined && !isOver(pod);
        if (!waits || (spec.schedulingGates ?? []).length > 0) continue;
        const reasons = nodes.map((node) =>
          obstacles(pod, node, used.get(node.metadata.name) ?? {}),
        );
        const free = nodes.filter((node, at) => reasons[at]?.length === 0 && ready.has(node));
        // The emptiest one, so that pods spread.
        const [best] = free.toSorted(
          (one, two) =>
            (used.get(one.metadata.name)?.['pods'] ?? 0) -
            (used.get(two.metadata.name)?.['pods'] ?? 0),
        );
        if (best === undefined)
          refuse(
            pod,
            refusal(reasons.map((one) => (one.length === 0 ? ['node(s) were not ready'] : one))),
          );
        else {
          bind(pod, best.metadata.name);
          used.set(
            best.metadata.name,
            add(used.get(best.metadata.name) ?? {}, { ...podRequests(spec), pods: 1 }),
          );
        }
      }
    },
  };
}
