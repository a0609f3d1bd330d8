import type { Cluster } from './cluster.ts';
import { deletePod } from './cluster.ts';
import { KINDS, kindOf, NAMESPACES, PODS } from './kinds.ts';
import type { Kind } from './kinds.ts';
import { toTime } from './objects.ts';
import type { KubeObject, Pod } from './objects.ts';

/*
 * The garbage collector: what is owned by something that is gone goes, too; an owner that is deleted
 * in the foreground waits for what it owns, one that leaves orphans lets them go first.
 */

interface Found {
  kind: Kind;
  object: KubeObject;
}

export function createGarbageCollector(cluster: Cluster): { sync(): void } {
  const { store } = cluster;

  function everything(): Found[] {
    return KINDS.flatMap((kind) => store.list(kind).map((object) => ({ kind, object })));
  }

  function remove({ kind, object }: Found, policy: 'Background' | 'Foreground'): void {
    if (object.metadata.deletionTimestamp !== undefined) return;
    if (kind === PODS) {
      deletePod(cluster, object as Pod);
      return;
    }
    store.update(kind, object.metadata.namespace, object.metadata.name, ({ metadata }) => {
      metadata.deletionTimestamp = toTime(Date.now());
      metadata.deletionGracePeriodSeconds = 0;
      if (policy === 'Foreground') {
        metadata.finalizers = [...new Set([...(metadata.finalizers ?? []), 'foregroundDeletion'])];
      }
    });
  }

  function without({ kind, object }: Found, finalizer: string): void {
    store.update(kind, object.metadata.namespace, object.metadata.name, ({ metadata }) => {
      const left = (metadata.finalizers ?? []).filter((one) => one !== finalizer);
      if (left.length > 0) metadata.finalizers = left;
      else delete metadata.finalizers;
    });
  }

  function orphan(owner: Found, dependents: readonly Found[]): void {
    for (const { kind, object } of dependents) {
      store.update(kind, object.metadata.namespace, object.metadata.name, ({ metadata }) => {
        const left = (metadata.ownerReferences ?? []).filter(
          ({ uid }) => uid !== owner.object.metadata.uid,
        );
        if (left.length > 0) metadata.ownerReferences = left;
        else delete metadata.ownerReferences;
      });
    }
    without(owner, 'orphan');
  }

  function collectOwner(owner: Found, dependents: readonly Found[]): void {
    const finalizers = owner.object.metadata.finalizers ?? [];
    if (finalizers.includes('orphan')) orphan(owner, dependents);
    else if (finalizers.includes('foregroundDeletion')) {
      for (const one of dependents) remove(one, 'Foreground');
      if (dependents.length === 0) without(owner, 'foregroundDeletion');
    }
  }

  function collectDependent(found: Found, uids: ReadonlyMap<string, KubeObject>): void {
    const owners = found.object.metadata.ownerReferences ?? [];
    if (owners.length === 0 || owners.some(({ uid }) => uids.has(uid))) return;
    // An owner of a kind that is not kept here cannot be looked for.
    if (owners.some(({ apiVersion, kind }) => kindOf(apiVersion, kind) === undefined)) return;
    remove(found, 'Background');
  }

  /** A namespace that is deleted takes all with it. */
  function collectNamespace(namespace: KubeObject): void {
    const all = KINDS.filter(({ namespaced }) => namespaced).flatMap((kind) =>
      store.list(kind, namespace.metadata.name).map((object) => ({ kind, object })),
    );
    for (const one of all) remove(one, 'Background');
    if (all.length === 0) store.remove(NAMESPACES, undefined, namespace.metadata.name);
  }

  return {
    sync() {
      const all = everything();
      const uids = new Map(all.map(({ object }) => [object.metadata.uid, object]));
      for (const found of all) {
        const { deletionTimestamp, uid } = found.object.metadata;
        if (deletionTimestamp !== undefined) {
          const dependents = all.filter(({ object }) =>
            object.metadata.ownerReferences?.some((one) => one.uid === uid),
          );
          collectOwner(found, dependents);
        }
        collectDependent(found, uids);
      }
      for (const namespace of store.list(NAMESPACES)) {
        if (namespace.metadata.deletionTimestamp !== undefined) collectNamespace(namespace);
      }
    },
  };
}
