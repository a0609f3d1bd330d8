import { chmod, chown, mkdir, rename, rm, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { downwardValue, resourceValue } from './environment.ts';
import { CONFIG_MAPS, SECRETS } from './kinds.ts';
import type { ConfigMap, Container, Pod, PodSpec, Secret } from './objects.ts';
import type { Store } from './store.ts';

/** A volume cannot be mounted yet. */
export class MountError extends Error {
  override name = 'MountError';
}

export interface Mount {
  from: string;
  to: string;
  readOnly: boolean;
}

type Volume = NonNullable<PodSpec['volumes']>[number];

interface Item {
  key: string;
  path: string;
}

export interface VolumeSources {
  store: Store;
  /** The PEM of the API server's authority. */
  ca: string;
  tokenOf(namespace: string, name: string): string;
  /** Folder of this pod's volumes. */
  folder: string;
}

type Files = Record<string, Buffer | string>;

function pick(
  data: Record<string, Buffer | string>,
  items: readonly Item[] | undefined,
  what: string,
): Files {
  if (items === undefined) return data;
  return Object.fromEntries(
    items.map(({ key, path: file }) => {
      const value = data[key];
      if (value === undefined) throw new MountError(`references non-existent ${what} key: ${key}`);
      return [file, value];
    }),
  );
}

/** Makes the volumes of `pod` and says where each lies. */
export function createVolumes(pod: Pod, { store, ca, tokenOf, folder }: VolumeSources) {
  const namespace = pod.metadata.namespace ?? 'default';

  function secretFiles(name: string, items: Item[] | undefined, optional = false): Files {
    const secret: Secret | undefined = store.get(SECRETS, namespace, name);
    if (secret === undefined) {
      if (optional) return {};
      throw new MountError(`secret "${name}" not found`);
    }
    const data = Object.entries(secret.data ?? {}).map(
      ([key, value]) => [key, Buffer.from(value, 'base64')] as const,
    );
    return pick(Object.fromEntries(data), items, 'secret');
  }

  function configFiles(name: string, items: Item[] | undefined, optional = false): Files {
    const found: ConfigMap | undefined = store.get(CONFIG_MAPS, namespace, name);
    // Every namespace has this one; here it is as good as there.
    if (found === undefined && name === 'kube-root-ca.crt')
      return pick({ 'ca.crt': ca }, items, 'config');
    if (found === undefined) {
      if (optional) return {};
      throw new MountError(`configmap "${name}" not found`);
    }
    return pick(found.data ?? {}, items, 'config');
  }

  function downwardFiles(
    items: readonly {
      path: string;
      fieldRef?: { fieldPath: string };
      resourceFieldRef?: { resource: string; containerName?: string; divisor?: string };
    }[],
  ): Files {
    return Object.fromEntries(
      items.map(({ path: file, fieldRef, resourceFieldRef }) => {
        if (fieldRef !== undefined) return [file, downwardValue(pod, fieldRef.fieldPath) ?? ''];
        const container = pod.spec.containers.find(
          ({ name }) => name === resourceFieldRef?.containerName,
        );
        if (container === undefined || resourceFieldRef === undefined) return [file, ''];
        return [file, resourceValue(container, resourceFieldRef, {})];
      }),
    );
  }

  function filesOf(volume: Volume): Files | undefined {
    const { secret, configMap, projected, downwardAPI } = volume;
    if (secret !== undefined)
      return secretFiles(secret.secretName ?? '', secret.items, secret.optional);
    if (configMap !== undefined)
      return configFiles(configMap.name ?? '', configMap.items, configMap.optional);
    if (downwardAPI !== undefined) return downwardFiles(downwardAPI.items ?? []);
    if (projected === undefined) return undefined;
    const files: Files = {};
    for (const source of projected.sources ?? []) {
      if (source.serviceAccountToken !== undefined) {
        files[source.serviceAccountToken.path] = tokenOf(
          namespace,
          pod.spec.serviceAccountName ?? 'default',
        );
      }
      if (source.secret !== undefined)
        Object.assign(
          files,
          secretFiles(source.secret.name ?? '', source.secret.items, source.secret.optional),
        );
      if (source.configMap !== undefined)
        Object.assign(
          files,
          configFiles(
            source.configMap.name ?? '',
            source.configMap.items,
            source.configMap.optional,
          ),
        );
      if (source.downwardAPI !== undefined)
        Object.assign(files, downwardFiles(source.downwardAPI.items ?? []));
    }
    return files;
  }

  async function writeFiles(target: string, files: Files): Promise<void> {
    await mkdir(target, { recursive: true });
    for (const [name, content] of Object.entries(files)) {
      const file = path.join(target, name);
      await mkdir(path.dirname(file), { recursive: true });
      await writeFile(`${file}.next`, content, { mode: 0o644 });
      await rename(`${file}.next`, file);
    }
  }

  async function hostPath(where: string, type: string): Promise<string> {
    if (type === 'DirectoryOrCreate') await mkdir(where, { recursive: true });
    const found = await stat(where).catch(() => undefined); // missing: said below
    if (found === undefined && type === '') await mkdir(where, { recursive: true });
    else if (found === undefined || (type === 'Directory' && !found.isDirectory())) {
      throw new MountError(`hostPath type check failed: ${where} is not a directory`);
    }
    return where;
  }

  async function make(volume: Volume): Promise<string> {
    const target = path.join(folder, volume.name);
    if (volume.hostPath !== undefined) {
      return hostPath(volume.hostPath.path, volume.hostPath.type ?? '');
    }
    if (volume.emptyDir !== undefined) {
      await mkdir(target, { recursive: true });
      await chmod(target, 0o777);
      const group = pod.spec.securityContext?.fsGroup;
      if (group !== undefined) await chown(target, 0, group);
      return target;
    }
    const files = filesOf(volume);
    if (files === undefined)
      throw new MountError(`volume plugin of "${volume.name}" is not installed on this node`);
    await writeFiles(target, files);
    return target;
  }

  return {
    /** Where each volume lies; throws MountError with what is missing. */
    async mountAll(): Promise<Map<string, string>> {
      const places = new Map<string, string>();
      for (const volume of pod.spec.volumes ?? []) {
        try {
          places.set(volume.name, await make(volume));
        } catch (error) {
          if (!(error instanceof MountError)) throw error;
          throw new MountError(
            `MountVolume.SetUp failed for volume "${volume.name}" : ${error.message}`,
          );
        }
      }
      return places;
    },
    async clear(): Promise<void> {
      await rm(folder, { recursive: true, force: true, maxRetries: 5 });
    },
  };
}

/** What a container mounts where, in the order in which it has to be done: parents first. */
export async function mountsOf(
  container: Container,
  places: ReadonlyMap<string, string>,
): Promise<Mount[]> {
  const mounts: Mount[] = [];
  for (const { name, mountPath, subPath, readOnly } of container.volumeMounts ?? []) {
    const place = places.get(name);
    if (place === undefined) throw new MountError(`volume "${name}" is not mounted`);
    const from = subPath === undefined ? place : path.join(place, subPath);
    if (subPath !== undefined) {
      const found = await stat(from).catch(() => undefined); // a new folder of the volume, as the kubelet makes it
      if (found === undefined) await mkdir(from, { recursive: true, mode: 0o777 });
    }
    mounts.push({ from, to: mountPath, readOnly: readOnly ?? false });
  }
  return mounts.toSorted((one, two) => one.to.split('/').length - two.to.split('/').length);
}
