import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { loadSettings } from '../../config/load.ts';
import { engineParts } from '../../src/main/engine-parts.ts';
import type { EngineState, MachineSite } from '../../src/runtimes/contract.ts';
import { createMachineRuntime } from '../../src/runtimes/ssh/machine-runtime.ts';
import type { MachineRuntimeOptions, Machines } from '../../src/runtimes/ssh/machine-runtime.ts';
import { startSshMachine } from '../support/ssh-machine.ts';
import type { SshMachine } from '../support/ssh-machine.ts';
import { makeSpec } from '../support/template-spec.ts';
import type { Changes } from '../support/template-spec.ts';
import { until } from '../support/until.ts';

const NEVER = new AbortController().signal;
const NEED = { gpuCount: 1, vramGb: 80, diskGb: 10 };
const TOKEN = 'hf_very-secret';

function machinesFor(
  { key }: Pick<SshMachine, 'key'>,
  more: Partial<MachineRuntimeOptions> = {},
): Machines & AsyncDisposable {
  const machines = createMachineRuntime({
    privateKey: key.privateKey,
    engineForm: (provider) => (provider === 'lambdaCloud' ? 'docker' : 'process'),
    modelCachePath: () => null,
    secret: async () => null,
    objectStore: () => null,
    ...more,
  });
  return Object.assign(machines, { [Symbol.asyncDispose]: async () => machines.close() });
}

function order(changes: Changes = {}) {
  return { spec: makeSpec(changes), servingName: 'qwen' };
}

async function stateIs(
  machines: Machines,
  site: MachineSite,
  wanted: EngineState['is'],
): Promise<EngineState> {
  return until(
    async () => {
      const state = await machines.look(site, NEVER);
      return state.is === wanted ? state : undefined;
    },
    { what: `an engine that is ${wanted}`, everyMs: 50 },
  );
}

/** What the engine's own API says to whoever is on the machine; `down` where nobody listens. */
async function servedModels({ machine }: SshMachine): Promise<string> {
  const script =
    'fetch("http://127.0.0.1:8000/v1/models").then((a) => a.json()).then((b) => console.log(b.data[0].id), () => console.log("down"))';
  return (await machine.exec(`. /sim/env; "$SIM_NODE" -e '${script}'`)).stdout.trim();
}

describe.for(['vm', 'container'] as const)('on a %s', (kind) => {
  let to: SshMachine;
  beforeAll(async () => {
    to = await startSshMachine(kind);
  });
  afterAll(async () => to[Symbol.asyncDispose]());

  test('a machine is checked, its engine started, adopted by the next process, read and stopped', async () => {
    await using machines = machinesFor(to);
    await using others = machinesFor(to);
    const site = to.site();
    expect(await machines.check(site, NEED, NEVER)).toBeNull();
    expect(await machines.check(site, { ...NEED, gpuCount: 8 }, NEVER)).toMatch(/1 of 8 GPUs/);
    expect(await machines.look(site, NEVER)).toEqual({ is: 'absent' });
    await machines.start(site, order(), NEVER);
    await until(async () => (await servedModels(to)) === 'qwen', { everyMs: 100 });
    expect(await others.start(site, order(), NEVER)).toEqual({ is: 'running' });
    expect(to.machine.engines()).toHaveLength(1);
    await expect(
      others.start(site, order({ engine: { serve_args: ['--max-num-seqs', '8'] } }), NEVER),
    ).rejects.toMatchObject({ kind: 'Permanent', code: 'engine.other_command' });

    const log = await machines.readLog(site, 0, NEVER);
    expect(log.text).toContain('Application startup complete.\n');
    expect(await machines.readLog(site, log.next, NEVER)).toEqual({ text: '', next: log.next });
    await machines.stop(site, NEVER);
    expect(await machines.look(site, NEVER)).toEqual({ is: 'absent' });
    expect(await servedModels(to)).toBe('down');
    await machines.stop(site, NEVER);
  });

  test('a crash at load is seen within seconds, with the last lines', async () => {
    await using machines = machinesFor(to);
    await to.machine.setEngine({ ...HEALTHY, crash: 'oom', crash_after_ms: 200 });
    const began = performance.now();
    await machines.start(to.site(), order(), NEVER);
    const seen = await stateIs(machines, to.site(), 'exited');
    expect(performance.now() - began).toBeLessThan(8_000);
    expect(seen).toMatchObject({
      code: 1,
      lastWords: expect.stringContaining('torch.OutOfMemoryError: CUDA out of memory'),
    });
    expect(await machines.start(to.site(), order(), NEVER)).toEqual(seen);
    await to.machine.setEngine(HEALTHY);
    await machines.stop(to.site(), NEVER);
  });

  test('a secret reaches the engine, and neither a command line nor another process', async () => {
    await using machines = machinesFor(to, {
      secret: async (name) => (name === 'hf' ? { token: TOKEN } : null),
    });
    await to.machine.setEngine({ ...HEALTHY, gated_token: TOKEN });
    const watching = to.machine.exec(WATCH);
    await machines.start(to.site(), order({ model_source: { auth_secret_ref: 'hf' } }), NEVER);
    await until(async () => (await servedModels(to)) === 'qwen', { everyMs: 100 });
    await to.machine.exec('touch /tmp/seen');
    const { stdout } = await watching;
    // What is no secret was seen, and the engine itself has it.
    expect(stdout.trim().split('\n')).toEqual(['argv:Qwen3-8B', 'environ:engine']);
    const left = await to.machine.exec(
      `grep -rl '${TOKEN}' /root/.sluice /home/*/.sluice 2>/dev/null`,
    );
    expect(left.stdout).toBe('');
    await to.machine.setEngine(HEALTHY);
    await machines.stop(to.site(), NEVER);
  });

  test('ENGINE_SECRETS_DIR: an engine gets the secret that its template names', async () => {
    const folder = await mkdtemp(path.join(tmpdir(), 'sluice-secrets-'));
    onTestFinished(async () => rm(folder, { recursive: true }));
    await mkdir(path.join(folder, 'hf'));
    await writeFile(path.join(folder, 'hf/token'), `${TOKEN}\n`, { mode: 0o600 });
    const settings = loadSettings({ ENGINE_SECRETS_DIR: folder });
    await using machines = machinesFor(to, engineParts(settings));
    await to.machine.setEngine({ ...HEALTHY, gated_token: TOKEN });
    await machines.start(to.site(), order({ model_source: { auth_secret_ref: 'hf' } }), NEVER);
    await until(async () => (await servedModels(to)) === 'qwen', { everyMs: 100 });
    await machines.stop(to.site(), NEVER);
    await machines.start(to.site(), order(), NEVER);
    expect(await stateIs(machines, to.site(), 'exited')).toMatchObject({
      lastWords: expect.stringContaining('Cannot access gated repo'),
    });
    await to.machine.setEngine(HEALTHY);
    await machines.stop(to.site(), NEVER);
  });

  test('a template whose secret is missing is refused before anything is asked of a machine', async () => {
    await using machines = machinesFor(to, { secret: async () => ({ other: 'x' }) });
    const gated = order({ model_source: { auth_secret_ref: 'hf' } });
    const refusal = {
      kind: 'InvalidInput',
      code: 'engine.secret_missing',
      message: expect.stringMatching(/the file hf\/token of the folder that ENGINE_SECRETS_DIR/),
    };
    const before = await to.connections();
    await expect(machines.start(to.site(), gated, NEVER)).rejects.toMatchObject(refusal);
    await expect(machines.checkOrder(to.site().provider, gated)).rejects.toMatchObject(refusal);
    await machines.checkOrder(to.site().provider, order());
    expect(await to.connections()).toBe(before);
  });
});

const HEALTHY = {
  faults: [] as [],
  load_ms: 100,
  download_ms: 0,
  crash: null,
  crash_after_ms: 50,
  never_healthy: false,
  gated_token: null,
  profile: 'small',
  set: {},
  version: '0.29.0',
} as const;

/** Looks at all processes until `/tmp/seen` is there: what of it is in a command line, and who has it. */
const WATCH = String.raw`rm -f /tmp/seen
while [ ! -e /tmp/seen ]; do
  for process in /proc/[0-9]*; do
    tr '\0' ' ' <$process/cmdline 2>/dev/null | grep -aoE 'hf_[v]ery|Qwen3-8[B]' | sed 's/^/argv:/'
    if tr '\0' '\n' <$process/environ 2>/dev/null | grep -qE 'hf_[v]ery'; then
      if tr '\0' ' ' <$process/cmdline | grep -q 'serve Qwen'; then echo environ:engine; else echo "environ:$(tr '\0' ' ' <$process/cmdline)"; fi
    fi
  done
done | sort -u`;

test('where docker runs engines, weights lie in the cache of the settings, and folders of the machine are seen', async () => {
  await using to = await startSshMachine('vm');
  await using machines = machinesFor(to, { modelCachePath: () => '/lambda/nfs/weights' });
  await to.machine.exec('mkdir -p /models/own');
  await to.machine.exec(
    String.raw`mv /usr/local/bin/docker /usr/local/bin/docker.real; printf '#!/bin/sh\n[ "$1" != run ] || printf "%%s\\n" "$@" >/tmp/run-words\nexec docker.real "$@"\n' >/usr/local/bin/docker; chmod 755 /usr/local/bin/docker`,
  );
  const local = order({
    model_source: {
      type: 'local',
      uri: '/models/own',
      chat_template_path: '/in-the-image/chat.jinja',
    },
  });
  await machines.start(to.site(), local, NEVER);
  await stateIs(machines, to.site(), 'running');
  const words = (await to.machine.exec('cat /tmp/run-words')).stdout.split('\n');
  const mounts = words.flatMap((word, at) => (word === '--volume' ? [words[at + 1]] : []));
  expect(mounts).toEqual(['/lambda/nfs/weights:/lambda/nfs/weights', '/models/own:/models/own']);
  expect(words).toEqual(expect.arrayContaining(['--gpus', 'all', '--shm-size', '16g']));
  expect(words[words.indexOf('--entrypoint') + 1]).toBe('vllm');
  expect(words[words.indexOf('--publish') + 1]).toBe('127.0.0.1:8000:8000');
});

describe('connections to machines', () => {
  test('are shared by all that is asked at once, made anew when they are cut, and closed when nobody asks', async () => {
    await using to = await startSshMachine();
    await using machines = machinesFor(to, { idleMs: 700 });
    const site = to.site();
    const looks = Array.from({ length: 20 }, async () => machines.look(site, NEVER));
    expect(await Promise.all(looks)).toEqual(Array.from({ length: 20 }, () => ({ is: 'absent' })));
    expect(await to.connections()).toBe(1);
    await to.machine.cutSsh();
    expect(await machines.look(site, NEVER)).toEqual({ is: 'absent' });
    expect(await to.connections()).toBe(1);
    await until(async () => (await to.connections()) === 0, { what: 'no connection' });
    expect(await machines.look(site, NEVER)).toEqual({ is: 'absent' });
  });

  test('end with the runtime, and so does what is under way', async () => {
    await using to = await startSshMachine();
    const machines = machinesFor(to);
    await machines.look(to.site(), NEVER);
    const slow = Array.from({ length: 5 }, async () => machines.check(to.site(), NEED, NEVER));
    const outcomes = Promise.allSettled(slow);
    await machines.close();
    await machines.close();
    for (const outcome of await outcomes) {
      expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'ssh.cut' } });
    }
    await expect(machines.look(to.site(), NEVER)).rejects.toMatchObject({ code: 'ssh.cut' });
    await until(async () => (await to.connections()) === 0, { what: 'no connection' });
    await until(async () => (await processesOfOurs(to)) === '', { what: 'no process of ours' });
  });

  test('that nobody waits for any more do not hold up who gave up', async () => {
    await using to = await startSshMachine();
    await using machines = machinesFor(to);
    await to.machine.freeze(true);
    const began = performance.now();
    const signal = AbortSignal.timeout(200);
    await expect(machines.look(to.site(), signal)).rejects.toMatchObject({ name: 'TimeoutError' });
    expect(performance.now() - began).toBeLessThan(3_000);
  });

  test('follow a machine to its next address, and refuse another machine at the old one', async () => {
    await using to = await startSshMachine();
    await using machines = machinesFor(to);
    const old = to.site();
    await machines.start(old, order(), NEVER);
    await to.machine.changeAddress();
    expect(to.site().login.host).not.toBe(old.login.host);
    await stateIs(machines, to.site(), 'running');
    await to.machine.changeHostKey();
    await until(async () => to.machine.answersSsh());
    await to.machine.cutSsh();
    await expect(machines.look(to.site(), NEVER)).rejects.toMatchObject({
      kind: 'Permanent',
      code: 'ssh.host_key_changed',
    });
  });

  test('that nobody lets in are told as something that may pass', async () => {
    await using to = await startSshMachine();
    await using machines = machinesFor(to);
    const { login, ...site } = to.site();
    const closed = { ...site, login: { ...login, port: 2222 } };
    await expect(machines.check(closed, NEED, NEVER)).rejects.toMatchObject({
      kind: 'Transient',
      code: 'ssh.refused',
    });
  });
});

/** Shells of scripts of ours that run on the machine. */
async function processesOfOurs({ machine }: SshMachine): Promise<string> {
  return (await machine.exec('pgrep -fa "timeout -s KIL[L]"')).stdout.trim();
}

test('a machine that is still being set up is judged later', async () => {
  await using to = await startSshMachine('vm', {
    knobs: { cloud_init_ms: 4_000, gpu_fault: 'driver' },
  });
  await using machines = machinesFor(to);
  await expect(machines.check(to.site(), NEED, NEVER)).rejects.toMatchObject({
    kind: 'Transient',
    code: 'ssh.setting_up',
    message: expect.stringMatching(/nvidia-smi fails/),
  });
  const verdict = await until(
    async () => machines.check(to.site(), NEED, NEVER).catch(() => undefined),
    { everyMs: 200 },
  );
  expect(verdict).toMatch(/nvidia-smi fails/);
});
