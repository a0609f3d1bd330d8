import type * as v from 'valibot';
import { permanent } from '../../domain/errors.ts';
import type { ClusterAccess } from './access.ts';
import { createKubernetesApi } from './api.ts';
import type { KubernetesApi } from './api.ts';
import { eventSchema, jobSchema, podSchema } from './objects.ts';
import type { KubeEvent, KubeJob, Pod } from './objects.ts';
import { MANAGED, selectorOf } from './deployment.ts';
import { pathOf } from './paths.ts';
import { createWatched } from './watched.ts';
import type { Watched } from './watched.ts';

/** Namespaces of a cluster that this deployment uses, with what is watched in them. */
export interface Cluster {
  api: KubernetesApi;
  /** The first one is that of jobs that name none. Rejects where neither settings nor credentials name one. */
  namespaces(): Promise<readonly string[]>;
  /** Pods of ours, by name. */
  pods(namespace: string): Promise<ReadonlyMap<string, Pod>>;
  /** Jobs of ours, by name. */
  jobs(namespace: string): Promise<ReadonlyMap<string, KubeJob>>;
  /** Of the pods of a namespace, or of its Jobs; empty where we may not read events. */
  events(namespace: string, kind: 'Pod' | 'Job'): Promise<readonly KubeEvent[]>;
  close(): Promise<void>;
}

export interface ClusterOptions {
  open: () => Promise<ClusterAccess>;
  /** Empty: that of the credentials. */
  namespaces: readonly string[];
  onTrouble?: (reason: string) => void;
}

/** Asks nothing yet: what is watched is so from the first time that somebody reads it. */
export function createCluster({ open, namespaces, onTrouble }: ClusterOptions): Cluster {
  const api = createKubernetesApi(open);
  const kept = new Map<string, Watched<unknown>>();

  function watched<Schema extends v.GenericSchema>(
    key: string,
    path: string,
    query: Readonly<Record<string, string>>,
    item: Schema,
  ): Watched<v.InferOutput<Schema>> {
    const found = kept.get(key);
    // Each key has one kind of item, whose schema read it.
    if (found !== undefined) return found;
    const trouble = onTrouble === undefined ? {} : { onTrouble };
    const made = createWatched({ api, path, query, item, ...trouble });
    kept.set(key, made);
    return made;
  }

  const ours = { labelSelector: selectorOf(MANAGED) };
  return {
    api,
    async namespaces() {
      if (namespaces.length > 0) return namespaces;
      const { namespace, source } = await api.access();
      if (namespace !== null) return [namespace];
      const message = `KUBERNETES_NAMESPACE is not set, and ${source} names none: set it to the namespace that engines may run in.`;
      throw permanent('kubernetes.no_namespace', message);
    },
    pods: (namespace) =>
      watched(`pods ${namespace}`, pathOf('pods', namespace), ours, podSchema).read(),
    jobs: (namespace) =>
      watched(`jobs ${namespace}`, pathOf('jobs', namespace), ours, jobSchema).read(),
    async events(namespace, kind) {
      const query = { fieldSelector: `involvedObject.kind=${kind}` };
      const key = `events ${kind} ${namespace}`;
      const { read } = watched(key, pathOf('events', namespace), query, eventSchema);
      // They are for people: who may not read them follows a pod by its state alone.
      return [...(await read().catch(() => new Map<string, KubeEvent>())).values()];
    },
    async close() {
      for (const each of kept.values()) each.close();
      await api.close();
    },
  };
}
