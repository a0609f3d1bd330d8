import * as v from 'valibot';
import { duration, oneOf, text } from './kinds.ts';
import type { Setting } from './kinds.ts';

const NAMESPACES_MESSAGE =
  'must be a comma-separated list of namespaces: small letters, digits and -, at most 63 characters each';
const RESOURCE_MESSAGE = 'must be the name of a resource or label, such as nvidia.com/gpu';
const QUEUE_MESSAGE = 'must be the name of a LocalQueue';
const CLAIM_MESSAGE = 'must be the name of a PersistentVolumeClaim';

const namespaces = v.pipe(
  text,
  v.transform((value) => [...new Set(value.split(',').map((part) => part.trim()))]),
  v.transform((names) => names.filter((name) => name !== '')),
  v.array(v.pipe(text, v.regex(/^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/, NAMESPACES_MESSAGE))),
  v.readonly(),
);

const resource = v.pipe(
  text,
  v.regex(/^(?:[a-z0-9][a-z0-9.-]*\/)?[A-Za-z0-9][A-Za-z0-9._-]*$/, RESOURCE_MESSAGE),
);

/** How engines come to be in a cluster. */
export const KUBERNETES_SETTINGS = {
  kubeconfig: {
    doc: 'Path of the kubeconfig, or several with colons between. Unset: in a pod its service account, else ~/.kube/config.',
    env: 'KUBECONFIG',
    isRare: true,
    default: undefined,
    schema: v.optional(text),
  },
  kubernetesContext: {
    doc: 'Context of the kubeconfig. Unset: its current-context.',
    env: 'KUBERNETES_CONTEXT',
    isRare: true,
    default: undefined,
    schema: v.optional(text),
  },
  kubernetesNamespaces: {
    doc: 'Namespaces in which engines may run; a job that names none (aibrix.runtime.options.namespace) uses the first. Unset: that of the credentials.',
    env: 'KUBERNETES_NAMESPACE',
    isRare: true,
    default: '',
    schema: namespaces,
  },
  kubernetesRuntime: {
    doc: 'How the cluster runs jobs that do not say (aibrix.runtime.target): deployment, an engine that workers of this server send lines to; or job, the whole batch in a Job, whose pods need the storage of this server. A list of providers always takes deployment. Unset: job where storage is S3 or TOS, else deployment.',
    env: 'KUBERNETES_RUNTIME',
    isRare: true,
    default: undefined,
    schema: v.optional(oneOf(['deployment', 'job'])),
  },
  kubernetesJobTemplate: {
    doc: 'File with the Job that batches are run as, in the form of config/kubernetes/job-template.yaml. Unset: that one.',
    env: 'KUBERNETES_JOB_TEMPLATE',
    isRare: true,
    default: undefined,
    schema: v.optional(text),
  },
  kubernetesWorkerImage: {
    doc: "Image of the batch worker in Jobs. Unset: the template's.",
    env: 'KUBERNETES_WORKER_IMAGE',
    isRare: true,
    default: undefined,
    schema: v.optional(v.pipe(text, v.regex(/^\S+$/, 'must be without spaces'))),
  },
  kubernetesQueue: {
    doc: 'LocalQueue of Kueue that Jobs wait in (label kueue.x-k8s.io/queue-name). Unset: none.',
    env: 'KUBERNETES_QUEUE',
    isRare: true,
    default: undefined,
    schema: v.optional(v.pipe(text, v.regex(/^[a-z0-9][a-z0-9-]{0,62}$/, QUEUE_MESSAGE))),
  },
  kubernetesAccess: {
    doc: 'How engines in the cluster are reached: service by the name of their Service, proxy through the API server; auto: service in a pod of the cluster, else proxy.',
    env: 'KUBERNETES_ENGINE_ACCESS',
    isRare: true,
    default: 'auto',
    schema: oneOf(['auto', 'service', 'proxy']),
  },
  kubernetesGpuResource: {
    doc: 'Resource by which pods ask for GPUs.',
    env: 'KUBERNETES_GPU_RESOURCE',
    isRare: true,
    default: 'nvidia.com/gpu',
    schema: resource,
  },
  kubernetesGpuLabel: {
    doc: 'Label of nodes that names their GPU; engines are put where it says what the template asks for.',
    env: 'KUBERNETES_GPU_LABEL',
    isRare: true,
    default: 'nvidia.com/gpu.product',
    schema: resource,
  },
  kubernetesAutoscaled: {
    doc: 'Whether the cluster adds nodes for pods that wait: true asks for GPUs also where no node has them free now.',
    env: 'KUBERNETES_AUTOSCALED',
    isRare: true,
    default: 'false',
    schema: v.pipe(
      oneOf(['true', 'false']),
      v.transform((value) => value === 'true'),
    ),
  },
  kubernetesPendingWait: {
    doc: 'How long the pod of an engine may wait for a node before another provider of PROVISIONER is asked; where there is none it waits on, up to CAPACITY_WAIT.',
    env: 'KUBERNETES_PENDING_WAIT',
    isRare: true,
    default: '3m',
    schema: duration(1_000),
  },
  kubernetesModelCache: {
    doc: 'PersistentVolumeClaim, in each namespace, that keeps model weights for all engines: ReadWriteMany where several run. Unset: each engine fetches its own.',
    env: 'KUBERNETES_MODEL_CACHE',
    isRare: true,
    default: undefined,
    schema: v.optional(v.pipe(text, v.regex(/^[a-z0-9][a-z0-9.-]{0,252}$/, CLAIM_MESSAGE))),
  },
} as const satisfies Record<string, Setting<v.GenericSchema<string | undefined, unknown>>>;
