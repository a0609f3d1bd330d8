import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { connectControl } from '../simulators/cloud/control.ts';
import { createKeyPair, createSshClient } from '../simulators/machines/ssh-client.ts';
import type { SshClient, SshTarget } from '../simulators/machines/ssh-client.ts';
import { runProgram } from '../simulators/machines/network.ts';
import { startRunPod } from '../simulators/runpod/simulator.ts';
import { call, FAST, H100, podBody } from '../simulators/runpod/asking.ts';
import { until } from '../support/until.ts';

const BOOTSTRAP = `set -e
[ -x /usr/sbin/sshd ] || { apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y openssh-server; }
mkdir -p /run/sshd ~/.ssh; chmod 700 ~/.ssh
printf '%s\\n' "$PUBLIC_KEY" >>~/.ssh/authorized_keys; chmod 600 ~/.ssh/authorized_keys
[ -z "$HOST_KEY" ] || { umask 077; printf '%s\\n' "$HOST_KEY" >/etc/ssh/ssh_host_ed25519_key; rm -f /etc/ssh/ssh_host_*.pub; }
exec /usr/sbin/sshd -D -e -o HostKey=/etc/ssh/ssh_host_ed25519_key`;

let ssh: SshClient;
beforeAll(async () => {
  ssh = await createSshClient();
});
afterAll(() => ssh[Symbol.dispose]());

function bootable(
  name: string,
  env: Record<string, string> = {},
  more: Record<string, unknown> = {},
) {
  return podBody(name, {
    entrypoint: ['/bin/bash', '-lc'],
    cmd: [BOOTSTRAP],
    env: { PUBLIC_KEY: ssh.publicKey, ...env },
    ...more,
  });
}

async function reachable(url: string, id: string): Promise<SshTarget> {
  const direct = await until(
    async () => (await call(url, 'GET', `/v2/pods/${id}`)).body.ssh.direct,
    {
      what: 'ssh.direct',
    },
  );
  const target = { host: direct.host, port: direct.port, user: 'root' };
  await until(async () => (await ssh.run(target, 'true')).code === 0, {
    what: 'ssh',
    everyMs: 100,
  });
  return target;
}

describe('a pod is a machine', () => {
  test('it boots by its start command, runs an engine behind ssh, and ends with all that it has', async () => {
    await using cloud = await startRunPod({ knobs: FAST });
    const { privateKey, publicKey } = await createKeyPair();
    const created = await call(
      cloud.url,
      'POST',
      '/v2/pods',
      bootable('one', { HOST_KEY: privateKey }, { ports: ['22/tcp', '8000/http'] }),
    );
    expect(created).toMatchObject({
      status: 201,
      body: { status: 'RUNNING', runtime: null, ssh: { direct: null } },
    });
    const { id } = created.body;
    const target = { ...(await reachable(cloud.url, id)), hostKey: publicKey };
    expect(target.port).not.toBe(22);

    const query = 'nvidia-smi --query-gpu=index,name,memory.total --format=csv,noheader';
    const gpus = await ssh.run(
      target,
      `${query}; df -BG --output=size / | tail -1 | tr -d ' '; hostname`,
    );
    expect(gpus.stdout).toBe(`0, ${H100}, 81559 MiB\n120G\n${id}\n`);

    await ssh.run(target, 'umask 077; cat >/root/env', 'VLLM_API_KEY=secret\n');
    const start =
      'set -a; . /root/env; setsid nohup vllm serve org/m --host 127.0.0.1 --served-model-name m >/root/log 2>&1 </dev/null &';
    expect((await ssh.run(target, start)).code).toBe(0);
    await using tunnel = await ssh.forward(target, 8000);
    await until(
      async () =>
        fetch(`${tunnel.url}/health`).then(
          ({ ok }) => ok,
          () => false,
        ),
      { what: 'health' },
    );
    const models = (key: string) =>
      fetch(`${tunnel.url}/v1/models`, { headers: { authorization: `Bearer ${key}` } });
    expect((await models('wrong')).status).toBe(401);
    expect(await (await models('secret')).json()).toMatchObject({ data: [{ id: 'm' }] });
    const logs = await fetch(`${cloud.url}/v2/pods/${id}/logs?tail=5`, {
      headers: { authorization: 'Bearer runpod-key' },
    });
    const first = await logs.body?.getReader().read();
    expect(new TextDecoder().decode(first?.value)).toMatch(
      /^id: .*\ndata: \{"ts":.*"source":"container","line":"/,
    );

    // The public proxy reaches nothing that listens on the pod's loopback only.
    expect((await fetch(`${cloud.url}/_proxy/${id}-8000/health`)).status).toBe(502);
    const body = JSON.stringify({ model: 'm', messages: [{ role: 'user', content: 'ECHO: hi' }] });
    const headers = { authorization: 'Bearer secret', 'content-type': 'application/json' };
    expect(
      (await fetch(`${tunnel.url}/v1/chat/completions`, { method: 'POST', headers, body })).status,
    ).toBe(200);
    await until(async () => (await cloud.control.ledger()).machines[0]?.engines[0]?.requests === 1);

    expect((await call(cloud.url, 'DELETE', `/v2/pods/${id}`)).status).toBe(204);
    await until(async () => (await ssh.run(target, 'true')).code !== 0, {
      what: 'the end of sshd',
    });
    expect((await call(cloud.url, 'GET', `/v2/pods/${id}`)).status).toBe(404);
    expect(await cloud.control.inventory()).toEqual([]);
    const { machines, totals } = await cloud.control.ledger();
    expect(totals).toMatchObject({ created: 1, alive: 0, created_twice: 0 });
    const [pod] = machines;
    expect(pod).toMatchObject({ name: 'one', end_reason: 'terminated', usd_per_hour: 3.99 });
    expect(pod?.cost_usd).toBeCloseTo(((pod?.billed_seconds ?? 0) / 3600) * 3.99, 6);
    expect(pod?.idle_ms.ready_to_engine).toBeGreaterThan(0);
    expect(pod?.idle_ms.healthy_to_first_request).toBeGreaterThan(0);
    expect(pod?.idle_ms.last_answer_to_terminate).toBeGreaterThan(0);
  });

  test('two have a loopback each, a crash at load leaves its traceback, and a wrong start command shows', async () => {
    await using cloud = await startRunPod({
      knobs: {
        ...FAST,
        overrides: [
          { name: '^sick$', machine: { engine: { crash: 'oom' }, gpu_fault: 'cuda802' } },
        ],
      },
    });
    const start = async (body: object) => (await call(cloud.url, 'POST', '/v2/pods', body)).body.id;
    const ids = await Promise.all([
      start(bootable('well')),
      start(bootable('sick')),
      start(podBody('bare')),
    ]);
    const [well, sick] = await Promise.all(
      ids.slice(0, 2).map(async (id) => reachable(cloud.url, id)),
    );
    if (well === undefined || sick === undefined) throw new Error('two pods were asked for');
    const serve = (name: string) =>
      `setsid vllm serve org/${name} --host 127.0.0.1 >/root/log 2>&1 </dev/null & sleep 0.1; for i in $(seq 50); do curl -sf 127.0.0.1:8000/v1/models && exit; kill -0 $! || break; sleep 0.2; done; cat /root/log`;
    const [good, bad] = await Promise.all([ssh.run(well, serve('a')), ssh.run(sick, serve('b'))]);
    expect(good.stdout).toContain('"id":"org/a"');
    expect(bad.stdout).toContain('torch.OutOfMemoryError: CUDA out of memory');
    const preflight = 'python3 -c "import torch; torch.zeros(1).cuda()"';
    expect((await ssh.run(well, preflight)).code).toBe(0);
    expect(await ssh.run(sick, preflight)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('Error 802'),
    });
    expect((await ssh.run(sick, 'nvidia-smi -L')).code).toBe(0);
    const tooWide = await ssh.run(well, 'vllm serve m --tensor-parallel-size 2');
    expect(tooWide).toMatchObject({ code: 1, stderr: expect.stringContaining('World size (2)') });
    // Without an entrypoint of ours the image starts its engine and no sshd: the port never answers.
    const bare = await call(cloud.url, 'GET', `/v2/pods/${ids[2] ?? ''}`);
    expect(bare.body.status).toBe('RUNNING');
    const entry = (await cloud.control.ledger()).machines.find(({ name }) => name === 'bare');
    expect(entry?.ready_at).toBeNull();
  });

  test('it can be cut off, frozen, given another key, preempted, and vanish', async () => {
    await using cloud = await startRunPod({ knobs: FAST });
    const { privateKey, publicKey } = await createKeyPair();
    const body = bootable('one', { HOST_KEY: privateKey });
    const { id } = (await call(cloud.url, 'POST', '/v2/pods', body)).body;
    const target = { ...(await reachable(cloud.url, id)), hostKey: publicKey };

    const session = ssh.run(target, 'echo here; sleep 30');
    await until(async () => (await ssh.run(target, 'pgrep -f "^sleep 30"')).code === 0);
    await cloud.control.act(id, 'cut_ssh');
    expect((await session).code).toBe(255);

    await cloud.control.act(id, 'freeze');
    const waits = ssh.run(target, 'true');
    expect(
      await Promise.race([waits, new Promise((resolve) => setTimeout(resolve, 500, 'silence'))]),
    ).toBe('silence');
    await cloud.control.act(id, 'thaw');
    expect((await waits).code).toBe(0);

    await cloud.control.act(id, 'change_host_key');
    await until(
      async () => (await ssh.run({ ...target, hostKey: publicKey }, 'true')).code === 255,
    );
    await cloud.control.act(id, 'status', { status: 'ERROR' });
    expect((await call(cloud.url, 'GET', `/v2/pods/${id}`)).body.status).toBe('ERROR');
    await cloud.control.act(id, 'status', { status: null });
    await cloud.control.act(id, 'preempt');
    expect((await call(cloud.url, 'GET', `/v2/pods/${id}`)).body).toMatchObject({
      status: 'EXITED',
      actions: ['start', 'terminate'],
      runtime: null,
      cost: 3.99,
    });
    await cloud.control.act(id, 'vanish');
    expect((await call(cloud.url, 'GET', `/v2/pods/${id}`)).status).toBe(404);
    expect((await cloud.control.ledger()).machines[0]?.end_reason).toBe('vanished');
  });

  test('a network volume outlives its pods', async () => {
    await using cloud = await startRunPod({ knobs: FAST });
    const volume = { name: 'weights', size: 100, dataCenter: 'EU-RO-1' };
    const { id: volumeId } = (await call(cloud.url, 'POST', '/v2/network-volumes', volume)).body;
    const mounts = { network: [{ volumeId, path: '/models' }] };
    for (const [name, command] of [
      ['a', 'echo kept >/models/note'],
      ['b', 'cat /models/note'],
    ] as const) {
      const pod = (await call(cloud.url, 'POST', '/v2/pods', bootable(name, {}, { mounts }))).body;
      expect(pod.dataCenterId).toBe('EU-RO-1');
      const { stdout } = await ssh.run(await reachable(cloud.url, pod.id), command);
      expect(stdout).toBe(name === 'b' ? 'kept\n' : '');
      await call(cloud.url, 'DELETE', `/v2/pods/${pod.id}`);
    }
  });

  test("keys of the account reach RunPod's own image, v1 boots by its own fields, SGLang runs as well", async () => {
    await using cloud = await startRunPod({ knobs: FAST });
    await call(cloud.url, 'PUT', '/v2/account/ssh-keys', { keys: [ssh.publicKey] });
    const own = podBody('own', { image: 'runpod/pytorch:1.0.2', startSsh: true });
    const target = await reachable(
      cloud.url,
      (await call(cloud.url, 'POST', '/v2/pods', own)).body.id,
    );
    const sglang =
      'setsid python3 -m sglang.launch_server --model-path org/s --host 127.0.0.1 --tp 1 >/root/log 2>&1 </dev/null & for i in $(seq 50); do curl -sf 127.0.0.1:30000/v1/models && exit; sleep 0.1; done; cat /root/log';
    expect((await ssh.run(target, sglang)).stdout).toContain('"id":"org/s"');

    const old = {
      name: 'old',
      imageName: 'vllm/vllm-openai:v0.29.0',
      gpuTypeIds: [H100],
      env: { PUBLIC_KEY: ssh.publicKey },
      dockerEntrypoint: ['/bin/bash', '-lc'],
      dockerStartCmd: [BOOTSTRAP],
    };
    const { id } = (await call(cloud.url, 'POST', '/v1/pods', old)).body;
    const view = await until(async () => {
      const { body } = await call(cloud.url, 'GET', `/v1/pods/${id}`);
      return body.portMappings === null ? undefined : body;
    });
    const there = { host: view.publicIp, port: view.portMappings?.['22'] ?? 0, user: 'root' };
    await until(async () => (await ssh.run(there, 'true')).code === 0, { everyMs: 100 });
    // What was set for process 1 is not set in a session.
    const env = 'tr "\\0" "\\n" </proc/1/environ | grep -c RUNPOD_; echo "[$RUNPOD_POD_ID]"';
    expect((await ssh.run(there, env)).stdout).toBe('5\n[]\n');
  });

  test('killed, a simulator leaves no process and no wire, and the next one sweeps its files', async () => {
    const program = new URL('../simulators/runpod.ts', import.meta.url).pathname;
    const knobs = JSON.stringify(FAST);
    const child = spawn(process.execPath, [program, '--until-stdin-closes', '--knobs', knobs], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    const lines = createInterface({ input: child.stdout });
    const [line] = (await once(lines, 'line')) as [string];
    const { listening: url } = JSON.parse(line) as { listening: string };
    const { id } = (await call(url, 'POST', '/v2/pods', bootable('orphan'))).body;
    await reachable(url, id);
    const control = connectControl(url);
    expect(await control.act(id, 'exec', { command: 'echo hi' })).toMatchObject({ stdout: 'hi\n' });
    const [entry] = await control.inventory();
    expect(entry).toMatchObject({ id, phase: 'up' });
    const processes = async () =>
      (await runProgram('pgrep', ['-f', `sluice-machines-${child.pid}-`])).stdout;
    expect(await processes()).not.toBe('');
    child.kill('SIGKILL');
    await once(child, 'close');
    await until(async () => (await processes()) === '', { what: 'the end of the machine' });
    await using next = await startRunPod();
    expect((await runProgram('ls', ['/tmp'])).stdout).not.toContain(
      `sluice-machines-${child.pid}-`,
    );
    expect(await next.control.inventory()).toEqual([]);
  });
});
