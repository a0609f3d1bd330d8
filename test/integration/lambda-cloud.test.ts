import { createServer } from 'node:http';
import type { IncomingMessage, RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeAll, describe, expect, test } from 'vitest';
import { SluiceError } from '../../src/domain/errors.ts';
import { createLambdaCloud } from '../../src/resources/lambda-cloud/index.ts';
import type { LambdaCloudSettings } from '../../src/resources/lambda-cloud/index.ts';
import type {
  CallPurpose,
  LeaseManager,
  MachineWish,
  Pace,
} from '../../src/resources/lease-contract.ts';
import { createPace } from '../../src/resources/pace.ts';
import { createStore } from '../../src/store/store.ts';
import type { FaultInput } from '../simulators/cloud/faults.ts';
import type { CloudOptions, CloudSimulator } from '../simulators/cloud/start.ts';
import { startLambda } from '../simulators/lambda/simulator.ts';
import { createKeyPair, createSshClient } from '../simulators/machines/ssh-client.ts';
import { connectTo } from '../support/store-back-ends.ts';
import { until } from '../support/until.ts';

const STAMP = 'sl-d1-';
const FREE = { request_interval_ms: 0, launch_interval_ms: 0, boot_ms: [0, 0] };

let account: { privateKey: string; publicKey: string };
let host: { privateKey: string; publicKey: string };
beforeAll(async () => {
  [account, host] = await Promise.all([createKeyPair(), createKeyPair()]);
});

const clouds: CloudSimulator[] = [];
afterEach(async () => {
  for (const cloud of clouds.splice(0)) await cloud.stop();
});

async function startCloud(options: CloudOptions = {}): Promise<CloudSimulator> {
  const { knobs = {}, ...rest } = options;
  const cloud = await startLambda({
    machines: 'none',
    sshKeys: [account.publicKey],
    knobs: { ...FREE, ...knobs },
    ...rest,
  });
  clouds.push(cloud);
  return cloud;
}

function managerOf(
  cloud: { url: string },
  settings: Partial<LambdaCloudSettings> = {},
  pace: Pace = async () => {},
): LeaseManager {
  const own = { apiKey: 'lambda-key', stamp: STAMP, sshKeyNames: ['default'], timeoutMs: 500 };
  return createLambdaCloud({ ...own, baseUrl: `${cloud.url}/api/v1`, ...settings }, { pace });
}

function wishOf(change: Partial<MachineWish> = {}): MachineWish {
  return {
    name: `${STAMP}job-1`,
    offer: 'gpu_1x_h100_pcie',
    gpuCount: 1,
    regions: [],
    interruptible: false,
    maxPricePerHour: null,
    image: 'vllm/vllm-openai:v0.29.0',
    diskGb: 100,
    authorizedKey: account.publicKey,
    hostKey: host.privateKey,
    modelCache: null,
    sendBefore: Date.now() + 60_000,
    ...change,
  };
}

async function failureOf(call: Promise<unknown>): Promise<{ is: string; message: string }> {
  try {
    await call;
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error;
    return { is: `${error.kind} ${error.code}`, message: error.message };
  }
  throw new Error('it did not fail');
}

/** A file system of the account. */
async function fileSystem(cloud: CloudSimulator, name: string, region: string): Promise<string> {
  const answer = await fetch(`${cloud.url}/api/v1/filesystems`, {
    method: 'POST',
    headers: { authorization: 'Bearer lambda-key' },
    body: JSON.stringify({ name, region }),
  });
  return ((await answer.json()) as { data: { id: string } }).data.id; // as the simulator answers
}

type Body = Record<string, unknown>;

/** A server of this test alone. */
async function listen(handler: RequestListener) {
  const server = createServer(handler);
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  const { port } = server.address() as AddressInfo; // a TCP server has no other kind of address
  return {
    url: `http://127.0.0.1:${port}`,
    async [Symbol.asyncDispose]() {
      await new Promise((resolve) => {
        server.close(resolve);
        server.closeAllConnections();
      });
    },
  };
}

async function forward(target: string, { url = '/', headers }: IncomingMessage): Promise<Body> {
  const authorization = headers.authorization ?? '';
  const answer = await fetch(`${target}${url.split('?')[0] ?? ''}`, { headers: { authorization } });
  return (await answer.json()) as Body; // all answers of the API are objects
}

/** The API with its answers to GET changed on their way. */
async function startProxy(target: string, edit: (body: Body, url: string) => Body) {
  return listen((req, res) => {
    void forward(target, req).then((body) => res.end(JSON.stringify(edit(body, req.url ?? ''))));
  });
}

/** The API with a gateway before it that answers some calls with a page. */
async function startGateway(target: string, status: number) {
  let refused = '';
  const server = await listen((req, res) => {
    if (req.url?.includes(refused) === true) res.writeHead(status).end('<html>Sorry</html>');
    else void forward(target, req).then((body) => res.end(JSON.stringify(body)));
  });
  return {
    ...server,
    refuse(part: string) {
      refused = part;
    },
  };
}

/** What was sent to launch the only machine that there is. */
async function launchOf(cloud: CloudSimulator): Promise<Record<string, unknown>> {
  const [entry] = await cloud.control.inventory();
  return entry?.request as Record<string, unknown>; // the body, parsed by the simulator
}

describe('what is launched', () => {
  test('carries name, stamp and time as tags, and nothing else', async () => {
    const cloud = await startCloud();
    const machine = await managerOf(cloud, { now: () => 1_790_000_000_000 }).create(wishOf());
    expect(machine).toMatchObject({
      gpuType: 'H100 (80 GB PCIe)',
      pricePerHour: 2.49,
      createdAt: 1_790_000_000_000,
      raw: { instance_ids: [machine.id] },
    });
    expect(await launchOf(cloud)).toEqual({
      region_name: machine.region,
      instance_type_name: 'gpu_1x_h100_pcie',
      ssh_key_names: ['default'],
      name: `${STAMP}job-1`,
      tags: [
        { key: 'sluice:stamp', value: STAMP },
        { key: 'sluice:name', value: `${STAMP}job-1` },
        { key: 'sluice:created', value: '1790000000000' },
      ],
      user_data: '[not shown]',
    });
  });

  test('is found by stamp and name after somebody has renamed it', async () => {
    const cloud = await startCloud();
    const manager = managerOf(cloud);
    const { id } = await manager.create(wishOf());
    await fetch(`${cloud.url}/api/v1/instances/${id}`, {
      method: 'POST',
      headers: { authorization: 'Bearer lambda-key' },
      body: JSON.stringify({ name: 'mine' }),
    });
    expect((await cloud.control.inventory())[0]?.name).toBe('mine');
    expect(await manager.list(STAMP)).toMatchObject([{ id, name: `${STAMP}job-1` }]);
    expect((await managerOf(cloud).create(wishOf())).id).toBe(id);
  });

  test('the same wish twice at once is one machine', async () => {
    const cloud = await startCloud();
    const manager = managerOf(cloud);
    const both = await Promise.all([manager.create(wishOf()), manager.create(wishOf())]);
    expect(both[0].id).toBe(both[1].id);
    expect(await cloud.control.inventory()).toHaveLength(1);
  });

  test('mounts the file system, and is in its region', async () => {
    const cloud = await startCloud();
    const id = await fileSystem(cloud, 'weights', 'us-south-1');
    for (const modelCache of ['weights', id]) {
      const name = `${STAMP}${modelCache}`;
      const machine = await managerOf(cloud).create(wishOf({ name, modelCache }));
      expect(machine.region).toBe('us-south-1');
    }
    const { file_system_mounts: mounts } = await launchOf(cloud);
    expect(mounts).toEqual([{ mount_point: '/lambda/nfs/model-cache', file_system_id: id }]);
  });

  test('a region that refused is the last to be asked again', async () => {
    const cloud = await startCloud();
    const manager = managerOf(cloud);
    const regions = ['us-west-1', 'us-east-1'];
    await cloud.control.setFaults([
      { kind: 'error', op: 'create', error: 'no_capacity', count: 1 },
    ]);
    expect((await failureOf(manager.create(wishOf({ regions })))).is).toBe(
      'NoCapacity lease.no_capacity',
    );
    expect((await manager.create(wishOf({ regions }))).region).toBe('us-east-1');
  });

  test('lets in all keys that the settings name', async () => {
    const other = await createKeyPair();
    const cloud = await startCloud({ sshKeys: [account.publicKey, other.publicKey] });
    const sshKeyNames = ['default', 'default-2'];
    await managerOf(cloud, { sshKeyNames }).create(wishOf());
    expect((await launchOf(cloud))['ssh_key_names']).toEqual(['default']);
  });

  test('without a name of a key, the one of the account that is the authorized key is named', async () => {
    const other = await createKeyPair();
    const cloud = await startCloud({ sshKeys: [other.publicKey, account.publicKey] });
    await managerOf(cloud, { sshKeyNames: [] }).create(wishOf());
    expect((await launchOf(cloud))['ssh_key_names']).toEqual(['default-2']);
  });
});

describe('a wish that cannot be had', () => {
  test.for<[what: string, change: Partial<MachineWish>, code: string, words: string]>([
    ['another count of GPUs', { gpuCount: 2 }, 'lease.gpu_count', 'has 1 GPUs, not 2'],
    ['more disk than there is', { diskGb: 5_000 }, 'lease.disk', 'has 1099 GB of disk'],
    ['a lower price', { maxPricePerHour: 2 }, 'lease.price', 'costs $2.49 an hour'],
    ['a region that is none', { regions: ['mars-1'] }, 'lease.region', 'no region mars-1'],
    ['a file system that is none', { modelCache: 'none' }, 'lease.model_cache', "'weights' in"],
    [
      'a file system elsewhere',
      { modelCache: 'weights', regions: ['us-east-1'] },
      'lease.region',
      'us-south-1',
    ],
    ['a name of somebody else', { name: 'sl-d2-job-1' }, 'lease.name', "'sl-d2-job-1'"],
    ['a host key that is none', { hostKey: 'secret' }, 'lease.host_key', 'no private key'],
  ])('%s: %s', async ([, change, code, words]) => {
    const cloud = await startCloud();
    await fileSystem(cloud, 'weights', 'us-south-1');
    const failure = await failureOf(managerOf(cloud).create(wishOf(change)));
    expect(failure.is).toBe(`InvalidInput ${code}`);
    expect(failure.message).toContain(words);
    expect(failure.message).not.toContain('secret');
    const launches = (await cloud.control.requests()).filter(({ op }) => op === 'create');
    expect(launches).toEqual([]);
  });

  test.for([
    ['one name', ['nobody']],
    ['the second of two', ['default', 'nobody']],
  ] as const)('an SSH key that the account has not, %s', async ([, sshKeyNames]) => {
    const cloud = await startCloud();
    const failure = await failureOf(managerOf(cloud, { sshKeyNames }).create(wishOf()));
    expect(failure.is).toBe('Permanent lease.ssh_key_missing');
    expect(failure.message).toContain("no SSH key 'nobody'");
    expect(failure.message).toContain("It has 'default'");
    expect(failure.message).toContain('LAMBDA_CLOUD_SSH_KEYS');
  });

  test('an authorized key that the account has not', async () => {
    const cloud = await startCloud({ sshKeys: [] });
    const failure = await failureOf(managerOf(cloud, { sshKeyNames: [] }).create(wishOf()));
    expect(failure.is).toBe('Permanent lease.ssh_key_missing');
  });

  test('a region without capacity, which another has', async () => {
    const cloud = await startCloud({
      knobs: { capacity: { gpu_1x_h100_pcie: { 'us-east-1': 1 } } },
    });
    const manager = managerOf(cloud);
    const failure = await failureOf(manager.create(wishOf({ regions: ['us-west-1'] })));
    expect(failure.is).toBe('NoCapacity lease.no_capacity');
    expect(failure.message).toContain('us-west-1');
    expect((await manager.create(wishOf({ regions: ['us-west-1', 'us-east-1'] }))).region).toBe(
      'us-east-1',
    );
  });
});

describe('what a launch fails with', () => {
  test.for<[fault: FaultInput, is: string]>([
    [{ kind: 'error', error: 'no_capacity' }, 'NoCapacity lease.no_capacity'],
    [{ kind: 'error', error: 'quota' }, 'Permanent lease.quota'],
    [{ kind: 'error', error: 'balance' }, 'Permanent lease.unauthorized'],
    [{ kind: 'error', error: 'forbidden' }, 'Permanent lease.unauthorized'],
    [{ kind: 'error', error: 'unauthorized' }, 'Permanent lease.unauthorized'],
    [{ kind: 'error', error: 'not_found' }, 'InvalidInput lease.refused'],
    [{ kind: 'error', error: 'rate_limited' }, 'Transient lease.unavailable'],
    [{ kind: 'error', error: 'internal' }, 'Transient lease.unknown'],
    [{ kind: 'error', error: 'unavailable' }, 'Transient lease.unknown'],
    [{ kind: 'error', error: 'conflict' }, 'Transient lease.unknown'],
    [{ kind: 'error', error: 'unknown' }, 'Transient lease.unknown'],
    [{ kind: 'hang' }, 'Transient lease.unknown'],
    [{ kind: 'reset' }, 'Transient lease.unknown'],
  ])('before it was done: %o is %s', async ([fault, is]) => {
    const cloud = await startCloud();
    await cloud.control.setFaults([{ op: 'create', ...fault }]);
    expect((await failureOf(managerOf(cloud).create(wishOf()))).is).toBe(is);
    expect(await cloud.control.inventory()).toEqual([]);
  });

  test.for<FaultInput>([
    { kind: 'error_after', error: 'internal' },
    { kind: 'error_after', error: 'unavailable' },
    { kind: 'error_after', error: 'unknown' },
    { kind: 'error_after', error: 'conflict' },
    { kind: 'hang_after' },
    { kind: 'reset_after' },
    { kind: 'truncate' },
    { kind: 'html' },
  ])('after it was done: %o is unknown, and the machine is there', async (fault) => {
    const cloud = await startCloud();
    await cloud.control.setFaults([{ op: 'create', count: 1, ...fault }]);
    const manager = managerOf(cloud);
    expect((await failureOf(manager.create(wishOf()))).is).toBe('Transient lease.unknown');
    const [made] = await cloud.control.inventory();
    expect((await manager.create(wishOf())).id).toBe(made?.id);
  });

  test.for(['html', 'empty', 'json'])('a 429 with a body of %s is no machine', async (kind) => {
    const cloud = await startCloud({
      knobs: { rate_limit_body: kind, launch_interval_ms: 60_000 },
    });
    const manager = managerOf(cloud);
    await manager.create(wishOf());
    const failure = await failureOf(manager.create(wishOf({ name: `${STAMP}job-2` })));
    expect(failure.is).toBe('Transient lease.unavailable');
  });

  test('nobody there: nothing was sent', async () => {
    const cloud = await startCloud();
    // The look and the catalog are answered, and the launch finds nobody.
    let turns = 0;
    const pace: Pace = async (purpose) => {
      turns += 1;
      if (purpose === 'create') await cloud.stop();
    };
    const failure = await failureOf(managerOf(cloud, {}, pace).create(wishOf()));
    expect(failure.is).toBe('Transient lease.unavailable');
    expect(turns).toBe(3);
  });

  test('an API that is not there says where to look', async () => {
    const cloud = await startCloud();
    const failure = await failureOf(
      managerOf(cloud, { baseUrl: `${cloud.url}/api/v0` }).list(STAMP),
    );
    expect(failure.is).toBe('Permanent lease.retired_api');
    expect(failure.message).toContain('LAMBDA_CLOUD_BASE_URL');
  });

  test.for([
    [401, 'Permanent lease.unauthorized', 'Permanent lease.unauthorized'],
    [403, 'Transient lease.unavailable', 'Transient lease.unknown'],
    [404, 'Transient lease.unavailable', 'Transient lease.unknown'],
    [410, 'Permanent lease.retired_api', 'Permanent lease.retired_api'],
    [302, 'Transient lease.unavailable', 'Transient lease.unknown'],
    [400, 'Transient lease.unavailable', 'Transient lease.unknown'],
  ] as const)('a page of a gateway with status %i', async ([status, looked, launched]) => {
    const cloud = await startCloud();
    const { id } = await managerOf(cloud).create(wishOf());
    await using gateway = await startGateway(cloud.url, status);
    const manager = managerOf(gateway);
    gateway.refuse('/instances');
    for (const call of [manager.list(STAMP), manager.describe(id), manager.create(wishOf())]) {
      expect((await failureOf(call)).is).toBe(looked);
    }
    gateway.refuse('/instance-operations');
    expect((await failureOf(manager.destroy(id))).is).toBe(looked);
    const wish = wishOf({ name: `${STAMP}job-2` });
    expect((await failureOf(manager.create(wish))).is).toBe(launched);
    expect(await cloud.control.inventory()).toHaveLength(1);
  });
});

describe('looks', () => {
  test('those who wait for their turn share it', async () => {
    const cloud = await startCloud();
    const turns: CallPurpose[] = [];
    const manager = managerOf(cloud, {}, async (purpose) => {
      turns.push(purpose);
    });
    const names = ['a', 'b', 'c'].map((name) => `${STAMP}${name}`);
    const ids: string[] = [];
    for (const name of names) ids.push((await manager.create(wishOf({ name }))).id);
    turns.length = 0;
    const requests = (await cloud.control.requests()).length;
    const [list, ...machines] = await Promise.all([
      manager.list(STAMP),
      ...ids.map(async (id) => manager.describe(id)),
    ]);
    expect(machines.map((machine) => machine?.name)).toEqual(names);
    expect(list).toHaveLength(3);
    expect(turns).toEqual(['look']);
    expect((await cloud.control.requests()).length - requests).toBe(1);
  });

  test('one that a shared list does not show is asked for by its id', async () => {
    const cloud = await startCloud({ knobs: { list_lag_ms: 60_000 } });
    const manager = managerOf(cloud);
    const { id } = await manager.create(wishOf());
    const [found, none] = await Promise.all([
      manager.describe(id),
      manager.describe('0'.repeat(32)),
    ]);
    expect(found?.id).toBe(id);
    expect(none).toBeNull();
  });

  test('who asks after a look has begun does not get what it saw', async () => {
    const cloud = await startCloud();
    const manager = managerOf(cloud);
    await cloud.control.setFaults([{ kind: 'slow', op: 'list', delay_ms: 200, count: 1 }]);
    const early = manager.list(STAMP);
    await until(async () => (await cloud.control.requests()).some(({ op }) => op === 'list'));
    await managerOf(cloud).create(wishOf());
    expect(await manager.list(STAMP)).toHaveLength(1);
    expect(await early).toEqual([]);
  });

  test('what opens a notebook to anybody is not kept', async () => {
    const cloud = await startCloud();
    const { id } = await managerOf(cloud).create(wishOf());
    await using proxy = await startProxy(cloud.url, ({ data }) => ({
      data: { ...(data as Body), jupyter_token: '03b7d30d', jupyter_url: 'https://j/?t=03b7d30d' },
    }));
    const machine = await managerOf(proxy).describe(id);
    expect(JSON.stringify(machine)).not.toContain('03b7d30d');
    expect(machine?.raw).toMatchObject({ id, status: expect.any(String) });
  });

  test('an instance of somebody else may look as it likes, one of ours may not', async () => {
    const cloud = await startCloud();
    const manager = managerOf(cloud);
    const { id } = await manager.create(wishOf());
    await using strange = await startProxy(cloud.url, ({ data }) => ({
      data: [{ id: 'x', name: null, status: 5 }, ...(data as Body[])],
    }));
    expect(await managerOf(strange).list(STAMP)).toMatchObject([{ id }]);
    for (const missing of ['id', 'status', 'region', 'instance_type']) {
      await using broken = await startProxy(cloud.url, ({ data }) => ({
        data: (data as Body[]).map((one) => ({ ...one, [missing]: undefined })),
      }));
      const failure = await failureOf(managerOf(broken).list(STAMP));
      expect([missing, failure.is]).toEqual([missing, 'Transient lease.unavailable']);
    }
  });

  test('pages are followed to the end', async () => {
    const cloud = await startCloud();
    const { id } = await managerOf(cloud).create(wishOf());
    await using paged = await startProxy(cloud.url, ({ data }, url) =>
      url.includes('page_token=two') ? { data, page_token: null } : { data: [], page_token: 'two' },
    );
    expect(await managerOf(paged).list(STAMP)).toMatchObject([{ id }]);
  });
});

describe('destroy', () => {
  test.for<[what: string, knobs: Record<string, unknown>]>([
    ['answered as unknown', { terminating_is_unknown: true, terminate_ms: 300 }],
    ['shown as terminated for a while', { terminated_shown_ms: 300 }],
    ['shown in lists for a while', { gone_lag_ms: 300 }],
  ])('again, %s, ends as gone', async ([, knobs]) => {
    const cloud = await startCloud({ knobs });
    const manager = managerOf(cloud);
    const { id } = await manager.create(wishOf());
    expect(await manager.destroy(id)).toBe('going');
    expect(['going', 'gone']).toContain(await manager.destroy(id));
    await until(async () => (await manager.destroy(id)) === 'gone', { what: 'gone' });
    expect(await cloud.control.inventory()).toEqual([]);
  });

  test('of one that boots and cannot be ended yet is to be done again', async () => {
    const cloud = await startCloud({ knobs: { booting_holds: true, boot_ms: [300, 300] } });
    const manager = managerOf(cloud);
    const { id } = await manager.create(wishOf());
    expect((await failureOf(manager.destroy(id))).is).toBe('Transient lease.unavailable');
    await until(async () => (await manager.destroy(id).catch(() => '')) === 'gone');
    expect(await cloud.control.inventory()).toEqual([]);
  });

  test('an unknown error about one that runs on is no success', async () => {
    const cloud = await startCloud();
    const manager = managerOf(cloud);
    const { id } = await manager.create(wishOf());
    await cloud.control.setFaults([{ kind: 'error', op: 'terminate', error: 'unknown', count: 1 }]);
    expect((await failureOf(manager.destroy(id))).is).toBe('Transient lease.unavailable');
    expect(await cloud.control.inventory()).toHaveLength(1);
  });
});

test('the machine is who it is said to be, lets its keys in, and runs nothing', async () => {
  using ssh = await createSshClient();
  using second = await createSshClient();
  const cloud = await startCloud({
    machines: 'real',
    sshKeys: [account.publicKey, second.publicKey],
  });
  await fileSystem(cloud, 'weights', 'us-west-1');
  const manager = managerOf(cloud, { sshKeyNames: ['default', 'default-2'], timeoutMs: 5_000 });
  const wish = wishOf({ authorizedKey: ssh.publicKey, modelCache: 'weights' });
  const { id } = await manager.create(wish);
  const address = await until(async () => (await manager.describe(id))?.ssh, {
    timeoutMs: 30_000,
    what: 'an address',
  });
  const target = { ...address, hostKey: host.publicKey };
  const look = 'cloud-init status --wait; sudo docker ps -q; ls -d /lambda/nfs/model-cache';
  const said = await until(
    async () => {
      const answer = await ssh.run(target, look);
      return answer.code === 0 ? answer : undefined;
    },
    { timeoutMs: 30_000, what: 'ssh' },
  );
  expect(said.stdout).toBe('status: done\n/lambda/nfs/model-cache\n');
  expect((await second.run(target, 'whoami')).stdout).toBe('ubuntu\n');
  const machine = await manager.describe(id);
  expect(JSON.stringify(machine)).not.toContain('PRIVATE KEY');
  await until(async () => (await manager.destroy(id)) === 'gone', { what: 'gone' });
  expect(await cloud.control.inventory()).toEqual([]);
});

test('two processes that share a bucket are never refused', async () => {
  // Both limits faster than the real ones, and looser than the pace by what a busy machine may be late.
  const cloud = await startCloud({
    knobs: { request_interval_ms: 400, launch_interval_ms: 900 },
  });
  const clients = [connectTo('redis'), connectTo('redis')];
  try {
    const limits = { callsPerSecond: 1 / 0.525, createsPerSecond: 1 / 1.05 };
    const namespace = `pace-${process.pid}-${Date.now()}`;
    const managers = clients.map((redis) => {
      const { draw } = createStore({ redis, namespace }).limits;
      const pace = createPace({ name: 'provider:lambdaCloud:1', limits: () => limits, draw });
      return managerOf(cloud, { timeoutMs: 5_000 }, pace);
    });
    const made = await Promise.all(
      managers.flatMap((manager, at) => [
        manager.create(wishOf({ name: `${STAMP}job-${at}-0` })),
        manager.create(wishOf({ name: `${STAMP}job-${at}-1` })),
      ]),
    );
    await Promise.all(made.map(async ({ id }, at) => managers[at % 2]?.destroy(id)));
    const requests = await cloud.control.requests();
    expect(requests.filter(({ status }) => status === 429)).toEqual([]);
    expect(await cloud.control.inventory()).toEqual([]);
  } finally {
    for (const client of clients) client.disconnect();
  }
});
