import * as v from 'valibot';
import { SETTINGS } from '../../../config/schema.ts';
import type { Setting } from '../../../config/kinds.ts';
import { containersOf, workloadOf } from './manifests.ts';
import type { Container, Manifest, Workload } from './manifests.ts';

/** Every name by which a setting may be given. */
export function settingNames(): Set<string> {
  const all: Setting<v.GenericSchema<string | undefined, unknown>>[] = Object.values(SETTINGS);
  return new Set(all.flatMap(({ env, also = [] }) => [env, ...also]));
}

interface Pods {
  object: Manifest;
  work: Workload;
}

type Labels = Readonly<Record<string, string>>;

function isIn(selector: Labels, labels: Labels): boolean {
  return Object.entries(selector).every(([key, value]) => labels[key] === value);
}

const withSelector = v.object({
  selector: v.optional(v.looseObject({ matchLabels: v.record(v.string(), v.string()) })),
});

function* ofPods({ work }: Pods, objects: readonly Manifest[]): Generator<string> {
  const { template, selector, volumeClaimTemplates } = work;
  const { spec } = template;
  if (!isIn(selector.matchLabels ?? {}, template.metadata.labels)) {
    yield 'the selector does not select its own pods';
  }
  const { serviceAccountName: account } = spec;
  const accounts = objects.filter(({ kind }) => kind === 'ServiceAccount');
  if (account !== undefined && !accounts.some(({ metadata }) => metadata?.name === account)) {
    yield `there is no ServiceAccount ${account}`;
  }
  const volumes = [
    ...spec.volumes.map(({ name }) => name),
    ...volumeClaimTemplates.map(({ metadata }) => metadata.name),
  ];
  const mounted = new Set(
    containersOf(work).flatMap((each) => each.volumeMounts.map(({ name }) => name)),
  );
  for (const name of mounted) if (!volumes.includes(name)) yield `there is no volume ${name}`;
  for (const name of volumes) if (!mounted.has(name)) yield `nobody mounts the volume ${name}`;
  for (const each of containersOf(work)) {
    for (const fault of ofContainer(each)) yield `${each.name}: ${fault}`;
  }
}

const probe = v.optional(
  v.looseObject({
    httpGet: v.optional(
      v.looseObject({ path: v.string(), port: v.union([v.string(), v.number()]) }),
    ),
    exec: v.optional(v.looseObject({ command: v.array(v.string()) })),
  }),
);
const probes = v.object({ startupProbe: probe, livenessProbe: probe, readinessProbe: probe });

function* ofContainer(container: Container): Generator<string> {
  const ports = new Set(
    container.ports.flatMap(({ name, containerPort }) => [name, containerPort]),
  );
  for (const [kind, asked] of Object.entries(v.parse(probes, container))) {
    if (asked === undefined) continue;
    const { httpGet } = asked;
    if (httpGet !== undefined && !ports.has(httpGet.port)) {
      yield `${kind} asks port ${httpGet.port}, which is none of it`;
    }
  }
  const names = container.env.map(({ name }) => name);
  if (new Set(names).size !== names.length) yield 'a variable is set twice';
  // Kubernetes leaves a `$(NAME)` as it is where NAME does not stand before it.
  for (const [at, { name, value = '' }] of container.env.entries()) {
    for (const [, used = ''] of value.matchAll(/\$\((\w+)\)/g)) {
      if (!names.slice(0, at).includes(used)) yield `${name} uses ${used}, which is not set before`;
    }
  }
  if (/:latest$|^[^:@]+$/.test(container.image))
    yield `the image ${container.image} has no version`;
}

function* ofSelector(object: Manifest, pods: readonly Pods[]): Generator<string> {
  const { selector } = v.parse(withSelector, object['spec']);
  const chosen = pods.filter(({ work }) =>
    isIn(selector?.matchLabels ?? {}, work.template.metadata.labels),
  );
  if (chosen.length !== 1) yield `selects the pods of ${chosen.length} objects, not of one`;
}

const service = v.looseObject({
  selector: v.record(v.string(), v.string()),
  ports: v.array(v.looseObject({ targetPort: v.union([v.string(), v.number()]) })),
});

function* ofService(object: Manifest, pods: readonly Pods[]): Generator<string> {
  const { selector, ports } = v.parse(service, object['spec']);
  const chosen = pods.filter(({ work }) => isIn(selector, work.template.metadata.labels));
  if (chosen.length !== 1) yield `selects the pods of ${chosen.length} objects, not of one`;
  const containers = chosen.flatMap(({ work }) => containersOf(work));
  const open = new Set(
    containers.flatMap((each) =>
      each.ports.flatMap(({ name, containerPort }) => [name, containerPort]),
    ),
  );
  for (const { targetPort } of ports) {
    if (!open.has(targetPort)) yield `leads to port ${targetPort}, which no container has`;
  }
}

const binding = v.looseObject({
  roleRef: v.looseObject({ kind: v.string(), name: v.string() }),
  subjects: v.array(
    v.looseObject({ kind: v.string(), name: v.string(), namespace: v.optional(v.string()) }),
  ),
});

function* ofBinding(object: Manifest, objects: readonly Manifest[]): Generator<string> {
  const { roleRef, subjects } = v.parse(binding, object);
  for (const { kind, name } of [roleRef, ...subjects]) {
    if (!objects.some((each) => each.kind === kind && each.metadata?.name === name)) {
      yield `there is no ${kind} ${name}`;
    }
  }
}

const scaled = v.looseObject({ scaleTargetRef: v.looseObject({ name: v.string() }) });

function* ofScaled(object: Manifest, pods: readonly Pods[]): Generator<string> {
  const { scaleTargetRef } = v.parse(scaled, object['spec']);
  if (!pods.some((each) => each.object.metadata?.name === scaleTargetRef.name)) {
    yield `there is no ${scaleTargetRef.name}`;
  }
}

function* ofObject(
  object: Manifest,
  objects: readonly Manifest[],
  pods: readonly Pods[],
): Generator<string> {
  const work = workloadOf(object);
  if (work !== null) yield* ofPods({ object, work }, objects);
  if (object.kind === 'PodDisruptionBudget') yield* ofSelector(object, pods);
  if (object.kind === 'Service') yield* ofService(object, pods);
  if (/^(?:Cluster)?RoleBinding$/.test(object.kind)) yield* ofBinding(object, objects);
  if (object.kind === 'ScaledObject') yield* ofScaled(object, pods);
}

/** The pods that a set of objects makes. */
export function podsOf(objects: readonly Manifest[]): Pods[] {
  return objects.flatMap((object) => {
    const work = workloadOf(object);
    return work === null ? [] : [{ object, work }];
  });
}

/** What in a set of objects that are applied together names something that is not there, or is there twice. */
export function disagreements(objects: readonly Manifest[]): string[] {
  const pods = podsOf(objects);
  const ids = objects.map(({ kind, metadata }) => `${kind} ${metadata?.name ?? ''}`);
  const twice = ids.filter((id, at) => ids.indexOf(id) !== at).map((id) => `${id} is there twice`);
  const faults = objects.flatMap((object) =>
    [...ofObject(object, objects, pods)].map(
      (fault) => `${object.kind} ${object.metadata?.name ?? ''} (${object.source}): ${fault}`,
    ),
  );
  return [...twice, ...faults];
}

const secured = v.looseObject({
  runAsNonRoot: v.optional(v.boolean(), false),
  readOnlyRootFilesystem: v.optional(v.boolean(), false),
  allowPrivilegeEscalation: v.optional(v.boolean(), true),
  privileged: v.optional(v.boolean(), false),
  capabilities: v.optional(
    v.looseObject({
      drop: v.optional(v.array(v.string()), []),
      add: v.optional(v.array(v.string()), []),
    }),
    {},
  ),
  seccompProfile: v.optional(v.looseObject({ type: v.string() })),
});

/** By what a container of ours is less confined than it could be; empty for a confined one. */
export function looseEnds(work: Workload, container: Container): string[] {
  const own = v.parse(secured, container.securityContext);
  const pod = v.parse(secured, work.template.spec.securityContext);
  const ends = {
    'may be root': !(own.runAsNonRoot || pod.runAsNonRoot),
    'writes its root file system': !own.readOnlyRootFilesystem,
    'may gain privileges': own.allowPrivilegeEscalation || own.privileged,
    'keeps capabilities':
      !(own.capabilities.drop ?? []).includes('ALL') || (own.capabilities.add ?? []).length > 0,
    'is not filtered by seccomp':
      (own.seccompProfile ?? pod.seccompProfile)?.type !== 'RuntimeDefault',
    'has no limit of memory': container.resources.limits?.['memory'] === undefined,
    'asks for no CPU': container.resources.requests?.['cpu'] === undefined,
    'asks for no memory': container.resources.requests?.['memory'] === undefined,
  };
  return Object.entries(ends).flatMap(([end, isLoose]) => (isLoose ? [end] : []));
}
