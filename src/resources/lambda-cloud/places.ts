import { invalidInput, SluiceError } from '../../domain/errors.ts';
import type { MachineWish } from '../lease-contract.ts';
import type { Account, FileSystem } from './account.ts';
import type { Kept } from './kept.ts';
import type { InstanceType } from './types.ts';

/** Where a wish can be had now. */
export interface Place {
  type: InstanceType;
  region: string;
  /** What is mounted as model cache, which is in that region; null: nothing. */
  fileSystem: FileSystem | null;
}

export interface Places {
  /** Rejects with NoCapacity where no region has capacity, and with InvalidInput where none ever can have it. */
  find(wish: MachineWish): Promise<Place>;
  /** Notes that it was refused although it was shown. */
  refused(place: Place): void;
}

export interface PlacesDeps {
  types: Kept<Map<string, InstanceType>>;
  account: Account;
  now: () => number;
}

/** So long a region that refused a launch comes after the others: what the catalog says of capacity flickers. */
const REFUSED_MS = 60_000;
const GB_PER_GIB = 1024 ** 3 / 1e9;

export function createPlaces({ types, account, now }: PlacesDeps): Places {
  const refusedAt = new Map<string, number>();

  function isFresh(type: InstanceType, region: string): boolean {
    return now() - (refusedAt.get(`${type.name} ${region}`) ?? -Infinity) >= REFUSED_MS;
  }

  return {
    async find(wish) {
      const type = (await types.get()).get(wish.offer);
      if (type === undefined)
        throw invalidInput('lease.offer', `Lambda Cloud has no instance type '${wish.offer}'.`);
      checkType(wish, type);
      const { modelCache, regions } = wish;
      const fileSystem =
        modelCache === null ? null : await findFileSystem(modelCache, regions, account);
      const wanted = fileSystem === null ? wish.regions : [fileSystem.region];
      const there = wanted.filter((region) => type.regions.includes(region));
      const choice = wanted.length === 0 ? type.regions : there;
      const region = choice.find((each) => isFresh(type, each)) ?? choice[0];
      if (region !== undefined) return { type, region, fileSystem };
      if (wanted.length > 0) checkRegions(wanted, await account.regions());
      throw noCapacity(type, wanted);
    },
    refused({ type, region }) {
      refusedAt.set(`${type.name} ${region}`, now());
    },
  };
}

function checkType(
  wish: MachineWish,
  { name, gpus, storageGib, pricePerHour }: InstanceType,
): void {
  if (gpus !== wish.gpuCount)
    throw invalidInput('lease.gpu_count', `${name} has ${gpus} GPUs, not ${wish.gpuCount}.`);
  const diskGb = Math.floor(storageGib * GB_PER_GIB);
  if (wish.diskGb > diskGb)
    throw invalidInput('lease.disk', `${name} has ${diskGb} GB of disk, not ${wish.diskGb}.`);
  const { maxPricePerHour: most } = wish;
  if (most === null || pricePerHour <= most) return;
  const price = `$${pricePerHour.toFixed(2)} an hour`;
  throw invalidInput('lease.price', `${name} costs ${price}, and at most $${most} may be paid.`);
}

/** A file system by id or name. Rejects with InvalidInput where it is not there, or in none of the regions; none: any will do. */
export async function findFileSystem(
  modelCache: string,
  regions: readonly string[],
  account: Account,
): Promise<FileSystem> {
  const all = await account.fileSystems();
  const found = all.find(({ id, name }) => id === modelCache || name === modelCache);
  if (found === undefined) {
    const there = all.map(({ name, region }) => `'${name}' in ${region}`).join(', ') || 'none';
    const message = `The Lambda Cloud account has no file system '${modelCache}'. It has ${there}.`;
    throw invalidInput('lease.model_cache', message);
  }
  if (regions.length === 0 || regions.includes(found.region)) return found;
  const message = `The file system '${found.name}' is in ${found.region}, where the machine may not be: ${regions.join(', ')}.`;
  throw invalidInput('lease.region', `${message} Allow that region, or name another file system.`);
}

function checkRegions(wanted: readonly string[], known: readonly string[]): void {
  if (wanted.some((region) => known.includes(region))) return;
  const message = `Lambda Cloud has no region ${wanted.join(', ')}. It has ${known.join(', ')}.`;
  throw invalidInput('lease.region', message);
}

function noCapacity({ name }: InstanceType, wanted: readonly string[]): SluiceError {
  const where = wanted.length === 0 ? 'any region' : wanted.join(', ');
  const message = `Lambda Cloud shows no capacity for ${name} in ${where}.`;
  return new SluiceError('NoCapacity', 'lease.no_capacity', message);
}
