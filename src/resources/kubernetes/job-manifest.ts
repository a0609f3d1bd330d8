import * as v from 'valibot';
import { ENGINE_PORT } from '../../domain/engines/public-url.ts';
import { invalidInput } from '../../domain/errors.ts';
import type { JobResources } from '../../domain/lease.ts';
import { MANAGED } from './deployment.ts';
import { engineContainer, ENGINE_CONTAINER } from './engine-container.ts';
import type { EngineTerms, GpuChoice } from './engine-container.ts';

const WORKER_CONTAINER = 'batch-worker';
/** Labels of Jobs that this server makes. */
export const BATCH_JOB = { ...MANAGED, 'app.kubernetes.io/component': 'batch-job' } as const;
const INSTANCE = 'app.kubernetes.io/instance';
const QUEUE_LABEL = 'kueue.x-k8s.io/queue-name';
/** Files are written after the deadline; Kubernetes must not end the pod that does. */
const MARGIN_SECONDS = 3_600;

export interface JobOrder {
  name: string;
  namespace: string;
  /** What asks for the batch. */
  annotations: Record<string, string>;
  engine: Pick<JobResources, 'spec' | 'servingName'>;
  gpu: GpuChoice;
  /** Pods that share the lines out among them. */
  replicas: number;
  /** Until the batch has to be over, s. */
  seconds: number;
}

export interface JobTerms extends EngineTerms {
  /** As it was read, in the form of `config/kubernetes/job-template.yaml`. */
  template: unknown;
  /** Image of the worker; null: the template's. */
  workerImage: string | null;
  /** LocalQueue of Kueue that Jobs wait in; null: none. */
  queue: string | null;
}

const anyObject = v.looseObject({});
const labels = v.optional(v.record(v.string(), v.string()), {});
const container = v.looseObject({
  name: v.string(),
  command: v.optional(v.array(v.string())),
  env: v.optional(v.array(v.looseObject({ name: v.string() })), []),
  volumeMounts: v.optional(v.array(v.looseObject({ name: v.string() })), []),
  resources: v.optional(
    v.looseObject({
      requests: v.optional(v.record(v.string(), v.unknown()), {}),
      limits: v.optional(v.record(v.string(), v.unknown()), {}),
    }),
  ),
});
type Container = v.InferOutput<typeof container>;

const templateSchema = v.looseObject({
  apiVersion: v.literal('batch/v1'),
  kind: v.literal('Job'),
  metadata: v.optional(v.looseObject({ labels, annotations: labels }), { labels: {} }),
  spec: v.looseObject({
    template: v.looseObject({
      metadata: v.optional(v.looseObject({ labels }), { labels: {} }),
      spec: v.looseObject({
        initContainers: v.optional(v.array(container), []),
        containers: v.array(container),
        volumes: v.optional(v.array(v.looseObject({ name: v.string() })), []),
        tolerations: v.optional(v.array(anyObject), []),
        nodeSelector: labels,
      }),
    }),
  }),
});

/**
 * The Job of a batch: the template with the engine, the annotations and the limits of this one. Throws InvalidInput
 * `kubernetes.template` for a template without the two containers, and as `engineContainer` does.
 */
export function renderJob(order: JobOrder, terms: JobTerms): object {
  const parsed = v.safeParse(templateSchema, terms.template);
  if (!parsed.success) {
    const [{ message }] = parsed.issues;
    throw unfit(`${v.getDotPath(parsed.issues[0]) ?? 'it'}: ${message}`);
  }
  const template = parsed.output;
  const { name, namespace, annotations, replicas, seconds } = order;
  const own = { ...BATCH_JOB, [INSTANCE]: name };
  const queue = terms.queue === null ? {} : { [QUEUE_LABEL]: terms.queue };
  const pod = template.spec.template;
  return {
    ...template,
    metadata: {
      ...template.metadata,
      name,
      namespace,
      labels: { ...template.metadata.labels, ...own, ...queue },
      annotations: { ...template.metadata.annotations, ...annotations },
    },
    spec: {
      ...template.spec,
      parallelism: replicas,
      completions: replicas,
      // An index a pod: each answers shards of its own.
      ...(replicas > 1 ? { completionMode: 'Indexed' } : {}),
      activeDeadlineSeconds: seconds + MARGIN_SECONDS,
      template: {
        ...pod,
        metadata: { ...pod.metadata, labels: { ...pod.metadata.labels, ...own } },
        spec: renderPod(pod.spec, order, terms),
      },
    },
  };
}

type PodSpec = v.InferOutput<typeof templateSchema>['spec']['template']['spec'];

function renderPod(spec: PodSpec, { engine, gpu }: JobOrder, terms: JobTerms) {
  const rendered = engineContainer(engine, gpu, terms);
  const all = [...spec.initContainers, ...spec.containers];
  for (const wanted of [ENGINE_CONTAINER, WORKER_CONTAINER]) {
    if (!all.some((each) => each.name === wanted)) throw unfit(`it has no container ${wanted}`);
  }
  const fill = (each: Container) => {
    if (each.name === ENGINE_CONTAINER) return fillEngine(each, rendered.container, terms.resource);
    if (each.name !== WORKER_CONTAINER) return each;
    return fillWorker(each, rendered.command.healthPath, terms.workerImage);
  };
  const { affinity } = rendered;
  return {
    ...spec,
    initContainers: spec.initContainers.map(fill),
    containers: spec.containers.map(fill),
    volumes: joined(spec.volumes, rendered.volumes),
    nodeSelector: { ...spec.nodeSelector, ...rendered.nodeSelector },
    tolerations: [...spec.tolerations, ...rendered.tolerations],
    ...(affinity === null ? {} : { affinity }),
  };
}

interface Rendered {
  command: string[];
  args: string[];
  env: { name: string }[];
  resources?: { requests: object; limits: object };
  startupProbe: object;
  volumeMounts: { name: string }[];
}

/** What the template says beside what an engine is started with stays: users, rights, memory, wrappers. */
function fillEngine(
  template: Container,
  container_: Record<string, unknown>,
  resource: string,
): Container {
  const { command, args, env, resources, volumeMounts, startupProbe } =
    container_ as unknown as Rendered;
  // A wrapper that runs its arguments, as pods without sidecars need one.
  const isWrapped = template.command?.some((word) => word.includes('"$@"')) ?? false;
  const { livenessProbe, readinessProbe } = template;
  return {
    ...template,
    image: container_['image'],
    ...(isWrapped ? { args: [...command, ...args] } : { command, args }),
    env: joined(template.env, env),
    volumeMounts: joined(template.volumeMounts, volumeMounts),
    resources: {
      requests: { ...without(template.resources?.requests, resource), ...resources?.requests },
      limits: { ...without(template.resources?.limits, resource), ...resources?.limits },
    },
    ...(template['startupProbe'] === undefined ? {} : { startupProbe }),
    ...withPath({ livenessProbe, readinessProbe }, startupProbe),
  };
}

/** Probes of the template ask where the engine says that it is well. */
function withPath(probes: Record<string, unknown>, startupProbe: object): object {
  const { httpGet } = v.parse(v.looseObject({ httpGet: anyObject }), startupProbe);
  const found = Object.entries(probes).filter(([, probe]) => probe !== undefined);
  return Object.fromEntries(
    found.map(([name, probe]) => [name, { ...v.parse(anyObject, probe), httpGet }]),
  );
}

function fillWorker(template: Container, healthPath: string, image: string | null): Container {
  const ready = {
    name: 'LLM_READY_ENDPOINT',
    value: `http://localhost:${ENGINE_PORT}${healthPath}`,
  };
  return {
    ...template,
    ...(image === null ? {} : { image }),
    env: joined(template.env, [ready]),
  };
}

/** Both lists by name; what the template has of a name that is rendered gives way, but for volumes that it mounts. */
function joined<T extends { name: string }>(template: readonly T[], own: readonly object[]): T[] {
  const rendered = own as readonly T[];
  const names = new Set(rendered.map(({ name }) => name));
  return [...template.filter(({ name }) => !names.has(name)), ...rendered];
}

function without(amounts: Record<string, unknown> = {}, resource: string): object {
  return Object.fromEntries(Object.entries(amounts).filter(([name]) => name !== resource));
}

function unfit(what: string) {
  const message = `The Job template (KUBERNETES_JOB_TEMPLATE) is not as it should be: ${what}. config/kubernetes/job-template.yaml is one.`;
  return invalidInput('kubernetes.template', message);
}
