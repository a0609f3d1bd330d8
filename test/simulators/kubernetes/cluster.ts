import type { Recorder } from './events.ts';
import type { KubernetesKnobs } from './knobs.ts';
import type { Loop } from './loop.ts';
import { PODS } from './kinds.ts';
import { controllerOf, randomSuffix } from './objects.ts';
import type { KubeObject, Pod, PodTemplate } from './objects.ts';
import { setDefaults } from './defaults.ts';
import type { Store } from './store.ts';

/** What every controller works with. */
export interface Cluster {
  store: Store;
  recorder: Recorder;
  knobs(): KubernetesKnobs;
  /** Of the controllers: kicked by every change in the store. */
  loop: Loop;
  /** Before a pod is made, as admission does. */
  admit(kind: typeof PODS, object: KubeObject): void;
}

/** The pods that `owner` acts for. */
export function podsOf({ store }: Cluster, owner: KubeObject): Pod[] {
  const pods = store.list(PODS, owner.metadata.namespace) as Pod[];
  return pods.filter((pod) => controllerOf(pod)?.uid === owner.metadata.uid);
}

export const isOver = ({ status }: Pod): boolean =>
  status.phase === 'Succeeded' || status.phase === 'Failed';

export interface NewPod {
  name: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  finalizers?: string[];
  change?(pod: Pod): void;
}

/** Makes a pod of a template, owned by `owner`; its name gets five letters behind. */
export function createPod(
  cluster: Cluster,
  owner: KubeObject,
  template: PodTemplate,
  wanted: NewPod,
): Pod {
  const { store } = cluster;
  const { namespace = 'default', name, uid } = owner.metadata;
  const generateName = `${wanted.name.slice(0, 57)}-`;
  const pod = structuredClone({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      name: `${generateName}${randomSuffix()}`,
      generateName,
      namespace,
      labels: { ...template.metadata?.labels, ...wanted.labels },
      annotations: { ...template.metadata?.annotations, ...wanted.annotations },
      ...(wanted.finalizers === undefined ? {} : { finalizers: wanted.finalizers }),
      ownerReferences: [
        {
          apiVersion: owner.apiVersion,
          kind: owner.kind,
          name,
          uid,
          controller: true,
          blockOwnerDeletion: true,
        },
      ],
    },
    spec: template.spec ?? { containers: [] },
    status: {},
  }) as unknown as Pod; // uid, version and time are the store's to give
  wanted.change?.(pod);
  setDefaults(PODS, pod);
  cluster.admit(PODS, pod);
  return store.create(PODS, pod) as Pod;
}

/** Asks for the end of a pod, as DELETE does. */
export function deletePod({ store }: Cluster, pod: Pod, graceSeconds?: number): void {
  const { namespace, name } = pod.metadata;
  const found = store.get(PODS, namespace, name) as Pod | undefined;
  if (found === undefined || found.metadata.deletionTimestamp !== undefined) return;
  const bound = found.spec.nodeName !== undefined && !isOver(found);
  const grace = bound ? (graceSeconds ?? found.spec.terminationGracePeriodSeconds ?? 30) : 0;
  store.update(PODS, namespace, name, ({ metadata }) => {
    metadata.deletionTimestamp = new Date(Date.now() + grace * 1000)
      .toISOString()
      .replace(/\.\d+/, '');
    metadata.deletionGracePeriodSeconds = grace;
  });
}
