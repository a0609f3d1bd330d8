import { describeError, invalidInput, transient } from '../../domain/errors.ts';
import { isOfUse } from '../../domain/lease.ts';
import type {
  CallPurpose,
  LeaseCapabilities,
  LeaseAccount,
  Machine,
  MachineWish,
  Pace,
} from '../lease-contract.ts';
import type { PaceLimits } from '../pace.ts';
import { createAccount } from './account.ts';
import { createApi, DEFAULT_BASE_URL } from './api.ts';
import { byAge, toMachine } from './instances.ts';
import type { Listed } from './instances.ts';
import { createInventory } from './inventory.ts';
import type { Inventory } from './inventory.ts';
import { createKept } from './kept.ts';
import { createLaunch, MODEL_CACHE_PATH } from './launch.ts';
import type { LaunchSettings } from './launch.ts';
import { checksOf } from './checks.ts';
import { commonRegions, withinRegions } from './regions.ts';
import { terminate } from './terminate.ts';
import { fetchTypes, toOffer } from './types.ts';

export interface LambdaCloudSettings extends Omit<LaunchSettings, 'now'> {
  apiKey: string;
  /** `LAMBDA_CLOUD_REGION`: where alone machines may be, in order of preference; empty: anywhere. */
  regions?: readonly string[];
  baseUrl?: string;
  /** How long one call may take, ms. */
  timeoutMs?: number;
  /** How long the catalog is kept, ms. */
  keepMs?: number;
  now?: () => number;
}

/**
 * "Requests to the Lambda Cloud API are generally limited to one request per second", launches to "one request per 12
 * seconds, or five requests per minute". A little less, because two calls may be on their way for different times.
 */
export const LAMBDA_CLOUD_LIMITS: PaceLimits = {
  callsPerSecond: 1 / 1.05,
  createsPerSecond: 1 / 12.3,
};

const KEEP_MS = 10_000;

const CAPABILITIES: LeaseCapabilities = {
  interruptible: false,
  modelCache: 'file_system',
  modelCachePath: MODEL_CACHE_PATH,
  engineForm: 'docker',
  // 3 to 15 minutes are usual; dstack gives up after 30, too.
  bootDeadlineMs: 30 * 60_000,
  listLagMs: 60_000,
};

/** Instances of Lambda Cloud, by its API 1.10. They cannot be stopped, only ended, and none is interruptible. */
export function createLambdaCloud(
  settings: LambdaCloudSettings,
  { pace }: { pace: Pace },
): LeaseAccount {
  const {
    stamp,
    regions: allowed = [],
    now = Date.now,
    baseUrl = DEFAULT_BASE_URL,
    keepMs = KEEP_MS,
  } = settings;
  const ask = createApi({ ...settings, baseUrl: baseUrl.replace(/\/+$/, '') });
  const types = createKept(async () => turn('catalog').then(() => fetchTypes(ask)), keepMs, now);
  const inventory = createInventory(ask, turn);
  const account = createAccount({ ask, turn, now });
  const launch = createLaunch({ ...settings, now }, { ask, turn, types, account });
  const creating = new Map<string, Promise<Machine>>();

  async function turn(purpose: CallPurpose, signal?: AbortSignal): Promise<void> {
    try {
      await pace(purpose, signal);
    } catch (error) {
      const message = `A call of Lambda Cloud did not get its turn: ${describeError(error)}.`;
      throw transient('lease.unavailable', message, { cause: error });
    }
  }

  async function createOne(wish: MachineWish): Promise<Machine> {
    if (wish.isFresh === true) return launch(wish);
    const there = await machines(inventory, ({ name }) => name === wish.name);
    const [oldest] = there.filter(isOfUse).toSorted(byAge);
    return oldest ?? launch(wish);
  }

  return {
    provider: 'lambdaCloud',
    capabilities: CAPABILITIES,
    async catalog() {
      const offers = [...(await types.get()).values()].map((type) =>
        toOffer(withinRegions(type, allowed), now()),
      );
      return offers.filter((offer) => offer !== null);
    },
    async create(wish) {
      checkName(wish.name, stamp);
      const regions = commonRegions(wish.regions, allowed);
      // Two in this process would both see that there is none.
      const pending = creating.get(wish.name);
      if (pending !== undefined) return pending;
      const one = createOne({ ...wish, regions }).finally(() => creating.delete(wish.name));
      creating.set(wish.name, one);
      return one;
    },
    async describe(id) {
      const listed = await inventory.one(id);
      return listed === null ? null : toMachine(listed);
    },
    destroy: async (id) => terminate(id, { ask, turn, inventory }),
    async list(wanted) {
      return machines(inventory, (one) => one.name.startsWith(wanted) || one.stamp === wanted);
    },
    ...checksOf(account, settings),
  };
}

/** The API takes names of 64 characters; the contract allows these. */
const NAME = /^[a-z0-9-]{1,60}$/;

function checkName(name: string, stamp: string): void {
  if (NAME.test(name) && name.startsWith(stamp)) return;
  const rule =
    'has lower case letters, digits and -, at most 60 of them, and begins with the stamp';
  throw invalidInput('lease.name', `The name of a machine ${rule} '${stamp}'; '${name}' does not.`);
}

async function machines(
  inventory: Inventory,
  isWanted: (listed: Listed) => boolean,
): Promise<Machine[]> {
  return (await inventory.all()).filter(isWanted).map(toMachine);
}
