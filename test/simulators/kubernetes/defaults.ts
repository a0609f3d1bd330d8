import { randomUUID } from 'node:crypto';
import type { Kind } from './kinds.ts';
import {
  DEPLOYMENTS,
  EVENTS,
  JOBS,
  NAMESPACES,
  PODS,
  REPLICA_SETS,
  SECRETS,
  SERVICES,
} from './kinds.ts';
import type {
  Container,
  Deployment,
  Job,
  KubeObject,
  Pod,
  PodSpec,
  Probe,
  ReplicaSet,
  Secret,
} from './objects.ts';
import { isRecord } from './objects.ts';

/** Fields that the server fills in, as k8s.io/kubernetes/pkg/apis/core/v1/defaults.go and its like does. */

function defaultProbe(probe: Probe | undefined): void {
  if (probe === undefined) return;
  probe.timeoutSeconds ??= 1;
  probe.periodSeconds ??= 10;
  probe.successThreshold ??= 1;
  probe.failureThreshold ??= 3;
  if (probe.httpGet !== undefined) {
    probe.httpGet.path ??= '/';
    probe.httpGet.scheme ??= 'HTTP';
  }
}

function pullPolicy(image: string): string {
  const tag = /:([^/:@]+)$/.exec(image)?.[1];
  return image.includes('@') || (tag !== undefined && tag !== 'latest') ? 'IfNotPresent' : 'Always';
}

function defaultContainer(container: Container): void {
  container.imagePullPolicy ??= pullPolicy(container.image ?? '');
  container.terminationMessagePath ??= '/dev/termination-log';
  container.terminationMessagePolicy ??= 'File';
  container.resources ??= {};
  const { limits, requests } = container.resources;
  if (limits !== undefined) container.resources.requests = { ...limits, ...requests };
  for (const port of container.ports ?? []) port.protocol ??= 'TCP';
  for (const { valueFrom } of container.env ?? []) {
    if (valueFrom?.fieldRef !== undefined) valueFrom.fieldRef.apiVersion ??= 'v1';
  }
  for (const probe of [container.livenessProbe, container.readinessProbe, container.startupProbe]) {
    defaultProbe(probe);
  }
}

function defaultVolumes(spec: PodSpec): void {
  for (const { configMap, secret, hostPath, projected } of spec.volumes ?? []) {
    if (configMap !== undefined) configMap.defaultMode ??= 0o644;
    if (secret !== undefined) secret.defaultMode ??= 0o644;
    if (projected !== undefined) projected.defaultMode ??= 0o644;
    if (hostPath !== undefined) hostPath.type ??= '';
  }
}

function defaultPodSpec(spec: PodSpec): void {
  spec.restartPolicy ??= 'Always';
  spec.dnsPolicy ??= 'ClusterFirst';
  spec.schedulerName ??= 'default-scheduler';
  spec.terminationGracePeriodSeconds ??= 30;
  spec.securityContext ??= {};
  if (spec.serviceAccountName !== undefined) spec.serviceAccount ??= spec.serviceAccountName;
  for (const container of [...(spec.initContainers ?? []), ...spec.containers]) {
    defaultContainer(container);
  }
  defaultVolumes(spec);
}

/** Names that admission gives the token's volume; a container that mounts the path itself keeps its own. */
const TOKEN_PATH = '/var/run/secrets/kubernetes.io/serviceaccount';

/** What the ServiceAccount admission adds to a pod. */
function mountToken(spec: PodSpec, random: string): void {
  if (spec.automountServiceAccountToken === false) return;
  const containers = [...(spec.initContainers ?? []), ...spec.containers];
  const lacking = containers.filter(
    ({ volumeMounts = [] }) => !volumeMounts.some(({ mountPath }) => mountPath === TOKEN_PATH),
  );
  if (lacking.length === 0) return;
  const name = `kube-api-access-${random}`;
  for (const container of lacking) {
    container.volumeMounts = [
      ...(container.volumeMounts ?? []),
      { name, mountPath: TOKEN_PATH, readOnly: true },
    ];
  }
  spec.volumes = [
    ...(spec.volumes ?? []),
    {
      name,
      projected: {
        defaultMode: 0o644,
        sources: [
          { serviceAccountToken: { expirationSeconds: 3607, path: 'token' } },
          { configMap: { name: 'kube-root-ca.crt', items: [{ key: 'ca.crt', path: 'ca.crt' }] } },
          {
            downwardAPI: {
              items: [
                {
                  path: 'namespace',
                  fieldRef: { apiVersion: 'v1', fieldPath: 'metadata.namespace' },
                },
              ],
            },
          },
        ],
      },
    },
  ];
}

const WAIT_S = 300;

function tolerate(spec: PodSpec): void {
  const keys = ['node.kubernetes.io/not-ready', 'node.kubernetes.io/unreachable'];
  spec.tolerations ??= [];
  for (const key of keys) {
    if (
      spec.tolerations.some(
        (one) => one.key === key || (one.key === undefined && one.operator === 'Exists'),
      )
    )
      continue;
    spec.tolerations.push({
      key,
      operator: 'Exists',
      effect: 'NoExecute',
      tolerationSeconds: WAIT_S,
    });
  }
}

function qosClass(spec: PodSpec): string {
  const resources = [...spec.containers, ...(spec.initContainers ?? [])].map(
    (one) => one.resources ?? {},
  );
  const names = ['cpu', 'memory'];
  const asks = resources.some(({ requests, limits }) =>
    names.some((name) => requests?.[name] !== undefined || limits?.[name] !== undefined),
  );
  if (!asks) return 'BestEffort';
  const guaranteed = resources.every(({ requests, limits }) =>
    names.every((name) => limits?.[name] !== undefined && requests?.[name] === limits[name]),
  );
  return guaranteed ? 'Guaranteed' : 'Burstable';
}

function defaultPod(pod: Pod, random: string): void {
  pod.spec.enableServiceLinks ??= true;
  pod.spec.serviceAccountName ??= 'default';
  defaultPodSpec(pod.spec);
  mountToken(pod.spec, random);
  tolerate(pod.spec);
  pod.spec.preemptionPolicy ??= 'PreemptLowerPriority';
  pod.spec.priority ??= 0;
  pod.metadata.generation = 1;
  pod.status = { phase: 'Pending', qosClass: qosClass(pod.spec) };
}

function defaultJob(job: Job): void {
  const { spec } = job;
  if (spec.completions === undefined && spec.parallelism === undefined) spec.completions = 1;
  spec.parallelism ??= 1;
  spec.completionMode ??= 'NonIndexed';
  spec.backoffLimit ??= spec.backoffLimitPerIndex === undefined ? 6 : 2_147_483_647;
  spec.suspend ??= false;
  spec.podReplacementPolicy ??=
    spec.podFailurePolicy === undefined ? 'TerminatingOrFailed' : 'Failed';
  for (const rule of spec.podFailurePolicy?.rules ?? []) {
    for (const pattern of rule.onPodConditions ?? []) pattern.status ??= 'True';
  }
  spec.manualSelector ??= false;
  defaultPodSpec(spec.template.spec ?? { containers: [] });
}

/** The uid is part of a Job's selector and pod labels, so this comes after it is known. */
export function labelJob(job: Job, uid: string): void {
  const { spec, metadata } = job;
  if (spec.manualSelector === true) return;
  const { name } = metadata;
  spec.selector = { matchLabels: { 'batch.kubernetes.io/controller-uid': uid } };
  spec.template.metadata ??= {};
  spec.template.metadata.labels = {
    ...spec.template.metadata.labels,
    'batch.kubernetes.io/controller-uid': uid,
    'batch.kubernetes.io/job-name': name,
    'controller-uid': uid,
    'job-name': name,
  };
}

function defaultWorkload(object: Deployment | ReplicaSet): void {
  object.spec.replicas ??= 1;
  defaultPodSpec(object.spec.template?.spec ?? { containers: [] });
}

function defaultDeployment(deployment: Deployment): void {
  defaultWorkload(deployment);
  const { spec } = deployment;
  spec.strategy ??= {};
  spec.strategy.type ??= 'RollingUpdate';
  if (spec.strategy.type === 'RollingUpdate') {
    spec.strategy.rollingUpdate ??= { maxSurge: '25%', maxUnavailable: '25%' };
  }
  spec.revisionHistoryLimit ??= 10;
  spec.progressDeadlineSeconds ??= 600;
}

function defaultService(service: KubeObject): void {
  const spec = isRecord(service.spec) ? service.spec : {};
  service.spec = spec;
  spec['type'] ??= 'ClusterIP';
  spec['sessionAffinity'] ??= 'None';
  spec['ipFamilies'] ??= ['IPv4'];
  spec['ipFamilyPolicy'] ??= 'SingleStack';
  spec['internalTrafficPolicy'] ??= 'Cluster';
  const ports = Array.isArray(spec['ports']) ? spec['ports'] : [];
  for (const port of ports as Record<string, unknown>[]) {
    port['protocol'] ??= 'TCP';
    port['targetPort'] ??= port['port'];
  }
}

/** `stringData` is for writing only. */
function defaultSecret(secret: Secret): void {
  secret.type ??= 'Opaque';
  const { stringData } = secret;
  if (!isRecord(stringData)) return;
  const encoded = Object.entries(stringData).map(([key, value]) => [
    key,
    Buffer.from(String(value)).toString('base64'),
  ]);
  secret.data = { ...secret.data, ...Object.fromEntries(encoded) };
  delete secret['stringData'];
}

const COUNTED = new Set([JOBS, DEPLOYMENTS, REPLICA_SETS]);

/** Fields of an object's spec that it leaves out, be it new or changed. */
export function setSpecDefaults(kind: Kind, object: KubeObject): void {
  // Which shape it has was checked by validation, and its kind says which it is.
  if (kind === PODS) defaultPodSpec((object as Pod).spec);
  else if (kind === JOBS) defaultJob(object as Job);
  else if (kind === DEPLOYMENTS) defaultDeployment(object as Deployment);
  else if (kind === REPLICA_SETS) defaultWorkload(object as ReplicaSet);
  else if (kind === SERVICES) defaultService(object);
  else if (kind === SECRETS) defaultSecret(object);
}

/** Fills in what a new object leaves out. Its name is known. */
export function setDefaults(kind: Kind, object: KubeObject): void {
  setSpecDefaults(kind, object);
  if (COUNTED.has(kind)) {
    object.metadata.generation = 1;
    object.status = {};
  }
  if (kind === PODS) defaultPod(object as Pod, randomUUID().slice(0, 5));
  else if (kind === SERVICES) object.status = { loadBalancer: {} };
  else if (kind === NAMESPACES) {
    object.spec = { finalizers: ['kubernetes'] };
    object.status = { phase: 'Active' };
    object.metadata.labels = {
      ...object.metadata.labels,
      'kubernetes.io/metadata.name': object.metadata.name,
    };
  } else if (kind === EVENTS) object['reportingComponent'] ??= '';
}
