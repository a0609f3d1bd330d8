import type { Kind } from './kinds.ts';
import { apiVersionOf, KINDS } from './kinds.ts';

/** What the server calls itself: field names and status columns are of this release. */
export const VERSION = {
  major: '1',
  minor: '34',
  gitVersion: 'v1.34.1',
  gitCommit: '93248f9ae092f571eb870b7664c534bfc7d00f03',
  gitTreeState: 'clean',
  buildDate: '2025-09-09T19:37:13Z',
  goVersion: 'go1.24.6',
  compiler: 'gc',
  platform: 'linux/amd64',
};

const VERBS = ['create', 'delete', 'deletecollection', 'get', 'list', 'patch', 'update', 'watch'];

/** Kinds of subresources that are not the kind itself. */
const SUB_KINDS: Readonly<
  Record<string, { group?: string; version?: string; kind: string; verbs: string[] }>
> = {
  eviction: { group: 'policy', version: 'v1', kind: 'Eviction', verbs: ['create'] },
  binding: { kind: 'Binding', verbs: ['create'] },
  token: { group: 'authentication.k8s.io', version: 'v1', kind: 'TokenRequest', verbs: ['create'] },
  scale: { group: 'autoscaling', version: 'v1', kind: 'Scale', verbs: ['get', 'patch', 'update'] },
  log: { kind: 'Pod', verbs: ['get'] },
  proxy: { kind: 'PodProxyOptions', verbs: ['create', 'get'] },
};

function resourcesOf(kind: Kind): unknown[] {
  const { plural, singular, namespaced, shortNames, categories, subresources } = kind;
  const own = {
    name: plural,
    singularName: singular,
    namespaced,
    kind: kind.kind,
    verbs: VERBS,
    ...(shortNames.length === 0 ? {} : { shortNames }),
    ...(categories.length === 0 ? {} : { categories }),
    storageVersionHash: Buffer.from(`${plural}.${kind.group}`).toString('base64').slice(0, 12),
  };
  const subs = subresources.map((name) => ({
    name: `${plural}/${name}`,
    singularName: '',
    namespaced,
    ...(SUB_KINDS[name] ?? { kind: kind.kind, verbs: ['get', 'patch', 'update'] }),
  }));
  return [own, ...subs];
}

/** GET /api/v1 and GET /apis/GROUP/VERSION; undefined for a group that nobody serves. */
export function resourceList(group: string, version: string): unknown {
  const kinds = KINDS.filter((one) => one.group === group && one.version === version);
  const reviews =
    group === 'authorization.k8s.io' && version === 'v1'
      ? [
          {
            name: 'selfsubjectaccessreviews',
            singularName: 'selfsubjectaccessreview',
            namespaced: false,
            kind: 'SelfSubjectAccessReview',
            verbs: ['create'],
          },
        ]
      : [];
  if (kinds.length === 0 && reviews.length === 0) return undefined;
  return {
    kind: 'APIResourceList',
    apiVersion: 'v1',
    groupVersion: apiVersionOf({ group, version }),
    resources: [...kinds.flatMap(resourcesOf), ...reviews],
  };
}

/** Name and versions of each group, the core group left out. */
function groups(): { name: string; version: string }[] {
  const found = new Map(KINDS.map(({ group, version }) => [group, version]));
  found.delete('');
  found.set('authorization.k8s.io', 'v1');
  return [...found].map(([name, version]) => ({ name, version }));
}

function groupOf({ name, version }: { name: string; version: string }): unknown {
  const one = { groupVersion: `${name}/${version}`, version };
  return { name, versions: [one], preferredVersion: one };
}

export function groupList(): unknown {
  return { kind: 'APIGroupList', apiVersion: 'v1', groups: groups().map(groupOf) };
}

/** GET /apis/GROUP */
export function group(name: string): unknown {
  const found = groups().find((one) => one.name === name);
  return found === undefined
    ? undefined
    : { kind: 'APIGroup', apiVersion: 'v1', ...(groupOf(found) as object) };
}

/** GET /api */
export function coreVersions(address: string): unknown {
  return {
    kind: 'APIVersions',
    versions: ['v1'],
    serverAddressByClientCIDRs: [{ clientCIDR: '0.0.0.0/0', serverAddress: address }],
  };
}

/** Paths of groups, for GET / and the list of OpenAPI documents. */
export function groupPaths(): string[] {
  return ['api/v1', ...groups().map(({ name, version }) => `apis/${name}/${version}`)];
}
