import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { loadSettings } from '../../config/load.ts';
import type { Inventory, Leasing } from '../../processors/leasing.ts';
import type { JobResources } from '../../src/domain/lease.ts';
import type { MachineProvider } from '../../src/domain/provision.ts';
import { EXAMPLE_TEMPLATE } from '../../src/api/docs/examples.ts';
import { openLeasing } from '../../src/main/leasing.ts';
import type { LeasingGround } from '../../src/main/leasing.ts';
import type { Machine, MachineWish } from '../../src/resources/lease-contract.ts';
import type { MachineRuntime } from '../../src/runtimes/contract.ts';
import { createKeyPair, publicKeyOf } from '../../src/runtimes/ssh/keys.ts';
import { createStore } from '../../src/store/store.ts';
import type { CloudSimulator } from '../simulators/cloud/start.ts';
import { startLambda } from '../simulators/lambda/simulator.ts';
import { call, FAST } from '../simulators/runpod/asking.ts';
import { startRunPod } from '../simulators/runpod/simulator.ts';
import { connectTo } from '../support/store-back-ends.ts';

const KEY = createKeyPair();
const MACHINES: MachineRuntime = {
  readHostKey: async () => '',
  check: async () => null,
  start: async () => ({ is: 'absent' }),
  look: async () => ({ is: 'absent' }),
  stop: async () => undefined,
  readLog: async () => ({ text: '', next: 0 }),
};

let folder = '';
let keyFile = '';
let clouds: Record<MachineProvider, CloudSimulator>;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sluice-lease-'));
  keyFile = join(folder, 'id');
  await writeFile(keyFile, KEY.privateKey, { mode: 0o600 });
});
beforeEach(async () => {
  const free = { request_interval_ms: 0, launch_interval_ms: 0, boot_ms: [0, 0] };
  const [runpod, lambdaCloud] = await Promise.all([
    startRunPod({ machines: 'none', knobs: FAST }),
    startLambda({ machines: 'none', knobs: free, sshKeys: [KEY.publicKey] }),
  ]);
  clouds = { runpod, lambdaCloud };
});
afterEach(async () => {
  await Promise.all(Object.values(clouds).map((cloud) => cloud.stop()));
});
afterAll(async () => rm(folder, { recursive: true }));

/** Rates that keep nobody waiting. */
const FREE_LIMITS: LeasingGround['patient']['store']['limits'] = {
  draw: async (_name, _op, _perSecond, { want }) => ({
    granted: want,
    waitMs: 0,
    bucket: { level: 1, at: 0, hungryAt: 0 },
  }),
};

interface More {
  identity?: string;
  limits?: LeasingGround['patient']['store']['limits'];
  now?: () => number;
}

async function open(
  environment: Record<string, string> = {},
  { identity = 'disk-1', limits = FREE_LIMITS, now = Date.now }: More = {},
): Promise<Leasing> {
  const settings = loadSettings({
    PROVISIONER: 'runpod,lambdaCloud',
    AIBRIX_BATCH_SSH_KEY_FILE: keyFile,
    RUNPOD_API_KEY: 'runpod-key',
    RUNPOD_BASE_URL: clouds.runpod.url,
    LAMBDA_CLOUD_API_KEY: 'lambda-key',
    LAMBDA_CLOUD_SSH_KEYS: 'default',
    LAMBDA_CLOUD_BASE_URL: `${clouds.lambdaCloud.url}/api/v1`,
    ...environment,
  });
  const storage = { identity: async () => identity };
  const leasing = await openLeasing(
    { settings, storage, patient: { store: { limits } } },
    { machines: MACHINES, now },
  );
  if (leasing === null) throw new Error('nothing is leased');
  return leasing;
}

const OFFERS = { runpod: '1x NVIDIA L40S', lambdaCloud: 'gpu_1x_a10' } as const;

/** One machine, as a processor asks for it. */
async function lease(
  leasing: Leasing,
  provider: MachineProvider,
  change: Partial<MachineWish> = {},
): Promise<Machine> {
  const manager = leasing.manager(provider);
  if (manager === null) throw new Error(`${provider} is not enabled`);
  return manager.create({
    name: `${leasing.stamp}-aaaaaaaaaaaaaaaa-1-0`,
    offer: OFFERS[provider],
    gpuCount: 1,
    regions: [],
    interruptible: false,
    maxPricePerHour: null,
    image: leasing.imageFor(provider, RESOURCES),
    diskGb: 60,
    authorizedKey: leasing.authorizedKey,
    hostKey: leasing.newHostKey().privateKey,
    modelCache: leasing.modelCache(provider),
    sendBefore: Date.now() + 60_000,
    ...change,
  });
}

const RESOURCES: JobResources = {
  spec: EXAMPLE_TEMPLATE.spec,
  servingName: 'm',
  templateId: 't',
  replicas: 1,
  providers: ['runpod'],
  regions: [],
  gpuTypes: [],
  interruptible: false,
  maxPricePerHour: null,
  maxCostUsd: null,
  maxIdleMinutes: null,
};

function withAccelerator(change: Partial<JobResources['spec']['accelerator']>): JobResources {
  const { spec } = RESOURCES;
  return { ...RESOURCES, spec: { ...spec, accelerator: { ...spec.accelerator, ...change } } };
}

async function failureOf(trial: Promise<unknown>): Promise<Record<string, unknown>> {
  try {
    return { resolvedWith: await trial };
  } catch (error) {
    const { kind, code, message } = error as Record<string, unknown>; // an error has these or not
    return { kind, code, message };
  }
}

interface Pod {
  name: string;
  image: string;
  cloud: string;
  dataCenterId: string;
  env: Record<string, string>;
}

async function podsOf({ url }: CloudSimulator): Promise<Pod[]> {
  return (await call<{ pods: Pod[] }>(url, 'GET', '/v2/pods')).body.pods;
}

test('a list that waits for its turn is shared by all who bear any age, and the next one by all who bear none', async () => {
  const gate = Promise.withResolvers<undefined>();
  let time = 1_000_000;
  async function draw(...units: Parameters<typeof FREE_LIMITS.draw>) {
    await gate.promise;
    return FREE_LIMITS.draw(...units);
  }
  const leasing = await open({}, { limits: { draw }, now: () => time });
  const asked: { age: number; list: Promise<Inventory> }[] = [];
  for (const age of [2_000, 2_000, 0, 2_000, 0]) {
    asked.push({ age, list: leasing.inventory('runpod', age) });
    time += 3_000;
  }
  gate.resolve(undefined);
  const lists = await Promise.all(asked.map(async ({ list }) => (await list).at));
  expect(lists).toEqual([1_000_000, 1_000_000, time, 1_000_000, time]);
  const requests = await clouds.runpod.control.requests();
  expect(requests.filter(({ op }) => op === 'list')).toHaveLength(2);
});

describe('PROVISIONER', () => {
  test('static leases nothing', async () => {
    const settings = loadSettings({ ENGINE_URLS: 'http://127.0.0.1:1' });
    const ground = { settings, storage: { identity: async () => '' } };
    const patient = { store: { limits: FREE_LIMITS } };
    const parts = { machines: MACHINES, now: Date.now };
    expect(await openLeasing({ ...ground, patient }, parts)).toBeNull();
  });

  test('only those that it names can be leased of', async () => {
    const leasing = await open({ PROVISIONER: 'lambdaCloud' });
    expect(leasing.manager('runpod')).toBeNull();
    expect(leasing.manager('lambdaCloud')?.provider).toBe('lambdaCloud');
  });

  test('no provider has to be up for it', async () => {
    await Promise.all(Object.values(clouds).map((cloud) => cloud.stop()));
    const leasing = await open();
    expect(await failureOf(leasing.inventory('runpod', 0))).toMatchObject({
      code: 'lease.unavailable',
    });
  });
});

describe('AIBRIX_BATCH_SSH_KEY_FILE', () => {
  test('its public half is let in to machines of all providers', async () => {
    const leasing = await open();
    expect(leasing.authorizedKey).toBe(KEY.publicKey);
    await lease(leasing, 'runpod');
    expect((await podsOf(clouds.runpod))[0]?.env['PUBLIC_KEY']).toBe(KEY.publicKey);
  });

  test('without a file the start says how to make one', async () => {
    const failure = await failureOf(open({ AIBRIX_BATCH_SSH_KEY_FILE: join(folder, 'none') }));
    expect(failure).toMatchObject({ kind: 'InvalidInput', code: 'ssh.key_file' });
    expect(failure['message']).toContain('ssh-keygen -t ed25519');
  });

  test('a file that others may read is refused with the mend', async () => {
    const open644 = join(folder, 'open');
    await writeFile(open644, KEY.privateKey);
    await chmod(open644, 0o644);
    const failure = await failureOf(
      open({ BATCH_SSH_KEY_FILE: open644, AIBRIX_BATCH_SSH_KEY_FILE: '' }),
    );
    expect(failure['message']).toContain(`chmod 600 ${open644}`);
  });

  test('a machine gets a host key of its own each time', async () => {
    const leasing = await open();
    const [one, other] = [leasing.newHostKey(), leasing.newHostKey()];
    expect(publicKeyOf(one.privateKey)).toBe(one.publicKey);
    expect(one.publicKey).not.toBe(other.publicKey);
  });
});

describe('RUNPOD_SSH_PUBLIC_KEY', () => {
  test('may have a comment, and be left out', async () => {
    const leasing = await open({ RUNPOD_SSH_PUBLIC_KEY: `${KEY.publicKey} me@home` });
    expect(leasing.authorizedKey).toBe(KEY.publicKey);
  });

  test('of another key than the file is refused with the right one', async () => {
    const other = createKeyPair().publicKey;
    const failure = await failureOf(open({ RUNPOD_SSH_PUBLIC_KEY: other }));
    expect(failure).toMatchObject({ kind: 'InvalidInput', code: 'ssh.key_mismatch' });
    expect(failure['message']).toContain(KEY.publicKey);
  });

  test('is what a process without the file knows', async () => {
    const leasing = await open({
      ROLES: 'api',
      AIBRIX_BATCH_SSH_KEY_FILE: '',
      RUNPOD_SSH_PUBLIC_KEY: KEY.publicKey,
    });
    expect(leasing.authorizedKey).toBe(KEY.publicKey);
  });
});

describe('RunPod', () => {
  test('RUNPOD_API_KEY and RUNPOD_BASE_URL: which account is asked, and where', async () => {
    const { id } = await lease(await open(), 'runpod');
    expect((await clouds.runpod.control.inventory()).map((entry) => entry.id)).toEqual([id]);
    const stranger = await open({ RUNPOD_API_KEY: 'of-nobody' });
    const failure = await failureOf(stranger.inventory('runpod', 0));
    expect(failure).toMatchObject({ kind: 'Permanent', code: 'lease.unauthorized' });
  });

  test.for(['v1', 'v2'])('RUNPOD_API_VERSION=%s', async (version) => {
    await lease(await open({ RUNPOD_API_VERSION: version }), 'runpod');
    const paths = (await clouds.runpod.control.requests()).map(({ path }) => path);
    expect(paths.every((path) => path.startsWith(`/${version}/`))).toBe(true);
  });

  test('RUNPOD_API_VERSION that RUNPOD_BASE_URL contradicts is refused at the start', async () => {
    const failure = await failureOf(
      open({ RUNPOD_BASE_URL: `${clouds.runpod.url}/v1`, RUNPOD_API_VERSION: 'v2' }),
    );
    expect(failure).toMatchObject({ kind: 'InvalidInput', code: 'lease.invalid_settings' });
  });

  test('RUNPOD_DATA_CENTERS: where machines are whose job names no region', async () => {
    const { region } = await lease(await open({ RUNPOD_DATA_CENTERS: 'US-KS-2' }), 'runpod');
    expect(region).toBe('US-KS-2');
  });

  test('RUNPOD_CLOUD_TYPE: whose machines', async () => {
    await lease(await open({ RUNPOD_CLOUD_TYPE: 'COMMUNITY' }), 'runpod');
    expect((await podsOf(clouds.runpod))[0]?.cloud).toBe('COMMUNITY');
  });

  test("RUNPOD_IMAGE: the image of pods, else the template's with its version", async () => {
    await lease(await open({ RUNPOD_IMAGE: 'me/vllm:1' }), 'runpod');
    expect((await podsOf(clouds.runpod))[0]?.image).toBe('me/vllm:1');
    const leasing = await open();
    const engine = { ...RESOURCES.spec.engine, image: 'vllm/vllm-openai', version: '0.11.0' };
    const plain = { ...RESOURCES, spec: { ...RESOURCES.spec, engine } };
    expect(leasing.imageFor('runpod', plain)).toBe('vllm/vllm-openai:v0.11.0');
    expect(leasing.imageFor('lambdaCloud', plain)).toBe('');
  });

  test('RUNPOD_NETWORK_VOLUME_ID: weights lie there, and the machine is where it is', async () => {
    const volume = { name: 'weights', size: 100, dataCenter: 'EU-RO-1' };
    await call(clouds.runpod.url, 'POST', '/v2/network-volumes', volume);
    const leasing = await open({ RUNPOD_NETWORK_VOLUME_ID: 'weights' });
    expect(leasing.modelCache('lambdaCloud')).toBeNull();
    expect((await lease(leasing, 'runpod')).region).toBe('EU-RO-1');
    expect((await podsOf(clouds.runpod))[0]?.env['HF_HOME']).toBe('/workspace/huggingface');
  });
});

describe('Lambda Cloud', () => {
  test('LAMBDA_CLOUD_API_KEY and LAMBDA_CLOUD_BASE_URL: which account is asked, and where', async () => {
    const { id } = await lease(await open(), 'lambdaCloud');
    expect((await clouds.lambdaCloud.control.inventory()).map((entry) => entry.id)).toEqual([id]);
    const stranger = await open({ LAMBDA_CLOUD_API_KEY: 'of-nobody' });
    const failure = await failureOf(stranger.inventory('lambdaCloud', 0));
    expect(failure).toMatchObject({ kind: 'Permanent', code: 'lease.unauthorized' });
  });

  test('LAMBDA_CLOUD_SSH_KEYS: a name that the account does not have, nobody can mend but a person', async () => {
    const leasing = await open({ LAMBDA_CLOUD_SSH_KEYS: 'default,nobodys' });
    expect(await failureOf(lease(leasing, 'lambdaCloud'))).toMatchObject({
      kind: 'Permanent',
      code: 'lease.ssh_key_missing',
      message: expect.stringContaining("'nobodys'"),
    });
  });

  test('LAMBDA_CLOUD_REGION: machines are there alone, in the catalog, too', async () => {
    const leasing = await open({ LAMBDA_CLOUD_REGION: 'us-west-1' });
    expect((await lease(leasing, 'lambdaCloud')).region).toBe('us-west-1');
    const offers = (await leasing.manager('lambdaCloud')?.catalog()) ?? [];
    expect(new Set(offers.flatMap(({ regions }) => regions))).toEqual(new Set(['us-west-1']));
    const name = `${leasing.stamp}-aaaaaaaaaaaaaaaa-2-0`;
    const wish = { name, regions: ['us-east-1', 'us-west-1'] };
    expect((await lease(leasing, 'lambdaCloud', wish)).region).toBe('us-west-1');
    const away = { name: `${name}0`, regions: ['us-east-1'] };
    expect(await failureOf(lease(leasing, 'lambdaCloud', away))).toMatchObject({
      kind: 'InvalidInput',
      code: 'lease.region',
      message: expect.stringContaining('LAMBDA_CLOUD_REGION'),
    });
  });

  test('LAMBDA_CLOUD_FILE_SYSTEM: weights lie there, and the machine is where it is', async () => {
    await fetch(`${clouds.lambdaCloud.url}/api/v1/filesystems`, {
      method: 'POST',
      headers: { authorization: 'Bearer lambda-key' },
      body: JSON.stringify({ name: 'weights', region: 'us-west-1' }),
    });
    const leasing = await open({ LAMBDA_CLOUD_FILE_SYSTEM: 'weights' });
    expect((await lease(leasing, 'lambdaCloud')).region).toBe('us-west-1');
    const none = await open({ LAMBDA_CLOUD_FILE_SYSTEM: 'nothing' });
    const name = `${leasing.stamp}-aaaaaaaaaaaaaaaa-2-0`;
    expect(await failureOf(lease(none, 'lambdaCloud', { name }))).toMatchObject({
      code: 'lease.model_cache',
    });
  });
});

test('PLANNING_POLICY, CAPACITY_WAIT, MAX_LEASES and KEEP_WARM_SECONDS are what processors go by', async () => {
  const own = { PLANNING_POLICY: 'fastest', CAPACITY_WAIT: '90s', MAX_LEASES: '3' };
  expect(await open({ ...own, KEEP_WARM_SECONDS: '7' })).toMatchObject({
    policy: 'fastest',
    capacityWaitMs: 90_000,
    maxLeases: 3,
    keepWarmMs: 7_000,
  });
  expect(await open()).toMatchObject({
    policy: 'simple',
    capacityWaitMs: 900_000,
    maxLeases: 50,
    keepWarmMs: 0,
  });
});

test('the stamp is that of the storage: the same in all processes, another for another deployment', async () => {
  const stamps = await Promise.all(['a', 'a', 'b'].map(async (identity) => open({}, { identity })));
  const [one, same, other] = stamps.map(({ stamp }) => stamp);
  expect(one).toMatch(/^sl-[0-9a-f]{8}$/);
  expect(same).toBe(one);
  expect(other).not.toBe(one);
});

test.for<[what: string, Parameters<typeof withAccelerator>[0], number]>([
  ['as the template says', { type: 'H100', count: 2, vram_gb: 80 }, 196],
  ['as the name of the GPU says', { type: 'A100-SXM4-40GB', count: 1, vram_gb: 0 }, 64],
  ['the larger of both', { type: 'A100-SXM4-80GB', count: 1, vram_gb: 40 }, 108],
  ['as usual where nobody says', { type: 'H100', count: 1, vram_gb: 0 }, 108],
])('disk for weights: as much as its GPUs hold, %s', async ([, accelerator, gb]) => {
  expect((await open()).diskGb(withAccelerator(accelerator))).toBe(gb);
});

describe('an inventory', () => {
  async function lists(): Promise<number> {
    return (await clouds.runpod.control.requests()).filter(({ op }) => op === 'list').length;
  }

  test('is shared by those who ask at once, and by those who bear its age', async () => {
    let now = 1_000_000;
    const leasing = await open({}, { now: () => now });
    const { id } = await lease(leasing, 'runpod');
    const before = await lists();
    const all = await Promise.all([0, 0, 5_000].map((age) => leasing.inventory('runpod', age)));
    expect(await lists()).toBe(before + 1);
    for (const { at, machines } of all) {
      expect([at, machines.map((machine) => machine.id)]).toEqual([1_000_000, [id]]);
    }
    now += 3_000;
    expect((await leasing.inventory('runpod', 3_000)).at).toBe(1_000_000);
    expect(await lists()).toBe(before + 1);
    expect((await leasing.inventory('runpod', 2_999)).at).toBe(1_003_000);
    expect(await lists()).toBe(before + 2);
    expect((await leasing.inventory('lambdaCloud', 9_000)).machines).toEqual([]);
  });

  test('that waits for its turn or its answer is shared by those who come meanwhile', async () => {
    let now = 1_000_000;
    const leasing = await open({}, { now: () => now });
    await clouds.runpod.control.setFaults([{ kind: 'slow', op: 'list', delay_ms: 300, count: 1 }]);
    const before = await lists();
    const first = leasing.inventory('runpod', 2_000);
    now += 5_000;
    const second = await leasing.inventory('runpod', 2_000);
    expect([(await first).at, second.at]).toEqual([1_000_000, 1_000_000]);
    now += 2_000;
    await leasing.inventory('runpod', 2_000);
    expect(await lists()).toBe(before + 1);
    // Whoever wants one that was asked for now gets it.
    expect((await leasing.inventory('runpod', 0)).at).toBe(1_007_000);
    expect(await lists()).toBe(before + 2);
  });

  test('has none of another deployment', async () => {
    await lease(await open({}, { identity: 'disk-2' }), 'runpod');
    expect((await (await open()).inventory('runpod', 0)).machines).toEqual([]);
  });

  test('that fails fails for all who asked, and is not kept', async () => {
    const now = () => 1_000_000;
    const leasing = await open({}, { now });
    await clouds.runpod.control.setFaults([
      { kind: 'error', op: 'list', error: 'internal', count: 1 },
    ]);
    const all = await Promise.all(
      [0, 60_000].map(async (age) => failureOf(leasing.inventory('runpod', age))),
    );
    for (const failure of all) expect(failure).toMatchObject({ code: 'lease.unavailable' });
    expect((await leasing.inventory('runpod', 60_000)).machines).toEqual([]);
  });
});

test('processes with one Redis share the rate of a credential, and nobody is refused', async () => {
  // Looser than the pace by what a busy machine may be late.
  await clouds.lambdaCloud.control.setKnobs({ request_interval_ms: 700 });
  const clients = [connectTo('redis'), connectTo('redis')];
  try {
    const namespace = `leasing-${process.pid}-${Date.now()}`;
    const processes = await Promise.all(
      clients.map(async (redis) => open({}, { limits: createStore({ redis, namespace }).limits })),
    );
    const asked = processes.map(async (leasing) => leasing.inventory('lambdaCloud', 0));
    const from = performance.now();
    await Promise.all(asked);
    await Promise.all(processes.map(async (leasing) => leasing.manager('lambdaCloud')?.catalog()));
    expect(performance.now() - from).toBeGreaterThan(2_900);
    const statuses = (await clouds.lambdaCloud.control.requests()).map(({ status }) => status);
    expect(statuses).toEqual([200, 200, 200, 200]);
  } finally {
    for (const client of clients) client.disconnect();
  }
});

test('RunPod is asked as often as the account may, by what its answers say', async () => {
  const store = createStore({ redis: connectTo('redis'), namespace: `quota-${process.pid}` });
  const leasing = await open({}, { limits: store.limits });
  await clouds.runpod.control.setKnobs({ rate_limits: { minute: 600, hour: null, day: null } });
  const runpod = leasing.manager('runpod');
  await runpod?.list(leasing.stamp);
  const began = performance.now();
  // At the documented rate most of these had to wait for a minute and more.
  await Promise.all(Array.from({ length: 60 }, async () => runpod?.list(leasing.stamp)));
  expect(performance.now() - began).toBeLessThan(20_000);
});
