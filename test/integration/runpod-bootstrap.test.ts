import { createHash } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { LeaseManager, Machine, MachineWish } from '../../src/resources/lease-contract.ts';
import { BOOTSTRAP } from '../../src/resources/runpod/bootstrap.ts';
import { createRunPod } from '../../src/resources/runpod/index.ts';
import type { CloudSimulator } from '../simulators/cloud/start.ts';
import { createKeyPair, createSshClient } from '../simulators/machines/ssh-client.ts';
import type { SshClient, SshTarget } from '../simulators/machines/ssh-client.ts';
import { call, FAST } from '../simulators/runpod/asking.ts';
import { startRunPod } from '../simulators/runpod/simulator.ts';
import { until } from '../support/until.ts';

let ssh: SshClient;
let stranger: SshClient;
beforeAll(async () => {
  ssh = await createSshClient();
  stranger = await createSshClient();
});
afterAll(() => {
  ssh[Symbol.dispose]();
  stranger[Symbol.dispose]();
});

function managerOf(cloud: CloudSimulator, version: 'v1' | 'v2' = 'v2'): LeaseManager {
  const account = { cloudType: 'SECURE', dataCenters: [], apiVersion: null } as const;
  const settings = { ...account, apiKey: 'runpod-key', baseUrl: `${cloud.url}/${version}` };
  return createRunPod(settings, { pace: async () => {} });
}

function wishOf(hostKey: string, changes: Partial<MachineWish> = {}): MachineWish {
  return {
    name: 'sl-t-one',
    offer: '1x NVIDIA L40S',
    gpuCount: 1,
    regions: [],
    interruptible: false,
    maxPricePerHour: null,
    image: 'vllm/vllm-openai:v0.29.0',
    diskGb: 40,
    authorizedKey: ssh.publicKey,
    hostKey,
    modelCache: null,
    sendBefore: Date.now() + 60_000,
    ...changes,
  };
}

async function addressOf(manager: LeaseManager, { id }: Machine): Promise<SshTarget> {
  const patient = { timeoutMs: 60_000, everyMs: 100, what: 'an address of sshd' };
  return until(async () => (await manager.describe(id))?.ssh, patient);
}

/** Logs in once sshd is up; only a machine that proves to have `hostKey` will do. */
async function loggedIn(target: SshTarget, hostKey: string): Promise<SshTarget> {
  const pinned = { ...target, hostKey };
  const patient = { timeoutMs: 60_000, everyMs: 100, what: 'ssh with the pinned key' };
  await until(async () => (await ssh.run(pinned, 'true')).code === 0, patient);
  return pinned;
}

describe('the start command of a pod', { timeout: 90_000 }, () => {
  test.for(['v2', 'v1'] as const)(
    '%s: brings up sshd with the key that was pinned',
    async (version) => {
      await using cloud = await startRunPod({ knobs: FAST });
      const manager = managerOf(cloud, version);
      const host = await createKeyPair();
      const machine = await manager.create(wishOf(host.privateKey));
      const target = await loggedIn(await addressOf(manager, machine), host.publicKey);
      expect((await ssh.run(target, 'hostname; id -un; nvidia-smi -L | wc -l')).stdout).toBe(
        `${machine.id}\nroot\n1\n`,
      );

      const other = await createKeyPair();
      const refused = await ssh.run({ ...target, hostKey: other.publicKey }, 'true');
      expect(refused).toMatchObject({ code: 255, stderr: expect.stringContaining('Host key') });
      expect((await stranger.run(target, 'true')).stderr).toContain(
        'Permission denied (publickey)',
      );
      // Only one key, so that no client can be made to take another.
      const keys = await ssh.run(target, 'ls /etc/ssh/ssh_host_*; stat -c %a /etc/ssh/ssh_host_*');
      expect(keys.stdout).toBe('/etc/ssh/ssh_host_ed25519_key\n600\n');
      const raw = JSON.stringify((await manager.describe(machine.id))?.raw);
      const digest = createHash('sha256').update(host.privateKey).digest('hex');
      const there = await ssh.run(target, 'sha256sum </etc/ssh/ssh_host_ed25519_key');
      expect(there.stdout).toContain(digest);
      expect(raw).not.toContain(Buffer.from(host.privateKey).toString('base64').slice(0, 60));
    },
  );

  test('keeps the container up when sshd dies, and a second run of it changes nothing', async () => {
    await using cloud = await startRunPod({ knobs: FAST });
    const manager = managerOf(cloud);
    const host = await createKeyPair();
    const machine = await manager.create(wishOf(host.privateKey));
    const target = await loggedIn(await addressOf(manager, machine), host.publicKey);
    await ssh.run(target, 'setsid sleep 300 >/dev/null 2>&1 </dev/null &');
    const before = await ssh.run(target, 'cat /run/sshd.pid');
    await cloud.control.act(machine.id, 'exec', { command: 'kill -KILL $(cat /run/sshd.pid)' });
    await until(
      async () => {
        const { stdout } = await ssh.run(target, 'cat /run/sshd.pid; pgrep -x sleep');
        const [pid] = stdout.split('\n');
        return pid !== '' && pid !== before.stdout.trim() && stdout.trim().includes('\n');
      },
      { timeoutMs: 60_000, everyMs: 200, what: 'a new sshd beside what ran on' },
    );
    expect((await manager.describe(machine.id))?.state).toBe('running');

    const look =
      'cd /etc/ssh && sha256sum ssh_host_ed25519_key sluice_* /root/.ssh/environment /etc/shadow; ls -la /root/.ssh | wc -l';
    const once = await ssh.run(target, look);
    // As when the container is started again on the same disk; its sshd finds the port taken and is tried again.
    const again = `env $(tr '\\0' '\\n' </proc/1/environ | grep -a '^SLUICE_HOST_KEY=\\|^HOME=\\|^PATH=') PUBLIC_KEY="$(cat /etc/ssh/sluice_authorized_keys)" timeout 3 sh -s`;
    await ssh.run(target, again, BOOTSTRAP);
    expect((await ssh.run(target, look)).stdout).toBe(once.stdout);
    expect((await ssh.run(target, 'true')).code).toBe(0);
  });

  test('lets nobody in whom the image would let in, and gives sessions the paths of the image', async () => {
    await using cloud = await startRunPod({ knobs: FAST });
    const volume = { name: 'weights', size: 100, dataCenter: 'EU-RO-1' };
    await call(cloud.url, 'POST', '/v2/network-volumes', volume);
    // RunPod's own images have sshd, and keys of the account come in by the environment.
    const host = await createKeyPair();
    const wish = wishOf(host.privateKey, { image: 'runpod/pytorch:1.0.2', modelCache: 'weights' });
    const manager = managerOf(cloud);
    const machine = await manager.create(wish);
    const target = await loggedIn(await addressOf(manager, machine), host.publicKey);
    await ssh.run(target, 'cat >>/root/.ssh/authorized_keys', `${stranger.publicKey}\n`);
    expect((await stranger.run(target, 'true')).code).toBe(255);
    const env = await ssh.run(target, 'echo $HF_HOME; env | grep -c "HOST_KEY\\|RUNPOD_API_KEY"');
    expect(env.stdout).toBe('/workspace/huggingface\n0\n');
    await ssh.run(target, 'mkdir -p $HF_HOME; echo kept >$HF_HOME/note');
    await manager.destroy(machine.id);
    const next = await createKeyPair();
    const second = await manager.create({ ...wish, name: 'sl-t-two', hostKey: next.privateKey });
    const there = await loggedIn(await addressOf(manager, second), next.publicKey);
    expect((await ssh.run(there, 'cat $HF_HOME/note')).stdout).toBe('kept\n');
    expect(second.region).toBe('EU-RO-1');
  });

  test('waits for a mirror that is away instead of ending the container', async () => {
    await using cloud = await startRunPod({
      knobs: { ...FAST, machine: { apt_mirrors: false } },
    });
    const manager = managerOf(cloud);
    const host = await createKeyPair();
    const machine = await manager.create(wishOf(host.privateKey));
    await addressOf(manager, machine);
    const says = async () =>
      cloud.control.act(machine.id, 'exec', { command: 'cat /sim/container.log' });
    await until(async () => JSON.stringify(await says()).includes('trying again'), {
      timeoutMs: 30_000,
      what: 'the reason in the log',
    });
    expect((await manager.describe(machine.id))?.state).toBe('running');
  });
});
