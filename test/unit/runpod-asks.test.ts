import { describe, expect, test } from 'vitest';
import type { OneAnswer, OneCall } from '../../src/resources/ask-once.ts';
import type { LeaseManager, MachineWish } from '../../src/resources/lease-contract.ts';
import { createRunPod } from '../../src/resources/runpod/index.ts';

interface Script {
  manager: LeaseManager;
  calls: OneCall[];
  bodies(): Record<string, unknown>[];
  /** Moves the clock. */
  pass(ms: number): void;
}

type Reply = OneAnswer | Error;

function json(status: number, body: unknown, headers: Record<string, string> = {}): OneAnswer {
  return { status, headers, text: JSON.stringify(body) };
}

/** A manager whose requests are answered by these replies in turn; the last one stays. */
function scripted(replies: readonly Reply[], settings: { version?: 'v1' | 'v2' } = {}): Script {
  const calls: OneCall[] = [];
  let clock = 1_000_000;
  const { version = 'v2' } = settings;
  const account = { apiKey: 'key-1', baseUrl: null, cloudType: 'COMMUNITY' } as const;
  const manager = createRunPod(
    { ...account, apiVersion: version, dataCenters: ['EU-RO-1', 'EU-SE-1'] },
    {
      pace: async () => {},
      now: () => clock,
      fetcher: async (call) => {
        const reply = replies[Math.min(calls.length, replies.length - 1)];
        calls.push(call);
        if (reply === undefined || reply instanceof Error) throw reply ?? new Error('no reply');
        return reply;
      },
    },
  );
  const bodies = () =>
    calls.flatMap(({ body }) =>
      body === null ? [] : [JSON.parse(body) as Record<string, unknown>],
    ); // what was sent
  return {
    manager,
    calls,
    bodies,
    pass(ms) {
      clock += ms;
    },
  };
}

const WISH: MachineWish = {
  name: 'sl-a',
  offer: '2x NVIDIA L40S',
  gpuCount: 2,
  regions: [],
  interruptible: true,
  maxPricePerHour: null,
  image: 'vllm/vllm-openai:v0.29.0',
  diskGb: 70,
  authorizedKey: 'ssh-ed25519 AAAA me\n',
  hostKey: 'PRIVATE',
  modelCache: null,
  sendBefore: Infinity,
};

const POD = {
  id: 'p1',
  name: 'sl-a',
  status: 'PROVISIONING',
  gpu: { id: 'NVIDIA L40S', count: 2 },
  ssh: { proxy: null, direct: null },
  cost: 1.72,
  dataCenterId: 'EU-RO-1',
  createdAt: '2026-06-01T12:00:00Z',
};
const NO_PODS = json(200, { pods: [] });
const NONE = json(400, {
  detail: 'There are no longer any instances available with the requested specifications.',
});

function systemError(code: string): Error {
  return Object.assign(new Error(code), { code });
}

describe('requests', () => {
  test('name their sender, carry the key in a header only, and ask for JSON', async () => {
    const { manager, calls } = scripted([NO_PODS]);
    await manager.list('sl-');
    expect(calls[0]).toMatchObject({
      method: 'GET',
      url: 'https://api.runpod.io/v2/pods?limit=1000',
      headers: {
        authorization: 'Bearer key-1',
        'user-agent': 'sluice',
        accept: 'application/json',
      },
      body: null,
    });
  });

  test('an id is no path', async () => {
    const { manager, calls } = scripted([json(404, { detail: 'resource not found' })]);
    expect(await manager.describe('../a?b')).toBeNull();
    expect(await manager.destroy('../a?b')).toBe('gone');
    const url = 'https://api.runpod.io/v2/pods/..%2Fa%3Fb';
    expect(calls.map((call) => [call.method, call.url])).toEqual([
      ['GET', url],
      ['DELETE', url],
    ]);
  });

  test('v2 is asked for one type, its count, one port, and the disk that is wished', async () => {
    const { manager, bodies } = scripted([NO_PODS, json(201, POD)]);
    await manager.create(WISH);
    const [body] = bodies();
    expect(body).toEqual({
      name: 'sl-a',
      image: 'vllm/vllm-openai:v0.29.0',
      gpu: { id: 'NVIDIA L40S', count: 2 },
      cloud: 'COMMUNITY',
      dataCenterIds: ['EU-RO-1', 'EU-SE-1'],
      disk: 70,
      ports: ['22/tcp'],
      env: {
        PUBLIC_KEY: 'ssh-ed25519 AAAA me',
        SLUICE_HOST_KEY: Buffer.from('PRIVATE\n').toString('base64'),
      },
      entrypoint: ['/bin/sh', '-c'],
      cmd: [expect.stringContaining('sshd -D')],
    });
    // A request of more than 102,400 bytes is refused before anything is read.
    expect(JSON.stringify(body).length).toBeLessThan(20_000);
  });

  test('v1 is asked by its own fields, interruptible pods included, and for no volume of its own', async () => {
    const created = {
      id: 'p1',
      name: 'sl-a',
      desiredStatus: 'RUNNING',
      publicIp: '',
      portMappings: null,
      costPerHr: 0.5,
      machine: {},
      gpuCount: 2,
    };
    const { manager, bodies, calls } = scripted([json(200, []), json(201, created)], {
      version: 'v1',
    });
    expect(await manager.create(WISH)).toMatchObject({ gpuType: 'NVIDIA L40S', region: '' });
    expect(calls[0]?.url).toBe('https://rest.runpod.io/v1/pods?includeMachine=true');
    expect(bodies()[0]).toMatchObject({
      imageName: WISH.image,
      gpuTypeIds: ['NVIDIA L40S'],
      gpuCount: 2,
      containerDiskInGb: 70,
      volumeInGb: 0,
      interruptible: true,
      supportPublicIp: true,
      cloudType: 'COMMUNITY',
      dataCenterIds: ['EU-RO-1', 'EU-SE-1'],
      dockerEntrypoint: ['/bin/sh', '-c'],
    });
  });

  test('a create may take no longer for a connection than it may leave', async () => {
    const { manager, calls } = scripted([NO_PODS, NONE, json(201, POD)]);
    await manager.create({ ...WISH, regions: ['A', 'B'], sendBefore: 1_000_700 });
    expect(calls.map(({ method, connectMs }) => [method, connectMs])).toEqual([
      ['GET', undefined],
      ['POST', 700],
      ['POST', 700],
    ]);
  });

  test('regions are asked in the order of the wish until one is not refused for capacity', async () => {
    const { manager, bodies } = scripted([NO_PODS, NONE, json(201, POD)]);
    await manager.create({ ...WISH, regions: ['B', 'A', 'C'] });
    expect(bodies().map((body) => body['dataCenterIds'])).toEqual([['B'], ['A']]);
    const doubtful = scripted([NO_PODS, NONE, json(500, {}), json(201, POD)]);
    const wish = { ...WISH, regions: ['B', 'A', 'C'] };
    await expect(doubtful.manager.create(wish)).rejects.toMatchObject({ code: 'lease.unknown' });
    expect(doubtful.bodies()).toHaveLength(2);
  });

  test('weights outlive the machine on the volume of the wish, and the region follows it', async () => {
    const volume = { id: 'v1', name: 'weights', dataCenter: 'EU-SE-1', size: 10, type: 'STANDARD' };
    const replies = [NO_PODS, json(200, { networkVolumes: [volume] }), json(201, POD)];
    const { manager, bodies, calls } = scripted(replies);
    await manager.create({ ...WISH, modelCache: 'weights' });
    expect(calls[1]?.url).toBe('https://api.runpod.io/v2/network-volumes');
    expect(bodies()[0]).toMatchObject({
      dataCenterIds: ['EU-SE-1'],
      mounts: { network: [{ volumeId: 'v1', path: '/workspace' }] },
      env: { HF_HOME: '/workspace/huggingface' },
    });
    const none = scripted([NO_PODS, json(200, { networkVolumes: [] })]);
    const failed = none.manager.create({ ...WISH, modelCache: 'weights' });
    await expect(failed).rejects.toMatchObject({ kind: 'InvalidInput' });
    expect(none.bodies()).toEqual([]);
  });
});

describe('answers', () => {
  test.for(['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'UND_ERR_CONNECT_TIMEOUT'])(
    'a create that was never sent (%s) has made nothing',
    async (code) => {
      const { manager } = scripted([NO_PODS, systemError(code)]);
      await expect(manager.create(WISH)).rejects.toMatchObject({ code: 'lease.unavailable' });
    },
  );

  test.for(['ECONNRESET', 'UND_ERR_SOCKET', 'EPIPE', 'UND_ERR_HEADERS_TIMEOUT'])(
    'a create that may have been sent (%s) is in doubt',
    async (code) => {
      const { manager } = scripted([NO_PODS, systemError(code)]);
      await expect(manager.create(WISH)).rejects.toMatchObject({ code: 'lease.unknown' });
    },
  );

  test.for<[what: string, body: unknown]>([
    ['nothing', undefined],
    ['a list', [POD]],
    ['a pod without a price', { ...POD, cost: undefined }],
    ['an older API’s pod', { id: 'p1', name: 'sl-a', desiredStatus: 'RUNNING' }],
    ['a pod without an id', { ...POD, id: '' }],
  ])('a create that is answered with %s is in doubt', async ([, body]) => {
    const text = body === undefined ? '' : JSON.stringify(body);
    const { manager } = scripted([NO_PODS, { status: 201, headers: {}, text }]);
    await expect(manager.create(WISH)).rejects.toMatchObject({
      kind: 'Transient',
      code: 'lease.unknown',
    });
  });

  test('a list with one of ours in another shape is no list; other people’s pods may be as they like', async () => {
    const cpu = { id: 'c1', name: 'other', status: 'RUNNING', cpu: { id: 'cpu3c' } };
    const { manager } = scripted([json(200, { pods: [cpu, POD] })]);
    expect(await manager.list('sl-')).toMatchObject([{ id: 'p1' }]);
    for (const pod of [{ ...cpu, name: 'sl-x' }, { name: 'sl-x' }, { id: 'x' }, null]) {
      const damaged = scripted([json(200, { pods: [POD, pod] })]);
      await expect(damaged.manager.list('sl-')).rejects.toMatchObject({
        code: 'lease.unavailable',
      });
    }
  });

  test('pages that go round in circles are no list', async () => {
    const page = json(200, { pods: [POD], pagination: { nextCursor: 'a', hasNextPage: true } });
    const { manager, calls } = scripted([page]);
    await expect(manager.list('sl-')).rejects.toMatchObject({ code: 'lease.unavailable' });
    expect(calls).toHaveLength(2);
  });

  test('a 404 that is not the API’s says nothing about a pod', async () => {
    const { manager } = scripted([{ status: 404, headers: {}, text: '<html>404</html>' }]);
    await expect(manager.describe('p1')).rejects.toMatchObject({ code: 'lease.unavailable' });
    await expect(manager.destroy('p1')).rejects.toMatchObject({ code: 'lease.unavailable' });
  });

  test('what costs too much is given back at once, adopted or new, or looked for', async () => {
    const wish = { ...WISH, maxPricePerHour: 1.71 };
    const done: OneAnswer = { status: 204, headers: {}, text: '' };
    const none = json(404, { detail: 'resource not found' });
    const there = json(200, { pods: [POD] });
    for (const replies of [
      [NO_PODS, json(201, POD), done, none],
      [NO_PODS, json(201, POD), none],
      [there, done, json(200, { ...POD, status: 'TERMINATED' })],
      // A price that is not told is none that may be paid.
      [NO_PODS, json(201, { ...POD, cost: null }), done, none],
    ]) {
      const { manager, calls } = scripted(replies);
      await expect(manager.create(wish)).rejects.toMatchObject({ kind: 'NoCapacity' });
      const given = calls.find(({ method }) => method === 'DELETE');
      expect(given?.url).toBe('https://api.runpod.io/v2/pods/p1');
    }
    for (const replies of [
      [NO_PODS, json(201, POD), json(500, {})],
      [NO_PODS, json(201, POD), done, json(500, {})],
      // A terminate that was confirmed and lost.
      [NO_PODS, json(201, POD), done, json(200, POD)],
    ]) {
      const { manager } = scripted(replies);
      await expect(manager.create(wish)).rejects.toMatchObject({ code: 'lease.unknown' });
    }
  });

  test('a retired API is named with the one to choose, whatever is asked', async () => {
    const { manager } = scripted([json(410, { error: 'gone' })], { version: 'v1' });
    for (const call of [
      manager.list('sl-'),
      manager.describe('a'),
      manager.destroy('a'),
      manager.create(WISH),
    ]) {
      await expect(call).rejects.toMatchObject({
        kind: 'Permanent',
        code: 'lease.retired_api',
        message: expect.stringContaining('RUNPOD_API_VERSION=v2'),
      });
    }
  });
});

describe('after too many requests', () => {
  test('it is left alone as long as it says, but for what gives machines back', async () => {
    const { manager, calls, pass } = scripted([
      json(429, { detail: 'rate limit exceeded' }, { 'retry-after': '12' }),
      { status: 204, headers: {}, text: '' },
      NO_PODS,
    ]);
    const refused = { code: 'lease.unavailable' };
    await expect(manager.list('sl-')).rejects.toMatchObject({ ...refused, retryAfterMs: 12_000 });
    pass(2000);
    await expect(manager.list('sl-')).rejects.toMatchObject({ ...refused, retryAfterMs: 10_000 });
    expect(calls).toHaveLength(1);
    expect(await manager.destroy('p1')).toBe('going');
    pass(10_000);
    expect(await manager.list('sl-')).toEqual([]);
    expect(calls).toHaveLength(3);
  });

  test('the last request that a window allows is followed by none until it opens', async () => {
    const full = { ratelimit: '"minute";r=0;t=5, "hour";r=100;t=1000' };
    const { manager, calls, pass } = scripted([json(200, { pods: [] }, full), NO_PODS]);
    expect(await manager.list('sl-')).toEqual([]);
    await expect(manager.list('sl-')).rejects.toMatchObject({ retryAfterMs: 5000 });
    expect(calls).toHaveLength(1);
    pass(5000);
    expect(await manager.list('sl-')).toEqual([]);
  });

  test('an hour is not believed at once', async () => {
    const hour = json(429, {}, { 'retry-after': '3600' });
    const { manager, calls, pass } = scripted([hour, NO_PODS]);
    await expect(manager.list('sl-')).rejects.toMatchObject({ retryAfterMs: 3_600_000 });
    pass(60_000);
    expect(await manager.list('sl-')).toEqual([]);
    expect(calls).toHaveLength(2);
  });
});
