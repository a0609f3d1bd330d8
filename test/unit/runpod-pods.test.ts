import { describe, expect, test } from 'vitest';
import type { Dialect } from '../../src/resources/runpod/dialect.ts';
import { readTime } from '../../src/resources/runpod/dialect.ts';
import { V1 } from '../../src/resources/runpod/v1.ts';
import { V2 } from '../../src/resources/runpod/v2.ts';

/** A pod of v2 as its specification has it, with a field that it has not. */
const POD_V2 = {
  id: '7h9k2m4n6p',
  name: 'sl-a',
  image: 'vllm/vllm-openai:v0.29.0',
  env: { SLUICE_HOST_KEY: 'c2VjcmV0', PUBLIC_KEY: 'ssh-ed25519 AAAA' },
  entrypoint: ['/bin/sh', '-c'],
  cmd: ['exec sshd'],
  args: '{"cmd":["exec sshd"]}',
  status: 'RUNNING',
  gpu: { id: 'NVIDIA L40S', count: 2 },
  dataCenterId: 'US-KS-2',
  ssh: {
    proxy: { host: 'ssh.runpod.io', port: 22, username: '7h9k-64411eb2', command: 'ssh' },
    direct: { host: '195.26.233.3', port: 34_446, username: 'root', command: 'ssh' },
  },
  cost: 1.72,
  runtime: { uptime: 3, ports: [] },
  template: { env: { TOKEN: 'c2VjcmV0' } },
  createdAt: '2026-06-01T12:00:00Z',
  somethingNew: true,
};

/** A pod of v1 in the shape that was seen, which is not the one of its specification. */
const POD_V1 = {
  id: 'abc123',
  name: 'sl-a',
  imageName: 'vllm/vllm-openai:v0.29.0',
  env: { SLUICE_HOST_KEY: 'c2VjcmV0' },
  dockerStartCmd: ['exec sshd'],
  desiredStatus: 'RUNNING',
  publicIp: '100.65.0.119',
  portMappings: { '22': 10_341 },
  gpuCount: 2,
  machine: { dataCenterId: 'EU-RO-1', gpuTypeId: 'NVIDIA L40S' },
  costPerHr: 0.74,
  lastStatusChange: 'Rented by User: Thu Aug 20 2026',
  createdAt: '2026-08-20 06:16:19.436 +0000 UTC',
};

describe('a pod of v2', () => {
  test('as it is', () => {
    expect(V2.readMachine(POD_V2)).toMatchObject({
      id: '7h9k2m4n6p',
      name: 'sl-a',
      state: 'running',
      ssh: { host: '195.26.233.3', port: 34_446, user: 'root' },
      region: 'US-KS-2',
      gpuType: 'NVIDIA L40S',
      gpuCount: 2,
      pricePerHour: 1.72,
      createdAt: Date.UTC(2026, 5, 1, 12),
      reason: '',
    });
  });

  test.for([
    ['PROVISIONING', false, 'booting'],
    ['STARTING', true, 'booting'],
    // Seen from creation on, while the image was still being pulled.
    ['RUNNING', false, 'booting'],
    ['RUNNING', true, 'running'],
    ['EXITED', false, 'stopping'],
    ['ERROR', false, 'stopping'],
    ['TERMINATED', false, 'gone'],
    ['MIGRATING', true, 'booting'],
  ] as const)('%s with an address %s is %s', ([status, address, state]) => {
    const direct = address ? POD_V2.ssh.direct : null;
    const machine = V2.readMachine({ ...POD_V2, status, ssh: { ...POD_V2.ssh, direct } });
    expect(machine).toMatchObject({ state, reason: state === 'running' ? '' : status });
  });

  test('pages end, go on, or are refused', () => {
    const page = (pagination?: object | null) => V2.readPage({ pods: [], pagination }).next;
    expect(page()).toBeNull();
    expect(page(null)).toBeNull();
    expect(page({ nextCursor: null, hasNextPage: false })).toBeNull();
    expect(page({ nextCursor: 'old', hasNextPage: false })).toBeNull();
    expect(page({ nextCursor: 'a b', hasNextPage: true })).toBe('a b');
    expect(page({ nextCursor: 'c' })).toBe('c');
    expect(() => page({ nextCursor: null, hasNextPage: true })).toThrow(
      'does not say how to go on',
    );
    expect(V2.listPath('a b')).toBe('/pods?limit=1000&cursor=a%20b');
  });

  test.for([{}, [], null, undefined, 'x', { pods: {} }, { data: [] }, { pods: null }])(
    'no list: %j',
    (answer) => {
      expect(() => V2.readPage(answer)).toThrow(
        expect.objectContaining({ code: 'lease.unavailable' }),
      );
    },
  );
});

describe('a pod of v1', () => {
  test('as it was seen', () => {
    expect(V1.readMachine(POD_V1)).toMatchObject({
      state: 'running',
      ssh: { host: '100.65.0.119', port: 10_341, user: 'root' },
      region: 'EU-RO-1',
      gpuType: 'NVIDIA L40S',
      gpuCount: 2,
      pricePerHour: 0.74,
      createdAt: Date.UTC(2026, 7, 20, 6, 16, 19, 436),
    });
  });

  test('as its specification has it', () => {
    const { gpuCount: _, createdAt: __, ...rest } = POD_V1;
    const gpu = { id: 'NVIDIA L4', count: 4 };
    const pod = {
      ...rest,
      machine: {},
      gpu,
      costPerHr: '0.74',
      publicIp: null,
      portMappings: null,
    };
    expect(V1.readMachine(pod)).toMatchObject({
      state: 'booting',
      ssh: null,
      region: '',
      gpuType: 'NVIDIA L4',
      gpuCount: 4,
      pricePerHour: 0.74,
      createdAt: null,
      reason: 'RUNNING: Rented by User: Thu Aug 20 2026',
    });
  });

  test.for([
    ['EXITED', 'stopping'],
    ['TERMINATED', 'gone'],
    ['PAUSED', 'booting'],
  ] as const)('%s is %s', ([desiredStatus, state]) => {
    expect(V1.readMachine({ ...POD_V1, desiredStatus })).toMatchObject({ state, ssh: null });
  });

  test.for([{}, { pods: [] }, null, undefined, 'x'])('no list: %j', (answer) => {
    expect(() => V1.readPage(answer)).toThrow(
      expect.objectContaining({ code: 'lease.unavailable' }),
    );
  });
});

describe.for<[string, Dialect, Record<string, unknown>, readonly string[]]>([
  ['v2', V2, POD_V2, ['id', 'name', 'status', 'gpu', 'ssh', 'cost', 'dataCenterId', 'createdAt']],
  ['v1', V1, POD_V1, ['id', 'name', 'desiredStatus', 'costPerHr']],
])('%s', ([, dialect, pod, needed]) => {
  test.for(needed)('a pod without %s is refused by name', (key) => {
    const { [key]: _, ...rest } = pod;
    expect(() => dialect.readMachine(rest)).toThrow(
      expect.objectContaining({
        kind: 'Transient',
        code: 'lease.unavailable',
        message: expect.stringContaining(key),
      }),
    );
  });

  test('env and the start script are kept nowhere', () => {
    const raw = JSON.stringify(dialect.readMachine(pod).raw);
    expect(raw).not.toContain('c2VjcmV0');
    expect(raw).not.toContain('sshd');
    expect(raw).toContain('vllm/vllm-openai');
  });
});

test('times that are none', () => {
  expect(['', 'yesterday', '2026-13-45T00:00:00Z'].map(readTime)).toEqual([null, null, null]);
});
