import { CONFIG_MAPS, SECRETS } from './kinds.ts';
import type { ConfigMap, Container, Pod, Secret } from './objects.ts';
import { parseQuantity } from './quantity.ts';
import type { Store } from './store.ts';

/** A container cannot be made yet: a Secret or ConfigMap is missing. */
export class ConfigError extends Error {
  override name = 'ConfigError';
}

/** Text of `metadata.labels['x']`, `status.podIP` … of a pod; undefined where there is none. */
export function downwardValue(pod: Pod, fieldPath: string): string | undefined {
  const { metadata, spec, status } = pod;
  const keyed = /^metadata\.(labels|annotations)\['(.+)'\]$/.exec(fieldPath);
  if (keyed !== null) {
    const map = keyed[1] === 'labels' ? metadata.labels : metadata.annotations;
    return map?.[keyed[2] ?? ''] ?? '';
  }
  const lines = (map: Record<string, string> | undefined): string =>
    Object.entries(map ?? {})
      .map(([key, value]) => `${key}=${JSON.stringify(value)}`)
      .join('\n');
  const fields: Record<string, string | undefined> = {
    'metadata.name': metadata.name,
    'metadata.namespace': metadata.namespace,
    'metadata.uid': metadata.uid,
    'metadata.labels': lines(metadata.labels),
    'metadata.annotations': lines(metadata.annotations),
    'spec.nodeName': spec.nodeName,
    'spec.serviceAccountName': spec.serviceAccountName,
    'status.hostIP': status.hostIP,
    'status.podIP': status.podIP,
    'status.podIPs': status.podIP,
  };
  return fields[fieldPath];
}

/** `limits.memory` of a container, in units of `divisor`; a missing limit is what the node has. */
export function resourceValue(
  container: Container,
  { resource, divisor }: { resource: string; divisor?: string },
  allocatable: Readonly<Record<string, string>>,
): string {
  const [part = '', ...rest] = resource.split('.');
  const name = rest.join('.');
  const own = container.resources?.[part === 'limits' ? 'limits' : 'requests']?.[name];
  const amount = parseQuantity(own ?? (part === 'limits' ? (allocatable[name] ?? '0') : '0')) ?? 0;
  const unit = parseQuantity(divisor === undefined || divisor === '0' ? '1' : divisor) ?? 1;
  return String(Math.ceil(amount / unit));
}

const REFERENCE = /\$(\$|\(([^)]*)\))/g;

/** `$(NAME)` as Kubernetes expands it: what is not known stays, `$$` is one `$`. */
export function expand(text: string, env: Readonly<Record<string, string>>): string {
  return text.replaceAll(REFERENCE, (whole, kind: string, name: string | undefined) => {
    if (kind === '$') return '$';
    return env[name ?? ''] ?? whole;
  });
}

const decode = (data: Record<string, string> | undefined): Record<string, string> =>
  Object.fromEntries(
    Object.entries(data ?? {}).map(([key, value]) => [
      key,
      Buffer.from(value, 'base64').toString(),
    ]),
  );

interface Reference {
  name?: string;
  optional?: boolean;
}

/** The variables of a container that its pod asks for; throws ConfigError. */
export function containerEnv(
  store: Store,
  pod: Pod,
  container: Container,
  allocatable: Readonly<Record<string, string>>,
): Record<string, string> {
  const { namespace } = pod.metadata;

  function dataOf(
    kind: 'configmap' | 'secret',
    { name = '', optional }: Reference,
  ): Record<string, string> | undefined {
    const found =
      kind === 'secret'
        ? store.get(SECRETS, namespace, name)
        : store.get(CONFIG_MAPS, namespace, name);
    if (found === undefined) {
      if (optional === true) return undefined;
      throw new ConfigError(`${kind} "${name}" not found`);
    }
    return kind === 'secret' ? decode((found as Secret).data) : ((found as ConfigMap).data ?? {});
  }

  function keyOf(
    kind: 'configmap' | 'secret',
    ref: Reference & { key: string },
  ): string | undefined {
    const data = dataOf(kind, ref);
    const value = data?.[ref.key];
    if (value !== undefined || ref.optional === true) return value;
    const title = kind === 'secret' ? 'Secret' : 'ConfigMap';
    throw new ConfigError(`couldn't find key ${ref.key} in ${title} ${namespace}/${ref.name}`);
  }

  function valueOf(
    { value, valueFrom }: NonNullable<Container['env']>[number],
    env: Record<string, string>,
  ): string | undefined {
    if (valueFrom === undefined) return expand(value ?? '', env);
    const { fieldRef, secretKeyRef, configMapKeyRef, resourceFieldRef } = valueFrom;
    if (fieldRef !== undefined) return downwardValue(pod, fieldRef.fieldPath);
    if (secretKeyRef !== undefined) return keyOf('secret', secretKeyRef);
    if (configMapKeyRef !== undefined) return keyOf('configmap', configMapKeyRef);
    if (resourceFieldRef !== undefined)
      return resourceValue(container, resourceFieldRef, allocatable);
    return undefined;
  }

  const env: Record<string, string> = {};
  for (const { prefix = '', configMapRef, secretRef } of container.envFrom ?? []) {
    const data = {
      ...(configMapRef === undefined ? {} : dataOf('configmap', configMapRef)),
      ...(secretRef === undefined ? {} : dataOf('secret', secretRef)),
    };
    for (const [key, value] of Object.entries(data)) env[`${prefix}${key}`] = value;
  }
  for (const one of container.env ?? []) {
    const value = valueOf(one, env);
    if (value !== undefined) env[one.name] = value;
  }
  return env;
}
