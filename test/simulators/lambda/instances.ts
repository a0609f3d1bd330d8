import { parseUserData } from '../machines/cloud-init.ts';
import type { MachineKnobs } from '../machines/knobs.ts';
import type { MachineSpec } from '../machines/machine.ts';
import { FAMILIES, gpusOf, INSTANCE_TYPES, REGIONS } from './catalog.ts';
import type { InstanceType, Region } from './catalog.ts';
import { Refusal } from './state.ts';
import type { FileSystem, Instance, LambdaState, SshKey } from './state.ts';

/** A body that `checks.launch` has passed. */
export interface LaunchBody {
  region_name: string;
  instance_type_name: string;
  ssh_key_names: string[];
  file_system_names?: string[];
  file_system_mounts?: { mount_point: string; file_system_id: string }[];
  hostname?: string;
  name?: string;
  image?: { id?: string; family?: string };
  user_data?: string;
  tags?: { key: string; value: string }[];
}

function architectureOf(type: InstanceType): 'x86_64' | 'arm64' {
  return type.name.includes('gh200') ? 'arm64' : 'x86_64';
}

function checkImage(image: LaunchBody['image'], type: InstanceType): void {
  if (image === undefined) return;
  const wanted = architectureOf(type);
  const found = FAMILIES.some(([family, architecture]) => {
    const known =
      image.family === undefined
        ? image.id === imageId(family, architecture)
        : image.family === family;
    return known && architecture === wanted;
  });
  if (!found) throw new Refusal('resource', 'The specified image does not exist.');
}

export function imageId(family: string, architecture: string): string {
  return `${family}-${architecture}`;
}

function mountsOf(
  { fileSystems }: LambdaState,
  body: LaunchBody,
): { mounts: Instance['extra']['mounts']; names: string[] } {
  const all = [...fileSystems.values()];
  const names = body.file_system_names ?? [];
  const mounts = [...(body.file_system_mounts ?? [])];
  const mounted: FileSystem[] = [];
  for (const name of names) {
    const found = all.find((one) => one.name === name);
    if (found === undefined)
      throw new Refusal('resource', `The specified file system does not exist: ${name}`);
    mounted.push(found);
    if (mounts.some(({ file_system_id: id }) => id === found.id)) continue;
    mounts.push({ mount_point: `/lambda/nfs/${name}`, file_system_id: found.id });
  }
  for (const { file_system_id: id } of mounts) {
    const found = fileSystems.get(id);
    if (found === undefined)
      throw new Refusal('resource', `The specified file system does not exist: ${id}`);
    mounted.push(found);
  }
  if (mounted.some(({ region }) => region !== body.region_name)) throw new Refusal('wrongRegion');
  return { mounts, names: [...new Set(mounted.map(({ name }) => name))] };
}

function keysOf({ sshKeys }: LambdaState, names: readonly string[]): SshKey[] {
  return names.map((name) => {
    const key = [...sshKeys.values()].find((one) => one.name === name);
    if (key === undefined)
      throw new Refusal('resource', `The specified SSH key does not exist: ${name}`);
    return key;
  });
}

/** Regions that have one of this type to give now. */
export function regionsWith({ fleet }: LambdaState, type: InstanceType): Region[] {
  return [...REGIONS.values()].filter(({ name }) => fleet.stock(type.name, name) > 0);
}

/** Launches one instance, as each call does; throws a Refusal. */
export function launch(state: LambdaState, body: LaunchBody, askedBy: string): Instance {
  const type = INSTANCE_TYPES.get(body.instance_type_name);
  if (type === undefined)
    throw new Refusal('resource', 'The specified instance type does not exist.');
  if (!REGIONS.has(body.region_name))
    throw new Refusal('resource', 'The specified region does not exist.');
  const keys = keysOf(state, body.ssh_key_names);
  const { mounts, names } = mountsOf(state, body);
  checkImage(body.image, type);
  const { quota } = state.knobs();
  if (quota !== null && state.fleet.alive().length >= quota) throw new Refusal('quota');
  if (state.fleet.stock(type.name, body.region_name) < 1 || state.fleet.refuses()) {
    throw new Refusal('capacity');
  }
  return state.fleet.create({
    id: state.draw(),
    name: body.name ?? '',
    type: type.name,
    gpus: type.specs.gpus,
    units: 1,
    region: body.region_name,
    usdPerHour: type.price_cents_per_hour / 100,
    interruptible: false,
    askedBy,
    // Write-only, and it may hold a private key.
    request: { ...body, ...(body.user_data === undefined ? {} : { user_data: '[not shown]' }) },
    extra: {
      keys,
      mounts,
      fileSystemNames: names,
      hostname: body.hostname,
      tags: body.tags ?? [],
      userData: body.user_data ?? '',
    },
  });
}

/** What runs for an instance. */
export async function instanceSpec(
  state: LambdaState,
  instance: Instance,
  knobs: MachineKnobs,
): Promise<MachineSpec> {
  const { extra } = instance;
  const type = INSTANCE_TYPES.get(instance.type);
  const mounts: { from: string; to: string }[] = [];
  for (const { mount_point: to, file_system_id: id } of extra.mounts) {
    if (state.yard !== undefined) mounts.push({ from: await state.yard.volume(id), to });
  }
  return {
    id: instance.id,
    gpus: type === undefined ? [] : gpusOf(type),
    diskGb: type?.specs.storage_gib ?? 100,
    mounts,
    knobs,
    boot: {
      kind: 'vm',
      authorizedKeys: extra.keys.map(({ public_key: key }) => key),
      cloudInit: parseUserData(extra.userData),
    },
  };
}

function isActive({ knobs }: LambdaState, { phase, readyAt }: Instance): boolean {
  const { active_early: early, active_lag_ms: lag } = knobs();
  if (phase !== 'up') return false;
  return early || (readyAt !== null && Date.now() - readyAt >= lag);
}

function statusOf(state: LambdaState, instance: Instance): string {
  if (instance.shownStatus !== null) return instance.shownStatus;
  switch (instance.phase) {
    case 'booting':
    case 'up':
      return isActive(state, instance) ? 'active' : 'booting';
    case 'ending':
      return 'terminating';
    case 'preempted':
    case 'stopped':
      return 'preempted';
    case 'gone':
      return 'terminated';
  }
}

function actionsOf(status: string): object {
  const blocked: Record<string, [string, string]> = {
    booting: ['vm-has-not-launched', 'The instance has not launched yet.'],
    terminating: ['vm-is-terminating', 'The instance is terminating.'],
    terminated: ['vm-is-terminating', 'The instance is terminated.'],
  };
  const [code, description] = blocked[status] ?? [];
  const state =
    code === undefined
      ? { available: true }
      : { available: false, reason_code: code, reason_description: description };
  return { migrate: state, rebuild: state, restart: state, cold_reboot: state, terminate: state };
}

/** The Instance of the document. `ip` is not there before it is known. */
export function showInstance(state: LambdaState, instance: Instance): object {
  const { extra } = instance;
  const status = statusOf(state, instance);
  const address = state.fleet.endpoint(instance)?.host;
  return {
    id: instance.id,
    name: instance.name,
    ...(address === undefined
      ? {}
      : { ip: address, private_ip: address, hostname: extra.hostname ?? address }),
    status,
    ssh_key_names: extra.keys.map(({ name }) => name),
    file_system_names: extra.fileSystemNames,
    ...(extra.mounts.length === 0 ? {} : { file_system_mounts: extra.mounts }),
    region: REGIONS.get(instance.region),
    instance_type: INSTANCE_TYPES.get(instance.type),
    is_reserved: false,
    actions: actionsOf(status),
    tags: extra.tags,
  };
}
