import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  idOf,
  lookAtEngine,
  readEngineLog,
  startEngine,
  stopEngine,
} from '../../src/runtimes/ssh/engine.ts';
import type { EngineLook, EngineStart } from '../../src/runtimes/ssh/engine.ts';
import { exec } from '../../src/runtimes/ssh/exec.ts';
import { probe, whyUnfit } from '../../src/runtimes/ssh/probe.ts';
import { startSshMachine } from '../support/ssh-machine.ts';
import type { SshMachine } from '../support/ssh-machine.ts';
import { until } from '../support/until.ts';

const SECRET = 'sk-"it\'s $HOME `secret`"';

/** Each provider's form of the same engine. */
const FORMS = {
  docker: {
    form: {
      kind: 'docker',
      image: 'vllm/vllm-openai:v0.29.0',
      entrypoint: 'vllm',
      gpus: 'all',
      shmSize: '16g',
      port: 8000,
      volumes: [{ from: '/opt/sluice/cache', to: '/root/.cache/huggingface' }],
      shared: [],
    },
    argv: ['serve', 'org/model', '--host', '0.0.0.0', '--served-model-name', 'm'],
  },
  process: {
    form: { kind: 'process' },
    argv: ['vllm', 'serve', 'org/model', '--host', '127.0.0.1', '--served-model-name', 'm'],
  },
} as const;

type Kind = keyof typeof FORMS;

function engine(kind: Kind, more: Partial<EngineStart> = {}): EngineStart {
  const { form, argv } = FORMS[kind];
  return { name: 'engine-1', form, argv, env: { VLLM_API_KEY: SECRET }, files: [], ...more };
}

/** What its key opens: 200 once it serves. */
async function served({ machine }: SshMachine): Promise<string> {
  const quoted = JSON.stringify({ authorization: `Bearer ${SECRET}` }).replaceAll("'", `'\\''`);
  const script = `fetch("http://127.0.0.1:8000/v1/models", { headers: ${quoted} }).then((answer) => console.log(answer.status), () => console.log("down"))`;
  return (await machine.exec(`. /sim/env; "$SIM_NODE" -e '${script}'`)).stdout.trim();
}

/** The one that was started last, once its process is there. */
async function since({ machine }: SshMachine, time: number) {
  return until(() => machine.engines().find(({ started_at: at }) => at >= time), {
    what: 'its process',
  });
}

async function boot(kind: Kind, knobs = {}): Promise<SshMachine> {
  return startSshMachine(kind === 'docker' ? 'vm' : 'container', { knobs });
}

async function exited(look: () => Promise<EngineLook>) {
  return until(
    async () => {
      const seen = await look();
      return seen.state === 'exited' ? seen : undefined;
    },
    { what: 'its end' },
  );
}

describe.for(['docker', 'process'] as const)('an engine as a %s', (kind) => {
  let machine: SshMachine;
  beforeAll(async () => {
    machine = await boot(kind);
  });
  afterAll(async () => machine[Symbol.asyncDispose]());

  test('is started once, adopted by whoever comes later, and stopped by its name', async () => {
    const session = await machine.open();
    const start = engine(kind);
    const id = idOf(start);
    expect(await lookAtEngine(session, id)).toEqual({ state: 'absent', digest: '' });
    const began = performance.now();
    // Two processes at once, each with a connection of its own.
    const both = await Promise.all([
      startEngine(session, start),
      startEngine(await machine.open(), start),
    ]);
    expect(performance.now() - began).toBeLessThan(10_000);
    expect(both.filter(({ isAdopted }) => isAdopted)).toHaveLength(1);
    await until(async () => (await served(machine)) === '200', {
      what: 'the engine',
      everyMs: 100,
    });
    expect(await startEngine(session, start)).toMatchObject({ state: 'running', isAdopted: true });
    expect(machine.machine.engines()).toHaveLength(1);

    const log = await readEngineLog(session, id, 0);
    expect(log.text).toContain('INFO:     Application startup complete.\n');
    expect(log.next).toBe(Buffer.byteLength(log.text));
    expect(await readEngineLog(session, id, log.next)).toEqual({ text: '', next: log.next });
    const line = await readEngineLog(session, id, 0, 100);
    expect(line.text).toMatch(/^INFO .*\n$/);
    expect((await readEngineLog(session, id, line.next)).text).toBe(log.text.slice(line.next));
    expect((await readEngineLog(session, id, 9_999_999)).text).toBe(log.text);

    await stopEngine(session, id, 5);
    expect(await lookAtEngine(session, id)).toEqual({ state: 'absent', digest: '' });
    expect(await served(machine)).toBe('down');
    expect(machine.machine.engines()[0]).toMatchObject({ exit_code: 0 });
    await stopEngine(session, id);
    expect(await startEngine(session, start)).toMatchObject({ isAdopted: false });
    await stopEngine(session, id);
  });

  test('keeps its secrets out of every command line and file', async () => {
    const session = await machine.open();
    const start = engine(kind, { name: 'quiet' });
    const watching = machine.machine.exec(
      `while [ ! -e /tmp/seen ]; do cat /proc/[0-9]*/cmdline 2>/dev/null; done | grep -aoE 's[k]-|org/[m]odel' | sort -u`,
    );
    const began = Date.now();
    await startEngine(session, start);
    await until(async () => (await since(machine, began)).healthy_at);
    await machine.machine.exec('touch /tmp/seen');
    // What is no secret was seen.
    expect((await watching).stdout).toBe('org/model\n');
    expect(await served(machine)).toBe('200');
    const home = kind === 'docker' ? '/home/ubuntu' : '/root';
    const found = await machine.machine.exec(
      `grep -rl 'sk-' ${home}/.sluice; find ${home}/.sluice -perm /077`,
    );
    expect(found.stdout).toBe('');
    await stopEngine(session, idOf(start), 1);
  });

  test('is not taken for one with another command', async () => {
    const session = await machine.open();
    const start = engine(kind, { name: 'other', env: {} });
    await startEngine(session, start);
    const longer = { ...start, argv: [...start.argv, '--max-num-seqs', '8'] };
    await expect(startEngine(session, longer)).rejects.toMatchObject({
      kind: 'Permanent',
      code: 'engine.other_command',
    });
    // A new value of a secret is the same command; a new secret is not.
    const keyed = { ...start, name: 'keyed', env: { HF_TOKEN: 'a' } };
    await stopEngine(session, idOf(start), 1);
    await startEngine(session, keyed);
    expect(await startEngine(session, { ...keyed, env: { HF_TOKEN: 'b' } })).toMatchObject({
      isAdopted: true,
    });
    await stopEngine(session, idOf(keyed), 1);
  });

  test('that crashes at load is told with its last words within seconds, and not started again', async () => {
    await using sick = await boot(kind, { engine: { crash: 'oom', crash_after_ms: 300 } });
    const session = await sick.open();
    const start = engine(kind);
    const began = performance.now();
    await startEngine(session, start);
    const seen = await exited(async () => lookAtEngine(session, idOf(start)));
    expect(performance.now() - began).toBeLessThan(8_000);
    expect(seen.code).toBe(1);
    expect(seen.lastWords).toContain('torch.OutOfMemoryError: CUDA out of memory');
    expect(seen.lastWords.trimEnd()).toMatch(/Engine core initialization failed.*$/);
    expect(await startEngine(session, start)).toEqual({ ...seen, isAdopted: true });
    expect(sick.machine.engines()).toHaveLength(1);
    await stopEngine(session, idOf(start));
    expect(await startEngine(session, start)).toMatchObject({ isAdopted: false });
  });

  test('goes on when its connection is cut, and is found again over the next', async () => {
    const start = engine(kind, { name: 'steady' });
    const first = await machine.open();
    await startEngine(first, start);
    await until(async () => (await served(machine)) === '200', {
      what: 'the engine',
      everyMs: 200,
    });
    await machine.machine.cutSsh();
    await first.ended;
    const second = await machine.open();
    expect(await startEngine(second, start)).toMatchObject({ state: 'running', isAdopted: true });
    expect(await served(machine)).toBe('200');
    await stopEngine(second, idOf(start), 1);
  });

  test('that is killed from outside is seen as ended', async () => {
    const session = await machine.open();
    const start = engine(kind, { name: 'shot' });
    const began = Date.now();
    await startEngine(session, start);
    const { pid } = await since(machine, began);
    await until(async () => (await lookAtEngine(session, idOf(start))).state === 'running');
    await machine.machine.exec(`kill -KILL ${pid}`);
    const seen = await exited(async () => lookAtEngine(session, idOf(start)));
    expect(seen.code).toBe(137);
    await stopEngine(session, idOf(start));
  });
});

describe('as a container', () => {
  test('an image that cannot be fetched, and a GPU that docker does not know, say so', async () => {
    await using off = await boot('docker', { registry_down: true, nvidia_runtime: false });
    const session = await off.open();
    const start = engine('docker');
    await startEngine(session, start);
    const seen = await exited(async () => lookAtEngine(session, idOf(start)));
    expect(seen.lastWords).toContain('registry-1.docker.io');
    expect(seen.code).not.toBe(0);
    await stopEngine(session, idOf(start));
  });

  test('docker is told of the GPUs where it was not', async () => {
    await using machine = await boot('docker', { nvidia_runtime: false });
    const session = await machine.open();
    await startEngine(session, engine('docker'));
    const states = new Set<string>();
    await until(async () => {
      states.add((await lookAtEngine(session, idOf(engine('docker')))).state);
      return (await served(machine)) === '200';
    });
    expect(states.has('exited')).toBe(false);
  });

  test('it can be stopped while its image is fetched, and the log goes on when its reader was killed', async () => {
    await using machine = await boot('docker', { image_pull_ms: 1_500 });
    const session = await machine.open();
    const start = engine('docker');
    expect(await startEngine(session, start)).toMatchObject({ state: 'launching' });
    expect(await lookAtEngine(session, idOf(start))).toMatchObject({ state: 'launching' });
    await stopEngine(session, idOf(start), 1);
    expect(await lookAtEngine(session, idOf(start))).toMatchObject({ state: 'absent' });

    await startEngine(session, start);
    await until(async () => (await served(machine)) === '200', {
      what: 'the engine',
      everyMs: 200,
    });
    const before = await readEngineLog(session, idOf(start), 0);
    await exec(
      session,
      'cd ~/.sluice/engines/engine-1; read -r pid since <pid; kill -KILL -$pid; rm log',
    );
    expect(await startEngine(session, start)).toMatchObject({ state: 'running', isAdopted: true });
    const after = await until(async () => {
      const { text } = await readEngineLog(session, idOf(start), 0);
      return text.startsWith(before.text);
    });
    expect(after).toBe(true);
    expect(machine.machine.engines()).toHaveLength(1);
  });
});

describe('as a process', () => {
  test("it has the image's environment, and nothing else of the container's", async () => {
    await using machine = await boot('process');
    const session = await machine.open();
    const start = engine('process', {
      name: 'shell',
      argv: [
        'sh',
        '-c',
        String.raw`env; printf '%s\n' "$1"; sleep 60`,
        'sh',
        `it's "$HOME" \\n; exit`,
      ],
    });
    await startEngine(session, start);
    const { text } = await until(async () => {
      const part = await readEngineLog(session, { name: 'shell' }, 0);
      return part.text.includes('exit\n') ? part : undefined;
    });
    expect(text).toContain('CUDA_VERSION=13.0\n');
    expect(text).toContain(`VLLM_API_KEY=${SECRET}\n`);
    expect(text).not.toContain('RUNPOD_API_KEY');
    expect(text).not.toContain('PRIVATE KEY');
    expect(text.endsWith(`it's "$HOME" \\n; exit\n`)).toBe(true);
    await stopEngine(session, idOf(start), 1);
  });

  test('its children end with it', async () => {
    await using machine = await boot('process');
    const session = await machine.open();
    const start = engine('process', {
      argv: ['sh', '-c', `trap '' TERM; sleep 97 & sleep 98 & wait`],
    });
    await startEngine(session, start);
    const sleepers = async () => (await machine.machine.exec('pgrep -fc "^sleep 9"')).stdout.trim();
    await until(async () => (await sleepers()) === '2');
    await stopEngine(session, idOf(start), 1);
    expect(await sleepers()).toBe('0');
  });

  test('a program that is not there is told by its shell', async () => {
    await using machine = await boot('process');
    const session = await machine.open();
    const start = engine('process', { argv: ['no-such-engine'] });
    await startEngine(session, start);
    const seen = await exited(async () => lookAtEngine(session, idOf(start)));
    expect(seen).toMatchObject({ code: 127 });
    expect(seen.lastWords).toContain('no-such-engine');
  });
});

test('what can be started nowhere is refused before anything is asked', async () => {
  await using machine = await boot('process');
  const session = await machine.open();
  const { form } = FORMS.docker;
  const wrong: Partial<EngineStart>[] = [
    { name: 'A b' },
    { name: '../x' },
    { argv: [] },
    { env: { 'A-B': '' } },
    { env: { KEY: 'two\nlines' } },
    { form: { ...form, image: '--privileged' } },
    { form: { ...form, volumes: [{ from: '/a:/b', to: '/c' }] } },
    { form: { ...form, shared: ['/a:/b'] } },
  ];
  for (const more of wrong) {
    await expect(startEngine(session, engine('process', more))).rejects.toMatchObject({
      kind: 'InvalidInput',
      code: 'engine.start',
    });
  }
});

describe('a probe', () => {
  test('tells what there is, as often as it is asked', async () => {
    await using machine = await startSshMachine('vm', { gpus: 2 });
    const session = await machine.open();
    const gpu = { name: 'NVIDIA H100 80GB HBM3', memoryMib: 81_559 };
    const found = await until(async () => {
      const seen = await probe(session);
      return seen.cloudInit === 'done' ? seen : undefined;
    });
    expect(found).toMatchObject({ gpus: [gpu, gpu], gpuProblem: '', cudaError: 0 });
    expect(found.disk.bytes).toBe(20 * 1024 ** 3);
    expect(found.disk.freeBytes).toBeGreaterThan(19 * 1024 ** 3);
    expect(await probe(session)).toEqual(found);
    const need = { gpuCount: 2, vramGb: 80, diskGb: 20 };
    expect(whyUnfit(found, need)).toBeNull();
    expect(whyUnfit(found, { ...need, gpuCount: 4 })).toBe('it shows 2 of 4 GPUs');
    expect(whyUnfit(found, { ...need, vramGb: 141 })).toMatch(/has 81559 MiB, not 141 GB/);
    expect(whyUnfit(found, { ...need, diskGb: 200 })).toMatch(/21\.\d GB left, and 200 GB are/);
  });

  test.for([
    ['driver', /nvidia-smi fails: NVIDIA-SMI has failed/],
    ['cuda802', /CUDA does not start: error 802/],
  ] as const)('a machine with the fault %s is of no use', async ([fault, why]) => {
    await using machine = await boot('process', { gpu_fault: fault });
    const found = await probe(await machine.open());
    expect(whyUnfit(found, { gpuCount: 1, vramGb: 80, diskGb: 1 })).toMatch(why);
  });

  test('a machine without nvidia-smi says that', async () => {
    await using machine = await boot('process', { missing_programs: ['nvidia-smi'] });
    const found = await probe(await machine.open());
    expect(whyUnfit(found, { gpuCount: 1, vramGb: 0, diskGb: 0 })).toMatch(/nvidia-smi fails: .*/);
  });
});
