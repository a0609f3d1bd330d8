import * as v from 'valibot';
import { createTurn } from '../create-turn.ts';
import type { Machine, MachineWish } from '../lease-contract.ts';
import type { Account } from './account.ts';
import { isNoSuchObject, launchError } from './api.ts';
import type { Ask } from './api.ts';
import { tagsOf } from './instances.ts';
import type { Turn } from './inventory.ts';
import type { Kept } from './kept.ts';
import { createPlaces } from './places.ts';
import type { Place } from './places.ts';
import type { InstanceType } from './types.ts';
import { userData } from './user-data.ts';

export interface LaunchSettings {
  /** Begins the name of each machine and is its tag: whose machines they are. */
  stamp: string;
  /** Keys of the account by name: the first is named at a launch, all are let in. None: the authorized key is one. */
  sshKeyNames?: readonly string[];
  now: () => number;
}

export interface LaunchDeps {
  ask: Ask;
  turn: Turn;
  types: Kept<Map<string, InstanceType>>;
  account: Account;
}

/** Where the model cache is mounted; the API takes paths below /home, /lambda/nfs and /data. */
export const MODEL_CACHE_PATH = '/lambda/nfs/model-cache';

const launched = v.object({ instance_ids: v.tupleWithRest([v.string()], v.string()) });

/** Asks for one new machine; rejects with the contract's errors. */
export type Launch = (wish: MachineWish) => Promise<Machine>;

export function createLaunch(
  settings: LaunchSettings,
  { ask, turn, types, account }: LaunchDeps,
): Launch {
  const { stamp, sshKeyNames = [], now } = settings;
  const places = createPlaces({ types, account, now });

  return async (wish) => {
    const place = await places.find(wish);
    const keys = await account.keysFor(sshKeyNames, wish.authorizedKey);
    const data = userData(wish.hostKey, [wish.authorizedKey, ...keys.others]);
    const connectMs = await createTurn(turn, wish.sendBefore, now);
    const createdAt = now();
    const order = {
      region_name: place.region,
      instance_type_name: place.type.name,
      ssh_key_names: [keys.name],
      name: wish.name,
      tags: tagsOf(stamp, wish.name, createdAt),
      user_data: data,
      ...mountsOf(place),
    };
    const outcome = await ask('POST', '/instance-operations/launch', order, connectMs);
    const parsed = v.safeParse(launched, outcome.is === 'data' ? outcome.data : undefined);
    if (parsed.success) return newMachine(wish.name, place, createdAt, parsed.output);
    if (isNoSuchObject(outcome)) {
      // The API says it with one code of a key, a file system, a type and a region.
      account.forget();
      types.forget();
      await account.checkKeys(sshKeyNames, wish.authorizedKey);
    }
    const error = launchError(`${place.type.name} in ${place.region}`, outcome);
    if (error.kind === 'NoCapacity') places.refused(place);
    throw error;
  };
}

function mountsOf({ fileSystem }: Place): object {
  if (fileSystem === null) return {};
  return { file_system_mounts: [{ mount_point: MODEL_CACHE_PATH, file_system_id: fileSystem.id }] };
}

/** A machine that was just launched. Nothing more is asked about it: its address may lag behind. */
function newMachine(
  name: string,
  { type, region }: Place,
  createdAt: number,
  raw: v.InferOutput<typeof launched>,
): Machine {
  return {
    id: raw.instance_ids[0],
    name,
    state: 'booting',
    ssh: null,
    region,
    gpuType: type.gpuDescription,
    gpuCount: type.gpus,
    pricePerHour: type.pricePerHour,
    createdAt,
    reason: '',
    raw,
  };
}
