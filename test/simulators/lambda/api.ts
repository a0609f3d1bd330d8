import { generateKeyPairSync } from 'node:crypto';
import type { Call, Reply } from '../cloud/server.ts';
import { FAMILIES, INSTANCE_TYPES, REGIONS } from './catalog.ts';
import { imageId, launch, regionsWith, showInstance } from './instances.ts';
import type { LaunchBody } from './instances.ts';
import { checked, checks, data, Refusal } from './state.ts';
import type { FileSystem, Instance, LambdaState, SshKey } from './state.ts';

/** The ledger's name for a caller. */
export function askedByOf({ headers }: Call): string {
  return headers['user-agent'] ?? '';
}

function findInstance({ fleet, knobs }: LambdaState, id: string): Instance {
  const instance = fleet.find(id);
  if (instance !== undefined && instance.phase !== 'gone') return instance;
  const ended = fleet.all().find((one) => one.id === id && one.endedAt !== null);
  const { terminated_shown_ms: shown } = knobs();
  if (ended !== undefined && Date.now() - (ended.endedAt ?? 0) < shown) return ended;
  if (instance !== undefined) return instance;
  throw new Refusal('missing');
}

/** One id that is not there refuses them all, and none ends. */
function terminate(state: LambdaState, call: Call): Reply {
  const { instance_ids: ids } = checked(call, checks.ids) as { instance_ids: string[] };
  const { booting_holds: holds, terminating_is_unknown: unknown } = state.knobs();
  const instances = ids.map((id) => findInstance(state, id));
  for (const { phase } of instances) {
    if (holds && phase === 'booting')
      throw new Refusal('conflict', 'The instance has not launched yet.');
    if (phase === 'gone') throw new Refusal('missing');
    if (unknown && phase === 'ending') throw new Refusal('unknown');
  }
  for (const instance of instances) state.fleet.terminate(instance, call.lost);
  const shown = instances.map((one) => ({ ...showInstance(state, one), status: 'terminating' }));
  return data({ terminated_instances: shown });
}

async function restart(state: LambdaState, call: Call): Promise<Reply> {
  const { instance_ids: ids } = checked(call, checks.ids) as { instance_ids: string[] };
  const instances = ids.map((id) => findInstance(state, id));
  if (instances.some(({ phase }) => phase !== 'up')) throw new Refusal('conflict');
  for (const instance of instances) {
    await state.fleet.halt(instance, 'stopped');
    state.fleet.boot(instance);
  }
  return data({ restarted_instances: instances.map((one) => showInstance(state, one)) });
}

function rename(state: LambdaState, call: Call, id: string): Reply {
  const instance = findInstance(state, id);
  const { name } = checked(call, checks.rename) as { name?: string };
  if (name !== undefined) instance.name = name;
  return data(showInstance(state, instance));
}

function listTypes(state: LambdaState): Reply {
  const items = [...INSTANCE_TYPES.values()].map((type) => {
    const regions = regionsWith(state, type);
    return [type.name, { instance_type: type, regions_with_capacity_available: regions }];
  });
  return data(Object.fromEntries(items));
}

function listImages(): Reply {
  const created = '2026-06-01T00:00:00.000Z';
  const images = FAMILIES.flatMap(([family, architecture]) =>
    [...REGIONS.values()].map((region) => ({
      id: imageId(family, architecture),
      created_time: created,
      updated_time: created,
      name: `${family}-2026.06`,
      description: family,
      family,
      version: '2026.06',
      architecture,
      region,
    })),
  );
  return data(images);
}

function addKey(state: LambdaState, call: Call): Reply {
  const body = checked(call, checks.addKey) as { name: string; public_key?: string };
  if ([...state.sshKeys.values()].some(({ name }) => name === body.name))
    throw new Refusal('duplicate');
  const key: SshKey = { id: state.draw(), name: body.name, public_key: body.public_key ?? '' };
  if (body.public_key === undefined) {
    const pair = generateKeyPairSync('rsa', {
      modulusLength: 2048,
      publicKeyEncoding: { type: 'spki', format: 'pem' },
      privateKeyEncoding: { type: 'pkcs1', format: 'pem' },
    });
    key.public_key = pair.publicKey;
    state.sshKeys.set(key.id, key);
    return data({ ...key, private_key: pair.privateKey });
  }
  state.sshKeys.set(key.id, key);
  return data(key);
}

function deleteKey({ sshKeys }: LambdaState, _: Call, id: string): Reply {
  if (!sshKeys.delete(id)) throw new Refusal('notFound');
  return data({});
}

function isMounted({ fleet }: LambdaState, id: string): boolean {
  return fleet
    .alive()
    .some(({ extra }) => extra.mounts.some((mount) => mount.file_system_id === id));
}

function showFileSystem(state: LambdaState, { id, name, region, created }: FileSystem): object {
  return {
    id,
    name,
    mount_point: `/lambda/nfs/${name}`,
    created,
    created_by: { id: 'u1', email: 'batch@example.com', status: 'active' },
    is_in_use: isMounted(state, id),
    region: REGIONS.get(region),
  };
}

function createFileSystem(state: LambdaState, call: Call): Reply {
  const { name, region } = checked(call, checks.createFileSystem) as {
    name: string;
    region: string;
  };
  if (!REGIONS.has(region)) throw new Refusal('invalid', 'The specified region does not exist.');
  if ([...state.fileSystems.values()].some((one) => one.name === name))
    throw new Refusal('duplicate');
  const system: FileSystem = { id: state.draw(), name, region, created: new Date().toISOString() };
  state.fileSystems.set(system.id, system);
  return data(showFileSystem(state, system));
}

async function deleteFileSystem(state: LambdaState, _: Call, id: string): Promise<Reply> {
  if (!state.fileSystems.has(id)) throw new Refusal('resource', 'Filesystem was not found.');
  if (isMounted(state, id)) throw new Refusal('inUse');
  state.fileSystems.delete(id);
  await state.yard?.dropVolume(id);
  return data({ deleted_ids: [id] });
}

type Handler = (state: LambdaState, call: Call, id: string) => Reply | Promise<Reply>;

const ROUTES: Record<string, Handler> = {
  'GET /instances': (state) => data(state.fleet.listed().map((one) => showInstance(state, one))),
  'GET /instances/{id}': (state, _, id) => data(showInstance(state, findInstance(state, id))),
  'POST /instances/{id}': rename,
  'POST /instance-operations/launch': (state, call) => {
    const body = checked(call, checks.launch) as LaunchBody;
    return data({ instance_ids: [launch(state, body, askedByOf(call)).id] });
  },
  'POST /instance-operations/terminate': terminate,
  'POST /instance-operations/restart': restart,
  'GET /instance-types': listTypes,
  'GET /images': listImages,
  'GET /regions': () => data([...REGIONS.values()]),
  'GET /ssh-keys': ({ sshKeys }) => data([...sshKeys.values()]),
  'POST /ssh-keys': addKey,
  'DELETE /ssh-keys/{id}': deleteKey,
  'GET /file-systems': (state) =>
    data([...state.fileSystems.values()].map((one) => showFileSystem(state, one))),
  'POST /filesystems': createFileSystem,
  'DELETE /filesystems/{id}': deleteFileSystem,
};

/** Answers a request, or throws a Refusal. */
export async function answer(state: LambdaState, call: Call): Promise<Reply> {
  const path = call.path.replace(/^\/api\/v1/, '');
  const whole = ROUTES[`${call.method} ${path}`];
  if (whole !== undefined && call.path !== path) return whole(state, call, '');
  const [, family = '', id = ''] = /^(\/[a-z-]+)\/([^/]+)$/.exec(path) ?? [];
  const one = ROUTES[`${call.method} ${family}/{id}`];
  if (one === undefined || call.path === path) throw new Refusal('notFound');
  return one(state, call, id);
}
