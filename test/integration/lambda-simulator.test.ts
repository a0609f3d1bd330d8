import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startLambda } from '../simulators/lambda/simulator.ts';
import { parseUserData } from '../simulators/machines/cloud-init.ts';
import { parseEngineArgs } from '../simulators/machines/engine-args.ts';
import { createKeyPair, createSshClient } from '../simulators/machines/ssh-client.ts';
import type { SshClient, SshTarget } from '../simulators/machines/ssh-client.ts';
import { until } from '../support/until.ts';

/** The fields of an instance that these tests read. */
interface InstanceView {
  id: string;
  name: string;
  ip?: string;
  status: string;
  file_system_names: string[];
  tags: object[];
  actions: { terminate: { available: boolean; reason_code?: string } };
}

interface Answer<T> {
  status: number;
  data: T;
  error: { code: string; message: string; suggestion?: string };
}

async function call<T = InstanceView>(
  base: string,
  method: string,
  path: string,
  body?: unknown,
  authorization = 'Bearer lambda-key',
): Promise<Answer<T>> {
  const answer = await fetch(`${base}/api/v1${path}`, {
    method,
    headers: { authorization },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const text = await answer.text();
  const parsed: object = text.startsWith('{') ? (JSON.parse(text) as object) : {};
  return { status: answer.status, ...parsed } as Answer<T>;
}

const launchBody = {
  region_name: 'us-west-1',
  instance_type_name: 'gpu_1x_h100_pcie',
  ssh_key_names: ['default'],
};

const FREE = { request_interval_ms: 0, launch_interval_ms: 0, boot_ms: [0, 0] };

async function launched(base: string, more: object = {}): Promise<string> {
  const body = { ...launchBody, ...more };
  const answer = await call<{ instance_ids: string[] }>(
    base,
    'POST',
    '/instance-operations/launch',
    body,
  );
  const [id] = answer.status === 200 ? answer.data.instance_ids : [];
  if (id === undefined) throw new Error(JSON.stringify(answer));
  return id;
}

let ssh: SshClient;
beforeAll(async () => {
  ssh = await createSshClient();
});
afterAll(() => ssh[Symbol.dispose]());

async function reachable(base: string, id: string, hostKey?: string): Promise<SshTarget> {
  const active = await until(
    async () => {
      const { data } = await call(base, 'GET', `/instances/${id}`);
      return data.status === 'active' && data.ip !== undefined ? data.ip : undefined;
    },
    { what: 'active' },
  );
  return { host: active, user: 'ubuntu', ...(hostKey === undefined ? {} : { hostKey }) };
}

function indent(text: string, by: string): string {
  return text
    .trimEnd()
    .split('\n')
    .map((line) => by + line)
    .join('\n');
}

describe('an instance is a machine', () => {
  test('cloud-init pins its host key, docker runs an engine on its loopback, terminate ends all', async () => {
    await using cloud = await startLambda({ knobs: FREE, sshKeys: [ssh.publicKey] });
    const { privateKey, publicKey } = await createKeyPair();
    const userData = `#cloud-config
ssh_deletekeys: true
ssh_keys:
  ed25519_private: |
${indent(privateKey, '    ')}
  ed25519_public: "${publicKey}"
runcmd:
  - [mkdir, -p, /opt/sluice]
  - echo "ran as $(whoami)" >/opt/sluice/who
`;
    const tags = [{ key: 'sluice:lease', value: 'a1' }];
    const id = await launched(cloud.url, { name: 'one', user_data: userData, tags });
    const target = await reachable(cloud.url, id, publicKey);
    const list = await call<InstanceView[]>(cloud.url, 'GET', '/instances');
    expect(list.data).toMatchObject([{ id, name: 'one', tags, status: 'active' }]);

    const look = await ssh.run(
      target,
      `cloud-init status --wait; cat /opt/sluice/who; whoami; nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits; docker ps; sudo docker ps -q`,
    );
    expect(look.stdout).toBe('status: done\nran as root\nubuntu\nNVIDIA H100 PCIe, 81559\n');
    expect(look.stderr).toContain(
      'permission denied while trying to connect to the Docker daemon socket',
    );

    await ssh.run(target, 'sudo sh -c "umask 077; cat >/opt/sluice/env"', 'VLLM_API_KEY=secret\n');
    const run =
      'sudo docker run -d --name engine --gpus all --ipc=host --restart=no -p 127.0.0.1:8000:8000 -v /opt/cache:/root/.cache/huggingface --env-file /opt/sluice/env vllm/vllm-openai:v0.29.0 org/m --host 0.0.0.0 --served-model-name m';
    expect((await ssh.run(target, run)).stdout).toMatch(/^[0-9a-f]{64}\n$/);
    expect(await ssh.run(target, run)).toMatchObject({
      code: 125,
      stderr: expect.stringContaining('Conflict. The container name "/engine" is already in use'),
    });
    await using tunnel = await ssh.forward(target, 8000);
    await until(
      async () =>
        fetch(`${tunnel.url}/health`).then(
          ({ ok }) => ok,
          () => false,
        ),
      { what: 'health' },
    );
    const authorization = { authorization: 'Bearer secret' };
    const models = await fetch(`${tunnel.url}/v1/models`, { headers: authorization });
    expect(await models.json()).toMatchObject({ data: [{ id: 'm' }] });
    const state = `sudo docker inspect -f '{{.State.Status}} {{json .State.Running}}' engine; sudo docker logs --tail 1 engine; sudo docker stop engine; sudo docker inspect -f '{{.State.ExitCode}}' engine; sudo docker rm engine; sudo docker ps -aq`;
    expect((await ssh.run(target, state)).stdout).toBe(
      'running true\nINFO:     Application startup complete.\nengine\n0\nengine\n',
    );

    const ended = await call<{ terminated_instances: InstanceView[] }>(
      cloud.url,
      'POST',
      '/instance-operations/terminate',
      { instance_ids: [id] },
    );
    expect(ended.data.terminated_instances).toMatchObject([{ id, status: 'terminating' }]);
    expect(await call(cloud.url, 'GET', `/instances/${id}`)).toMatchObject({
      status: 404,
      error: { code: 'global/object-does-not-exist' },
    });
    expect((await ssh.run({ ...target, patience: 1 }, 'true')).code).toBe(255);
    const { totals, machines } = await cloud.control.ledger();
    expect(totals).toMatchObject({ created: 1, alive: 0, billed_seconds: 60 });
    expect(totals.cost_usd).toBeCloseTo(2.49 / 60, 6);
    expect(machines[0]?.request).toMatchObject({ name: 'one', user_data: '[not shown]' });
  });

  test('a host without the NVIDIA runtime, with a small disk, and keys that come late', async () => {
    const machine = { nvidia_runtime: false, disk_gb: 1, cloud_init_ms: 300 };
    const overrides = [{ name: '^late$', machine: { auth_delay_ms: 60_000 } }];
    const knobs = { ...FREE, active_early: true, machine, overrides };
    await using cloud = await startLambda({ knobs, sshKeys: [ssh.publicKey] });
    const late = await reachable(cloud.url, await launched(cloud.url, { name: 'late' }));
    const target = await reachable(cloud.url, await launched(cloud.url));
    await until(async () => (await ssh.run(target, 'true')).code === 0, { what: 'an open door' });
    const closed = async () => (await ssh.run(late, 'true')).stderr;
    await until(async () => (await closed()).includes('Permission denied'));
    const run =
      'sudo docker run --rm --gpus all --entrypoint python3 vllm/vllm-openai:v0.29.0 -c "import torch; torch.zeros(1).cuda()"';
    expect((await ssh.run(target, run)).stderr).toContain('could not select device driver');
    const mend =
      'cloud-init status --wait; sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker';
    const size = "df -BM --output=size / | tail -1 | tr -d ' '";
    const mended = await ssh.run(target, `${mend} && ${run}; echo $?; ${size}`);
    expect(mended.stdout).toBe('status: done\n0\n1024M\n');
  });

  test("what a container binds to its own loopback is not the host's, and a crash is in its log", async () => {
    await using cloud = await startLambda({
      knobs: { ...FREE, machine: { engine: { crash: 'oom' } } },
      sshKeys: [ssh.publicKey],
    });
    const id = await launched(cloud.url);
    const target = await reachable(cloud.url, id);
    const run = (name: string, host: string) =>
      `sudo docker run -d --name ${name} --gpus all -p 127.0.0.1:8000:8000 vllm/vllm-openai:v0.29.0 org/m --host ${host}`;
    const crash = await ssh.run(
      target,
      `${run('sick', '0.0.0.0')} >/dev/null; sudo docker wait sick; sudo docker logs sick`,
    );
    expect(crash.stdout).toContain('1\n');
    expect(crash.stderr + crash.stdout).toContain('CUDA out of memory');
    await cloud.control.act(id, 'engine', {});
    const hidden = await ssh.run(
      target,
      `${run('hidden', '127.0.0.1')} >/dev/null; until sudo docker logs hidden | grep -q 'startup complete'; do sleep 0.1; done; curl -s 127.0.0.1:8000/health; echo $?`,
    );
    expect(hidden.stdout).toBe('7\n');
  });

  test('a file system outlives its instances and saves the download', async () => {
    await using cloud = await startLambda({
      knobs: { ...FREE, machine: { engine: { download_ms: 300 } } },
      sshKeys: [ssh.publicKey],
    });
    const system = await call(cloud.url, 'POST', '/filesystems', {
      name: 'weights',
      region: 'us-west-1',
    });
    const wrong = { ...launchBody, region_name: 'us-east-1', file_system_names: ['weights'] };
    expect((await call(cloud.url, 'POST', '/instance-operations/launch', wrong)).error.code).toBe(
      'instance-operations/launch/file-system-in-wrong-region',
    );
    const serve =
      'sudo docker run -d --name e --gpus all --network host -v /lambda/nfs/weights:/root/.cache/huggingface vllm/vllm-openai:v0.29.0 org/m; until curl -sf 127.0.0.1:8000/health; do sleep 0.1; done';
    const cached: unknown[] = [];
    for (const name of ['first', 'second']) {
      const id = await launched(cloud.url, { name, file_system_names: ['weights'] });
      const target = await reachable(cloud.url, id);
      await ssh.run(target, serve);
      const entry = (await cloud.control.inventory()).find((one) => one.id === id);
      cached.push(entry?.engines[0]?.weights_cached);
      // Bound to all addresses, and yet only SSH is let in from outside.
      const aside = fetch(`http://${target.host}:8000/health`, {
        signal: AbortSignal.timeout(300),
      });
      await expect(aside).rejects.toThrow('timeout');
      const inUse = await call(cloud.url, 'DELETE', `/filesystems/${system.data.id}`);
      expect(inUse.error.code).toBe('filesystems/filesystem-in-use');
      await call(cloud.url, 'POST', '/instance-operations/terminate', { instance_ids: [id] });
    }
    expect(cached).toEqual([false, true]);
  });

  test('it may be frozen, change its address, lose its power unnoticed, or turn unhealthy', async () => {
    await using cloud = await startLambda({ knobs: FREE, sshKeys: [ssh.publicKey] });
    const id = await launched(cloud.url);
    const target = await reachable(cloud.url, id);
    await cloud.control.act(id, 'freeze');
    const waits = ssh.run(target, 'true');
    const silence = new Promise((resolve) => setTimeout(resolve, 500, 'silence'));
    expect(await Promise.race([waits, silence])).toBe('silence');
    await cloud.control.act(id, 'thaw');
    expect((await waits).code).toBe(0);
    const { address } = (await cloud.control.act(id, 'change_address')) as { address: string };
    expect((await call(cloud.url, 'GET', `/instances/${id}`)).data.ip).toBe(address);
    expect((await ssh.run({ ...target, host: address }, 'true')).code).toBe(0);
    await cloud.control.act(id, 'power_off');
    expect((await call(cloud.url, 'GET', `/instances/${id}`)).data.status).toBe('active');
    expect((await ssh.run({ ...target, host: address, patience: 1 }, 'true')).code).toBe(255);
    await cloud.control.act(id, 'status', { status: 'unhealthy' });
    expect((await call(cloud.url, 'GET', `/instances/${id}`)).data.status).toBe('unhealthy');
    expect(await cloud.control.inventory()).toHaveLength(1);
  });
});

describe('the API without machines', () => {
  test('keys by bearer and by basic, wrong ones 401', async () => {
    await using cloud = await startLambda({ machines: 'none', knobs: FREE });
    const basic = `Basic ${Buffer.from('lambda-key:').toString('base64')}`;
    const get = async (authorization: string) =>
      call(cloud.url, 'GET', '/regions', undefined, authorization);
    for (const good of ['Bearer lambda-key', basic, 'Basic lambda-key'])
      expect((await get(good)).status).toBe(200);
    for (const bad of ['', 'Bearer no', 'Basic bm86']) {
      expect(await get(bad)).toMatchObject({
        status: 401,
        error: {
          code: 'global/invalid-api-key',
          message: 'API key was invalid, expired, or deleted.',
        },
      });
    }
  });

  test('a request a second and a launch every so often, or 429', async () => {
    await using cloud = await startLambda({
      machines: 'none',
      knobs: { request_interval_ms: 60_000, launch_interval_ms: 400 },
      sshKeys: ['ssh-ed25519 AAAA a'],
    });
    const ask = async () => call(cloud.url, 'GET', '/instances');
    expect((await ask()).status).toBe(200);
    expect(await ask()).toMatchObject({ status: 429, error: { code: 'global/too-many-requests' } });
    await cloud.control.setKnobs({ request_interval_ms: 30 });
    const launch = async () =>
      (await call(cloud.url, 'POST', '/instance-operations/launch', launchBody)).status;
    await until(async () => (await launch()) === 200, { everyMs: 70 });
    const began = Date.now();
    await until(async () => (await launch()) === 200, { everyMs: 70 });
    expect(Date.now() - began).toBeGreaterThan(300);
    await cloud.control.setKnobs({ rate_limit_body: 'html', request_interval_ms: 60_000 });
    expect(await ask()).toMatchObject({ status: 429 });
  });

  test.for([
    ['no region', { region_name: undefined }, 400, 'global/invalid-parameters'],
    ['two keys', { ssh_key_names: ['default', 'default'] }, 400, 'global/invalid-parameters'],
    ['a long name', { name: 'x'.repeat(65) }, 400, 'global/invalid-parameters'],
    [
      'a tag with capitals',
      { tags: [{ key: 'Lease', value: 'x' }] },
      400,
      'global/invalid-parameters',
    ],
    [
      'a wrong mount point',
      { file_system_mounts: [{ mount_point: '/mnt', file_system_id: 'x' }] },
      400,
      'global/invalid-parameters',
    ],
    ['an unknown key', { ssh_key_names: ['nobody'] }, 404, 'global/object-does-not-exist'],
    ['an unknown type', { instance_type_name: 'gpu_1x_tpu' }, 404, 'global/object-does-not-exist'],
    [
      'an x86 image on arm',
      { instance_type_name: 'gpu_1x_gh200', image: { family: 'gpu-base-22-04' } },
      404,
      'global/object-does-not-exist',
    ],
    [
      'a type that is full',
      { instance_type_name: 'gpu_1x_a10' },
      400,
      'instance-operations/launch/insufficient-capacity',
    ],
  ] as const)('refuses %s', async ([, more, status, code]) => {
    const knobs = { ...FREE, capacity: { gpu_1x_a10: 0 } };
    await using cloud = await startLambda({
      machines: 'none',
      knobs,
      sshKeys: ['ssh-ed25519 AAAA a'],
    });
    const answer = await call(cloud.url, 'POST', '/instance-operations/launch', {
      ...launchBody,
      ...more,
    });
    expect(answer).toMatchObject({ status, error: { code } });
    expect(await cloud.control.inventory()).toEqual([]);
  });

  test('what it does not know it ignores, and types list the regions that have some', async () => {
    const knobs = { ...FREE, capacity: { gpu_1x_a10: { 'us-east-1': 1 }, gpu_1x_a100: 0 } };
    await using cloud = await startLambda({
      machines: 'none',
      knobs,
      sshKeys: ['ssh-ed25519 AAAA a'],
    });
    interface Types {
      [name: string]: {
        instance_type: object;
        regions_with_capacity_available: { name: string }[];
      };
    }
    const types = async () => (await call<Types>(cloud.url, 'GET', '/instance-types')).data;
    expect((await types())['gpu_1x_a10']).toMatchObject({
      instance_type: { price_cents_per_hour: 75, specs: { gpus: 1 } },
      regions_with_capacity_available: [{ name: 'us-east-1', description: 'Virginia, USA' }],
    });
    expect((await types())['gpu_1x_a100']?.regions_with_capacity_available).toEqual([]);
    await launched(cloud.url, {
      quantity: 1,
      instance_type_name: 'gpu_1x_a10',
      region_name: 'us-east-1',
    });
    expect((await types())['gpu_1x_a10']?.regions_with_capacity_available).toEqual([]);
    await cloud.control.setKnobs({ flicker: { period_ms: 3_600_000, share: 1 } });
    expect((await types())['gpu_8x_h100_sxm5']?.regions_with_capacity_available).toEqual([]);
  });

  test('ghosts, lost terminates, holds and unknowns', async () => {
    await using cloud = await startLambda({
      machines: 'none',
      knobs: FREE,
      sshKeys: ['ssh-ed25519 AAAA a'],
    });
    const end = async (...ids: string[]) =>
      call(cloud.url, 'POST', '/instance-operations/terminate', { instance_ids: ids });
    await cloud.control.setFaults([
      { kind: 'error_after', op: 'create', error: 'unavailable', count: 1 },
      { kind: 'lost', op: 'terminate', count: 1 },
    ]);
    await expect(launched(cloud.url, { name: 'ghost' })).rejects.toThrow(
      'provider/internal-unavailable',
    );
    const [ghost] = await cloud.control.inventory();
    const id = ghost?.id ?? '';
    expect((await end(id)).status).toBe(200);
    expect(await cloud.control.inventory()).toHaveLength(1);
    expect((await end(id, 'nobody')).error.code).toBe('global/object-does-not-exist');
    expect(await cloud.control.inventory()).toHaveLength(1);
    await cloud.control.setKnobs({
      terminate_ms: 300,
      terminating_is_unknown: true,
      terminated_shown_ms: 60_000,
    });
    expect((await end(id)).status).toBe(200);
    expect((await end(id)).error.code).toBe('global/unknown');
    await until(
      async () => (await call(cloud.url, 'GET', `/instances/${id}`)).data.status === 'terminated',
    );
    expect((await call<object[]>(cloud.url, 'GET', '/instances')).data).toEqual([]);
    await cloud.control.setKnobs({ boot_ms: [60_000, 60_000], booting_holds: true });
    const booting = await launched(cloud.url);
    expect((await call(cloud.url, 'GET', `/instances/${booting}`)).data).toMatchObject({
      status: 'booting',
      actions: { terminate: { available: false, reason_code: 'vm-has-not-launched' } },
    });
    expect((await end(booting)).error.code).toBe('global/conflict');
    await cloud.control.setKnobs({ quota: 1 });
    expect(
      (await call(cloud.url, 'POST', '/instance-operations/launch', launchBody)).error.code,
    ).toBe('global/quota-exceeded');
  });
});

describe('what a machine reads', () => {
  test('an engine refuses a flag that it does not know and a value that makes no sense', () => {
    const parse = (line: string) => parseEngineArgs('vllm', line.split(' '));
    expect(
      parse(
        'm -tp 2 --max_num_seqs=64 --served-model-name a b --enable-prefix-caching --no-enable-chunked-prefill',
      ),
    ).toMatchObject({
      model: 'm',
      servedNames: ['a', 'b'],
      worldSize: 2,
      maxNumSeqs: 64,
      port: 8000,
    });
    expect(() => parse('m --bogus')).toThrow('unrecognized arguments: --bogus');
    expect(() => parse('m --quantization bf16')).toThrow('Unknown quantization method: bf16');
    expect(() => parse('m --kv-cache-dtype fp7')).toThrow("invalid choice: 'fp7'");
    expect(() => parse('m --port')).toThrow('expected one argument');
    expect(() => parse('m --port eight')).toThrow("invalid int value: 'eight'");
    expect(() => parseEngineArgs('sglang', ['--model', 'm', '--enable-expert-parallel'])).toThrow(
      'unrecognized',
    );
  });

  test('user data: blocks, lists, quotes and JSON; nonsense is an error and not a boot', () => {
    const yaml = `#cloud-config
# what the machine gets
write_files:
- path: /opt/a
  permissions: '0600'
  content: |
    one
      two
ssh_authorized_keys: ["ssh-ed25519 AAAA a"]
runcmd:
  - 'echo "it''s"'
  - [sh, -c, "exit 0"]
`;
    expect(parseUserData(yaml)).toMatchObject({
      authorizedKeys: ['ssh-ed25519 AAAA a'],
      files: [{ path: '/opt/a', content: 'one\n  two\n', mode: '0600' }],
      commands: [`echo "it's"`, `'sh' '-c' 'exit 0'`],
      error: undefined,
    });
    const json = `#cloud-config\n${JSON.stringify({ ssh_keys: { ed25519_private: 'k' } })}`;
    expect(parseUserData(json).hostKeys).toEqual({ ssh_host_ed25519_key: 'k\n' });
    expect(parseUserData('#cloud-config\nruncmd').error).toContain('key: value');
    expect(parseUserData('#!/bin/sh\ntrue').script).toBe('#!/bin/sh\ntrue');
  });
});
