import * as v from 'valibot';
import { describeError, SluiceError } from '../../domain/errors.ts';
import type { AccountCheck } from '../lease-contract.ts';
import type { Cluster } from './cluster.ts';
import { isAbsent } from './watched.ts';

interface Right {
  group: string;
  resource: string;
  subresource?: string;
  verbs: readonly string[];
}

/** What engines of a namespace take. */
const IN_NAMESPACE: readonly Right[] = [
  { group: 'apps', resource: 'deployments', verbs: ['create', 'get', 'list', 'delete'] },
  { group: '', resource: 'services', verbs: ['create', 'get', 'list', 'delete'] },
  { group: '', resource: 'pods', verbs: ['list', 'watch'] },
  { group: '', resource: 'pods', subresource: 'log', verbs: ['get'] },
  { group: '', resource: 'events', verbs: ['list', 'watch'] },
];
/** How engines are reached from outside of the cluster. */
const PROXY: Right = {
  group: '',
  resource: 'services',
  subresource: 'proxy',
  verbs: ['get', 'create'],
};
/** What batches in Jobs take beside. */
const JOBS: Right = {
  group: 'batch',
  resource: 'jobs',
  verbs: ['create', 'get', 'list', 'watch', 'patch', 'delete'],
};
/** What the catalog takes. */
const IN_CLUSTER: readonly Right[] = [
  { group: '', resource: 'nodes', verbs: ['list'] },
  { group: '', resource: 'pods', verbs: ['list'] },
];

const reviewSchema = v.object({
  status: v.object({ allowed: v.boolean(), reason: v.nullish(v.string(), '') }),
});
const versionSchema = v.object({ gitVersion: v.string() });

/**
 * Looks whether a cluster can be used: that its API server answers us, that the namespaces are there, and that we may do
 * what running engines takes. Changes nothing, and never rejects.
 */
export async function checkCluster(
  cluster: Cluster,
  { isProxied, runsJobs = false }: { isProxied: boolean; runsJobs?: boolean },
): Promise<AccountCheck[]> {
  try {
    const { api } = cluster;
    const { server, source } = await api.access();
    const { gitVersion } = v.parse(
      versionSchema,
      await api.ask({ method: 'GET', path: '/version' }),
    );
    const namespaces = await cluster.namespaces();
    const where = `Kubernetes ${gitVersion} at ${server} (${source}), ${namespaces.join(', ')}`;
    const missing = (await Promise.all(namespaces.map((each) => lackOf(each, cluster)))).flat();
    if (missing.length > 0) return missing;
    const rights = [...IN_NAMESPACE, ...(isProxied ? [PROXY] : []), ...(runsJobs ? [JOBS] : [])];
    const denied = await deniedOf(namespaces, rights, cluster);
    if (denied.length === 0) return [{ state: 'ok', message: where }];
    const message = `${where}: our account may not ${denied.join('; ')}. Allow it by a Role, what is of no namespace by a ClusterRole.`;
    return [{ state: 'fail', message }];
  } catch (error) {
    return [{ state: 'fail', message: describeError(error) }];
  }
}

/** A namespace that is not there; who may not look is not told. */
async function lackOf(namespace: string, { api }: Cluster): Promise<AccountCheck[]> {
  try {
    await api.ask({ method: 'GET', path: `/api/v1/namespaces/${namespace}` });
    return [];
  } catch (error) {
    if (error instanceof SluiceError && error.code === 'kubernetes.forbidden') return [];
    if (!isAbsent(error)) throw error;
    const mend = `kubectl create namespace ${namespace}, or mend KUBERNETES_NAMESPACE`;
    return [{ state: 'fail', message: `the namespace ${namespace} is not there: ${mend}` }];
  }
}

/** The rights that we lack, in kubectl's words. */
async function deniedOf(
  namespaces: readonly string[],
  rights: readonly Right[],
  cluster: Cluster,
): Promise<string[]> {
  const asked = [
    ...IN_CLUSTER.map((right) => ({ right, namespace: '' })),
    ...namespaces.flatMap((namespace) => rights.map((right) => ({ right, namespace }))),
  ];
  const found = await Promise.all(
    asked.map(async ({ right, namespace }) => {
      const verbs = await Promise.all(
        right.verbs.map(async (verb) =>
          (await isAllowed(verb, right, namespace, cluster)) ? null : verb,
        ),
      );
      const lacking = verbs.filter((verb) => verb !== null);
      if (lacking.length === 0) return null;
      const where = namespace === '' ? 'of all namespaces' : `in ${namespace}`;
      return `${lacking.join(', ')} ${nameOf(right)} ${where}`;
    }),
  );
  return found.filter((each) => each !== null);
}

function nameOf({ group, resource, subresource }: Right): string {
  const name = subresource === undefined ? resource : `${resource}/${subresource}`;
  return group === '' ? name : `${name}.${group}`;
}

async function isAllowed(
  verb: string,
  { group, resource, subresource = '' }: Right,
  namespace: string,
  { api }: Cluster,
): Promise<boolean> {
  const resourceAttributes = { namespace, verb, group, resource, subresource };
  const body = {
    apiVersion: 'authorization.k8s.io/v1',
    kind: 'SelfSubjectAccessReview',
    spec: { resourceAttributes },
  };
  const path = '/apis/authorization.k8s.io/v1/selfsubjectaccessreviews';
  return v.parse(reviewSchema, await api.ask({ method: 'POST', path, body })).status.allowed;
}
