import { SluiceError, transient } from '../../domain/errors.ts';
import { isOfUse } from '../../domain/lease.ts';
import type { Offer } from '../contract.ts';
import type { Machine, MachineWish } from '../lease-contract.ts';
import type { Dialect, PodOrder, Volume } from './dialect.ts';
import type { Http } from './http.ts';
import { destroyPod, listPods, lookAtPod } from './pods.ts';
import type { RunPodSettings } from './settings.ts';
import { checkPrice, checkWish, pickVolume, placesOf } from './wish.ts';

interface Account {
  http: Http;
  dialect: Dialect;
  settings: Pick<RunPodSettings, 'cloudType' | 'dataCenters' | 'publicPort'>;
}

/** The oldest first; where the provider does not say when, by id, so that all processes choose the same. */
function byAge(one: Machine, other: Machine): number {
  const age = (one.createdAt ?? Infinity) - (other.createdAt ?? Infinity);
  return age === 0 || Number.isNaN(age) ? one.id.localeCompare(other.id) : age;
}

async function findVolume({ http, dialect }: Account, wished: string): Promise<Volume> {
  const path = dialect.volumesPath;
  const answer = await http.ask({ purpose: 'create', method: 'GET', path, expects: [200] });
  return pickVolume(dialect.readVolumes(answer), wished);
}

/** What and where a volume is; rejects where it is not, or is where machines may not be. */
export async function describeVolume(account: Account, wished: string): Promise<string> {
  const volume = await findVolume(account, wished);
  placesOf([], account.settings.dataCenters, volume);
  return `network volume '${volume.name}' (${volume.id}) in ${volume.dataCenter}`;
}

async function placeOrder({ http, dialect }: Account, order: PodOrder): Promise<Machine> {
  const answer = await http.ask({
    purpose: 'create',
    method: 'POST',
    path: '/pods',
    body: dialect.orderBody(order),
    expects: [200, 201],
    creates: true,
    sendBefore: order.wish.sendBefore,
  });
  try {
    const machine = dialect.readMachine(answer);
    return machine.gpuType === '' ? { ...machine, gpuType: order.gpuType } : machine;
  } catch (error) {
    const message =
      'RunPod answers a create with something that is no pod; one may have come of it.';
    throw transient('lease.unknown', message, { cause: error });
  }
}

/** Asks place by place: REST v2 neither searches for capacity nor falls back to another place. */
async function orderSomewhere(
  account: Account,
  wish: MachineWish,
  gpuType: string,
  volume: Volume | null,
): Promise<Machine> {
  const { cloudType, dataCenters: preset, publicPort } = account.settings;
  const ports = ['22/tcp', ...(publicPort === undefined ? [] : [`${publicPort}/http`])];
  let none: unknown;
  for (const dataCenters of placesOf(wish.regions, preset, volume)) {
    try {
      return await placeOrder(account, { wish, gpuType, dataCenters, cloudType, volume, ports });
    } catch (error) {
      if (!(error instanceof SluiceError) || error.kind !== 'NoCapacity') throw error;
      none = error;
    }
  }
  throw none;
}

/** Whether RunPod has let go of a machine: a confirmed terminate alone was seen to be lost. */
async function isLetGo({ http, dialect }: Account, id: string): Promise<boolean> {
  try {
    if ((await destroyPod(http, id)) === 'gone') return true;
    const machine = await lookAtPod(http, dialect, id);
    return machine === null || machine.state === 'gone';
  } catch {
    return false; // Whatever it was: nobody knows that it is gone.
  }
}

/** What costs more than it may, or nobody knows how much, is given back at once; where that is not certain, somebody has to look for it. */
async function keepIfCheap(account: Account, machine: Machine, most: number | null) {
  const { id, gpuType, pricePerHour } = machine;
  try {
    checkPrice(gpuType, pricePerHour, most);
    return machine;
  } catch (error) {
    if (await isLetGo(account, id)) throw error;
    const message = `RunPod's machine ${id} costs too much and may not have been given back.`;
    throw transient('lease.unknown', message, { cause: error });
  }
}

async function findPod({ http, dialect }: Account, wanted: string): Promise<Machine | undefined> {
  const same = await listPods(http, dialect, (name) => name === wanted);
  return same.filter(isOfUse).toSorted(byAge)[0];
}

/** Adopts the machine of this name, or asks for one. `known` is what the last catalog said, empty for nothing. */
export async function createPod(
  account: Account,
  wish: MachineWish,
  known: readonly Offer[],
): Promise<Machine> {
  const gpuType = checkWish(wish, known);
  const oldest = wish.isFresh === true ? undefined : await findPod(account, wish.name);
  if (oldest !== undefined) return keepIfCheap(account, oldest, wish.maxPricePerHour);
  const { modelCache } = wish;
  const volume = modelCache === null ? null : await findVolume(account, modelCache);
  const machine = await orderSomewhere(account, wish, gpuType, volume);
  return keepIfCheap(account, machine, wish.maxPricePerHour);
}
