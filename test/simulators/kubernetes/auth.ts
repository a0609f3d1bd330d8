import { randomBytes } from 'node:crypto';
import type { Kind } from './kinds.ts';
import {
  CLUSTER_ROLE_BINDINGS,
  CLUSTER_ROLES,
  ROLE_BINDINGS,
  ROLES,
  SERVICE_ACCOUNTS,
} from './kinds.ts';
import type { KubeObject } from './objects.ts';
import { qualified, StatusError } from './status.ts';
import type { Store } from './store.ts';

/** Who asks. */
export interface User {
  name: string;
  groups: string[];
}

interface Rule {
  apiGroups?: string[];
  resources?: string[];
  verbs: string[];
  resourceNames?: string[];
}

interface Subject {
  kind: string;
  name: string;
  namespace?: string;
}

interface RoleRef {
  kind: string;
  name: string;
}

export interface Permission {
  verb: string;
  group: string;
  resource: string;
  namespace: string | undefined;
  name: string | undefined;
}

/** Tokens, and what roles allow. */
export interface Auth {
  adminToken: string;
  /** A token of that service account; the same one each time. */
  tokenOf(namespace: string, name: string): string;
  userOf(token: string): User | undefined;
  /** Whoever an administrator asks in the name of. */
  named(name: string): User;
  may(user: User, wanted: Permission): boolean;
  /** Throws Forbidden in Kubernetes' words. */
  check(user: User, kind: Kind, wanted: Permission): void;
}

const covers = (list: readonly string[] | undefined, word: string): boolean =>
  (list ?? []).some((one) => one === '*' || one === word);

function ruleAllows(rule: Rule, { verb, group, resource, name }: Permission): boolean {
  const named = rule.resourceNames ?? [];
  const [, sub] = resource.split('/');
  const onResource =
    covers(rule.resources, resource) || (sub !== undefined && covers(rule.resources, `*/${sub}`));
  return (
    covers(rule.verbs, verb) &&
    covers(rule.apiGroups, group) &&
    onResource &&
    (named.length === 0 || (name !== undefined && named.includes(name)))
  );
}

const base64Url = (value: unknown): string =>
  Buffer.from(JSON.stringify(value)).toString('base64url');

export function createAuth(store: Store): Auth {
  const adminToken = randomBytes(24).toString('base64url');
  const tokens = new Map<string, { namespace: string; name: string }>();
  const issued = new Map<string, string>();

  function isSubject(user: User, subject: Subject, inNamespace: string | undefined): boolean {
    if (subject.kind === 'Group') return user.groups.includes(subject.name);
    if (subject.kind !== 'ServiceAccount') return user.name === subject.name;
    const namespace = subject.namespace ?? inNamespace ?? '';
    return user.name === `system:serviceaccount:${namespace}:${subject.name}`;
  }

  function rulesOf({ kind, name }: RoleRef, namespace: string | undefined): Rule[] {
    const role =
      kind === 'ClusterRole'
        ? store.get(CLUSTER_ROLES, undefined, name)
        : store.get(ROLES, namespace, name);
    return (role?.['rules'] ?? []) as Rule[]; // as RBAC's kinds hold them
  }

  function bindingAllows(user: User, binding: KubeObject, wanted: Permission): boolean {
    const { namespace } = binding.metadata;
    const subjects = (binding['subjects'] ?? []) as Subject[];
    if (!subjects.some((subject) => isSubject(user, subject, namespace))) return false;
    return rulesOf(binding['roleRef'] as RoleRef, namespace).some((rule) =>
      ruleAllows(rule, wanted),
    );
  }

  function may(user: User, wanted: Permission): boolean {
    if (user.groups.includes('system:masters')) return true;
    const local = wanted.namespace === undefined ? [] : store.list(ROLE_BINDINGS, wanted.namespace);
    return [...local, ...store.list(CLUSTER_ROLE_BINDINGS)].some((binding) =>
      bindingAllows(user, binding, wanted),
    );
  }

  function named(name: string): User {
    const [, kind, namespace = ''] = name.split(':');
    const groups =
      kind === 'serviceaccount'
        ? ['system:serviceaccounts', `system:serviceaccounts:${namespace}`]
        : [];
    return { name, groups: [...groups, 'system:authenticated'] };
  }

  return {
    adminToken,
    tokenOf(namespace, name) {
      const key = `${namespace}/${name}`;
      const known = issued.get(key);
      if (known !== undefined) return known;
      // Shaped as the real ones, whose middle part clients may read.
      const token = [
        base64Url({ alg: 'RS256', kid: 'sim' }),
        base64Url({
          aud: ['https://kubernetes.default.svc.cluster.local'],
          iss: 'https://kubernetes.default.svc.cluster.local',
          'kubernetes.io': { namespace, serviceaccount: { name } },
          sub: `system:serviceaccount:${namespace}:${name}`,
        }),
        randomBytes(48).toString('base64url'),
      ].join('.');
      issued.set(key, token);
      tokens.set(token, { namespace, name });
      return token;
    },
    userOf(token) {
      if (token === adminToken) {
        return { name: 'kubernetes-admin', groups: ['system:masters', 'system:authenticated'] };
      }
      const account = tokens.get(token);
      if (account === undefined) return undefined;
      const { namespace, name } = account;
      // An account that was deleted has no tokens.
      if (store.get(SERVICE_ACCOUNTS, namespace, name) === undefined) return undefined;
      return named(`system:serviceaccount:${namespace}:${name}`);
    },
    named,
    may,
    check(user, kind, wanted) {
      if (may(user, wanted)) return;
      const { verb, group, resource, namespace, name } = wanted;
      const what = qualified(kind);
      const where =
        namespace === undefined ? 'at the cluster scope' : `in the namespace "${namespace}"`;
      const named = name === undefined ? what : `${what} "${name}"`;
      throw new StatusError(
        403,
        'Forbidden',
        `${named} is forbidden: User "${user.name}" cannot ${verb} resource "${resource}" in API group "${group}" ${where}`,
        {
          ...(name === undefined ? {} : { name }),
          ...(group === '' ? {} : { group }),
          kind: kind.plural,
        },
      );
    },
  };
}
