import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  statSync,
} from 'node:fs';
import { chmod, copyFile, mkdir, readdir, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import type { LogEntry } from '../vllm/request-log.ts';
import { writeBoot } from './boot.ts';
import type { ContainerBoot, VmBoot } from './boot.ts';
import { quote } from './cloud-init.ts';
import type { EngineKnobs, EngineReport, MachineKnobs } from './knobs.ts';
import { GATEWAY, layWire, renumberWire, runProgram } from './network.ts';
import type { Wire } from './network.ts';

export interface Gpu {
  /** As nvidia-smi names it. */
  name: string;
  memoryMib: number;
}

export interface MachineSpec {
  id: string;
  gpus: readonly Gpu[];
  diskGb: number;
  /** Folders of this machine that appear in the simulated one. */
  mounts: readonly { from: string; to: string }[];
  boot: ContainerBoot | VmBoot;
  knobs: MachineKnobs;
}

/** A simulated machine that runs: namespaces of its own, and in them what it was booted with. */
export interface Machine {
  /** Where its sshd listens, on port 22. */
  readonly address: string;
  /** Whether process 1 of its container still runs; a virtual machine always does. */
  containerRuns(): boolean;
  /** Whether something that speaks SSH answers on port 22. */
  answersSsh(): Promise<boolean>;
  /** Runs a shell line inside as root, without SSH. */
  exec(command: string): Promise<{ code: number | null; stdout: string; stderr: string }>;
  /** What the container (or the boot of a virtual machine) has printed. */
  log(): string;
  /** Also after its end. */
  engines(): EngineReport[];
  /** What its engines have answered, refused or dropped, one after the other; also after its end. */
  requests(): LogEntry[];
  /** For engines that start from now on. */
  setEngine(knobs: EngineKnobs): Promise<void>;
  setGpuFault(fault: MachineKnobs['gpu_fault']): Promise<void>;
  changeAddress(): Promise<string>;
  changeHostKey(): Promise<void>;
  /** SIGKILL to all SSH sessions: their connections end, what was started by them goes on. */
  cutSsh(): Promise<void>;
  /** Frozen, it swallows every packet: no answer, no reset, no error. */
  freeze(frozen: boolean): Promise<void>;
  /** Ends every process in it, as when its power is cut. */
  stop(): Promise<void>;
  /** Resolves when it has ended, by `stop` or by itself. */
  readonly ended: Promise<void>;
}

const HERE = path.dirname(fileURLToPath(import.meta.url));
const REPOSITORY = path.resolve(HERE, '../../..');
/** Compiled programs of all machines: without it each `docker` costs three times the CPU. */
const CACHE = path.join(REPOSITORY, 'node_modules/.cache/sluice-machines');
const START_MS = 20_000;
const LOG_END = 64 * 1024;

/** Which programs of ./bin a machine has: a container has no Docker, a host has no engine but in Docker. */
const PROGRAMS = {
  container: {
    leaves: ['docker', 'sudo', 'cloud-init', 'nvidia-ctk', 'systemctl'],
    aliases: { python: 'python3', apt: 'apt-get' },
  },
  vm: { leaves: ['vllm'], aliases: { python: 'python3', apt: 'apt-get' } },
} as const;

/** Engines of a virtual machine's containers need `vllm` on the PATH, but its users do not. */
async function copyPrograms(folder: string, { boot, knobs }: MachineSpec): Promise<void> {
  const { leaves, aliases } = PROGRAMS[boot.kind];
  const source = path.join(HERE, 'bin');
  const names = (await readdir(source)).map((name) => [name, name] as const);
  const all = [...names, ...Object.entries(aliases)];
  const left = new Set<string>([...leaves, ...knobs.missing_programs]);
  await mkdir(folder, { recursive: true });
  for (const [name, from] of all) {
    if (left.has(name) && !(boot.kind === 'vm' && name === 'vllm')) continue;
    const target = path.join(folder, name);
    await copyFile(path.join(source, from), target);
    await chmod(target, 0o755);
  }
}

async function writeSim(folder: string, spec: MachineSpec): Promise<void> {
  const { gpus, knobs } = spec;
  const shown = gpus.slice(0, gpus.length - knobs.gpus_missing);
  const lines = shown.map(
    ({ name, memoryMib }, at) => `${at}|${name}|${memoryMib}|GPU-${spec.id}-${at}`,
  );
  const env = {
    SIM_NODE: process.execPath,
    SIM_MACHINES: HERE,
    NODE_COMPILE_CACHE: '/var/cache/node',
    SIM_APT_SECONDS: String(knobs.apt_ms / 1000),
    SIM_APT_MIRRORS: knobs.apt_mirrors ? 'yes' : 'no',
  };
  await writeBoot(folder, spec.boot, knobs);
  await chmod(path.join(folder, 'engines'), 0o777);
  await writeFile(path.join(folder, 'gpus'), lines.map((line) => `${line}\n`).join(''));
  await writeFile(
    path.join(folder, 'env'),
    Object.entries(env)
      .map(([key, value]) => `${key}=${quote(value)}\n`)
      .join(''),
  );
}

async function writePlan(folder: string, spec: MachineSpec): Promise<void> {
  const { boot, diskGb, knobs, mounts, id } = spec;
  const installed = boot.kind === 'vm' || boot.sshdInstalled;
  const plan = {
    repository: REPOSITORY,
    node: process.execPath,
    cache: CACHE,
    disk: `${Math.round((knobs.disk_gb ?? diskGb) * 1024)}m`,
    name_of_host: id
      .toLowerCase()
      .replaceAll(/[^a-z0-9-]/g, '-')
      .slice(0, 60),
    sshd_installed: installed ? 'yes' : 'no',
    firewall: boot.kind === 'vm' ? 'yes' : 'no',
  };
  await mkdir(path.join(folder, 'root'), { recursive: true });
  await mkdir(CACHE, { recursive: true });
  await writeFile(
    path.join(folder, 'plan'),
    Object.entries(plan)
      .map(([key, value]) => `${key}=${quote(value)}\n`)
      .join(''),
  );
  await writeFile(
    path.join(folder, 'mounts'),
    mounts.map(({ from, to }) => `${from}\t${to}\n`).join(''),
  );
}

/** Waits until the first process prints `word`; throws with all it said if it ends before. */
async function waitForWord(child: ChildProcess, said: () => string, word: string): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<undefined>();
  const fail = (): void => reject(new Error(`the machine ended while it started: ${said()}`));
  const timer = setTimeout(
    () => reject(new Error(`no "${word}" within ${START_MS} ms: ${said()}`)),
    START_MS,
  );
  const look = (): void => {
    if (said().split('\n').includes(word)) resolve(undefined);
  };
  child.stdout?.on('data', look);
  child.once('close', fail);
  try {
    look();
    await promise;
  } finally {
    clearTimeout(timer);
    child.stdout?.off('data', look);
    child.off('close', fail);
  }
}

/** Process 1 of the namespaces, by its number out here. */
function innerPid(pid: number): number {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim();
  return Number(children.split(' ')[0]);
}

/** The times of an engine's request log, from its ends: it may be long, and a kill may cut its last line. */
function readTimes(
  file: string,
): Pick<EngineReport, 'first_request_at' | 'last_answer_at' | 'requests'> {
  const none = { first_request_at: null, last_answer_at: null, requests: 0 };
  if (!existsSync(file)) return none;
  const { size } = statSync(file);
  const descriptor = openSync(file, 'r');
  try {
    const read = (from: number): string[] => {
      const buffer = Buffer.alloc(Math.min(LOG_END, size - from));
      readSync(descriptor, buffer, 0, buffer.length, from);
      const lines = buffer.toString().split('\n').slice(0, -1);
      return from === 0 ? lines : lines.slice(1);
    };
    const parse = (line: string): LogEntry => JSON.parse(line) as LogEntry; // as the simulator wrote it
    const first = read(0).map(parse);
    const last = read(Math.max(0, size - LOG_END)).map(parse);
    if (first.length === 0) return none;
    return {
      first_request_at: Math.min(...first.map(({ at }) => at)),
      last_answer_at: Math.max(...last.map(({ finished_at: at }) => at ?? 0)),
      requests: Math.max(...last.map(({ seq }) => seq)),
    };
  } finally {
    closeSync(descriptor);
  }
}

function readEngines(folder: string): EngineReport[] {
  const names = readdirSync(folder).filter((name) => name.endsWith('.json'));
  const reports = names.map((name) => {
    const report = JSON.parse(readFileSync(path.join(folder, name), 'utf8')) as EngineReport;
    return { ...report, ...readTimes(path.join(folder, `${name}l`)) };
  });
  return reports.toSorted((one, two) => one.started_at - two.started_at);
}

/** A kill may cut the last line of a log. */
function readRequests(folder: string): LogEntry[] {
  const names = readdirSync(folder).filter((name) => name.endsWith('.jsonl'));
  const lines = names.flatMap((name) =>
    readFileSync(path.join(folder, name), 'utf8').split('\n').slice(0, -1),
  );
  const entries = lines.map((line) => JSON.parse(line) as LogEntry); // as the simulator wrote it
  return entries.toSorted((one, two) => one.at - two.at);
}

async function greets(host: string): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const socket = connect({ host, port: 22, timeout: 1000 });
  socket.once('data', (bytes) => resolve(bytes.toString().startsWith('SSH-')));
  socket.once('error', () => resolve(false)).once('timeout', () => resolve(false));
  socket.once('close', () => resolve(false));
  const answer = await promise;
  socket.destroy();
  return answer;
}

const NEW_HOST_KEYS = `set -e
cd /etc/ssh; rm -f ssh_host_*
ssh-keygen -q -t ed25519 -N '' -f ssh_host_ed25519_key
kill -HUP "$(cat /run/sshd.pid)"`;

const THAW = 'ip rule del pref 1 2>/dev/null || true';
const FREEZE = `${THAW}; ip rule add pref 1 iif eth0 blackhole`;

interface Running {
  child: ChildProcess;
  wire: Wire;
  inner: number;
}

/** Process 1 shows a container's environment, as scripts expect that look for it; nothing of ours goes in. */
function environmentOf(boot: MachineSpec['boot']): Record<string, string> {
  const own = boot.kind === 'container' ? boot.env : {};
  return { ...own, PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' };
}

async function launch(folder: string, env: Record<string, string>): Promise<Running> {
  const flags = ['--net', '--mount', '--pid', '--uts', '--fork', '--kill-child'];
  const child = spawn('unshare', [...flags, '/bin/sh', path.join(HERE, 'init.sh'), folder], {
    stdio: ['pipe', 'pipe', 'pipe'],
    detached: true,
    env,
  });
  let output = '';
  const said = (): string => output;
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (output += text));
  child.stdin.on('error', () => {}); // it has ended, which `close` says too
  const pid = child.pid ?? 0;
  try {
    await writeFile(path.join(folder, 'pid'), String(pid));
    await waitForWord(child, said, 'namespaces');
    const wire = await layWire(pid);
    child.stdin.write(`${wire.address} ${GATEWAY}\n`);
    await waitForWord(child, said, 'booting');
    return { child, wire, inner: innerPid(pid) };
  } catch (error) {
    child.kill('SIGKILL');
    throw error;
  }
}

/**
 * Starts a machine below `yard` and resolves when it boots; what listens in it comes later. It ends
 * with this process, however that ends.
 */
export async function startMachine(yard: string, spec: MachineSpec): Promise<Machine> {
  const folder = path.join(yard, 'machines', `${spec.id}-${Date.now().toString(36)}`);
  const sim = path.join(folder, 'sim');
  await mkdir(sim, { recursive: true });
  await Promise.all([
    copyPrograms(path.join(folder, 'bin'), spec),
    writeSim(sim, spec),
    writePlan(folder, spec),
  ]);
  const running = await launch(folder, environmentOf(spec.boot));
  const { child, inner } = running;
  const closed = Promise.withResolvers<undefined>();
  child.once('close', () => closed.resolve(undefined));
  if (child.exitCode !== null || child.signalCode !== null) closed.resolve(undefined);
  let wire = running.wire;
  let stopped: Promise<void> | undefined;

  async function exec(command: string) {
    const into = ['--target', String(inner), '--all', '--root', '--wd'];
    return runProgram('nsenter', [...into, '/bin/sh', '-c', command]);
  }

  async function must(command: string): Promise<void> {
    const { code, stderr } = await exec(command);
    if (code !== 0) throw new Error(`in machine ${spec.id}: ${stderr.trim()}`);
  }

  const engineFolder = path.join(sim, 'engines');
  let last: { engines: EngineReport[]; requests: LogEntry[] } | undefined;

  async function stop(): Promise<void> {
    child.kill('SIGKILL');
    await closed.promise;
    last = { engines: readEngines(engineFolder), requests: readRequests(engineFolder) };
    await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  }

  return {
    get address() {
      return wire.address;
    },
    containerRuns: () => !existsSync(path.join(sim, 'exit')),
    answersSsh: async () => greets(wire.address),
    exec,
    log: () =>
      readFileSync(
        path.join(sim, spec.boot.kind === 'container' ? 'container.log' : 'console.log'),
        'utf8',
      ),
    engines: () => last?.engines ?? readEngines(engineFolder),
    requests: () => last?.requests ?? readRequests(engineFolder),
    setEngine: async (knobs) => writeFile(path.join(sim, 'engine.json'), JSON.stringify(knobs)),
    setGpuFault: async (fault) => writeFile(path.join(sim, 'gpu-fault'), fault ?? ''),
    async changeAddress() {
      const next = await renumberWire(wire);
      await must(
        `ip address del ${wire.address} peer ${GATEWAY} dev eth0; ip address add ${next.address} peer ${GATEWAY} dev eth0`,
      );
      wire = next;
      return wire.address;
    },
    changeHostKey: async () => must(NEW_HOST_KEYS),
    cutSsh: async () => {
      await exec(
        'for pid in $(pgrep -f "^sshd: "); do [ "$pid" = "$(cat /run/sshd.pid)" ] || kill -KILL "$pid"; done',
      );
    },
    freeze: async (frozen) => must(frozen ? FREEZE : THAW),
    async stop() {
      stopped ??= stop();
      await stopped;
    },
    ended: closed.promise,
  };
}
