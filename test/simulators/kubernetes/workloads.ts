import { createHash } from 'node:crypto';
import { createPod, deletePod, isOver, podsOf } from './cluster.ts';
import type { Cluster } from './cluster.ts';
import { DEPLOYMENTS, REPLICA_SETS } from './kinds.ts';
import { controllerOf, hasCondition, setCondition } from './objects.ts';
import type { Deployment, KubeObject, PodTemplate, ReplicaSet } from './objects.ts';

/** Deployments and ReplicaSets. */

const SET_SOURCE = { component: 'replicaset-controller' };
const DEPLOYMENT_SOURCE = { component: 'deployment-controller' };
const REVISION = 'deployment.kubernetes.io/revision';

const hashOf = (template: unknown): string =>
  createHash('sha1').update(JSON.stringify(template)).digest('hex').slice(0, 10);

export function createWorkloads(cluster: Cluster): { sync(): void } {
  const { store, recorder } = cluster;

  function syncSet(set: ReplicaSet): void {
    const { namespace, name, deletionTimestamp } = set.metadata;
    if (deletionTimestamp !== undefined) return;
    const live = podsOf(cluster, set).filter(
      (pod) => pod.metadata.deletionTimestamp === undefined && !isOver(pod),
    );
    const wanted = set.spec.replicas ?? 1;
    for (let have = live.length; have < wanted; have += 1) {
      const pod = createPod(cluster, set, set.spec.template ?? {}, { name });
      recorder.record(
        set,
        'Normal',
        'SuccessfulCreate',
        `Created pod: ${pod.metadata.name}`,
        SET_SOURCE,
      );
    }
    // Those that serve nobody go first.
    const readiness = (pod: (typeof live)[number]): number =>
      hasCondition(pod.status.conditions, 'Ready') ? 1 : 0;
    const sorted = live.toSorted((one, two) => readiness(one) - readiness(two));
    for (const pod of sorted.slice(0, Math.max(0, live.length - wanted))) {
      deletePod(cluster, pod);
      recorder.record(
        set,
        'Normal',
        'SuccessfulDelete',
        `Deleted pod: ${pod.metadata.name}`,
        SET_SOURCE,
      );
    }
    const ready = live.filter((pod) => hasCondition(pod.status.conditions, 'Ready')).length;
    store.update(REPLICA_SETS, namespace, name, (copy) => {
      (copy as ReplicaSet).status = {
        ...(copy as ReplicaSet).status,
        replicas: live.length,
        fullyLabeledReplicas: live.length,
        readyReplicas: ready,
        availableReplicas: ready,
        observedGeneration: set.metadata.generation ?? 1,
      };
    });
  }

  function setsOf({ metadata }: Deployment): ReplicaSet[] {
    const sets = store.list(REPLICA_SETS, metadata.namespace) as ReplicaSet[];
    return sets.filter((set) => controllerOf(set)?.uid === metadata.uid);
  }

  function makeSet(deployment: Deployment, hash: string, revision: number): ReplicaSet {
    const { namespace = 'default', name, uid } = deployment.metadata;
    const template = structuredClone<PodTemplate>(deployment.spec.template);
    const labels = { ...template.metadata?.labels, 'pod-template-hash': hash };
    template.metadata = { ...template.metadata, labels };
    const { matchLabels, ...selector } = deployment.spec.selector;
    const made = store.create(REPLICA_SETS, {
      apiVersion: 'apps/v1',
      kind: 'ReplicaSet',
      metadata: {
        name: `${name}-${hash}`,
        namespace,
        labels,
        annotations: { [REVISION]: String(revision) },
        generation: 1,
        ownerReferences: [
          {
            apiVersion: 'apps/v1',
            kind: 'Deployment',
            name,
            uid,
            controller: true,
            blockOwnerDeletion: true,
          },
        ],
      } as unknown as KubeObject['metadata'],
      spec: {
        replicas: 0,
        selector: { ...selector, matchLabels: { ...matchLabels, 'pod-template-hash': hash } },
        template,
      },
      status: { replicas: 0 },
    });
    return made as ReplicaSet;
  }

  function resize(deployment: Deployment, set: ReplicaSet, replicas: number): void {
    const before = set.spec.replicas ?? 0;
    if (before === replicas) return;
    const { namespace, name } = set.metadata;
    store.update(REPLICA_SETS, namespace, name, (copy) => {
      (copy as ReplicaSet).spec.replicas = replicas;
    });
    const way = replicas > before ? 'up' : 'down';
    recorder.record(
      deployment,
      'Normal',
      'ScalingReplicaSet',
      `Scaled ${way} replica set ${name} from ${before} to ${replicas}`,
      DEPLOYMENT_SOURCE,
    );
  }

  /** New pods first, unless it recreates: then the old ones are gone before. */
  function roll(deployment: Deployment, current: ReplicaSet, old: readonly ReplicaSet[]): void {
    const wanted = deployment.spec.replicas ?? 1;
    const isRecreate = deployment.spec.strategy?.type === 'Recreate';
    const oldPods = old.flatMap((set) => podsOf(cluster, set)).filter((pod) => !isOver(pod));
    if (isRecreate) {
      for (const set of old) resize(deployment, set, 0);
      if (oldPods.length === 0) resize(deployment, current, wanted);
      return;
    }
    resize(deployment, current, wanted);
    if ((current.status.readyReplicas ?? 0) >= wanted)
      for (const set of old) resize(deployment, set, 0);
  }

  function syncDeployment(deployment: Deployment): void {
    const { namespace, name, deletionTimestamp, generation = 1 } = deployment.metadata;
    if (deletionTimestamp !== undefined) return;
    const hash = hashOf(deployment.spec.template);
    const sets = setsOf(deployment);
    const found = sets.find((set) => set.metadata.labels?.['pod-template-hash'] === hash);
    if (found === undefined && deployment.spec.paused === true) return;
    const current = found ?? makeSet(deployment, hash, sets.length + 1);
    const old = sets.filter(({ metadata }) => metadata.uid !== current.metadata.uid);
    if (deployment.spec.paused !== true) roll(deployment, current, old);
    const all = [...old, current].map(
      (set) => store.get(REPLICA_SETS, namespace, set.metadata.name) as ReplicaSet,
    );
    const sum = (pick: (set: ReplicaSet) => number | undefined): number => {
      let total = 0;
      for (const set of all) total += pick(set) ?? 0;
      return total;
    };
    const wanted = deployment.spec.replicas ?? 1;
    const ready = sum((set) => set.status.readyReplicas);
    const updated = current.status.replicas;
    store.update(DEPLOYMENTS, namespace, name, (copy) => {
      const { status, metadata } = copy as Deployment;
      metadata.annotations = {
        ...metadata.annotations,
        [REVISION]: String(sets.length + (found === undefined ? 1 : 0)),
      };
      const isUp = ready >= wanted;
      let conditions = setCondition(
        status.conditions,
        isUp
          ? {
              type: 'Available',
              status: 'True',
              reason: 'MinimumReplicasAvailable',
              message: 'Deployment has minimum availability.',
            }
          : {
              type: 'Available',
              status: 'False',
              reason: 'MinimumReplicasUnavailable',
              message: 'Deployment does not have minimum availability.',
            },
        Date.now(),
      );
      const rolled = isUp && updated === wanted;
      conditions = setCondition(
        conditions,
        {
          type: 'Progressing',
          status: 'True',
          reason: rolled ? 'NewReplicaSetAvailable' : 'ReplicaSetUpdated',
          message: `ReplicaSet "${current.metadata.name}" ${rolled ? 'has successfully progressed' : 'is progressing'}.`,
        },
        Date.now(),
      );
      (copy as Deployment).status = {
        observedGeneration: generation,
        replicas: sum((set) => set.status.replicas),
        updatedReplicas: updated,
        readyReplicas: ready,
        availableReplicas: ready,
        ...(wanted > ready ? { unavailableReplicas: wanted - ready } : {}),
        conditions,
      };
    });
  }

  return {
    sync() {
      for (const deployment of store.list(DEPLOYMENTS) as Deployment[]) syncDeployment(deployment);
      for (const set of store.list(REPLICA_SETS) as ReplicaSet[]) syncSet(set);
    },
  };
}
