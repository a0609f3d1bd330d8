import type { Named } from './status.ts';

/** One kind of object that the server knows. */
export interface Kind extends Named {
  version: string;
  kind: string;
  singular: string;
  shortNames: string[];
  categories: string[];
  namespaced: boolean;
  /** `status`, `log`, `scale` … */
  subresources: string[];
  /** Which model of @kubernetes/client-node holds its fields. */
  model: string;
  /** Fields that a field selector may name, beside metadata.name and metadata.namespace. */
  fields: string[];
}

function kind(group: string, plural: string, name: string, more: Partial<Kind> = {}): Kind {
  return {
    group,
    version: 'v1',
    plural,
    kind: name,
    singular: name.toLowerCase(),
    shortNames: [],
    categories: [],
    namespaced: true,
    subresources: [],
    model: `V1${name}`,
    fields: [],
    ...more,
  };
}

const RBAC = 'rbac.authorization.k8s.io';
const all = { categories: ['all'] };

export const PODS = kind('', 'pods', 'Pod', {
  ...all,
  shortNames: ['po'],
  subresources: ['status', 'log', 'eviction', 'binding', 'proxy', 'exec', 'portforward'],
  fields: [
    'spec.nodeName',
    'spec.restartPolicy',
    'spec.serviceAccountName',
    'status.phase',
    'status.podIP',
  ],
});
export const SERVICES = kind('', 'services', 'Service', {
  ...all,
  shortNames: ['svc'],
  subresources: ['status', 'proxy'],
  fields: ['spec.clusterIP', 'spec.type'],
});
export const ENDPOINTS = kind('', 'endpoints', 'Endpoints', {
  shortNames: ['ep'],
  singular: 'endpoints',
});
export const CONFIG_MAPS = kind('', 'configmaps', 'ConfigMap', { shortNames: ['cm'] });
export const SECRETS = kind('', 'secrets', 'Secret', { fields: ['type'] });
export const SERVICE_ACCOUNTS = kind('', 'serviceaccounts', 'ServiceAccount', {
  shortNames: ['sa'],
  subresources: ['token'],
});
export const EVENTS = kind('', 'events', 'Event', {
  shortNames: ['ev'],
  model: 'CoreV1Event',
  fields: [
    'involvedObject.kind',
    'involvedObject.namespace',
    'involvedObject.name',
    'involvedObject.uid',
    'involvedObject.apiVersion',
    'involvedObject.resourceVersion',
    'involvedObject.fieldPath',
    'reason',
    'reportingComponent',
    'source',
    'type',
  ],
});
export const NODES = kind('', 'nodes', 'Node', {
  shortNames: ['no'],
  namespaced: false,
  subresources: ['status'],
  fields: ['spec.unschedulable'],
});
export const NAMESPACES = kind('', 'namespaces', 'Namespace', {
  shortNames: ['ns'],
  namespaced: false,
  subresources: ['status', 'finalize'],
  fields: ['status.phase'],
});
const CLAIMS = kind('', 'persistentvolumeclaims', 'PersistentVolumeClaim', {
  shortNames: ['pvc'],
  subresources: ['status'],
});
export const JOBS = kind('batch', 'jobs', 'Job', {
  ...all,
  subresources: ['status'],
  fields: ['status.successful'],
});
const CRON_JOBS = kind('batch', 'cronjobs', 'CronJob', {
  ...all,
  shortNames: ['cj'],
  subresources: ['status'],
});
export const DEPLOYMENTS = kind('apps', 'deployments', 'Deployment', {
  ...all,
  shortNames: ['deploy'],
  subresources: ['status', 'scale'],
});
export const REPLICA_SETS = kind('apps', 'replicasets', 'ReplicaSet', {
  ...all,
  shortNames: ['rs'],
  subresources: ['status', 'scale'],
});
const STATEFUL_SETS = kind('apps', 'statefulsets', 'StatefulSet', {
  ...all,
  shortNames: ['sts'],
  subresources: ['status', 'scale'],
});
export const ENDPOINT_SLICES = kind('discovery.k8s.io', 'endpointslices', 'EndpointSlice');
export const LEASES = kind('coordination.k8s.io', 'leases', 'Lease');
export const ROLES = kind(RBAC, 'roles', 'Role');
export const ROLE_BINDINGS = kind(RBAC, 'rolebindings', 'RoleBinding');
export const CLUSTER_ROLES = kind(RBAC, 'clusterroles', 'ClusterRole', { namespaced: false });
export const CLUSTER_ROLE_BINDINGS = kind(RBAC, 'clusterrolebindings', 'ClusterRoleBinding', {
  namespaced: false,
});
const NETWORK_POLICIES = kind('networking.k8s.io', 'networkpolicies', 'NetworkPolicy', {
  shortNames: ['netpol'],
});
const BUDGETS = kind('policy', 'poddisruptionbudgets', 'PodDisruptionBudget', {
  shortNames: ['pdb'],
  subresources: ['status'],
});
const AUTOSCALERS = kind('autoscaling', 'horizontalpodautoscalers', 'HorizontalPodAutoscaler', {
  ...all,
  version: 'v2',
  shortNames: ['hpa'],
  subresources: ['status'],
  model: 'V2HorizontalPodAutoscaler',
});

export const KINDS: readonly Kind[] = [
  CONFIG_MAPS,
  ENDPOINTS,
  EVENTS,
  NAMESPACES,
  NODES,
  CLAIMS,
  PODS,
  SECRETS,
  SERVICE_ACCOUNTS,
  SERVICES,
  DEPLOYMENTS,
  REPLICA_SETS,
  STATEFUL_SETS,
  CRON_JOBS,
  JOBS,
  LEASES,
  ENDPOINT_SLICES,
  NETWORK_POLICIES,
  BUDGETS,
  AUTOSCALERS,
  CLUSTER_ROLE_BINDINGS,
  CLUSTER_ROLES,
  ROLE_BINDINGS,
  ROLES,
];

/** `batch/v1`, or `v1` of the core group. */
export function apiVersionOf({ group, version }: Pick<Kind, 'group' | 'version'>): string {
  return group === '' ? version : `${group}/${version}`;
}

export function kindOf(apiVersion: string, name: string): Kind | undefined {
  return KINDS.find((one) => one.kind === name && apiVersionOf(one) === apiVersion);
}

export function kindOfPath(group: string, version: string, plural: string): Kind | undefined {
  return KINDS.find(
    (one) => one.group === group && one.version === version && one.plural === plural,
  );
}
