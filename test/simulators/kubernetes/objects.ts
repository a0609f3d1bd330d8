import type {
  V1Container,
  V1ContainerStatus,
  V1DeploymentSpec,
  V1DeploymentStatus,
  V1JobSpec,
  V1JobStatus,
  V1NodeSpec,
  V1NodeStatus,
  V1PodSpec,
  V1PodStatus,
  V1PodTemplateSpec,
  V1Probe,
  V1ReplicaSetSpec,
  V1ReplicaSetStatus,
  V1ServiceSpec,
} from '@kubernetes/client-node';

/*
 * Objects as they go over the wire: the client's models with times as text. What they leave out, and
 * what the simulator does not look at, passes through as it came.
 */

export type Wire<T> = T extends Date
  ? string
  : T extends readonly (infer Item)[]
    ? Wire<Item>[]
    : T extends object
      ? { [Key in keyof T]: Wire<T[Key]> }
      : T;

export interface OwnerReference {
  apiVersion: string;
  kind: string;
  name: string;
  uid: string;
  controller?: boolean;
  blockOwnerDeletion?: boolean;
}

export interface Meta {
  name: string;
  generateName?: string;
  namespace?: string;
  uid: string;
  resourceVersion: string;
  generation?: number;
  creationTimestamp: string;
  deletionTimestamp?: string;
  deletionGracePeriodSeconds?: number;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  ownerReferences?: OwnerReference[];
  finalizers?: string[];
}

export interface KubeObject {
  apiVersion: string;
  kind: string;
  metadata: Meta;
  spec?: unknown;
  status?: unknown;
  [field: string]: unknown;
}

export type Container = Wire<V1Container>;
export type ContainerStatus = Wire<V1ContainerStatus>;
export type Probe = Wire<V1Probe>;
export type PodSpec = Wire<V1PodSpec>;
export type PodStatus = Wire<V1PodStatus>;
export type PodTemplate = Wire<V1PodTemplateSpec>;
export type JobStatus = Wire<V1JobStatus>;

export interface Pod extends KubeObject {
  spec: PodSpec;
  status: PodStatus;
}

export interface Job extends KubeObject {
  spec: Wire<V1JobSpec>;
  status: JobStatus;
}

export interface Deployment extends KubeObject {
  spec: Wire<V1DeploymentSpec>;
  status: Wire<V1DeploymentStatus>;
}

export interface ReplicaSet extends KubeObject {
  spec: Wire<V1ReplicaSetSpec>;
  status: Wire<V1ReplicaSetStatus>;
}

export interface Service extends KubeObject {
  spec: Wire<V1ServiceSpec>;
}

export interface Node extends KubeObject {
  spec: Wire<V1NodeSpec>;
  status: Wire<V1NodeStatus>;
}

export interface ConfigMap extends KubeObject {
  data?: Record<string, string>;
  binaryData?: Record<string, string>;
}

export interface Secret extends KubeObject {
  data?: Record<string, string>;
  type?: string;
}

/** A condition of any kind of object. */
export interface Condition {
  type: string;
  status: string;
  reason?: string;
  message?: string;
  lastTransitionTime?: string;
  lastProbeTime?: string;
  lastUpdateTime?: string;
}

/** Text of a time, to the second, as metav1.Time writes it. */
export function toTime(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19)}Z`;
}

/** Whether a value is a JSON object. */
export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** `conditions` with one set; the time of the last change moves only when its status does. */
export function setCondition<C extends { type: string; status: string }>(
  conditions: readonly C[] | undefined,
  wanted: Omit<Condition, 'lastTransitionTime'>,
  now: number,
): C[] {
  const before = conditions ?? [];
  const found = before.find(({ type }) => type === wanted.type);
  const same = found !== undefined && found.status === wanted.status;
  const kept = same && 'lastTransitionTime' in found ? found.lastTransitionTime : toTime(now);
  const next = { ...wanted, lastTransitionTime: kept } as unknown as C;
  if (found === undefined) return [...before, next];
  return before.map((one) => (one === found ? next : one));
}

export function hasCondition(
  conditions: readonly { type: string; status: string }[] | undefined,
  type: string,
): boolean {
  return (conditions ?? []).some((one) => one.type === type && one.status === 'True');
}

/** The owner that acts for an object. */
export function controllerOf({ metadata }: KubeObject): OwnerReference | undefined {
  return metadata.ownerReferences?.find(({ controller }) => controller === true);
}

const SUFFIX_LETTERS = 'bcdfghjklmnpqrstvwxz2456789';

/** Five letters without vowels, so that no words come of them (k8s.io/apimachinery/pkg/util/rand). */
export function randomSuffix(length = 5): string {
  const bytes = crypto.getRandomValues(new Uint8Array(length));
  return Array.from(bytes, (byte) => SUFFIX_LETTERS[byte % SUFFIX_LETTERS.length]).join('');
}
