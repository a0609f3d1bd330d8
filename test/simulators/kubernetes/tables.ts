import type { Kind } from './kinds.ts';
import {
  CLUSTER_ROLE_BINDINGS,
  CONFIG_MAPS,
  DEPLOYMENTS,
  ENDPOINT_SLICES,
  ENDPOINTS,
  EVENTS,
  JOBS,
  LEASES,
  NAMESPACES,
  NODES,
  PODS,
  REPLICA_SETS,
  ROLE_BINDINGS,
  ROLES,
  CLUSTER_ROLES,
  SECRETS,
  SERVICE_ACCOUNTS,
  SERVICES,
} from './kinds.ts';
import type {
  ConfigMap,
  Container,
  ContainerStatus,
  Deployment,
  Job,
  KubeObject,
  Node,
  Pod,
  ReplicaSet,
  Secret,
  Service,
} from './objects.ts';
import { hasCondition } from './objects.ts';

/*
 * Tables as the server prints them for `kubectl get` (k8s.io/kubernetes/pkg/printers/internalversion).
 */

type Cell = string | number;

interface Column {
  name: string;
  type: 'string' | 'integer';
  /** Columns above 0 are shown with `-o wide` only. */
  priority?: number;
}

interface Printer {
  columns: Column[];
  row(object: KubeObject): Cell[];
}

const text = (name: string, priority = 0): Column => ({ name, type: 'string', priority });
const number = (name: string): Column => ({ name, type: 'integer' });
const NAME: Column = { name: 'Name', type: 'string' };
const AGE = text('Age');

/** `5s`, `3m12s`, `4h`, `2d3h`: k8s.io/apimachinery/pkg/util/duration. */
function humanDuration(ms: number): string {
  const seconds = Math.trunc(ms / 1000);
  if (seconds < 0) return '0s';
  if (seconds < 120) return `${seconds}s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 10) return seconds % 60 === 0 ? `${minutes}m` : `${minutes}m${seconds % 60}s`;
  if (minutes < 180) return `${minutes}m`;
  const hours = Math.floor(minutes / 60);
  if (hours < 8) return minutes % 60 === 0 ? `${hours}h` : `${hours}h${minutes % 60}m`;
  if (hours < 48) return `${hours}h`;
  const days = Math.floor(hours / 24);
  return days < 8 && hours % 24 !== 0 ? `${days}d${hours % 24}h` : `${days}d`;
}

function since(time: string | undefined): string {
  return time === undefined ? '<unknown>' : humanDuration(Date.now() - Date.parse(time));
}

const ageOf = ({ metadata }: KubeObject): string => since(metadata.creationTimestamp);

const list = (items: readonly string[]): string =>
  items.length === 0 ? '<none>' : items.join(',');

function initReason(pod: Pod): string | undefined {
  const containers = pod.spec.initContainers ?? [];
  for (const [at, status] of (pod.status.initContainerStatuses ?? []).entries()) {
    const { terminated, waiting } = status.state ?? {};
    const isSidecar = containers[at]?.restartPolicy === 'Always';
    if (terminated?.exitCode === 0 || (isSidecar && status.started === true)) continue;
    if (terminated !== undefined)
      return `Init:${terminated.reason ?? `ExitCode:${terminated.exitCode}`}`;
    if (
      waiting?.reason !== undefined &&
      waiting.reason !== '' &&
      waiting.reason !== 'PodInitializing'
    ) {
      return `Init:${waiting.reason}`;
    }
    return `Init:${at}/${containers.length}`;
  }
  return undefined;
}

function containerReason(statuses: readonly ContainerStatus[]): string | undefined {
  let reason: string | undefined;
  for (const { state, ready } of statuses.toReversed()) {
    const { waiting, terminated, running } = state ?? {};
    if ((waiting?.reason ?? '') !== '') reason = waiting?.reason;
    else if (terminated !== undefined) {
      reason =
        terminated.reason ??
        (terminated.signal === undefined
          ? `ExitCode:${terminated.exitCode}`
          : `Signal:${terminated.signal}`);
    } else if (ready && running !== undefined && reason === 'Completed') reason = 'Running';
  }
  return reason;
}

/** The STATUS of a pod, as `kubectl get pods` shows it. */
function podReason(pod: Pod): string {
  const { status, metadata, spec } = pod;
  let reason = status.reason ?? status.phase ?? '';
  const initialized = (status.conditions ?? []).some(
    (one) => one.type === 'Initialized' && one.status === 'True',
  );
  const init = initReason(pod);
  if (init !== undefined && !initialized) reason = init;
  else
    reason =
      (status.reason === undefined ? containerReason(status.containerStatuses ?? []) : undefined) ??
      reason;
  if (metadata.deletionTimestamp !== undefined) {
    return status.reason === 'NodeLost' ? 'Unknown' : 'Terminating';
  }
  return spec.nodeName === undefined && reason === '' ? 'Pending' : reason;
}

function podRow(pod: Pod): Cell[] {
  const { spec, status } = pod;
  const sidecars = (spec.initContainers ?? []).filter(
    ({ restartPolicy }) => restartPolicy === 'Always',
  );
  const names = new Set(sidecars.map(({ name }) => name));
  const statuses = [
    ...(status.containerStatuses ?? []),
    ...(status.initContainerStatuses ?? []).filter(({ name }) => names.has(name)),
  ];
  const ready = statuses.filter((one) => one.ready && one.state?.running !== undefined).length;
  const total = sum(statuses.map(({ restartCount }) => restartCount));
  const ends = statuses
    .flatMap(({ lastState }) => lastState?.terminated?.finishedAt ?? [])
    .toSorted();
  const last = ends.at(-1);
  return [
    pod.metadata.name,
    `${ready}/${spec.containers.length + sidecars.length}`,
    podReason(pod),
    total > 0 && last !== undefined ? `${total} (${since(last)} ago)` : String(total),
    ageOf(pod),
    status.podIP ?? '<none>',
    spec.nodeName ?? '<none>',
    status.nominatedNodeName ?? '<none>',
    '<none>',
  ];
}

function sum(numbers: readonly number[]): number {
  let total = 0;
  for (const one of numbers) total += one;
  return total;
}

function images(containers: readonly Container[]): Cell[] {
  return [
    containers.map(({ name }) => name).join(','),
    containers.map(({ image }) => image).join(','),
  ];
}

function selectorText(selector: { matchLabels?: Record<string, string> } | undefined): string {
  const pairs = Object.entries(selector?.matchLabels ?? {}).map(
    ([key, value]) => `${key}=${value}`,
  );
  return list(pairs);
}

function jobStatus({ status, metadata }: Job): string {
  if (hasCondition(status.conditions, 'Complete')) return 'Complete';
  if (hasCondition(status.conditions, 'Failed')) return 'Failed';
  if (metadata.deletionTimestamp !== undefined) return 'Terminating';
  if (hasCondition(status.conditions, 'Suspended')) return 'Suspended';
  if (hasCondition(status.conditions, 'FailureTarget')) return 'FailureTarget';
  if (hasCondition(status.conditions, 'SuccessCriteriaMet')) return 'SuccessCriteriaMet';
  return 'Running';
}

function jobRow(job: Job): Cell[] {
  const { spec, status } = job;
  const { startTime, completionTime } = status;
  const end = completionTime === undefined ? Date.now() : Date.parse(completionTime);
  const parallelism = spec.parallelism ?? 0;
  const of = spec.completions ?? (parallelism > 1 ? `1 of ${parallelism}` : 1);
  return [
    job.metadata.name,
    jobStatus(job),
    `${status.succeeded ?? 0}/${of}`,
    startTime === undefined ? '' : humanDuration(end - Date.parse(startTime)),
    ageOf(job),
    ...images(spec.template.spec?.containers ?? []),
    selectorText(spec.selector),
  ];
}

function deploymentRow(deployment: Deployment): Cell[] {
  const { spec, status } = deployment;
  return [
    deployment.metadata.name,
    `${status.readyReplicas ?? 0}/${spec.replicas ?? 0}`,
    status.updatedReplicas ?? 0,
    status.availableReplicas ?? 0,
    ageOf(deployment),
    ...images(spec.template.spec?.containers ?? []),
    selectorText(spec.selector),
  ];
}

function replicaSetRow(set: ReplicaSet): Cell[] {
  const { spec, status } = set;
  return [
    set.metadata.name,
    spec.replicas ?? 0,
    status.replicas ?? 0,
    status.readyReplicas ?? 0,
    ageOf(set),
    ...images(spec.template?.spec?.containers ?? []),
    selectorText(spec.selector),
  ];
}

function serviceRow(service: Service): Cell[] {
  const { spec } = service;
  const ports = (spec.ports ?? []).map(
    ({ port, protocol, nodePort }) =>
      `${port}${nodePort === undefined ? '' : `:${nodePort}`}/${protocol ?? 'TCP'}`,
  );
  return [
    service.metadata.name,
    spec.type ?? 'ClusterIP',
    spec.clusterIP ?? '<none>',
    '<none>',
    list(ports),
    ageOf(service),
    list(Object.entries(spec.selector ?? {}).map(([key, value]) => `${key}=${value}`)),
  ];
}

interface Subset {
  addresses?: { ip: string }[];
  ports?: { port: number }[];
}

function endpointsRow(object: KubeObject): Cell[] {
  const subsets = (object['subsets'] ?? []) as Subset[];
  const pairs = subsets.flatMap(({ addresses = [], ports = [] }) =>
    addresses.flatMap(({ ip }) => ports.map(({ port }) => `${ip}:${port}`)),
  );
  return [object.metadata.name, list(pairs), ageOf(object)];
}

interface EventFields {
  lastTimestamp?: string;
  firstTimestamp?: string;
  type: string;
  reason: string;
  message: string;
  count?: number;
  involvedObject: { kind: string; name: string; fieldPath?: string };
  source?: { component?: string; host?: string };
}

function eventRow(object: KubeObject): Cell[] {
  const event = object as KubeObject & EventFields;
  const { involvedObject: about, source } = event;
  const from = [source?.component, source?.host].filter((one) => one !== undefined).join(', ');
  const last = since(
    event.lastTimestamp ?? event.firstTimestamp ?? event.metadata.creationTimestamp,
  );
  const count = event.count ?? 1;
  return [
    count > 1 ? `${last} (x${count} over ${since(event.firstTimestamp)})` : last,
    event.type,
    event.reason,
    `${about.kind.toLowerCase()}/${about.name}`,
    about.fieldPath ?? '',
    from,
    event.message.trim(),
    since(event.firstTimestamp),
    count,
    event.metadata.name,
  ];
}

function nodeRow(node: Node): Cell[] {
  const { status, spec, metadata } = node;
  const ready = (status.conditions ?? []).find(({ type }) => type === 'Ready');
  const words = [ready?.status === 'True' ? 'Ready' : 'NotReady'];
  if (spec.unschedulable === true) words.push('SchedulingDisabled');
  const roles = Object.keys(metadata.labels ?? {}).flatMap((label) =>
    label.startsWith('node-role.kubernetes.io/') ? [label.slice(24)] : [],
  );
  return [
    metadata.name,
    words.join(','),
    list(roles),
    ageOf(node),
    status.nodeInfo?.kubeletVersion ?? '',
    status.addresses?.find(({ type }) => type === 'InternalIP')?.address ?? '<none>',
    '<none>',
    status.nodeInfo?.osImage ?? '<unknown>',
    status.nodeInfo?.kernelVersion ?? '<unknown>',
    status.nodeInfo?.containerRuntimeVersion ?? '<unknown>',
  ];
}

const count = (map: Record<string, unknown> | undefined): number => Object.keys(map ?? {}).length;

const PRINTERS = new Map<Kind, Printer>([
  [
    PODS,
    {
      columns: [
        NAME,
        text('Ready'),
        text('Status'),
        text('Restarts'),
        AGE,
        text('IP', 1),
        text('Node', 1),
        text('Nominated Node', 1),
        text('Readiness Gates', 1),
      ],
      row: (object) => podRow(object as Pod),
    },
  ],
  [
    JOBS,
    {
      columns: [
        NAME,
        text('Status'),
        text('Completions'),
        text('Duration'),
        AGE,
        text('Containers', 1),
        text('Images', 1),
        text('Selector', 1),
      ],
      row: (object) => jobRow(object as Job),
    },
  ],
  [
    DEPLOYMENTS,
    {
      columns: [
        NAME,
        text('Ready'),
        number('Up-to-date'),
        number('Available'),
        AGE,
        text('Containers', 1),
        text('Images', 1),
        text('Selector', 1),
      ],
      row: (object) => deploymentRow(object as Deployment),
    },
  ],
  [
    REPLICA_SETS,
    {
      columns: [
        NAME,
        number('Desired'),
        number('Current'),
        number('Ready'),
        AGE,
        text('Containers', 1),
        text('Images', 1),
        text('Selector', 1),
      ],
      row: (object) => replicaSetRow(object as ReplicaSet),
    },
  ],
  [
    SERVICES,
    {
      columns: [
        NAME,
        text('Type'),
        text('Cluster-IP'),
        text('External-IP'),
        text('Port(s)'),
        AGE,
        text('Selector', 1),
      ],
      row: (object) => serviceRow(object as Service),
    },
  ],
  [ENDPOINTS, { columns: [NAME, text('Endpoints'), AGE], row: endpointsRow }],
  [
    ENDPOINT_SLICES,
    {
      columns: [NAME, text('AddressType'), text('Ports'), text('Endpoints'), AGE],
      row: (object) => {
        const slice = object as KubeObject & {
          ports?: { port: number }[];
          endpoints?: { addresses: string[] }[];
        };
        return [
          object.metadata.name,
          String(object['addressType']),
          list((slice.ports ?? []).map(({ port }) => String(port))),
          list((slice.endpoints ?? []).flatMap(({ addresses }) => addresses)),
          ageOf(object),
        ];
      },
    },
  ],
  [
    CONFIG_MAPS,
    {
      columns: [NAME, number('Data'), AGE],
      row: (object) => [
        object.metadata.name,
        count((object as ConfigMap).data) + count((object as ConfigMap).binaryData),
        ageOf(object),
      ],
    },
  ],
  [
    SECRETS,
    {
      columns: [NAME, text('Type'), number('Data'), AGE],
      row: (object) => [
        object.metadata.name,
        (object as Secret).type ?? '',
        count((object as Secret).data),
        ageOf(object),
      ],
    },
  ],
  [
    SERVICE_ACCOUNTS,
    {
      columns: [NAME, number('Secrets'), AGE],
      row: (object) => [object.metadata.name, 0, ageOf(object)],
    },
  ],
  [
    EVENTS,
    {
      columns: [
        text('Last Seen'),
        text('Type'),
        text('Reason'),
        text('Object'),
        text('Subobject', 1),
        text('Source', 1),
        text('Message'),
        text('First Seen', 1),
        { ...number('Count'), priority: 1 },
        text('Name', 1),
      ],
      row: eventRow,
    },
  ],
  [
    NODES,
    {
      columns: [
        NAME,
        text('Status'),
        text('Roles'),
        AGE,
        text('Version'),
        text('Internal-IP', 1),
        text('External-IP', 1),
        text('OS-Image', 1),
        text('Kernel-Version', 1),
        text('Container-Runtime', 1),
      ],
      row: (object) => nodeRow(object as Node),
    },
  ],
  [
    NAMESPACES,
    {
      columns: [NAME, text('Status'), AGE],
      row: (object) => [
        object.metadata.name,
        (object.status as { phase?: string }).phase ?? '',
        ageOf(object),
      ],
    },
  ],
  [
    LEASES,
    {
      columns: [NAME, text('Holder'), AGE],
      row: (object) => [
        object.metadata.name,
        (object.spec as { holderIdentity?: string }).holderIdentity ?? '',
        ageOf(object),
      ],
    },
  ],
  ...[ROLES, CLUSTER_ROLES].map((kind): [Kind, Printer] => [
    kind,
    {
      columns: [NAME, text('Created At')],
      row: ({ metadata }) => [metadata.name, metadata.creationTimestamp],
    },
  ]),
  ...[ROLE_BINDINGS, CLUSTER_ROLE_BINDINGS].map((kind): [Kind, Printer] => [
    kind,
    {
      columns: [NAME, text('Role'), AGE],
      row: (object) => {
        const { kind: of, name } = object['roleRef'] as { kind: string; name: string };
        return [object.metadata.name, `${of}/${name}`, ageOf(object)];
      },
    },
  ]),
]);

const PLAIN: Printer = {
  columns: [NAME, AGE],
  row: (object) => [object.metadata.name, ageOf(object)],
};

/** A meta.k8s.io/v1 Table of `objects`; what goes with each row is said by `includeObject`. */
export function tableOf(
  kind: Kind,
  objects: readonly KubeObject[],
  metadata: Record<string, unknown>,
  includeObject: string | null,
): unknown {
  const { columns, row } = PRINTERS.get(kind) ?? PLAIN;
  const attached = (object: KubeObject): unknown => {
    if (includeObject === 'Object') return object;
    if (includeObject === 'None') return undefined;
    return {
      kind: 'PartialObjectMetadata',
      apiVersion: 'meta.k8s.io/v1',
      metadata: object.metadata,
    };
  };
  return {
    kind: 'Table',
    apiVersion: 'meta.k8s.io/v1',
    metadata,
    columnDefinitions: columns.map(({ name, type, priority = 0 }) => ({
      name,
      type,
      format: name === 'Name' ? 'name' : '',
      description: '',
      priority,
    })),
    rows: objects.map((object) => ({
      cells: object.metadata.name === undefined ? columns.map(() => '') : row(object),
      object: attached(object),
    })),
  };
}
