import { isDeepStrictEqual } from 'node:util';
import { isRecord } from './objects.ts';
import { badRequest, StatusError } from './status.ts';

/*
 * The four ways to change an object in part. Which lists are merged by which key is said by the
 * `patchMergeKey` tags of k8s.io/api; a list that is not here is replaced whole.
 */

type Tree = Record<string, unknown>;

const MERGE_KEYS: Readonly<Record<string, readonly string[]>> = {
  containers: ['name'],
  initContainers: ['name'],
  ephemeralContainers: ['name'],
  env: ['name'],
  volumes: ['name'],
  volumeMounts: ['mountPath'],
  volumeDevices: ['devicePath'],
  ports: ['containerPort', 'port'],
  conditions: ['type'],
  ownerReferences: ['uid'],
  imagePullSecrets: ['name'],
  secrets: ['name'],
  hostAliases: ['ip'],
  addresses: ['type'],
  taints: ['key'],
  topologySpreadConstraints: ['topologyKey'],
};
/** Lists of plain values that are merged as sets. */
const SETS = new Set(['finalizers']);

function keyFor(field: string, lists: readonly unknown[][]): string | undefined {
  const items = lists.flat().filter((item) => isRecord(item));
  return MERGE_KEYS[field]?.find((key) => items.length > 0 && items.every((item) => key in item));
}

/** RFC 7386. */
export function mergePatch(target: unknown, patch: unknown): unknown {
  if (!isRecord(patch)) return patch;
  const next: Tree = isRecord(target) ? { ...target } : {};
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete next[key];
    else next[key] = mergePatch(next[key], value);
  }
  return next;
}

function mergeKeyed(before: unknown[], patch: unknown[], key: string): unknown[] {
  const next = [...before];
  const indexOf = (item: Tree): number =>
    next.findIndex((one) => isRecord(one) && one[key] === item[key]);
  for (const item of patch) {
    if (!isRecord(item)) continue;
    const at = indexOf(item);
    if (item['$patch'] === 'delete') {
      if (at >= 0) next.splice(at, 1);
    } else if (at >= 0) next[at] = strategicMerge(next[at], item);
    else next.push(strategicMerge({}, item));
  }
  return next;
}

function mergeList(field: string, before: unknown, patch: unknown[]): unknown[] {
  const old = Array.isArray(before) ? (before as unknown[]) : [];
  if (patch.some((item) => isRecord(item) && item['$patch'] === 'replace')) {
    return patch.filter((item) => !(isRecord(item) && item['$patch'] === 'replace'));
  }
  if (SETS.has(field)) return [...new Set([...old, ...patch])];
  const items = patch.filter((item) => !(isRecord(item) && item['$patch'] === 'delete'));
  const key = keyFor(field, [old, items.length > 0 ? items : patch]);
  return key === undefined ? patch : mergeKeyed(old, patch, key);
}

/** `$setElementOrder/field`: the order of a merged list; what the patch does not name stays behind. */
function reorder(field: string, list: unknown, order: unknown): unknown {
  if (!Array.isArray(list) || !Array.isArray(order)) return list;
  const key = keyFor(field, [list, order]);
  const nameOf = (item: unknown): unknown =>
    key !== undefined && isRecord(item) ? item[key] : item;
  const names = order.map(nameOf);
  const rank = (item: unknown): number => {
    const at = names.indexOf(nameOf(item));
    return at < 0 ? names.length : at;
  };
  return list.toSorted((one, two) => rank(one) - rank(two));
}

const DIRECTIVE = /^\$(setElementOrder|deleteFromPrimitiveList)\/(.*)$/;

function applyDirective(next: Tree, directive: string, value: unknown): void {
  const [, act, field = ''] = DIRECTIVE.exec(directive) ?? [];
  if (act === 'setElementOrder') {
    const sorted = reorder(field, next[field], value);
    if (sorted !== undefined) next[field] = sorted;
  }
  const list = next[field];
  if (act === 'deleteFromPrimitiveList' && Array.isArray(list) && Array.isArray(value)) {
    next[field] = list.filter((item) => !value.includes(item));
  }
}

/** A patch as `kubectl apply` and `kubectl edit` send one. */
export function strategicMerge(target: unknown, patch: unknown): unknown {
  if (!isRecord(patch)) return patch;
  if (patch['$patch'] === 'delete') return undefined;
  const replaces = patch['$patch'] === 'replace';
  const next: Tree = isRecord(target) && !replaces ? { ...target } : {};
  const kept = patch['$retainKeys'];
  if (Array.isArray(kept)) {
    for (const key of Object.keys(next)) if (!kept.includes(key)) delete next[key];
  }
  for (const [key, value] of Object.entries(patch)) {
    if (key.startsWith('$')) continue;
    if (value === null) delete next[key];
    else if (Array.isArray(value)) next[key] = mergeList(key, next[key], value);
    else next[key] = strategicMerge(next[key], value);
  }
  for (const [key, value] of Object.entries(patch)) {
    if (DIRECTIVE.test(key)) applyDirective(next, key, value);
  }
  return next;
}

interface Operation {
  op: string;
  path: string;
  from?: string;
  value?: unknown;
}

const toKeys = (pointer: string): string[] =>
  pointer
    .split('/')
    .slice(1)
    .map((key) => key.replaceAll('~1', '/').replaceAll('~0', '~'));

function refuse(message: string): StatusError {
  return new StatusError(
    422,
    'Invalid',
    `the server rejected our request due to an error in our request: ${message}`,
  );
}

function find(root: unknown, keys: readonly string[]): unknown {
  let at: unknown = root;
  for (const key of keys) {
    if (Array.isArray(at)) at = at[Number(key)] as unknown;
    else if (isRecord(at) && key in at) at = at[key];
    else throw refuse(`doc is missing path: /${keys.join('/')}`);
  }
  return at;
}

function setAt(root: unknown, keys: readonly string[], value: unknown, isNew: boolean): void {
  const parent = find(root, keys.slice(0, -1));
  const last = keys.at(-1) ?? '';
  if (Array.isArray(parent)) {
    const at = last === '-' ? parent.length : Number(last);
    parent.splice(at, isNew ? 0 : 1, value);
  } else if (isRecord(parent)) parent[last] = value;
}

function removeAt(root: unknown, keys: readonly string[]): unknown {
  const value = find(root, keys);
  const parent = find(root, keys.slice(0, -1));
  const last = keys.at(-1) ?? '';
  if (value === undefined) throw refuse(`Unable to remove nonexistent key: ${last}`);
  if (Array.isArray(parent)) parent.splice(Number(last), 1);
  else if (isRecord(parent)) delete parent[last];
  return value;
}

/** RFC 6902. */
export function jsonPatch(target: unknown, patch: unknown): unknown {
  if (!Array.isArray(patch)) throw badRequest('a JSON patch is a list of operations');
  const next = structuredClone(target);
  for (const { op, path, from = '', value } of patch as Operation[]) {
    const keys = toKeys(path);
    if (op === 'add') setAt(next, keys, value, true);
    else if (op === 'replace') {
      find(next, keys);
      setAt(next, keys, value, false);
    } else if (op === 'remove') removeAt(next, keys);
    else if (op === 'move') setAt(next, keys, removeAt(next, toKeys(from)), true);
    else if (op === 'copy') setAt(next, keys, structuredClone(find(next, toKeys(from))), true);
    else if (op === 'test') {
      if (!isDeepStrictEqual(find(next, keys), value)) {
        throw refuse(`testing value ${path} failed`);
      }
    } else throw badRequest(`Unexpected kind: ${op}`);
  }
  return next;
}

function dropKeyed(target: unknown[], last: unknown[], next: unknown[], key: string): unknown[] {
  const named = (list: unknown[], item: Tree): Tree | undefined =>
    list.find((one): one is Tree => isRecord(one) && one[key] === item[key]);
  return target.flatMap((item) => {
    const before = isRecord(item) ? named(last, item) : undefined;
    if (!isRecord(item) || before === undefined) return [item];
    const wanted = named(next, item);
    return wanted === undefined ? [] : [dropMissing(item, before, wanted)];
  });
}

/** What its owner applied before and does not apply any more goes. */
function dropMissing(target: Tree, last: Tree, next: Tree): Tree {
  const kept: Tree = { ...target };
  for (const [key, before] of Object.entries(last)) {
    const value = next[key];
    const held = kept[key];
    if (!(key in next)) delete kept[key];
    else if (isRecord(before) && isRecord(value) && isRecord(held)) {
      kept[key] = dropMissing(held, before, value);
    } else if (Array.isArray(before) && Array.isArray(value) && Array.isArray(held)) {
      const name = keyFor(key, [before, value]);
      if (name !== undefined) kept[key] = dropKeyed(held, before, value, name);
    }
  }
  return kept;
}

/** Server-side apply of one manager: `last` is what it applied before. Who owns what is not kept. */
export function applyPatch(target: Tree, last: Tree | undefined, next: Tree): Tree {
  const kept = last === undefined ? target : dropMissing(target, last, next);
  return strategicMerge(kept, next) as Tree; // two objects make an object
}
