import { randomUUID } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { claimCensus } from '../../processors/collect-census.ts';
import { createInventorySweep } from '../../processors/inventory.ts';
import type { InventoryDeps } from '../../processors/inventory.ts';
import { machineName, newAttempt } from '../../src/domain/lease.ts';
import type { LeaseAttempt } from '../../src/domain/lease.ts';
import { leaseAddress } from '../../src/domain/provision.ts';
import { machineProvider } from '../../src/domain/provision.ts';
import type {
  LeaseProvider,
  MachineProvider,
  ProvisionRecord,
  ProvisionState,
} from '../../src/domain/provision.ts';
import { createMetrics } from '../../src/observability/metrics.ts';
import { createLambdaCloud } from '../../src/resources/lambda-cloud/index.ts';
import type { LeaseManager } from '../../src/resources/lease-contract.ts';
import { createRunPod } from '../../src/resources/runpod/index.ts';
import type { Storage } from '../../src/storage/contract.ts';
import { createLocalStorage } from '../../src/storage/local.ts';
import { ATTEMPT_FIELD, recordKey } from '../../src/store/keys.ts';
import { createStore } from '../../src/store/store.ts';
import type { Store } from '../../src/store/store.ts';
import type { CloudSimulator } from '../simulators/cloud/start.ts';
import { startLambda } from '../simulators/lambda/simulator.ts';
import { createKeyPair } from '../simulators/machines/ssh-client.ts';
import { FAST } from '../simulators/runpod/asking.ts';
import { startRunPod } from '../simulators/runpod/simulator.ts';
import { connectTo } from './store-back-ends.ts';

export const HOUR = 3_600_000;
export const MINUTE = 60_000;

const { publicKey: AUTHORIZED, privateKey: HOST } = await createKeyPair();
const OFFERS = {
  runpod: { offer: '2x NVIDIA L40S', gpuCount: 2 },
  lambdaCloud: { offer: 'gpu_1x_a10', gpuCount: 1 },
} as const;

/** Simulated accounts of both providers; machines are entries in their books. */
export interface Clouds extends AsyncDisposable {
  runpod: CloudSimulator;
  lambdaCloud: CloudSimulator;
}

export async function startClouds(): Promise<Clouds> {
  const [runpod, lambdaCloud] = await Promise.all([
    startRunPod({ machines: 'none', knobs: FAST }),
    startLambda({
      machines: 'none',
      knobs: { request_interval_ms: 0, launch_interval_ms: 0, boot_ms: [0, 0] },
      sshKeys: [AUTHORIZED],
    }),
  ]);
  return {
    runpod,
    lambdaCloud,
    async [Symbol.asyncDispose]() {
      await Promise.all([runpod.stop(), lambdaCloud.stop()]);
    },
  };
}

/** One deployment on these accounts: records by hand, and all that looks at machines leave, in a real Redis. */
export interface InventoryWorld extends AsyncDisposable {
  stamp: string;
  store: Store;
  redis: ReturnType<typeof connectTo>;
  namespace: string;
  storage: Storage;
  folder: string;
  /** A test may give parts of it its own. */
  deps: InventoryDeps;
  logs: { level: string; message: string; [field: string]: unknown }[];
  /** Milliseconds by which looks are later than it is. */
  ahead: number;
  /** Id of a provision of this world. */
  id(provision: string): string;
  /** Leases a machine as attempt `n` of a provision, of which nothing is on record by that; returns its id. */
  create(provider: MachineProvider, provision: string, n?: number): Promise<string>;
  /** Writes a provision with these attempts, of which the last is the current one, past all moves. */
  record(
    provision: string,
    attempts: readonly Partial<LeaseAttempt>[],
    change?: RecordChange,
  ): Promise<void>;
  read(provision: string): Promise<ProvisionRecord | null>;
  /** Removes a provision with all that leads to it. */
  erase(provision: string): Promise<void>;
  /** One look; false where this holder has not the lease. */
  look(holder?: string): Promise<boolean>;
  /** Ids of the machines that there really are. */
  there(): Promise<string[]>;
  /** A line of the metrics. */
  metric(line: string): Promise<string | undefined>;
  said(level: string): string[];
}

/** `handedTo`: another provision of this world. */
export interface RecordChange {
  state?: ProvisionState;
  handedTo?: string;
  isDestroying?: boolean;
}

/** `over`: the folder of another world, whose storage this one has, too. */
export async function openInventoryWorld(
  clouds: Clouds,
  { stamp = `sl-${randomUUID().slice(0, 8)}`, over }: { stamp?: string; over?: string } = {},
): Promise<InventoryWorld> {
  const redis = connectTo('redis');
  const namespace = `test-${randomUUID()}`;
  const store = createStore({ redis, namespace });
  const folder = over ?? (await mkdtemp(join(tmpdir(), 'sluice-inventory-')));
  const storage = createLocalStorage({ directory: folder });
  await store.claimStorage(await storage.identity());
  await claimCensus({ store, storage, newId: randomUUID });
  const managers = connectManagers(clouds, stamp);
  const metrics = createMetrics();
  const named = new Map<string, string>();
  const tag = randomUUID().replaceAll('-', '');
  const id = (provision: string): string => `prov_${tag}${provision}_0_0`;
  const now = (): number => Date.now() + world.ahead;
  const world: InventoryWorld = {
    stamp,
    store,
    redis,
    namespace,
    storage,
    folder,
    id,
    logs: [],
    ahead: 0,
    deps: {
      store: { ...store, provisions: { ...store.provisions } },
      storage,
      metrics,
      now,
      newId: randomUUID,
      leasing: {
        stamp,
        manager: (provider) => managerOf(managers, provider),
        inventory: async (provider) => ({
          at: now(),
          machines: (await managerOf(managers, provider)?.list(stamp)) ?? [],
        }),
      },
      log: logTo(() => world.logs),
    },
    async create(provider, provision, n = 1) {
      const key = store.provisions.keyOf(id(provision));
      const name = machineName(stamp, key, n, Date.now());
      named.set(`${provision} ${n}`, name);
      return (await managers[provider].create(wishFor(provider, name))).id;
    },
    async record(provision, attempts, { state = 'serving', handedTo, isDestroying } = {}) {
      const own = { job: `job_${tag}`, slot: 0, provider: 'runpod', owner: 'sluice' } as const;
      await store.provisions.create({
        ...own,
        id: id(provision),
        address: leaseAddress(id(provision)),
      });
      const all = attempts.map((each, i) => {
        const n = each.n ?? i + 1;
        return attemptOf(n, named.get(`${provision} ${n}`) ?? '', each);
      });
      await redis.hset(recordKey(id(provision)), {
        ...Object.fromEntries(
          all.map((each) => [`${ATTEMPT_FIELD}${each.n}`, JSON.stringify(each)]),
        ),
        state,
        current: all.at(-1)?.n ?? 0,
        destroying: isDestroying === true ? '1' : '',
        handed_to: handedTo === undefined ? '' : id(handedTo),
      });
    },
    read: (provision) => store.provisions.get(id(provision)),
    async erase(provision) {
      await redis.del(recordKey(id(provision)));
      await redis.del(`${namespace}:machine:${store.provisions.keyOf(id(provision))}`);
    },
    look: (holder = 'a') =>
      createInventorySweep(holder, world.deps).round(new AbortController().signal),
    async there() {
      const all = [clouds.runpod, clouds.lambdaCloud].map(({ control }) => control.inventory());
      return (await Promise.all(all)).flat().map(({ id }) => id);
    },
    async metric(line) {
      return (await metrics.render()).body.split('\n').find((each) => each.startsWith(line));
    },
    said: (level) =>
      world.logs.filter((each) => each.level === level).map(({ message }) => message),
    async [Symbol.asyncDispose]() {
      redis.disconnect();
      if (over === undefined) await rm(folder, { recursive: true, force: true });
    },
  };
  return world;
}

/** Those of clouds; there is no cluster in this world. */
function managerOf(managers: Record<MachineProvider, LeaseManager>, provider: LeaseProvider) {
  const kind = machineProvider(provider);
  return kind === null ? null : managers[kind];
}

function connectManagers(clouds: Clouds, stamp: string): Record<MachineProvider, LeaseManager> {
  const pace = async () => undefined;
  return {
    runpod: createRunPod(
      {
        apiKey: 'runpod-key',
        baseUrl: `${clouds.runpod.url}/v2`,
        cloudType: 'SECURE',
        dataCenters: [],
        apiVersion: null,
      },
      { pace },
    ),
    lambdaCloud: createLambdaCloud(
      {
        apiKey: 'lambda-key',
        baseUrl: `${clouds.lambdaCloud.url}/api/v1`,
        sshKeyNames: ['default'],
        stamp,
      },
      { pace },
    ),
  };
}

function wishFor(provider: MachineProvider, name: string) {
  return {
    ...OFFERS[provider],
    name,
    regions: [],
    interruptible: false,
    maxPricePerHour: null,
    image: 'vllm/vllm-openai:v0.29.0',
    diskGb: 60,
    authorizedKey: AUTHORIZED,
    hostKey: HOST,
    modelCache: null,
    sendBefore: Date.now() + MINUTE,
  };
}

function attemptOf(n: number, name: string, change: Partial<LeaseAttempt>): LeaseAttempt {
  const what = { offer: '', gpuType: '', gpuCount: 1, pricePerHour: null, region: '', hostKey: '' };
  const first = newAttempt({ n, name, provider: 'runpod', askedAt: Date.now(), ...what });
  return { ...first, state: 'there', ...change };
}

function logTo(lines: () => InventoryWorld['logs']): InventoryDeps['log'] {
  const at = (level: string) => (fields: object, message: string) =>
    void lines().push({ level, message, ...fields });
  return { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') };
}
