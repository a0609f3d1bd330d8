import { randomUUID } from 'node:crypto';
import type { Kind } from './kinds.ts';
import { apiVersionOf, EVENTS, JOBS, NAMESPACES, PODS } from './kinds.ts';
import { labelJob, setDefaults, setSpecDefaults } from './defaults.ts';
import { unknownFields } from './models.ts';
import { isRecord, randomSuffix, toTime } from './objects.ts';
import type { Job, KubeObject, Meta, Pod } from './objects.ts';
import { applyPatch, jsonPatch, mergePatch, strategicMerge } from './patch.ts';
import { parseFieldSelector, parseLabelSelector } from './selectors.ts';
import type { Predicate } from './selectors.ts';
import {
  alreadyExists,
  badRequest,
  conflict,
  expired,
  invalid,
  MODIFIED,
  notFound,
  StatusError,
} from './status.ts';
import type { Status } from './status.ts';
import type { Store } from './store.ts';
import { validateNew, validateUpdate } from './validation.ts';

/** One request for objects of a kind, its address taken apart. */
export interface Ask {
  kind: Kind;
  namespace: string | undefined;
  name: string | undefined;
  subresource: string | undefined;
  query: URLSearchParams;
  body: unknown;
  contentType: string;
}

/** What admission may do to a new object, and what acts when one is deleted. */
export interface Hooks {
  admit(kind: Kind, object: KubeObject): void;
}

export interface ListPage {
  items: KubeObject[];
  version: number;
  next?: string;
  remaining?: number;
}

interface Answer {
  code: number;
  body: KubeObject | Status;
  warning?: string;
}

/** Creates, reads, changes and deletes; what a watch does is in watch.ts. */
export interface Rest {
  predicate(ask: Ask): Predicate;
  list(ask: Ask): ListPage;
  get(ask: Ask): KubeObject;
  create(ask: Ask): Answer;
  update(ask: Ask): Answer;
  patch(ask: Ask): Answer;
  remove(ask: Ask): Answer;
  removeAll(ask: Ask): KubeObject[];
}

interface DeleteOptions {
  propagationPolicy?: string;
  orphanDependents?: boolean;
  gracePeriodSeconds?: number;
  preconditions?: { uid?: string; resourceVersion?: string };
  dryRun?: string[];
}

const LIST_LIVES = 400;

const isDry = (query: URLSearchParams): boolean => query.getAll('dryRun').includes('All');

export function createRest(store: Store, hooks: Hooks): Rest {
  /** Pages are cut from the list as it was when the first one was asked for. */
  const snapshots = new Map<string, { items: KubeObject[]; version: number }>();
  const applied = new Map<string, Record<string, unknown>>();

  function predicate({ kind, query, name }: Ask): Predicate {
    const labels = query.get('labelSelector') ?? '';
    const fields = query.get('fieldSelector') ?? '';
    const tests = [
      ...(labels === '' ? [] : [parseLabelSelector(labels)]),
      ...(fields === '' ? [] : [parseFieldSelector(kind, fields)]),
      ...(name === undefined ? [] : [(one: KubeObject) => one.metadata.name === name]),
    ];
    return (object) => tests.every((test) => test(object));
  }

  function list(ask: Ask): ListPage {
    const limit = Number(ask.query.get('limit') ?? 0);
    const token = ask.query.get('continue') ?? '';
    const [id = '', from = '0'] =
      token === '' ? [] : Buffer.from(token, 'base64').toString().split('@');
    const kept = snapshots.get(id);
    if (token !== '' && kept === undefined) {
      throw expired(
        'The provided continue parameter is too old to display a consistent list result.',
      );
    }
    const all = kept?.items ?? store.list(ask.kind, ask.namespace).filter(predicate(ask));
    const version = kept?.version ?? store.version();
    const start = Number(from);
    if (limit <= 0 || all.length <= start + limit) return { items: all.slice(start), version };
    const key = id === '' ? `${version}-${randomSuffix(8)}` : id;
    snapshots.set(key, { items: all, version });
    const [first] = snapshots.keys();
    if (snapshots.size > LIST_LIVES && first !== undefined) snapshots.delete(first);
    return {
      items: all.slice(start, start + limit),
      version,
      next: Buffer.from(`${key}@${start + limit}`).toString('base64'),
      remaining: all.length - start - limit,
    };
  }

  function get({ kind, namespace, name = '' }: Ask): KubeObject {
    const found = store.get(kind, namespace, name);
    if (found === undefined) throw notFound(kind, name);
    return found;
  }

  function parseBody({ kind, body, namespace, query }: Ask): KubeObject {
    if (!isRecord(body)) throw badRequest('the request has no object');
    const { apiVersion = apiVersionOf(kind), kind: name = kind.kind } = body;
    if (apiVersion !== apiVersionOf(kind) || name !== kind.kind) {
      throw badRequest(
        `${String(name)} in version "${String(apiVersion)}" cannot be handled as a ${kind.kind}: no kind "${String(name)}" is registered for version "${String(apiVersion)}"`,
      );
    }
    const metadata = (isRecord(body['metadata']) ? body['metadata'] : {}) as Partial<Meta>;
    if (kind.namespaced && metadata.namespace !== undefined && metadata.namespace !== namespace) {
      throw badRequest(
        'the namespace of the provided object does not match the namespace sent on the request',
      );
    }
    strictly(kind, body, query);
    const object = structuredClone(body) as unknown as KubeObject; // validated before it is kept
    object.apiVersion = apiVersion;
    object.kind = name;
    object.metadata = { ...structuredClone(metadata) } as Meta; // what is missing is filled in below
    if (kind.namespaced && namespace !== undefined) object.metadata.namespace = namespace;
    return object;
  }

  function strictly(kind: Kind, body: unknown, query: URLSearchParams): void {
    if (query.get('fieldValidation') !== 'Strict') return;
    const unknown = unknownFields(kind.model, body);
    if (unknown.length > 0) throw badRequest(`strict decoding error: ${unknown.join(', ')}`);
  }

  function create(ask: Ask): Answer {
    const { kind } = ask;
    const object = parseBody(ask);
    const { metadata } = object;
    if ((metadata.name ?? '') === '' && metadata.generateName !== undefined) {
      metadata.name = `${metadata.generateName.slice(0, 58)}${randomSuffix()}`;
    }
    metadata.name ??= '';
    // Only the server says these.
    for (const field of ['deletionTimestamp', 'resourceVersion', 'generation', 'managedFields']) {
      Reflect.deleteProperty(metadata, field);
    }
    const errors = validateNew(kind, object);
    if (errors.length > 0) throw invalid(kind, metadata.name, errors);
    if (kind !== PODS && kind !== EVENTS) delete object.status;
    metadata.uid = randomUUID();
    setDefaults(kind, object);
    if (kind === JOBS) labelJob(object as Job, metadata.uid);
    hooks.admit(kind, object);
    return { code: 201, body: insert(kind, object, isDry(ask.query)) };
  }

  function insert(kind: Kind, object: KubeObject, dry: boolean): KubeObject {
    const { namespace, name } = object.metadata;
    if (!dry) return store.create(kind, object);
    if (store.get(kind, namespace, name) !== undefined) throw alreadyExists(kind, name);
    object.metadata.creationTimestamp = toTime(Date.now());
    return object;
  }

  /** Replaces the object by `next`, as far as the subresource and the kind allow it. */
  function write(ask: Ask, before: KubeObject, next: KubeObject): Answer {
    const { kind, namespace, subresource } = ask;
    const { name } = before.metadata;
    const wanted = next.metadata?.resourceVersion;
    if (wanted !== undefined && wanted !== '' && wanted !== before.metadata.resourceVersion) {
      throw conflict(kind, name, MODIFIED);
    }
    if (next.metadata?.uid !== undefined && next.metadata.uid !== before.metadata.uid) {
      throw conflict(
        kind,
        name,
        `Precondition failed: UID in precondition: ${next.metadata.uid}, UID in object meta: ${before.metadata.uid}`,
      );
    }
    const kept: KubeObject =
      subresource === 'status'
        ? { ...before, status: next.status }
        : {
            ...next,
            apiVersion: before.apiVersion,
            kind: before.kind,
            metadata: keepIdentity(before, next),
          };
    if (subresource !== 'status') {
      if (before.status === undefined) delete kept.status;
      else kept.status = before.status;
      setSpecDefaults(kind, kept);
      const errors = validateUpdate(kind, before, kept);
      if (errors.length > 0) throw invalid(kind, name, errors);
    }
    if (isDry(ask.query)) return { code: 200, body: kept };
    return { code: 200, body: store.update(kind, namespace, name, () => structuredClone(kept)) };
  }

  function keepIdentity(before: KubeObject, next: KubeObject): Meta {
    const { uid, creationTimestamp, resourceVersion, name, namespace, generation } =
      before.metadata;
    const { deletionTimestamp, deletionGracePeriodSeconds } = before.metadata;
    return {
      ...next.metadata,
      name,
      uid,
      creationTimestamp,
      resourceVersion,
      ...(namespace === undefined ? {} : { namespace }),
      ...(generation === undefined ? {} : { generation }),
      ...(deletionTimestamp === undefined ? {} : { deletionTimestamp }),
      ...(deletionGracePeriodSeconds === undefined ? {} : { deletionGracePeriodSeconds }),
    };
  }

  function update(ask: Ask): Answer {
    const next = parseBody(ask);
    if (ask.subresource === 'scale') return scale(ask, next);
    return write(ask, get(ask), next);
  }

  function patchOf(ask: Ask, before: unknown): unknown {
    const { contentType, body, query } = ask;
    if (contentType === 'application/merge-patch+json') return mergePatch(before, body);
    if (contentType === 'application/json-patch+json') return jsonPatch(before, body);
    if (contentType === 'application/strategic-merge-patch+json')
      return strategicMerge(before, body);
    if (contentType.startsWith('application/apply-patch')) {
      const key = `${isRecord(before) ? (before['metadata'] as Meta).uid : ''} ${query.get('fieldManager') ?? ''}`;
      const next = applyPatch(
        before as Record<string, unknown>,
        applied.get(key),
        body as Record<string, unknown>,
      );
      applied.set(key, body as Record<string, unknown>);
      return next;
    }
    throw new StatusError(
      415,
      'UnsupportedMediaType',
      `the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml`,
    );
  }

  function patch(ask: Ask): Answer {
    const isApply = ask.contentType.startsWith('application/apply-patch');
    if (isApply && store.get(ask.kind, ask.namespace, ask.name ?? '') === undefined) {
      const made = create(ask);
      if ('metadata' in made.body && isRecord(made.body.metadata)) {
        const key = `${String(made.body.metadata['uid'])} ${ask.query.get('fieldManager') ?? ''}`;
        applied.set(key, ask.body as Record<string, unknown>);
      }
      return made;
    }
    const before = get(ask);
    if (ask.subresource === 'scale') {
      return scale(ask, patchOf(ask, scaleOf(before)) as KubeObject);
    }
    const next = patchOf(ask, structuredClone(before)) as KubeObject;
    strictly(ask.kind, next, ask.query);
    return write(ask, before, next);
  }

  function scaleOf({ metadata, spec, status }: KubeObject): KubeObject {
    const { name, namespace, uid, resourceVersion, creationTimestamp } = metadata;
    const replicas = isRecord(spec) ? spec['replicas'] : 0;
    const now = isRecord(status) ? (status['replicas'] ?? 0) : 0;
    return {
      apiVersion: 'autoscaling/v1',
      kind: 'Scale',
      metadata: {
        name,
        uid,
        resourceVersion,
        creationTimestamp,
        ...(namespace === undefined ? {} : { namespace }),
      },
      spec: { replicas },
      status: { replicas: now },
    };
  }

  function scale(ask: Ask, wanted: KubeObject): Answer {
    const before = get(ask);
    const replicas = isRecord(wanted.spec) ? wanted.spec['replicas'] : undefined;
    const spec = { ...(before.spec as Record<string, unknown>), replicas };
    const { body } = write({ ...ask, subresource: undefined }, before, { ...before, spec });
    return { code: 200, body: scaleOf(body as KubeObject) };
  }

  function remove(ask: Ask): Answer {
    const object = get(ask);
    const options = (isRecord(ask.body) ? ask.body : {}) as DeleteOptions;
    const { uid, resourceVersion } = options.preconditions ?? {};
    const { kind } = ask;
    const { metadata } = object;
    if (
      (uid !== undefined && uid !== metadata.uid) ||
      (resourceVersion !== undefined && resourceVersion !== metadata.resourceVersion)
    ) {
      throw conflict(
        kind,
        metadata.name,
        `Precondition failed: UID in precondition: ${uid ?? ''}, UID in object meta: ${metadata.uid}`,
      );
    }
    const dry = isDry(ask.query) || options.dryRun?.includes('All') === true;
    const policy = policyOf(ask, options);
    if (dry) return { code: 200, body: object };
    const grace =
      options.gracePeriodSeconds ?? Number(ask.query.get('gracePeriodSeconds') ?? Number.NaN);
    const left = markDeleted(kind, object, policy, grace);
    if (left !== undefined) return { code: 200, body: left };
    const isOrphaning =
      kind === JOBS &&
      options.propagationPolicy === undefined &&
      options.orphanDependents === undefined &&
      !ask.query.has('propagationPolicy');
    return {
      code: 200,
      body: {
        kind: 'Status',
        apiVersion: 'v1',
        metadata: {},
        status: 'Success',
        details: {
          name: metadata.name,
          kind: kind.plural,
          uid: metadata.uid,
          ...(kind.group === '' ? {} : { group: kind.group }),
        },
        code: 200,
      },
      ...(isOrphaning
        ? {
            warning:
              'child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning',
          }
        : {}),
    };
  }

  /** Deleting a Job without a word about its pods leaves them: batch/v1 is as old as that. */
  function policyOf({ kind, query }: Ask, options: DeleteOptions): string {
    const asked = options.propagationPolicy ?? query.get('propagationPolicy') ?? undefined;
    if (asked !== undefined && !['Background', 'Foreground', 'Orphan'].includes(asked)) {
      throw badRequest(`invalid propagationPolicy: ${asked}`);
    }
    if (asked !== undefined) return asked;
    if (options.orphanDependents !== undefined)
      return options.orphanDependents ? 'Orphan' : 'Background';
    return kind === JOBS ? 'Orphan' : 'Background';
  }

  /** Undefined when the object is gone at once. */
  function markDeleted(
    kind: Kind,
    object: KubeObject,
    policy: string,
    asked: number,
  ): KubeObject | undefined {
    const { namespace, name } = object.metadata;
    const isBound = kind === PODS && (object as Pod).spec.nodeName !== undefined;
    const hasEnded =
      kind === PODS && ['Succeeded', 'Failed'].includes((object as Pod).status.phase ?? '');
    const own = kind === PODS ? ((object as Pod).spec.terminationGracePeriodSeconds ?? 30) : 0;
    const wanted = Number.isNaN(asked) ? own : asked;
    const grace = isBound && !hasEnded ? wanted : 0;
    const next = store.update(kind, namespace, name, ({ metadata }) => {
      const finalizers = new Set(metadata.finalizers);
      if (policy === 'Foreground') finalizers.add('foregroundDeletion');
      if (policy === 'Orphan') finalizers.add('orphan');
      // Its contents go first, which the real one keeps in spec.finalizers.
      if (kind === NAMESPACES) finalizers.add('kubernetes');
      if (finalizers.size > 0) metadata.finalizers = [...finalizers];
      const shorter = Math.min(
        grace,
        metadata.deletionGracePeriodSeconds ?? Number.POSITIVE_INFINITY,
      );
      metadata.deletionTimestamp ??= toTime(Date.now() + grace * 1000);
      metadata.deletionGracePeriodSeconds = shorter;
    });
    return store.get(kind, namespace, name) === undefined && next.metadata.finalizers === undefined
      ? undefined
      : next;
  }

  return {
    predicate,
    list,
    get: (ask) => (ask.subresource === 'scale' ? scaleOf(get(ask)) : get(ask)),
    create,
    update,
    patch,
    remove,
    removeAll(ask) {
      const items = store.list(ask.kind, ask.namespace).filter(predicate(ask));
      for (const { metadata } of items) {
        const one = { ...ask, name: metadata.name };
        if (metadata.namespace !== undefined) one.namespace = metadata.namespace;
        remove(one);
      }
      return items;
    },
  };
}
