import { randomBytes } from 'node:crypto';
import type { Leasing } from '../../processors/leasing.ts';
import { DEFAULT_OPTIONS } from '../../src/domain/job.ts';
import type { JobResources } from '../../src/domain/lease.ts';
import { PROVISION } from '../../src/domain/provision.ts';
import type { ProvisionRecord, ProvisionState } from '../../src/domain/provision.ts';
import type { LeaseManager, Machine } from '../../src/resources/lease-contract.ts';
import { createRunPod } from '../../src/resources/runpod/index.ts';
import type { EngineState, MachineRuntime } from '../../src/runtimes/contract.ts';
import { createKeyPair } from '../../src/runtimes/ssh/keys.ts';
import { createStaticManager } from '../../src/resources/static/index.ts';
import { FAST } from '../simulators/runpod/asking.ts';
import { startRunPod } from '../simulators/runpod/simulator.ts';
import type { CloudControl } from '../simulators/cloud/control.ts';
import { openRecordWorld } from './record-world.ts';
import type { RecordWorld } from './record-world.ts';
import { newJob } from './store-back-ends.ts';

const GPU = 'NVIDIA L40S';
const LOGIN = { host: '192.0.2.7', port: 40_022, user: 'root' };

type Need = Parameters<MachineRuntime['check']>[1];

/** Records in Redis, a simulated RunPod, and machines without an inside: what they say is the test's. */
export interface LeasingWorld extends AsyncDisposable {
  world: RecordWorld;
  control: CloudControl;
  leasing: Leasing & { machines: MachineRuntime };
  /** What the machines say; a test gives its own. */
  inside: {
    check: (need: Need) => Promise<string | null>;
    engine: () => Promise<EngineState>;
    /** The host key that a machine shows whose key nobody knows. */
    hostKey: () => Promise<string>;
    stop: () => Promise<void>;
    healthy: boolean;
    started: number;
  };
  /** Makes a job that was planned and wants machines, and returns it with its provisions' ids. */
  plan(change?: Partial<JobResources>): Promise<{ jobId: string; provisions: string[] }>;
  provision(id: string): Promise<ProvisionRecord>;
  /** Delivers a provision to the queue of its state once. */
  step(id: string): Promise<void>;
  /** Delivers a provision until it is in a state; throws after many times. */
  until(id: string, state: ProvisionState): Promise<ProvisionRecord>;
  /** Machines that cost money. */
  machines(): Promise<string[]>;
}

export function resourcesOf(change: Partial<JobResources> = {}): JobResources {
  return {
    spec: {
      engine: {
        type: 'vllm',
        version: '',
        image: 'vllm/vllm-openai:v0.29.0',
        invocation: 'http_server',
        serve_args: [],
        health_endpoint: '/health',
        ready_timeout_seconds: 1_800,
        metrics_endpoint: '/metrics',
      },
      model_source: {
        type: 'huggingface',
        uri: 'm',
        revision: '',
        tokenizer_path: '',
        chat_template_path: '',
        auth_secret_ref: '',
      },
      accelerator: { type: GPU, count: 1, interconnect: '', vram_gb: 0, sku_hint: '' },
      parallelism: { tp: 1, pp: 1, dp: 1, ep: 1, sp: 1, cp: 1 },
      engine_args: {},
      quantization: { weight: '', kv_cache: '', weights_artifact_uri: '' },
      supported_endpoints: [],
      deployment_mode: 'dedicated',
      service_id: '',
    },
    servingName: 'm',
    templateId: 'tpl_1',
    replicas: 1,
    providers: ['runpod'],
    regions: [],
    gpuTypes: [],
    interruptible: false,
    maxPricePerHour: null,
    maxCostUsd: null,
    maxIdleMinutes: null,
    ...change,
  };
}

/** A machine with an address, which the simulator's machines without an inside lack. */
function reachable(machine: Machine): Machine {
  return machine.state === 'running' ? { ...machine, ssh: LOGIN } : machine;
}

function withAddresses(manager: LeaseManager): LeaseManager {
  return {
    ...manager,
    create: async (wish) => reachable(await manager.create(wish)),
    async describe(id) {
      const machine = await manager.describe(id);
      return machine === null ? null : reachable(machine);
    },
    list: async (stamp) => (await manager.list(stamp)).map(reachable),
  };
}

export async function openLeasingWorld(
  options: Partial<Omit<Leasing, 'machines'>> = {},
  knobs: Record<string, unknown> = {},
): Promise<LeasingWorld> {
  const cloud = await startRunPod({ machines: 'none', knobs: { ...FAST, ...knobs } });
  const world = openRecordWorld();
  const account = { cloudType: 'SECURE', dataCenters: [], apiVersion: null } as const;
  const settings = { ...account, apiKey: 'runpod-key', baseUrl: `${cloud.url}/v2` };
  const manager = withAddresses(
    createRunPod(settings, { pace: async () => {}, now: world.deps.now }),
  );
  const inside: LeasingWorld['inside'] = {
    check: async () => null,
    engine: async () => ({ is: 'running' }),
    hostKey: async () => createKeyPair().publicKey,
    stop: async () => {},
    healthy: true,
    started: 0,
  };
  const stamp = `sl-${randomBytes(4).toString('hex')}`;
  const leasing: LeasingWorld['leasing'] = {
    stamp,
    authorizedKey: createKeyPair().publicKey,
    manager: (provider) => (provider === 'runpod' ? manager : null),
    inventory: async () => ({ at: world.deps.now(), machines: await manager.list(stamp) }),
    newHostKey: createKeyPair,
    close: async () => {},
    machines: {
      readHostKey: () => inside.hostKey(),
      check: (_, need) => inside.check(need),
      async start() {
        inside.started += 1;
        return inside.engine();
      },
      look: () => inside.engine(),
      stop: () => inside.stop(),
      readLog: async (_site, offset) => ({ text: '', next: offset }),
    },
    publicUrl: () => null,
    imageFor: (_provider, { spec }) => spec.engine.image,
    diskGb: () => 40,
    modelCache: () => null,
    policy: 'cheapest',
    capacityWaitMs: 60_000,
    maxLeases: 50,
    keepWarmMs: 0,
    ...options,
  };
  Object.assign(world.deps, {
    leasing,
    machines: leasing.machines,
    manager: createStaticManager({ engineUrls: [] }),
    runtime: {
      look: async () =>
        inside.healthy ? { is: 'healthy', models: ['m'] } : { is: 'down', reason: 'loading' },
    },
  });
  async function provision(id: string): Promise<ProvisionRecord> {
    const found = await world.store.provisions.get(id);
    if (found === null) throw new Error(`there is no ${id}`);
    return found;
  }
  async function step(id: string): Promise<void> {
    const { queue } = PROVISION[(await provision(id)).state];
    if (queue !== null) await world.deliver(queue, id);
  }
  return {
    world,
    control: cloud.control,
    leasing,
    inside,
    async plan(change) {
      const options = { ...DEFAULT_OPTIONS, resources: resourcesOf(change) };
      const { job } = await world.store.jobs.create(newJob({ options }));
      await world.deliver('planning', job.id);
      const all = await world.store.provisions.ofJob(job.id);
      return { jobId: job.id, provisions: all.map(({ id }) => id) };
    },
    provision,
    step,
    async until(id, state) {
      for (let turn = 0; turn < 200; turn += 1) {
        const now = await provision(id);
        if (now.state === state) return now;
        await step(id);
      }
      throw new Error(`${id} does not become ${state}: ${JSON.stringify(await provision(id))}`);
    },
    machines: async () => (await cloud.control.inventory()).map(({ id }) => id),
    async [Symbol.asyncDispose]() {
      world[Symbol.dispose]();
      await cloud.stop();
    },
  };
}
