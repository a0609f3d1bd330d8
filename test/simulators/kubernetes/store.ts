import { randomUUID } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import type { Kind } from './kinds.ts';
import { apiVersionOf } from './kinds.ts';
import { isRecord, toTime } from './objects.ts';
import type { KubeObject } from './objects.ts';
import { alreadyExists, expired, notFound } from './status.ts';

/** What happened to one object; `before` is missing when it is new. */
export interface Change {
  type: 'ADDED' | 'MODIFIED' | 'DELETED';
  kind: Kind;
  /** As it is now; of a deleted one, as it was last, with the version of its deletion. */
  object: KubeObject;
  before?: KubeObject;
  version: number;
}

/**
 * What etcd is to the real one: objects by kind, namespace and name, one counter of versions, and a
 * history to watch from. Objects in it are never changed, only replaced; everything is synchronous,
 * so what reads and writes without waiting in between is alone.
 */
export interface Store {
  version(): number;
  get(kind: Kind, namespace: string | undefined, name: string): KubeObject | undefined;
  /** Sorted by namespace and name, as etcd's keys are. */
  list(kind: Kind, namespace?: string): KubeObject[];
  /** Throws AlreadyExists. */
  create(kind: Kind, object: KubeObject): KubeObject;
  /** Replaces it by what `change` makes of a copy; nothing happens when that is equal. Throws NotFound. */
  update(
    kind: Kind,
    namespace: string | undefined,
    name: string,
    change: (copy: KubeObject) => KubeObject | void,
  ): KubeObject;
  remove(kind: Kind, namespace: string | undefined, name: string): void;
  /** Changes after `version`; throws Expired when they are forgotten. */
  since(version: number): Change[];
  /** Forgets the history, as etcd's compaction does. */
  compact(): void;
  subscribe(listener: (change: Change) => void): () => void;
}

const HISTORY = 5_000;

const keyOf = (namespace: string | undefined, name: string): string => `${namespace ?? ''}/${name}`;

export function createStore(): Store {
  const tables = new Map<Kind, Map<string, KubeObject>>();
  const listeners = new Set<(change: Change) => void>();
  let history: Change[] = [];
  let oldest = 0;
  let version = 1;

  function tableOf(kind: Kind): Map<string, KubeObject> {
    const table = tables.get(kind) ?? new Map<string, KubeObject>();
    tables.set(kind, table);
    return table;
  }

  function tell(change: Change): void {
    history.push(change);
    if (history.length > HISTORY) {
      oldest = history[history.length - HISTORY / 2 - 1]?.version ?? oldest;
      history = history.slice(-HISTORY / 2);
    }
    for (const listener of listeners) listener(change);
  }

  function get(kind: Kind, namespace: string | undefined, name: string): KubeObject | undefined {
    return tableOf(kind).get(keyOf(namespace, name));
  }

  function remove(kind: Kind, namespace: string | undefined, name: string): void {
    const before = get(kind, namespace, name);
    if (before === undefined) return;
    version += 1;
    tableOf(kind).delete(keyOf(namespace, name));
    const metadata = { ...before.metadata, resourceVersion: String(version) };
    tell({ type: 'DELETED', kind, object: { ...before, metadata }, before, version });
  }

  return {
    version: () => version,
    get,
    remove,
    list(kind, namespace) {
      const entries = [...tableOf(kind)].toSorted(([one], [two]) => (one < two ? -1 : 1));
      const objects = entries.map(([, object]) => object);
      if (namespace === undefined || !kind.namespaced) return objects;
      return objects.filter(({ metadata }) => metadata.namespace === namespace);
    },
    create(kind, object) {
      const { namespace, name } = object.metadata;
      if (get(kind, namespace, name) !== undefined) throw alreadyExists(kind, name);
      version += 1;
      const made: KubeObject = {
        ...structuredClone(object),
        apiVersion: apiVersionOf(kind),
        kind: kind.kind,
        metadata: {
          ...structuredClone(object.metadata),
          uid: object.metadata.uid ?? randomUUID(), // the API server gives one before it validates
          resourceVersion: String(version),
          creationTimestamp: toTime(Date.now()),
        },
      };
      tableOf(kind).set(keyOf(namespace, name), made);
      tell({ type: 'ADDED', kind, object: made, version });
      return made;
    },
    update(kind, namespace, name, change) {
      const before = get(kind, namespace, name);
      if (before === undefined) throw notFound(kind, name);
      const copy = structuredClone(before);
      const answer = change(copy);
      const next = isRecord(answer) ? answer : copy; // an arrow may return what an assignment is worth
      if (isDeepStrictEqual(next, before)) return before;
      const isGone =
        next.metadata.deletionTimestamp !== undefined &&
        (next.metadata.finalizers ?? []).length === 0 &&
        (next.metadata.deletionGracePeriodSeconds ?? 0) === 0;
      if (isGone) {
        // Who watches hears of the end only.
        remove(kind, namespace, name);
        return next;
      }
      version += 1;
      next.metadata.resourceVersion = String(version);
      if (!isDeepStrictEqual(next.spec, before.spec) && next.metadata.generation !== undefined)
        next.metadata.generation += 1;
      tableOf(kind).set(keyOf(namespace, name), next);
      tell({ type: 'MODIFIED', kind, object: next, before, version });
      return next;
    },
    since(from) {
      if (from < oldest) {
        throw expired(`too old resource version: ${from} (${Math.max(oldest, from + 1)})`);
      }
      return history.filter((change) => change.version > from);
    },
    compact() {
      history = [];
      oldest = version;
    },
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}
